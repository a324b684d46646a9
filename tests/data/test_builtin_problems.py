from collections import Counter

import numpy as np
import pytest

from stable_forgetting.data.builtin.digits import digits_rows
from stable_forgetting.data.builtin.people import NUM_QUESTIONS, people_rows
from stable_forgetting.errors import ConfigError


def test_people_are_the_same_every_time():
    assert people_rows() == people_rows()
    assert people_rows(seed=1) != people_rows()


def test_people_and_questions():
    rows = people_rows(num_known=20, num_unseen=8)
    people = list(dict.fromkeys(row["person"] for row in rows))
    assert len(rows) == 28 * NUM_QUESTIONS
    assert len(people) == 28
    assert len({name for person in people for name in person.split()}) == 56
    assert Counter(row["split"] for row in rows) == {"known": 180, "unseen": 72}
    assert len({row["prompt"] for row in rows} | {row["paraphrased_prompt"] for row in rows}) == 2 * len(rows)


def test_every_row_is_consistent():
    for row in people_rows(num_known=30, num_unseen=0):
        given = row["person"].split()[0]
        assert row["person"] in row["prompt"]
        assert row["person"] in row["paraphrased_prompt"]
        assert row["answer"].startswith(given)
        assert given in row["paraphrase"]
        assert len({row["paraphrase"], *row["wrong_answers"]}) == 5
        assert row["answer"] != row["paraphrase"]
        value = set(row["answer"].rstrip(".").split()) & set(row["paraphrase"].rstrip(".").split()) - {given}
        assert value, "the paraphrase says something else than the answer"


def test_facts_differ_between_people():
    """Otherwise a model could know the forgotten ones from the kept ones."""
    by_question = {}
    for row in people_rows():
        by_question.setdefault(row["question"], []).append(row["answer"].split(" ", 1)[1])
    assert len(by_question) == NUM_QUESTIONS
    for values in by_question.values():
        assert len(set(values)) >= 10


@pytest.mark.parametrize("numbers", [(0, 3), (31, 0), (20, 11), (5, -1)])
def test_impossible_numbers_of_people(numbers):
    with pytest.raises(ConfigError, match="there are names for 30 in all"):
        people_rows(*numbers)


def test_digits():
    from sklearn.datasets import load_digits

    rows = digits_rows()
    assert Counter(row["split"] for row in rows) == {"train": 1437, "test": 360}
    shares = Counter(row["label"] for row in rows if row["split"] == "test")
    assert set(shares) == set(range(10))
    assert max(shares.values()) - min(shares.values()) <= 3
    raw = load_digits()
    for number in (0, 700, 1796):
        image = rows[number]["image"]
        assert image.shape == (8, 8, 3)
        assert image.dtype == np.uint8
        assert rows[number]["label"] == raw.target[number]
        assert np.abs(image[..., 1] / 255 * 16 - raw.images[number]).max() < 0.05
