"""Contact against analytic distances of a box and trimesh; hands against the model as shipped."""

from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from model.hand import LEFT, RIGHT
from model.mano.convert import refit_left_betas, rest_root
from model.mano.files import ManoModels, load_mano, mano_forward
from pipeline.store.schema import LABELS
from preprocess.labels.action import SurfacePoints
from preprocess.labels.contact import DerivedObjects, derive_objects, hand_vertices
from preprocess.objects.shapes import Mesh
from preprocess.records import empty_labels
from preprocess.sample.hand.mesh import write_mano
from tests.preprocess.objects.object_rows import pose_of, row, stack

SIDES = np.array([0.06, 0.1, 0.04])
NAN = np.full((778, 3), np.nan)
closest: Any = trimesh.proximity.closest_point_naive


def _mesh(mesh: trimesh.Trimesh) -> Mesh:
    return Mesh(
        vertices=np.ascontiguousarray(mesh.vertices, np.float64),
        faces=np.ascontiguousarray(mesh.faces, np.int64),
        part=np.zeros(len(mesh.vertices), np.int8),
    )


BOX = _mesh(trimesh.creation.box(SIDES))
POINTS = dict.fromkeys(
    range(5), SurfacePoints(points=BOX.vertices, part_id=np.zeros(len(BOX.vertices), np.int8))
)


def _box_distance(points: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(np.maximum(np.abs(points) - SIDES / 2, 0), axis=-1))


def _steps(distance: np.ndarray) -> list[int]:
    return [255 if d > 63.5e-3 else int(np.ceil(d / 0.25e-3 - 1e-6)) for d in distance.tolist()]


def _hand(seed: int, pose: np.ndarray, shift: Any = (0.0, 0.0, 0.0)) -> np.ndarray:
    """Vertices around an object, camera frame: ``shift`` is in the object's frame."""
    own = np.random.default_rng(seed).uniform(-0.09, 0.09, (778, 3)) + shift
    return np.asarray(own @ pose[:, :3].T + pose[:, 3])


def _derive(*rows_and_hands: tuple[Any, Any, Any], meshes: Any = None) -> DerivedObjects:
    labels = stack(*(r for r, _, _ in rows_and_hands))
    vertices = np.stack([np.stack([right, left]) for _, right, left in rows_and_hands])
    return derive_objects(labels, vertices, {0: BOX, 1: BOX} if meshes is None else meshes, POINTS)


def test_the_arrays_are_those_of_the_store() -> None:
    derived = _derive((row([(0, pose_of(0))]), NAN, NAN), (row(), NAN, NAN))
    specs = {spec.name: spec for spec in LABELS}
    for name in DerivedObjects.__slots__:
        assert getattr(derived, name).shape == (2, *specs[name].shape), name
        assert np.can_cast(getattr(derived, name).dtype, specs[name].dtype, "same_kind"), name


# --- hands ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mano(tmp_path_factory: pytest.TempPathFactory) -> ManoModels:
    folder = tmp_path_factory.mktemp("mano")
    write_mano(folder, shapedirs_bug=True)
    return load_mano(folder)


def _parameters(num: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0, 0.4, (num, 48)), rng.normal(0, 1, (num, 10)), rng.normal(0, 0.3, (num, 3))


def test_right_hands_are_decoded_from_the_shape_as_shipped(mano: ManoModels) -> None:
    theta, beta, transl = _parameters(70)  # more than one chunk
    rows = []
    for i in range(70):
        labels = empty_labels()
        labels.theta[RIGHT], labels.beta_raw[RIGHT], labels.transl[RIGHT] = (
            theta[i],
            beta[i],
            transl[i],
        )
        labels.root_rest[RIGHT] = rest_root(mano.right, beta[i : i + 1])[0]
        rows.append(labels)
    found = hand_vertices(stack(*rows), mano, left_as_shipped=True)
    expected = mano_forward(mano.right, theta, beta, transl)[0]
    np.testing.assert_allclose(found[:, RIGHT], expected, atol=1e-12)
    assert np.isnan(found[:, LEFT]).all()


@pytest.mark.parametrize("as_shipped", [False, True])
def test_left_hands_are_decoded_as_they_were_fitted(mano: ManoModels, *, as_shipped: bool) -> None:
    theta, beta, transl = _parameters(3)
    fitted = mano.left_as_shipped if as_shipped else mano.left
    expected = mano_forward(fitted, theta, beta, transl)[0]
    refit = refit_left_betas(mano.left_as_shipped, mano.left, beta)
    rows = []
    for i in range(3):
        labels = empty_labels()
        labels.theta[LEFT], labels.beta_raw[LEFT] = theta[i], beta[i]
        # A refit as canonical.dexycb_hands stores it.
        labels.beta[LEFT] = refit.beta[i] if as_shipped else beta[i]
        labels.transl[LEFT] = transl[i] + (refit.transl_shift[i] if as_shipped else 0)
        labels.root_rest[LEFT] = rest_root(mano.left, labels.beta[LEFT][None])[0]
        rows.append(labels)
    found = hand_vertices(stack(*rows), mano, left_as_shipped=as_shipped)
    np.testing.assert_allclose(found[:, LEFT], expected, atol=1e-12)
    # The fixed model with the refitted shape would be over a millimetre off.
    other = mano_forward(mano.left, theta, refit.beta, transl + refit.transl_shift)[0]
    assert np.abs(other - expected).max() > (1e-3 if as_shipped else 0)


def test_a_hand_without_all_parameters_has_no_vertices(mano: ManoModels) -> None:
    labels = empty_labels()
    labels.theta[:], labels.beta_raw[:], labels.transl[:], labels.root_rest[:] = 0, 0, 0, 0
    labels.beta_raw[LEFT, 3] = np.nan
    found = hand_vertices(stack(labels), mano, left_as_shipped=True)
    assert np.isfinite(found[0, RIGHT]).all()
    assert np.isnan(found[0, LEFT]).all()


# --- distances ------------------------------------------------------------------------------------


def test_steps_are_those_of_a_box_on_either_hand() -> None:
    rows = []
    for i in range(4):
        pose = pose_of(i)
        rows.append((row([(1, np.nan), (0, pose)], grasped=1), _hand(i, pose), _hand(9 + i, pose)))
    derived = _derive(*rows)
    for i, (labels, *hands) in enumerate(rows):
        R, t = labels.object_pose[1, :, :3], labels.object_pose[1, :, 3]
        for hand in range(2):
            own = np.array([R.T @ (v - t) for v in hands[hand]])
            assert derived.contact_dist[i, hand].tolist() == _steps(_box_distance(own))
    assert (derived.contact_object == 1).all()
    assert derived.has_contact.all()
    assert derived.has_object[:, :3].tolist() == [[False, True, False]] * 4


def test_steps_are_those_of_trimesh() -> None:
    ball = trimesh.creation.icosphere(2, 0.04)
    ball = trimesh.Trimesh(
        ball.vertices * (1 + 0.2 * np.sin(90 * ball.vertices[:, :1])), ball.faces
    )
    pose = pose_of(3)
    hand = _hand(0, pose)
    derived = _derive((row([(0, pose)]), hand, NAN), meshes={0: _mesh(ball)})
    own = (hand - pose[:, 3]) @ pose[:, :3]
    distance = closest(ball, own)[1]
    outside = np.linalg.norm(own, axis=1) > 0.05
    found = derived.contact_dist[0, 0]
    assert found[outside].tolist() == _steps(distance[outside])
    assert (found[np.linalg.norm(own, axis=1) < 0.03] == 0).all()


@pytest.mark.parametrize(
    ("gap_mm", "touching"), [(2.9, True), (3.0, True), (3.01, False), (-5, True)]
)
def test_contact_is_within_three_millimetres(gap_mm: float, *, touching: bool) -> None:
    pose = np.concatenate([np.eye(3), [[0.0], [0.0], [0.0]]], axis=1)
    hand = np.tile([0.0, 0.0, SIDES[2] / 2 + 0.05], (778, 1))
    hand[400, 2] = SIDES[2] / 2 + gap_mm / 1000
    derived = _derive((row([(0, pose)]), hand, NAN))
    assert derived.in_contact.tolist() == [[touching, False]]


# --- which object ---------------------------------------------------------------------------------


def _two_objects(grasped: int, near: int, **changes: Any) -> tuple[Any, Any, Any]:
    poses = [pose_of(1, (0.0, 0.0, 0.8)), pose_of(2, (0.3, 0.0, 0.8))]
    labels = row(list(enumerate(poses)), grasped=grasped, **changes)
    return labels, _hand(0, poses[near]), NAN


@pytest.mark.parametrize(
    ("grasped", "near", "expected"), [(0, 1, 0), (1, 0, 1), (-1, 0, 0), (-1, 1, 1), (5, 1, 1)]
)
def test_the_object_is_the_grasped_one_else_the_nearest(
    grasped: int, near: int, expected: int
) -> None:
    derived = _derive(_two_objects(grasped, near))
    assert derived.contact_object.tolist() == [[expected, -1]]
    assert derived.has_contact.tolist() == [[True, False]]
    assert (derived.contact_dist[0, 0] < 255).any() == (expected == near)
    assert (derived.contact_dist[0, 1] == 255).all()


def test_a_grasped_object_without_a_pose_gives_way_to_the_nearest() -> None:
    poses = [pose_of(1), np.full((3, 4), np.nan), pose_of(2, (0.3, 0.0, 0.8))]
    labels = row(list(enumerate(poses)), grasped=1)
    derived = _derive((labels, _hand(0, poses[2]), _hand(1, poses[0])), meshes={0: BOX, 2: BOX})
    assert derived.contact_object.tolist() == [[2, 0]]


def test_hands_far_from_all_objects_have_a_nearest_one() -> None:
    poses = [pose_of(1), pose_of(2, (0.3, 0.0, 0.8))]
    far = [_hand(0, poses[0], (-3.0, 0, 0)), _hand(0, poses[1], (-3.0, 0, 0))]
    rows = row(list(enumerate(poses)))
    derived = _derive((rows, far[0], far[1]))
    for hand in range(2):
        own = [np.linalg.norm(far[hand] - pose[:, 3], axis=1).min() for pose in poses]
        assert derived.contact_object[0, hand] == int(np.argmin(own))
    assert (derived.contact_dist == 255).all()
    assert derived.has_contact.all()
    assert not derived.in_contact.any()


def test_of_equally_near_objects_the_lowest_slot_counts() -> None:
    pose = pose_of(1)
    derived = _derive((row([(1, pose), (0, pose)]), _hand(0, pose), NAN))
    assert derived.contact_object[0, 0] == 0


@pytest.mark.parametrize(("grasped", "known"), [(0, True), (1, False), (-1, False)])
def test_an_object_without_a_mesh_may_be_the_nearest(grasped: int, *, known: bool) -> None:
    derived = _derive(_two_objects(grasped, 0), meshes={0: BOX})
    assert derived.has_contact.tolist() == [[known, False]]


def test_rows_without_hand_or_object_have_no_contact() -> None:
    pose = pose_of(0)
    half = _hand(0, pose)
    half[3, 1] = np.nan
    derived = _derive(
        (row([(0, pose)]), NAN, half), (row(), _hand(0, pose), _hand(1, pose)),
        (row([(0, np.nan)], grasped=0), _hand(0, pose), NAN),
    )  # fmt: skip
    assert not derived.has_contact.any()
    assert not derived.in_contact.any()
    assert (derived.contact_object == -1).all()
    assert (derived.contact_dist == 255).all()


def test_without_mano_everything_but_contact_is_derived() -> None:
    joints = np.random.default_rng(0).normal(0, 0.1, (2, 21, 3))
    labels = row([(0, pose_of(0))], joints_3d=joints, joint_valid=True)
    derived = derive_objects(stack(labels), None, {0: BOX}, POINTS)
    assert not derived.has_contact.any()
    assert derived.has_object[0, 0]
    assert np.isfinite(derived.object_bbox_xyxy[0, 0]).all()
    assert np.isfinite(derived.palm_pose).all()
    assert np.isfinite(derived.aperture_m).all()


def test_rows_do_not_touch_each_other() -> None:
    """A row's labels are the same whatever rows share its shard."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        pose = pose_of(i % 3)
        camera = Rotation.random(rng=i).as_matrix()
        moved = np.concatenate([camera @ pose[:, :3], (camera @ pose[:, 3])[:, None]], axis=1)
        right = _hand(0, pose) @ camera.T + rng.normal(0, 1e-7, (778, 3))
        rows.append((row([(i % 2, moved), (2, np.nan)], grasped=0), right, NAN))
    together = _derive(*rows)
    for i, one in enumerate(rows):
        alone = _derive(one)
        np.testing.assert_array_equal(together.contact_dist[i], alone.contact_dist[0])
        np.testing.assert_array_equal(together.contact_object[i], alone.contact_object[0])


def test_both_parts_of_an_articulated_object_are_touched_where_they_are() -> None:
    """Against two boxes, one of them rotated by scipy, by the formula of a box."""
    sides = {1: (0.08, 0.01, 0.06), 0: (0.08, 0.05, 0.06)}
    centre = {1: np.array([0.04, 0.005, 0.0]), 0: np.array([0.04, -0.03, 0.0])}
    boxes = {i: trimesh.creation.box(sides[i]) for i in (1, 0)}
    vertices = [boxes[i].vertices + centre[i] for i in (1, 0)]
    mesh = Mesh(
        vertices=np.concatenate(vertices),
        faces=np.concatenate([boxes[1].faces, boxes[0].faces + len(vertices[0])]).astype(np.int64),
        part=np.repeat([1, 0], [len(v) for v in vertices]).astype(np.int8),
    )
    angles = [0.0, 0.7, -2.5, np.nan]
    rows = []
    for i, angle in enumerate(angles):
        pose = pose_of(i)
        rows.append((row([(0, pose)], object_arti_rad=angle), _hand(i, pose), NAN))
    derived = _derive(*rows, meshes={0: mesh})
    for i, angle in enumerate(angles):
        own = np.random.default_rng(i).uniform(-0.09, 0.09, (778, 3))
        closed = Rotation.from_rotvec([0, 0, -np.nan_to_num(angle)]).inv().apply(own)
        gaps = [
            np.linalg.norm(
                np.maximum(np.abs(points - centre[part]) - np.array(sides[part]) / 2, 0), axis=-1
            )
            for part, points in ((1, closed), (0, own))
        ]
        expected = np.array(_steps(np.minimum(*gaps)))
        assert np.abs(derived.contact_dist[i, 0].astype(int) - expected).max() <= 1
        assert (derived.contact_dist[i, 0] == expected).mean() > 0.99
    assert not np.array_equal(derived.contact_dist[0], derived.contact_dist[1])
