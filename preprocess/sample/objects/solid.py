"""Signed distance of points to a synthetic object on the table.

An object *stands* on the plane z = 0 with the centre of its box above the origin. Metres.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import igl
import numpy as np
from scipy.ndimage import map_coordinates

from preprocess.sample.objects.ycb import OBJECTS, stand_in_object

_GRID_CELL_M: Final = 0.0035
_GRID_MARGIN_M: Final = 0.028


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Solid:
    """A standing object: vertices [v, 3], faces [f, 3], a grid of signed distances.

    ``grid`` [x, y, z] has its first cell at ``low`` [3].
    """

    vertices: np.ndarray
    faces: np.ndarray
    grid: np.ndarray
    low: np.ndarray

    def distance(self, points: np.ndarray) -> np.ndarray:
        """Return the signed distance [n] of points [n, 3], negative inside."""
        found = igl.signed_distance(
            np.ascontiguousarray(points),
            self.vertices,
            self.faces,
            sign_type=igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL,
        )
        return np.asarray(found[0])

    def near(self, points: np.ndarray) -> np.ndarray:
        """Return the signed distance [n]: exact within 4 mm of the surface, else from the grid."""
        value = self.roughly(points)
        close = np.abs(value) < 0.004
        if close.any():
            value[close] = self.distance(points[close])
        return value

    def roughly(self, points: np.ndarray) -> np.ndarray:
        """Return the approximate signed distance [*] of points [*, 3], from the grid."""
        high = self.low + _GRID_CELL_M * (np.array(self.grid.shape) - 1)
        inside = np.clip(points, self.low, high)
        at = np.moveaxis((inside - self.low) / _GRID_CELL_M, -1, 0)
        value = map_coordinates(self.grid, at, order=1, mode="nearest")
        return np.asarray(value + np.linalg.norm(points - inside, axis=-1), dtype=np.float64)


@lru_cache(maxsize=len(OBJECTS))
def standing(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``T_stand_from_obj`` [4, 4] of an object and its standing vertices [v, 3]."""
    vertices = stand_in_object(name).vertices
    low, high = vertices.min(0), vertices.max(0)
    place = np.eye(4)
    place[:3, 3] = -np.array([*(low + high)[:2] / 2, low[2]])
    return place, vertices + place[:3, 3]


@lru_cache(maxsize=len(OBJECTS))
def solid_of(name: str) -> Solid:
    """Return an object standing on the table; the first call takes about a tenth of a second."""
    _, vertices = standing(name)
    start = vertices.min(0) - _GRID_MARGIN_M
    counts = np.ceil((vertices.max(0) + _GRID_MARGIN_M - start) / _GRID_CELL_M).astype(int) + 1
    axes = [start[i] + _GRID_CELL_M * np.arange(counts[i]) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    faces = np.array(stand_in_object(name).faces)
    found = igl.signed_distance(
        points, vertices, faces, sign_type=igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    )[0]
    return Solid(
        vertices=vertices,
        faces=faces,
        grid=found.reshape(counts).astype(np.float32),
        low=start,
    )
