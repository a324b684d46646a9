"""Distributions at the labels of forget examples: each example gets its own, however they are read."""

import math

import numpy as np
import pytest
import torch

from reference import objective_twins as twins
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.models.tasks import LanguageTask
from stable_forgetting.progress import SilentProgress
from stable_forgetting.runs import target_distributions as module
from tiny_problem import make_llama, make_tokenizer

VOCABULARY = 12
LENGTHS = [4, 7, 5]  # of whole texts; longest first, the model reads them in another order
TARGETS = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0])


ENTROPIES = np.array([0.5, 1.0, 1.5, 2.0, 2.2, 2.39, np.nan, 0.0, 3.0, 1.2])
"""Of eleven tokens, which have ln 11 = 2.4 at most; 0 and 3 are out of reach."""


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("entropies", [None, ENTROPIES])
@pytest.mark.parametrize(("at_once", "num_kept"), [(3, 5), (1000, 5), (1000, None)])
def test_examples_of_different_lengths_get_their_own_targets(batch_size, entropies, at_once, num_kept, monkeypatch):
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", at_once)
    ids = [tuple((3 * place + number) % VOCABULARY for place in range(n)) for number, n in enumerate(LENGTHS)]
    examples = [LanguageExample(f"prompt {number}", "answer", own, 2) for number, own in enumerate(ids)]
    model = make_llama(VOCABULARY).eval()
    seen = []

    def spread(own):
        seen.extend(own.tolist())
        return entropies

    found = module.target_distributions(
        TARGETS,
        None if entropies is None else spread,
        model=model,
        task=LanguageTask(make_tokenizer(["a b c"])),
        forget=ExampleSet("forget", examples, "a test"),
        batch_size=batch_size,
        progress=SilentProgress(),
        num_kept=num_kept,
    )
    assert len(found["target_tokens"].values) == len(TARGETS)  # no room for what the longest example has more
    rows = {name: values[torch.arange(len(LENGTHS))] for name, values in found.items()}
    left, spreads = iter(TARGETS.tolist()), iter([np.nan] * len(TARGETS) if entropies is None else entropies.tolist())
    of_others = []
    for row, own in enumerate(ids):
        with torch.no_grad():
            logits = model(torch.tensor([own])).logits[0].double().tolist()
        places = range(2, len(own))
        given = [logits[place - 1] for place in places], [own[place] for place in places]
        of_others += [twins.entropy_of_others(*one) for one in zip(*given, strict=True)]
        expected = twins.target_distributions(
            *given, [next(left) for _ in places], num_kept or VOCABULARY, [next(spreads) for _ in places]
        )
        for place, wanted in enumerate(expected):
            tokens, probabilities = (
                rows[f"target_{name}"][row, place].tolist() for name in ("tokens", "probabilities")
            )
            assert dict(zip([*tokens, -1], probabilities, strict=True)) == pytest.approx(wanted, abs=1e-5)
        assert not rows["target_probabilities"][row, len(own) - 2 :].any()
    assert next(left, None) is None
    assert seen == ([] if entropies is None else pytest.approx(of_others, abs=1e-5))


@pytest.mark.parametrize("wanted", ["own", 0.5, 3.0, 7.5])
def test_the_many_unlikely_tokens_count(wanted):
    """Of 3,000 tokens those behind the first 1,024 have much of the entropy, and most of it where it is to be high."""
    logits = -1.2 * torch.arange(1, 3001).double().log()[None].float()
    log_probabilities = torch.cat([logits, logits / 2]).log_softmax(dim=-1)
    own = module._entropy(log_probabilities)
    asked = own.clone() if wanted == "own" else torch.full((2, 1), wanted)
    asked[1] = math.nan
    found = module._with_entropy(log_probabilities, asked)
    assert float(module._entropy(found)[0]) == pytest.approx(float(asked[0]), abs=1e-3)
    assert torch.equal(found[1], log_probabilities[1])
    power = twins.power_with_entropy(log_probabilities[0].double().exp().tolist(), float(asked[0]))
    expected = (log_probabilities[0] * power).log_softmax(dim=-1)
    torch.testing.assert_close(found[0], expected, atol=2e-3, rtol=1e-3)
