"""Temporal windows over a view, and their assignment to ranks.

A run is a maximal list of samples of one sequence, camera and hand slot whose ``frame_idx`` advance
by the sequence's frame stride; a missing frame ends it. A window never leaves its run. ``length``,
``stride`` and ``step`` count frames of the run, independent of the frame stride.

Windows are sorted by (sequence, camera, slot, first frame), so that neighbours share frames.
Ownership is that of ``pipeline.order.epoch`` with its positions renumbered (``window_order``), so
that a virtual shard has blocks of neighbouring windows instead of single ones. Batches, ranks and
resume work as there, and ``block=1`` leaves the order of single samples unchanged.

A frame that windows of two blocks need is held twice: at most ``(length - 1) * step`` frames at
each border between blocks, and every window has a first frame of its own. All ranks together hold
at most ``1 + (length - 1) * step * num_blocks / num_windows`` times the frames in use, so
``1 + (length - 1) * step / block`` where all blocks are full.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pipeline.config import Boundary, WindowConfig
from pipeline.order.epoch import num_virtual_shards, owned_samples

DEFAULT_BLOCK: Final = 256
"""Neighbouring windows kept on one rank: with 16 frames, 6 % extra memory on several ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Windows sorted by (sequence, camera, slot, first frame)."""

    index: Int64[Tensor, "n t"]
    """Samples of the view."""
    is_real: Bool[Tensor, "n t"]
    """False: past the end of the run; ``index`` then repeats its last frame."""

    def __len__(self) -> int:
        return len(self.index)


def build_windows(
    sequence_idx: Int64[Tensor, " n"],
    camera_idx: Int64[Tensor, " n"],
    frame_idx: Int64[Tensor, " n"],
    slot: Int64[Tensor, " n"],
    config: WindowConfig,
) -> Windows:
    """Return the windows of a view; its samples may be in any order.

    Length 1 with stride 1 gives the samples themselves, in the view's order, for any frames.

    Args:
        sequence_idx: Sequence of every sample.
        camera_idx: Camera of the sequence.
        frame_idx: Frame number; only differences matter.
        slot: Hand slot; zeros for a view of whole frames.
        config: Length, stride and step of the windows.

    Raises:
        ValueError: If a frame occurs twice in a run, or no run is long enough.
    """
    if config.length == 1 and config.stride == 1:
        index = torch.arange(len(frame_idx))[:, None]
        return Windows(index=index, is_real=torch.ones_like(index, dtype=torch.bool))
    order = _lexsort(frame_idx, slot, camera_idx, sequence_idx)
    start = _run_starts(
        sequence_idx[order], camera_idx[order], frame_idx[order], slot[order],
        _frame_strides(sequence_idx, camera_idx, frame_idx, config.frame_stride)[order],
    )  # fmt: skip
    num_frames = torch.diff(start, append=torch.tensor([len(order)]))
    reach = (config.length - 1) * config.step
    needed = reach if config.boundary is Boundary.drop else 0
    num_windows = ((num_frames - 1 - needed) // config.stride + 1).clamp(min=0)
    if not num_windows.any():
        longest = int(num_frames.max()) if len(num_frames) else 0
        raise ValueError(
            f"window.length {config.length} at window.step {config.step} needs runs of "
            f"{reach + 1} frames, the longest of {len(num_frames)} has {longest}; "
            f"use a shorter window or window.boundary=repeat"
        )
    run = torch.arange(len(start)).repeat_interleave(num_windows)
    nth = torch.arange(len(run)) - (num_windows.cumsum(0) - num_windows)[run]
    position = nth[:, None] * config.stride + torch.arange(config.length) * config.step  # [n, t]
    last = (num_frames - 1)[run, None]
    index = order[start[run, None] + torch.minimum(position, last)]
    return Windows(index=index, is_real=position <= last)


def window_order(num_windows: int, *, block: int = DEFAULT_BLOCK) -> Int64[Tensor, " n"]:
    """Return the permutation that maps positions of ``pipeline.order.epoch`` to windows.

    In groups of V * block windows, block ``j`` of group ``g`` goes to shard ``(j + g) % V``. The
    remaining windows form one group of shorter blocks, and finally fewer than V single windows. So
    shard sizes differ by at most one, as in ``pipeline.order.epoch``.

    Args:
        num_windows: Windows of all ranks together.
        block: Neighbouring windows to keep together; 1 = order unchanged.

    Raises:
        ValueError: If ``block`` is not positive.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 window, got {block}")
    num_shards = num_virtual_shards(num_windows)
    position = torch.arange(num_windows)
    rounds = num_windows // num_shards
    turn, shard = position // num_shards, (position + position // num_shards) % num_shards
    group = turn // block
    depth = (rounds - group * block).clamp(max=block)  # rounds of this group
    window = group * block * num_shards + (shard - group) % num_shards * depth + turn % block
    return torch.where(turn < rounds, window, position)


def owned_windows(
    num_windows: int, *, block: int = DEFAULT_BLOCK, rank: int = 0, world: int = 1
) -> Int64[Tensor, " m"]:
    """Return the windows that ``rank`` ever sees, ascending.

    Raises:
        ValueError: If ``world`` does not divide the number of virtual shards.
    """
    owned = owned_samples(num_windows, rank=rank, world=world)
    return window_order(num_windows, block=block)[owned].sort().values


def frames_of(windows: Windows, owned: Int64[Tensor, " m"]) -> Int64[Tensor, " k"]:
    """Return the samples of the view that the windows ``owned`` need, ascending.

    Where a rank caches just these, ``torch.searchsorted(frames, windows.index[owned])`` are the
    indices into its cache.
    """
    frames: Int64[Tensor, " k"] = torch.unique(windows.index[owned])
    return frames


def most_central(windows: Windows) -> Bool[Tensor, "n t"]:
    """Return a mask of each sample's most central position over all windows that contain it.

    The first in a tie. A frame at the end of a run may be at the end of its only window. Padded
    positions are never selected.
    """
    num_frames = windows.index.shape[1]
    place = torch.arange(num_frames).expand_as(windows.index)
    from_end = torch.minimum(place, num_frames - 1 - place).where(windows.is_real, -1)
    order = _lexsort(-from_end.flatten(), windows.index.flatten())
    sample = windows.index.flatten()[order]
    is_first = torch.ones_like(sample, dtype=torch.bool)
    is_first[1:] = sample[1:] != sample[:-1]
    chosen = torch.zeros_like(is_first)
    chosen[order[is_first]] = True
    return chosen.view_as(windows.index)


def _lexsort(*keys: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Return the sorting permutation by the last key, then the one before it, and so on."""
    return torch.from_numpy(np.lexsort([key.numpy() for key in keys]))


def _frame_strides(
    sequence_idx: Int64[Tensor, " n"],
    camera_idx: Int64[Tensor, " n"],
    frame_idx: Int64[Tensor, " n"],
    frame_stride: int,
) -> Int64[Tensor, " n"]:
    """Return the frame stride of each sample's sequence, over both hands and all its cameras."""
    if frame_stride:
        return torch.full_like(frame_idx, frame_stride)
    order = _lexsort(frame_idx, camera_idx, sequence_idx)
    names, sequence = torch.unique(sequence_idx, return_inverse=True)
    advance = torch.diff(frame_idx[order])
    counts = (
        (torch.diff(sequence_idx[order]) == 0)
        & (torch.diff(camera_idx[order]) == 0)
        & (advance > 0)
    )
    unknown = torch.iinfo(torch.int64).max
    smallest = torch.full((len(names),), unknown).scatter_reduce(
        0, sequence[order][1:][counts], advance[counts], "amin"
    )
    return torch.where(smallest == unknown, 1, smallest)[sequence]


def _run_starts(
    sequence_idx: Int64[Tensor, " n"],
    camera_idx: Int64[Tensor, " n"],
    frame_idx: Int64[Tensor, " n"],
    slot: Int64[Tensor, " n"],
    frame_stride: Int64[Tensor, " n"],
) -> Int64[Tensor, " runs"]:
    """Return where runs start in samples sorted by (sequence, camera, slot, frame)."""
    same = torch.ones(max(len(frame_idx) - 1, 0), dtype=torch.bool)
    for column in (sequence_idx, camera_idx, slot):
        same &= torch.diff(column) == 0
    advance = torch.diff(frame_idx)
    twice = (same & (advance == 0)).nonzero()[:, 0]
    if len(twice):
        first = int(twice[0])
        raise ValueError(
            f"{len(twice)} samples repeat a frame of their sequence, camera and hand (first: "
            f"sequence {int(sequence_idx[first])}, camera {int(camera_idx[first])}, "
            f"frame {int(frame_idx[first])}); this view has no windows, use window.length=1"
        )
    begins = ~(same & (advance == frame_stride[1:]))
    return torch.cat([torch.zeros(min(1, len(frame_idx)), dtype=torch.int64),
                      begins.nonzero()[:, 0] + 1])  # fmt: skip
