import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tests.strategies  # noqa: F401  (loads the hypothesis profile)
from pipeline.order import mix
from pipeline.order.epoch import num_virtual_shards, owned_samples, shard_of
from pipeline.order.mix import mixed_batch, num_owner_classes
from pipeline.philox import Stream, random_words
from tests.reference.mix import mixed_batches

WORLDS = (1, 2, 4, 8)
WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=7)
GOLDEN = [[57, 23, 2, 103, 146, 119, 148, 113], [53, 18, 121, 65, 109, 126, 112, 106]]


def split(batch: Tensor, sizes: list[int]) -> list[list[int]]:
    """The samples of each data set in a batch, counted within the data set."""
    ends = list(itertools.accumulate(sizes))
    return [[int(i) - end + size for i in batch if end - size <= i < end]
            for end, size in zip(ends, sizes, strict=True)]  # fmt: skip


def counts_of(weights: list[float], batch_size: int, step: int) -> list[int]:
    sizes = [64] * len(weights)
    return [len(own) for own in split(mixed_batch(sizes, weights, batch_size, 0, step), sizes)]


def test_golden_mixture() -> None:
    # Any change of the order breaks this test, and with it the resumption of every run made so far.
    # Only update the values if you know what you're doing.
    batches = [mixed_batch([64, 100], [1.0, 2.0], 8, 42, step).tolist() for step in (0, 100)]
    assert batches == GOLDEN


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Data sets that eight ranks can share, and their weights."""
    sizes = draw(st.lists(st.integers(64, 700), min_size=1, max_size=4))
    weights = draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    return sizes, weights


@given(mixtures(), st.sampled_from([8, 12, 24, 64]), st.integers(0, 2**63 - 1))
def test_batches_equal_those_of_a_slow_loop(
    mixture: tuple[list[int], list[float]], batch_size: int, seed: int
) -> None:
    sizes, weights = mixture
    words = random_words(seed, Stream.shard_order, 0, 1 + torch.arange(len(sizes)), 2).tolist()
    seeds = [(high << 31) | (low >> 1) for high, low in words]
    classes = num_owner_classes(sizes, batch_size)
    starts = np.cumsum([0, *sizes])
    slow = mixed_batches(sizes, weights, batch_size, seeds, classes)
    for step, expected in enumerate(itertools.islice(slow, 12)):
        samples = [start + i for start, row in zip(starts, expected, strict=False)
                   for own in row for i in own]  # fmt: skip
        assert mixed_batch(sizes, weights, batch_size, seed, step).tolist() == samples


@given(WEIGHTS, st.integers(1, 70))
def test_every_batch_has_the_exact_shares(weights: list[float], batch_size: int) -> None:
    shares = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    total = [0] * len(weights)
    for step in range(60):
        counts = counts_of(weights, batch_size, step)
        assert sum(counts) == batch_size
        for d, (share, count) in enumerate(zip(shares, counts, strict=True)):
            assert abs(count - share * batch_size) < 1
            total[d] += count
            off = abs(total[d] - share * batch_size * (step + 1))
            assert off <= Fraction(len(weights) - 1, 2)


def test_a_small_batch_holds_every_data_set() -> None:
    assert [counts_of([1.0, 1.0], 8, step) for step in range(4)] == [[4, 4]] * 4
    assert [counts_of([1.0, 2.0], 8, step) for step in range(3)] == [[3, 5], [2, 6], [3, 5]]
    assert [counts_of([2.0, 2.0, 2.0], 8, step) for step in range(3)] == [
        [3, 3, 2], [3, 2, 3], [2, 3, 3],
    ]  # fmt: skip


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 3.0], [1.0, 1.0, 1.0], [0.1, 0.2, 0.7],
                                     [5.0, 1.0, 1.0, 1.0, 1e-2]])  # fmt: skip
@pytest.mark.parametrize("batch_size", [8, 16, 24])
def test_every_rank_has_its_part_of_every_data_set(weights: list[float], batch_size: int) -> None:
    """No rotation falls in step with the weights, so that a rank would never see a data set."""
    sizes, supplied = [64] * len(weights), torch.zeros(len(weights), 8)
    batches = torch.cat([mixed_batch(sizes, weights, batch_size, 0, step) for step in range(400)])
    for number in range(len(weights)):
        own = batches[batches // 64 == number] - 64 * number
        supplied[number] = torch.bincount(shard_of(own, 8), minlength=8)
    assert (supplied - supplied.mean(1, keepdim=True)).abs().max() <= 3


@given(mixtures(), st.sampled_from([8, 24, 64]), st.integers(0, 2**63 - 1), st.integers(0, 300))
def test_ranks_share_the_same_global_batches(
    mixture: tuple[list[int], list[float]], batch_size: int, seed: int, step: int
) -> None:
    sizes, weights = mixture
    alone = mixed_batch(sizes, weights, batch_size, seed, step)
    for world in WORLDS:
        assert num_owner_classes(sizes, batch_size, world=world) == 8
        shares = [mixed_batch(sizes, weights, batch_size, seed, step, rank=r, world=world)
                  for r in range(world)]  # fmt: skip
        assert torch.equal(torch.cat(shares).sort().values, alone.sort().values)
        for rank, share in enumerate(shares):
            assert len(share) == batch_size // world
            for own, size in zip(split(share, sizes), sizes, strict=True):
                assert set(own) <= set(owned_samples(size, rank=rank, world=world).tolist())


@given(st.lists(st.integers(1, 90), min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 9))
def test_no_sample_repeats_within_an_epoch(sizes: list[int], batch_size: int, seed: int) -> None:
    weights = [1.0 + d for d in range(len(sizes))]
    classes = num_owner_classes(sizes, batch_size)
    streams: dict[tuple[int, int], list[int]] = {}
    for step in range(12):
        batch = mixed_batch(sizes, weights, batch_size, seed, step)
        assert len(batch) == batch_size
        for d, own in enumerate(split(batch, sizes)):
            shard = shard_of(torch.tensor(own, dtype=torch.int64), num_virtual_shards(sizes[d]))
            for sample, owner in zip(own, (shard % classes).tolist(), strict=True):
                streams.setdefault((d, owner), []).append(sample)
    for (d, _), stream in streams.items():
        shards = num_virtual_shards(sizes[d])
        whole = sizes[d] // shards * shards // classes
        for begin in range(0, len(stream), whole):
            epoch = stream[begin : begin + whole]
            assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_every_sample_comes_up(batch_size: int) -> None:
    sizes = [100, 333]
    steps = range(8000 // batch_size)
    seen = torch.cat([mixed_batch(sizes, [1.0, 1.0], batch_size, 3, step) for step in steps])
    assert torch.unique(seen).tolist() == list(range(433))


def test_resumed_equals_uninterrupted() -> None:
    def batch(step: int) -> list[int]:
        return mixed_batch([70, 130, 64], [3.0, 1.0, 1.0], 32, 5, step, rank=1, world=4).tolist()

    # Epochs and blocks fall out of the caches between both passes, and steps run backwards.
    uninterrupted = [batch(step) for step in range(600)]
    mix_caches_clear()
    assert [batch(step) for step in reversed(range(600))] == uninterrupted[::-1]


def mix_caches_clear() -> None:
    for cached in (mix._block, mix._block_starts, mix._epoch_streams):
        cached.cache_clear()


def test_data_sets_seeds_and_epochs_have_their_own_order() -> None:
    batches = [mixed_batch([64, 64], [1.0, 1.0], 128, seed, step)
               for seed in (0, 1) for step in (0, 1)]  # fmt: skip
    orders = {tuple(own) for batch in batches for own in split(batch, [64, 64])}
    assert len(orders) == 8


def test_a_batch_cannot_be_changed_behind_the_back() -> None:
    first = mixed_batch([64, 64], [1.0, 1.0], 16, 0, 0)
    expected = first.tolist()
    first.zero_()
    single = mixed_batch([64], [1.0], 16, 0, 0)
    single.zero_()
    assert mixed_batch([64, 64], [1.0, 1.0], 16, 0, 0).tolist() == expected
    assert mixed_batch([64], [1.0], 16, 0, 0).any()


@pytest.mark.parametrize(
    ("sizes", "batch_size", "world", "classes"),
    [([1000, 64], 256, 1, 8), ([1000, 600], 256, 16, 16), ([1000, 20], 256, 2, 2),
     ([1000, 9], 12, 1, 1), ([1000], 12, 2, 4)],
)  # fmt: skip
def test_owner_classes(sizes: list[int], batch_size: int, world: int, classes: int) -> None:
    assert num_owner_classes(sizes, batch_size, world=world) == classes


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="multiple of the 4 ranks, got 30"):
        mixed_batch([100], [1.0], 30, 0, 0, world=4)
    with pytest.raises(ValueError, match="data set 1 of the mixture has 40 samples in 4 virtual "
                       "shards, which 8 ranks cannot share; use a power of two up"):  # fmt: skip
        mixed_batch([100, 40], [1.0, 1.0], 64, 0, 0, world=8)
    with pytest.raises(ValueError, match="which 3 ranks cannot share"):
        mixed_batch([1000], [1.0], 30, 0, 0, world=3)
    with pytest.raises(ValueError, match="data set 0 of the mixture must have samples, got 0"):
        mixed_batch([0, 40], [1.0, 1.0], 64, 0, 0)
    with pytest.raises(ValueError, match="at least one data set"):
        mixed_batch([], [], 64, 0, 0)
    with pytest.raises(ValueError, match="one number per data set, got 1 for 2"):
        mixed_batch([100, 100], [1.0], 64, 0, 0)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights must be positive numbers"):
            mixed_batch([64, 64], [1.0, weight], 64, 0, 0)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        mixed_batch([100], [1.0], 8, 0, -1)
    with pytest.raises(ValueError, match=r"rank must lie in 0\.\.1, got 2"):
        mixed_batch([100], [1.0], 8, 0, 0, rank=2, world=2)
