"""Random numbers as a pure function of a counter: Philox4x32-10 in torch int64.

The same integers on every device, torch version and batch layout, so a sample's numbers depend on
(seed, stream, epoch, sample id) alone.

    key     = (seed low, seed high)
    counter = (id low, id high, epoch, stream * 2^16 + block)

One block is four words; sample ``d`` is word ``d % 4`` of block ``d // 4``. Words are 32 bits wide,
stored as int64.

Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3; constants of Random123.
"""

from enum import IntEnum
from typing import Final

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

MASK: Final = 0xFFFFFFFF
ROUNDS: Final = 10
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)


class Stream(IntEnum):
    """Purpose of the random numbers; streams never share a counter. Values fix a run's order."""

    sample_order = 0
    shard_order = 1
    augment = 2


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return one block of four words per counter.

    Args:
        counter: Four int64 tensors that broadcast, values in [0, 2^32).
        key: Two values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The int64 product wraps modulo 2^64: its bits are those of the unsigned product, and the
        # mask removes the sign that the arithmetic shift drags in.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & MASK) ^ c1 ^ k0,
            product1 & MASK,
            ((product0 >> 32) & MASK) ^ c3 ^ k1,
            product0 & MASK,
        )
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def random_words(
    seed: int, stream: Stream, epoch: int | Tensor, ids: Int64[Tensor, " n"], num_words: int
) -> Int64[Tensor, "n w"]:
    """Return ``num_words`` words in [0, 2^32) for every id.

    Args:
        seed: In [0, 2^63).
        stream: Purpose of the numbers.
        epoch: In [0, 2^32); a tensor without dimensions keeps the number on the device.
        ids: Not negative.
        num_words: At most 4 * 2^16.
    """
    num_blocks = -(-num_words // 4)
    block = torch.arange(num_blocks, device=ids.device) + (int(stream) << 16)
    counter = (
        (ids & MASK)[:, None],
        (ids >> 32)[:, None],
        torch.zeros_like(block) + epoch,
        block,
    )
    words = torch.stack(philox4x32(counter, (seed & MASK, seed >> 32)), -1)
    return words.flatten(1)[:, :num_words]


def uniforms(
    seed: int, stream: Stream, epoch: int | Tensor, ids: Int64[Tensor, " n"], num_draws: int
) -> Float64[Tensor, "n d"]:
    """Return numbers in (0, 1) for every id: ``(word + 1/2) / 2^32``, exact in float64."""
    words = random_words(seed, stream, epoch, ids, num_draws)
    return (words.to(torch.float64) + 0.5) * 2.0**-32
