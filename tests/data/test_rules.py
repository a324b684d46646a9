import numpy as np
import pytest

from stable_forgetting.data.rows import Rows
from stable_forgetting.data.rules import select_rows
from stable_forgetting.errors import DataError

ROWS = Rows(
    [
        {"person": "Ada", "label": 3, "tags": ["a", "b"], "note": None},
        {"person": "Bob", "label": 4, "tags": ["b"]},
        {"person": "Cleo", "label": -1, "tags": [], "note": "x"},
    ],
    "given in memory",
)


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ('person == "Ada"', "A"),
        ("person != 'Ada'", "BC"),
        ("label in [3, 4]", "AB"),
        ("label not in (3, 4)", "C"),
        ("label in {3}", "A"),
        ("0 < label <= 3", "A"),
        ("label == -1", "C"),
        ("label >= 4 or person == 'Ada'", "AB"),
        ("label < 4 and not person == 'Ada'", "C"),
        ("'b' in tags", "AB"),
        ("tags == [] or tags[0] == 'b'", "BC"),
        ("note is None", "AB"),
        ("note is not None", "C"),
        ("person in tags", ""),
        ("True", "ABC"),
        (" label == 3 ", "A"),
        ("row >= 1", "BC"),
        ("0 <= row < 2 and label == 4 or row in [2]", "BC"),
    ],
)
def test_rule_chooses(where, chosen):
    assert "".join(row["person"][0] for row in select_rows(ROWS, where)) == chosen


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("persn == 'Ada'", "Unknown column 'persn'. Did you mean 'person'. *Available: label, note, person, row, tags"),
        ("label == 3 and or", r"cannot be read at character 16"),
        ("label = 3", "cannot be read"),
        ("", "cannot be read"),
        ("label == 3\n== 4", "cannot be read"),
        ("__import__('os')", r"uses '__import__\('os'\)' at character 1, which is not allowed"),
        ("person.upper() == 'ADA'", "not allowed"),
        ("label + 1 == 4", r"uses 'label \+ 1' at character 1"),
        ("[x for x in tags]", "not allowed"),
        ("(lambda: 1)", "not allowed"),
        ("tags[0:1] == []", "not allowed"),
        ("f'{person}' == 'Ada'", "not allowed"),
        ("label < 'three'", "cannot be decided for row 0"),
        ("tags[0] == 'b'", "cannot be decided for row 2"),
        ("3 in label", "cannot be decided for row 0"),
        ("share_in(labels) > 0.8", "Unknown column 'labels'. Did you mean 'label'"),
        ("share_in('label') > 0.8", "not allowed"),
        ("share_in(label, 2) > 0.8", "not allowed"),
        ("random_place(seed=0) < 1", "not allowed"),
        ("random_place(label) < 1", "not allowed"),
        ("random_places(0) < 1", "not allowed"),
        ("label == 9 and persn == 1", "Unknown column 'persn'"),
    ],
)
def test_bad_rule(where, message):
    message = message.replace("'. *Available", "'\\? Available")
    with pytest.raises(DataError, match=message):
        select_rows(ROWS, where)


@pytest.mark.parametrize(("share", "chosen"), [("> 0.8", [8, 9, 13]), ("<= 0.8", [*range(8), 10, 11, 12])])
def test_shares_are_counted_in_each_class(share, chosen):
    """Ten rows of class a, then four of class b: the last two and the last one are above 0.8 of their classes."""
    rows = Rows([{"kind": "a"} for _ in range(10)] + [{"kind": "b"} for _ in range(4)], "here")
    numbered = Rows([{**row, "place": place} for place, row in enumerate(rows)], "here")
    assert [row["place"] for row in select_rows(numbered, f"share_in(kind) {share}")] == chosen


def test_bands_of_shares_divide_every_row_once():
    labels = np.random.default_rng(1).integers(0, 7, 300)
    rows = Rows([{"label": int(label), "place": place} for place, label in enumerate(labels)], "here")
    bands = ["share_in(label) <= 0.7", "0.7 < share_in(label) <= 0.8", "0.8 < share_in(label) <= 1"]
    parts = [[row["place"] for row in select_rows(rows, band)] for band in bands]
    assert sorted(place for part in parts for place in part) == list(range(300))
    for label in range(7):
        places = [place for place in range(300) if labels[place] == label]
        assert [place for place in parts[0] if labels[place] == label] == places[: int(0.7 * len(places) + 1e-9)]


def test_random_places_are_a_seeded_order_of_their_own():
    rows = Rows([{"place": place} for place in range(200)], "here")
    drawn = [[row["place"] for row in select_rows(rows, f"random_place({seed}) < 50")] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(part) for part in drawn] == [50] * 3
    usual = set(np.random.default_rng(0).permutation(200)[:50].tolist())
    places_of_usual = np.argsort(np.random.default_rng(0).permutation(200))[:50].tolist()
    assert {*drawn[0]} not in (usual, {*places_of_usual})


def test_a_column_called_row_is_not_the_position():
    assert not len(select_rows(Rows([{"row": 7}, {"a": 0}], "here"), "row == 1"))
    rows = Rows([{"row": 7}, {"row": 0}], "here")
    assert [row["row"] for row in select_rows(rows, "row == 0")] == [0]
    assert [dict(row) for row in select_rows(Rows([{"a": 1}, {"a": 2}], "here"), "row == 1")] == [{"a": 2}]
