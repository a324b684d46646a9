import pytest

from reference.data_twins import shared_examples
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.splits import SetRule, assign_rows, check_no_overlap, subset
from stable_forgetting.errors import DataError

SOURCE = Rows([{"n": n, "label": n % 3, "split": "test" if n >= 6 else "train"} for n in range(9)], "here")


def numbers(rows):
    return [row["n"] for row in rows]


def example_set(name, texts):
    return ExampleSet(name, [LanguageExample("", text, (1, 2), 1) for text in texts])


def test_retain_is_what_no_other_set_takes():
    sets = assign_rows(
        SOURCE,
        {
            "forget": SetRule("label == 1", split="train"),
            "retain": SetRule(),
            "test": SetRule(split="test"),
        },
    )
    assert numbers(sets["forget"]) == [1, 4]
    assert numbers(sets["retain"]) == [0, 2, 3, 5]
    assert numbers(sets["test"]) == [6, 7, 8]


def test_retain_within_its_split():
    sets = assign_rows(SOURCE, {"forget": SetRule("label == 1"), "retain": SetRule(split="train")})
    assert numbers(sets["retain"]) == [0, 2, 3, 5]


def test_retain_with_a_rule_of_its_own():
    sets = assign_rows(SOURCE, {"forget": SetRule("label == 1"), "retain": SetRule("label == 2")})
    assert numbers(sets["retain"]) == [2, 5, 8]


def test_rows_beyond_a_limit_are_not_retained():
    sets = assign_rows(SOURCE, {"forget": SetRule("label == 1", limit=1), "retain": SetRule(limit=2)})
    assert numbers(sets["forget"]) == [1]
    assert numbers(sets["retain"]) == [0, 2]


def test_equal_rows_are_told_apart_by_place():
    twins = Rows([{"a": 1, "split": "x"}, {"a": 1, "split": "y"}], "here")
    sets = assign_rows(twins, {"forget": SetRule("split == 'x'"), "retain": SetRule()})
    assert [row["split"] for row in sets["retain"]] == ["y"]


def test_other_sets_need_a_rule():
    with pytest.raises(DataError, match="The holdout set has neither a 'where' rule nor a 'split'"):
        assign_rows(SOURCE, {"holdout": SetRule()})


def test_overlap_is_found_with_places():
    first = example_set("forget", ["a", "b", "c", "d", "e"])
    second = example_set("retain", ["x", " e ", "d", "b", "a"])
    assert len(shared_examples(first, second)) == 4
    with pytest.raises(DataError) as caught:
        check_no_overlap(first, second)
    assert str(caught.value) == (
        "forget and retain share 4 examples (first in forget: 0, 1, 3 ...; in retain: 4, 3, 2 ...). "
        "Remove them from one of the sets."
    )


def test_overlap_of_one():
    with pytest.raises(DataError, match=r"share 1 example \(first in forget: 1; in holdout: 0\)"):
        check_no_overlap(example_set("forget", ["a", "b"]), example_set("holdout", ["b"]))


def test_no_overlap():
    first, second = example_set("forget", ["a", "b"]), example_set("retain", ["c"])
    assert shared_examples(first, second) == []
    check_no_overlap(first, second)


def test_subset_is_drawn_in_order_and_repeats():
    whole = example_set("retain", [str(n) for n in range(50)])
    drawn = [int(example.answer) for example in subset(whole, 10, seed=3)]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 10
    assert drawn == [int(example.answer) for example in subset(whole, 10, seed=3)]
    assert drawn != [int(example.answer) for example in subset(whole, 10, seed=4)]
    assert drawn != list(range(10))
    assert subset(whole, None, seed=0) is whole
    assert subset(whole, 50, seed=0) is whole
    with pytest.raises(DataError, match="at least 1"):
        subset(whole, 0, seed=0)
