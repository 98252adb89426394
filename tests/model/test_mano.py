import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from smplx import MANOLayer
from smplx.utils import Struct
from torch import Tensor

from model.geometry.rotation import axis_angle_to_rotmat
from model.hand import STANDARD_FROM_INTERHAND, STANDARD_FROM_MANO21, TIP_VERTICES, JointSet
from model.mano import ManoLayer, joint_regressors, regress_joints
from model.mano_files import MANO_ENV, ManoArrays, ManoModels, find_mano, load_mano, mano_forward
from tests.model.conftest import random_mano


def _pose(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = rng.normal(0, 0.6, (num, 48))
    return theta, rng.normal(0, 1, (num, 10)), rng.normal([0, 0, 0.6], 0.2, (num, 3))


def _tensors(theta: np.ndarray, beta: np.ndarray, transl: np.ndarray) -> list[Tensor]:
    aa = torch.from_numpy(theta).reshape(-1, 16, 3)
    parts = (axis_angle_to_rotmat(aa), torch.from_numpy(beta), torch.from_numpy(transl))
    return [part.float() for part in parts]


def _smplx(arrays: ManoArrays, R: Tensor, beta: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
    """Decode with smplx itself, built here from the arrays."""
    names = ManoArrays.__dataclass_fields__
    struct = Struct(**{name: getattr(arrays, name) for name in names})
    layer = MANOLayer(model_path="", data_struct=struct)
    out = layer(betas=beta, global_orient=R[:, :1], hand_pose=R[:, 1:], transl=transl)
    return out.vertices, out.joints


def test_layer_matches_smplx_for_a_batch_of_both_sides(mano: ManoModels) -> None:
    args = _tensors(*_pose(6))
    is_right = torch.tensor([True, False, False, True, True, False])
    vertices, joints = ManoLayer(mano)(*args, is_right)
    for arrays, rows in ((mano.right, is_right), (mano.left, ~is_right)):
        expected_vertices, expected_joints = _smplx(arrays, *args)
        # float32 at a distance of 1 m; measured worst 1.2e-7.
        torch.testing.assert_close(vertices[rows], expected_vertices[rows], rtol=0, atol=1e-6)
        torch.testing.assert_close(joints[rows], expected_joints[rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_numpy_twin_matches_smplx(mano: ManoModels, side: str) -> None:
    arrays = getattr(mano, side)
    theta, beta, transl = _pose(5, seed=1)
    vertices, joints = mano_forward(arrays, theta, beta, transl)
    assert vertices.dtype == joints.dtype == np.float64
    expected_vertices, expected_joints = _smplx(arrays, *_tensors(theta, beta, transl))
    np.testing.assert_allclose(vertices, expected_vertices.numpy(), atol=1e-6)
    np.testing.assert_allclose(joints, expected_joints.numpy(), atol=1e-6)


def test_layer_matches_numpy_twin_in_float64(mano: ManoModels) -> None:
    theta, beta, transl = _pose(4, seed=2)
    layer = ManoLayer(mano, dtype=torch.float64)
    R = axis_angle_to_rotmat(torch.from_numpy(theta).reshape(-1, 16, 3))
    beta_t, transl_t = torch.from_numpy(beta), torch.from_numpy(transl)
    for arrays, side in ((mano.right, True), (mano.left, False)):
        vertices, joints = layer(R, beta_t, transl_t, torch.full((4,), side))
        expected_vertices, expected_joints = mano_forward(arrays, theta, beta, transl)
        # smplx rounds the arrays to float32: 6e-8 of 0.2 m.
        np.testing.assert_allclose(vertices.numpy(), expected_vertices, atol=1e-7)
        np.testing.assert_allclose(joints.numpy(), expected_joints, atol=1e-7)


def test_right_only_and_missing_translation(mano: ManoModels) -> None:
    R, beta, transl = _tensors(*_pose(3))
    both, right = ManoLayer(mano), ManoLayer(mano, right_only=True)
    yes = torch.ones(3, dtype=torch.bool)
    for actual, expected in zip(
        right(R, beta, transl, yes), both(R, beta, transl, yes), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-7)
    vertices, joints = right(R, beta, None, yes)
    moved_vertices, moved_joints = right(R, beta, transl, yes)
    assert torch.equal(vertices + transl[:, None], moved_vertices)
    assert torch.equal(joints + transl[:, None], moved_joints)


def test_wrist_is_root_rest_plus_translation_whatever_the_pose(mano: ManoModels) -> None:
    R, beta, transl = _tensors(*_pose(4))
    is_right = torch.tensor([True, False, True, False])
    layer = ManoLayer(mano)
    _, joints = layer(R, beta, transl, is_right)
    torch.testing.assert_close(layer.root_rest(beta, is_right) + transl, joints[:, 0])
    for i, arrays in enumerate((mano.right, mano.left)):
        shaped = arrays.v_template + arrays.shapedirs @ beta[i].double().numpy()
        expected = arrays.J_regressor[0] @ shaped
        np.testing.assert_allclose(layer.root_rest(beta, is_right)[i], expected, atol=1e-6)


def test_gradients_through_pose_shape_and_translation(mano: ManoModels) -> None:
    layer = ManoLayer(mano, dtype=torch.float64)
    theta, beta, transl = (torch.from_numpy(x).requires_grad_() for x in _pose(2))
    is_right = torch.tensor([True, False])

    def decode(theta: Tensor, beta: Tensor, transl: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = layer(
            axis_angle_to_rotmat(theta.reshape(2, 16, 3)), beta, transl, is_right
        )
        return result

    assert torch.autograd.gradcheck(decode, (theta, beta, transl), fast_mode=True)


@pytest.mark.skipif(
    hasattr(ManoLayer.forward, "__wrapped__"), reason="the shape-checking hook cannot be traced"
)
def test_layer_is_one_graph_without_waiting_for_the_device(mano: ManoModels) -> None:
    args = (*_tensors(*_pose(2)), torch.tensor([True, False]))
    layer = ManoLayer(mano)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), layer(*args), rtol=0, atol=0)


def test_autocast_does_not_round_the_mesh(mano: ManoModels) -> None:
    args = (*_tensors(*_pose(2)), torch.tensor([True, False]))
    layer, regressors = ManoLayer(mano), joint_regressors(mano)
    sets = torch.zeros(2, dtype=torch.int64)
    vertices, joints = layer(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_vertices, cast_joints = layer(*args)
        cast_rest = layer.root_rest(args[1], args[3])
        cast_regressed = regress_joints(vertices, regressors, sets)
    assert torch.equal(cast_vertices, vertices)
    assert torch.equal(cast_joints, joints)
    assert torch.equal(cast_rest, layer.root_rest(args[1], args[3]))
    assert torch.equal(cast_regressed, regress_joints(vertices, regressors, sets))


def test_construction_is_silent_and_nothing_licensed_reaches_a_checkpoint(
    mano: ManoModels, capfd: pytest.CaptureFixture[str]
) -> None:
    layer = ManoLayer(mano)  # a warning would be an error here
    assert capfd.readouterr() == ("", "")
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == []
    assert layer.double().v_template.dtype == torch.float64


def _write(folder: Path, right: dict[str, np.ndarray], left: dict[str, np.ndarray]) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "MANO_RIGHT.npz", allow_pickle=False, **right)
    np.savez(folder / "MANO_LEFT.npz", allow_pickle=False, **left)
    return folder


def test_left_is_fixed_once_and_the_hash_names_the_fixed_model(tmp_path: Path) -> None:
    right, left = random_mano(3)
    published = dict(left, shapedirs=left["shapedirs"] * np.array([-1.0, 1, 1])[:, None])
    fixed = load_mano(_write(tmp_path / "fixed", right, left))
    unfixed = load_mano(_write(tmp_path / "published", right, published))
    assert (fixed.left_was_unfixed, unfixed.left_was_unfixed) == (False, True)
    for models in (fixed, unfixed):
        np.testing.assert_array_equal(models.left.shapedirs, left["shapedirs"])
        np.testing.assert_array_equal(models.right.shapedirs, right["shapedirs"])
    assert fixed.sha256 == unfixed.sha256
    assert re.fullmatch("[0-9a-f]{64}", fixed.sha256)

    right["v_template"] = right["v_template"] + 1e-9
    assert load_mano(_write(tmp_path / "other", right, left)).sha256 != fixed.sha256


def test_sources_of_the_folder_and_their_precedence(
    mano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MANO_ENV, raising=False)
    assert find_mano(None) is None
    assert find_mano("") is None
    assert find_mano(str(mano_folder)) == mano_folder
    monkeypatch.setenv(MANO_ENV, str(mano_folder))
    assert find_mano(None) == mano_folder
    with pytest.raises(FileNotFoundError, match=r"^mano=.* lacks MANO_RIGHT.npz and MANO_LEFT.npz"):
        find_mano(str(tmp_path))
    (tmp_path / "MANO_RIGHT.npz").touch()
    monkeypatch.setenv(MANO_ENV, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"^HANDLOOM_MANO=.* lacks MANO_LEFT.npz; expected"):
        find_mano(None)


def test_all_problems_of_a_file_come_in_one_error(tmp_path: Path) -> None:
    right, left = random_mano(0)
    del left["weights"]
    left["v_template"] = left["v_template"][:700]
    folder = _write(tmp_path, right, left)
    expected = r"MANO_LEFT.npz is no MANO model: v_template has shape \(700, 3\).*; no weights"
    with pytest.raises(ValueError, match=expected):
        load_mano(folder)
    right["kintree_table"] = np.zeros((2, 16), np.uint32)
    with pytest.raises(ValueError, match=r"MANO_RIGHT.npz .*kintree_table is not MANO's"):
        load_mano(_write(tmp_path, right, left))


def test_regressors_match_loops(mano: ManoModels) -> None:
    vertices = np.random.default_rng(0).normal([0, 0, 0.7], 0.05, (778, 3))
    interhand = np.random.default_rng(1).random((21, 778)).astype(np.float32) / 389
    stacked = joint_regressors(replace(mano, interhand_regressor=interhand))
    assert stacked.shape == (len(JointSet), 21, 778)
    assert stacked.dtype == torch.float32

    def regressed(row: np.ndarray) -> Any:
        return sum(weight * vertex for weight, vertex in zip(row, vertices, strict=True))

    skeleton = [regressed(row) for row in mano.right.J_regressor]
    expected = {
        JointSet.interhand26m: [regressed(interhand[i]) for i in STANDARD_FROM_INTERHAND],
    }
    for joint_set in (JointSet.smplx, JointSet.freihand):
        mano21 = skeleton + [vertices[i] for i in TIP_VERTICES[joint_set.name].right]
        expected[joint_set] = [mano21[i] for i in STANDARD_FROM_MANO21]
    for joint_set, joints in expected.items():
        actual = regress_joints(torch.from_numpy(vertices), stacked, torch.tensor(int(joint_set)))
        np.testing.assert_allclose(actual.numpy(), np.array(joints), atol=1e-6)


def test_joint_sets_are_picked_per_sample_and_a_missing_one_stays_missing(mano: ManoModels) -> None:
    regressors = joint_regressors(mano)
    vertices = torch.rand(2, 3, 778, 3).requires_grad_()
    sets = torch.tensor([[0, 1, 2], [1, 0, 0]])
    joints = regress_joints(vertices, regressors, sets)
    assert joints.shape == (2, 3, 21, 3)
    for index in np.ndindex(2, 3):
        alone = regress_joints(vertices[index], regressors, sets[index])
        torch.testing.assert_close(joints[index], alone, equal_nan=True)
    assert joints[0, 2].isnan().all()
    rest = torch.ones(2, 3, dtype=torch.bool)
    rest[0, 2] = False
    assert joints[rest].isfinite().all()
    (gradient,) = torch.autograd.grad(joints[rest].sum(), vertices)
    assert gradient[rest].isfinite().all()


def test_interhand_regressor_is_read_and_checked(tmp_path: Path) -> None:
    folder = _write(tmp_path, *random_mano(0))
    assert load_mano(folder).interhand_regressor is None
    rows = np.random.default_rng(0).random((21, 778)).astype(np.float32)
    np.save(folder / "J_regressor_mano_ih26m.npy", rows)
    np.testing.assert_array_equal(load_mano(folder).interhand_regressor, rows)
    np.save(folder / "J_regressor_mano_ih26m.npy", rows[:20])
    with pytest.raises(ValueError, match=r"expected shape \(21, 778\), got \(20, 778\)"):
        load_mano(folder)
