"""Labels move exactly as the pixels do."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.geometry.camera import project
from model.geometry.crop import apply
from model.hand import JointSet
from model.mano.files import ManoModels
from model.mano.layer import ManoLayer
from pipeline.batch import Batch
from pipeline.config import ViewConfig, ViewKind
from pipeline.gather.augment import AugmentParams, input_affine
from pipeline.labels.table import LabelTable, load_labels, move_labels
from pipeline.store.reader import Store, open_store
from pipeline.view import ViewTable, build_view
from tests.model.conftest import mano, mano_folder  # noqa: F401  (fixtures)
from tests.pipeline.hand_store import hand_store
from tests.strategies import cameras, points_ahead, squares

F64 = torch.float64
INPUT_PX = 224


def params(angle: float, scale: float, shift: tuple[float, float], num: int) -> AugmentParams:
    return AugmentParams(
        rotation_rad=torch.full((num,), angle, dtype=F64),
        scale=torch.full((num,), scale, dtype=F64),
        shift=torch.tensor([shift] * num, dtype=F64),
        colour=torch.zeros(num, 3, 4),
        erase=torch.zeros(num, 4, dtype=F64),
    )


def table(joints: Tensor, K: Tensor, **changes: Tensor) -> LabelTable:
    """Labels of one sample with one hand; everything but the joints is missing."""
    missing = LabelTable(
        K=K[None],
        joints_3d=joints[None, None],
        joint_valid=torch.ones(1, 1, len(joints), dtype=torch.bool),
        theta_rotmat=torch.full((1, 1, 16, 3, 3), math.nan),
        beta=torch.full((1, 1, 10), math.nan),
        transl=torch.full((1, 1, 3), math.nan),
        root_rest=torch.full((1, 1, 3), math.nan),
        has_joints=torch.ones(1, 1, dtype=torch.bool),
        has_mano=torch.zeros(1, 1, dtype=torch.bool),
        has_beta=torch.zeros(1, 1, dtype=torch.bool),
        is_right=torch.ones(1, 1, dtype=torch.bool),
        object_id=torch.full((1,), -1),
        object_pose=torch.full((1, 3, 4), math.nan),
        object_arti_rad=torch.full((1,), math.nan),
        has_object=torch.zeros(1, dtype=torch.bool),
        joint_set=torch.full((1,), int(JointSet.freihand)),
    )
    return dataclasses.replace(missing, **changes)


def view_of(center: Tensor, size: Tensor) -> ViewTable:
    return ViewTable(
        row=torch.tensor([3]),
        sample_id=torch.tensor([7]),
        center_px=center[None],
        size_px=size[None],
        A_cache_from_frame=torch.zeros(1, 2, 3, dtype=F64),
    )


def moved(
    labels: LabelTable, view: ViewTable, how: AugmentParams, *, mirror: bool, dtype: torch.dtype
) -> tuple[Batch, Tensor]:
    mirrored = torch.tensor([mirror])
    A = input_affine(how, view.center_px, view.size_px, mirrored, INPUT_PX)
    batch = move_labels(labels, view, A, how.rotation_rad, mirrored, dtype=dtype)
    return batch, A


@given(
    points_ahead(num=21),
    cameras(),
    squares(),
    st.floats(-math.pi, math.pi),
    st.floats(0.5, 1.5),
    st.tuples(st.floats(-0.5, 0.5), st.floats(-0.5, 0.5)),
    st.booleans(),
)
def test_projection_of_moved_labels_is_the_moved_projection(
    joints: Tensor,
    K: Tensor,
    square: tuple[Tensor, Tensor, int],
    angle: float,
    scale: float,
    shift: tuple[float, float],
    mirror: bool,  # noqa: FBT001  (drawn by hypothesis)
) -> None:
    labels, view = table(joints, K), view_of(square[0], square[1])
    batch, A = moved(labels, view, params(angle, scale, shift, 1), mirror=mirror, dtype=F64)
    expected = apply(A[0], project(joints, K))
    error = (project(batch.joints_3d[0, 0], batch.K[0]) - expected).abs().max()
    size = expected.abs().max().clamp_min(1000)
    assert error < 1e-12 * size  # 1e-9 px for points in and around the input
    R = batch.R_input_from_cam[0]
    assert (R @ R.T - torch.eye(3)).abs().max() < 1e-12
    assert torch.det(R).item() == pytest.approx(-1 if mirror else 1)


@pytest.mark.parametrize("mirror", [False, True])
def test_float32_labels_are_off_by_thousandths_of_a_pixel(mirror: bool) -> None:  # noqa: FBT001
    rng = np.random.default_rng(0)
    worst = 0.0
    for _ in range(50):
        joints = torch.from_numpy(rng.normal([0, 0, 0.7], 0.05, (21, 3)))
        K = torch.tensor([[900.0, 0, 320], [0, 910, 240], [0, 0, 1]], dtype=F64)
        uv = project(joints, K)
        center, size = uv.mean(0), (uv.amax(0) - uv.amin(0)).max() * 1.5
        how = params(rng.uniform(-1, 1), rng.uniform(0.7, 1.3), (0.05, -0.04), 1)
        batch, A = moved(table(joints, K), view_of(center, size), how, mirror=mirror,
                         dtype=torch.float32)  # fmt: skip
        assert batch.K.dtype == batch.joints_3d.dtype == torch.float32
        seen = project(batch.joints_3d[0, 0].double(), batch.K[0].double())
        worst = max(worst, (seen - apply(A[0], uv)).abs().max().item())
        # the network's camera: square pixels (900 and 910 as recorded), hardly any skew
        K_input = batch.K[0]
        assert (K_input.diagonal() > 0).all()
        assert K_input[:2, :2].flip(-1).diagonal().abs().max() < 0.02 * K_input[0, 0]
    assert worst < 5e-3


@pytest.fixture(scope="module")
def layer(mano: ManoModels) -> ManoLayer:  # noqa: F811
    """Return a stand-in for MANO whose sides mirror each other."""
    return ManoLayer(mano, dtype=F64)


@pytest.mark.parametrize("mirror", [False, True])
@given(angle=st.floats(-math.pi, math.pi), seed=st.integers(0, 2**31))
def test_moved_mano_decodes_to_the_moved_mesh(
    layer: ManoLayer,
    angle: float,
    mirror: bool,  # noqa: FBT001
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    theta = Rotation.random(16, rng=rng).as_matrix()[None]
    beta, transl = rng.normal(0, 1, (1, 10)), rng.normal([0, 0, 0.6], 0.2, (1, 3))
    hand = [torch.from_numpy(v) for v in (theta, beta, transl)]
    is_left = torch.tensor([False])
    vertices, _ = layer(*hand, is_left)
    labels = table(
        torch.zeros(21, 3), torch.eye(3),
        theta_rotmat=hand[0][None], beta=hand[1][None], transl=hand[2][None],
        root_rest=layer.root_rest(hand[1], is_left)[None], is_right=is_left[None],
    )  # fmt: skip
    view = view_of(torch.zeros(2, dtype=F64), torch.ones((), dtype=F64))
    batch, _ = moved(labels, view, params(angle, 1, (0, 0), 1), mirror=mirror, dtype=F64)
    decoded, _ = layer(
        batch.theta_rotmat[:, 0], batch.beta[:, 0], batch.transl[:, 0], torch.tensor([mirror])
    )
    expected = vertices @ batch.R_input_from_cam.mT
    # smplx keeps the skinning weights in float32: they sum to 1 within 6e-8, times 0.6 m
    assert (decoded - expected).abs().max() < 4e-8


def test_missing_labels_stay_missing() -> None:
    joints = torch.ones(21, 3, dtype=F64)
    joints[4] = math.nan
    labels = table(joints, torch.eye(3, dtype=F64))
    view = view_of(torch.zeros(2, dtype=F64), torch.ones((), dtype=F64))
    batch, _ = moved(labels, view, params(0.3, 1, (0, 0), 1), mirror=True, dtype=torch.float32)
    assert batch.joints_3d[0, 0].isnan().any(-1).nonzero().tolist() == [[4]]
    for name in ("theta_rotmat", "beta", "transl"):
        assert getattr(batch, name).isnan().all()
    assert not batch.has_mano.any()
    assert batch.joint_set.tolist() == [int(JointSet.freihand)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(hand_store(tmp_path_factory.mktemp("labels") / "s.zarr"))


@pytest.mark.parametrize("kind", list(ViewKind))
def test_labels_of_the_right_hand_slot_are_read(store: Store, kind: ViewKind) -> None:
    view = build_view(store, np.arange(12), ViewConfig(kind=kind), 64, training=True)
    labels = load_labels(store, view, kind)
    assert len(labels.K) == len(view)
    for k, sample_id in enumerate(view.sample_id.tolist()):
        row, slots = sample_id // 2, [sample_id % 2] if kind is ViewKind.hand else [0, 1]
        np.testing.assert_array_equal(labels.K[k], store.label("K")[row])
        for h, slot in enumerate(slots):
            assert bool(labels.is_right[k, h]) == (slot == 0)
            for name in ("joints_3d", "joint_valid", "beta", "transl", "root_rest",
                         "has_joints", "has_mano", "has_beta"):  # fmt: skip
                np.testing.assert_array_equal(
                    getattr(labels, name)[k, h], store.label(name)[row, slot], err_msg=name
                )
            if labels.has_mano[k, h]:
                theta = store.label("theta")[row, slot].astype(np.float64).reshape(16, 3)
                expected = Rotation.from_rotvec(theta).as_matrix()
                np.testing.assert_allclose(labels.theta_rotmat[k, h], expected, atol=1e-7)


@pytest.mark.parametrize("kind", list(ViewKind))
def test_the_object_that_the_hands_act_on_is_read(store: Store, kind: ViewKind) -> None:
    view = build_view(store, np.arange(12), ViewConfig(kind=kind), 64, training=True)
    labels = load_labels(store, view, kind, first_object=20)
    known = set()
    for k, row in enumerate(view.row.tolist()):
        has_object = row % 5 != 4  # tests.pipeline.hand_store: then in slot 1, and it is number 3
        known.add(has_object)
        assert bool(labels.has_object[k]) == has_object
        assert int(labels.object_id[k]) == (23 if has_object else -1)
        expected = store.label("object_pose")[row, 1] if has_object else np.full((3, 4), np.nan)
        np.testing.assert_array_equal(labels.object_pose[k], expected)
        assert labels.object_arti_rad[k].isnan()
    assert known == {True, False}


def test_what_is_out_of_view_has_no_label(tmp_path: Path) -> None:
    seen = np.array([False, True, False])  # right hand, left hand, object
    store = open_store(hand_store(tmp_path / "s.zarr", official_valid=seen))
    rows = np.arange(12)
    view = build_view(store, rows, ViewConfig(kind=ViewKind.frame), 64, training=True)
    labels = load_labels(store, view, ViewKind.frame)
    for name in ("joint_valid", "has_joints", "has_mano", "has_beta"):
        mask = getattr(labels, name)
        assert not mask[:, 0].any()
        assert torch.equal(mask[:, 1], torch.from_numpy(store.label(name)[rows, 1]))
    assert not labels.has_object.any()
    assert not labels.object_pose[0].isnan().any()  # the mask rules, the value stays
    only = ViewConfig(kind=ViewKind.hand, require_joints=True)
    hands = build_view(store, rows, only, 64, training=True)
    assert torch.equal(hands.row, torch.arange(1, 12, 2))
    assert bool((hands.sample_id % 2 == 1).all())


def test_labels_can_be_changed_without_the_store(tmp_path: Path) -> None:
    store = open_store(hand_store(tmp_path / "s.zarr", 5))
    view = build_view(store, np.arange(5), ViewConfig(), 64, training=True)
    load_labels(store, view, ViewKind.hand).joint_valid.zero_()
    assert store.label("joint_valid").any()
