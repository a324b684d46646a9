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
        ("label == 9 and persn == 1", "Unknown column 'persn'"),
    ],
)
def test_bad_rule(where, message):
    message = message.replace("'. *Available", "'\\? Available")
    with pytest.raises(DataError, match=message):
        select_rows(ROWS, where)


def test_a_column_called_row_is_not_the_position():
    rows = Rows([{"row": 7}, {"row": 0}], "here")
    assert [row["row"] for row in select_rows(rows, "row == 0")] == [0]
    assert [dict(row) for row in select_rows(Rows([{"a": 1}, {"a": 2}], "here"), "row == 1")] == [{"a": 2}]
