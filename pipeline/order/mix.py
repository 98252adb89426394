"""Order of a weighted mixture of datasets: a pure function of (seed, step).

Dataset ``d`` of D has ``n_d`` samples and the fraction ``w_d`` of the weights. Two parts, both
closed form:

1. How many. Every global batch is allocated in units of ``u`` samples, ``B / u`` per step. The
   ``k``-th unit (from 1) of dataset ``d`` is due at ``(2 k - 1) / (2 w_d)``; units are allocated in
   the order in which they are due, ties to the lower ``d`` (Webster's rule, Sainte-Lague). The
   first ``m`` units are a prefix of one fixed list, so no count ever shrinks. A prefix ends at some
   time ``x``, hence ``|c_d - x w_d| <= 1/2``, and as ``sum c_d = m``,

       |c_d - m w_d| = |e_d (1 - w_d) - w_d sum of the other e| <= (1 + (D - 2) w_d) / 2

   units with ``e = c - x w`` and D >= 2: less than ``D / 2`` at any step. Weights are exact
   fractions, so nothing drifts.
2. Which. Dataset ``d`` is an endless stream, the concatenation of its epochs 0, 1, 2 ... of
   ``pipeline.order.epoch``, and a batch takes the next samples. Within an epoch of a dataset no
   sample repeats; a batch may straddle epochs. The seed of a stream is sampled from (seed, d).

The unit divides the virtual shards of every dataset and is a multiple of the ranks W, so every
piece of a stream begins and ends at a multiple of W, and the W neighbours from there on have W
different owners: each rank has the same number of every dataset's samples in every batch. For
W = 1, 2, 4, 8 the unit, and with it every global batch, is the same.

In a batch the samples are grouped by dataset, ``quotas(...) / W`` of each, in stream order. The
augmentation depends on the step instead of the epoch, since every dataset has its own epochs. For a
dataset of windows the indices are positions of ``pipeline.order.windows.window_order``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.order.epoch import MIN_SHARD_SAMPLES, epoch_batches, num_virtual_shards
from pipeline.philox import Stream, random_words

MAX_UNIT: Final = 8
"""Up to this number of ranks the global batches are the same. Kept small: the larger the unit, the
further single batches deviate from the weights."""
CACHED_EPOCHS: Final = 32
"""Cached epochs of datasets, 8 bytes per sample of a rank; one per dataset is in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """Step-independent part of the mixture order."""

    shares: tuple[int, ...]
    units: int
    """Units of a global batch."""
    unit: int
    offsets: tuple[int, ...]
    seeds: tuple[int, ...]


def mixing_unit(sizes: Sequence[int], batch_size: int, *, world: int = 1) -> int:
    """Return the unit in which batches are allocated: a power of two and a multiple of ``world``.

    It divides ``batch_size`` and the virtual shards of every dataset, and is at most 8, or
    ``world`` above that.

    Args:
        sizes: Samples of each dataset, over all ranks.
        batch_size: Global batch size, over all ranks.
        world: Number of processes.

    Raises:
        ValueError: If the ranks cannot split every batch evenly; states what fits.
    """
    if batch_size < 1 or world < 1 or batch_size % world:
        raise ValueError(
            f"batch_size must be a positive multiple of the {world} ranks, got {batch_size}"
        )
    if not sizes:
        raise ValueError("a mixture needs at least one data set, got none")
    for number, size in enumerate(sizes):
        if size < 1:
            raise ValueError(
                f"data set {number} of the mixture must have samples, got {size}; leave it out"
            )
        num_shards = num_virtual_shards(size)
        if num_shards % world:
            raise ValueError(
                f"data set {number} of the mixture has {size} samples in {num_shards} virtual "
                f"shards, which {world} ranks cannot share; use a power of two up to {num_shards} "
                f"ranks, or at least {MIN_SHARD_SAMPLES} samples per rank, or leave it out"
            )
    return math.gcd(batch_size, max(MAX_UNIT, world), *map(num_virtual_shards, sizes))


def quotas(
    weights: Sequence[float], batch_size: int, unit: int, step: int
) -> Int64[Tensor, " sets"]:
    """Return the number of samples of each dataset in global batch ``step``.

    Multiples of ``unit`` that sum to ``batch_size``. The counts of steps 0 .. t - 1 together differ
    from ``w * batch_size * t`` by at most ``unit * (1 + (D - 2) * w) / 2`` for D >= 2 datasets,
    hence by less than ``unit * D / 2``, where w is the dataset's fraction of the weights.

    Args:
        weights: One positive number per dataset, normalised by their sum.
        batch_size: Global batch size, over all ranks.
        unit: Divides ``batch_size``.
        step: From 0.

    Raises:
        ValueError: If a weight is not a positive number, or ``unit`` does not divide.
    """
    if unit < 1 or batch_size < 1 or batch_size % unit:
        raise ValueError(f"batch_size must be a positive multiple of unit {unit}, got {batch_size}")
    _check_step(step)
    shares, units = _integer_shares(tuple(weights)), batch_size // unit
    begin, end = _first_units(shares, units * step), _first_units(shares, units * (step + 1))
    return unit * (torch.tensor(end) - torch.tensor(begin))


def mixed_batch(
    sizes: Sequence[int],
    weights: Sequence[float],
    batch_size: int,
    seed: int,
    step: int,
    *,
    rank: int = 0,
    world: int = 1,
) -> Int64[Tensor, " b"]:
    """Return this rank's samples of global batch ``step``.

    Indices count through the concatenated datasets: sample ``i`` of dataset ``d`` is
    ``sizes[0] + ... + sizes[d - 1] + i``. They are grouped by dataset. A rank sees only samples
    that it owns in their dataset. Random access to any step works; sequential access is fast.

    Args:
        sizes: Samples of each dataset, over all ranks.
        weights: One positive number per dataset, normalised by their sum.
        batch_size: Global batch size, over all ranks.
        seed: In [0, 2^63).
        step: From 0, without end.
        rank: This process.
        world: Number of processes, a power of two.

    Returns:
        ``batch_size / world`` indices.

    Raises:
        ValueError: If the ranks cannot split every batch evenly, or a weight is not positive.
    """
    plan = _plan(tuple(sizes), tuple(weights), batch_size, seed, world)
    _check_step(step)
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
    begin = _first_units(plan.shares, plan.units * step)
    end = _first_units(plan.shares, plan.units * (step + 1))
    share = plan.unit // world  # of a unit, for each rank
    pieces = []
    for number, size in enumerate(sizes):
        at, stop = begin[number] * share, end[number] * share
        per_epoch = _samples_per_epoch(size) // world
        while at < stop:
            epoch, first = divmod(at, per_epoch)
            last = min(per_epoch, first + stop - at)
            stream = _epoch_stream(size, plan.seeds[number], epoch, rank, world)
            pieces.append(stream[first:last] + plan.offsets[number])
            at += last - first
    return torch.cat(pieces)


@lru_cache(maxsize=4)
def _plan(
    sizes: tuple[int, ...], weights: tuple[float, ...], batch_size: int, seed: int, world: int
) -> _Plan:
    if len(sizes) != len(weights):
        raise ValueError(
            f"weights must be one number per data set, got {len(weights)} for {len(sizes)}"
        )
    unit = mixing_unit(sizes, batch_size, world=world)
    # pipeline.order.epoch samples only id 0 of this stream; ids from 1 are the seeds of datasets.
    ids = 1 + torch.arange(len(sizes))
    words = random_words(seed, Stream.shard_order, 0, ids, 2)
    return _Plan(
        shares=_integer_shares(weights),
        units=batch_size // unit,
        unit=unit,
        offsets=_offsets(sizes),
        seeds=tuple(((words[:, 0] << 31) | (words[:, 1] >> 1)).tolist()),
    )


@lru_cache(maxsize=4)
def _integer_shares(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Return integers in exactly the proportions of the weights."""
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive numbers, one per data set, got {weights}")
    exact = [Fraction(weight) for weight in weights]
    denominator = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * denominator) for share in exact]
    common = math.gcd(*whole)
    return tuple(share // common for share in whole)


@lru_cache(maxsize=4)
def _first_units(shares: tuple[int, ...], num_units: int) -> tuple[int, ...]:
    """Return how many of the first ``num_units`` units each dataset has."""
    total = sum(shares)
    # All units due up to num_units: a prefix of the list, its length off by D / 2 at most.
    count = [(2 * num_units * share + total) // (2 * total) for share in shares]
    while (surplus := sum(count) - num_units) != 0:
        if surplus > 0:
            due = [(Fraction(2 * c - 1, 2 * s), d) for d, (c, s) in _numbered(count, shares)]
            count[max(due)[1]] -= 1
        else:
            due = [(Fraction(2 * c + 1, 2 * s), d) for d, (c, s) in _numbered(count, shares)]
            count[min(due)[1]] += 1
    return tuple(count)


def _numbered(count: Sequence[int], shares: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    return list(enumerate(zip(count, shares, strict=True)))


@lru_cache(maxsize=CACHED_EPOCHS)
def _epoch_stream(size: int, seed: int, epoch: int, rank: int, world: int) -> Int64[Tensor, " m"]:
    """Return this rank's samples of one epoch of a dataset, in order; read-only, it is cached."""
    num_shards = num_virtual_shards(size)
    return epoch_batches(size, num_shards, seed, epoch, rank=rank, world=world).flatten()


def _samples_per_epoch(size: int) -> int:
    num_shards = num_virtual_shards(size)
    return size // num_shards * num_shards


def _offsets(sizes: Sequence[int]) -> tuple[int, ...]:
    return tuple(sum(sizes[:number]) for number in range(len(sizes)))


def _check_step(step: int) -> None:
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
