"""Slow twins of the metrics: one example at a time, Python loops, float64, no padding, no cache."""

import math
from fractions import Fraction

import torch


def label_log_probabilities(model, input_ids, num_prompt_tokens):
    """Log-probability of each label and whether it is the most likely token, from one unpadded sequence."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([input_ids])).logits[0].double().tolist()
    found = []
    for position in range(num_prompt_tokens, len(input_ids)):
        row, label = logits[position - 1], input_ids[position]
        largest = max(row)
        log_sum = largest + math.log(sum(math.exp(value - largest) for value in row))
        found.append((row[label] - log_sum, row.index(largest) == label))
    return found


def label_distributions(model, input_ids, num_prompt_tokens):
    """Log-probability of each label, and mean and variance of a drawn token's, token by token of the vocabulary."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([input_ids])).logits[0].double().tolist()
    found = {"log_probability": [], "mean": [], "variance": []}
    for position in range(num_prompt_tokens, len(input_ids)):
        row = logits[position - 1]
        log_sum = math.log(sum(math.exp(value) for value in row))
        pairs = [(math.exp(value - log_sum), value - log_sum) for value in row]
        mean = sum(probability * value for probability, value in pairs)
        found["log_probability"].append(pairs[input_ids[position]][1])
        found["mean"].append(mean)
        found["variance"].append(sum(probability * (value - mean) ** 2 for probability, value in pairs))
    return found


def score_columns(pairs):
    """The likelihood columns of one example from its labels' (log-probability, correct)."""
    flags = [correct for _, correct in pairs]
    return {
        "nll_sum": -sum(log_probability for log_probability, _ in pairs),
        "num_labels": len(flags),
        "num_correct": sum(flags),
        "first_extractable": first_extractable(flags),
        "num_correct_without_last": sum(flags[:-1]),
        "first_extractable_without_last": first_extractable(flags[:-1]),
    }


def first_extractable(flags):
    """Smallest k from which all flags are true, by trying every k."""
    for k in range(len(flags) + 1):
        if all(flags[k:]):
            return k
    raise AssertionError("the empty list is all true")


def greedy_tokens(model, prompt, end, max_new_tokens):
    """Greedy continuation, the whole sequence anew at every step."""
    sequence = list(prompt)
    while len(sequence) - len(prompt) < max_new_tokens:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([sequence])).logits[0, -1].tolist()
        token = logits.index(max(logits))
        if token == end:
            break
        sequence.append(token)
    return sequence[len(prompt) :]


def longest_common_subsequence(first, second):
    """Length by trying all subsequences of the first; for a handful of words."""
    best = 0
    for mask in range(2 ** len(first)):
        chosen = [word for index, word in enumerate(first) if mask >> index & 1]
        remaining = iter(second)
        if all(word in remaining for word in chosen):
            best = max(best, len(chosen))
    return best


def auc_by_pairs(members, nonmembers):
    """Share of pairs in which the member is lower, a tie counting half."""
    wins = sum((m < n) + 0.5 * (m == n) for m in members for n in nonmembers)
    return wins / (len(members) * len(nonmembers))


def ks_statistic(first, second):
    """Largest distance of the two empirical distribution functions, looked at every value."""
    distances = []
    for value in [*first, *second]:
        below = sum(x <= value for x in first) / len(first)
        other = sum(x <= value for x in second) / len(second)
        distances.append(abs(below - other))
    return max(distances)


def tug_of_war_by_hand(own, reference):
    """ToW from lists of right and wrong predictions by set."""
    product = 1.0
    for name in ("forget", "retain", "retain_test"):
        gap = sum(own[name]) / len(own[name]) - sum(reference[name]) / len(reference[name])
        product *= 1 - abs(gap)
    return product


def truth_ratio_by_hand(right, wrong, aggregation):
    """R of one example from the NLL of its right answer and those of its wrong ones."""
    if aggregation == "geometric":
        likelihood = math.exp(-sum(wrong) / len(wrong))
    else:
        likelihood = sum(math.exp(-nll) for nll in wrong) / len(wrong)
    return likelihood / (math.exp(-right) + 1e-10)


def utility_by_hand(parts):
    """Harmonic mean, 0 if a part is 0."""
    return 0.0 if 0 in parts else len(parts) / sum(1 / part for part in parts)


def mean_of_lowest(values, share):
    """Mean of the floor(share · n) lowest values, of one at least."""
    count = max(1, int(len(values) * share))
    return sum(sorted(values)[:count]) / count


def ks_p_of_equal_sizes(first, second):
    """Exact p as a fraction: 2 Σ (−1)^(k−1) C(2n, n − k h) / C(2n, n), h = n D."""
    n = len(first)
    h = round(n * ks_statistic(first, second))
    terms = [(-1) ** (k - 1) * math.comb(2 * n, n - k * h) for k in range(1, n // h + 1)]
    return Fraction(2 * sum(terms), math.comb(2 * n, n))
