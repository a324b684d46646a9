"""Objective terms against their slow twins, and what holds by mathematics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import objective_twins as twins
from stable_forgetting.errors import ConfigError
from stable_forgetting.models.predictions import Predictions
from stable_forgetting.objectives import FORGET_TERMS, RETAIN_TERMS, build_objective, get_term, term_value
from stable_forgetting.objectives.targets import holdout_targets, places_among, ranks

VOCABULARY = 7


class PaddedBatch:
    """Random logits and labels with questions, padding, and the same flat."""

    def __init__(self, seed: int, num_examples: int = 4, padding: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, 7, (num_examples,), generator=generator).tolist()
        width = max(lengths) + padding
        self.logits = torch.randn(num_examples, max(lengths), VOCABULARY, generator=generator, dtype=torch.float64) * 3
        filler = torch.full((num_examples, padding, VOCABULARY), 50.0, dtype=torch.float64)
        self.logits = torch.cat([self.logits, filler], dim=1)
        self.reference = self.logits + torch.randn(self.logits.shape, generator=generator, dtype=torch.float64)
        self.labels = torch.full((num_examples, width), twins.IGNORED)
        for row, length in enumerate(lengths):
            start = 1 + row % 2
            self.labels[row, start:length] = torch.randint(0, VOCABULARY, (length - start,), generator=generator)

        shape = (num_examples, 8, VOCABULARY)
        self.target_tokens = torch.rand(shape, generator=generator).argsort(dim=-1)[..., :3].int()
        weights = torch.rand(num_examples, 8, 4, generator=generator, dtype=torch.float64)
        weights[0, 0, 1] = weights[1, 0, 3] = 0  # q of one token, and of all others
        self.target_probabilities = weights / weights.sum(dim=-1, keepdim=True)

    def flat(self, logits: torch.Tensor) -> Predictions:
        counts = self.labels[:, 1:] != twins.IGNORED
        return Predictions(logits[:, :-1][counts], self.labels[:, 1:][counts], counts.nonzero()[:, 0], len(self.labels))

    def needs(self) -> dict[str, torch.Tensor | float]:
        reference = self.flat(self.reference)
        return {
            "reference_nll_sum": reference.nll_sum,
            "reference_logits": reference.logits,
            "target": torch.linspace(0.5, 3, len(self.labels), dtype=torch.float64),
            "label_targets": torch.linspace(0.5, 3, 8 * len(self.labels), dtype=torch.float64).reshape(-1, 8),
            "mean_target": torch.full((len(self.labels),), 1.7, dtype=torch.float64),
            "target_tokens": self.target_tokens,
            "target_probabilities": self.target_probabilities,
            "beta": 0.3,
            "limit": 4.0,
        }


def count_of(term, predictions: Predictions) -> torch.Tensor:
    counts = {"label": len(predictions.labels), "example": predictions.num_examples}
    return torch.tensor(float(counts[term.per]), dtype=torch.float64)


def slow_value(name: str, batch: PaddedBatch) -> float:
    own, reference = (twins.nll_by_example(logits, batch.labels) for logits in (batch.logits, batch.reference))
    targets, rows = batch.needs()["target"], batch.needs()["label_targets"].tolist()
    return {
        "ascent": lambda: -twins.cross_entropy(own),
        "nll": lambda: twins.cross_entropy(own),
        "bounded_ascent": lambda: twins.bounded_ascent(own, 4.0),
        "npo": lambda: twins.npo(own, reference, 0.3),
        "calibrated": lambda: twins.calibrated(own, targets.tolist()),
        "calibrated_labels": lambda: twins.calibrated_labels(own, rows, 1.7),
        "calibrated_distribution": lambda: (
            twins.distribution_kl(
                batch.logits, batch.labels, batch.target_tokens.tolist(), batch.target_probabilities.tolist()
            )
            + twins.calibrated_labels(own, rows, 1.7)
        ),
        "kl": lambda: twins.kl(batch.logits, batch.reference, batch.labels),
    }[name]()


TERMS = {**FORGET_TERMS, **RETAIN_TERMS}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("padding", [0, 3])
def test_equals_the_slow_twin_with_and_without_padding(name, padding):
    batch, term = PaddedBatch(seed=1, padding=padding), TERMS[name]
    predictions = batch.flat(batch.logits)
    value = term_value(term, predictions, batch.needs(), count_of(term, predictions))
    # Whole distributions are compared in float32.
    tolerance = 1e-5 if name in ("kl", "calibrated_distribution") else 1e-10
    assert value.item() == pytest.approx(slow_value(name, batch), abs=tolerance)


@pytest.mark.parametrize("name", TERMS)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_splitting_a_batch_changes_nothing(name, seed, cut):
    batch, term = PaddedBatch(seed), TERMS[name]
    predictions, needs = batch.flat(batch.logits), batch.needs()
    count = count_of(term, predictions)
    chosen = torch.arange(4) < cut
    parts = []
    for mask in (chosen, ~chosen):
        position = mask[predictions.example]
        part_needs = {
            "reference_nll_sum": needs["reference_nll_sum"][mask],
            "target": needs["target"][mask],
            "label_targets": needs["label_targets"][mask],
            "mean_target": needs["mean_target"][mask],
            "target_tokens": needs["target_tokens"][mask],
            "target_probabilities": needs["target_probabilities"][mask],
            "reference_logits": needs["reference_logits"][position],
            "beta": needs["beta"],
            "limit": needs["limit"],
        }
        parts.append(term_value(term, predictions.select(mask), part_needs, count))
    assert sum(parts).item() == pytest.approx(term_value(term, predictions, needs, count).item(), abs=1e-6)


@pytest.mark.parametrize("limit", [110.0, 4.0, None])
def test_bounded_ascent_is_ascent_below_its_limit_and_still_above(limit):
    """One image of five classes per example, from almost certain to almost excluded; ln 5 is 1.6."""
    logits = torch.zeros(3, 5, dtype=torch.float64)
    logits[:, 0] = torch.tensor([5.0, 1.0, -4.0])
    gradients = {}
    for name in ("bounded_ascent", "ascent"):
        leaf = logits.clone().requires_grad_()
        predictions = Predictions(leaf, torch.zeros(3, dtype=torch.int64), torch.arange(3), 3)
        term_value(TERMS[name], predictions, {"limit": limit}, torch.tensor(3.0)).backward()
        gradients[name] = leaf.grad
    is_below = predictions.nll < (math.log(5) if limit is None else limit)
    assert is_below.tolist() == [True, True, limit == 110]
    torch.testing.assert_close(gradients["bounded_ascent"][is_below], gradients["ascent"][is_below])
    assert not gradients["bounded_ascent"][~is_below].any()


def test_bounded_ascent_is_the_papers_batch_mean_below_the_limit_and_never_less():
    batch = PaddedBatch(seed=1)
    nlls = twins.nll_by_example(batch.logits, batch.labels)
    is_above = [sum(own) > 4.0 * len(own) for own in nlls]
    assert set(is_above) == {True, False}  # the batch that the term is compared with its twin on has both sides
    for limit, is_equal in ((110.0, True), (4.0, False)):
        ours = twins.bounded_ascent(nlls, limit)
        of_batch = max(0.0, limit - twins.cross_entropy(nlls))
        assert ours == pytest.approx(of_batch) if is_equal else ours > of_batch + 0.01


def test_npo_at_the_reference_is_ln2_with_the_gradient_of_ascent_times_the_mean_number_of_labels():
    """Each is divided by what it is per: npo by the examples, ascent by the labels."""
    batch, beta = PaddedBatch(seed=2), 0.1
    gradients = []
    for name in ("npo", "ascent"):
        logits = batch.logits.clone().requires_grad_()
        predictions = batch.flat(logits)
        needs = {"reference_nll_sum": predictions.nll_sum.detach(), "beta": beta}
        counts = {"example": predictions.num_examples, "label": predictions.num_labels.sum().item()}
        count = torch.tensor(counts[TERMS[name].per], dtype=torch.float64)
        value = term_value(TERMS[name], predictions, needs, count)
        value.backward()
        gradients.append(logits.grad)
        if name == "npo":
            assert value.item() == pytest.approx(2 / beta * math.log(2))
    assert counts["label"] > counts["example"] == 4
    torch.testing.assert_close(gradients[0], gradients[1] * counts["label"] / counts["example"])


def test_npo_tends_to_ascent_for_small_beta():
    batch, beta = PaddedBatch(seed=3), 1e-6
    predictions, needs = batch.flat(batch.logits), batch.needs() | {"beta": beta}
    one = torch.tensor(1.0, dtype=torch.float64)
    npo = term_value(TERMS["npo"], predictions, needs, one).item() - 4 * 2 / beta * math.log(2)
    change = (needs["reference_nll_sum"] - predictions.nll_sum).sum().item()
    assert npo == pytest.approx(change, rel=1e-3)


def test_kl_of_the_reference_to_itself_is_zero():
    batch = PaddedBatch(seed=4)
    predictions = batch.flat(batch.logits)
    value = term_value(TERMS["kl"], predictions, {"reference_logits": predictions.logits}, torch.tensor(1.0))
    assert value.item() == pytest.approx(0, abs=1e-6)


def with_excluded(logits: torch.Tensor) -> torch.Tensor:
    """The same with one more token, which the model never says."""
    return torch.cat([logits, logits.new_full((*logits.shape[:-1], 1), -math.inf)], dim=-1)


def test_kl_does_not_see_excluded_tokens():
    batch = PaddedBatch(seed=5)
    plain = batch.flat(batch.logits)
    reference = torch.randn(plain.logits.shape, generator=torch.Generator().manual_seed(6))
    found = []
    for change in (lambda logits: logits, with_excluded):
        logits = plain.logits.detach().clone().requires_grad_()
        predictions = Predictions(change(logits), plain.labels, plain.example, plain.num_examples)
        value = term_value(TERMS["kl"], predictions, {"reference_logits": change(reference)}, torch.tensor(1.0))
        value.backward()
        found.append((value.detach(), logits.grad))
    assert found[0][0] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_calibrated_is_least_at_its_target_and_starts_as_steep_as_ascent():
    def value_and_slope(mean_nll: float) -> tuple[float, float]:
        logit = torch.tensor(math.log(math.expm1(mean_nll)), dtype=torch.float64, requires_grad=True)
        logits = torch.stack([torch.zeros((), dtype=torch.float64), logit]).unsqueeze(0)
        predictions = Predictions(logits, torch.tensor([0]), torch.tensor([0]), 1)
        target = torch.tensor([2.0], dtype=torch.float64)
        value = term_value(TERMS["calibrated"], predictions, {"target": target}, torch.tensor(1.0))
        (slope,) = torch.autograd.grad(value, predictions.nll_sum if predictions.nll_sum.requires_grad else logit)
        return value.item(), slope.item()

    assert value_and_slope(2.0) == pytest.approx((0.0, 0.0), abs=1e-9)
    assert value_and_slope(1e-9)[1] == pytest.approx(-1.0, abs=1e-6)
    assert value_and_slope(3.0)[1] > 0  # an overshoot is taken back


def test_calibrated_labels_sees_what_a_mean_hides():
    """Two labels whose NLLs are 0 and 4 have the mean that is asked for, and neither has its own target."""
    logits = torch.tensor([[0.0, -40.0], [0.0, math.log(math.expm1(4.0))]], dtype=torch.float64, requires_grad=True)
    predictions = Predictions(logits, torch.tensor([0, 0]), torch.tensor([0, 0]), 1)
    needs = {
        "target": torch.tensor([2.0], dtype=torch.float64),
        "label_targets": torch.full((1, 2), 2.0, dtype=torch.float64),
        "mean_target": torch.tensor([2.0], dtype=torch.float64),
    }
    values = {
        name: term_value(TERMS[name], predictions, needs, count_of(TERMS[name], predictions))
        for name in ("calibrated", "calibrated_labels")
    }
    assert values["calibrated"].item() == pytest.approx(0, abs=1e-12)
    assert values["calibrated_labels"].item() == pytest.approx((2**2 + 2**2) / (2 * 2) / 2)


def test_calibrated_labels_is_calibrated_where_examples_have_one_label_and_the_targets_are_equal():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    predictions = Predictions(logits, torch.tensor([0, 1, 2, 0, 1]), torch.arange(5), 5)
    target = torch.full((5,), 1.5, dtype=torch.float64)
    needs = {"target": target, "label_targets": target[:, None], "mean_target": target}
    one, other = (
        term_value(TERMS[name], predictions, needs, torch.tensor(5.0)) for name in ("calibrated", "calibrated_labels")
    )
    torch.testing.assert_close(one, other)


def test_positions_count_from_the_first_label_of_each_example():
    example = torch.tensor([0, 0, 0, 1, 3, 3])
    predictions = Predictions(torch.zeros(6, 2), torch.zeros(6, dtype=torch.int64), example, 4)
    assert predictions.position.tolist() == [0, 1, 2, 0, 0, 1]


def test_the_sign_of_the_forget_term_lowers_the_likelihood():
    for name in FORGET_TERMS:
        logits = torch.zeros(1, 2, requires_grad=True)
        predictions = Predictions(logits, torch.tensor([0]), torch.tensor([0]), 1)
        needs = {
            "reference_nll_sum": torch.tensor([0.7]),
            "target": torch.tensor([3.0]),
            "label_targets": torch.tensor([[3.0]]),
            "mean_target": torch.tensor([3.0]),
            "target_tokens": torch.tensor([[[0, 1]]]),
            "target_probabilities": torch.tensor([[[0.05, 0.95, 0.0]]]),
            "beta": 0.1,
            "limit": 3.0,
        }
        term_value(TERMS[name], predictions, needs, torch.tensor(1.0)).backward()
        assert logits.grad[0, 0] > 0, name  # descending takes the right label's logit down


def test_predictions_select_renumbers_examples():
    batch = PaddedBatch(seed=5)
    predictions = batch.flat(batch.logits)
    chosen = torch.tensor([False, True, False, True])
    part = predictions.select(chosen)
    torch.testing.assert_close(part.nll_sum, predictions.nll_sum[chosen])
    assert part.num_labels.tolist() == predictions.num_labels[chosen].tolist()


def test_targets_by_rank_keep_the_order_and_take_the_holdouts_distribution():
    forget, holdout = [0.03, 0.01, 0.02, 0.04], torch.linspace(1, 9, 101).tolist()
    targets = holdout_targets(ranks(forget), holdout)
    assert targets.argsort().tolist() == [1, 2, 0, 3]
    assert sorted(targets) == pytest.approx([2, 4, 6, 8])
    with pytest.raises(ConfigError, match="targets must be finite and above 0"):
        holdout_targets(ranks(forget), [0.0, 0.0])


def test_places_of_a_set_among_itself_are_its_ranks():
    values = torch.randn(9, generator=torch.Generator().manual_seed(0)).tolist()
    assert places_among(values, values) == pytest.approx(ranks(values))
    assert ranks(values) == pytest.approx(twins.places_by_rank(values))


def test_equal_values_have_ranks_without_regard_to_their_positions():
    """Single precision makes many labels certain; by position, the last examples would get all the high targets."""
    found = ranks([0.0] * 400 + [1.0])
    assert sorted(found) == pytest.approx(ranks(range(401)))
    assert found[-1] == max(found)
    halves = [sum(part) / 200 for part in (found[:200], found[200:400])]
    assert halves == pytest.approx([0.5, 0.5], abs=0.06)
    assert ranks([0.0] * 400 + [1.0]).tolist() == found.tolist()


@given(
    values=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    others=st.lists(st.integers(0, 5), min_size=1, max_size=8),
)
def test_places_equal_the_slow_twin_also_with_equal_values(values, others):
    assert places_among(values, others) == pytest.approx(twins.places_among(values, others))


def test_unknown_names_and_weights_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'calibrated'"):
        build_objective("calibrate")
    with pytest.raises(ConfigError, match="Unknown retain term 'klm'"):
        build_objective("npo", retain="klm")
    with pytest.raises(ConfigError, match="forget_weight is -1"):
        build_objective("npo", forget_weight=-1)
    with pytest.raises(ConfigError, match="limit is 0; it must be finite and more than 0 nats"):
        build_objective("bounded_ascent", limit=0)
    for beta in (0, -0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match=f"beta is {beta}; it must be finite and more than 0"):
            build_objective("npo", beta=beta)
    with pytest.raises(ConfigError, match=r"'retain_only' has no term left: forget_weight is 1\.0 and"):
        build_objective("retain_only", retain_weight=0)
    with pytest.raises(ConfigError, match="Unknown forget term"):
        get_term("forget", "nll")


def test_a_weight_of_zero_leaves_a_term_out():
    objective = build_objective("npo", retain="kl", retain_weight=0)
    assert objective.uses_forget
    assert not objective.uses_retain
    assert objective.needs == {"reference_nll_sum", "beta"}


def test_retain_only_has_no_forget_term_and_needs_nothing():
    objective = build_objective("retain_only")
    assert (objective.uses_forget, objective.uses_retain, objective.needs) == (False, True, frozenset())


def distribution_term(logits: torch.Tensor, tokens: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Value for examples with one label each that is at its target; (E, V), (E, K) and (E, K + 1)."""
    places = torch.arange(len(logits))
    predictions = Predictions(logits, torch.zeros_like(places), places, len(places))
    needs = {
        "label_targets": predictions.nll.detach()[:, None],
        "mean_target": torch.ones(len(places)),
        "target_tokens": tokens[:, None],
        "target_probabilities": probabilities[:, None],
    }
    return term_value(TERMS["calibrated_distribution"], predictions, needs, torch.tensor(float(len(places))))


def test_calibrated_distribution_over_all_tokens_is_the_kl_divergence_and_over_groups_at_most_that():
    generator = torch.Generator().manual_seed(3)
    logits, wanted = (torch.randn(5, VOCABULARY, generator=generator) for _ in range(2))
    q, order = wanted.softmax(-1), wanted.argsort(dim=-1, descending=True)
    exact = torch.nn.functional.kl_div(logits.log_softmax(-1), q, reduction="batchmean")
    values = []
    for kept in (VOCABULARY, VOCABULARY - 2, 2):
        tokens = order[:, :kept]
        own = q.gather(1, tokens)
        values.append(distribution_term(logits, tokens, torch.cat([own, 1 - own.sum(-1, keepdim=True)], dim=1)).item())
    assert values[0] == pytest.approx(exact.item(), abs=1e-6)
    assert values[0] > values[1] > values[2] > 0


def test_calibrated_distribution_does_not_see_excluded_tokens():
    tokens, target = torch.arange(5)[None], torch.tensor([[0.2, 0.4, 0.3, 0.1, 0.0]])
    found = []
    for kept, change in ((4, lambda logits: logits), (5, with_excluded)):
        logits = torch.tensor([[0.3, -1.0, 0.5, 0.0]]).requires_grad_()
        probabilities = torch.cat([target[:, :kept], torch.zeros(1, 1)], dim=1)
        value = distribution_term(change(logits), tokens[:, :kept], probabilities)
        value.backward()
        found.append((value.detach(), logits.grad))
    assert found[0][0] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_calibrated_distribution_has_a_gradient_where_all_other_tokens_are_excluded():
    """Whether one of the excluded tokens is named or not, there is nothing in them."""
    found = []
    for kept in (5, 4):
        logits = torch.tensor([[0.3, -1.0, 0.5, 0.0]]).requires_grad_()
        probabilities = torch.tensor([[0.2, 0.4, 0.3, 0.1, 0.0, 0.0]])[:, : kept + 1]
        value = distribution_term(with_excluded(with_excluded(logits)), torch.arange(kept)[None], probabilities)
        value.backward()
        found.append((value.detach(), logits.grad))
    assert found[0][0] > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_calibrated_distribution_ends_at_its_target_and_pulls_a_label_that_is_certain():
    """Where a label has the probability 1, the gradients of the likelihood terms are 0."""
    tokens, target = torch.tensor([[0, 1]]), torch.tensor([[0.2, 0.5, 0.3]])
    at_target = torch.tensor([[0.2, 0.5, 0.1, 0.2]]).log().requires_grad_()
    value = distribution_term(at_target, tokens, target)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert at_target.grad.abs().max() < 1e-6
    certain = torch.tensor([[60.0, 0.0, 0.0, 0.0]]).requires_grad_()
    distribution_term(certain, tokens, target).backward()
    torch.testing.assert_close(certain.grad, torch.tensor([[0.8, -0.5, -0.15, -0.15]]))
    ascended = torch.tensor([[60.0, 0.0, 0.0, 0.0]]).requires_grad_()
    (-torch.nn.functional.cross_entropy(ascended, torch.tensor([0]))).backward()
    assert ascended.grad.abs().max() < 1e-20
