"""Load object meshes and derive the shapes that a store keeps.

``load_mesh`` cleans a mesh once and everything is derived from the result: metres, vertices rounded
to float32 as in the store, duplicates merged, faces oriented outward. Scans are rarely watertight;
nothing here needs them to be.

Shape legend: v = vertices, f = faces, p = points.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int8, Int64, Shaped
from scipy.spatial import ConvexHull, QhullError
from scipy.spatial.distance import cdist

from pipeline.store.objects import ObjectShape
from pipeline.store.schema import OBJECT_POINTS, SDF_SIDE
from preprocess.objects.symmetry import find_symmetries
from preprocess.records import ObjectFile, SourceError

MESH_FORMATS: Final = (".obj", ".ply", ".stl", ".off")
SDF_MARGIN: Final = 0.1
"""Margin of the ``sdf`` cube on each side, as a fraction of the mesh box's longest side."""
_POINT_SEED: Final = 0
_BLOCK: Final = 1024
"""Hull vertices per chunk of the pairwise distance computation; bounds its memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mesh:
    """A triangle mesh in the object frame."""

    vertices: Float64[np.ndarray, "v 3"]
    """Metres; every one is used by a face."""
    faces: Int64[np.ndarray, "f 3"]
    """Counter-clockwise seen from outside."""
    part: Int8[np.ndarray, " v"]
    """Part per vertex: 0, or 1 for the rotating part (``preprocess.objects.articulation``)."""

    @property
    def face_part(self) -> Int8[np.ndarray, " f"]:
        """Return the part of each face by majority vote of its vertices."""
        most: Int8[np.ndarray, " f"] = (self.part[self.faces].sum(1) > 1).astype(np.int8)
        return most


def load_mesh(file: ObjectFile, root: Path) -> Mesh:
    """Load and clean the mesh of an object, without materials and textures.

    Args:
        file: The object; its mesh is in one of ``MESH_FORMATS``.
        root: Dataset root.

    Raises:
        SourceError: If the file is missing, of another format, broken, empty or has non-finite
            vertices.
    """
    path = root / file.mesh
    vertices, faces = _read(file.name, path)
    if len(faces) == 0:
        raise _unusable(file.name, path, "has no faces")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise _unusable(file.name, path, "has faces that name vertices it does not have")
    # No object comes near the float32 maximum: an overflow shows up as non-finite.
    with np.errstate(over="ignore"):
        rounded = (vertices * file.metres_per_unit).astype(np.float32)
    if not np.isfinite(rounded[faces]).all():
        raise _unusable(file.name, path, "has vertices that are not finite")
    mesh = _merged(rounded, faces, _read_part(file, root, len(vertices)))
    if len(mesh.faces) == 0:
        raise _unusable(file.name, path, "has no face with an area")
    return Mesh(vertices=mesh.vertices, faces=_outward(mesh), part=mesh.part)


def make_shape(file: ObjectFile, root: Path) -> ObjectShape:
    """Build the shape record of an object for the store; deterministic to the byte.

    Raises:
        SourceError: As ``load_mesh``.
    """
    mesh = load_mesh(file, root)
    points, normals, part_id = surface_points(mesh)
    diameter_m = largest_distance(mesh.vertices)
    sdf, sdf_box = signed_distance_grid(mesh)
    return ObjectShape(
        name=file.name,
        diameter_m=diameter_m,
        points=points.astype(np.float32),
        normals=normals.astype(np.float32),
        part_id=part_id,
        symmetries=(
            np.eye(3, 4, dtype=np.float32)[None]  # articulated: only the identity, at every angle
            if mesh.part.any()
            else find_symmetries(mesh.vertices, mesh.faces, points, diameter_m)
        ),
        sdf=sdf,
        sdf_box=sdf_box,
        vertices=mesh.vertices.astype(np.float32),
        vertex_part=mesh.part,
        faces=mesh.faces.astype(np.int32),
    )


def surface_points(
    mesh: Mesh,
) -> tuple[Float64[np.ndarray, "2048 3"], Float64[np.ndarray, "2048 3"], Int8[np.ndarray, " 2048"]]:
    """Sample surface points uniformly by area; return them, outward unit normals and parts."""
    import trimesh

    surface = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    points, face = trimesh.sample.sample_surface(surface, OBJECT_POINTS, seed=_POINT_SEED)
    normals = _face_vectors(mesh.vertices, mesh.faces[face])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.asarray(points, np.float64), normals, mesh.face_part[face]


def largest_distance(points: Float64[np.ndarray, "p 3"]) -> float:
    """Return the largest distance between two points (the diameter), metres."""
    ends = hull_points(points)
    return max(
        float(cdist(ends[start : start + _BLOCK], ends).max())
        for start in range(0, len(ends), _BLOCK)
    )


def hull_points(points: Float64[np.ndarray, "p 3"]) -> Float64[np.ndarray, "h 3"]:
    """Return the vertices of the convex hull; all points if they span no volume."""
    try:
        return points[ConvexHull(points).vertices]
    except QhullError:
        return points


def signed_distance_grid(
    mesh: Mesh,
) -> tuple[Float16[np.ndarray, "64 64 64"], Float32[np.ndarray, "2 3"]]:
    """Return the signed distance field at cell centres of a cube around the mesh, and its box.

    The cube is centred on the mesh's bounding box and extends ``SDF_MARGIN`` of the longest side
    beyond it. Negative inside, where the winding number exceeds one half, which closes the holes of
    a scan.

    Source:
        Barill et al. 2018, Fast winding numbers for soups and clouds.
    """
    import igl

    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    side = float((high - low).max()) * (1 + 2 * SDF_MARGIN)
    centre, half = (low + high) / 2, side * (1 - 1 / SDF_SIDE) / 2
    box = np.stack([centre - half, centre + half]).astype(np.float32)
    axes = np.linspace(box[0].astype(np.float64), box[1].astype(np.float64), SDF_SIDE)  # [64, 3]
    cells = np.stack(np.meshgrid(*axes.T, indexing="ij"), axis=-1).reshape(-1, 3)
    # igl.signed_distance scales the distance by 1 - 2 winding, which is wrong near the surface.
    tree, winding = igl.AABB(), igl.FastWindingNumberBVH()
    tree.init(mesh.vertices, mesh.faces)
    winding.init(mesh.vertices, mesh.faces)
    distance = np.sqrt(tree.squared_distance(mesh.vertices, mesh.faces, cells)[0])
    distance *= np.where(winding.winding_number(cells) > 0.5, -1.0, 1.0)
    return distance.astype(np.float16).reshape(SDF_SIDE, SDF_SIDE, SDF_SIDE), box


def _read(name: str, path: Path) -> tuple[Float64[np.ndarray, "v 3"], Int64[np.ndarray, "f 3"]]:
    """Return vertices and faces exactly as in the file."""
    import trimesh

    kind = path.suffix.lower()
    if kind not in MESH_FORMATS:
        raise _unusable(name, path, f"is not a supported mesh format ({', '.join(MESH_FORMATS)})")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unusable(name, path, f"cannot be read ({error.strerror})") from error
    try:
        # Parsed from memory, so that no other file (material, texture) can be opened.
        mesh: Any = trimesh.load_mesh(
            io.BytesIO(data), file_type=kind[1:], process=False, skip_materials=True
        )
        vertices = np.asarray(mesh.vertices, np.float64).reshape(-1, 3)
        faces = np.asarray(getattr(mesh, "faces", ()), np.int64).reshape(-1, 3)
    except Exception as error:  # trimesh's readers raise anything on a broken file
        raise _unusable(name, path, f"is broken ({type(error).__name__}: {error})") from error
    return vertices, faces


def _read_part(file: ObjectFile, root: Path, num_vertices: int) -> Int8[np.ndarray, " v"]:
    """Return the part of every vertex of the file: 1 for the rotating part."""
    if not file.moving_part:
        return np.zeros(num_vertices, np.int8)
    path = root / file.moving_part
    try:
        values = np.asarray(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not a JSON list of numbers"
        raise _unusable(file.name, path, f"cannot be used ({reason})") from error
    if values.shape != (num_vertices,) or not np.isin(values, (0, 1)).all():
        raise _unusable(
            file.name,
            path,
            f"must name a part, 0 or 1, for each of the {num_vertices} vertices of {file.mesh}",
        )
    moves: Int8[np.ndarray, " v"] = (values == 0).astype(np.int8)
    return moves


def _merged(
    vertices: Float32[np.ndarray, "v 3"],
    faces: Int64[np.ndarray, "f 3"],
    part: Int8[np.ndarray, " v"],
) -> Mesh:
    """Drop unused and duplicate vertices (texture seams) and zero-area faces.

    Vertices of different parts stay separate, even where they coincide.
    """
    used = np.unique(faces)
    keys = np.column_stack([vertices[used], part[used]])
    _, first, same = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    distinct, distinct_part = vertices[used][first], part[used][first]
    order = np.argsort(first)  # as in the file
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    index_of = np.zeros(len(vertices), np.int64)
    index_of[used] = rank[same.reshape(-1)]
    points, corners = distinct[order].astype(np.float64), index_of[faces]
    kept = corners[(_face_vectors(points, corners) != 0).any(1)]
    still, renamed = np.unique(kept, return_inverse=True)
    return Mesh(
        vertices=points[still],
        faces=renamed.reshape(-1, 3).astype(np.int64),
        part=distinct_part[order][still],
    )


def _outward(mesh: Mesh) -> Shaped[np.ndarray, "f 3"]:
    """Orient the faces consistently and outward.

    Within a connected patch the majority by area keeps its orientation, so that a cavity stays one.
    The sign of the volume, measured from the surface centroid, decides which side is outward.
    """
    import igl

    oriented, patch = igl.bfs_orient(mesh.faces)
    normals = _face_vectors(mesh.vertices, mesh.faces)
    turned = _face_vectors(mesh.vertices, oriented)
    agreement = np.bincount(patch, weights=np.einsum("fi,fi->f", normals, turned))
    wrong = agreement[patch] < 0
    oriented[wrong] = oriented[wrong][:, ::-1]
    turned[wrong] *= -1
    centres = mesh.vertices[oriented].mean(1)
    area = np.linalg.norm(turned, axis=1)
    middle = (centres * area[:, None]).sum(0) / area.sum()
    outward = float(np.einsum("fi,fi->", centres - middle, turned)) >= 0
    return np.ascontiguousarray(oriented if outward else oriented[:, ::-1])


def _face_vectors(
    vertices: Float64[np.ndarray, "v 3"], faces: Shaped[np.ndarray, "f 3"]
) -> Float64[np.ndarray, "f 3"]:
    """Return normals of length twice the face area; ``faces`` may have any integer type."""
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.asarray(np.cross(b - a, c - a))


def _unusable(name: str, path: Path, problem: str) -> SourceError:
    return SourceError(
        f"object {name!r}: the mesh {path} {problem}; copy the dataset's models again"
    )
