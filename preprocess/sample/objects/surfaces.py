"""Closed surfaces with texture coordinates: surfaces of revolution, boxes, level sets.

Every function returns one watertight surface with outward faces. Metres; +z is up.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import igl
import numpy as np

NUM_SIDES: Final = 40
"""Vertices per ring of a surface of revolution."""
_LONGEST_M: Final = 0.012
"""Longest step along a profile or an edge, metres."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Surface:
    """A surface with texture coordinates, as in ``ObjectMesh``."""

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray


Section = Callable[[np.ndarray], np.ndarray]
Distance = Callable[[np.ndarray], np.ndarray]


def ellipse(y_over_x: float, power: float = 2.0) -> Section:
    """Return a cross-section: radius 1 along x, ``y_over_x`` along y; power > 2 squares it off."""

    def section(angle: np.ndarray) -> np.ndarray:
        x, y = np.cos(angle), np.sin(angle)
        radius = (np.abs(x) ** power + np.abs(y) ** power) ** (-1.0 / power)
        return np.stack([radius * x, radius * y * y_over_x], axis=1)

    return section


def turned(profile: list[tuple[float, float]], section: Section | None = None) -> Surface:
    """Revolve a (radius, z) profile about z; it starts and ends on the axis, the body to its left.

    Texture: u runs around, v along the profile. ``section`` replaces the circle.
    """
    corners = _refined(np.array(profile))
    angle = np.arange(NUM_SIDES) * (2 * np.pi / NUM_SIDES)
    ring = (section or ellipse(1.0))(angle)
    inner = corners[1:-1]
    rings = np.concatenate(
        [
            inner[:, None, :1] * ring[None],
            np.repeat(inner[:, None, 1:], NUM_SIDES, axis=1),
        ],
        axis=2,
    )
    count = len(inner)
    poles = np.array([[0.0, 0.0, corners[0, 1]], [0.0, 0.0, corners[-1, 1]]])
    vertices = np.concatenate([rings.reshape(-1, 3), poles])
    places = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    v = places / places[-1]
    u = np.arange(NUM_SIDES + 1) / NUM_SIDES
    # One more column than ring vertices, for the seam. Each side has its own uv at the poles.
    grid = np.stack([np.tile(u, count), np.repeat(v[1:-1], NUM_SIDES + 1)], axis=1)
    middle = (np.arange(NUM_SIDES) + 0.5) / NUM_SIDES
    bottom = np.stack([middle, np.zeros(NUM_SIDES)], axis=1)
    top = np.stack([middle, np.ones(NUM_SIDES)], axis=1)
    faces, uv_faces = [], []
    here = np.arange(NUM_SIDES)
    after = (here + 1) % NUM_SIDES
    for row in range(count - 1):
        a, b = row * NUM_SIDES + here, row * NUM_SIDES + after
        c, d = b + NUM_SIDES, a + NUM_SIDES
        faces += [np.stack([a, b, c], 1), np.stack([a, c, d], 1)]
        s = row * (NUM_SIDES + 1) + here
        t = s + NUM_SIDES + 1
        uv_faces += [np.stack([s, s + 1, t + 1], 1), np.stack([s, t + 1, t], 1)]
    last = (count - 1) * NUM_SIDES
    first_pole = count * NUM_SIDES
    faces.append(np.stack([after, here, np.full(NUM_SIDES, first_pole)], 1))
    faces.append(np.stack([last + here, last + after, np.full(NUM_SIDES, first_pole + 1)], 1))
    s = (count - 1) * (NUM_SIDES + 1) + here
    places_of_poles = count * (NUM_SIDES + 1) + here
    uv_faces.append(np.stack([here + 1, here, places_of_poles], 1))
    uv_faces.append(np.stack([s, s + 1, places_of_poles + NUM_SIDES], 1))
    return Surface(
        vertices=vertices,
        faces=np.concatenate(faces),
        uv=np.concatenate([grid, bottom, top]),
        uv_faces=np.concatenate(uv_faces),
    )


def _refined(profile: np.ndarray) -> np.ndarray:
    """Subdivide a profile to steps of at most ``_LONGEST_M``."""
    points = [profile[:1]]
    for start, end in pairwise(profile):
        steps = int(np.ceil(np.linalg.norm(end - start) / _LONGEST_M))
        t = np.arange(1, steps + 1)[:, None] / steps
        points.append(start + t * (end - start))
    return np.concatenate(points)


def box(size: tuple[float, float, float]) -> Surface:
    """Return a box centred on the origin; its six faces use the cells of a 3 x 2 texture atlas.

    Cells from left to right, upper row: -x, +x, -y; lower row: +y, -z, +z.
    """
    half = np.array(size) / 2
    steps = np.maximum(np.ceil(np.array(size) / (2 * _LONGEST_M)).astype(int), 1)
    points, faces, places = [], [], []
    count = 0
    for cell in range(6):
        axis, sign = cell // 2, 1.0 if cell % 2 else -1.0
        # Across and up as seen from outside, with z up on the upright faces.
        up = 1 if axis == 2 else 2
        across = 3 - axis - up
        outward = np.zeros(3)
        outward[axis] = sign
        right = np.cross(np.eye(3)[up], outward)
        columns, rows = steps[across] + 1, steps[up] + 1
        s, t = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
        place = (
            outward
            + (2 * s.reshape(-1, 1) - 1) * right
            + (2 * t.reshape(-1, 1) - 1) * np.eye(3)[up]
        )
        points.append(place * half)
        low = np.arange(rows * columns).reshape(rows, columns)[:-1, :-1].ravel() + count
        faces += [
            np.stack([low, low + 1, low + columns + 1], 1),
            np.stack([low, low + columns + 1, low + columns], 1),
        ]
        corner = np.array([cell % 3 / 3, 0.5 - cell // 3 * 0.5])
        inside = 0.01 + 0.98 * np.stack([s.ravel(), t.ravel()], axis=1)
        places.append(corner + inside * [1 / 3, 0.5])
        count += rows * columns
    separate = np.concatenate(points)
    uv_faces = np.concatenate(faces)
    # Edges and corners are shared: merge coincident vertices.
    _, first, inverse = np.unique(
        np.round(separate, 9), axis=0, return_index=True, return_inverse=True
    )
    return Surface(
        vertices=separate[first],
        faces=inverse.ravel()[uv_faces],
        uv=np.concatenate(places),
        uv_faces=uv_faces,
    )


def level_set(
    distance: Distance,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    *,
    cell_m: float,
    num_faces: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and faces of the zero set of ``distance``, decimated to ``num_faces``."""
    counts = np.ceil((np.array(high) - low) / cell_m).astype(int) + 1
    axes = [low[i] + cell_m * np.arange(counts[i]) for i in range(3)]
    z, y, x = np.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    grid = np.stack([x.ravel(), y.ravel(), z.ravel()], axis=1)
    values = distance(grid)
    # A value of exactly 0 at a grid point would give zero-area triangles.
    values = np.where(np.abs(values) < 1e-7, 1e-7, values)
    vertices, faces, _ = igl.marching_cubes(values, grid, *(int(n) for n in counts))
    thin = igl.qslim(
        np.asfortranarray(vertices), np.asfortranarray(faces.astype(np.int32)), num_faces
    )
    vertices, faces = np.ascontiguousarray(thin[0]), np.ascontiguousarray(thin[1])
    if np.linalg.det(vertices[faces]).sum() < 0:
        faces = faces[:, ::-1]
    return vertices, np.ascontiguousarray(faces.astype(np.int64))


def wrapped(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    """Add cylindrical texture coordinates about z: u the angle, v the height.

    A face across the seam goes past u = 1, where the texture begins again.
    """
    low, high = vertices[:, 2].min(), vertices[:, 2].max()
    u = np.arctan2(vertices[:, 1], vertices[:, 0]) / (2 * np.pi) % 1.0
    v = (vertices[:, 2] - low) / (high - low)
    corner_u = u[faces]
    across = np.ptp(corner_u, axis=1) > 0.5
    corner_u[across] += corner_u[across] < 0.5
    uv = np.stack([corner_u, v[faces]], axis=2).reshape(-1, 2)
    return Surface(
        vertices=vertices, faces=faces, uv=uv, uv_faces=np.arange(faces.size).reshape(-1, 3)
    )


def pressed(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    """Add planar texture coordinates from +z (left half of the texture) and -z (right half)."""
    corner = vertices[faces]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    low, high = vertices.min(0), vertices.max(0)
    place = (corner[:, :, :2] - low[:2]) / (high - low)[:2]
    back = normal[:, 2] < 0
    place[:, :, 0] = 0.01 + 0.48 * place[:, :, 0]
    place[back, :, 0] = 1.0 - place[back, :, 0]
    return Surface(
        vertices=vertices,
        faces=faces,
        uv=place.reshape(-1, 2),
        uv_faces=np.arange(faces.size).reshape(-1, 3),
    )


# --- distances ------------------------------------------------------------------------------------


def round_box(
    centre: tuple[float, float, float], size: tuple[float, float, float], radius: float
) -> Distance:
    """Return the signed distance function of a box with rounded edges."""

    def distance(points: np.ndarray) -> np.ndarray:
        over = np.abs(points - centre) - np.array(size) / 2 + radius
        outside = np.linalg.norm(np.maximum(over, 0.0), axis=1)
        return np.asarray(outside + np.minimum(over.max(1), 0.0) - radius)

    return distance


def rod(
    start: tuple[float, float, float], end: tuple[float, float, float], r_start: float, r_end: float
) -> Distance:
    """Return the signed distance function of a round cone between two balls."""

    def distance(points: np.ndarray) -> np.ndarray:
        axis = np.array(end) - start
        t = np.clip((points - start) @ axis / (axis @ axis), 0.0, 1.0)
        near = np.array(start) + t[:, None] * axis
        return np.asarray(np.linalg.norm(points - near, axis=1) - r_start - t * (r_end - r_start))

    return distance


def disc(
    centre: tuple[float, float, float], radius: float, height: float, axis: int = 2
) -> Distance:
    """Return the signed distance function of a cylinder along a coordinate axis."""

    def distance(points: np.ndarray) -> np.ndarray:
        offset = points - centre
        around = np.linalg.norm(np.delete(offset, axis, axis=1), axis=1) - radius
        along = np.abs(offset[:, axis]) - height / 2
        both = np.maximum(np.stack([around, along], axis=1), 0.0)
        return np.asarray(np.linalg.norm(both, axis=1) + np.minimum(np.maximum(around, along), 0.0))

    return distance


def hoop(
    centre: tuple[float, float, float],
    radii: tuple[float, float],
    thickness: float,
    axis: int = 2,
) -> Distance:
    """Return an approximate distance function of an elliptic torus; ``axis`` is its normal."""

    def distance(points: np.ndarray) -> np.ndarray:
        offset = points - centre
        plane = np.delete(offset, axis, axis=1)
        scaled = np.linalg.norm(plane / radii, axis=1)
        # First-order distance to an ellipse: value over gradient norm.
        slope = np.linalg.norm(plane / np.square(radii), axis=1) / np.maximum(scaled, 1e-6)
        off = (scaled - 1.0) / np.maximum(slope, 1.0 / max(radii))
        return np.asarray(np.hypot(off, offset[:, axis]) - thickness)

    return distance


def union(*parts: Distance) -> Distance:
    """Return the distance function of the union of several parts."""
    return lambda points: np.asarray(np.min([part(points) for part in parts], axis=0))


def less(body: Distance, hole: Distance) -> Distance:
    """Return the distance function of a body minus a hole."""
    return lambda points: np.maximum(body(points), -hole(points))
