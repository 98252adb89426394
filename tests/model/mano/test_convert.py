"""MANO conversions against smplx, scipy and the posed mesh."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from smplx import MANO
from smplx.utils import Struct

from model.mano.convert import (
    LeftRefit,
    add_mean,
    axis_angle_to_pca,
    invert_transform,
    mirror_mano,
    move_mano,
    pca_to_axis_angle,
    refit_left_betas,
    rest_root,
    subtract_mean,
    transform_mano,
)
from model.mano.files import ManoArrays, ManoModels, mano_forward, with_other_x

MIRROR = np.array([-1.0, 1.0, 1.0])
FINGERS = [
    pytest.param(lambda mano: mano.right, id="right"),
    pytest.param(lambda mano: mano.left, id="left"),
]
Side = Callable[[ManoModels], ManoArrays]


def _hands(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, 0.8, (num, 48))
    return theta, rng.normal(0, 1.5, (num, 10)), rng.normal([0, 0, 0.6], 0.2, (num, 3))


def _transform(seed: int, num: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    T = np.tile(np.eye(4), (num, 1, 1))
    T[:, :3, :3] = Rotation.random(num, rng=rng).as_matrix()
    T[:, :3, 3] = rng.normal(0, 0.5, (num, 3))
    return T


# --- fingers --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:You are using a MANO model")
@pytest.mark.parametrize("side", FINGERS)
@pytest.mark.parametrize("num", [1, 6, 44])
def test_pca_is_what_smplx_does(mano: ManoModels, side: Side, num: int) -> None:
    arrays = side(mano)
    struct = Struct(**{field.name: getattr(arrays, field.name) for field in fields(ManoArrays)})
    layer = MANO("", data_struct=struct, num_pca_comps=num, batch_size=4, dtype=torch.float64)
    coefficients = np.random.default_rng(0).normal(0, 1, (4, num))
    pose = layer(hand_pose=torch.from_numpy(coefficients), return_full_pose=True).full_pose
    actual = pca_to_axis_angle(arrays, coefficients)
    np.testing.assert_allclose(actual, pose.detach().numpy()[:, 3:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", FINGERS)
def test_45_coefficients_round_trip_and_are_not_read_as_angles(
    mano: ManoModels, side: Side
) -> None:
    arrays = side(mano)
    coefficients = np.random.default_rng(1).normal(0, 1, (5, 45))
    angles = pca_to_axis_angle(arrays, coefficients)
    for row, c in zip(angles, coefficients, strict=True):
        expected = arrays.hands_mean + sum(
            value * component for value, component in zip(c, arrays.hands_components, strict=True)
        )
        np.testing.assert_allclose(row, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(axis_angle_to_pca(arrays, angles), coefficients, atol=1e-12)


def test_fewer_coefficients_are_the_nearest_ones(mano: ManoModels) -> None:
    # Components that are not orthonormal, so that a projection would not do.
    skewed = replace(mano.right, hands_components=np.random.default_rng(2).normal(size=(45, 45)))
    angles = np.random.default_rng(3).normal(0, 1, (2, 45))
    found = axis_angle_to_pca(skewed, angles, num=7)
    assert found.shape == (2, 7)

    def error(coefficients: np.ndarray, goal: np.ndarray) -> np.ndarray:
        angles: np.ndarray = skewed.hands_mean + coefficients @ skewed.hands_components[:7]
        return np.asarray(angles - goal)

    for row, angle in zip(found, angles, strict=True):
        oracle = least_squares(error, np.zeros(7), args=(angle,))
        np.testing.assert_allclose(row, oracle.x, atol=1e-6)


@pytest.mark.parametrize("side", FINGERS)
def test_the_mean_is_added_to_the_fingers(mano: ManoModels, side: Side) -> None:
    arrays = side(mano)
    offsets = np.random.default_rng(4).normal(size=(3, 45)).astype(np.float32)
    absolute = add_mean(arrays, offsets)
    assert absolute.dtype == np.float64
    np.testing.assert_array_equal(absolute, offsets.astype(np.float64) + arrays.hands_mean)
    np.testing.assert_allclose(subtract_mean(arrays, absolute), offsets, atol=1e-15)


# --- frames ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", FINGERS)
def test_rest_root_is_the_wrist_in_every_pose(mano: ManoModels, side: Side) -> None:
    theta, beta, _ = _hands(4)
    _, joints = mano_forward(side(mano), theta, beta, np.zeros((4, 3)))
    np.testing.assert_allclose(rest_root(side(mano), beta), joints[:, 0], atol=1e-15)


@pytest.mark.parametrize("side", FINGERS)
@pytest.mark.parametrize("num_transforms", [1, 4])
def test_moved_parameters_decode_to_the_moved_mesh(
    mano: ManoModels, side: Side, num_transforms: int
) -> None:
    arrays = side(mano)
    theta, beta, transl = _hands(4)
    T = _transform(5, num_transforms)
    rest = rest_root(arrays, beta)
    there = mano_forward(arrays, theta, beta, transl)
    theta_moved, transl_moved = transform_mano(theta, transl, T, rest)
    here = mano_forward(arrays, theta_moved, beta, transl_moved)
    for moved, points in zip(here, there, strict=True):
        for i in range(4):
            R, t = T[i % num_transforms, :3, :3], T[i % num_transforms, :3, 3]
            np.testing.assert_allclose(moved[i], [R @ p + t for p in points[i]], atol=1e-12)
    np.testing.assert_array_equal(theta_moved[:, 3:], theta[:, 3:])
    again = move_mano(theta, transl, T[:, :3, :3], T[:, :3, 3], rest)
    np.testing.assert_array_equal(again[0], theta_moved)
    np.testing.assert_array_equal(again[1], transl_moved)


def test_the_inverse_transform_leads_back(mano: ManoModels) -> None:
    theta, beta, transl = _hands(6, seed=6)
    rest = rest_root(mano.right, beta)
    T = _transform(7, 6)
    np.testing.assert_allclose(invert_transform(T), np.linalg.inv(T), atol=1e-14)
    np.testing.assert_allclose(invert_transform(T[0]), np.linalg.inv(T[0]), atol=1e-14)
    there = transform_mano(theta, transl, T, rest)
    theta_back, transl_back = transform_mano(*there, invert_transform(T), rest)
    np.testing.assert_allclose(transl_back, transl, atol=1e-14)
    turn = Rotation.from_rotvec(theta_back[:, :3]).inv() * Rotation.from_rotvec(theta[:, :3])
    assert turn.magnitude().max() < 1e-14


# --- sides ----------------------------------------------------------------------------------------


def test_a_mirrored_hand_is_the_other_side_of_the_fixed_model_only(mano: ManoModels) -> None:
    theta, beta, transl = _hands(5)
    vertices, joints = mano_forward(mano.right, theta, beta, transl)
    mirrored = mirror_mano(theta, transl)
    fixed = mano_forward(mano.left, mirrored[0], beta, mirrored[1])
    np.testing.assert_allclose(fixed[0], vertices * MIRROR, atol=1e-14)
    np.testing.assert_allclose(fixed[1], joints * MIRROR, atol=1e-14)
    unfixed, _ = mano_forward(mano.left_as_shipped, mirrored[0], beta, mirrored[1])
    assert np.linalg.norm(unfixed - vertices * MIRROR, axis=-1).max(-1).min() > 5e-3
    for back, start in zip(mirror_mano(*mirrored), (theta, transl), strict=True):
        np.testing.assert_array_equal(back, start)


# --- refit ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def separable(mano: ManoModels) -> tuple[ManoArrays, ManoArrays]:
    """Left models, as shipped and fixed, whose shapes move along x alone or not at all along x.

    Both then span the same hands: the refit is exact.
    """
    basis = mano.left.shapedirs.copy()
    basis[:, 1:, :5] = 0.0
    basis[:, 0, 5:] = 0.0
    shipped, fixed = with_other_x(basis), basis
    return replace(mano.left, shapedirs=shipped), replace(mano.left, shapedirs=fixed)


def _posed_distance(
    shipped: ManoArrays, fixed: ManoArrays, betas: np.ndarray, refit: LeftRefit, seed: int
) -> np.ndarray:
    """Largest distance of a vertex or joint of the same pose, per row."""
    theta, _, transl = _hands(len(betas), seed)
    before = mano_forward(shipped, theta, betas, transl)
    after = mano_forward(fixed, theta, refit.beta, transl + refit.transl_shift)
    np.testing.assert_allclose(after[1][:, 0], before[1][:, 0], atol=1e-12)  # the wrist stays
    points = np.concatenate(after, 1) - np.concatenate(before, 1)
    worst: np.ndarray = np.linalg.norm(points, axis=-1).max(-1)
    return worst


def test_the_mean_shape_needs_no_refit(mano: ManoModels) -> None:
    refit = refit_left_betas(mano.left_as_shipped, mano.left, np.zeros((2, 10)))
    for field in fields(refit):
        assert (getattr(refit, field.name) == 0).all(), field.name


def test_a_model_that_was_never_unfixed_keeps_its_betas(mano: ManoModels) -> None:
    _, betas, _ = _hands(3)
    refit = refit_left_betas(mano.left, mano.left, betas)
    np.testing.assert_allclose(refit.beta, betas, atol=1e-12)
    np.testing.assert_allclose(refit.transl_shift, 0, atol=1e-14)
    assert refit.any_pose_m.max() < 1e-13


def test_betas_along_x_change_sign_and_the_others_stay(
    separable: tuple[ManoArrays, ManoArrays],
) -> None:
    _, betas, _ = _hands(4)
    refit = refit_left_betas(*separable, betas)
    np.testing.assert_allclose(refit.beta, betas * np.repeat([-1.0, 1.0], 5), atol=1e-12)
    assert refit.any_pose_m.max() < 1e-13
    assert _posed_distance(*separable, betas, refit, seed=8).max() < 1e-12


def test_refit_is_the_least_squares_fit_of_the_rest_vertices(mano: ManoModels) -> None:
    _, betas, _ = _hands(2)
    shipped = mano.left_as_shipped
    refit = refit_left_betas(shipped, mano.left, betas)
    zeros = np.zeros((1, 48)), np.zeros((1, 3))

    def rest(arrays: ManoArrays, beta: np.ndarray) -> np.ndarray:
        vertices, joints = mano_forward(arrays, zeros[0], beta[None], zeros[1])
        about_wrist: np.ndarray = vertices[0] - joints[0, 0]
        return about_wrist

    def error(beta: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.asarray((rest(mano.left, beta) - goal).ravel())

    for i, beta in enumerate(betas):
        goal = rest(shipped, beta)
        oracle = least_squares(error, np.zeros(10), xtol=1e-14, args=(goal,))
        np.testing.assert_allclose(refit.beta[i], oracle.x, atol=1e-7)
        distance = np.linalg.norm(rest(mano.left, refit.beta[i]) - goal, axis=-1)
        np.testing.assert_allclose(refit.rms_m[i], np.sqrt((distance**2).mean()), rtol=1e-9)
        np.testing.assert_allclose(refit.max_m[i], distance.max(), rtol=1e-9)
        raw = np.linalg.norm(rest(mano.left, beta) - goal, axis=-1)
        assert refit.rms_m[i] < np.sqrt((raw**2).mean())


def test_no_pose_is_farther_off_than_the_reported_residual(mano: ManoModels) -> None:
    _, betas, _ = _hands(20, seed=9)
    betas *= np.linspace(0.01, 1, 20)[:, None]
    shipped = mano.left_as_shipped
    refit = refit_left_betas(shipped, mano.left, betas)
    worst = np.max(
        [_posed_distance(shipped, mano.left, betas, refit, seed) for seed in range(10)], axis=0
    )
    assert (worst <= refit.any_pose_m).all()
    assert (worst > 0.3 * refit.any_pose_m).all()  # and it says something
    assert (refit.rms_m < refit.max_m).all()
    assert (refit.max_m <= refit.any_pose_m).all()


def test_the_root_may_turn_freely_within_the_rest_residual(mano: ManoModels) -> None:
    _, betas, transl = _hands(6, seed=11)
    shipped = mano.left_as_shipped
    refit = refit_left_betas(shipped, mano.left, betas)
    theta = np.zeros((6, 48))
    theta[:, :3] = np.random.default_rng(12).normal(size=(6, 3))
    before, _ = mano_forward(shipped, theta, betas, transl)
    after, _ = mano_forward(mano.left, theta, refit.beta, transl + refit.transl_shift)
    distance = np.linalg.norm(after - before, axis=-1)
    np.testing.assert_allclose(distance.max(-1), refit.max_m, rtol=1e-9)
    np.testing.assert_allclose(np.sqrt((distance**2).mean(-1)), refit.rms_m, rtol=1e-9)
