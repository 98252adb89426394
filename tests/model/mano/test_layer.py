import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from smplx import MANOLayer
from smplx.utils import Struct
from torch import Tensor

from model.geometry.rotation import axis_angle_to_rotmat, mirror_rotmat
from model.hand import JointSet
from model.mano.files import MANO_ENV, ManoArrays, ManoModels, find_mano, load_mano, mano_forward
from model.mano.layer import ManoLayer, joint_regressors, regress_joints
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
def test_layer_matches_smplx_in_extreme_poses(mano: ManoModels, side: str) -> None:
    rng = np.random.default_rng(7)
    R = Rotation.random(64 * 16, rng=rng).as_matrix().reshape(64, 16, 3, 3)
    R[0], R[1] = np.diag([1.0, -1.0, -1.0]), np.eye(3)  # every joint by half a turn; none
    beta, transl = rng.uniform(-6, 6, (64, 10)), rng.uniform(-1, 1, (64, 3))
    args = [torch.from_numpy(part).float() for part in (R, beta, transl)]
    actual = ManoLayer(mano)(*args, torch.full((64,), side == "right"))
    expected = _smplx(getattr(mano, side), *args)
    for ours, theirs in zip(actual, expected, strict=True):
        # Metres; measured worst over 500 hands of either side 1.2e-7.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


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


def test_layer_is_one_graph_without_waiting_for_the_device(mano: ManoModels) -> None:
    args = (*_tensors(*_pose(2)), torch.tensor([True, False]))
    layer = ManoLayer(mano)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), layer(*args), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # inductor's own
def test_compiled_layer_has_the_values_and_gradients_of_the_eager_one(mano: ManoModels) -> None:
    args = [part.requires_grad_() for part in _tensors(*_pose(5))]
    is_right = torch.tensor([True, False, True, True, False])
    layer = ManoLayer(mano)
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(5, n, 3, generator=generator) for n in (778, 16)]
    results = []
    for fn in (layer, torch.compile(layer, fullgraph=True)):
        out = fn(*args, is_right)
        results.append((*out, *torch.autograd.grad(out, args, upstream)))
    for eager, compiled in zip(*results, strict=True):
        scale = float(eager.detach().abs().max())
        torch.testing.assert_close(compiled, eager, rtol=0, atol=1e-6 * scale)


def test_autocast_does_not_round_the_mesh(mano: ManoModels) -> None:
    args = (*_tensors(*_pose(2)), torch.tensor([True, False]))
    layer, regressors = ManoLayer(mano), joint_regressors(mano)
    sets = torch.ones(2, dtype=torch.int64)
    vertices, joints = layer(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast_vertices, cast_joints = layer(*args)
        cast_rest = layer.root_rest(args[1], args[3])
        cast_regressed = regress_joints(vertices, joints, regressors, sets, args[3])
    assert torch.equal(cast_vertices, vertices)
    assert torch.equal(cast_joints, joints)
    assert torch.equal(cast_rest, layer.root_rest(args[1], args[3]))
    regressed = regress_joints(vertices, joints, regressors, sets, args[3])
    assert torch.equal(cast_regressed, regressed)


def test_construction_is_silent_and_nothing_licensed_reaches_a_checkpoint(
    mano: ManoModels, capfd: pytest.CaptureFixture[str]
) -> None:
    layer = ManoLayer(mano)  # a warning would be an error here
    assert capfd.readouterr() == ("", "")
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == []
    assert layer.double().template.dtype == torch.float64


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


# --- joints ---------------------------------------------------------------------------------------

# What each dataset takes as fingertips (thumb, index, middle, ring, little), from its own tools.
TIPS = {
    JointSet.smplx: ((744, 320, 443, 554, 671),) * 2,
    JointSet.freihand: ((744, 320, 443, 555, 672),) * 2,
    JointSet.manopth: ((745, 317, 444, 556, 673), (745, 317, 445, 556, 673)),
    JointSet.ho3d: ((744, 333, 444, 555, 672),) * 2,
}
MANO21 = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
INTERHAND = (20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16)


@pytest.fixture(scope="module")
def with_interhand(mano: ManoModels) -> ManoModels:
    """Another regressor on each side, which published MANO has not, and InterHand2.6M's."""
    rng = np.random.default_rng(1)
    left = rng.random((16, 778)) ** 40
    return replace(
        mano,
        left=replace(mano.left, J_regressor=left / left.sum(1, keepdims=True)),
        interhand_regressor=(rng.random((21, 778)) / 389).astype(np.float32),
    )


def _joints_by_loops(
    models: ManoModels, joint_set: JointSet, slot: int, vertices: np.ndarray, skeleton: np.ndarray
) -> np.ndarray:
    def regressed(row: np.ndarray) -> Any:
        return sum(weight * vertex for weight, vertex in zip(row, vertices, strict=True))

    if joint_set is JointSet.interhand26m:
        assert models.interhand_regressor is not None
        return np.array([regressed(models.interhand_regressor[i]) for i in INTERHAND])
    joints = list(skeleton)
    if joint_set is JointSet.freihand:
        joints = [regressed(row) for row in (models.right, models.left)[slot].J_regressor]
    joints += [vertices[i] for i in TIPS[joint_set][slot]]
    return np.array([joints[i] for i in MANO21])


@pytest.mark.parametrize("joint_set", JointSet)
@pytest.mark.parametrize("slot", [0, 1], ids=["right", "left"])
def test_regressors_match_loops(with_interhand: ManoModels, joint_set: JointSet, slot: int) -> None:
    rng = np.random.default_rng(0)
    vertices, skeleton = (rng.normal([0, 0, 0.7], 0.05, (n, 3)) for n in (778, 16))
    expected = _joints_by_loops(with_interhand, joint_set, slot, vertices, skeleton)
    for dtype, atol in ((torch.float64, 1e-8), (torch.float32, 1e-6)):  # rows are float32
        actual = regress_joints(
            torch.from_numpy(vertices).to(dtype),
            torch.from_numpy(skeleton).to(dtype),
            joint_regressors(with_interhand),
            torch.tensor(int(joint_set)),
            torch.tensor(slot == 0),
        )
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=atol)


def test_a_batch_mixes_sets_and_sides(with_interhand: ManoModels) -> None:
    vertices, skeleton = torch.rand(2, 5, 778, 3), torch.rand(2, 5, 16, 3)
    sets = torch.tensor([[0, 1, 2, 3, 4], [3, 0, 4, 3, 1]])
    is_right = torch.tensor([[True, False, True, True, False], [False, True, True, True, False]])
    regressors = joint_regressors(with_interhand)
    joints = regress_joints(vertices, skeleton, regressors, sets, is_right)
    assert joints.shape == (2, 5, 21, 3)
    for index in np.ndindex(2, 5):
        expected = _joints_by_loops(
            with_interhand,
            JointSet(int(sets[index])),
            int(not is_right[index]),
            vertices[index].double().numpy(),
            skeleton[index].double().numpy(),
        )
        np.testing.assert_allclose(joints[index].numpy(), expected, rtol=0, atol=1e-6)


def test_picked_points_are_exact(mano: ManoModels) -> None:
    generator = torch.Generator().manual_seed(0)
    vertices, skeleton = (torch.randn(1, n, 3, generator=generator) for n in (778, 16))
    for joint_set in (JointSet.smplx, JointSet.manopth, JointSet.ho3d):
        for slot in (0, 1):
            joints = regress_joints(
                vertices,
                skeleton,
                joint_regressors(mano),
                torch.tensor([int(joint_set)]),
                torch.tensor([slot == 0]),
            )
            picked = torch.cat((skeleton[0], vertices[0, list(TIPS[joint_set][slot])]))
            assert torch.equal(joints[0], picked[list(MANO21)])


def test_a_mirrored_left_hand_keeps_the_joints_of_the_left_set(mano: ManoModels) -> None:
    theta, beta, transl = _pose(3)
    flip = torch.tensor([-1.0, 1.0, 1.0])
    left = (
        axis_angle_to_rotmat(torch.from_numpy(theta).reshape(-1, 16, 3)),
        torch.from_numpy(beta),
        torch.from_numpy(transl),
    )
    mirrored = (mirror_rotmat(left[0]), left[1], left[2] * flip)
    layer = ManoLayer(mano, dtype=torch.float64)
    no, yes = torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)
    regressors = joint_regressors(mano)
    vertices, skeleton = layer(*left, no)
    mirrored_vertices, mirrored_skeleton = layer(*mirrored, yes)
    for joint_set in (JointSet.smplx, JointSet.freihand, JointSet.manopth, JointSet.ho3d):
        sets = torch.full((3,), int(joint_set))
        recorded = regress_joints(vertices, skeleton, regressors, sets, no)
        moved = regress_joints(mirrored_vertices, mirrored_skeleton, regressors, sets, no)
        torch.testing.assert_close(moved, recorded * flip, rtol=0, atol=1e-7)
    sets = torch.full((3,), int(JointSet.manopth))
    as_right = regress_joints(mirrored_vertices, mirrored_skeleton, regressors, sets, yes)
    expected = regress_joints(vertices, skeleton, regressors, sets, no) * flip
    assert (as_right - expected).norm(dim=-1).max() > 1e-3


def test_a_missing_set_is_nan_and_does_not_poison_gradients(mano: ManoModels) -> None:
    assert mano.interhand_regressor is None
    vertices, skeleton = torch.rand(4, 778, 3), torch.rand(4, 16, 3)
    sets = torch.tensor([0, int(JointSet.interhand26m), 1, 4])
    vertices.requires_grad_()
    skeleton.requires_grad_()
    is_right = torch.tensor([True, True, False, False])
    joints = regress_joints(vertices, skeleton, joint_regressors(mano), sets, is_right)
    assert joints[1].isnan().all()
    rest = torch.tensor([0, 2, 3])
    assert joints[rest].isfinite().all()
    gradients = torch.autograd.grad(joints[rest].sum(), (vertices, skeleton))
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()


def test_gradients_of_the_joints(with_interhand: ManoModels) -> None:
    vertices = torch.rand(5, 778, 3, dtype=torch.float64, requires_grad=True)
    skeleton = torch.rand(5, 16, 3, dtype=torch.float64, requires_grad=True)
    regressors = joint_regressors(with_interhand)
    sets, is_right = torch.arange(5), torch.tensor([True, False, True, False, True])
    assert torch.autograd.gradcheck(
        lambda v, s: regress_joints(v, s, regressors, sets, is_right),
        (vertices, skeleton),
        fast_mode=True,
    )


def test_joints_are_one_graph(with_interhand: ManoModels) -> None:
    regressors = joint_regressors(with_interhand)
    args = (torch.rand(3, 778, 3), torch.rand(3, 16, 3))
    sets, is_right = torch.tensor([0, 3, 2]), torch.tensor([True, False, True])

    def joints(vertices: Tensor, skeleton: Tensor) -> Tensor:
        return regress_joints(vertices, skeleton, regressors, sets, is_right)

    compiled = torch.compile(joints, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*args), joints(*args), rtol=0, atol=0)


def test_regressors_follow_the_model_and_stay_out_of_checkpoints(mano: ManoModels) -> None:
    regressors = joint_regressors(mano)
    assert regressors.state_dict() == {}
    assert list(regressors.parameters()) == []
    assert {name for name, _ in regressors.named_buffers()} == {"tips", "rows", "point"}
    assert len(regressors.rows) == 16  # equal rows of the two sides are kept once


def test_interhand_regressor_is_read_and_checked(tmp_path: Path) -> None:
    folder = _write(tmp_path, *random_mano(0))
    assert load_mano(folder).interhand_regressor is None
    rows = np.random.default_rng(0).random((21, 778)).astype(np.float32)
    np.save(folder / "J_regressor_mano_ih26m.npy", rows)
    np.testing.assert_array_equal(load_mano(folder).interhand_regressor, rows)
    np.save(folder / "J_regressor_mano_ih26m.npy", rows[:20])
    with pytest.raises(ValueError, match=r"expected shape \(21, 778\), got \(20, 778\)"):
        load_mano(folder)
