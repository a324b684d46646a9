from collections import Counter

import pytest
import torch

from reference.data_twins import retain_stream
from stable_forgetting.data.examples import ExampleSet, LanguageExample
from stable_forgetting.data.pairs import (
    FORGET,
    RETAIN,
    UNSEEN,
    Draw,
    ForgetRetainBatches,
    PairCollator,
    PairedExamples,
    ShareOfBatches,
)
from stable_forgetting.data.ragged import RaggedRows
from stable_forgetting.errors import ConfigError


def sampler(num_forget=7, num_retain=11, forget_batch_size=3, retain_batch_size=4, seed=0, **unseen):
    sizes = {"forget_batch_size": forget_batch_size, "retain_batch_size": retain_batch_size}
    return ForgetRetainBatches(num_forget, num_retain, **sizes, seed=seed, **unseen)


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return list(batches)


def drawn(batches, role):
    return [draw.index for batch in batches for draw in batch if draw.role == role]


def test_every_forget_example_once_per_epoch():
    batches = sampler()
    orders = [drawn(epoch_of(batches, epoch), FORGET) for epoch in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert orders[0] != orders[1]
    assert [len(drawn([batch], FORGET)) for batch in batches] == [3, 3, 1]
    assert [len(drawn([batch], RETAIN)) for batch in batches] == [4, 4, 4]
    assert len(batches) == 3


@pytest.mark.parametrize("num_retain", [1, 5, 11, 12, 100])
def test_without_forget_examples_steps_and_retain_examples_stay_the_same(num_retain):
    both = sampler(num_retain=num_retain)
    alone = ForgetRetainBatches(7, num_retain, forget_batch_size=3, retain_batch_size=4, seed=0, draws_forget=False)
    assert len(alone) == len(both)
    for epoch in range(3):
        expected = [[draw for draw in batch if draw.role == RETAIN] for batch in epoch_of(both, epoch)]
        assert epoch_of(alone, epoch) == expected
    with pytest.raises(ConfigError, match="neither a forget nor a retain set to draw"):
        ForgetRetainBatches(7, None, forget_batch_size=3, retain_batch_size=4, seed=0, draws_forget=False)


@pytest.mark.parametrize("num_retain", [1, 5, 11, 12, 100])
def test_retain_examples_come_equally_often_at_any_time(num_retain):
    batches = sampler(num_retain=num_retain)
    counts = Counter(dict.fromkeys(range(num_retain), 0))
    for epoch in range(7):
        for batch in epoch_of(batches, epoch):
            for index in drawn([batch], RETAIN):
                counts[index] += 1
                assert max(counts.values()) - min(counts.values()) <= 1


def test_retain_order_is_the_endless_stream():
    batches = sampler()
    stream = [index for epoch in range(5) for index in drawn(epoch_of(batches, epoch), RETAIN)]
    assert stream == retain_stream(lambda cycle, size: batches._permutation(RETAIN, cycle, size), 11, len(stream))


@pytest.mark.parametrize("num_retain", [11, None])
def test_unseen_examples_come_beside_the_others_and_change_nothing_of_them(num_retain):
    without = sampler(num_retain=num_retain)
    batches = sampler(num_retain=num_retain, num_unseen=5, unseen_batch_size=2)
    stream = []
    for epoch in range(4):
        for batch, other in zip(epoch_of(batches, epoch), epoch_of(without, epoch), strict=True):
            own = drawn([batch], UNSEEN)
            assert batch == [*other, *(Draw(UNSEEN, index) for index in own)]
            assert len(own) == 2
            stream += own
    assert stream == retain_stream(lambda cycle, size: batches._permutation(UNSEEN, cycle, size), 5, len(stream))


def test_processes_share_unseen_examples_too():
    batches = sampler(num_unseen=5, unseen_batch_size=3)
    shares = [list(ShareOfBatches(batches, rank, 2)) for rank in range(2)]
    for batch, *own in zip(batches, *shares, strict=True):
        assert sorted(draw for share in own for draw in share) == sorted(batch)
        assert abs(len(own[0]) - len(own[1])) <= 1


def test_resuming_at_an_epoch_gives_the_same_batches():
    straight = sampler()
    history = [epoch_of(straight, epoch) for epoch in range(4)]
    assert epoch_of(sampler(), 3) == history[3]
    assert epoch_of(sampler(seed=1), 3) != history[3]


def test_retain_only_visits_each_once_per_epoch():
    batches = sampler(num_forget=None)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert len(batches) == 3
    assert sorted(drawn(epoch_of(batches, 1), RETAIN)) == list(range(11))
    assert epoch_of(batches, 0) != epoch_of(batches, 1)


def test_forget_only():
    assert sorted(drawn(sampler(num_retain=None), FORGET)) == list(range(7))
    assert drawn(sampler(num_retain=None), RETAIN) == []


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_forget": 0},
        {"retain_batch_size": 0},
        {"num_unseen": 0},
        {"num_unseen": 3, "unseen_batch_size": 0},
        {"num_forget": None, "num_retain": None},
    ],
)
def test_bad_sizes(sizes):
    with pytest.raises(ConfigError, match=r"at least (1|one)"):
        sampler(**sizes)


def test_loader_gives_the_tasks_tensors_with_role_and_index():
    forget = ExampleSet("forget", [LanguageExample("", str(n), (1, 10 + n), 1) for n in range(3)])
    retain = ExampleSet("retain", [LanguageExample("", str(n), (1, 20 + n), 1) for n in range(4)])
    unseen = ExampleSet("holdout", [LanguageExample("", str(n), (1, 30 + n), 1) for n in range(2)])
    pairs = PairedExamples(forget, retain, unseen)
    assert len(pairs) == 9
    loader = torch.utils.data.DataLoader(
        pairs,
        batch_sampler=sampler(3, 4, 2, 2, num_unseen=2, unseen_batch_size=1),
        collate_fn=PairCollator(lambda examples: {"last": torch.tensor([e.input_ids[-1] for e in examples])}),
    )
    for batch in loader:
        assert batch["role"].dtype == batch["index"].dtype == torch.int64
        expected = batch["index"] + torch.tensor(
            [{FORGET: 10, RETAIN: 20, UNSEEN: 30}[role] for role in batch["role"].tolist()]
        )
        assert torch.equal(batch["last"], expected)


def test_draw_of_a_set_that_is_not_there():
    retain = ExampleSet("retain", [LanguageExample("", "a", (1, 2), 1)])
    with pytest.raises(IndexError, match="no examples"):
        PairedExamples(None, retain)[Draw(FORGET, 0)]


def test_ragged_rows_are_those_of_a_padded_table_without_its_room():
    lengths = torch.tensor([3, 1, 200, 2])
    parts = [torch.randn(length, 4, generator=torch.Generator().manual_seed(length)) for length in lengths.tolist()]
    ragged, padded = RaggedRows(torch.cat(parts), lengths), torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    for rows in ([0, 1], [3, 3, 0], [2]):
        longest = int(lengths[rows].max())
        assert torch.equal(ragged[torch.tensor(rows)], padded[rows, :longest])
    none = ragged[torch.tensor([], dtype=torch.long)]  # a process's share of a batch with fewer examples than processes
    assert none.shape == (0, 0, 4)
    assert none.dtype == ragged.values.dtype
    assert ragged.values.numel() == 4 * lengths.sum()
    assert ragged.device == torch.device("cpu")
