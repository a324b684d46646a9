"""Where in the forget answers the likelihood went, beside the retain model.

    python benchmarks/label_likelihoods.py RUN_DIR [RUN_DIR ...]

Read from the values of each label that runs of language models with a retain model keep (`per_example/`). One line for
the retain and the base model of the first run, and one for the unlearned model of each run: mean NLL per label, mean of
the first label of an answer, share of labels that are the likeliest token, and correlation of the NLLs of all labels
with the retain model's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from stable_forgetting.evaluation.likelihood_scores import LikelihoodScores


def forget_likelihood(run_dir: Path, role: str) -> LikelihoodScores:
    """What one of a run's models says about the forget set."""
    found = json.loads((run_dir / "per_example" / f"{role}.json").read_text(encoding="utf-8"))
    return LikelihoodScores.from_json(found["sets"]["forget"]["likelihood"])


def line(name: str, scores: LikelihoodScores, retain: LikelihoodScores) -> str:
    """The four numbers."""
    correct = scores.num_correct.sum() / scores.num_labels.sum()
    correlation = np.corrcoef(scores.label_nll, retain.label_nll)[0, 1]
    first = scores.label_nll[scores.label_starts].mean()
    return f"{name:40s} {scores.label_nll.mean():6.2f} {first:6.2f} {100 * correct:6.1f} % {correlation:6.2f}"


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", type=Path, nargs="+")
    run_dirs = parser.parse_args().run_dirs
    retain = forget_likelihood(run_dirs[0], "retain")
    for role in ("retain", "base"):
        print(line(f"{role} model", forget_likelihood(run_dirs[0], role), retain))
    for run_dir in run_dirs:
        print(line(run_dir.name, forget_likelihood(run_dir, "unlearned"), retain))


if __name__ == "__main__":
    main()
