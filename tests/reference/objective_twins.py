"""Slow, obvious objectives: loops over examples and positions in float64, on padded tensors."""

import math

import torch
from scipy.optimize import brentq

IGNORED = -100


def log_probs(logits: torch.Tensor) -> list[float]:
    """Log-softmax of one position, by hand."""
    values = logits.double().tolist()
    largest = max(values)
    total = sum(math.exp(value - largest) for value in values)
    return [value - largest - math.log(total) for value in values]


def nll_by_example(logits: torch.Tensor, labels: torch.Tensor) -> list[list[float]]:
    """NLL of each label of each example; logits (E, T, V) predict the next token, labels (E, T)."""
    found = []
    for example in range(len(labels)):
        values = []
        for position in range(1, labels.shape[1]):
            label = int(labels[example, position])
            if label != IGNORED:
                values.append(-log_probs(logits[example, position - 1])[label])
        found.append(values)
    return found


def cross_entropy(nlls: list[list[float]]) -> float:
    """ΣS / Σn."""
    return sum(map(sum, nlls)) / sum(map(len, nlls))


def bounded_ascent(nlls: list[list[float]], limit: float) -> float:
    """Σ max(0, n·limit − S) / Σn."""
    return sum(max(0.0, len(own) * limit - sum(own)) for own in nlls) / sum(map(len, nlls))


def npo(nlls: list[list[float]], reference: list[list[float]], beta: float) -> float:
    """−(2/β) mean log σ(β (S − S_ref))."""
    values = []
    for own, other in zip(nlls, reference, strict=True):
        margin = beta * (sum(own) - sum(other))
        values.append(-2 / beta * math.log(1 / (1 + math.exp(-margin))))
    return sum(values) / len(values)


def calibrated(nlls: list[list[float]], targets: list[float]) -> float:
    """mean (l − t)² / (2 t)."""
    values = [(sum(own) / len(own) - target) ** 2 / (2 * target) for own, target in zip(nlls, targets, strict=True)]
    return sum(values) / len(values)


def calibrated_labels(nlls: list[list[float]], targets: list[list[float]], mean_target: float) -> float:
    """Σ (l_j − t_j)² / (2 T), divided by the number of labels."""
    values = []
    for own, wanted in zip(nlls, targets, strict=True):
        for place, value in enumerate(own):
            values.append((value - wanted[place]) ** 2 / (2 * mean_target))
    return sum(values) / len(values)


def places_by_rank(values: list[float]) -> list[float]:
    """(number of smaller values + ½) / number of values; no two are equal."""
    return [(sum(other < value for other in values) + 0.5) / len(values) for value in values]


def places_among(values: list[float], others: list[float]) -> list[float]:
    """Share of the others that is smaller, half of those that are equal."""
    return [sum((other < value) + 0.5 * (other == value) for other in others) / len(others) for value in values]


def quantile_targets(places: list[float], holdout: list[float]) -> list[float]:
    """The holdout value at each place, on a straight line between two of them."""
    targets, ordered = [], sorted(holdout)
    for share in places:
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        targets.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return targets


def distribution_kl(
    logits: torch.Tensor, labels: torch.Tensor, tokens: list[list[list[int]]], wanted: list[list[list[float]]]
) -> float:
    """KL(q ‖ p) over some tokens and the group of all others, averaged over label positions."""
    values = []
    for example in range(len(labels)):
        places = [place for place in range(1, labels.shape[1]) if int(labels[example, place]) != IGNORED]
        for number, place in enumerate(places):
            own = [math.exp(value) for value in log_probs(logits[example, place - 1])]
            groups = [own[token] for token in tokens[example][number]]
            groups.append(sum(value for token, value in enumerate(own) if token not in tokens[example][number]))
            values.append(
                sum(q * math.log(q / p) for q, p in zip(wanted[example][number], groups, strict=True) if q > 0)
            )
    return sum(values) / len(values)


def entropy(weights: list[float]) -> float:
    """−Σ p ln p of what is in proportion to the weights."""
    shares = [weight / sum(weights) for weight in weights]
    return -sum(share * math.log(share) for share in shares if share > 0)


def entropy_of_others(logits: list[float], label: int) -> float:
    """Of all tokens but the label, among themselves."""
    return entropy([math.exp(value) for token, value in enumerate(logits) if token != label])


def wanted_entropies(
    targets: list[float], own: list[float], holdout_nll: list[float], holdout: list[float], least: int
) -> list[float]:
    """Quantiles of the unseen entropies by rank, in each third of the unseen NLLs; NaN where they are too few."""
    edges = quantile_targets([1 / 3, 2 / 3], holdout_nll)

    def third(value: float) -> int:
        return sum(value >= edge for edge in edges)

    found = [math.nan] * len(targets)
    for part in range(3):
        chosen = [place for place, target in enumerate(targets) if third(target) == part]
        known = [
            value for value, nll in zip(holdout, holdout_nll, strict=True) if third(nll) == part and nll > 0.0010005
        ]
        if len(known) >= least:
            ranked = quantile_targets(places_by_rank([own[place] for place in chosen]), known)
            for place, value in zip(chosen, ranked, strict=True):
                found[place] = value
    return found


def power_with_entropy(weights: list[float], wanted: float) -> float:
    """The power of the weights that has an entropy, from 1/8 to 8; 1 if it is NaN."""
    if math.isnan(wanted):
        return 1.0

    def missing(power: float) -> float:
        return entropy([weight**power for weight in weights]) - wanted

    if missing(1 / 8) < 0 or missing(8) > 0:
        return 1 / 8 if missing(1 / 8) < 0 else 8.0
    return brentq(missing, 1 / 8, 8)


def target_distributions(
    base: list[list[float]],
    labels: list[int],
    targets: list[float],
    num_kept: int,
    entropies: list[float] | None = None,
) -> list[dict[int, float]]:
    """Of each label, itself at exp(−target) and the likeliest others, together as sure as wanted; −1: the rest.

    Without entropies, others keep the base model's proportions.
    """
    found = []
    for place, (logits, label, target) in enumerate(zip(base, labels, targets, strict=True)):
        weights = {token: math.exp(value) for token, value in enumerate(logits) if token != label}
        power = power_with_entropy(list(weights.values()), math.nan if entropies is None else entropies[place])
        others = {token: weight**power for token, weight in weights.items()}
        share = (1 - math.exp(-target)) / sum(others.values())
        chosen = sorted(others, key=lambda token: -others[token])[: num_kept - 1]
        kept = {label: math.exp(-target)} | {token: share * others[token] for token in chosen}
        found.append(kept | {-1: 1 - sum(kept.values())})
    return found


def kl(logits: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> float:
    """KL(p_ref ‖ p), averaged over label positions."""
    values = []
    for example in range(len(labels)):
        for position in range(1, labels.shape[1]):
            if int(labels[example, position]) == IGNORED:
                continue
            own, other = log_probs(logits[example, position - 1]), log_probs(reference[example, position - 1])
            values.append(sum(math.exp(q) * (q - p) for p, q in zip(own, other, strict=True)))
    return sum(values) / len(values)
