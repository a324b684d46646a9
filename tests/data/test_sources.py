import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_paths import shared_data
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.sources import load_rows
from stable_forgetting.errors import DataError

TABLE = [{"prompt": "Who?", "answer": "Ada", "year": 1815}, {"prompt": "Where?", "answer": "None", "year": 7}]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "list.json", "csv", "parquet"])
def test_every_table_format_gives_the_same_rows(tmp_path, ending):
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        import datasets

        datasets.Dataset.from_list(TABLE).to_parquet(str(path))
    elif ending == "csv":
        write(path, "prompt,answer,year\nWho?,Ada,1815\nWhere?,None,7\n")
    elif ending == "list.json":
        write(path, json.dumps(TABLE, indent=2))
    else:
        write(path, "\n\n".join(json.dumps(row) for row in TABLE) + "\n")
    rows = load_rows(str(path))
    assert list(rows) == TABLE
    assert rows.columns == ("prompt", "answer", "year")
    assert rows.source == str(path)


def test_csv_keeps_text_that_looks_like_numbers_and_quoted_lines(tmp_path):
    rows = load_rows(write(tmp_path / "a.csv", 'code,share,text\n007,0.5,"two\nlines, one cell"\n12,1.5,NA\n'))
    assert list(rows) == [
        {"code": "007", "share": 0.5, "text": "two\nlines, one cell"},
        {"code": "12", "share": 1.5, "text": "NA"},
    ]


@pytest.mark.parametrize("inside", ["\u2028", "\u0085", "\f", "\x1c"])
def test_csv_rows_end_at_line_ends_alone(tmp_path, inside):
    rows = load_rows(write(tmp_path / "a.csv", f"name,text\nada,Ada{inside}lived.\r\nben,x\n"))
    assert list(rows) == [{"name": "ada", "text": f"Ada{inside}lived."}, {"name": "ben", "text": "x"}]


def test_text_file_drops_blank_lines(tmp_path):
    assert [row["text"] for row in load_rows(write(tmp_path / "a.txt", "one\n\n  \ntwo"))] == ["one", "two"]


def test_json_line_may_hold_unicode_line_separators(tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert load_rows(str(path))[0]["text"] == "a\u2028b"


def test_split_chooses_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a", "split": "train"}\n{"text": "b", "split": "test"}')
    assert [row["text"] for row in load_rows(path, split="test")] == ["b"]


def test_npz_with_train_and_test_parts(tmp_path):
    images = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    path = tmp_path / "a.npz"
    np.savez(
        path,
        x_train=images[:3],
        y_train=np.array([0, 1, 1]),
        coarse_train=np.array([1, 0, 0]),
        x_test=images[3:],
        y_test=np.array([1, 0]),
        coarse_test=np.array([0, 1]),
        class_names=np.array(["cat", "dog"]),
        coarse_names=np.array(["loud", "quiet"]),
    )
    rows = load_rows(str(path))
    assert [(row["split"], row["label"], row["coarse"], row["class_name"], row["coarse_name"]) for row in rows] == [
        ("train", 0, 1, "cat", "quiet"),
        ("train", 1, 0, "dog", "loud"),
        ("train", 1, 0, "dog", "loud"),
        ("test", 1, 0, "dog", "loud"),
        ("test", 0, 1, "cat", "quiet"),
    ]
    assert all(np.array_equal(row["image"], image) for row, image in zip(rows, images, strict=True))


def test_npz_with_image_and_label(tmp_path):
    np.savez(tmp_path / "a.npz", image=np.zeros((2, 4, 4), np.uint8), label=np.array([3, 4]))
    rows = load_rows(str(tmp_path / "a.npz"))
    assert [row["label"] for row in rows] == [3, 4]
    assert rows.columns == ("image", "label")


@pytest.mark.parametrize("parts", [[""], ["train", "test"]])
def test_image_folder(tmp_path, parts):
    for part in parts:
        for name in ("dog", "cat"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (4, 4)).save(folder / "0.png")
            write(folder / "notes.md", "no image")
    rows = load_rows(str(tmp_path))
    assert [(row["class_name"], row["label"]) for row in rows] == [("cat", 0), ("dog", 1)] * len(parts)
    assert {row.get("split", "") for row in rows} == set(parts)
    assert all(Path(row["image"]).is_file() for row in rows)


def put_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)


@pytest.mark.parametrize("valid", ["val", "valid", "validation"])
def test_image_folder_with_three_splits(tmp_path, valid):
    for split in ("train", valid, "test"):
        put_image(tmp_path / split / "cat" / "0.tif")
    rows = load_rows(str(tmp_path))
    assert [row["split"] for row in rows] == ["test", "train", valid]
    assert {row["class_name"] for row in rows} == {"cat"}


def test_other_folders_beside_splits_are_named(tmp_path):
    for split in ("train", "extra", "test"):
        put_image(tmp_path / split / "cat" / "0.png")
    with pytest.raises(
        DataError, match=r"has the splits 'test', 'train' and beside them 'extra'. Move these elsewhere"
    ):
        load_rows(str(tmp_path))


def test_a_class_may_be_called_like_a_split(tmp_path):
    for name in ("car", "train"):
        put_image(tmp_path / name / "0.png")
    assert [row["class_name"] for row in load_rows(str(tmp_path))] == ["car", "train"]


def test_splits_without_classes_are_no_classes(tmp_path):
    for name in ("train", "test"):
        put_image(tmp_path / name / "0.png")
    with pytest.raises(DataError, match="Sort the images into one subfolder per class"):
        load_rows(str(tmp_path))


def test_files_that_are_not_read_are_counted(tmp_path, caplog):
    for place in ("cat/0.png", "cat/more/1.png", "dog/2.TIFF"):
        put_image(tmp_path / place)
    for place in ("dog/clip.mp4", "dog/.hidden", "dog/._2.png", "notes.md"):  # the third one as a Mac leaves it
        (tmp_path / place).write_text("")
    assert [Path(row["image"]).name for row in load_rows(str(tmp_path))] == ["0.png", "2.TIFF"]
    assert "or deeper in a subfolder: 2 (first: 'cat/more/1.png')" in caplog.text
    (tmp_path / "dog" / "clip.mp4").unlink()
    (tmp_path / "cat" / "more" / "1.png").unlink()
    caplog.clear()
    load_rows(str(tmp_path))
    assert not caplog.text


def pickled_npz(path: Path) -> None:
    np.savez(path, image=np.array([{"a": 1}], dtype=object), label=np.array([0]))


def bad_labels_npz(path: Path) -> None:
    np.savez(path, image=np.zeros((2, 4, 4), np.uint8), label=np.array([0]))


def nameless_npz(path: Path) -> None:
    np.savez(path, x_train=np.zeros((1, 4, 4), np.uint8), y_train=np.array([5]), class_names=np.array(["cat"]))


def single_name_npz(path: Path) -> None:
    np.savez(path, x_train=np.zeros((1, 4, 4), np.uint8), y_train=np.array([0]), class_names=np.array("cat"))


def other_npz(path: Path) -> None:
    np.savez(path, pictures=np.zeros((1, 4, 4), np.uint8))


def flat_npz(path: Path) -> None:
    np.savez(path, image=np.zeros((2, 16), np.uint8), label=np.array([0, 1]))


def unlabelled_npz(path: Path) -> None:
    np.savez(path, image=np.zeros((2, 4, 4), np.uint8))


MALFORMED = {
    "truncated line": ("a.jsonl", '{"text": "a"}\n\n{"text": "b', r"Line 3 of .*a\.jsonl' is not JSON.*cut off"),
    "truncated list": ("a.json", '[{"text": "a"},\n{"text"', r"Line 2 of .* is not JSON"),
    "line is a list": ("a.jsonl", '{"text": "a"}\n[1]\n', r"line 2 of .* holds a list, not an object"),
    "list of texts": ("a.json", '["a"]', r"Not a table: item 1 of .* holds a text"),
    "plain text": ("a.jsonl", "I do not know.\n", r"Line 1 of .* is not JSON"),
    "empty file": ("a.jsonl", "", r"has no rows"),
    "not utf-8": ("a.txt", b"caf\xe9", r"is not UTF-8 text \(byte 3\)"),
    "csv cells": ("a.csv", "a,b\n1,2\n3\n", r"Row 2 of .* has 1 cells, but the header names 2 columns"),
    "csv twice": ("a.csv", "a,a\n1,2\n", r"has the columns a, a. The first line must name each column once"),
    "csv quote": ("a.csv", 'a,b\n1,"2\n', r"Line 2 of .* is not CSV"),
    "csv empty": ("a.csv", "", r"has no header line"),
    "not parquet": ("a.parquet", b"PAR1 nonsense", r"is not a Parquet file"),
    "ending": ("a.xlsx", b"x", r"ending '.xlsx' cannot be read .*Allowed: .csv .json .jsonl .npz .parquet .txt"),
    "not npz": ("a.npz", b"nonsense", r"is not a NumPy archive, or it is damaged"),
    "cut npz": ("a.npz", b"PK\x03\x04 cut", r"is not a NumPy archive, or it is damaged"),
    "pickled npz": ("a.npz", pickled_npz, r"holds pickled Python objects"),
    "npz labels": ("a.npz", bad_labels_npz, r"labels in .* shape \(1,\), but there are 2 images"),
    "npz names": ("a.npz", nameless_npz, r"Row 0 of .* has label 5, but class_names has 1 names"),
    "npz single name": ("a.npz", single_name_npz, r"class_names in .* has the shape \(\)\. Give a list of names"),
    "npz arrays": ("a.npz", other_npz, r"holds the arrays pictures. Give arrays image and label"),
    "npz flat": ("a.npz", flat_npz, r"have the shape \(2, 16\)"),
    "npz unlabelled": ("a.npz", unlabelled_npz, r"has images and no labels"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_file_gives_one_clear_error(tmp_path, case):
    name, content, message = MALFORMED[case]
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        load_rows(str(path))


def test_missing_file_names_close_ones(tmp_path):
    write(tmp_path / "forget01.jsonl", "{}")
    with pytest.raises(DataError, match=r"no file 'forget10.jsonl' in .*Names that come close: forget01.jsonl"):
        load_rows(str(tmp_path / "forget10.jsonl"))


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"the folder .* does not exist"):
        load_rows(str(tmp_path / "nowhere" / "a.jsonl"))


def test_folder_without_images(tmp_path):
    with pytest.raises(DataError, match="holds no images of the form CLASS/IMAGE"):
        load_rows(str(tmp_path))


def test_unknown_builtin():
    with pytest.raises(DataError, match="Did you mean 'builtin:people'"):
        load_rows("builtin:peple")


def test_hub_name_while_offline(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"'nobody/nothing' is neither a file .* cannot be reached \(offline mode is on\)"
    ):
        load_rows("nobody/nothing")


def test_hub_rows_of_all_splits(monkeypatch):
    import datasets

    table = datasets.Dataset.from_list([{"text": "a"}])
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((args, kwargs))
        return table if kwargs["split"] else datasets.DatasetDict({"train": table, "test": table})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(load_rows("owner/name", subset="small")) == [
        {"split": "train", "text": "a"},
        {"split": "test", "text": "a"},
    ]
    rows = load_rows("owner/name", split="test")
    assert list(rows) == [{"text": "a"}]
    assert rows.source == "hub data set owner/name, split test"
    assert calls == [(("owner/name", "small"), {"split": None}), (("owner/name", None), {"split": "test"})]


def test_hub_rows_have_the_names_of_their_classes(monkeypatch):
    import datasets

    features = datasets.Features(
        {"fine_label": datasets.ClassLabel(names=["cat", "dog"]), "size": datasets.Value("int64")}
    )
    table = datasets.Dataset.from_dict({"fine_label": [1, 0, -1], "size": [1, 0, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split, **kwargs: table)
    rows = load_rows("owner/name", split="test")
    assert rows.columns == ("fine_label", "size", "fine_label_name")
    assert [row["fine_label_name"] for row in rows] == ["dog", "cat", None]


def test_hub_data_set_without_that_subset(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise ValueError("BuilderConfig 'x' not found.\nAvailable: ...")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot be used: BuilderConfig 'x' not found. Check 'subset' and 'split'"):
        load_rows("owner/name", subset="x")


def test_a_name_that_the_hub_cannot_have(monkeypatch):
    import datasets
    from huggingface_hub.utils import validate_repo_id

    monkeypatch.setattr(datasets, "load_dataset", lambda name, *_, **__: validate_repo_id(name))
    with pytest.raises(DataError, match=r"'a--b' is neither a file .* no public data set of that name\. Check the"):
        load_rows("a--b")


def test_hub_data_set_made_by_code(monkeypatch):
    import datasets

    def load_dataset(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported, but found name.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"'owner/name' cannot be used: Dataset scripts are no longer supported"):
        load_rows("owner/name")


def test_subset_of_a_local_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="so it has no subset 'x'"):
        load_rows(write(tmp_path / "a.txt", "a"), subset="x")


def test_unknown_split():
    with pytest.raises(DataError, match=r"Unknown split 'unsee'. Did you mean 'unseen'"):
        load_rows("builtin:people", split="unsee")


def test_split_without_the_column(tmp_path):
    with pytest.raises(DataError, match=r"has no column 'split'.* Columns: text"):
        load_rows(write(tmp_path / "a.txt", "a"), split="train")


def test_rows_first_keeps_the_order():
    rows = Rows([{"a": number} for number in range(5)], "here")
    assert [row["a"] for row in rows.first(2)] == [0, 1]
    assert rows.first(None) is rows
    assert rows.first(9) is rows


@pytest.mark.parametrize(("name", "count"), [("forget01", 40), ("holdout05", 200), ("retain_perturbed", 400)])
def test_tofu(name, count):
    rows = load_rows(str(shared_data(f"tofu/{name}.json")))
    assert len(rows) in (count, count + 1)
    assert {"question", "answer"} <= set(rows.columns)


def test_tofu_refusals_are_text_in_a_json_name():
    with pytest.raises(DataError, match="Line 1 of"):
        load_rows(str(shared_data("tofu/idontknow.jsonl")))


def test_cifar100():
    rows = load_rows(str(shared_data("cifar100/cifar100_120.npz")), split="train")
    assert len(rows) == 12000
    assert rows[0]["image"].shape == (32, 32, 3)
    assert {"label", "coarse", "class_name"} <= set(rows.columns)
    assert {row["class_name"] for row in rows if row["label"] == 69} == {"rocket"}
