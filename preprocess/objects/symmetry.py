"""Rotational symmetries of an object: the rotations that map its surface onto itself.

A rotation is accepted if the Hausdorff distance between the surface and the rotated surface is
within a tolerance, ignoring the farthest 2 % of the points, because a scan has holes (the handle of
a mug is more than that). Candidates are rotations about the principal axes, the axes of the
smallest bounding box and those of the object's own frame; each is refined by ICP before it is
tested, because a scan's axes are off by a degree. The accepted rotations are closed to a group,
every member of which is tested.

Texture is ignored: these are symmetries of the geometry, not of the appearance.

Source:
    Hodan et al. 2020, BOP Challenge 2020, section 2.3: symmetries are motions ``[S | s]`` of the
    object frame within a Hausdorff distance of max(15 mm, 0.1 diameter), reviewed by hand, and
    continuous ones are discretised. There is no manual review here, so the tolerance is tighter.

Shape legend: v = vertices, f = faces, p = points, s = symmetries.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.transform import Rotation

TOLERANCE_OF_DIAMETER: Final = 0.03
TOLERANCE_OF_RADIUS: Final = 0.2
"""Fraction of the largest distance from the axis about which the shape is thinnest: rotations of a
rod about its axis move its points little. A square is 0.29 of its radius from itself rotated by
45 degrees."""
FOLDS: Final = (6, 5, 4, 3, 2)
CONTINUOUS_TURNS: Final = 180
"""Number of rotations that discretise a continuous symmetry: every 2 degrees."""
BALL_DIRECTIONS: Final = 128
BALL_TURNS: Final = 16
_PROBES: Final = 2 * np.pi * np.arange(1, 16) / 31
"""Angles that test an axis for continuous symmetry; no k-fold axis with k < 31 has any of them."""
_SAME_ROTATION_RAD: Final = math.radians(15.0)
"""Two rotations of one group closer than this are duplicates."""
_SAME_AXIS: Final = math.cos(math.radians(1.0))
_LARGEST_GROUP: Final = 60
_COUNTED: Final = 0.98
_JUDGED_POINTS: Final = 1024
_FIT_POINTS: Final = 256
_FIT_STEPS: Final = 12

Motion = Float64[np.ndarray, "3 4"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Surface:
    """A mesh with a search tree for nearest-point queries."""

    vertices: Float64[np.ndarray, "v 3"]
    faces: Int64[np.ndarray, "f 3"]
    points: Float64[np.ndarray, "p 3"]
    tree: Any
    """``igl.AABB``."""
    tolerance_m: float


def find_symmetries(
    vertices: Float64[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    points: Float64[np.ndarray, "p 3"],
    diameter_m: float,
) -> Float32[np.ndarray, "s 3 4"]:
    """Return the rigid motions ``[S | s]`` that map the surface onto itself, the identity first.

    ``p -> S p + s`` in the object frame, metres; each is a rotation about some axis, which need not
    pass through the origin of the frame. A shape with continuous symmetry about one axis gets
    ``CONTINUOUS_TURNS`` rotations, and as many again if it can be flipped end over end; a ball gets
    rotations spread over all of SO(3).

    Args:
        vertices: Mesh vertices, metres.
        faces: Mesh faces.
        points: Dense points on the surface, on which symmetries are tested, metres.
        diameter_m: Largest distance between two vertices, metres.
    """
    import igl

    try:
        centre, axes = _candidate_axes(vertices)
    except QhullError:  # a flat shape has no volume
        return np.eye(3, 4, dtype=np.float32)[None]
    tree = igl.AABB()
    tree.init(vertices, faces)
    radius = min(np.linalg.norm(np.cross(vertices - centre, axis), axis=1).max() for axis in axes)
    surface = _Surface(
        vertices=vertices,
        faces=faces,
        points=points[:_JUDGED_POINTS],
        tree=tree,
        tolerance_m=min(TOLERANCE_OF_DIAMETER * diameter_m, TOLERANCE_OF_RADIUS * float(radius)),
    )
    continuous: list[tuple[np.ndarray, np.ndarray]] = []
    turns: list[Motion] = []
    for axis in axes:
        if (found := _continuous_axis(surface, axis, centre)) is not None:
            if all(abs(found[0] @ other) < _SAME_AXIS for other, _ in continuous):
                continuous.append(found)
        else:
            turns += _folds(surface, axis, centre)
    if len(continuous) > 1:
        motions = [_about(R, continuous[0][1]) for R in _spread_rotations()]
    elif continuous:
        motions = _with_flipped(surface, *continuous[0], turns)
    else:
        motions = _group(surface, turns)
    return np.stack([np.eye(3, 4), *motions[1:]]).astype(np.float32)


# --- candidates -----------------------------------------------------------------------------------


def _candidate_axes(
    vertices: Float64[np.ndarray, "v 3"],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the centroid of the convex hull and candidate axis directions.

    Moments of the hull's volume, not of the surface: a hole in a scan shifts the surface centroid.
    """
    import trimesh

    hull = ConvexHull(vertices)
    middle = vertices[hull.vertices].mean(0)
    corners = vertices[hull.simplices] - middle  # [t, 3, 3]
    volume = np.abs(np.linalg.det(corners))  # six times that of a tetrahedron, apex at ``middle``
    centre = (corners.sum(1) * volume[:, None]).sum(0) / (4 * volume.sum())
    about = np.concatenate([corners, np.zeros_like(corners[:, :1])], axis=1) - centre
    total = about.sum(1)
    # Second moments of a tetrahedron about a point, up to a common factor.
    moments = np.einsum("t,tki,tkj->ij", volume, about, about)
    moments += np.einsum("t,ti,tj->ij", volume, total, total)
    principal = np.linalg.eigh(moments)[1].T
    box = trimesh.bounds.oriented_bounds(vertices)[0][:3, :3]  # type: ignore[no-untyped-call]
    axes: list[np.ndarray] = []
    for axis in (*np.eye(3), *principal, *box):
        if all(abs(axis @ other) < _SAME_AXIS for other in axes):
            axes.append(axis)
    return middle + centre, axes


def _continuous_axis(
    surface: _Surface, axis: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the refined axis and a point on it if the shape is continuously symmetric about it."""
    quarter = _fitted(surface, axis, centre, np.pi / 2)
    if quarter is None:
        return None
    axis = Rotation.from_matrix(quarter[:, :3]).as_rotvec() / (np.pi / 2)
    centre = _fixed_point(quarter, centre)
    for angle in _PROBES:
        if not _is_symmetry(surface, _about(_rotation(axis, angle), centre)):
            return None
    return axis, centre


def _folds(surface: _Surface, axis: np.ndarray, centre: np.ndarray) -> list[Motion]:
    """Return the k-fold rotations about an axis that are symmetries."""
    motions = (_fitted(surface, axis, centre, 2 * np.pi / fold) for fold in FOLDS)
    return [motion for motion in motions if motion is not None and _is_symmetry(surface, motion)]


def _fitted(surface: _Surface, axis: np.ndarray, centre: np.ndarray, angle: float) -> Motion | None:
    """Refine a candidate rotation by ``angle`` with ICP; None if it is far off.

    The angle is held fixed and there is no translation along the axis.
    """
    points = surface.points[:_FIT_POINTS]
    motion = _about(_rotation(axis, angle), centre)
    _, distance = _nearest(surface, _moved(motion, points))
    if distance.mean() > surface.tolerance_m:  # no fit will bring the farthest point below it
        return None
    for _ in range(_FIT_STEPS):
        nearest, _ = _nearest(surface, _moved(motion, points))
        from_mean, to_mean = points.mean(0), nearest.mean(0)
        rotation, _ = Rotation.align_vectors(nearest - to_mean, points - from_mean)
        rotvec = rotation.as_rotvec()
        axis = rotvec / np.linalg.norm(rotvec) * (1.0 if rotvec @ axis >= 0 else -1.0)
        R = _rotation(axis, angle)
        t = to_mean - R @ from_mean
        motion = np.concatenate([R, (t - axis * (axis @ t))[:, None]], axis=1)
    return motion


# --- test -----------------------------------------------------------------------------------------


def _is_symmetry(surface: _Surface, motion: Motion) -> bool:
    return _deviation(surface, motion) <= surface.tolerance_m


def _deviation(surface: _Surface, motion: Motion) -> float:
    """Return the robust Hausdorff distance of surface and moved surface, metres; see the module."""
    # Distance to the moved surface = distance of the inversely moved point to the surface.
    return max(
        float(np.quantile(_nearest(surface, _moved(direction, surface.points))[1], _COUNTED))
        for direction in (motion, _inverse(motion))
    )


def _nearest(surface: _Surface, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest surface points and their distances."""
    squared, _, nearest = surface.tree.squared_distance(surface.vertices, surface.faces, points)
    return nearest, np.sqrt(squared)


# --- groups ---------------------------------------------------------------------------------------


def _with_flipped(
    surface: _Surface, axis: np.ndarray, centre: np.ndarray, turns: Iterable[Motion]
) -> list[Motion]:
    """Return the rotations about a continuous axis, also combined with a flip if there is one."""
    spin = [
        _about(_rotation(axis, angle), centre)
        for angle in 2 * np.pi * np.arange(CONTINUOUS_TURNS) / CONTINUOUS_TURNS
    ]
    over = next((turn for turn in turns if axis @ turn[:, :3] @ axis < -_SAME_AXIS), None)
    if over is None or not _is_symmetry(surface, over):
        return spin
    return [*spin, *(_after(turn, over) for turn in spin)]


def _group(surface: _Surface, turns: Iterable[Motion]) -> list[Motion]:
    """Return the group generated by some rotations, added best fit first; starts with the identity.

    A rotation whose products with the earlier ones are not all symmetries is rejected: on a thin
    shape a wrong one can pass the test.
    """
    members: list[Motion] = [np.eye(3, 4)]
    for turn in sorted(turns, key=lambda turn: _deviation(surface, turn)):
        if not _known(turn, members):
            members = _closed(surface, [*members, turn]) or members
    return members


def _closed(surface: _Surface, motions: list[Motion]) -> list[Motion] | None:
    """Return the closure of some motions under products, None if not all are symmetries."""
    members = list(motions)
    for member in members:  # grows during the loop
        for motion in motions:
            product = _after(motion, member)
            if _known(product, members):
                continue
            if len(members) == _LARGEST_GROUP or not _is_symmetry(surface, product):
                return None
            members.append(product)
    return members


def _known(motion: Motion, members: Iterable[Motion]) -> bool:
    return any(_angle_rad(motion, other) < _SAME_ROTATION_RAD for other in members)


def _spread_rotations() -> list[np.ndarray]:
    """Return rotations spread over SO(3), the identity first: tilt z to a direction, then spin.

    Source:
        Directions on a Fibonacci sphere.
    """
    i = np.arange(BALL_DIRECTIONS)
    z = 1 - 2 * i / (BALL_DIRECTIONS - 1)
    azimuth = i * np.pi * (3 - math.sqrt(5))
    tilt = Rotation.from_euler("ZYZ", np.stack([azimuth, np.arccos(z), -azimuth], axis=1))
    spin = Rotation.from_euler("Z", (2 * np.pi * np.arange(BALL_TURNS) / BALL_TURNS)[:, None])
    return [(first * second).as_matrix() for first in tilt for second in spin]


# --- motions --------------------------------------------------------------------------------------


def _rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    return np.asarray(Rotation.from_rotvec(axis * angle).as_matrix())


def _about(R: np.ndarray, centre: np.ndarray) -> Motion:
    """Return the motion that applies ``R`` about a point."""
    return np.concatenate([R, (centre - R @ centre)[:, None]], axis=1)


def _after(second: Motion, first: Motion) -> Motion:
    shift = second[:, :3] @ first[:, 3] + second[:, 3]
    return np.concatenate([second[:, :3] @ first[:, :3], shift[:, None]], axis=1)


def _inverse(motion: Motion) -> Motion:
    R = motion[:, :3].T
    return np.concatenate([R, -(R @ motion[:, 3])[:, None]], axis=1)


def _moved(motion: Motion, points: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(points @ motion[:, :3].T + motion[:, 3])


def _angle_rad(motion: Motion, other: Motion) -> float:
    """Return the angle between the rotations of two motions, radians."""
    return float(Rotation.from_matrix(motion[:, :3].T @ other[:, :3]).magnitude())


def _fixed_point(motion: Motion, near: np.ndarray) -> np.ndarray:
    """Return the point on a rotation's axis that is nearest to ``near``."""
    shift = _moved(motion, near[None])[0] - near
    return np.asarray(near + np.linalg.pinv(np.eye(3) - motion[:, :3]) @ shift)
