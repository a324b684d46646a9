import os
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from stable_forgetting.data import vision
from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.data.examples import ExampleSet, ImageExample, pixels_sha256
from stable_forgetting.data.pixel_hashes import PixelHashes
from stable_forgetting.data.rows import Rows
from stable_forgetting.data.sources import load_rows
from stable_forgetting.data.vision import ImageColumns, image_examples, split_by_deleted_class
from stable_forgetting.errors import DataError

RED = np.zeros((4, 5, 3), np.uint8)
RED[..., 0] = 200
GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)


def process(images):
    return torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1).float() for image in images])


def examples_of(*images, **options):
    rows = Rows([{"image": image, "label": place, "id": f"i{place}"} for place, image in enumerate(images)], "here")
    return image_examples(rows, process, name="forget", **options)


def test_every_kind_of_image_gives_the_same_pixels(tmp_path):
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    opaque = np.concatenate([RED, np.full((4, 5, 1), 255, np.uint8)], axis=-1)
    found = examples_of(RED, Image.fromarray(RED), str(path), path, opaque)
    assert all(np.array_equal(example.pixels, RED) for example in found)
    assert len({example.key for example in found}) == 1
    assert [example.label for example in found] == [0, 1, 2, 3, 4]
    assert found[3].metadata == {"id": "i3", "image_path": str(path)}
    assert torch.equal(found[0].pixel_values, process([RED])[0])


def test_pictures_stand_as_the_camera_held_them(tmp_path):
    """Orientation 6: what the file has on the left is above."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = np.zeros((4, 6, 3), dtype=np.uint8)
    lying[:, 0] = 255
    Image.fromarray(lying).save(tmp_path / "lying.png", exif=exif)
    with Image.open(tmp_path / "lying.png") as picture:
        found = examples_of(tmp_path / "lying.png", picture)
    upright = np.zeros((6, 4, 3), dtype=np.uint8)
    upright[0] = 255
    assert all(np.array_equal(example.pixels, upright) for example in found)


def test_grey_becomes_rgb():
    found = examples_of(GREY, GREY[..., None], Image.fromarray(GREY))
    for example in found:
        assert example.pixels.shape == (4, 5, 3)
        assert all(np.array_equal(example.pixels[..., channel], GREY) for channel in range(3))


def test_batches_keep_the_order():
    rows = Rows([{"picture": np.full((2, 2), n % 256, np.uint8), "class": n % 7} for n in range(300)], "here")
    found = image_examples(rows, process, name="all", columns=ImageColumns("picture", "class"), num_classes=7)
    assert [int(example.pixel_values[0, 0, 0]) for example in found] == [n % 256 for n in range(300)]
    assert [example.label for example in found] == [n % 7 for n in range(300)]


def damaged_image(tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n cut")
    return path


def cut_image(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def deep_image(tmp_path, kind):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.full((4, 5), 40_000).astype(kind)).save(path)
    return path


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (lambda folder: deep_image(folder, np.uint16), r"deep.tif' \(row 0 of the forget set\) has the mode 'I;16'"),
        (lambda folder: deep_image(folder, np.int32), r"has the mode 'I'.*8 bits a channel"),
        (lambda folder: Image.fromarray(RED[..., 0].astype(np.float32)), "image in row 0 .* has the mode 'F'"),
        (damaged_image, r"bad.png' cannot be read \(row 0 of the forget set\)"),
        (cut_image, r"cut.png' cannot be read \(row 0"),
        (lambda folder: folder / "none.png", "There is no image file"),
        (lambda folder: RED.astype(np.float32), r"array of float32 with the shape \(4, 5, 3\)"),
        (lambda folder: np.zeros((3, 8, 8), np.uint8), r"with the shape \(3, 8, 8\)"),
        (lambda folder: None, "is a NoneType"),
    ],
)
def test_unreadable_image(tmp_path, image, message):
    with pytest.raises(DataError, match=message):
        examples_of(image(tmp_path))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, "label in row 1 of the forget set is 10, but there are 10 classes. Labels must be from 0 to 9"),
        (-1, "is -1. Labels are class indexes"),
        ("cat", "is 'cat'"),
        (True, "is True"),
        (None, "is None"),
    ],
)
def test_bad_label(label, message):
    rows = Rows([{"image": RED, "label": 0}, {"image": RED, "label": label}], "here")
    with pytest.raises(DataError, match=message):
        image_examples(rows, process, name="forget", num_classes=10)


def test_missing_column_and_empty_set():
    with pytest.raises(DataError, match=r"no column 'label' .* Columns: image, fine_label"):
        image_examples(Rows([{"image": RED, "fine_label": 0}], "here"), process, name="test")
    with pytest.raises(DataError, match="test set is empty"):
        image_examples(Rows([], "here"), process, name="test")


def labelled(name, labels):
    return ExampleSet(name, [ImageExample(RED, label, torch.zeros(1)) for label in labels])


@pytest.mark.parametrize(
    ("forget", "retain", "deleted", "kept"),
    [
        ([1, 1], [0, 2], [1], [0, 2, 0]),
        ([1, 2], [0, 2], [1], [0, 2, 0]),
        ([1, 0], [0, 1, 2], None, [0, 1, 2, 0]),
        ([0, 1, 2], [3], [0, 1, 2, 0], None),
    ],
)
def test_division_by_deleted_class(forget, retain, deleted, kept):
    parts = split_by_deleted_class(
        labelled("test", [0, 1, 2, 0]), labelled("forget", forget), labelled("retain", retain)
    )
    assert [part and [example.label for example in part] for part in parts] == [deleted, kept]
    assert [part.name for part in parts if part] == [
        name for name, part in zip(("forget_test", "retain_test"), parts, strict=True) if part
    ]


def test_names_of_classes_and_files_are_in_the_metadata(tmp_path):
    path = tmp_path / "red.png"
    Image.fromarray(RED).save(path)
    row = {"image": str(path), "fine_label": 0, "fine_label_name": "cat", "coarse_name": "animal"}
    rows = Rows([row, {"image": RED, "fine_label": 1, "fine_label_name": None}], "here")
    first, second = image_examples(rows, process, name="forget", columns=ImageColumns(label="fine_label"))
    assert (first.metadata["class_name"], first.metadata["image_path"]) == ("cat", str(path))
    assert not {"class_name", "image_path"} & {*second.metadata}
    named = Rows([{**row, "class_name": "tom"}], "here")
    (other,) = image_examples(named, process, name="forget", columns=ImageColumns(label="fine_label"))
    assert other.metadata["class_name"] == "tom"


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    found = []

    def read(path, place):
        found.append(path.name)
        return original(path, place)

    original = vision._read_file
    monkeypatch.setattr(vision, "_read_file", read)
    return found


def test_an_unchanged_file_is_decoded_once(tmp_path, decoded):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.fromarray(RED + np.uint8(number)).save(path)
        os.utime(path, (1_000, 1_000))
    first = examples_of(*paths, store=ArrayStore(tmp_path / "kept" / "images"), in_memory=False)
    assert decoded == ["0.png", "1.png", "2.png"]
    Image.fromarray(RED + np.uint8(9)).save(paths[1])
    os.utime(paths[1], (2_000, 2_000))
    again = examples_of(*paths, store=ArrayStore(tmp_path / "kept" / "images"), in_memory=False)
    assert decoded[3:] == ["1.png"]
    assert [one.key == other.key for one, other in zip(first, again, strict=True)] == [True, False, True]
    assert torch.equal(again[1].pixel_values, process([RED + np.uint8(9)])[0])
    assert torch.equal(again[2].pixel_values, first[2].pixel_values)
    assert np.array_equal(again[2].pixels, RED + np.uint8(2))


def test_two_files_that_were_exchanged_are_read_anew(tmp_path):
    """Of one size and with one time, as an archive leaves them."""
    paths = [tmp_path / f"{number}.bmp" for number in range(2)]
    for number, path in enumerate(paths):
        Image.fromarray(RED + np.uint8(number)).save(path)
        os.utime(path, (1_000, 1_000))
    store = tmp_path / "kept" / "images"
    first = [example.key for example in examples_of(*paths, store=ArrayStore(store), in_memory=False)]
    paths[0].rename(tmp_path / "aside.bmp")
    paths[1].rename(paths[0])
    (tmp_path / "aside.bmp").rename(paths[1])
    again = [example.key for example in examples_of(*paths, store=ArrayStore(store), in_memory=False)]
    assert again == first[::-1]


def test_a_file_that_pillow_refuses_is_one_sentence(tmp_path):
    """Sound, with more text in it than Pillow reads."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    Image.fromarray(RED).save(tmp_path / "edited.png", pnginfo=text)
    with pytest.raises(DataError, match=r"edited\.png' cannot be read \(.*too large.*without its metadata"):
        examples_of(tmp_path / "edited.png")


def test_a_file_that_was_just_written_may_change_unseen(tmp_path, decoded):
    path = tmp_path / "new.png"
    for value in (1, 2):
        Image.fromarray(RED + np.uint8(value)).save(path)
        soon = time.time() + 60
        os.utime(path, (soon, soon))
        (found,) = examples_of(path, store=ArrayStore(tmp_path / "kept" / "images"), in_memory=False)
        assert found.key == pixels_sha256(RED + np.uint8(value))


@pytest.mark.parametrize(("name", "lost"), [("red.png", 5), ("red-é.png", 6)])  # the latter inside of a character
def test_a_line_that_was_not_written_to_its_end_counts_for_nothing(tmp_path, decoded, name, lost):
    path = tmp_path / name
    Image.fromarray(RED).save(path)
    os.utime(path, (1_000, 1_000))
    for _ in range(2):
        assert PixelHashes(tmp_path / "kept").of([path], lambda _: RED) == [pixels_sha256(RED)]
        (kept,) = (tmp_path / "kept").glob("*.txt")
        assert kept.read_bytes().count(b"\n") == 1
        kept.write_bytes(kept.read_bytes()[:-lost])


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_a_folder_whose_name_is_no_text_is_refused_before_the_run(tmp_path):
    place = tmp_path / "g\udce9"  # the byte e9 of an old archive
    place.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(place / "a.png")
    with pytest.raises(DataError, match=r"g\\udce9/a.png' is no UTF-8.*Rename it"):
        load_rows(str(tmp_path))
