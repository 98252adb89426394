"""The house form against each dataset's own decoding, written out with smplx's skinning.

Every dataset's hand is decoded twice: as its toolkit does, moved to the OpenCV camera point by
point, and from the house form with our decoder. Vertices and the dataset's 21 joints must agree.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from smplx.lbs import lbs

from model.hand import LEFT, RIGHT, JointSet
from model.mano.files import ManoArrays, ManoModels, load_mano, mano_forward
from model.mano.layer import joint_regressors, regress_joints
from preprocess.labels.canonical import (
    HandParameters,
    arctic_hands,
    arctic_objects,
    dexycb_hands,
    dexycb_objects,
    fill_hand,
    fill_hands,
    freihand_hands,
    ho3d_hands,
    ho3d_objects,
    interhand26m_hands,
    opencv_from_opengl,
)
from preprocess.records import empty_labels, stack_labels
from tests.model.conftest import MIRROR, random_mano

AGREE_M = 1e-6
NUM = 4
SLOTS = pytest.mark.parametrize("slot", [RIGHT, LEFT], ids=["right", "left"])
PARENTS = torch.tensor([-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14])
MANO21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
INTERHAND = (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16)
MANOPTH_TIPS = ((745, 317, 444, 556, 673), (745, 317, 445, 556, 673))
SMPLX_TIPS = (744, 320, 443, 554, 671)
HO3D_TIPS = (744, 333, 444, 555, 672)
FREIHAND_TIPS = (744, 320, 443, 555, 672)


def _models(folder: Path, *, separable: bool) -> ManoModels:
    """Write random models, the left one as shipped, and load them.

    In separable ones each shape moves along x alone or not at all along x, so that the fixed left
    model spans what the one as shipped spans, and left hands can be compared without a residual.
    """
    right, left = random_mano(0)
    if separable:
        right["shapedirs"][:, 1:, :5] = 0.0
        right["shapedirs"][:, 0, 5:] = 0.0
    left["shapedirs"] = right["shapedirs"]
    np.savez(folder / "MANO_RIGHT.npz", allow_pickle=False, **right)
    np.savez(folder / "MANO_LEFT.npz", allow_pickle=False, **left)
    rows = np.random.default_rng(1).random((21, 778)) / 389
    np.save(folder / "J_regressor_mano_ih26m.npy", rows.astype(np.float32))
    models = load_mano(folder)
    assert models.left_was_unfixed
    return models


@pytest.fixture(scope="module")
def mano(tmp_path_factory: pytest.TempPathFactory) -> ManoModels:
    return _models(tmp_path_factory.mktemp("mano"), separable=True)


@pytest.fixture(scope="module")
def real_like(tmp_path_factory: pytest.TempPathFactory) -> ManoModels:
    return _models(tmp_path_factory.mktemp("mano"), separable=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    vertices: np.ndarray
    joints: np.ndarray
    """The dataset's 21, standard order."""


def _own(models: ManoModels, slot: int, *, fixed: bool) -> ManoArrays:
    if slot == RIGHT:
        return models.right
    return models.left if fixed else models.left_as_shipped


def _skin(
    arrays: ManoArrays, angles: np.ndarray, beta: np.ndarray, transl: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and skeleton of absolute angles [n, 48], by smplx in float64."""

    def tensor(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float64))

    R = Rotation.from_rotvec(angles.reshape(-1, 3)).as_matrix().reshape(-1, 16, 3, 3)
    vertices, joints = lbs(
        tensor(beta),
        tensor(R),
        tensor(arrays.v_template),
        tensor(arrays.shapedirs),
        tensor(arrays.posedirs.reshape(-1, 135).T),
        tensor(arrays.J_regressor),
        PARENTS,
        tensor(arrays.weights),
        pose2rot=False,
    )
    return vertices.numpy() + transl[:, None], joints.numpy() + transl[:, None]


def _mano21(skeleton: np.ndarray, vertices: np.ndarray, tips: tuple[int, ...]) -> np.ndarray:
    joints: np.ndarray = np.concatenate((skeleton, vertices[:, list(tips)]), 1)[:, list(MANO21)]
    return joints


def _ours(models: ManoModels, slot: int, hands: HandParameters, joint_set: JointSet) -> Decoded:
    arrays = models.left if slot == LEFT else models.right
    vertices, skeleton = mano_forward(arrays, hands.theta, hands.beta, hands.transl)
    num = len(vertices)
    joints = regress_joints(
        torch.from_numpy(vertices),
        torch.from_numpy(skeleton),
        joint_regressors(models),
        torch.full((num,), int(joint_set)),
        torch.full((num,), slot == RIGHT),
    )
    return Decoded(vertices=vertices, joints=joints.numpy())


def _assert_same(actual: Decoded, expected: Decoded, atol: float = AGREE_M) -> None:
    np.testing.assert_allclose(actual.vertices, expected.vertices, rtol=0, atol=atol)
    np.testing.assert_allclose(actual.joints, expected.joints, rtol=0, atol=atol)


def _draw(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray, np.ndarray]:
    """Return a generator, angles [n, 48], betas [n, 10] and translations [n, 3]."""
    rng = np.random.default_rng(seed)
    angles, betas = rng.normal(0, 0.6, (NUM, 48)), rng.normal(0, 1.5, (NUM, 10))
    return rng, angles, betas, rng.normal([0.1, -0.05, 0.8], 0.1, (NUM, 3))


def _world_to_cam(rng: np.random.Generator) -> np.ndarray:
    T = np.tile(np.eye(4), (NUM, 1, 1))
    T[:, :3, :3] = Rotation.random(NUM, rng=rng).as_matrix()
    T[:, :3, 3] = rng.normal(0, 0.5, (NUM, 3))
    return T


# --- DexYCB ---------------------------------------------------------------------------------------


def _dexycb(models: ManoModels, slot: int, pose_m: np.ndarray, betas: np.ndarray) -> Decoded:
    """manopth with 45 PCA coefficients and the left model as shipped; camera frame already."""
    own = _own(models, slot, fixed=False)
    angles = pose_m[:, :48].copy()
    for i, row in enumerate(pose_m):
        angles[i, 3:] = own.hands_mean + sum(
            c * component for c, component in zip(row[3:48], own.hands_components, strict=True)
        )
    vertices, skeleton = _skin(own, angles, betas, pose_m[:, 48:])
    return Decoded(vertices=vertices, joints=_mano21(skeleton, vertices, MANOPTH_TIPS[slot]))


@SLOTS
def test_dexycb_hands(mano: ManoModels, slot: int) -> None:
    _, angles, betas, transl = _draw(0)
    betas[1] = betas[0]  # the same subject
    pose_m = np.concatenate((angles, transl), 1)
    hands = dexycb_hands(mano, slot, pose_m, betas)
    _assert_same(_ours(mano, slot, hands, JointSet.manopth), _dexycb(mano, slot, pose_m, betas))
    np.testing.assert_array_equal(hands.beta_raw, betas)
    assert hands.refit_error_m.max() < 1e-12
    one = dexycb_hands(mano, slot, pose_m, betas[:1])
    np.testing.assert_allclose(one.transl[:2], hands.transl[:2], atol=1e-15)


def test_dexycb_hands_as_they_lie_in_the_file(mano: ManoModels) -> None:
    _, angles, betas, transl = _draw(1)
    pose_m = np.concatenate((angles, transl), 1).astype(np.float32)
    pose_m[2] = 0.0  # no hand
    hands = dexycb_hands(mano, LEFT, pose_m, betas[:1].astype(np.float32))
    assert np.isnan(hands.theta[2]).all()
    assert np.isnan(hands.transl[2]).all()
    assert np.isnan(hands.refit_error_m[2])
    seen = [0, 1, 3]
    assert np.isfinite(hands.theta[seen]).all()
    assert np.isfinite(hands.refit_error_m[seen]).all()
    assert {hands.theta.dtype, hands.beta.dtype, hands.transl.dtype} == {np.dtype(np.float64)}


@SLOTS
def test_the_refit_of_left_hands_is_off_by_what_it_states(
    real_like: ManoModels, slot: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "preprocess.labels.canonical._CHUNK", 3
    )  # the rows are decoded in two parts
    rng, angles, betas, transl = _draw(2)
    betas *= 0.1
    pose_m = np.concatenate((angles, transl), 1)
    T = _world_to_cam(rng)
    dexycb = dexycb_hands(real_like, slot, pose_m, betas)
    arctic = arctic_hands(real_like, slot, angles[:, :3], angles[:, 3:], transl, betas, T)
    for hands, expected, joint_set in (
        (dexycb, _dexycb(real_like, slot, pose_m, betas), JointSet.manopth),
        (arctic, _arctic(real_like, slot, angles, transl, betas, T), JointSet.smplx),
    ):
        actual = _ours(real_like, slot, hands, joint_set)
        off = np.linalg.norm(actual.vertices - expected.vertices, axis=-1).max(-1)
        np.testing.assert_allclose(off, hands.refit_error_m, rtol=0, atol=1e-9)
        np.testing.assert_allclose(actual.joints[:, 0], expected.joints[:, 0], atol=1e-12)
        wrist = hands.root_rest + hands.transl
        np.testing.assert_allclose(wrist, expected.joints[:, 0], atol=1e-12)
        np.testing.assert_array_equal(hands.beta_raw, betas)
        if slot == RIGHT:
            np.testing.assert_array_equal(hands.beta, betas)
            assert (hands.refit_error_m == 0).all()
        else:
            assert (hands.refit_error_m > 5e-4).all()


def test_dexycb_objects() -> None:
    pose_y = np.random.default_rng(3).normal(size=(2, 3, 3, 4)).astype(np.float32)
    pose_y[1, 2] = 0.0
    poses = dexycb_objects(pose_y)
    assert np.isnan(poses[1, 2]).all()
    np.testing.assert_array_equal(poses[0], pose_y[0])
    np.testing.assert_array_equal(poses[1, :2], pose_y[1, :2])


# --- FreiHAND -------------------------------------------------------------------------------------


def test_freihand_hands(mano: ManoModels) -> None:
    rng, angles, betas, _ = _draw(4)
    K = np.tile(np.array([[480.0, 0, 112], [0, 470, 110], [0, 0, 1]]), (NUM, 1, 1))
    uv, scale = rng.normal(112, 20, (NUM, 2)), rng.uniform(400, 900, (NUM, 1))
    parameters = np.concatenate((angles, betas, uv, scale), 1)

    # As in FreiHAND's model.py: mean added, decoded at the origin, root placed afterwards.
    own = mano.right
    absolute = np.concatenate((angles[:, :3], angles[:, 3:] + own.hands_mean), 1)
    vertices, _ = _skin(own, absolute, betas, np.zeros((NUM, 3)))
    joints = _mano21(own.J_regressor @ vertices, vertices, FREIHAND_TIPS)
    for i in range(NUM):
        f = 0.5 * (K[i, 0, 0] + K[i, 1, 1])
        xyz_root = np.array([uv[i, 0] - K[i, 0, 2], uv[i, 1] - K[i, 1, 2], f]) / scale[i]
        move = xyz_root - joints[i, 9]
        vertices[i] += move
        joints[i] += move
        np.testing.assert_allclose(joints[i, 9], xyz_root)

    hands, check = freihand_hands(mano, K, parameters, vertices)
    expected = Decoded(vertices=vertices, joints=joints)
    _assert_same(_ours(mano, RIGHT, hands, JointSet.freihand), expected)
    assert check.max() < AGREE_M
    _, none = freihand_hands(mano, K, parameters)
    assert np.isnan(none).all()
    _, off = freihand_hands(mano, K, parameters, vertices + np.array([0, 0.002, 0]))
    np.testing.assert_allclose(off, 0.002, rtol=1e-6)


# --- HO-3D ----------------------------------------------------------------------------------------


def test_ho3d_hands(mano: ManoModels) -> None:
    _, angles, betas, transl = _draw(5)
    transl *= [1, 1, -1]  # OpenGL: in front is negative
    vertices, skeleton = _skin(mano.right, angles, betas, transl)
    joints = np.concatenate((skeleton, vertices[:, list(HO3D_TIPS)]), 1)  # handJoints3D
    flip = np.array([1.0, -1.0, -1.0])
    expected = Decoded(vertices=vertices * flip, joints=joints[:, list(MANO21)] * flip)
    hands = ho3d_hands(mano, angles, transl, betas)
    _assert_same(_ours(mano, RIGHT, hands, JointSet.ho3d), expected)
    np.testing.assert_array_equal(hands.theta[:, 3:], angles[:, 3:])
    np.testing.assert_array_equal(opencv_from_opengl(joints), joints * flip)


def test_ho3d_objects() -> None:
    rng = np.random.default_rng(6)
    rot, trans, points = rng.normal(size=(NUM, 3)), rng.normal(size=(NUM, 3)), rng.normal(size=3)
    poses = ho3d_objects(rot, trans)
    for i in range(NUM):
        opengl = Rotation.from_rotvec(rot[i]).as_matrix() @ points + trans[i]
        moved = poses[i, :, :3] @ points + poses[i, :, 3]
        np.testing.assert_allclose(moved, opengl * [1, -1, -1], atol=1e-12)
        assert np.linalg.det(poses[i, :, :3]) > 0


# --- ARCTIC ---------------------------------------------------------------------------------------


def _arctic(
    models: ManoModels,
    slot: int,
    angles: np.ndarray,
    transl: np.ndarray,
    betas: np.ndarray,
    T: np.ndarray,
) -> Decoded:
    """smplx.MANO with the mean added and the left model as shipped, in the world; then R p + T."""
    own = _own(models, slot, fixed=False)
    absolute = np.concatenate((angles[:, :3], angles[:, 3:] + own.hands_mean), 1)
    vertices, skeleton = _skin(own, absolute, betas, transl)
    joints = _mano21(skeleton, vertices, SMPLX_TIPS)

    def to_camera(points: np.ndarray) -> np.ndarray:
        return np.stack([p @ t[:3, :3].T + t[:3, 3] for p, t in zip(points, T, strict=True)])

    return Decoded(vertices=to_camera(vertices), joints=to_camera(joints))


@SLOTS
def test_arctic_hands(mano: ManoModels, slot: int) -> None:
    rng, angles, betas, transl = _draw(7)
    T = _world_to_cam(rng)
    betas = np.tile(betas[:1], (NUM, 1))  # one shape per subject and hand
    hands = arctic_hands(mano, slot, angles[:, :3], angles[:, 3:], transl, betas[:1], T)
    expected = _arctic(mano, slot, angles, transl, betas, T)
    _assert_same(_ours(mano, slot, hands, JointSet.smplx), expected)
    # One camera serves all frames.
    still = arctic_hands(mano, slot, angles[:, :3], angles[:, 3:], transl, betas[:1], T[:1])
    expected = _arctic(mano, slot, angles, transl, betas, np.tile(T[:1], (NUM, 1, 1)))
    _assert_same(_ours(mano, slot, still, JointSet.smplx), expected)


def test_arctic_objects() -> None:
    rng = np.random.default_rng(8)
    rows = np.concatenate((rng.normal(size=(NUM, 4)), rng.normal(0, 300, (NUM, 3))), 1)
    rows = rows.astype(np.float32)
    T = _world_to_cam(rng)
    point = np.array([0.03, -0.02, 0.05])
    poses, angles = arctic_objects(rows, T)
    np.testing.assert_array_equal(angles, rows[:, 0])
    for i in range(NUM):
        world = Rotation.from_rotvec(rows[i, 1:4]).as_matrix() @ point + rows[i, 4:] / 1000
        camera = T[i, :3, :3] @ world + T[i, :3, 3]
        np.testing.assert_allclose(poses[i, :, :3] @ point + poses[i, :, 3], camera, atol=1e-6)


# --- InterHand2.6M --------------------------------------------------------------------------------


@SLOTS
def test_interhand26m_hands(real_like: ManoModels, slot: int) -> None:
    rng, angles, betas, transl = _draw(9)
    camrot, campos = _world_to_cam(rng)[:, :3, :3], rng.normal(0, 900, (NUM, 3))
    # As in MANO_render/render.py: fixed left model, millimetres, R v + t with t = -R campos.
    own = _own(real_like, slot, fixed=True)
    absolute = np.concatenate((angles[:, :3], angles[:, 3:] + own.hands_mean), 1)
    world, _ = _skin(own, absolute, betas, transl)
    vertices = np.stack(
        [(1000 * v - c) @ R.T / 1000 for v, c, R in zip(world, campos, camrot, strict=True)]
    )
    assert real_like.interhand_regressor is not None
    joints = (real_like.interhand_regressor.astype(np.float64) @ vertices)[:, list(INTERHAND)]
    hands = interhand26m_hands(real_like, slot, angles, betas, transl, camrot, campos)
    actual = _ours(real_like, slot, hands, JointSet.interhand26m)
    _assert_same(actual, Decoded(vertices=vertices, joints=joints))
    np.testing.assert_array_equal(hands.beta, betas)
    assert (hands.refit_error_m == 0).all()


# --- rows -----------------------------------------------------------------------------------------


PARAMETERS = ("theta", "beta", "beta_raw", "transl", "root_rest", "refit_error_m")


def test_fill_hand_writes_one_slot(mano: ManoModels) -> None:
    _, angles, betas, transl = _draw(10)
    hands = dexycb_hands(mano, LEFT, np.concatenate((angles, transl), 1), betas)
    labels = empty_labels()
    fill_hand(labels, LEFT, hands, 2)
    for name in PARAMETERS:
        np.testing.assert_array_equal(getattr(labels, name)[LEFT], getattr(hands, name)[2])
        assert np.isnan(getattr(labels, name)[RIGHT]).all()
    expected = mano.left.J_regressor[0] @ (
        mano.left.v_template + mano.left.shapedirs @ hands.beta[2]
    )
    np.testing.assert_allclose(labels.root_rest[LEFT], expected, atol=1e-12)


def test_fill_hands_writes_one_slot_of_some_rows_in_their_order(mano: ManoModels) -> None:
    _, angles, betas, transl = _draw(12)
    hands = dexycb_hands(mano, LEFT, np.concatenate((angles, transl), 1), betas)
    stack = stack_labels([empty_labels()] * (NUM + 2))
    rows = np.array([5, 0, 3, 2])
    fill_hands(stack, rows, LEFT, hands)
    for name in PARAMETERS:
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(getattr(stack, name)[row, LEFT], getattr(hands, name)[i])
        assert np.isnan(getattr(stack, name)[[1, 4]]).all()
        assert np.isnan(getattr(stack, name)[:, RIGHT]).all()


def test_left_hands_as_shipped_are_not_those_of_the_fixed_model(real_like: ManoModels) -> None:
    """The reason for the refit: without it a DexYCB left hand is millimetres off."""
    _, angles, betas, transl = _draw(11)
    pose_m = np.concatenate((angles, transl), 1)
    hands = dexycb_hands(real_like, LEFT, pose_m, betas)
    naive = replace(hands, beta=betas, transl=transl)
    off = _ours(real_like, LEFT, naive, JointSet.manopth).vertices
    off = off - _dexycb(real_like, LEFT, pose_m, betas).vertices
    assert np.linalg.norm(off, axis=-1).mean() > 2e-3
    assert not np.allclose(real_like.left.shapedirs, real_like.right.shapedirs * MIRROR[0])
