"""Opening and closing the synthetic hand: finger flexion levels, hands in their own frame.

The hand frame has its origin in the wrist and the axes of the rest pose. Metres and radians.
"""

from dataclasses import replace
from functools import lru_cache
from typing import Final

import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import FINGERS, NUM_BETAS, NUM_MANO_JOINTS
from model.mano.convert import rest_root
from model.mano.files import ManoArrays, mano_forward, with_other_x
from preprocess.sample.hand.mesh import stand_in_axes, stand_in_model
from preprocess.sample.hand.rig import MANO_FIRST_JOINT

THUMBS: Final = ((0.35, 0.25), (-0.15, 0.4), (-0.55, 0.55))
"""Abduction and twist of the thumb's root: beside the index finger, half way, opposed."""
_ABDUCTION: Final = {"index": 0.04, "middle": 0.0, "ring": -0.03, "little": -0.07}


def bend(level: np.ndarray) -> np.ndarray:
    """Return flexions [n, 5, 3] of thumb to little for levels [n, 5, 3], 0 open to 1 closed."""
    start = np.array([[-0.20, -0.05, -0.10], *[[-0.12, 0.08, 0.05]] * 4])
    reach = np.array([[0.60, 0.80, 0.95], *[[1.50, 1.60, 1.00]] * 4])
    return np.asarray(start + level * reach)


def finger_angles(side: str, level: np.ndarray, thumb: int) -> np.ndarray:
    """Return absolute finger rotations, axis-angle [n, 45].

    Args:
        side: ``right`` or ``left``.
        level: Closing of the joints, 0 to 1, [n, 5, 3], thumb to little finger, root to tip.
        thumb: Index of the thumb's position.
    """
    angles = np.zeros((len(level), NUM_MANO_JOINTS, 3))
    flexion = bend(level)
    for slot, finger in enumerate(FINGERS):
        first = MANO_FIRST_JOINT[finger]
        angles[:, first : first + 3, 0] = flexion[:, slot]
        if finger == "thumb":
            angles[:, first, 1:] = THUMBS[thumb]
        else:
            # Spread fingers come together as they bend.
            angles[:, first, 1] = _ABDUCTION[finger] * (1.0 - level[:, slot, 0])
    axes = stand_in_axes()
    flex, abduct, twist = (
        Rotation.from_rotvec((axes[:, i] * angles[..., i : i + 1]).reshape(-1, 3)) for i in range(3)
    )
    turned = (abduct * flex * twist).as_rotvec().reshape(len(level), NUM_MANO_JOINTS, 3)[:, 1:]
    if side == "left":
        turned = turned * [1.0, -1.0, -1.0]
    return np.asarray(turned.reshape(len(level), 45))


def hand_points(
    model: ManoArrays, beta: np.ndarray, side: str, level: np.ndarray, thumb: int
) -> np.ndarray:
    """Return vertices [n, 778, 3] in the hand frame."""
    num = len(level)
    theta = np.concatenate([np.zeros((num, 3)), finger_angles(side, level, thumb)], axis=1)
    betas = np.broadcast_to(beta, (num, NUM_BETAS))
    wrist = rest_root(model, betas)
    return mano_forward(model, theta, betas, -wrist)[0]


@lru_cache(maxsize=1)
def finger_owner() -> np.ndarray:
    """Return the finger of each vertex [778], 0 thumb to 4 little, -1 the palm."""
    weights = stand_in_model("right").weights
    share = np.stack([weights[:, MANO_FIRST_JOINT[f] :][:, :3].sum(1) for f in FINGERS], axis=1)
    return np.where(share.max(1) > 0.9, share.argmax(1), -1)


@lru_cache(maxsize=4)
def shipped_or_fixed(side: str, *, as_shipped: bool) -> ManoArrays:
    """Return the synthetic model of a side; the left one optionally as MANO ships it."""
    model = stand_in_model(side)
    if side == "left" and as_shipped:
        return replace(model, shapedirs=with_other_x(model.shapedirs))
    return model
