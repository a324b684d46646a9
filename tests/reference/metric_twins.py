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
    for name in own:
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


def entropy_by_hand(probabilities):
    """−Σ p ln p in nats, what has probability 0 left out."""
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def js_by_hand(first, second):
    """Jensen-Shannon divergence as an entropy: H((p + q) / 2) − (H(p) + H(q)) / 2."""
    middle = [(p + q) / 2 for p, q in zip(first, second, strict=True)]
    return entropy_by_hand(middle) - (entropy_by_hand(first) + entropy_by_hand(second)) / 2


def h_by_hand(own, base, kept):
    """H from lists of right and wrong predictions: own and base model on forget test images, own on the kept ones."""
    drop = max(Fraction(sum(base), len(base)) - Fraction(sum(own), len(own)), 0)
    right = Fraction(sum(kept), len(kept))
    return 0.0 if drop + right == 0 else float(2 * drop * right / (drop + right))


def regression_by_hand(members, nonmembers, judged):
    """Calls of a logistic regression with the penalty w² / 2 on standardised values, by many small steps downhill."""
    values = [*members, *nonmembers]
    center = sum(values) / len(values)
    spread = math.sqrt(sum((value - center) ** 2 for value in values) / len(values)) or 1.0
    pairs = [((value - center) / spread, 1) for value in members]
    pairs += [((value - center) / spread, 0) for value in nonmembers]
    slope, start = 0.0, 0.0
    for _ in range(3000):
        errors = [(1 / (1 + math.exp(-slope * x - start)) - y, x) for x, y in pairs]
        slope -= (sum(error * x for error, x in errors) + slope) / len(pairs)
        start -= sum(error for error, _ in errors) / len(pairs)
    decisions = [slope * (value - center) / spread + start for value in judged]
    return [0.5 if abs(decision) < 1e-9 else float(decision > 0) for decision in decisions]


def cross_validated_by_hand(members, nonmembers, folds):
    """Calls of both sides, each example judged by a regression on the examples of the other folds, one at a time."""
    calls = []
    for side, places in zip((members, nonmembers), folds, strict=True):
        found = []
        for value, fold in zip(side, places, strict=True):
            kept = [
                [other for other, place in zip(each, where, strict=True) if place != fold]
                for each, where in zip((members, nonmembers), folds, strict=True)
            ]
            found += regression_by_hand(*kept, [value])
        calls.append(found)
    return calls


def probe_by_hand(features, labels, tested, penalty):
    """Logits of the sorted classes at the minimum, by Newton's method on all weights at once; intercepts are free."""
    labels = torch.tensor(labels)
    rows = torch.tensor(features, dtype=torch.float64)
    spread = rows.std(dim=0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    kinds, place = labels.unique(return_inverse=True)
    weight = torch.tensor([1 / ((labels == label).sum() * len(kinds)) for label in labels])

    def logits(flat, inputs):
        matrix = flat.view(len(kinds), -1)
        return (inputs - rows.mean(dim=0)) / spread @ matrix[:, :-1].T + matrix[:, -1]

    def loss(flat):
        each = -logits(flat, rows).log_softmax(dim=1)[torch.arange(len(rows)), place]
        # The tiny last term chooses among intercepts that differ by a constant, which predict the same.
        slopes = flat.view(len(kinds), -1)[:, :-1]
        return (weight * each).sum() + penalty / 2 * (slopes**2).sum() + 1e-9 * (flat**2).sum()

    flat = torch.zeros(len(kinds) * (rows.shape[1] + 1), dtype=torch.float64)
    for _ in range(30):
        gradient = torch.autograd.functional.jacobian(loss, flat)
        flat = flat - torch.linalg.solve(torch.autograd.functional.hessian(loss, flat), gradient)
    return logits(flat, torch.tensor(tested, dtype=torch.float64)).numpy()
