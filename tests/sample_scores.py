"""Per-example values as a model might give them, with every column that some metric needs."""

import json

import numpy as np

from stable_forgetting.evaluation.likelihood import LikelihoodScores, TokenScores
from stable_forgetting.evaluation.metrics import METRICS
from stable_forgetting.evaluation.scores import SET_NAMES, ModelScores, SetScores

WORDS = ["ada", "paris", "born", "poet", "rome", "nine"]


def make_likelihood(generator, count, loss, *, task="language", chance=0.5):
    num_labels = generator.integers(2, 9, size=count) if task == "language" else np.ones(count, dtype=np.int64)
    num_correct = generator.binomial(num_labels, chance)
    without_last = np.maximum(num_correct - 1, 0)
    label = generator.integers(4, size=count)
    predicted = np.where(generator.random(count) < chance, label, (label + 1) % 4)
    total = int(num_labels.sum())
    tokens = TokenScores(
        log_probability=-loss * generator.uniform(0.0, 2.0, size=total).astype(np.float32),
        mean=-generator.uniform(0.5, 2.0, size=total).astype(np.float32),
        variance=generator.uniform(0.0, 2.0, size=total).astype(np.float32),
    )
    return LikelihoodScores(
        nll_sum=num_labels * loss * generator.uniform(0.5, 1.5, size=count),
        num_labels=num_labels,
        num_correct=num_correct,
        first_extractable=num_labels - num_correct,
        num_correct_without_last=without_last,
        first_extractable_without_last=num_labels - 1 - without_last,
        predicted=None if task == "language" else predicted,
        label=None if task == "language" else label,
        entropy=None if task == "language" else generator.uniform(0.0, 1.4, size=count),
        class_log_probabilities=None if task == "language" else make_classes(generator, count),
        tokens=tokens if task == "language" else None,
    )


def make_classes(generator, count):
    """Logarithms of the probabilities of four classes."""
    return np.log(generator.dirichlet(np.ones(4), size=count)).astype(np.float32)


def make_set(generator, count, loss, *, task="language", chance=0.5):
    likelihood = make_likelihood(generator, count, loss, task=task, chance=chance)
    if task == "image":
        probe = np.where(generator.random(count) < 0.5, likelihood.label, (likelihood.label + 1) % 4)
        return SetScores(sha256="one", likelihood=likelihood, probe_predicted=probe)
    num_perturbed = generator.integers(1, 4, size=count)
    return SetScores(
        sha256="one",
        likelihood=likelihood,
        answers=tuple(" ".join(generator.choice(WORDS, size=4)) for _ in range(count)),
        references=tuple(f"{WORDS[index % 6]} {WORDS[index % 5]} born" for index in range(count)),
        paraphrased=make_likelihood(generator, count, loss),
        perturbed=make_likelihood(generator, int(num_perturbed.sum()), 2 * loss),
        num_perturbed=num_perturbed,
        compressed_bytes=generator.integers(8, 80, size=count),
        gradient_norm=generator.uniform(0.1, 9.0, size=count),
    )


def set_names(task):
    """Every set that some metric of the task needs."""
    needed = {need.set_name for metric in METRICS.values() if task in metric.tasks for need in metric.needs}
    return sorted(needed | set(SET_NAMES[task]))


def make_scores(task, role="unlearned", *, seed=0, loss=1.0, count=12):
    generator = np.random.default_rng(seed)
    sets = {name: make_set(generator, count, loss, task=task) for name in set_names(task)}
    return ModelScores(task=task, role=role, source="made here", sets=sets)


def make_run_values(run_dir, *, count=12):
    """A run directory with the values of its unlearned and its retain model, and nothing else."""
    folder = run_dir / "per_example"
    folder.mkdir(parents=True)
    for seed, role in enumerate(("unlearned", "retain")):
        scores = make_scores("language", role, seed=seed, loss=1.0 + seed, count=count)
        (folder / f"{role}.json").write_text(json.dumps(scores.to_json()))
    return run_dir
