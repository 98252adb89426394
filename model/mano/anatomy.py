"""Anatomical axes of MANO's finger joints and their limits: bend (flexion), splay, twist.

Both follow from the rest skeleton: twist is about the bone, bend about an axis in the palm plane.

Shape legend: s = sides (slot 0 right, slot 1 left), j = 16 MANO joints. Radians.
"""

import math
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from model.hand import LEFT, NUM_MANO_JOINTS

_WRIST, _INDEX, _LITTLE, _THUMB = 0, 1, 7, 13
_BASES: Final = (1, 4, 7, 10, 13)
"""First joints of index, middle, little, ring, thumb; the next two follow each."""

_FINGER: Final = (
    ((-45, 100), (-30, 30), (-20, 20)),
    ((-15, 120), (-15, 15), (-15, 15)),
    ((-30, 100), (-15, 15), (-15, 15)),
)
_THUMB_RANGES: Final = (
    ((-50, 60), (-60, 60), (-50, 50)),
    ((-40, 80), (-30, 30), (-30, 30)),
    ((-40, 100), (-15, 15), (-15, 15)),
)
_DEGREES: Final = (*_FINGER * 4, *_THUMB_RANGES)
"""Bend, splay and twist of the three joints of a finger, from base to tip."""


def limits_rad() -> tuple[Float[Tensor, "15 3"], Float[Tensor, "15 3"]]:
    """Return the smallest and largest bend, splay and twist of each joint, MANO order.

    Generous: clinical ranges of motion (fingers: 90 degrees at the base, 100 and 80 beyond, with
    30 to 45 of hyperextension at the base) plus some 15 degrees for errors of fitted poses. Not
    fitted to a dataset.
    """
    ranges = torch.tensor(_DEGREES) * (math.pi / 180)  # [15, 3, 2]
    return ranges[..., 0].contiguous(), ranges[..., 1].contiguous()


def anatomical_frames(joints_rest: Float[Tensor, "s 16 3"]) -> Float[Tensor, "s 15 3 3"]:
    """Return ``A_mano_from_anatomy`` of each finger joint: rotations, columns in MANO's rest frame.

    First column: twist axis, along the bone, away from the wrist (for the last bone, that of the
    bone before it). Second: splay axis, out of the palm. Third: bend axis, about which a positive
    angle closes the hand; the thumb closes towards the base of the little finger.

    Args:
        joints_rest: Joints of the rest pose, metres; a single side is taken as a right hand.
    """
    wrist, index, little = joints_rest[:, _WRIST], joints_rest[:, _INDEX], joints_rest[:, _LITTLE]
    out_of_palm = torch.linalg.cross(index - wrist, little - wrist)  # of a right hand
    is_left = torch.arange(len(joints_rest), device=joints_rest.device) == LEFT
    out_of_palm = out_of_palm.where(~is_left[:, None], -out_of_palm)
    frames = []
    for joint in range(1, NUM_MANO_JOINTS):
        base = max(b for b in _BASES if b <= joint)
        at = min(joint, base + 1)
        along = _unit(joints_rest[:, at + 1] - joints_rest[:, at])
        closes = little - joints_rest[:, joint] if base == _THUMB else out_of_palm
        splay = _unit(closes - (closes * along).sum(-1, keepdim=True) * along)
        frames.append(torch.stack((along, splay, torch.linalg.cross(along, splay)), -1))
    return torch.stack(frames, 1)


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return unit
