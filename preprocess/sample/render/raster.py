"""Software rasteriser: triangles to visible pixels, in numpy, without a loop over faces.

Every face is cut into pixel rows, every row into pixels, all faces at once; a z-buffer on 1/z keeps
the nearest face. Edge crossings are computed from the upper to the lower vertex, so two faces that
share an edge agree on it and leave no gap.

Pixel (0, 0) is the centre of the top-left pixel.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Fragments:
    """Visible pixels of a mesh, each at most once.

    ``pixel`` [m] flat index ``row * width + column``; ``face`` [m]; ``weight`` [m, 3] perspective
    correct barycentric weights of the face's vertices; ``depth`` [m] in the unit of the input.
    """

    pixel: np.ndarray
    face: np.ndarray
    weight: np.ndarray
    depth: np.ndarray

    def interpolate(self, faces: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Vertex values [n, c] at the fragments, [m, c] float32."""
        corners = values.astype(np.float32)[faces]
        flat = corners.reshape(len(faces), -1)[self.face].reshape(len(self.face), 3, -1)
        return np.asarray(np.einsum("mi,mic->mc", self.weight, flat))


def rasterise(
    points_px: np.ndarray,
    depth: np.ndarray,
    faces: np.ndarray,
    size_hw: tuple[int, int],
    *,
    cull: bool = True,
) -> Fragments:
    """Return the visible fragments of a triangle mesh.

    Args:
        points_px: Projected vertices [n, 2], pixels (x, y).
        depth: Distance along the optical axis [n], positive. Faces with a vertex at or behind 0 are
            dropped.
        faces: Vertex ids [f, 3], counter-clockwise seen from outside in right-handed coordinates.
        size_hw: Image height and width, pixels.
        cull: Drop faces seen from behind.
    """
    height, width = size_hw
    kept = np.flatnonzero((depth[faces] > 0).all(1))
    triangle = points_px[faces[kept]]
    edge_1, edge_2 = triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]
    area = edge_1[:, 0] * edge_2[:, 1] - edge_1[:, 1] * edge_2[:, 0]
    # With y down and z forward, an outward face has a negative signed area on the screen.
    front = area < 0 if cull else area != 0
    kept, triangle, area = kept[front], triangle[front], area[front]
    order = np.argsort(triangle[:, :, 1], axis=1, kind="stable")
    sorted_xy = np.take_along_axis(triangle, order[:, :, None], axis=1)
    face, row = _rows(sorted_xy, height)
    first, count = _spans(sorted_xy[face], row, width)
    face, row = np.repeat(face, count), np.repeat(row, count)
    column = _ramp(count) + np.repeat(first, count)
    inverse = 1.0 / depth[faces[kept]]
    plane, base = _planes(triangle, area)
    # Screen-space barycentric weights are linear; so is 1/z.
    slope_x = (plane[:, :, 0] * inverse).sum(1)
    slope_y = (plane[:, :, 1] * inverse).sum(1)
    offset = (base * inverse).sum(1)
    near = (slope_x[face] * column + slope_y[face] * row + offset[face]).astype(np.float32)
    pixel = row * width + column
    buffer = np.zeros(height * width, dtype=np.float32)
    np.maximum.at(buffer, pixel, near)
    winner = np.full(height * width, -1, dtype=np.int64)
    visible = np.flatnonzero(near == buffer[pixel])
    winner[pixel[visible]] = visible
    chosen = winner[winner >= 0]
    face, row, column = face[chosen], row[chosen], column[chosen]
    screen = (
        plane[face, :, 0] * column[:, None] + plane[face, :, 1] * row[:, None] + base[face]
    ).astype(np.float32)
    weight = screen * inverse[face].astype(np.float32)
    total = weight.sum(1)
    return Fragments(
        pixel=pixel[chosen], face=kept[face], weight=weight / total[:, None], depth=1.0 / total
    )


def _ramp(count: np.ndarray) -> np.ndarray:
    """0, 1, ..., count[0]-1, 0, 1, ..., count[1]-1, ..."""
    ends = np.cumsum(count)
    return np.asarray(np.arange(count.sum()) - np.repeat(ends - count, count))


def _rows(sorted_xy: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Face and row of every (face, pixel row) pair the faces touch."""
    top = np.clip(np.ceil(sorted_xy[:, 0, 1]), 0, height).astype(np.int64)
    bottom = np.clip(np.ceil(sorted_xy[:, 2, 1]), 0, height).astype(np.int64)
    count = np.maximum(bottom - top, 0)
    face = np.repeat(np.arange(len(sorted_xy)), count)
    return face, _ramp(count) + np.repeat(top, count)


def _spans(sorted_xy: np.ndarray, row: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """First column and number of columns of every (face, row) pair."""
    upper, middle, lower = sorted_xy[:, 0], sorted_xy[:, 1], sorted_xy[:, 2]
    in_upper = row < middle[:, 1]
    start = np.where(in_upper[:, None], upper, middle)
    end = np.where(in_upper[:, None], middle, lower)
    x_long = _crossing(upper, lower, row)
    x_short = _crossing(start, end, row)
    first = np.clip(np.ceil(np.minimum(x_long, x_short)), 0, width).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(x_long, x_short)), 0, width).astype(np.int64)
    return first, np.maximum(last - first, 0)


def _crossing(start: np.ndarray, end: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Where on x the edge ``start -> end`` crosses the row."""
    rise = end[:, 1] - start[:, 1]
    safe = np.where(rise > 0, rise, 1.0)
    return np.asarray(start[:, 0] + (row - start[:, 1]) / safe * (end[:, 0] - start[:, 0]))


def _planes(triangle: np.ndarray, area: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barycentric weight of each corner as ``plane @ (x, y) + base``: [f, 3, 2] and [f, 3]."""
    after, before = np.roll(triangle, -1, axis=1), np.roll(triangle, -2, axis=1)
    plane = (
        np.stack([after[:, :, 1] - before[:, :, 1], before[:, :, 0] - after[:, :, 0]], axis=2)
        / area[:, None, None]
    )
    base = after[:, :, 0] * before[:, :, 1] - before[:, :, 0] * after[:, :, 1]
    return plane, base / area[:, None]
