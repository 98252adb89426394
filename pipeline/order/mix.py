"""Order of a weighted mixture of datasets: a pure function of (seed, step).

Dataset ``d`` of D has ``n_d`` samples and the fraction ``w_d`` of the weights. Three parts:

1. How many. Every global batch of B has ``floor(B w_d)`` samples of each dataset; the rest goes,
   one each, to the datasets with the largest remainders, which carry over from batch to batch
   (largest remainder method). So every batch has the exact fraction, rounded down or up, and over
   many batches the rounding cancels out: remainders stay at about one sample or below. Weights are
   exact fractions, so nothing drifts.
2. From whom. The virtual shards of ``pipeline.order.epoch`` form C owner classes, ``shard % C``;
   each class supplies B / C samples of every batch. Of dataset ``d`` every class supplies an equal
   number; what cannot be split evenly goes to the classes that have supplied the fewest of ``d``
   so far. A fixed rotation would not do: with two equal weights half of the classes would never
   supply one of the datasets.
3. Which. A dataset's class is an endless stream, the concatenation of its part of the epochs 0, 1,
   2 ... of ``pipeline.order.epoch``, and a batch takes the next samples. Within an epoch of a class
   no sample repeats; a batch may straddle epochs. The seed of a dataset is sampled from (seed, d).

Rank r of W owns the classes ``c % W == r``, so it has B / W samples of every batch, all of which it
owns. For W = 1, 2, 4, 8 the classes, and with them every global batch, are the same.

Parts 1 and 2 are replayed from step 0: 10 to 15 s for a million steps, once per process.

In a rank's batch the samples are grouped by dataset, then by class. The augmentation depends on the
step instead of the epoch, since every dataset has its own epochs. For a dataset of windows the
indices are positions of ``pipeline.order.windows.window_order``.
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

from pipeline.order.epoch import (
    MIN_SHARD_SAMPLES,
    epoch_batches,
    num_virtual_shards,
    shard_of,
)
from pipeline.philox import Stream, random_words

MIX_ORDER: Final = 2
"""Version of this order. 1 dealt batches in units of up to 8 samples."""
MAX_CLASSES: Final = 8
"""Up to this number of ranks the global batches are the same."""
CACHED_EPOCHS: Final = 32
"""Cached epochs of datasets, 8 bytes per sample of a rank; one or two per dataset are in use."""
BLOCK: Final = 256
"""Steps between two states of the replay that are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """Step-independent part of the mixture order."""

    shares: tuple[int, ...]
    """Whole numbers in the proportions of the weights."""
    batch_size: int
    num_classes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _State:
    """What was dealt before a step."""

    carry: tuple[int, ...]
    """Remainder of each dataset, in units of 1 / sum(shares) samples."""
    taken: tuple[tuple[int, ...], ...]
    """Samples of each dataset by class."""


def num_owner_classes(sizes: Sequence[int], batch_size: int, *, world: int = 1) -> int:
    """Return C, the number of owner classes: a power of two and a multiple of ``world``.

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
    return math.gcd(batch_size, max(MAX_CLASSES, world), *map(num_virtual_shards, sizes))


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
    that it owns in their dataset. Sequential access is fast; the first access to a distant step
    deals all steps before it.

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
    if len(sizes) != len(weights):
        raise ValueError(
            f"weights must be one number per data set, got {len(weights)} for {len(sizes)}"
        )
    num_classes = num_owner_classes(sizes, batch_size, world=world)
    plan = _plan(tuple(weights), batch_size, num_classes)
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
    if step < 0:
        raise ValueError(f"step must not be negative, got {step}")
    block, within = divmod(step, BLOCK)
    states = _block(plan, block)
    begin, end = states[within].taken, states[within + 1].taken
    pieces, offset = [], 0
    for size, set_seed, first, last in zip(
        sizes, _seeds(seed, len(sizes)), begin, end, strict=True
    ):
        per_epoch = size // num_virtual_shards(size) * num_virtual_shards(size) // num_classes
        for own, number in enumerate(range(rank, num_classes, world)):
            at, stop = first[number], last[number]
            while at < stop:
                epoch, start = divmod(at, per_epoch)
                num = min(per_epoch - start, stop - at)
                stream = _epoch_streams(size, set_seed, epoch, num_classes, rank, world)[own]
                pieces.append(stream[start : start + num] + offset)
                at += num
        offset += size
    return torch.cat(pieces)


@lru_cache(maxsize=8)
def _plan(weights: tuple[float, ...], batch_size: int, num_classes: int) -> _Plan:
    if not weights or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(f"weights must be positive numbers, one per data set, got {weights}")
    exact = [Fraction(weight) for weight in weights]
    denominator = math.lcm(*(share.denominator for share in exact))
    whole = [int(share * denominator) for share in exact]
    common = math.gcd(*whole)
    shares = tuple(share // common for share in whole)
    return _Plan(shares=shares, batch_size=batch_size, num_classes=num_classes)


@lru_cache(maxsize=16)
def _block(plan: _Plan, block: int) -> tuple[_State, ...]:
    """Return the states before each step of a block, and after its last one."""
    known = _block_starts(plan)
    for number in range(max(n for n in known if n <= block), block):
        state = known[number]
        for _ in range(BLOCK):
            state = _dealt(plan, state)
        known[number + 1] = state
    states = [known[block]]
    for _ in range(BLOCK):
        states.append(_dealt(plan, states[-1]))
    return tuple(states)


@lru_cache(maxsize=8)
def _block_starts(plan: _Plan) -> dict[int, _State]:
    """Return the states before the first steps of blocks, by block; ``_block`` adds to them."""
    nothing = _State(
        carry=(0,) * len(plan.shares), taken=((0,) * plan.num_classes,) * len(plan.shares)
    )
    return {0: nothing}


def _dealt(plan: _Plan, state: _State) -> _State:
    """Return the state after one more batch."""
    total, sets = sum(plan.shares), range(len(plan.shares))
    counts = [plan.batch_size * share // total for share in plan.shares]
    carry = [
        left + plan.batch_size * share % total
        for left, share in zip(state.carry, plan.shares, strict=True)
    ]
    rest = plan.batch_size - sum(counts)
    for number in sorted(sets, key=carry.__getitem__, reverse=True)[:rest]:  # stable: the first
        counts[number] += 1
        carry[number] -= total
    even = [count // plan.num_classes for count in counts]
    taken = [
        [past + num for past in classes] for classes, num in zip(state.taken, even, strict=True)
    ]
    room = [plan.batch_size // plan.num_classes - sum(even)] * plan.num_classes
    # The least even dataset chooses first: the last one has to take what is left.
    for number in sorted(sets, key=lambda d: min(taken[d]) - max(taken[d])):
        mine, left = taken[number], counts[number] % plan.num_classes
        while left:
            free = [c for c in range(plan.num_classes) if room[c]]
            for c in sorted(free, key=lambda c: (mine[c], -room[c]))[:left]:
                mine[c] += 1
                room[c] -= 1
                left -= 1
    return _State(carry=tuple(carry), taken=tuple(map(tuple, taken)))


@lru_cache(maxsize=8)
def _seeds(seed: int, num_sets: int) -> tuple[int, ...]:
    # pipeline.order.epoch samples only id 0 of this stream; ids from 1 are the seeds of datasets.
    words = random_words(seed, Stream.shard_order, 0, 1 + torch.arange(num_sets), 2)
    return tuple(((words[:, 0] << 31) | (words[:, 1] >> 1)).tolist())


@lru_cache(maxsize=CACHED_EPOCHS)
def _epoch_streams(
    size: int, seed: int, epoch: int, num_classes: int, rank: int, world: int
) -> Int64[Tensor, "classes m"]:
    """Return one epoch of the rank's classes of a dataset, in order; read-only, it is cached."""
    num_shards = num_virtual_shards(size)
    samples = epoch_batches(size, num_shards, seed, epoch, rank=rank, world=world).flatten()
    classes = shard_of(samples, num_shards) % num_classes
    return torch.stack([samples[classes == c] for c in range(rank, num_classes, world)])
