import numpy as np
import pytest

from preprocess.sample.grasp.scene import HandObjectSequence, look_at
from preprocess.sample.objects.solid import standing
from preprocess.sample.objects.ycb import stand_in_object
from preprocess.sample.render.hand import arm_faces
from preprocess.sample.render.hand_object import HAND, RenderedFrame, render_frame

SIZE_HW = (120, 160)
K = np.array([[150.0, 0.0, 82.0], [0.0, 152.0, 57.0], [0.0, 0.0, 1.0]])
T_CAM = look_at(np.array([0.45, 0.30, 0.42]), np.array([0.0, 0.0, 0.05]))
NAMES = ("003_cracker_box", "024_bowl")


def scene(*, hand: bool) -> HandObjectSequence:
    """A box and a bowl on the table, a flat hand above them; no grasp needs to be found."""
    from model.mano.files import mano_forward
    from preprocess.sample.hand.mesh import stand_in_model

    theta = np.zeros((1, 48))
    vertices, joints = mano_forward(
        stand_in_model("right"), theta, np.zeros((1, 10)), np.array([[-0.05, -0.15, 0.12]])
    )
    poses = np.stack([standing(name)[0] for name in NAMES])
    poses[0, :3, 3] += [-0.08, 0.05, 0.0]
    poses[1, :3, 3] += [0.10, 0.08, 0.0]
    return HandObjectSequence(
        side="right", left_as_shipped=False, beta=np.zeros(10), object_names=NAMES, grasp_ind=0,
        theta=theta, transl=np.zeros((1, 3)), vertices=vertices, joints=joints,
        T_world_from_obj=poses[None], hand_there=np.array([hand]), grasped=np.array([False]),
    )  # fmt: skip


@pytest.fixture(scope="module")
def rendered() -> RenderedFrame:
    return render_frame(scene(hand=True), 0, K, T_CAM, SIZE_HW, (5, 6))


def nearest_hit(origin: np.ndarray, ray: np.ndarray, triangles: np.ndarray) -> float:
    """Moeller and Trumbore, all triangles: the smallest positive parameter, inf for none."""
    edge_1, edge_2 = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    across = np.cross(ray, edge_2)
    det = (edge_1 * across).sum(1)
    safe = np.where(np.abs(det) < 1e-15, np.inf, det)
    away = origin - triangles[:, 0]
    u = (away * across).sum(1) / safe
    turned = np.cross(away, edge_1)
    v = (turned @ ray) / safe
    t = (edge_2 * turned).sum(1) / safe
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0) & (np.abs(det) > 1e-15)
    return float(t[hit].min()) if hit.any() else float("inf")


def test_depth_and_labels_are_those_of_the_ray_through_the_pixel(rendered: RenderedFrame) -> None:
    frame = scene(hand=True)
    R, t = T_CAM[:3, :3], T_CAM[:3, 3]
    eye = -R.T @ t
    bodies = {}
    for slot, name in enumerate(NAMES):
        mesh, pose = stand_in_object(name), frame.T_world_from_obj[0, slot]
        bodies[1 + slot] = (mesh.vertices @ pose[:3, :3].T + pose[:3, 3])[mesh.faces]
    hand_faces = arm_faces("right")
    hand_faces = hand_faces[(hand_faces < 778).all(1)]
    bodies[HAND] = frame.vertices[0][hand_faces]
    rng = np.random.default_rng(0)
    counts = dict.fromkeys([0, *bodies], 0)
    for label in counts:
        where = np.argwhere(rendered.segmentation == label)
        for row, column in where[rng.integers(0, len(where), 25)]:
            x, y = (column - K[0, 2]) / K[0, 0], (row - K[1, 2]) / K[1, 1]
            ray = R.T @ np.array([x, y, 1.0])  # one unit deep
            hits = {key: nearest_hit(eye, ray, body) for key, body in bodies.items()}
            first = min(hits, key=lambda key: hits[key])
            if label == HAND and rendered.depth_m[row, column] < hits[first] - 0.002:
                continue  # the forearm, in front of what is known here
            if hits[first] == float("inf"):
                table = -eye[2] / ray[2] if ray[2] < 0 else float("inf")
                hit = eye + table * ray
                on = table < 10 and abs(hit[0]) < 0.85 and abs(hit[1]) < 0.65
                assert rendered.depth_m[row, column] == pytest.approx(table if on else 0, rel=1e-4)
                assert label == 0
            else:
                # A ray within rounding of an edge may go to either side.
                assert rendered.segmentation[row, column] == first
                assert rendered.depth_m[row, column] == pytest.approx(hits[first], rel=1e-3)
            counts[label] += 1
    assert min(counts.values()) >= 10


def test_colours_differ_between_objects_hand_and_table(rendered: RenderedFrame) -> None:
    assert rendered.rgb.shape == (*SIZE_HW, 3)
    assert rendered.rgb.dtype == np.uint8
    assert rendered.depth_m.dtype == np.float32
    box = rendered.rgb[rendered.segmentation == 1].astype(int)
    assert (box[:, 0] - box[:, 2] > 60).mean() > 0.3  # red
    assert (box[:, 0] - box[:, 2] < 40).mean() > 0.1  # its pale panel
    hand = rendered.rgb[rendered.segmentation == HAND].astype(int)
    assert (hand[:, 0] > hand[:, 2]).mean() > 0.9  # skin


def test_textures_land_where_they_belong() -> None:
    """The middle of a face of the box shows what the texture has there."""
    frame = scene(hand=False)
    picture = render_frame(frame, 0, K * [[4], [4], [1]], T_CAM, (480, 640), (5, 6))
    mesh, pose = stand_in_object(NAMES[0]), frame.T_world_from_obj[0, 0]
    corners = mesh.vertices[mesh.faces] @ pose[:3, :3].T + pose[:3, 3]
    cam = corners.mean(1) @ T_CAM[:3, :3].T + T_CAM[:3, 3]
    pixel = cam @ (K * [[4], [4], [1]]).T
    at = np.round(pixel[:, :2] / pixel[:, 2:]).astype(int)
    seen, expected = [], []
    for i, (column, row) in enumerate(at):
        if not (0 <= row < 480 and 0 <= column < 640):
            continue
        if abs(picture.depth_m[row, column] - cam[i, 2]) > 0.002:
            continue
        u, v = mesh.uv[mesh.uv_faces[i]].mean(0)
        height, width = mesh.texture.shape[:2]
        expected.append(mesh.texture[int((1 - v) * height), int(u * width)].astype(float))
        seen.append(picture.rgb[row, column].astype(float))
    assert len(seen) > 40
    hue = [np.array(c) / np.linalg.norm(c, axis=1, keepdims=True) for c in (seen, expected)]
    # Light changes how bright a place is, not much of its hue; edges of the print may differ.
    assert (np.linalg.norm(hue[0] - hue[1], axis=1) < 0.15).mean() > 0.85


def test_frames_without_a_hand_have_none() -> None:
    picture = render_frame(scene(hand=False), 0, K, T_CAM, SIZE_HW, (5, 6))
    assert set(np.unique(picture.segmentation)) == {0, 1, 2}


def test_a_picture_is_a_function_of_its_arguments(rendered: RenderedFrame) -> None:
    again = render_frame(scene(hand=True), 0, K, T_CAM, SIZE_HW, (5, 6))
    np.testing.assert_array_equal(again.rgb, rendered.rgb)
    np.testing.assert_array_equal(again.depth_m, rendered.depth_m)
    other = render_frame(scene(hand=True), 0, K, T_CAM, SIZE_HW, (5, 7))
    # The forearm bends otherwise; whatever both see of the objects is the same.
    objects = (rendered.segmentation != HAND) & (other.segmentation != HAND)
    np.testing.assert_array_equal(other.segmentation[objects], rendered.segmentation[objects])
    assert np.abs(other.rgb.astype(int) - rendered.rgb).mean() > 5
