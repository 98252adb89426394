"""Synthetic versions of ARCTIC's articulated objects: a base and a lid that rotates about z.

The object frame is that of the real files: the lid rotates by the angle about -z through the
origin. As it stands on a table the object's y axis is up; at angle 0 the lid lies on the base.
Millimetres in the files, metres here.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from preprocess.sample.objects.surfaces import box
from preprocess.sample.objects.textures import Colour, fill, plain, worn, write
from preprocess.sample.objects.ycb import ObjectMesh


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Metres: length along x, depth along z, heights of base and lid along y."""

    length: float
    depth: float
    base: float
    lid: float
    colours: tuple[Colour, Colour]
    """Colours of base and lid."""


RECIPES: Final = {
    "box": Recipe(
        length=0.16, depth=0.11, base=0.06, lid=0.016, colours=((176, 120, 70), (206, 160, 96))
    ),
    "laptop": Recipe(
        length=0.19, depth=0.13, base=0.014, lid=0.008, colours=((70, 74, 82), (150, 154, 160))
    ),
    "microwave": Recipe(
        length=0.15, depth=0.12, base=0.10, lid=0.018, colours=((196, 62, 58), (232, 226, 214))
    ),
}


@lru_cache(maxsize=len(RECIPES))
def stand_in_parts(name: str) -> tuple[ObjectMesh, ObjectMesh]:
    """Return lid and base of an object at angle 0, object frame, metres.

    Raises:
        KeyError: If there is no recipe for the name.
    """
    recipe = RECIPES[name]
    base = _part(name, (recipe.length, recipe.base, recipe.depth), -recipe.base, recipe.colours[0])
    lid = _part(name, (recipe.length, recipe.lid, recipe.depth), 0.0, recipe.colours[1])
    return lid, base


def _part(name: str, size: tuple[float, float, float], bottom: float, colour: Colour) -> ObjectMesh:
    """A box from x = -length to 0, with a word on it so that its pose can be seen."""
    surface = box(size)
    texture = plain(colour)
    dark = tuple(int(0.45 * c) for c in colour)
    ink = (dark[0], dark[1], dark[2])
    for cell in range(6):
        left, low = cell % 3 / 3, 0.5 - cell // 3 * 0.5
        fill(texture, (left + 0.02, left + 0.06 + 0.03 * cell), (low + 0.04, low + 0.12), ink)
        write(texture, name, (left + 1 / 6, low + 0.28), 0.22, ink)
    shift = np.array([-size[0] / 2, bottom + size[1] / 2, 0.0])
    return ObjectMesh(
        vertices=surface.vertices + shift,
        faces=surface.faces.astype(np.int64),
        uv=surface.uv,
        uv_faces=surface.uv_faces.astype(np.int64),
        texture=worn(texture, name),
    )


def turned(points: np.ndarray, angle_rad: float) -> np.ndarray:
    """Return points [n, 3] of the lid at an angle, rotated about -z."""
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    return np.asarray(points @ np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]]).T)


def write_objects(folder: Path, names: list[str]) -> None:
    """Write ``object_vtemplates/<name>`` and ``object_meta.json`` below ``folder``."""
    diameters = {}
    for name in names:
        lid, base = stand_in_parts(name)
        own = folder / "object_vtemplates" / name
        own.mkdir(parents=True, exist_ok=True)
        both = np.concatenate([lid.vertices, base.vertices])
        faces = np.concatenate([lid.faces, base.faces + len(lid.vertices)])
        for file, vertices, triangles in (
            ("mesh.obj", both, faces),
            ("top.obj", lid.vertices, lid.faces),
            ("bottom.obj", base.vertices, base.faces),
        ):
            lines = ["v {:.6f} {:.6f} {:.6f}".format(*p) for p in (1000 * vertices).tolist()]
            lines += ["f {} {} {}".format(*f) for f in (triangles + 1).tolist()]
            (own / file).write_text("\n".join(lines) + "\n", encoding="ascii")
        parts = [0] * len(lid.vertices) + [1] * len(base.vertices)  # 0 is the lid
        (own / "parts.json").write_text(json.dumps(parts))
        rng = np.random.default_rng(0)
        params: dict[str, list[list[float]]] = {}
        for part, mesh in (("top", lid), ("bottom", base)):
            low, high = 1000 * mesh.vertices.min(0), 1000 * mesh.vertices.max(0)
            corners = [[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]
            params[f"bbox_{part}"] = (low + np.array(corners) * (high - low)).tolist()
            points = 1000 * mesh.vertices[rng.integers(0, len(mesh.vertices), 316)]
            params[f"keypoints_{part}"] = points[:16].tolist()
            params[f"mocap_{part}"] = points[:4].tolist()
            (own / f"{part}_keypoints_300.json").write_text(
                json.dumps({"keypoints": points[16:].tolist()})
            )
        (own / "object_params.json").write_text(json.dumps(params))
        between = np.linalg.norm(both[:, None] - both[None], axis=-1)
        diameters[name] = {"diameter": float(between.max())}
    (folder / "object_meta.json").write_text(json.dumps(diameters))
