import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tests.strategies  # noqa: F401  (loads the hypothesis profile)
from pipeline.order.epoch import num_virtual_shards, owned_samples
from pipeline.order.mix import mixed_batch, mixing_unit, quotas

WORLDS = (1, 2, 4, 8)
WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=7)
GOLDEN = [[2, 0, 4, 17, 32, 18, 12, 26], [9, 3, 2, 29, 19, 14, 28, 10]]


def by_turns(weights: list[float], num_units: int) -> list[int]:
    """Sainte-Lague as it is defined: each unit goes to the largest quotient, one after another."""
    counts = [0] * len(weights)
    for _ in range(num_units):
        quotient = [Fraction(w) / (2 * c + 1) for w, c in zip(weights, counts, strict=True)]
        counts[quotient.index(max(quotient))] += 1
    return counts


def split(batch: Tensor, sizes: list[int]) -> list[list[int]]:
    """The samples of each data set in a batch, counted within the data set."""
    ends = list(itertools.accumulate(sizes))
    return [[int(i) - end + size for i in batch if end - size <= i < end]
            for end, size in zip(ends, sizes, strict=True)]  # fmt: skip


def test_golden_mixture() -> None:
    # Any change of the order breaks this test, and with it the resumption of every run made so far.
    # Only update the values if you know what you're doing.
    batches = [mixed_batch([10, 24], [1.0, 2.0], 8, 42, step).tolist() for step in (0, 3)]
    assert batches == GOLDEN
    assert quotas([0.5, 0.3, 0.2], 32, 8, 0).tolist() == [16, 8, 8]


@given(WEIGHTS, st.sampled_from([(1, 1), (8, 8), (24, 8), (64, 8), (256, 8), (12, 4)]))
def test_quotas_follow_the_weights(weights: list[float], batch: tuple[int, int]) -> None:
    batch_size, unit = batch
    shares = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    total = torch.zeros(len(weights), dtype=torch.int64)
    for step in range(100):
        counts = quotas(weights, batch_size, unit, step)
        assert (counts >= 0).all()
        assert (counts % unit == 0).all()
        assert counts.sum() == batch_size
        total += counts
        for share, count in zip(shares, total.tolist(), strict=True):
            off = abs(count - share * batch_size * (step + 1))
            if len(weights) == 1:
                assert off == 0
            else:
                assert off <= unit * (1 + (len(weights) - 2) * share) / 2 < unit * len(weights) / 2


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.1, 0.2, 0.7], [5.0, 1.0, 1.0, 1.0, 1e-3]])
def test_quotas_hold_over_thousands_of_steps(weights: list[float]) -> None:
    shares = [Fraction(w) / sum(map(Fraction, weights)) for w in weights]
    total = [0] * len(weights)
    for step in range(5000):
        total = [a + b for a, b in zip(total, quotas(weights, 24, 8, step).tolist(), strict=True)]
        for share, count in zip(shares, total, strict=True):
            assert abs(count - share * 24 * (step + 1)) <= 4 * (1 + (len(weights) - 2) * share)


@given(WEIGHTS, st.integers(1, 9), st.integers(0, 12))
def test_quotas_are_the_rule_applied_by_turns(
    weights: list[float], batch_size: int, step: int
) -> None:
    before, after = by_turns(weights, batch_size * step), by_turns(weights, batch_size * (step + 1))
    expected = [b - a for a, b in zip(before, after, strict=True)]
    assert quotas(weights, batch_size, 1, step).tolist() == expected


def test_equal_weights_take_turns_from_the_first() -> None:
    counts = [quotas([2.0, 2.0, 2.0], 8, 8, step).tolist() for step in range(4)]
    assert counts == [[8, 0, 0], [0, 8, 0], [0, 0, 8], [8, 0, 0]]


def test_quotas_are_exact_after_many_steps() -> None:
    # shares of 1 / 3 and 2 / 3 repeat every third step; in floating point the phase would be lost
    for start in (0, 3 * 10**15):
        counts = [quotas([1.0, 2.0], 8, 8, start + step).tolist() for step in range(3)]
        assert counts == [[0, 8], [8, 0], [0, 8]]


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """Data sets that eight ranks can share, and their weights."""
    sizes = draw(st.lists(st.integers(64, 700), min_size=1, max_size=4))
    weights = draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    return sizes, weights


@given(mixtures(), st.sampled_from([8, 24, 64]), st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_ranks_share_the_same_global_batches(
    mixture: tuple[list[int], list[float]], batch_size: int, seed: int, step: int
) -> None:
    sizes, weights = mixture
    alone = mixed_batch(sizes, weights, batch_size, seed, step)
    unit = mixing_unit(sizes, batch_size)
    counts = quotas(weights, batch_size, unit, step)
    assert [len(own) for own in split(alone, sizes)] == counts.tolist()
    for world in WORLDS:
        assert mixing_unit(sizes, batch_size, world=world) == unit == 8
        shares = [mixed_batch(sizes, weights, batch_size, seed, step, rank=r, world=world)
                  for r in range(world)]  # fmt: skip
        assert torch.equal(torch.cat(shares).sort().values, alone.sort().values)
        for rank, share in enumerate(shares):
            for own, size in zip(split(share, sizes), sizes, strict=True):
                assert set(own) <= set(owned_samples(size, rank=rank, world=world).tolist())
            assert [len(own) for own in split(share, sizes)] == (counts // world).tolist()


@given(st.lists(st.integers(1, 90), min_size=1, max_size=3), st.integers(1, 60), st.integers(0, 9))
def test_no_sample_repeats_within_an_epoch(sizes: list[int], batch_size: int, seed: int) -> None:
    weights = [1.0 + d for d in range(len(sizes))]
    streams: list[list[int]] = [[] for _ in sizes]
    for step in range(12):
        batch = mixed_batch(sizes, weights, batch_size, seed, step)
        assert len(batch) == batch_size
        for stream, own in zip(streams, split(batch, sizes), strict=True):
            stream.extend(own)
    assert sum(map(len, streams)) == 12 * batch_size
    for size, stream in zip(sizes, streams, strict=True):
        whole = size // num_virtual_shards(size) * num_virtual_shards(size)
        for begin in range(0, len(stream), whole):
            epoch = stream[begin : begin + whole]
            assert len(set(epoch)) == len(epoch)


def test_every_sample_comes_up() -> None:
    sizes = [100, 333]
    seen = torch.cat([mixed_batch(sizes, [1.0, 3.0], 64, 3, step) for step in range(60)])
    assert torch.unique(seen).tolist() == list(range(433))


def test_resumed_equals_uninterrupted() -> None:
    def batch(step: int) -> list[int]:
        return mixed_batch([70, 130, 64], [3.0, 1.0, 1.0], 32, 5, step, rank=1, world=4).tolist()

    # Epochs fall out of the cache between the first and the second pass, and steps run backwards.
    uninterrupted = [batch(step) for step in range(200)]
    assert [batch(step) for step in reversed(range(200))] == uninterrupted[::-1]


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
    ("sizes", "batch_size", "world", "unit"),
    [([1000, 64], 256, 1, 8), ([1000, 600], 256, 16, 16), ([1000, 20], 256, 2, 2),
     ([1000, 9], 12, 1, 1), ([1000], 12, 2, 4)],
)  # fmt: skip
def test_unit(sizes: list[int], batch_size: int, world: int, unit: int) -> None:
    assert mixing_unit(sizes, batch_size, world=world) == unit


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
            quotas([1.0, weight], 64, 8, 0)
    with pytest.raises(ValueError, match="multiple of unit 8, got 12"):
        quotas([1.0], 12, 8, 0)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        quotas([1.0], 8, 8, -1)
    with pytest.raises(ValueError, match="step must not be negative, got -1"):
        mixed_batch([100], [1.0], 8, 0, -1)
    with pytest.raises(ValueError, match=r"rank must lie in 0\.\.1, got 2"):
        mixed_batch([100], [1.0], 8, 0, 0, rank=2, world=2)
