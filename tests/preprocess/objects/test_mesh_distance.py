"""Against trimesh's brute force, analytic distances, and every row computed by itself."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import trimesh

from preprocess.objects.mesh_distance import contact_steps, make_solid, outside_distance, to_steps
from preprocess.objects.shapes import Mesh

closest: Any = trimesh.proximity.closest_point_naive
SIDES = np.array([0.06, 0.1, 0.04])


def _mesh(mesh: trimesh.Trimesh) -> Mesh:
    return Mesh(
        vertices=np.ascontiguousarray(mesh.vertices, np.float64),
        faces=np.ascontiguousarray(mesh.faces, np.int64),
        part=np.zeros(len(mesh.vertices), np.int8),
    )


def _box_distance(points: np.ndarray) -> np.ndarray:
    """Distance to a solid box about the origin, 0 inside."""
    return np.asarray(np.linalg.norm(np.maximum(np.abs(points) - SIDES / 2, 0), axis=-1))


def _bumpy() -> trimesh.Trimesh:
    ball = trimesh.creation.icosphere(2, 0.04)
    return trimesh.Trimesh(
        ball.vertices * (1 + 0.2 * np.sin(90 * ball.vertices[:, :1])), ball.faces
    )


def test_distances_are_those_of_a_box() -> None:
    points = np.random.default_rng(0).uniform(-0.15, 0.15, (40, 50, 3))
    found = outside_distance(make_solid(_mesh(trimesh.creation.box(SIDES))), points)
    assert (found == 0).sum() > 5
    np.testing.assert_allclose(found, _box_distance(points), atol=1e-12)


def test_distances_are_those_of_trimesh() -> None:
    mesh = _bumpy()
    points = np.random.default_rng(1).uniform(-0.1, 0.1, (400, 3))
    expected = closest(mesh, points)[1]
    inside = np.linalg.norm(points, axis=1) < 0.03
    outside = np.linalg.norm(points, axis=1) > 0.05
    found = outside_distance(make_solid(_mesh(mesh)), points)
    assert inside.any()
    np.testing.assert_array_equal(found[inside], 0)
    np.testing.assert_allclose(found[outside], expected[outside], atol=1e-12)


def test_a_hole_of_a_scan_does_not_open_the_solid() -> None:
    ball = trimesh.creation.icosphere(3, 0.05)
    ball.update_faces(ball.triangles_center[:, 2] < 0.045)
    assert not ball.is_watertight
    solid = make_solid(_mesh(ball))
    assert outside_distance(solid, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.04]])).tolist() == [0, 0]
    above = np.array([[0.0, 0.0, 0.06], [0.0, 0.02, 0.08]])
    expected = closest(ball, above)[1]
    np.testing.assert_allclose(outside_distance(solid, above), expected, atol=1e-12)


@pytest.mark.parametrize("step", [0, 1, 2, 12, 13, 100, 253, 254])
def test_a_whole_number_of_steps_is_that_number(step: int) -> None:
    above = SIDES[2] / 2 + float(Fraction(step, 4000))
    places = np.array([[[0.0, 0.0, above], [0.01, 0.02, above + 1e-7], [0, 0, above - 1e-7]]])
    found = contact_steps(make_solid(_mesh(trimesh.creation.box(SIDES))), places)
    assert found.tolist() == [[step, step + 1, max(step, 0)]]


def test_steps_end_at_63_and_a_half_millimetres() -> None:
    assert to_steps(np.array([0.0, 63.25e-3, 63.5e-3, 63.5001e-3, 0.1, np.inf])).tolist() == [
        0, 253, 254, 255, 255, 255,
    ]  # fmt: skip


def test_steps_are_rounded_up() -> None:
    distance = np.random.default_rng(0).uniform(0, 0.07, 5000)
    found = to_steps(distance)
    for d, step in zip(distance.tolist(), found.tolist(), strict=True):
        assert step == min(-int(-Fraction(d) * 4000 // 1), 255)


def test_points_inside_have_no_distance() -> None:
    inside = np.random.default_rng(0).uniform(-0.49, 0.49, (3, 100, 3)) * SIDES
    found = contact_steps(make_solid(_mesh(trimesh.creation.box(SIDES))), inside)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("noise_m", [0.0, 1e-7, 5e-6, 1e-4])
@pytest.mark.parametrize("holes", [False, True])
def test_rows_that_repeat_have_the_steps_of_each_by_itself(noise_m: float, *, holes: bool) -> None:
    mesh = _bumpy()
    if holes:
        mesh.update_faces(mesh.triangles_center[:, 2] < 0.02)
    solid = make_solid(_mesh(mesh))
    rng = np.random.default_rng(2)
    # Points on whole steps from the surface, points inside, points around, points far away.
    on, face = trimesh.sample.sample_surface(mesh, 300, seed=1)
    stepped = on + mesh.face_normals[face] * (rng.integers(-8, 250, (300, 1)) * 0.25e-3)
    base = np.concatenate([stepped, rng.uniform(-0.13, 0.13, (300, 3))])
    rows = base + rng.normal(0, noise_m, (40, 600, 3))
    rows[::7] += 0.003
    found = contact_steps(solid, rows)
    alone = np.stack([contact_steps(solid, row[None])[0] for row in rows])
    np.testing.assert_array_equal(found, alone)
    direct = to_steps(outside_distance(solid, rows))
    np.testing.assert_array_equal(found, direct)
    assert {0, 255} < set(found.reshape(-1).tolist())


def test_rows_that_repeat_are_not_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocess.objects import mesh_distance

    asked = []
    measure = mesh_distance._measure

    def counted(solid: mesh_distance.Solid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        asked.append(len(points))
        return measure(solid, points)

    monkeypatch.setattr(mesh_distance, "_measure", counted)
    rng = np.random.default_rng(0)
    rows = rng.uniform(-0.1, 0.1, (1, 778, 3)) + rng.normal(0, 1e-7, (80, 778, 3))
    contact_steps(make_solid(_mesh(trimesh.creation.box(SIDES))), rows)
    assert sum(asked) < 778 + 0.03 * rows[..., 0].size


def test_no_rows_have_no_steps() -> None:
    solid = make_solid(_mesh(trimesh.creation.box(SIDES)))
    assert contact_steps(solid, np.empty((0, 778, 3))).shape == (0, 778)


def test_rows_that_repeat_across_the_last_step_differ() -> None:
    place = np.zeros((2, 50, 3))
    place[0, :, 2] = SIDES[2] / 2 + 63.5e-3 - 5e-7
    place[1] = place[0] + [0, 0, 1e-6]
    found = contact_steps(make_solid(_mesh(trimesh.creation.box(SIDES))), place)
    assert found.tolist() == [[254] * 50, [255] * 50]
