"""Sample order as a pure function of (seed, epoch); resume is one integer, the step.

Sample ``i`` of ``n`` permanently belongs to virtual shard ``(i + i // V) % V``. The diagonal
spreads neighbours in time and camera over all shards, and alternating right and left hands over
even and odd ones; shard sizes differ by at most one. An epoch

1. shuffles every shard: its members sorted by a Philox key of (seed, epoch, member);
2. visits the shards round-robin, in the order ``(multiplier * k + offset) % V`` with an odd
   multiplier, both sampled from (seed, epoch), and takes the next member of each;
3. cuts that sequence into global batches.

So a global batch of B has B / V members of every shard (B < V: one of each of B shards).

With W ranks, rank r owns the shards ``s % W == r`` and takes its members of each global batch. Any
W neighbours of the visiting order have W different owners, because the multiplier is odd and W
divides V, a power of two: every rank has B / W members of every batch, the same global batch
for any W, and never needs a sample that it does not own.

Every sample is seen at most once per epoch. ``n % V`` samples and the incomplete last batch are
dropped, different ones in every epoch.
"""

from typing import Final

import torch
from jaxtyping import Int64
from torch import Tensor

from pipeline.philox import Stream, random_words

MAX_SHARDS: Final = 64
MIN_SHARD_SAMPLES: Final = 8
"""A small set has fewer shards, so that at most one sample in eight is dropped."""


def num_virtual_shards(num_samples: int) -> int:
    """Return V: 64, or below 512 samples the power of two with at least 8 samples per shard."""
    wanted = max(1, num_samples // MIN_SHARD_SAMPLES)
    return min(MAX_SHARDS, 1 << (wanted.bit_length() - 1))


def shard_of(sample: Int64[Tensor, " m"], num_shards: int) -> Int64[Tensor, " m"]:
    """Return the virtual shard of each sample."""
    return (sample + sample // num_shards) % num_shards


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Return the number of global batches of an epoch."""
    num_shards = num_virtual_shards(num_samples)
    return num_samples // num_shards * num_shards // batch_size


def check_batch_size(num_samples: int, batch_size: int, *, world: int = 1) -> None:
    """Reject a global batch size that gives no batch or does not divide among the ranks.

    Raises:
        ValueError: States a batch size that fits.
    """
    if batch_size % world:
        raise ValueError(f"batch_size must be a multiple of the {world} ranks, got {batch_size}")
    if steps_per_epoch(num_samples, batch_size) == 0:
        num_shards = num_virtual_shards(num_samples)
        raise ValueError(
            f"batch_size must be at most {num_samples // num_shards * num_shards} "
            f"for {num_samples} samples, got {batch_size}"
        )


def owned_samples(num_samples: int, *, rank: int = 0, world: int = 1) -> Int64[Tensor, " m"]:
    """Return the samples that ``rank`` ever sees, ascending.

    Raises:
        ValueError: If ``world`` does not divide the number of virtual shards.
    """
    num_shards = num_virtual_shards(num_samples)
    _check_world(num_shards, rank, world)
    sample = torch.arange(num_samples)
    return sample[shard_of(sample, num_shards) % world == rank]


def epoch_batches(
    num_samples: int, batch_size: int, seed: int, epoch: int, *, rank: int = 0, world: int = 1
) -> Int64[Tensor, "steps b"]:
    """Return this rank's samples of every training batch of an epoch.

    Args:
        num_samples: Samples of all ranks together.
        batch_size: Global batch size, over all ranks.
        seed: In [0, 2^63).
        epoch: From 0.
        rank: This process.
        world: Number of processes; must divide ``batch_size`` and the number of virtual shards.

    Returns:
        Row ``t`` has this rank's ``batch_size / world`` samples of step ``t``.

    Raises:
        ValueError: If ``world`` does not divide, or an epoch would have no batch.
    """
    check_batch_size(num_samples, batch_size, world=world)
    num_shards = num_virtual_shards(num_samples)
    _check_world(num_shards, rank, world)
    steps = steps_per_epoch(num_samples, batch_size)
    visit = _shard_order(num_shards, seed, epoch)
    shuffled = _shuffled_shards(num_samples, num_shards, seed, epoch)[:, visit]
    batches = shuffled.flatten()[: steps * batch_size].view(steps, batch_size)
    # Position p of the sequence visits shard visit[p % V]; batch_size is a multiple of world and
    # visit % world repeats every world positions, so the owned columns are the same in every batch.
    columns = (visit[torch.arange(batch_size) % num_shards] % world == rank).nonzero()[:, 0]
    return batches[:, columns]


def _shuffled_shards(
    num_samples: int, num_shards: int, seed: int, epoch: int
) -> Int64[Tensor, "rounds shards"]:
    """Return the shuffled shards: column ``s`` = members of shard ``s``, cut to equal length."""
    rounds = num_samples // num_shards
    q = torch.arange(rounds + 1)[:, None]
    member = q * num_shards + (torch.arange(num_shards) - q) % num_shards
    words = random_words(seed, Stream.sample_order, epoch, member.flatten(), 2)
    key = ((words[:, 0] << 31) | (words[:, 1] >> 1)).view_as(member)
    key[member >= num_samples] = torch.iinfo(torch.int64).max  # no such sample: sorted to the end
    order = key.sort(dim=0, stable=True).indices[:rounds]
    return member.gather(0, order)


def _shard_order(num_shards: int, seed: int, epoch: int) -> Int64[Tensor, " shards"]:
    words = random_words(seed, Stream.shard_order, epoch, torch.zeros(1, dtype=torch.int64), 2)
    multiplier, offset = words[:, 0] | 1, words[:, 1]
    return (torch.arange(num_shards) * multiplier + offset) % num_shards


def _check_world(num_shards: int, rank: int, world: int) -> None:
    if world < 1 or num_shards % world:
        raise ValueError(f"world must divide the {num_shards} virtual shards, got {world}")
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0..{world - 1}, got {rank}")
