"""`python -m stable_forgetting`: the command `forget`, for launchers that start modules."""

from stable_forgetting.cli.main import main

main()
