"""Set-up shared by all tests: no network, one thread, slow twins importable."""

import os
import sys
from pathlib import Path

# Beside other programs, tiny tensors on several threads take many times as long: the threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

collect_ignore_glob = ["conftest.py", "*/conftest.py"]
"""They hold no tests; the search for doctests would import several modules of the same name."""
