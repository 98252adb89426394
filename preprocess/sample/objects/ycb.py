"""Synthetic objects: the 21 YCB objects of DexYCB by name, with procedural shapes and textures.

Size and outline follow the class (a can of 102 x 140 mm, a bowl of 159 mm); nothing comes from the
YCB scans. Every mesh is one watertight surface with counter-clockwise outward faces. As in the real
files, the origin is not the centre of the object; +z is up as it stands or lies on a table.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from preprocess.sample.objects.catalogue import RECIPES
from preprocess.sample.picture_file import save_picture
from preprocess.sources.ycb import YCB_NAMES

OBJECTS: Final = YCB_NAMES
"""Names by DexYCB id minus one."""
_OFFSETS_M: Final = ((0.0, 0.0, 0.0), (-0.012, 0.008, 0.021), (0.017, -0.022, -0.014))
"""Positions of the bounding box centre in the model frame, used cyclically."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectMesh:
    """A textured object mesh, metres, object frame.

    ``vertices`` [v, 3] float64 and ``faces`` [f, 3] int64 are one watertight surface; ``uv`` [t, 2]
    are texture coordinates with v up (u repeats), ``uv_faces`` [f, 3] their indices per face
    corner, as in an OBJ file (a seam vertex has two). ``texture`` uint8 [h, w, 3] RGB.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    uv_faces: np.ndarray
    texture: np.ndarray


@lru_cache(maxsize=len(OBJECTS))
def stand_in_object(name: str) -> ObjectMesh:
    """Return the synthetic object of a YCB name: deterministic, cached per process, read-only.

    Raises:
        KeyError: If the name is not in ``OBJECTS``.
    """
    surface, texture = RECIPES[name](name)
    middle = (surface.vertices.min(0) + surface.vertices.max(0)) / 2
    offset = _OFFSETS_M[OBJECTS.index(name) % len(_OFFSETS_M)]
    mesh = ObjectMesh(
        vertices=surface.vertices - middle + offset,
        faces=surface.faces.astype(np.int64),
        uv=surface.uv,
        uv_faces=surface.uv_faces.astype(np.int64),
        texture=texture,
    )
    for array in (mesh.vertices, mesh.faces, mesh.uv, mesh.uv_faces, mesh.texture):
        array.setflags(write=False)
    return mesh


def write_models(root: Path, names: Iterable[str]) -> None:
    """Write ``root/models/<name>/textured_simple.obj`` with its .mtl and texture; metres."""
    for name in names:
        mesh = stand_in_object(name)
        folder = root / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        corners = np.stack([mesh.faces + 1, mesh.uv_faces + 1], axis=2).reshape(-1, 6)
        text = [
            "mtllib textured_simple.obj.mtl",
            "usemtl material_0",
            *("v {:.8f} {:.8f} {:.8f}".format(*point) for point in mesh.vertices.tolist()),
            *("vt {:.6f} {:.6f}".format(*place) for place in mesh.uv.tolist()),
            *("f {}/{} {}/{} {}/{}".format(*face) for face in corners.tolist()),
        ]
        (folder / "textured_simple.obj").write_text("\n".join(text) + "\n", encoding="ascii")
        material = "newmtl material_0\nKa 1 1 1\nKd 1 1 1\nmap_Kd texture_map.png\n"
        (folder / "textured_simple.obj.mtl").write_text(material, encoding="ascii")
        save_picture(folder / "texture_map.png", mesh.texture[:, :, ::-1])
