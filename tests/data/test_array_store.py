"""Arrays on disk: computed once, the same for every reader, and whole after a kill."""

import multiprocessing
import shutil

import pytest
import torch

from stable_forgetting.data.array_store import ArrayStore
from stable_forgetting.errors import DataError


class Counting:
    """Computes arrays from numbers and remembers which it was asked for."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.asked: list[int] = []

    def __call__(self, places: list[int]) -> torch.Tensor:
        self.asked += places
        return torch.stack([array_of(self.numbers[place]) for place in places])


def array_of(number: int) -> torch.Tensor:
    return torch.arange(6.0).reshape(2, 3) / 7 + number


def read(store: ArrayStore, numbers: list[int]) -> tuple[list[torch.Tensor], list[int]]:
    compute = Counting(numbers)
    return store.arrays([f"key{number}" for number in numbers], compute), compute.asked


def assert_equal(found: list[torch.Tensor], numbers: list[int]) -> None:
    assert all(torch.equal(array, array_of(number)) for array, number in zip(found, numbers, strict=True))


def test_each_array_is_computed_once(tmp_path):
    store = ArrayStore(tmp_path / "s", batch_size=2)
    found, asked = read(store, [3, 1, 3, 2, 1])
    assert_equal(found, [3, 1, 3, 2, 1])
    assert asked == [0, 1, 3]
    again, asked = read(store, [2, 4])
    assert_equal(again, [2, 4])
    assert asked == [1]


def test_another_reader_finds_them(tmp_path):
    read(ArrayStore(tmp_path / "s"), [1, 2])
    found, asked = read(ArrayStore(tmp_path / "s"), [2, 1])
    assert_equal(found, [2, 1])
    assert asked == []


def test_a_reader_sees_what_another_one_added_since(tmp_path):
    first, second = ArrayStore(tmp_path / "s"), ArrayStore(tmp_path / "s")
    read(first, [1])
    read(second, [2, 3])
    found, asked = read(first, [3, 1, 2, 5])
    assert_equal(found, [3, 1, 2, 5])
    assert asked == [3]


@pytest.mark.parametrize("damage", ["value without key", "half a value", "half a key"])
def test_a_kill_while_writing_costs_the_last_batch_at_most(tmp_path, damage):
    read(ArrayStore(tmp_path / "s"), [1, 2])
    if damage == "half a key":
        with (tmp_path / "s" / "keys.txt").open("a") as file:
            file.write("ke")
    else:
        with (tmp_path / "s" / "values.bin").open("ab") as file:
            file.write(b"\x01" * (24 if damage == "value without key" else 5))
    found, asked = read(ArrayStore(tmp_path / "s"), [1, 7, 2])
    assert_equal(found, [1, 7, 2])
    assert asked == [1]
    found, asked = read(ArrayStore(tmp_path / "s"), [7, 2, 1])
    assert_equal(found, [7, 2, 1])
    assert asked == []


def test_a_store_that_is_deleted_in_use_begins_anew(tmp_path):
    store = ArrayStore(tmp_path / "s")
    before, _ = read(store, [1, 2])
    shutil.rmtree(tmp_path / "s")
    found, asked = read(store, [1, 7, 2])
    assert_equal(before, [1, 2])
    assert_equal(found, [1, 7, 2])
    again, _ = read(ArrayStore(tmp_path / "s"), [7, 1])
    assert_equal(again, [7, 1])
    assert 1 in asked


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be used.*Set STABLE_FORGETTING_CACHE"):
        read(ArrayStore(tmp_path / "file" / "s"), [1])


def test_another_shape_is_refused_and_nothing_is_lost(tmp_path):
    read(ArrayStore(tmp_path / "s"), [1])
    with pytest.raises(ValueError, match=r"rows of \[4\] in a store of \[3\]"):
        ArrayStore(tmp_path / "s").arrays(["other"], lambda places: torch.zeros(len(places), 2, 4))
    found, asked = read(ArrayStore(tmp_path / "s"), [1])
    assert_equal(found, [1])
    assert asked == []


def test_arrays_of_different_lengths(tmp_path):
    lengths = [3, 1, 5, 2, 4]
    arrays = [torch.full((length, 2), float(length)) for length in lengths]
    keys = [f"key{length}" for length in lengths]
    for batch_size in (2, 50):
        folder = tmp_path / str(batch_size)
        for chosen in ([0, 1, 2], [4, 2, 3, 0], [1, 4]):
            found = ArrayStore(folder, batch_size).arrays(
                [keys[number] for number in chosen], lambda places, chosen=chosen: [arrays[chosen[n]] for n in places]
            )
            assert all(torch.equal(array, arrays[number]) for array, number in zip(found, chosen, strict=True))
        assert len(list(folder.iterdir())) == 4


def _fill(folder, numbers: list[int]) -> None:
    read(ArrayStore(folder, batch_size=3), numbers)


def test_several_processes_write_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_fill, args=(tmp_path / "s", list(range(n, 20)))) for n in (0, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    found, asked = read(ArrayStore(tmp_path / "s"), list(range(20)))
    assert_equal(found, list(range(20)))
    assert asked == []
