"""Memory of what ``prepare`` computes: one allocation for each element type, or what is given.

A GPU's allocator takes some microseconds a call, which for 25 tensors is more than the launch of
the kernel that fills them.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from pipeline.batch import TENSORS, Batch
from pipeline.gather.params import GatherParams

ALIGNMENT: Final = 16
"""Bytes: Triton makes another kernel for pointers that are not multiples of it."""
PER_HAND: Final[dict[str, tuple[tuple[int, ...], torch.dtype]]] = {
    "joints_3d": ((21, 3), torch.float32),
    "joint_valid": ((21,), torch.bool),
    "theta_rotmat": ((16, 3, 3), torch.float32),
    "beta": ((10,), torch.float32),
    "transl": ((3,), torch.float32),
    "has_joints": ((), torch.bool),
    "has_mano": ((), torch.bool),
    "has_beta": ((), torch.bool),
    "is_right": ((), torch.bool),
}
"""Shape and type of the columns of a batch that have a row per hand."""
PER_SAMPLE: Final[dict[str, tuple[tuple[int, ...], torch.dtype]]] = {
    "image": ((3, 0, 0), torch.float32),
    "K": ((3, 3), torch.float32),
    "A_input_from_frame": ((2, 3), torch.float32),
    "R_input_from_cam": ((3, 3), torch.float32),
    "mirrored": ((), torch.bool),
    "object_id": ((), torch.int64),
    "object_pose": ((3, 4), torch.float32),
    "object_arti_rad": ((), torch.float32),
    "has_object": ((), torch.bool),
    "joint_set": ((), torch.int64),
    "sample_id": ((), torch.int64),
    "is_real": ((), torch.bool),
}
PARAMS: Final[dict[str, tuple[tuple[int, ...], torch.dtype]]] = {
    "A_q16": ((2, 3), torch.int32),
    "colour": ((3, 4), torch.float32),
    "erase_xyxy": ((4,), torch.int32),
    "taps": ((), torch.int32),
}
"""Those of the gather's parameters."""

Place = tuple[str, torch.dtype, tuple[int, ...], tuple[int, ...], int]
"""Name, type, shape, strides and first element of a column in the block of its type."""


def empty_outputs(
    shape: tuple[int, ...], num_hands: int, device: torch.device
) -> tuple[GatherParams, Batch]:
    """Return uninitialised outputs for ``shape`` samples [b] or windows [b, t], without pixels."""
    sizes, places = _layout(shape, num_hands)
    blocks = {
        dtype: torch.empty(number, dtype=dtype, device=device) for dtype, number in sizes.items()
    }
    columns: dict[str, Any] = {
        name: torch.as_strided(blocks[dtype], size, stride, first)
        for name, dtype, size, stride, first in places
    }
    params = GatherParams(**{name: columns.pop(name) for name in PARAMS})
    return params, Batch(**{name: columns[name] for name in TENSORS})


def columns_of(values: GatherParams | Batch) -> list[Tensor]:
    """Return the columns but the pixels and label groups, in a fixed order."""
    return [getattr(values, f.name) for f in fields(values) if f.name not in ("image", "groups")]


@torch.no_grad()
def copy_columns(values: Sequence[Tensor], places: Sequence[Tensor]) -> None:
    """Copy tensors to others of the same shapes and types; what is there already is left.

    This is one call for each type, and on a GPU about as many kernels.
    """
    moves: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for value, place in zip(values, places, strict=True):
        if value.data_ptr() != place.data_ptr():
            to, what = moves.setdefault(value.dtype, ([], []))
            to.append(place)
            what.append(value)
    for to, what in moves.values():
        torch._foreach_copy_(to, what)


@cache
def _layout(
    shape: tuple[int, ...], num_hands: int
) -> tuple[dict[torch.dtype, int], tuple[Place, ...]]:
    """Return the elements of each type and where each column is among them."""
    hands = (*shape, num_hands)
    columns = [(name, (*shape, *own), dtype) for name, (own, dtype) in PER_SAMPLE.items()]
    columns += [(name, (*hands, *own), dtype) for name, (own, dtype) in PER_HAND.items()]
    columns += [(name, (*shape, *own), dtype) for name, (own, dtype) in PARAMS.items()]
    sizes: dict[torch.dtype, int] = {}
    places: list[Place] = []
    for name, size, dtype in columns:
        first = sizes.get(dtype, 0)
        stride = tuple(math.prod(size[axis + 1 :]) for axis in range(len(size)))
        places.append((name, dtype, size, stride, first))
        unit = ALIGNMENT // dtype.itemsize
        sizes[dtype] = first + -(-math.prod(size) // unit) * unit
    return sizes, tuple(places)
