import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import trimesh
from scipy.spatial.distance import cdist, pdist
from scipy.spatial.transform import Rotation

from preprocess.objects.symmetry import find_symmetries

closest: Any = trimesh.proximity.closest_point_naive
TURNED = Rotation.from_rotvec([0.3, -0.5, 0.7])
SHIFT = np.array([0.03, 0.1, -0.2])
"""Centre of a rotated shape in its object frame."""


def _mug() -> Any:
    cup = trimesh.creation.annulus(r_min=0.035, r_max=0.04, height=0.08, sections=32)
    handle = trimesh.creation.box([0.03, 0.01, 0.03]).apply_translation([0.05, 0, 0.02])
    return trimesh.util.concatenate([cup, handle])


def _scanned(mesh: Any) -> trimesh.Trimesh:
    """A closed mesh as a scanner leaves it: noise of half a millimetre, and a hole."""
    mesh = mesh.subdivide_to_size(0.012)
    rng = np.random.default_rng(0)
    mesh.vertices += mesh.vertex_normals * rng.normal(0, 0.0005, (len(mesh.vertices), 1))
    hole = np.linalg.norm(mesh.triangles_center - mesh.vertices[100], axis=1) < 0.012
    mesh.update_faces(~hole)
    return trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    name: str
    mesh: trimesh.Trimesh
    num: int
    middle: tuple[float, float, float] = (0, 0, 0)


CASES = (
    Case(name="box", mesh=trimesh.creation.box([0.16, 0.21, 0.07]), num=4),
    Case(name="square_prism", mesh=trimesh.creation.box([0.05, 0.05, 0.2]), num=8),
    Case(name="cube", mesh=trimesh.creation.box([0.06, 0.06, 0.06]), num=24),
    Case(name="thin_square_rod", mesh=trimesh.creation.box([0.01, 0.01, 0.2]), num=8),
    Case(name="thin_rod", mesh=trimesh.creation.box([0.01, 0.02, 0.2]), num=4),
    Case(name="triangle_prism", mesh=trimesh.creation.cylinder(0.04, 0.05, sections=3), num=6),
    Case(name="hexagon_prism", mesh=trimesh.creation.cylinder(0.04, 0.15, sections=6), num=12),
    Case(name="cylinder", mesh=trimesh.creation.cylinder(0.04, 0.15, sections=48), num=360),
    Case(
        name="cone",
        mesh=trimesh.creation.cone(0.04, 0.1, sections=48),
        num=180,
        middle=(0, 0, 0.025),
    ),
    Case(name="mug", mesh=_mug(), num=1),
)
ALL = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@functools.cache
def _of_case(case: Case, *, moved: bool) -> Any:
    return _symmetries(_moved(case.mesh) if moved else case.mesh)


def _symmetries(mesh: trimesh.Trimesh) -> Any:
    vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    faces = np.ascontiguousarray(mesh.faces, np.int64)
    points = np.asarray(trimesh.sample.sample_surface(mesh, 2048, seed=1)[0])
    return find_symmetries(vertices, faces, points, float(pdist(vertices).max()))


def _moved(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    mesh = mesh.copy()
    mesh.vertices = TURNED.apply(mesh.vertices) + SHIFT
    return mesh


@ALL
@pytest.mark.parametrize("moved", [False, True], ids=["aligned", "moved"])
def test_a_known_shape_has_its_symmetries(case: Case, *, moved: bool) -> None:
    found = _of_case(case, moved=moved)
    assert found.shape == (case.num, 3, 4)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], np.eye(3, 4))
    R = found[:, :, :3].astype(np.float64)
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1) - np.eye(3), 0, atol=1e-6)
    assert (np.linalg.det(R) > 0).all()
    # All are different: the nearest two of a continuous set are 2 degrees apart.
    angles = [Rotation.from_matrix(R[0].T @ other).magnitude() for other in R[1:]]
    assert min(angles, default=1.0) > np.radians(1.99)


@ALL
def test_symmetries_take_the_corners_to_the_surface(case: Case) -> None:
    mesh = _moved(case.mesh)
    for S in _of_case(case, moved=True)[::7].astype(np.float64):
        turned = mesh.vertices[::5] @ S[:, :3].T + S[:, 3]
        distance = closest(mesh, turned)[1]
        # 48 sections: the rim turned by half a section is r (1 - cos(pi / 48)) off.
        assert distance.max() < 0.04 * (1 - np.cos(np.pi / 48)) + 2e-5


@ALL
def test_symmetries_keep_the_middle_of_a_shape_off_the_origin(case: Case) -> None:
    middle = TURNED.apply(case.middle) + SHIFT
    S = _of_case(case, moved=True).astype(np.float64)
    np.testing.assert_allclose(
        S[:, :, :3] @ middle + S[:, :, 3], np.tile(middle, (len(S), 1)), atol=2e-5
    )


def test_a_box_turns_over_each_of_its_axes() -> None:
    own = _of_case(CASES[0], moved=True)[:, :, :3].astype(np.float64)
    R = TURNED.as_matrix()
    found = {tuple(np.round(np.diag(R.T @ S @ R)).astype(int).tolist()) for S in own}
    assert found == {(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)}


def test_a_cylinder_turns_in_steps_of_two_degrees_and_over() -> None:
    S = _of_case(CASES[7], moved=False)[:, :, :3].astype(np.float64)
    upright = S[:, 2, 2] > 0
    for turns in (S[upright], S[~upright]):
        angle = np.sort(np.degrees(np.arctan2(turns[:, 1, 0], turns[:, 0, 0])))
        assert len(angle) == 180
        np.testing.assert_allclose(np.diff(angle), 2.0, atol=1e-3)


@pytest.mark.parametrize(
    ("mesh", "num"),
    [
        (trimesh.creation.box([0.16, 0.21, 0.07]), 4),
        (trimesh.creation.box([0.08, 0.08, 0.2]), 8),
        (trimesh.creation.cylinder(0.05, 0.1, sections=24), 360),
    ],
    ids=["box", "square_prism", "can"],
)
def test_a_scan_has_the_symmetries_of_what_was_scanned(mesh: trimesh.Trimesh, num: int) -> None:
    S = _symmetries(_moved(_scanned(mesh))).astype(np.float64)
    assert len(S) == num
    # The axis of the scan is that of the object, to half a degree; its middle to half a millimetre.
    z = np.abs(
        np.einsum("i,sij,j->s", TURNED.apply([0, 0, 1]), S[:, :, :3], TURNED.apply([0, 0, 1]))
    )
    assert np.degrees(np.arccos(np.clip(z, -1, 1))).max() < 0.5
    assert np.linalg.norm(S[:, :, :3] @ SHIFT + S[:, :, 3] - SHIFT, axis=1).max() < 5e-4


def test_a_ball_can_be_turned_to_within_a_step_of_any_pose() -> None:
    S = _symmetries(_moved(trimesh.creation.icosphere(3, 0.04))).astype(np.float64)
    assert S.shape == (2048, 3, 4)
    np.testing.assert_array_equal(S[0], np.eye(3, 4))
    np.testing.assert_allclose(
        S[:, :, :3] @ SHIFT + S[:, :, 3], np.tile(SHIFT, (2048, 1)), atol=1e-4
    )
    quats, poses = Rotation.from_matrix(S[:, :, :3]), Rotation.random(200, rng=0)
    cosine = 1 - cdist(poses.as_quat(), quats.as_quat(), "cosine")
    assert np.degrees(2 * np.arccos(np.abs(cosine).max(1).clip(-1, 1))).max() < 25


def test_a_flat_shape_has_the_identity_alone() -> None:
    sheet = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]])
    np.testing.assert_array_equal(_symmetries(sheet), np.eye(3, 4)[None])
