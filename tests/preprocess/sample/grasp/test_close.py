import numpy as np
import pytest
import smplx
import torch
import trimesh
from scipy.spatial.transform import Rotation

from preprocess.sample.grasp.close import close_hand, grasp_object
from preprocess.sample.grasp.scene import HandObjectSequence, draw_sequence, look_at
from preprocess.sample.grasp.search import find_grips
from preprocess.sample.hand.curl import (
    THUMBS,
    finger_angles,
    finger_owner,
    hand_points,
    shipped_or_fixed,
)
from preprocess.sample.hand.mesh import stand_in_model, write_mano
from preprocess.sample.objects.solid import Solid, solid_of, standing
from preprocess.sample.objects.ycb import stand_in_object

NAMES = ("005_tomato_soup_can", "009_gelatin_box", "061_foam_brick")
BETA = np.array([0.5, -1.0, 0.8, 0.2, -0.4, 1.0, -0.7, 0.3, 0.9, -1.2])


def draw(key: tuple[int, ...] = (1, 2), **changes: object) -> HandObjectSequence:
    settings: dict[str, object] = {
        "side": "left", "beta": BETA, "object_names": NAMES, "grasp_ind": 1, "num_frames": 8,
        "left_as_shipped": True, "num_before": 1, "num_after": 1,
    }  # fmt: skip
    return draw_sequence(key, **(settings | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def sequence() -> HandObjectSequence:
    return draw()


def body_of(sequence: HandObjectSequence, frame: int, slot: int) -> trimesh.Trimesh:
    """An object in the world."""
    mesh = stand_in_object(sequence.object_names[slot])
    pose = sequence.T_world_from_obj[frame, slot]
    placed = [pose[:3, :3] @ vertex + pose[:3, 3] for vertex in mesh.vertices]
    return trimesh.Trimesh(placed, mesh.faces, process=False)


def signed_mm(body: trimesh.Trimesh, points: np.ndarray) -> np.ndarray:
    """Positive outside; by trimesh's closest points and face normals."""
    near, distance, face = trimesh.proximity.closest_point_naive(body, points)  # type: ignore[no-untyped-call]  # as it ships
    side = ((points - near) * body.face_normals[face]).sum(1)
    return np.asarray(np.where(side < 0, -distance, distance) * 1000)


# --- grasps ---------------------------------------------------------------------------------------


def test_fingers_close_on_the_object_and_stop_there(sequence: HandObjectSequence) -> None:
    frame = int(np.flatnonzero(sequence.grasped)[0])
    gaps = signed_mm(body_of(sequence, frame, 1), sequence.vertices[frame])
    fingers = finger_owner()
    touching = [bool((gaps[fingers == slot] < 1.0).any()) for slot in range(5)]
    assert touching[0]
    assert sum(touching[1:]) >= 2
    assert gaps.min() > -2.0


@pytest.mark.parametrize(
    ("name", "side"), [("036_wood_block", "right"), ("061_foam_brick", "left")]
)
def test_grasps_touch_whatever_the_shape(name: str, side: str) -> None:
    T, vertices = standing(name)
    body = trimesh.Trimesh(vertices, stand_in_object(name).faces, process=False)
    assert vertices[:, 2].min() == pytest.approx(0.0)
    np.testing.assert_allclose(vertices, stand_in_object(name).vertices + T[:3, 3])
    rng = np.random.default_rng(4)
    beta = np.clip(rng.standard_normal(10), -2, 2)
    grasp = grasp_object(rng, name, side, beta, left_as_shipped=False)
    model = shipped_or_fixed(side, as_shipped=False)
    hand = hand_points(model, beta, side, grasp.closed_level[None], grasp.thumb)[0]
    placed = hand @ grasp.R_stand_from_hand.T + grasp.wrist
    gaps = signed_mm(body, placed)
    assert gaps.min() > -2.0
    assert placed[:, 2].min() > 0.0025  # the table
    for slot in range(5):
        touches = gaps[finger_owner() == slot].min() < 1.0
        assert touches == grasp.touching[slot]
    assert grasp.touching[0]
    assert grasp.touching[1:].sum() >= 2


def test_an_open_hand_is_clear_and_closing_is_monotone() -> None:
    solid, grip = solid_of("036_wood_block"), find_grips("036_wood_block", "right")[0]
    model = stand_in_model("right")
    grasp = close_hand(grip, solid, model, np.zeros(10), "right")
    opened = hand_points(model, np.zeros(10), "right", grasp.open_level[None], grasp.thumb)[0]
    body = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    assert signed_mm(body, opened @ grasp.R_stand_from_hand.T + grasp.wrist).min() > 0.5
    assert (grasp.closed_level >= grasp.open_level).all()
    assert (grasp.closed_level <= 1.0).all()


def test_levels_bend_fingers_towards_the_palm() -> None:
    level = np.zeros((2, 5, 3))
    level[1] = 0.6
    for side, along in (("right", -1.0), ("left", 1.0)):
        model = stand_in_model(side)
        straight, bent = hand_points(model, np.zeros(10), side, level, 1)
        for slot in range(1, 5):
            tip = np.flatnonzero(finger_owner() == slot)[
                np.argmax(straight[finger_owner() == slot][:, 0] * along)
            ]
            assert bent[tip, 1] < straight[tip, 1] - 0.02  # the palm faces -y
            assert along * bent[tip, 0] < along * straight[tip, 0]


def test_the_left_hand_is_the_mirror_image_of_the_right_one() -> None:
    rng = np.random.default_rng(0)
    level = rng.uniform(0, 1, (3, 5, 3))
    for thumb in range(len(THUMBS)):
        right = finger_angles("right", level, thumb).reshape(3, 15, 3)
        left = finger_angles("left", level, thumb).reshape(3, 15, 3)
        mirror = np.diag([-1.0, 1.0, 1.0])
        for r, l in zip(right.reshape(-1, 3), left.reshape(-1, 3), strict=True):
            turned = mirror @ Rotation.from_rotvec(r).as_matrix() @ mirror
            np.testing.assert_allclose(Rotation.from_rotvec(l).as_matrix(), turned, atol=1e-12)


@pytest.mark.parametrize("name", ["009_gelatin_box", "040_large_marker"])
def test_solids_measure_distances_as_trimesh_does(name: str) -> None:
    solid: Solid = solid_of(name)
    body = trimesh.Trimesh(solid.vertices, solid.faces, process=False)
    rng = np.random.default_rng(3)
    points = rng.uniform(solid.vertices.min(0) - 0.02, solid.vertices.max(0) + 0.02, (60, 3))
    expected = signed_mm(body, points) / 1000
    np.testing.assert_allclose(solid.distance(points), expected, atol=1e-9)
    # One cell of the grid is 3.5 mm.
    np.testing.assert_allclose(solid.roughly(points), expected, atol=2e-3)
    np.testing.assert_allclose(solid.near(points), expected, atol=2e-3)
    far = solid.vertices.max(0) + np.array([0.3, 0.0, 0.0])
    assert solid.roughly(far[None])[0] == pytest.approx(
        np.linalg.norm(solid.vertices - far, axis=1).min(), abs=0.02
    )


# --- sequences ------------------------------------------------------------------------------------


def test_the_hand_comes_grasps_lifts_and_leaves(sequence: HandObjectSequence) -> None:
    assert sequence.hand_there.tolist() == [False, *[True] * 6, False]
    for values in (sequence.theta, sequence.transl, sequence.vertices, sequence.joints):
        missing = np.isnan(values.reshape(8, -1))
        np.testing.assert_array_equal(missing.all(1), ~sequence.hand_there)
        np.testing.assert_array_equal(missing.any(1), ~sequence.hand_there)
    # Six frames with the hand: progress 0, 0.2, ..., 1; the fingers are closed from 0.55 on.
    assert sequence.grasped.tolist() == [False] * 4 + [True] * 3 + [False]
    first = signed_mm(body_of(sequence, 1, 1), sequence.vertices[1])
    assert first.min() > 40
    # It comes from outside, not out of the table or through the object.
    assert sequence.vertices[sequence.hand_there][:, :, 2].min() > 0.0025
    for frame in (1, 2, 3):
        assert signed_mm(body_of(sequence, frame, 1), sequence.vertices[frame][::4]).min() > 0
    height = sequence.T_world_from_obj[:, 1, 2, 3]
    assert height[6] > height[0] + 0.05
    np.testing.assert_allclose(sequence.T_world_from_obj[7], sequence.T_world_from_obj[0])


def test_hand_and_object_move_as_one_in_a_grasp(sequence: HandObjectSequence) -> None:
    frames = np.flatnonzero(sequence.grasped)
    in_object = []
    for frame in frames:
        inverse = np.linalg.inv(sequence.T_world_from_obj[frame, 1])
        in_object.append(sequence.vertices[frame] @ inverse[:3, :3].T + inverse[:3, 3])
    assert np.linalg.norm(sequence.vertices[frames[1]] - sequence.vertices[frames[0]]) > 0.1
    np.testing.assert_allclose(in_object[1], in_object[0], atol=1e-9)
    np.testing.assert_allclose(in_object[2], in_object[0], atol=1e-9)


def test_other_objects_stand_on_the_table_clear_of_the_hand(sequence: HandObjectSequence) -> None:
    for slot in (0, 2):
        body = body_of(sequence, 0, slot)
        assert body.vertices[:, 2].min() == pytest.approx(0.0, abs=1e-9)
        for frame in np.flatnonzero(sequence.hand_there):
            np.testing.assert_array_equal(
                sequence.T_world_from_obj[frame, slot], sequence.T_world_from_obj[0, slot]
            )
            assert signed_mm(body, sequence.vertices[frame][::6]).min() > 5
        for other in {0, 1, 2} - {slot}:
            assert signed_mm(body, body_of(sequence, 0, other).vertices[::3]).min() > 5


def smplx_vertices(folder: object, sequence: HandObjectSequence) -> tuple[np.ndarray, np.ndarray]:
    layer = smplx.MANO(str(folder), use_pca=False, flat_hand_mean=True, is_rhand=False, ext="npz")
    there = sequence.hand_there
    theta = torch.tensor(sequence.theta[there], dtype=torch.float32)
    out = layer(
        betas=torch.tensor(sequence.beta, dtype=torch.float32)[None].expand(len(theta), -1),
        global_orient=theta[:, :3],
        hand_pose=theta[:, 3:],
        transl=torch.tensor(sequence.transl[there], dtype=torch.float32),
    )
    return out.vertices.detach().numpy(), out.joints.detach().numpy()


def test_left_hands_follow_the_model_they_name(
    sequence: HandObjectSequence, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder / "fixed")
    write_mano(folder / "shipped", shapedirs_bug=True)
    there = sequence.hand_there
    vertices, joints = smplx_vertices(folder / "shipped", sequence)
    np.testing.assert_allclose(vertices, sequence.vertices[there], atol=2e-6)
    np.testing.assert_allclose(joints[:, :16], sequence.joints[there], atol=2e-6)
    other, _ = smplx_vertices(folder / "fixed", sequence)
    assert np.abs(other - sequence.vertices[there]).max() > 1e-3


def test_a_sequence_is_a_function_of_its_key(sequence: HandObjectSequence) -> None:
    again, other = draw(), draw((1, 3))
    np.testing.assert_array_equal(again.vertices, sequence.vertices)
    np.testing.assert_array_equal(again.T_world_from_obj, sequence.T_world_from_obj)
    assert not np.allclose(other.T_world_from_obj, sequence.T_world_from_obj)


def test_one_frame_shows_the_grasp_and_none_is_refused() -> None:
    alone = draw(num_frames=1, num_before=0, num_after=0)
    assert alone.grasped.tolist() == [True]
    with pytest.raises(ValueError, match="got 2 frames, of which 1 before and 1 after"):
        draw(num_frames=2)


def test_look_at_puts_the_target_in_the_middle_and_up_above_it() -> None:
    T = look_at(np.array([0.6, -0.3, 0.5]), np.array([0.1, 0.2, 0.05]))
    target, above = (T @ np.array([0.1, 0.2, z, 1.0]) for z in (0.05, 0.15))
    np.testing.assert_allclose(target[:2], 0.0, atol=1e-12)
    assert target[2] == pytest.approx(np.linalg.norm([0.5, -0.5, 0.45]))
    assert above[1] / above[2] < -0.05  # y points down in the image
    assert abs(above[0]) < 1e-12
    assert np.linalg.det(T[:3, :3]) == pytest.approx(1.0)
    rolled = look_at(np.array([0.6, -0.3, 0.5]), np.array([0.1, 0.2, 0.05]), 0.3)
    np.testing.assert_allclose(
        rolled[:3, :3] @ T[:3, :3].T, Rotation.from_rotvec([0, 0, 0.3]).as_matrix(), atol=1e-12
    )
