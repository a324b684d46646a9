"""What forget terms get of each forget example, against a slow twin."""

import numpy as np
import pytest
import torch

from reference import objective_twins as twins
from stable_forgetting.config import TargetConfig
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.errors import ConfigError
from stable_forgetting.evaluation.likelihood_scores import LikelihoodScores, TokenScores
from stable_forgetting.objectives import build_objective
from stable_forgetting.runs.constants import ends_of, forget_constants


def scores_of(nlls: list[list[float]], *, with_tokens: bool = True) -> LikelihoodScores:
    """Scores with these NLLs of labels; the other columns are not looked at."""
    values, lengths = np.array(flat(nlls), dtype=np.float32), np.array([len(own) for own in nlls])
    tokens = TokenScores(-values, values, values) if with_tokens else None
    return LikelihoodScores(np.array([sum(own) for own in nlls]), *[lengths] * 5, tokens=tokens)


FORGET = [[0.01, 0.3, 0.2], [0.0], [0.05, 0.4]]
HOLDOUT = [[0.0, 7.5], [1.0, 3.0, 0.25]]
PRETRAINED = [[2.0, 3.0, 0.5], [0.0], [4.0, 1.0]]


PRETRAINED_HOLDOUT = [[0.5, 5.0], [2.5, 3.5, 1.0]]


def constants(
    target: TargetConfig, cut: tuple[str, ...] = (), objective: str = "calibrated_labels", **given: object
) -> dict[str, torch.Tensor]:
    """Constants of an objective; sets may be changed, or left out with None; the answers of some may be cut."""
    sets = {"forget": FORGET, "holdout": HOLDOUT, "before": PRETRAINED, "before_holdout": PRETRAINED_HOLDOUT} | given
    scores = {name: scores_of(found) if isinstance(found, list) else found for name, found in sets.items()}
    base = {name: scores[name] for name in ("forget", "holdout") if scores[name] is not None}
    before = {"forget": scores["before"], "holdout": scores["before_holdout"]}
    pretrained = {name: found for name, found in before.items() if found is not None}
    return forget_constants(
        build_objective(objective),
        target=target,
        base=base,
        pretrained=pretrained,
        distributions=lambda *_: {},
        ends={name: np.full(len(found), name not in cut) for name, found in base.items()},
    )


def flat(nlls: list[list[float]]) -> list[float]:
    return [value for own in nlls for value in own]


def test_labels_get_the_quantiles_of_the_holdout_labels():
    found = constants(TargetConfig())
    expected = twins.quantile_targets(twins.places_by_rank(flat(FORGET)), flat(HOLDOUT))
    rows = [expected[:3], [expected[3], 0, 0], [*expected[4:], 0]]
    torch.testing.assert_close(found["label_targets"], torch.tensor(rows), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["mean_target"], torch.full((3,), sum(expected) / len(expected)))


def test_labels_get_the_quantiles_of_their_places_in_the_holdout_set_under_the_pretrained_model():
    found = constants(TargetConfig(places="pretrained"))
    places = twins.places_among(flat(PRETRAINED), flat(PRETRAINED_HOLDOUT))
    expected = twins.quantile_targets(places, flat(HOLDOUT))
    rows = [expected[:3], [expected[3], 0, 0], [*expected[4:], 0]]
    torch.testing.assert_close(found["label_targets"], torch.tensor(rows), atol=1e-5, rtol=1e-5)
    easier = constants(TargetConfig(places="pretrained"), before=[[1.5, 0.7, 0.6], [0.0], [1.2, 2.0]])
    assert easier["mean_target"][0] < found["mean_target"][0]  # what is easier than the holdout set stays easier


@pytest.mark.parametrize("places", ["base", "pretrained"])
def test_first_and_last_labels_are_compared_with_first_and_last_ones_if_there_are_enough(places):
    """First labels are easy in unseen answers, last ones certain, and the rest hard."""
    generator = np.random.default_rng(0)
    holdout = [[1 + 0.1 * place, *generator.uniform(4, 9, size=3).tolist(), 0.01 * place] for place in range(1, 21)]
    before = [[value + 2 for value in own] for own in holdout]
    found = constants(TargetConfig(places=places), holdout=holdout, before_holdout=before)["label_targets"].tolist()

    def expected(cut: slice, forget: list[float], hard: list[float]) -> list[float]:
        base, pretrained = (flat([own[cut] for own in sets]) for sets in (holdout, before))
        among = twins.places_by_rank(forget) if places == "base" else twins.places_among(hard, pretrained)
        return twins.quantile_targets(among, base)

    first = expected(slice(0, 1), [0.01, 0.0, 0.05], [2.0, 0.0, 4.0])  # the only label of the second one among them
    last = expected(slice(-1, None), [0.2, 0.4], [0.5, 1.0])
    between = expected(slice(1, -1), [0.3], [3.0])
    rows = [[first[0], between[0], last[0]], [first[1], 0, 0], [first[2], last[1], 0]]
    np.testing.assert_allclose(found, rows, atol=1e-5)
    fewer = constants(TargetConfig(places=places), holdout=holdout[1:], before_holdout=before[1:])["label_targets"]
    assert not np.allclose(fewer, rows, atol=1e-2)  # all labels together


def test_the_last_label_of_an_answer_that_was_cut_is_a_word_like_others():
    """An end is certain in unseen answers; a word that had its target would not be forgotten."""
    words = np.random.default_rng(0).uniform(2, 6, size=(30, 5)).tolist()
    whole = [[*own, 0.03] for own in words]
    forget = [[0.01, 0.2, 0.3, 0.4], [0.02, 0.1, 0.5, 0.6]]

    def targets(holdout: list[list[float]], *cut: str) -> torch.Tensor:
        given = constants(TargetConfig(), cut=cut, forget=forget, holdout=holdout, before=None, before_holdout=None)
        return given["label_targets"]

    assert targets(whole)[:, -1].tolist() == pytest.approx([0.03, 0.03])
    assert targets(whole, "forget")[:, 1:].min() > 1.9
    between = [value for own in words for value in own[1:]]
    expected = twins.quantile_targets(twins.places_by_rank([0.2, 0.3, 0.4, 0.1, 0.5, 0.6]), between)
    found = targets(whole, "forget")[:, 1:].flatten().tolist()
    assert found == pytest.approx(expected, rel=1e-5)
    together = twins.quantile_targets(twins.places_by_rank(flat(forget)), flat(words))
    found = targets(words, "holdout").flatten().tolist()  # no end to compare with: all labels together
    assert found == pytest.approx(together, rel=1e-5)


def test_ends_of_answers():
    tokens = {"prompt": "a", "answer": "b", "num_prompt_tokens": 1}
    whole = LanguageExample(**tokens, input_ids=(5, 6, 2), end_token=2)
    cut = LanguageExample(**tokens, input_ids=(5, 6), end_token=2)
    text = LanguageExample(**tokens, input_ids=(5, 6, 2))
    found = ends_of({"forget": ExampleSet("forget", [whole, cut, text])})
    assert {name: ends.tolist() for name, ends in found.items()} == {"forget": [True, False, False]}


def test_labels_get_their_likelihood_under_the_pretrained_model():
    found = constants(TargetConfig(source="pretrained"), holdout=None, before_holdout=None)
    rows = [[2.0, 3.0, 0.5], [0.0, 0, 0], [4.0, 1.0, 0]]
    torch.testing.assert_close(found["label_targets"], torch.tensor(rows), atol=1e-6, rtol=0)


def test_labels_get_the_same_number():
    found = constants(TargetConfig(source="number", nll=2.5), holdout=None, before=None, before_holdout=None)
    assert found["label_targets"].tolist() == [[2.5, 2.5, 2.5], [2.5, 0, 0], [2.5, 2.5, 0]]


def test_an_image_has_its_likelihood_as_its_only_label():
    one_label = [[0.5], [0.25]]
    forget, holdout = scores_of(one_label, with_tokens=False), scores_of([[1.0], [3.0]], with_tokens=False)
    found = constants(TargetConfig(), forget=forget, holdout=holdout, before=None, before_holdout=None)
    assert found["label_targets"].tolist() == [[2.5], [1.5]]


def test_examples_that_are_known_by_heart_keep_their_order():
    """Targets are raised to what their term can divide by; the likelihoods that they are ordered by are not."""
    holdout = scores_of([[1e-5], [1.0], [3.0]])
    forget = scores_of([[4e-5], [1e-5], [3e-5], [2e-5]])
    given = {"forget": forget, "holdout": holdout, "before": None, "before_holdout": None}
    found = constants(TargetConfig(), objective="calibrated", **given)["target"]
    assert found.argsort().tolist() == [1, 3, 2, 0]
    low = constants(TargetConfig(source="pretrained"), objective="calibrated", **given | {"before": holdout})["target"]
    assert low.tolist() == pytest.approx([5e-4, 1.0, 3.0])


def test_values_of_labels_that_were_not_kept_are_refused():
    with pytest.raises(ValueError, match="values of each label were not kept"):
        constants(TargetConfig(), forget=scores_of(FORGET, with_tokens=False))


def test_targets_of_what_is_known_by_heart_are_refused():
    with pytest.raises(ConfigError, match=r"1e-07 nats on average; they must be at least 0\.001"):
        constants(TargetConfig(), holdout=[[0.0, 0.0], [0.0]], before=None, before_holdout=None)


@pytest.mark.parametrize(("name", "like"), [("before", FORGET), ("before_holdout", HOLDOUT)])
def test_places_need_numbers(name, like):
    with pytest.raises(ConfigError, match="has the NLL nan under the pretrained model"):
        constants(TargetConfig(places="pretrained"), **{name: [[float("nan"), *like[0][1:]], *like[1:]]})


def test_targets_need_what_they_come_from():
    with pytest.raises(ConfigError, match="so it needs a holdout set"):
        constants(TargetConfig(), holdout=None)
    for target in (TargetConfig(source="pretrained"), TargetConfig(places="pretrained")):
        with pytest.raises(ConfigError, match=r"need a config with pretrained_model or model\.finetune"):
            constants(target, before=None, before_holdout=None)


def test_one_unseen_example_that_the_model_is_sure_of_is_no_mistake():
    """An image classifier may be sure of an unseen image; a target of 0 has no term, and one near it outweighs all."""
    holdout = [[0.0], [0.0], [30.0]]

    def targets(holdout: list[list[float]]) -> torch.Tensor:
        base = {"forget": scores_of([[0.1], [0.2], [0.3]]), "holdout": scores_of(holdout)}
        objective = build_objective("calibrated")
        given = {"base": base, "pretrained": {}, "target": TargetConfig(), "ends": {}}
        return forget_constants(objective, distributions=lambda *_: {}, **given)["target"]

    found = targets(holdout)
    assert found.min() == pytest.approx(5e-4)
    assert found.max() == pytest.approx(twins.quantile_targets([5 / 6], [5e-4, 5e-4, 30.0])[0], rel=1e-5)
    with pytest.raises(ConfigError, match=r"targets of the examples are 0\.0005 nats on average"):
        targets([[0.0], [1e-5], [0.0]])


def scores_at(logits: torch.Tensor, labels: list[int], lengths: list[int]) -> LikelihoodScores:
    """Scores of examples with these numbers of labels, from the logits at each, (P, V)."""
    log_probabilities = logits.log_softmax(dim=-1)
    own = log_probabilities[torch.arange(len(labels)), labels].numpy().astype(np.float32)
    mean = (log_probabilities.exp() * log_probabilities).sum(dim=-1).numpy().astype(np.float32)
    sums = -np.add.reduceat(own, np.cumsum(lengths) - lengths).astype(np.float64)
    return LikelihoodScores(sums, *[np.array(lengths)] * 5, tokens=TokenScores(own, mean, mean))


@pytest.mark.parametrize("matching", ["quantiles", "mean"])
def test_the_model_is_to_be_as_sure_of_other_tokens_as_at_unseen_labels(matching):
    """In thirds by target, each with the quantiles of its own unseen labels; where these are too few, as it is."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5] * 14 + [6]  # 15 examples: fewer than 20 first labels, so that all labels are compared together
    logits = 3 * torch.randn(sum(lengths), 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (sum(lengths),), generator=generator).tolist()
    for place in range(0, 76, 6):  # labels that the model is certain of, beside which there is nothing to compare
        logits[place] = 0.0
        logits[place, labels[place]] = 12.0
    holdout = scores_at(logits, labels, lengths)
    rows = logits.tolist()
    unseen = [twins.entropy_of_others(row, label) for row, label in zip(rows, labels, strict=True)]
    given = {}

    def distributions(targets, spread):
        given.update(targets=targets, spread=spread)
        return {}

    forget = [[0.01 * place, 0.3 + 0.001 * place, 0.02 * place, 0.5 / place] for place in range(1, 12)]
    base = {"forget": scores_of(forget), "holdout": holdout}
    forget_constants(
        build_objective("calibrated_distribution"),
        target=TargetConfig(matching=matching),
        base=base,
        pretrained={},
        distributions=distributions,
        ends={name: np.full(len(found), True) for name, found in base.items()},
    )
    if matching == "mean":
        assert given["spread"] is None
        return
    own = torch.rand(44, generator=generator, dtype=torch.float64).tolist()
    expected = twins.wanted_entropies(given["targets"].tolist(), own, holdout.label_nll.tolist(), unseen, 20)
    found = given["spread"](np.array(own))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.isnan(found).sum() not in (0, len(found))


def test_of_an_image_the_entropy_over_the_other_classes_is_known():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.5, 1.0]] * 20)
    log_probabilities = logits.log_softmax(dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1).double().numpy()
    nll, ones = -log_probabilities[:, 0].double().numpy(), np.ones(40, dtype=np.int64)
    holdout = LikelihoodScores(nll, *[ones] * 5, entropy=entropy)
    given = {}
    forget_constants(
        build_objective("calibrated_distribution"),
        target=TargetConfig(),
        base={"forget": scores_of([[0.1], [0.2]], with_tokens=False), "holdout": holdout},
        pretrained={},
        distributions=lambda targets, spread: given.update(spread=spread) or {},
        ends={"forget": np.full(2, False), "holdout": np.full(40, False)},
    )
    least, most = (twins.entropy_of_others(row, 0) for row in (logits[0].tolist(), logits[1].tolist()))
    assert given["spread"](np.array([0.3, 0.6])).tolist() == pytest.approx([least, most], abs=1e-4)
