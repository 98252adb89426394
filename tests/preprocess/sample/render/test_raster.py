import numpy as np
import pytest

from preprocess.sample.render.raster import Fragments, rasterise

SIZE = (24, 31)


def brute_force(
    points: np.ndarray, depth: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest face and its depth per pixel, by a ray through every pixel against every plane."""
    face_of = np.full(SIZE, -1)
    depth_of = np.full(SIZE, np.inf)
    for row in range(SIZE[0]):
        for column in range(SIZE[1]):
            ray = np.array([column, row, 1.0])
            for i, face in enumerate(faces):
                corners = np.column_stack([points[face], np.ones(3)]) * depth[face][:, None]
                weights = np.linalg.solve(corners.T, ray)
                if (weights > 0).all() and 1.0 / weights.sum() < depth_of[row, column]:
                    depth_of[row, column] = 1.0 / weights.sum()
                    face_of[row, column] = i
    return face_of, depth_of


def images(fragments: Fragments) -> tuple[np.ndarray, np.ndarray]:
    face_of = np.full(SIZE[0] * SIZE[1], -1)
    depth_of = np.full(SIZE[0] * SIZE[1], np.inf)
    face_of[fragments.pixel] = fragments.face
    depth_of[fragments.pixel] = fragments.depth
    return face_of.reshape(SIZE), depth_of.reshape(SIZE)


@pytest.mark.parametrize("seed", range(3))
def test_visible_faces_and_depths_equal_ray_casting(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-6.0, 34.0, (15, 2))
    depth = rng.uniform(0.5, 2.0, 15)
    faces = np.arange(15).reshape(5, 3)
    found_face, found_depth = images(rasterise(points, depth, faces, SIZE, cull=False))
    face, true_depth = brute_force(points, depth, faces)
    np.testing.assert_array_equal(found_face, face)
    seen = face >= 0
    np.testing.assert_allclose(found_depth[seen], true_depth[seen], rtol=1e-5)


def test_shared_edges_leave_no_gap_and_no_overlap() -> None:
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[0:7, 0:8]
    grid = np.stack([columns, rows], -1).reshape(-1, 2) * 5.0 - 2.0
    inner = (rows > 0) & (rows < 6) & (columns > 0) & (columns < 7)
    grid[inner.ravel()] += rng.uniform(-1.4, 1.4, (inner.sum(), 2))
    faces = []
    for r in range(6):
        for c in range(7):
            a = r * 8 + c
            faces += [[a, a + 1, a + 8], [a + 1, a + 9, a + 8]]
    fragments = rasterise(grid, np.ones(len(grid)), np.array(faces), SIZE, cull=False)
    counts = np.bincount(fragments.pixel, minlength=SIZE[0] * SIZE[1])
    np.testing.assert_array_equal(counts, 1)


def test_interpolation_is_perspective_correct() -> None:
    space = np.array([[-1.0, -0.9, 1.8], [1.9, -0.5, 3.1], [-0.3, 1.2, 2.2]])
    K = np.array([[20.0, 0, 15], [0, 20.0, 12], [0, 0, 1]])
    pixel = space @ K.T
    fragments = rasterise(
        pixel[:, :2] / pixel[:, 2:], space[:, 2], np.arange(3)[None], SIZE, cull=False
    )
    assert len(fragments.pixel) > 20
    at = fragments.interpolate(np.arange(3)[None], space)
    back = at @ K.T
    expected = np.stack([fragments.pixel % SIZE[1], fragments.pixel // SIZE[1]], 1)
    np.testing.assert_allclose(back[:, :2] / back[:, 2:], expected, atol=1e-4)
    np.testing.assert_allclose(at[:, 2], fragments.depth, rtol=1e-5)


def test_faces_seen_from_behind_and_behind_the_camera_are_dropped() -> None:
    points = np.array([[2.0, 2.0], [20.0, 3.0], [9.0, 20.0]])
    depth = np.ones(3)
    towards = np.array([[0, 2, 1]])  # outward normal towards the camera: clockwise in y-down pixels
    assert len(rasterise(points, depth, towards, SIZE).pixel) > 0
    assert len(rasterise(points, depth, towards[:, ::-1], SIZE).pixel) == 0
    assert len(rasterise(points, np.array([1.0, 1.0, -1.0]), towards, SIZE).pixel) == 0
