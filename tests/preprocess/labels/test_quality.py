"""Quality rules against loops over single joints."""

import math
from dataclasses import replace

import numpy as np
import pytest

from pipeline.store.schema import FLAGS
from preprocess.camera import project
from preprocess.labels.quality import (
    derive,
    flag_counts,
    flag_names,
    joint_bbox,
    outside_image,
    pack_flags,
)
from preprocess.records import LabelStack

K = np.array([[100.0, 0.0, 32.0], [0.0, 110.0, 24.0], [0.0, 0.0, 1.0]])
SIZE = np.array([[48, 64]])


def stack(num: int = 1) -> LabelStack:
    """Return clean labels: both hands in view, with MANO."""
    rng = np.random.default_rng(0)
    joints = rng.uniform(-0.1, 0.1, (num, 2, 21, 3)) + np.array([0.0, 0.0, 1.0])
    return LabelStack(
        K=np.tile(K, (num, 1, 1)),
        A_file_from_raw=np.tile(np.eye(2, 3), (num, 1, 1)),
        joints_3d=joints,
        joint_valid=np.ones((num, 2, 21), bool),
        joints_2d=np.full((num, 2, 21, 2), np.nan),
        bbox_xyxy=np.full((num, 2, 4), np.nan),
        theta=np.zeros((num, 2, 48)),
        beta=np.zeros((num, 2, 10)),
        beta_raw=np.zeros((num, 2, 10)),
        transl=np.zeros((num, 2, 3)),
        root_rest=np.zeros((num, 2, 3)),
        T_world_from_cam=np.tile(np.eye(4), (num, 1, 1)),
        vertices_check_m=np.full(num, 1e-6),
        refit_error_m=np.zeros((num, 2)),
        object_id=np.tile(np.array([3, -1, 0, *[-1] * 7], np.int32), (num, 1)),
        object_pose=np.tile(np.eye(3, 4) + np.array([0, 0, 0, 0.5]), (num, 10, 1, 1)),
        object_start=np.full((num, 10, 3), np.nan),
        object_arti_rad=np.full((num, 10), np.nan),
        grasped_object=np.zeros(num, np.int16),
        official_valid=np.ones((num, 3), bool),
    )


def names(labels: LabelStack, size: np.ndarray = SIZE) -> list[str]:
    return flag_names(int(derive(labels, size).quality[0]))


def test_clean_labels_have_no_flag() -> None:
    derived = derive(stack(), SIZE)
    assert derived.quality.tolist() == [0]
    assert derived.quality.dtype == np.uint32
    assert derived.has_joints.all()
    assert derived.has_mano.all()
    assert derived.has_beta.all()
    assert derived.has_world.all()


def test_no_label() -> None:
    labels = stack()
    labels.joint_valid[:] = False
    assert names(labels) == ["no_label"]


def test_no_mano_only_counts_labelled_hands() -> None:
    labels = stack()
    labels.theta[0, 1, 7] = np.nan
    assert names(labels) == ["no_mano"]
    assert derive(labels, SIZE).has_mano.tolist() == [[True, False]]
    assert derive(labels, SIZE).has_beta.tolist() == [[True, False]]
    labels.joint_valid[0, 1] = False
    assert names(labels) == []


def test_a_valid_joint_without_finite_coordinates_is_flagged_and_hidden() -> None:
    labels = stack()
    labels.joints_3d[0, 0, 3, 1] = np.inf
    assert names(labels) == ["joints_not_finite"]
    derived = derive(labels, SIZE)
    assert not derived.joint_valid[0, 0, 3]
    assert derived.joint_valid.sum() == 41
    assert np.isfinite(derived.bbox_xyxy).all()


def test_an_invalid_joint_without_coordinates_is_clean() -> None:
    labels = stack()
    labels.joints_3d[0, 0, 3] = np.nan
    labels.joint_valid[0, 0, 3] = False
    assert names(labels) == []


@pytest.mark.parametrize(("z", "flagged"), [(-0.1, True), (0.0, True), (0.5, False)])
def test_behind_camera(z: float, *, flagged: bool) -> None:
    labels = stack()
    labels.joints_3d[0, 1, 4] = [0.0, 0.0, z]
    assert ("behind_camera" in names(labels)) is flagged


def test_mano_residual_takes_beta_away() -> None:
    labels = stack(3)
    labels.vertices_check_m[:] = [0.0009, 0.0011, np.nan]
    derived = derive(labels, np.repeat(SIZE, 3, 0))
    assert [flag_names(int(q)) for q in derived.quality] == [[], ["mano_residual"], []]
    assert derived.has_beta.all(-1).tolist() == [True, False, True]
    assert derived.has_mano.all()


def test_box_is_tight_over_visible_joints() -> None:
    rng = np.random.default_rng(2)
    joints = rng.uniform(-50, 100, (6, 2, 21, 2))
    joints[rng.random((6, 2, 21)) < 0.5] = np.nan
    joints[2, 1] = np.nan
    for row, hands in enumerate(joint_bbox(joints)):
        for hand, box in enumerate(hands):
            seen = [p for p in joints[row, hand].tolist() if not math.isnan(p[0])]
            if not seen:
                assert np.isnan(box).all()
                continue
            xs, ys = zip(*seen, strict=True)
            assert box.tolist() == [min(xs), min(ys), max(xs), max(ys)]


def test_an_official_box_is_kept() -> None:
    labels = stack()
    labels.bbox_xyxy[0, 1] = [1.0, 2.0, 3.0, 4.0]
    boxes = derive(labels, SIZE).bbox_xyxy
    assert boxes[0, 1].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert (
        boxes[0, 0].tolist()
        == joint_bbox(project(labels.joints_3d, labels.K[:, None]))[0, 0].tolist()
    )


def outside_by_loops(joints: np.ndarray, valid: np.ndarray, size: tuple[int, int]) -> bool:
    height, width = size
    margin = 0.05 * max(height, width)
    used = outside = 0
    for (x, y), is_valid in zip(joints.tolist(), valid.tolist(), strict=True):
        if not is_valid:
            continue
        used += 1
        inside_x = -0.5 - margin <= x <= width - 0.5 + margin
        inside_y = -0.5 - margin <= y <= height - 0.5 + margin
        outside += not (inside_x and inside_y)
    return used > 0 and outside / used > 0.5


def test_outside_image_agrees_with_loops() -> None:
    rng = np.random.default_rng(5)
    joints = rng.uniform(-40, 100, (200, 2, 21, 2)) * rng.uniform(0.3, 1.5, (200, 2, 1, 1))
    joints[rng.random((200, 2, 21)) < 0.05] = np.nan
    valid = rng.random((200, 2, 21)) < rng.random((200, 2, 1))
    found = outside_image(joints, valid, np.repeat(SIZE, 200, 0))
    expected = [
        [outside_by_loops(joints[n, h], valid[n, h], (48, 64)) for h in (0, 1)] for n in range(200)
    ]
    assert found.tolist() == expected
    assert 0.1 < found.mean() < 0.9


def test_the_margin_is_in_from_the_pixel_borders() -> None:
    edge = 64 - 0.5 + 0.05 * 64
    for x, gone in ((edge - 1e-9, False), (edge + 1e-9, True)):
        joints = np.full((1, 2, 21, 2), 10.0)
        joints[..., 0] = x
        found = outside_image(joints, np.ones((1, 2, 21), bool), SIZE)
        assert found.tolist() == [[gone, gone]]


def test_an_unread_image_is_not_judged() -> None:
    labels = stack()
    labels.joints_3d[..., 0] += 50.0
    assert names(labels) == ["outside_image"]
    assert names(labels, np.zeros((1, 2), int)) == []


def test_flags_add_up() -> None:
    rules = {"no_label": np.array([True, False, True]), "no_mano": np.array([True, True, False])}
    quality = pack_flags(rules, 3)
    assert quality.tolist() == [
        FLAGS["no_label"] + FLAGS["no_mano"],
        FLAGS["no_mano"],
        FLAGS["no_label"],
    ]
    assert flag_counts(quality) == {name: 2 * (name in rules) for name in FLAGS}
    assert flag_names(int(quality[0])) == ["no_label", "no_mano"]


def test_derive_leaves_its_input_alone() -> None:
    labels = stack()
    before = replace(labels, bbox_xyxy=labels.bbox_xyxy.copy(), joints_3d=labels.joints_3d.copy())
    derive(labels, SIZE)
    np.testing.assert_array_equal(labels.bbox_xyxy, before.bbox_xyxy)
    np.testing.assert_array_equal(labels.joints_3d, before.joints_3d)
