"""Palm, aperture, boxes and motion against loops, and against a hand that closes."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from model.hand import LEFT, RIGHT, STANDARD_FROM_MANO21, TIP_VERTICES
from model.mano.files import mano_forward
from preprocess.labels.action import (
    SurfacePoints,
    aperture_m,
    object_bbox_xyxy,
    object_flags,
    object_moved_m,
    palm_pose,
    posed_objects,
)
from preprocess.sample.hand.mesh import stand_in_model
from tests.preprocess.objects.object_rows import pose_of, row, stack

NAMES = ("right", "left")
BEHIND = (0.0, 0.0, -0.5)


def _joints(slot: int, bend_rad: float) -> np.ndarray:
    """The 21 joints of the synthetic hand with its fingers bent, rotated and translated."""
    arrays = stand_in_model(NAMES[slot])
    theta = np.zeros((1, 48))
    theta[0, :3] = [0.4, -0.7, 0.2]
    # Fingers lie along x and the back of the hand is +y on either side: about z they close.
    for joint in range(1, 13):
        theta[0, 3 * joint + 2] = bend_rad if slot == RIGHT else -bend_rad
    vertices, joints = mano_forward(arrays, theta, np.zeros((1, 10)), np.array([[0.1, 0.2, 0.7]]))
    tips = vertices[0, list(getattr(TIP_VERTICES["smplx"], NAMES[slot]))]
    return np.concatenate([joints[0], tips])[list(STANDARD_FROM_MANO21)]


def _palm(slot: int, bend_rad: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    joints = np.full((2, 21, 3), np.nan)
    joints[slot] = _joints(slot, bend_rad)
    valid = np.isfinite(joints).all(-1)
    found = palm_pose(stack(row(joints_3d=joints, joint_valid=valid)))
    assert np.isnan(found[0, 1 - slot]).all()
    return found[0, slot], joints[slot]


SLOTS = pytest.mark.parametrize("slot", [RIGHT, LEFT], ids=NAMES)


@SLOTS
def test_fingers_close_to_the_side_where_z_points(slot: int) -> None:
    palm, straight = _palm(slot)
    bent = _joints(slot, 0.5)
    for tip in (8, 12, 16, 20):
        assert (bent[tip] - straight[tip]) @ palm[:, 2] > 0.02


@SLOTS
def test_the_palm_has_a_rotation_with_x_along_the_hand(slot: int) -> None:
    palm, joints = _palm(slot)
    R = palm[:, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(R) == pytest.approx(1.0)
    towards = (joints[5] + joints[17]) / 2 - joints[0]
    np.testing.assert_allclose(R[:, 0], towards / np.linalg.norm(towards), atol=1e-12)
    np.testing.assert_allclose(palm[:, 3], (joints[0] + joints[5] + joints[17]) / 3, atol=1e-12)


@SLOTS
def test_y_points_to_the_little_finger_of_a_right_hand_only(slot: int) -> None:
    palm, joints = _palm(slot)
    across = (joints[17] - joints[5]) @ palm[:, 1]
    assert (across > 0.03) if slot == RIGHT else (across < -0.03)


def test_a_palm_of_a_mirrored_hand_is_the_mirrored_palm() -> None:
    right, left = _palm(RIGHT)[1], _palm(RIGHT)[1] * [-1, 1, 1]
    both = stack(row(joints_3d=np.stack([right, left]), joint_valid=True))
    palms = palm_pose(both)[0]
    for column, sign in ((0, 1), (1, -1), (2, 1), (3, 1)):  # y turns over: a rotation stays one
        expected = palms[0, :, column] * [-1, 1, 1] * sign
        np.testing.assert_allclose(palms[1, :, column], expected, atol=1e-12)


@pytest.mark.parametrize("joint", [0, 5, 17])
def test_a_palm_needs_its_three_joints(joint: int) -> None:
    joints = np.stack([_joints(RIGHT, 0.1), _joints(LEFT, 0.1)])
    valid = np.ones((2, 21), bool)
    valid[1, joint] = False
    found = palm_pose(stack(row(joints_3d=joints, joint_valid=valid)))[0]
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_joints_on_one_point_have_no_palm() -> None:
    assert np.isnan(palm_pose(stack(row(joints_3d=1.0, joint_valid=True)))[0, :, :, :3]).all()


def test_the_aperture_is_the_distance_of_thumb_and_index_tip() -> None:
    joints = np.zeros((2, 21, 3))
    joints[:, 4], joints[:, 8] = [0.1, 0.2, 0.5], [0.13, 0.24, 0.5]
    valid = np.ones((2, 21), bool)
    valid[1, 8] = False
    found = aperture_m(stack(row(joints_3d=joints, joint_valid=valid)))
    np.testing.assert_allclose(found, [[0.05, np.nan]], atol=1e-12)


def test_an_object_counts_as_posed_with_an_id_and_a_finite_pose() -> None:
    labels = stack(row([(3, pose_of(0)), (4, np.nan), (-1, pose_of(1))]))
    assert posed_objects(labels)[0].tolist() == [True] + [False] * 9


@pytest.mark.parametrize(
    ("objects", "missing", "behind"),
    [
        ([], False, False),
        ([(0, pose_of(0))], False, False),
        ([(0, pose_of(0)), (1, np.nan)], True, False),
        ([(0, pose_of(0)), (1, pose_of(1, BEHIND))], False, True),
        ([(0, pose_of(0, (0.0, 0.0, 0.0)))], False, True),
        ([(-1, pose_of(0, BEHIND))], False, False),
    ],
)
def test_rows_are_flagged(
    objects: Sequence[tuple[int, np.ndarray]], *, missing: bool, behind: bool
) -> None:
    flags = object_flags(stack(row(objects), row([(0, pose_of(5))])))
    assert {name: hit.tolist() for name, hit in flags.items()} == {
        "object_missing": [missing, False],
        "object_behind_camera": [behind, False],
    }


# --- boxes ----------------------------------------------------------------------------------------


def rigid(points: np.ndarray) -> SurfacePoints:
    return SurfacePoints(points=points, part_id=np.zeros(len(points), np.int8))


def test_boxes_are_those_of_every_projected_point() -> None:
    rng = np.random.default_rng(0)
    points = {
        0: rigid(rng.uniform(-0.05, 0.05, (2048, 3))),
        1: rigid(rng.uniform(-0.1, 0.1, (500, 3))),
    }
    labels = stack(
        row([(0, pose_of(0)), (1, pose_of(1, (0.3, -0.2, 1.0)))]),
        row([(1, pose_of(2)), (0, pose_of(3, (-2.0, 0.0, 0.5)))]),
    )
    found = object_bbox_xyxy(labels, points)
    assert found.shape == (2, 10, 4)
    for i in range(2):
        for slot in range(2):
            us, vs = [], []
            R, t = labels.object_pose[i, slot, :, :3], labels.object_pose[i, slot, :, 3]
            for point in points[int(labels.object_id[i, slot])].points:
                x, y, z = R @ point + t
                us.append(600 * x / z + 2 * y / z + 320)
                vs.append(620 * y / z + 240)
            expected = [min(us), min(vs), max(us), max(vs)]
            np.testing.assert_allclose(found[i, slot], expected, rtol=1e-10)
    assert np.isnan(found[:, 2:]).all()


def test_the_moving_part_of_an_object_is_in_its_box_where_it_is() -> None:
    """Every point rotated by scipy about -z, then posed and projected by the formula."""
    rng = np.random.default_rng(1)
    surface = SurfacePoints(
        points=rng.uniform(-0.1, 0.1, (400, 3)), part_id=rng.integers(0, 2, 400).astype(np.int8)
    )
    angles = [0.0, 0.9, -2.0]
    rows = [row([(0, pose_of(i))], object_arti_rad=a) for i, a in enumerate(angles)]
    labels = stack(*rows)
    found = object_bbox_xyxy(labels, {0: surface})[:, 0]
    for i, angle in enumerate(angles):
        turned = Rotation.from_rotvec([0, 0, -angle]).apply(surface.points)
        points = np.where(surface.part_id[:, None] == 1, turned, surface.points)
        x, y, z = (points @ labels.object_pose[i, 0, :, :3].T + labels.object_pose[i, 0, :, 3]).T
        u, v = 600 * x / z + 2 * y / z + 320, 620 * y / z + 240
        np.testing.assert_allclose(found[i], [u.min(), v.min(), u.max(), v.max()], rtol=1e-10)


def test_an_object_that_crosses_the_camera_plane_has_no_box() -> None:
    points = {0: rigid(np.random.default_rng(0).uniform(-0.1, 0.1, (300, 3)))}
    labels = stack(
        row([(0, pose_of(0, (0, 0, 0.02)))]), row([(0, pose_of(0, BEHIND))]), row([(0, pose_of(0))])
    )
    finite = np.isfinite(object_bbox_xyxy(labels, points)).all(-1)[:, 0]
    assert finite.tolist() == [False, False, True]


def test_a_box_needs_pose_points_and_intrinsics() -> None:
    points = {0: rigid(np.random.default_rng(0).uniform(-0.1, 0.1, (300, 3)))}
    labels = stack(row([(0, np.nan), (7, pose_of(0))]), row([(0, pose_of(0))], K=np.nan))
    assert np.isnan(object_bbox_xyxy(labels, points)).all()


def test_flat_points_have_a_box() -> None:
    points = {0: rigid(np.array([[0.0, 0, 0], [0.1, 0, 0], [0, 0.1, 0]]))}
    pose = np.concatenate([np.eye(3), [[0.0], [0.0], [1.0]]], axis=1)
    found = object_bbox_xyxy(stack(row([(0, pose)])), points)[0, 0]
    np.testing.assert_allclose(found, [320, 240, 380, 302])


# --- motion ---------------------------------------------------------------------------------------


def test_motion_is_seen_from_the_world_while_the_camera_moves() -> None:
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.random(rng=3).as_matrix(), [0.5, -1.0, 2.0]
    start, now = np.array([0.1, 0.2, 0.3]), np.array([0.1, 0.5, 0.7])
    in_camera = T[:3, :3].T @ (now - T[:3, 3])
    labels = stack(
        row(
            [(0, pose_of(0, in_camera.tolist())), (1, np.nan)],
            object_start=np.tile(start, (10, 1)),
            T_world_from_cam=T,
        )
    )
    found = object_moved_m(labels)[0]
    assert found[0] == pytest.approx(0.5, rel=1e-12)
    assert np.isnan(found[1:]).all()


def test_motion_is_seen_from_the_camera_without_a_world() -> None:
    start = np.full((10, 3), np.nan)
    start[0] = [0.0, 0.0, 0.4]
    labels = stack(row([(0, pose_of(0, (0.3, 0.0, 0.8))), (1, pose_of(1))], object_start=start))
    found = object_moved_m(labels)[0]
    assert found[0] == pytest.approx(0.5, rel=1e-12)
    assert np.isnan(found[1:]).all()  # it has a pose and no start
