import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from model.geometry import crop
from model.geometry.camera import (
    camera_after_affine,
    in_plane_rotation,
    input_rotation,
    project,
    unproject,
)
from model.geometry.mano_frame import mano_after_rotation
from model.geometry.rotation import axis_angle_to_rotmat, rotate
from model.mano.files import ManoModels
from model.mano.layer import ManoLayer
from tests.strategies import affines, angles, cameras, flags, points_ahead, squares


@given(points_ahead(), cameras())
def test_project_matches_the_scalar_formula(points: Tensor, K: Tensor) -> None:
    (fx, skew, cx), (_, fy, cy), _ = K.tolist()
    for (x, y, z), (u, v) in zip(points.tolist(), project(points, K).tolist(), strict=True):
        assert u == pytest.approx(fx * x / z + skew * y / z + cx, abs=1e-9)
        assert v == pytest.approx(fy * y / z + cy, abs=1e-9)


def test_project_matches_opencv() -> None:
    points = np.random.default_rng(0).uniform([-0.3, -0.3, 0.4], [0.3, 0.3, 1.2], (20, 3))
    K = np.array([[610.0, 0, 320], [0, 590, 230], [0, 0, 1]])
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.zeros(5))
    actual = project(torch.from_numpy(points), torch.from_numpy(K))
    np.testing.assert_allclose(actual.numpy(), expected[:, 0], atol=1e-9)


@given(points_ahead(), cameras(), affines(), angles())
def test_unproject_inverts_project_for_any_camera(
    points: Tensor, K: Tensor, A: Tensor, angle: Tensor
) -> None:
    K = camera_after_affine(A, K, in_plane_rotation(angle))
    back = unproject(project(points, K), points[:, 2], K)
    torch.testing.assert_close(back, points, rtol=0, atol=1e-9)


def test_depth_zero_is_not_hidden() -> None:
    pixels = project(torch.tensor([[1.0, 0.0, 0.0]]), torch.eye(3))
    assert not pixels.isfinite().all()


@given(angles(), flags())
def test_input_rotation_is_turn_after_flip(angle: Tensor, mirror: Tensor) -> None:
    c, s, f = math.cos(angle), math.sin(angle), -1.0 if mirror else 1.0
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(in_plane_rotation(angle).numpy(), turn, atol=1e-15)
    R = input_rotation(angle, mirror)
    np.testing.assert_allclose(R.numpy(), turn @ np.diag([f, 1, 1]), atol=1e-15)


def _worst_px(
    points: Tensor,
    K: Tensor,
    square: tuple[Tensor, Tensor, int],
    angle: Tensor,
    mirror: Tensor,
) -> float:
    """Distance between the projected new label and the moved old projection."""
    center, size, out_px = square
    A = crop.square_crop_affine(center, size, out_px, rotation_rad=angle, mirror=mirror)
    R = input_rotation(angle, mirror)
    new = project(rotate(R, points), camera_after_affine(A, K, R))
    old = crop.apply(A, project(points, K))
    return float((new - old).abs().max())


@given(points_ahead(), cameras(), squares(), angles(), flags())
def test_augmented_projection_is_the_projection_of_the_augmented_label(
    points: Tensor, K: Tensor, square: tuple[Tensor, Tensor, int], angle: Tensor, mirror: Tensor
) -> None:
    # Pixels reach 1e5 where a 20 px square is blown up; 1e-9 px is asked at 1e3 and below.
    _, size, out_px = square
    scale = max(1.0, float(out_px / size))
    assert _worst_px(points, K, square, angle, mirror) < 1e-9 * scale


@given(points_ahead(), cameras(), squares(), angles(), flags())
def test_augmented_projection_in_float32(
    points: Tensor, K: Tensor, square: tuple[Tensor, Tensor, int], angle: Tensor, mirror: Tensor
) -> None:
    """Labels are built in float64 and cast; projecting them in float32 stays within 5e-3 px."""
    center, _, out_px = square
    # A crop of the hand: the square holds the points, as every view does.
    pixels = project(points, K)
    center = pixels.mean(-2)
    size = 2.5 * (pixels - center).abs().amax() + 1
    A = crop.square_crop_affine(center, size, out_px, rotation_rad=angle, mirror=mirror)
    R = input_rotation(angle, mirror)
    new_K = camera_after_affine(A, K, R)
    new = project(rotate(R, points).float(), new_K.float())
    assert float((new - crop.apply(A, pixels)).abs().max()) < 5e-3


@given(cameras(), affines())
def test_camera_follows_any_affine(K: Tensor, A: Tensor) -> None:
    points = torch.tensor([[0.1, -0.2, 0.8], [0.3, 0.1, 1.1]]).double()
    new = project(points, camera_after_affine(A, K, torch.eye(3).double()))
    torch.testing.assert_close(new, crop.apply(A, project(points, K)), rtol=0, atol=1e-8)


def test_a_wrong_turn_is_seen() -> None:
    """The property has teeth: a camera built for the opposite turn is pixels away."""
    points = torch.tensor([[0.1, -0.2, 0.8]]).double()
    K = torch.tensor([[600.0, 2, 310], [0, 580, 250], [0, 0, 1]]).double()
    angle, no = torch.tensor(0.3).double(), torch.zeros((), dtype=torch.bool)
    A = crop.square_crop_affine(
        torch.tensor([380.0, 90.0]).double(), torch.tensor(200.0).double(), 224, rotation_rad=angle
    )
    right, wrong = input_rotation(angle, no), input_rotation(-angle, no)
    expected = crop.apply(A, project(points, K))
    new_K = camera_after_affine(A, K, right)
    assert (project(rotate(right, points), new_K) - expected).abs().max() < 1e-9
    assert (project(rotate(wrong, points), new_K) - expected).abs().max() > 10


def test_mano_parameters_follow_the_turned_and_mirrored_points(mano: ManoModels) -> None:
    rng = np.random.default_rng(5)
    num = 8
    layer = ManoLayer(mano, dtype=torch.float64)
    theta = axis_angle_to_rotmat(torch.from_numpy(rng.normal(0, 0.6, (num, 16, 3))))
    beta = torch.from_numpy(rng.normal(0, 1, (num, 10)))
    transl = torch.from_numpy(rng.normal([0, 0, 0.6], 0.2, (num, 3)))
    is_right = torch.arange(num) % 2 == 0
    mirror = torch.arange(num) // 2 % 2 == 0
    angle = torch.from_numpy(rng.uniform(-math.pi, math.pi, num))

    vertices, joints = layer(theta, beta, transl, is_right)
    rest = layer.root_rest(beta, is_right)
    new_theta, new_transl = mano_after_rotation(theta, transl, rest, angle, mirror)
    new_vertices, new_joints = layer(new_theta, beta, new_transl, is_right ^ mirror)
    R = input_rotation(angle, mirror)
    # smplx keeps its arrays in float32, so the two sides mirror each other to 1e-8.
    torch.testing.assert_close(new_vertices, rotate(R, vertices), rtol=0, atol=1e-7)
    torch.testing.assert_close(new_joints, rotate(R, joints), rtol=0, atol=1e-7)
