"""Anatomical axes, on a drawn hand of either side and on the stand-in hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.hand import MANO_PARENTS
from model.mano.anatomy import anatomical_frames, limits_rad
from model.mano.files import load_mano
from model.mano.layer import ManoLayer
from preprocess.sample.hand.mesh import write_mano
from train.losses.terms.mano import bend_splay_twist, joint_limits

PALM = np.array([0.0, 0.0, 1.0])
"""Where the palm of the drawn hands looks."""


def drawn_hands() -> Tensor:
    """Return a flat right hand, fingers up, palm towards +z, and its mirror image: [2, 16, 3].

    Seen from the front the thumb of a right hand is then on the right.
    """
    right = np.zeros((16, 3))
    for base, x, y in ((1, 0.03, 0.09), (4, 0.01, 0.095), (7, -0.03, 0.08), (10, -0.01, 0.09)):
        for k in range(3):
            right[base + k] = [x, y + 0.03 * k, 0]
    for k in range(3):
        right[13 + k] = [0.03 + 0.02 * k, 0.03 + 0.02 * k, 0.005]
    return torch.from_numpy(np.stack([right, right * [-1, 1, 1]]))


def posed(rest: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Return the joints after turning each by ``turns`` [15, 3, 3] against its parent."""
    places, worlds = [rest[0]], [np.eye(3)]
    for j in range(1, 16):
        parent = MANO_PARENTS[j]
        places.append(places[parent] + worlds[parent] @ (rest[j] - rest[parent]))
        worlds.append(worlds[parent] @ turns[j - 1])
    return np.stack(places)


def bent(frames: np.ndarray, angle: float) -> np.ndarray:
    """Return turns of every joint about its axis of bend."""
    return Rotation.from_rotvec(angle * frames[:, :, 2]).as_matrix()


@pytest.mark.parametrize("side", [0, 1], ids=["right", "left"])
def test_frames_are_rotations_along_bones_and_out_of_the_palm(side: int) -> None:
    rest = drawn_hands()
    frames = anatomical_frames(rest)[side].numpy()
    np.testing.assert_allclose(
        frames @ frames.transpose(0, 2, 1), np.tile(np.eye(3), (15, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(frames), 1, atol=1e-12)
    for finger in (0, 3, 6, 9):
        np.testing.assert_allclose(frames[finger : finger + 3, :, 0], [[0, 1, 0]] * 3, atol=1e-12)
        np.testing.assert_allclose(frames[finger : finger + 3, :, 1], [PALM] * 3, atol=1e-12)
    bone = rest[side, 14] - rest[side, 13]
    np.testing.assert_allclose(frames[12, :, 0], bone / bone.norm(), atol=1e-12)


@pytest.mark.parametrize("side", [0, 1], ids=["right", "left"])
def test_a_positive_bend_closes_the_hand(side: int) -> None:
    rest = drawn_hands()
    frames = anatomical_frames(rest)[side].numpy()
    flat, closed = rest[side].numpy(), posed(rest[side].numpy(), bent(frames, 0.6))
    for tip in (3, 6, 9, 12):
        assert (closed[tip] - flat[tip]) @ PALM > 0.01
    little = flat[7]
    assert np.linalg.norm(closed[15] - little) < np.linalg.norm(flat[15] - little) - 0.005


def cost(frames: Tensor, turns: np.ndarray) -> float:
    theta = torch.from_numpy(np.concatenate([np.eye(3)[None], turns]))[None, None]
    low, high = (angles.double() for angles in limits_rad())
    present = torch.ones(1, 1, dtype=torch.bool)
    return joint_limits(theta, frames[None, None], low, high, present).item()


@pytest.mark.parametrize("side", [0, 1], ids=["right", "left"])
def test_a_fist_is_free_and_fingers_bent_backwards_are_not(side: int) -> None:
    frames = anatomical_frames(drawn_hands())[side]
    assert cost(frames, bent(frames.numpy(), 0.0)) == 0.0
    assert cost(frames, bent(frames.numpy(), math.radians(55))) == 0.0
    backwards = [math.radians(80 - 45), math.radians(80 - 15), math.radians(80 - 30)]
    thumb = [math.radians(80 - 50), math.radians(80 - 40), math.radians(80 - 40)]
    expected = (4 * sum(a**2 for a in backwards) + sum(a**2 for a in thumb)) / 45
    assert cost(frames, bent(frames.numpy(), -math.radians(80))) == pytest.approx(expected)


def test_angles_are_those_that_were_turned() -> None:
    frames = anatomical_frames(drawn_hands())[0].numpy()
    rng = np.random.default_rng(0)
    angles = rng.uniform(-1.2, 1.2, (15, 3))
    turned = frames @ Rotation.from_euler("ZYX", angles).as_matrix() @ frames.transpose(0, 2, 1)
    local = frames.transpose(0, 2, 1) @ turned @ frames
    np.testing.assert_allclose(
        bend_splay_twist(torch.from_numpy(local)).numpy(), angles, atol=1e-12
    )


def test_the_stand_in_hand_has_axes_too(tmp_path: Path) -> None:
    write_mano(tmp_path)
    mano = ManoLayer(load_mano(tmp_path), dtype=torch.float64)
    frames = anatomical_frames(mano.joints_rest)
    assert frames.shape == (2, 15, 3, 3)
    assert torch.linalg.det(frames).sub(1).abs().max() < 1e-9
    # The left hand is the right one in a mirror: x of vectors, y and z of axes of turning.
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    torch.testing.assert_close(frames[1, :, :, :2], frames[0, :, :, :2] * mirror)
    torch.testing.assert_close(frames[1, :, :, 2:], -frames[0, :, :, 2:] * mirror)


def test_every_range_holds_the_rest_pose() -> None:
    low, high = limits_rad()
    assert low.shape == high.shape == (15, 3)
    assert (low < 0).all()
    assert (high > 0).all()
