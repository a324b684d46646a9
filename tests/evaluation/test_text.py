import numpy as np
import pytest
from nltk.stem.porter import PorterStemmer

from reference.metric_twins import longest_common_subsequence
from stable_forgetting.errors import DataError
from stable_forgetting.evaluation.likelihood import LikelihoodScores
from stable_forgetting.evaluation.text import exact_memorization, extraction_strength, rouge_l_recall


def scores(*flags):
    """Likelihood columns of examples whose labels are right or wrong as given."""
    rows = [list(row) for row in flags]

    def first(row):
        return next(k for k in range(len(row) + 1) if all(row[k:]))

    return LikelihoodScores(
        nll_sum=np.zeros(len(rows)),
        num_labels=np.array([len(row) for row in rows]),
        num_correct=np.array([sum(row) for row in rows]),
        first_extractable=np.array([first(row) for row in rows]),
        num_correct_without_last=np.array([sum(row[:-1]) for row in rows]),
        first_extractable_without_last=np.array([first(row[:-1]) for row in rows]),
    )


ALL, NONE, MIDDLE_WRONG, LAST_WRONG = (
    [True] * 4,
    [False] * 4,
    [True, False, True, True],
    [True, True, True, False],
)


def test_exact_memorization():
    assert exact_memorization(scores(ALL, NONE, MIDDLE_WRONG, LAST_WRONG)).tolist() == [1, 0, 0.75, 0.75]


def test_extraction_strength():
    assert extraction_strength(scores(ALL, NONE, MIDDLE_WRONG, LAST_WRONG)).tolist() == [1, 0, 0.5, 0]


def test_compat_drops_the_last_label_and_has_a_floor():
    columns = scores(ALL, NONE, MIDDLE_WRONG, LAST_WRONG)
    em = exact_memorization(columns, compat="open-unlearning")
    es = extraction_strength(columns, compat="open-unlearning")
    np.testing.assert_allclose(em, [1, 0, 2 / 3, 1])
    np.testing.assert_allclose(es, [1, 1 / 3, 1 / 3, 1])


@pytest.mark.parametrize("function", [exact_memorization, extraction_strength])
def test_compat_refuses_single_labels(function):
    with pytest.raises(DataError, match="example 1 has only one"):
        function(scores(ALL, [True]), compat="open-unlearning")


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("The cats were running home.", "a cat runs home and the cat was running"),
        ("one two three four", "four three two one"),
        ("one two three four", "zero one two three four five"),
        ("Paris, in 1912", "born 1912 in Paris"),
        ("one two", ""),
    ],
)
def test_rouge_equals_slow_twin(reference, answer):
    def words(text):
        cleaned = "".join(c if c.isalnum() else " " for c in text.lower()).split()
        return [PorterStemmer().stem(word) if len(word) > 3 else word for word in cleaned]

    common = longest_common_subsequence(words(reference), words(answer))
    assert rouge_l_recall(reference, answer) == pytest.approx(common / len(words(reference)))


def test_rouge_is_recall_of_the_reference_and_not_of_the_answer():
    assert rouge_l_recall("one two", "one two and much else") == 1
    assert rouge_l_recall("one two and three", "one two") == 0.5


@pytest.mark.parametrize("reference", ["", " … ", "猫"])
def test_rouge_refuses_references_without_words(reference):
    with pytest.raises(DataError, match="reference with words"):
        rouge_l_recall(reference, "one")
