import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from preprocess.sample.freihand.write import draw_scene
from preprocess.sample.hand.mesh import stand_in_axes
from preprocess.sample.hand.pose import draw_beta, draw_hand, draw_orientation


def pa_mpjpe_mm(source: np.ndarray, target: np.ndarray) -> float:
    """Mean joint distance after the best rotation, scale and shift of ``source``, in mm."""
    a, b = source - source.mean(0), target - target.mean(0)
    turn, _ = orthogonal_procrustes(a, b)
    if np.linalg.det(turn) < 0:
        left, _, right = np.linalg.svd(a.T @ b)
        turn = left @ np.diag([1.0, 1.0, -1.0]) @ right
    moved = a @ turn
    scale = (moved * b).sum() / (a**2).sum()
    return float(np.linalg.norm(scale * moved - b, axis=1).mean() * 1e3)


def test_mean_pose_baseline_is_neither_trivial_nor_hopeless() -> None:
    def relative(split: str, count: int) -> np.ndarray:
        joints = np.stack([draw_scene(0, split, i).joints_3d for i in range(count)])
        return np.asarray(joints - joints[:, :1])

    mean = relative("training", 220).mean(0)
    held_out = relative("evaluation", 100)
    baseline = np.mean([pa_mpjpe_mm(mean, joints) for joints in held_out])
    assert 14.0 < baseline < 22.0


def test_poses_stay_within_the_documented_limits() -> None:
    axes = stand_in_axes()
    draws = np.stack([draw_hand(np.random.default_rng(i)).fingers for i in range(150)])
    # Middle and end joints of the long fingers only bend: their axis-angle is along one axis.
    for joint, limit in ((2, 1.75), (5, 1.75), (8, 1.75), (11, 1.75), (3, 1.15), (6, 1.15)):
        angle = draws[:, joint - 1] @ axes[joint, 0]
        np.testing.assert_allclose(draws[:, joint - 1], angle[:, None] * axes[joint, 0], atol=1e-9)
        assert angle.min() >= 0
        assert angle.max() <= limit + 1e-9
        assert angle.std() > 0.2  # drawn widely
    base = np.linalg.norm(draws[:, [0, 3, 6, 9]], axis=-1)
    assert base.max() < np.hypot(1.55, 0.30) + 0.05


def test_shapes_are_clipped_normal() -> None:
    betas = np.stack([draw_beta(np.random.default_rng(i)) for i in range(300)])
    assert np.abs(betas).max() == 2.0
    assert betas.std() == pytest.approx(0.95, abs=0.05)


def test_orientations_are_rotations_within_limits() -> None:
    turns = np.stack([draw_orientation(np.random.default_rng(i)) for i in range(400)])
    np.testing.assert_allclose(
        turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (400, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(turns), 1.0)
    fingers = -turns[:, :, 0]
    tip_deg = np.rad2deg(np.arcsin(fingers[:, 2]))
    assert np.abs(tip_deg).max() <= 50.0 + 1e-6
    palm_to_camera = turns[:, 2, 1] > 0  # the back of the hand, +y at rest, looks away
    assert 0.82 < palm_to_camera.mean() < 0.96


def test_draws_depend_on_the_stream_only() -> None:
    first, second = (draw_hand(np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.fingers, second.fingers)
    assert not np.allclose(first.fingers, draw_hand(np.random.default_rng(6)).fingers)
    assert Rotation.from_rotvec(first.fingers).magnitude().max() < np.pi
