"""What calibrated distributions ask for, as membership attacks see it: would a model that meets them stand out?

    OMP_NUM_THREADS=1 python benchmarks/target_distributions.py RUN_DIR

RUN_DIR is a run of `calibrated_distribution` on language with a holdout set whose quantiles are the targets; its models
are taken from the cache, or made. One line for the forget set under the base model, for targets with other words in the
base model's proportions, and for targets as sure of other words as at unseen labels: AUC of Min-K++ and of Min-K
against the holdout set under the base model, which is what the unseen term asks for there; mean entropy of all words
and of all but the label, in nats.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stable_forgetting import RichProgress
from stable_forgetting.config import load_config
from stable_forgetting.data.ragged import RowValues
from stable_forgetting.evaluation import LikelihoodScores
from stable_forgetting.evaluation.likelihood import POSITIONS_AT_ONCE
from stable_forgetting.evaluation.likelihood_scores import Floats, Singles, TokenScores
from stable_forgetting.evaluation.membership import min_k, min_k_plus_plus
from stable_forgetting.evaluation.privacy import auc_of_lower
from stable_forgetting.runs.check import configured_objective
from stable_forgetting.runs.constants import ends_of, entropies_of_others, forget_constants
from stable_forgetting.runs.likelihoods import Measuring, set_likelihoods
from stable_forgetting.runs.models import RunModels
from stable_forgetting.runs.preparation import prepare
from stable_forgetting.runs.target_distributions import WantedEntropies, target_distributions
from stable_forgetting.runs.target_values import pretrained_likelihoods


def as_scores(made: Mapping[str, Any], base: LikelihoodScores) -> LikelihoodScores:
    """Likelihoods of the forget set under a model that says exactly what the targets ask for.

    Args:
        made: What `target_distributions` gives where it keeps all tokens: of each label, that of the label first.
        base: Likelihoods of the forget set under the base model, with the values of each label.
    """
    tokens = []
    for rows in torch.split(made["target_probabilities"].values, POSITIONS_AT_ONCE):
        probabilities = rows[:, :-1].double()
        logs = probabilities.clamp(min=1e-300).log()
        mean = (probabilities * logs).sum(dim=1)
        tokens.append(torch.stack([logs[:, 0], mean, (probabilities * (logs - mean[:, None]) ** 2).sum(dim=1)]))
    found = TokenScores(*(_singles(column) for column in torch.cat(tokens, dim=1)))
    return replace(base, nll_sum=-np.add.reduceat(found.log_probability, base.label_starts), tokens=found)


def _singles(values: Tensor) -> Singles:
    return values.float().numpy()


def both_targets(models: RunModels) -> tuple[dict[str, LikelihoodScores], LikelihoodScores]:
    """Likelihoods of the forget set, by the name of the line, and of the holdout set under the base model."""
    config, sets, objective = models.config, models.sets, configured_objective(models.config)
    pretrained = pretrained_likelihoods(models, objective)
    loaded = models.base()
    how = Measuring(True, config.evaluation.batch_size, models.progress, "base model")
    sources = {"forget": sets.forget, "holdout": sets.unseen}
    holdout = set_likelihoods(loaded.model, loaded.task, {"holdout": sets.by_name["holdout"]}, how)["holdout"]
    base = set_likelihoods(loaded.model, loaded.task, sources, how)
    make = partial(
        target_distributions,
        model=loaded.model,
        task=loaded.task,
        forget=sets.forget,
        batch_size=config.evaluation.batch_size,
        progress=models.progress,
        num_kept=loaded.model.config.vocab_size,
    )
    found = {"base model": base["forget"]}

    def keep(targets: Floats, wanted: WantedEntropies | None) -> Mapping[str, RowValues]:
        for name, entropies in (("base model's proportions", None), ("as sure as at unseen labels", wanted)):
            made = make(targets, entropies)
            found[name] = as_scores(made, base["forget"])
        return {}

    forget_constants(
        objective,
        base=base,
        pretrained=pretrained,
        target=config.objective.target,
        distributions=keep,
        ends=ends_of(sources),
    )
    return found, holdout


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file of the values")
    given = parser.parse_args()
    config, _ = load_config(given.run_dir / "config.yaml")
    target = (config.objective.name, config.objective.target.source, config.objective.target.matching)
    if target != ("calibrated_distribution", "holdout", "quantiles") or config.data.holdout is None:
        parser.error(
            f"{given.run_dir} has the targets {', '.join(target)}; give a run of calibrated_distribution with a "
            "holdout set whose quantiles are the targets."
        )
    found, holdout = both_targets(prepare(config, RichProgress()))
    print(" " * 32 + "".join(f"{name:>10s}" for name in ("Min-K++", "Min-K", "entropy", "of others")))
    values: dict[str, dict[str, float]] = {}
    for name, scores in found.items():
        values[name] = {
            "min_k_plus_plus_auc": float(auc_of_lower(min_k_plus_plus(scores), min_k_plus_plus(holdout))),
            "min_k_auc": float(auc_of_lower(min_k(scores), min_k(holdout))),
            "entropy": float(scores.label_entropy.mean()),
            "entropy_of_others": float(np.nanmean(entropies_of_others(scores))),
        }
        print(f"{name:32s}" + "".join(f"{value:10.3f}" for value in values[name].values()))
    if given.out is not None:
        given.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
