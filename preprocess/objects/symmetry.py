"""Symmetries of a shape: the turns that take its surface to itself, by geometry alone.

A turn counts if the turned surface is nowhere farther from the surface, and the surface from the
turned one, than a tolerance: their Hausdorff distance, save for the farthest 2 % of the points,
because a scan has holes (the handle of a mug is more than that). Candidates are
turns about the principal axes, the axes of the smallest box and those of the object's own frame;
each is fitted to the surface before it is judged, because a scan's axes are off by a degree. The
turns found are completed to a group, every member of which is judged.

Texture is ignored, so the set holds for the geometry, not for what a camera tells apart.

Source:
    Hodan et al. 2020, BOP Challenge 2020, section 2.3: symmetries are motions ``[S | s]`` of the
    object frame within a Hausdorff distance of max(15 mm, 0.1 diameter), reviewed by hand, and
    continuous ones are discretised. Nobody reviews here, so the tolerance is tighter.

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
"""Of the largest distance from the axis about which the shape is thinnest: a rod's turns move its
points little. A square is 0.29 of its radius from itself turned by an eighth."""
FOLDS: Final = (6, 5, 4, 3, 2)
CONTINUOUS_TURNS: Final = 180
"""Turns that stand for a continuous symmetry: every 2 degrees."""
BALL_DIRECTIONS: Final = 128
BALL_TURNS: Final = 16
_PROBES: Final = 2 * np.pi * np.arange(1, 16) / 31
"""Angles that show whether an axis is continuous; no k-fold axis with k < 31 has any of them."""
_SAME_TURN_RAD: Final = math.radians(15.0)
"""Two turns of one group nearer than this are the same one, found twice."""
_SAME_AXIS: Final = math.cos(math.radians(1.0))
_LARGEST_GROUP: Final = 60
_COUNTED: Final = 0.98
_JUDGED_POINTS: Final = 1024
_FIT_POINTS: Final = 256
_FIT_STEPS: Final = 12

Motion = Float64[np.ndarray, "3 4"]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Surface:
    """A mesh that can be asked for its nearest points."""

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
    """Return the motions ``[S | s]`` that take the surface to itself, the identity first.

    ``p -> S p + s`` in the object's frame, metres; every one is a turn about some axis, which need
    not pass through the origin of the frame. A shape with continuous turns about one axis gets
    ``CONTINUOUS_TURNS``, and as many again if it can be turned over; a ball gets turns spread over
    all rotations.

    Args:
        vertices: The mesh, metres.
        faces: The mesh.
        points: On its surface, dense: what is judged. Metres.
        diameter_m: Largest distance of two vertices, metres.
    """
    import igl

    try:
        centre, axes = _candidate_axes(vertices)
    except QhullError:  # a flat shape has no volume to turn
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
        motions = _with_turned_over(surface, *continuous[0], turns)
    else:
        motions = _group(surface, turns)
    return np.stack([np.eye(3, 4), *motions[1:]]).astype(np.float32)


# --- candidates -----------------------------------------------------------------------------------


def _candidate_axes(
    vertices: Float64[np.ndarray, "v 3"],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the middle of the convex hull and directions worth trying.

    The hull's volume and not the surface: a hole in a scan moves the latter's middle.
    """
    import trimesh

    hull = ConvexHull(vertices)
    middle = vertices[hull.vertices].mean(0)
    corners = vertices[hull.simplices] - middle  # [t, 3, 3]
    volume = np.abs(np.linalg.det(corners))  # six times that of a tetrahedron, apex at the middle
    centre = (corners.sum(1) * volume[:, None]).sum(0) / (4 * volume.sum())
    about = np.concatenate([corners, np.zeros_like(corners[:, :1])], axis=1) - centre
    total = about.sum(1)
    # Second moments of a tetrahedron about a point, up to a factor that all share.
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
    """Return axis and a point on it if any turn about it is a symmetry."""
    quarter = _fitted(surface, axis, centre, np.pi / 2)
    if quarter is None:
        return None
    axis = Rotation.from_matrix(quarter[:, :3]).as_rotvec() / (np.pi / 2)
    centre = _fixed_point(quarter, centre)
    for angle in _PROBES:
        if not _is_symmetry(surface, _about(_turn(axis, angle), centre)):
            return None
    return axis, centre


def _folds(surface: _Surface, axis: np.ndarray, centre: np.ndarray) -> list[Motion]:
    """Return the turns about an axis, by a share of a full one, that are symmetries."""
    motions = (_fitted(surface, axis, centre, 2 * np.pi / fold) for fold in FOLDS)
    return [motion for motion in motions if motion is not None and _is_symmetry(surface, motion)]


def _fitted(surface: _Surface, axis: np.ndarray, centre: np.ndarray, angle: float) -> Motion | None:
    """Return the turn by ``angle`` nearest to the candidate that fits best; None if it is far off.

    Closest points and the rigid motion to them, in turns (ICP), with the angle held and without a
    shift along the axis.
    """
    points = surface.points[:_FIT_POINTS]
    motion = _about(_turn(axis, angle), centre)
    _, distance = _nearest(surface, _moved(motion, points))
    if distance.mean() > surface.tolerance_m:  # no fit will bring the farthest point below it
        return None
    for _ in range(_FIT_STEPS):
        nearest, _ = _nearest(surface, _moved(motion, points))
        from_mean, to_mean = points.mean(0), nearest.mean(0)
        rotation, _ = Rotation.align_vectors(nearest - to_mean, points - from_mean)
        rotvec = rotation.as_rotvec()
        axis = rotvec / np.linalg.norm(rotvec) * (1.0 if rotvec @ axis >= 0 else -1.0)
        R = _turn(axis, angle)
        t = to_mean - R @ from_mean
        motion = np.concatenate([R, (t - axis * (axis @ t))[:, None]], axis=1)
    return motion


# --- judgement ------------------------------------------------------------------------------------


def _is_symmetry(surface: _Surface, motion: Motion) -> bool:
    return _deviation(surface, motion) <= surface.tolerance_m


def _deviation(surface: _Surface, motion: Motion) -> float:
    """Return the distance of surface and moved surface, metres; see the module."""
    # A point is as far from the moved surface as, moved back, from the surface.
    return max(
        float(np.quantile(_nearest(surface, _moved(direction, surface.points))[1], _COUNTED))
        for direction in (motion, _inverse(motion))
    )


def _nearest(surface: _Surface, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest points of the surface and their distances."""
    squared, _, nearest = surface.tree.squared_distance(surface.vertices, surface.faces, points)
    return nearest, np.sqrt(squared)


# --- groups ---------------------------------------------------------------------------------------


def _with_turned_over(
    surface: _Surface, axis: np.ndarray, centre: np.ndarray, turns: Iterable[Motion]
) -> list[Motion]:
    """Return the turns about a continuous axis, and with them those that turn it over."""
    spin = [
        _about(_turn(axis, angle), centre)
        for angle in 2 * np.pi * np.arange(CONTINUOUS_TURNS) / CONTINUOUS_TURNS
    ]
    over = next((turn for turn in turns if axis @ turn[:, :3] @ axis < -_SAME_AXIS), None)
    if over is None or not _is_symmetry(surface, over):
        return spin
    return [*spin, *(_after(turn, over) for turn in spin)]


def _group(surface: _Surface, turns: Iterable[Motion]) -> list[Motion]:
    """Return the identity and all products of some turns, the best fitting ones first.

    A turn whose products with the ones before are no symmetries is none itself: on a thin shape a
    wrong one can pass.
    """
    members: list[Motion] = [np.eye(3, 4)]
    for turn in sorted(turns, key=lambda turn: _deviation(surface, turn)):
        if not _known(turn, members):
            members = _closed(surface, [*members, turn]) or members
    return members


def _closed(surface: _Surface, motions: list[Motion]) -> list[Motion] | None:
    """Return all products of some motions, or None where they are not all symmetries."""
    members = list(motions)
    for member in members:  # grows on the way
        for motion in motions:
            product = _after(motion, member)
            if _known(product, members):
                continue
            if len(members) == _LARGEST_GROUP or not _is_symmetry(surface, product):
                return None
            members.append(product)
    return members


def _known(motion: Motion, members: Iterable[Motion]) -> bool:
    return any(_turned_rad(motion, other) < _SAME_TURN_RAD for other in members)


def _spread_rotations() -> list[np.ndarray]:
    """Return rotations spread over all of them, the identity first: z to a direction, then spin.

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


def _turn(axis: np.ndarray, angle: float) -> np.ndarray:
    return np.asarray(Rotation.from_rotvec(axis * angle).as_matrix())


def _about(R: np.ndarray, centre: np.ndarray) -> Motion:
    """Return the motion that turns about a point."""
    return np.concatenate([R, (centre - R @ centre)[:, None]], axis=1)


def _after(second: Motion, first: Motion) -> Motion:
    shift = second[:, :3] @ first[:, 3] + second[:, 3]
    return np.concatenate([second[:, :3] @ first[:, :3], shift[:, None]], axis=1)


def _inverse(motion: Motion) -> Motion:
    R = motion[:, :3].T
    return np.concatenate([R, -(R @ motion[:, 3])[:, None]], axis=1)


def _moved(motion: Motion, points: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(points @ motion[:, :3].T + motion[:, 3])


def _turned_rad(motion: Motion, other: Motion) -> float:
    """Return the angle between two motions' rotations."""
    return float(Rotation.from_matrix(motion[:, :3].T @ other[:, :3]).magnitude())


def _fixed_point(motion: Motion, near: np.ndarray) -> np.ndarray:
    """Return the point of a turn's axis that is nearest to ``near``."""
    shift = _moved(motion, near[None])[0] - near
    return np.asarray(near + np.linalg.pinv(np.eye(3) - motion[:, :3]) @ shift)
