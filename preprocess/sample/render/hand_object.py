"""Rendering hand-object scenes: textured objects, a hand with forearm, a table, a room.

Colour is rendered at twice the resolution and averaged down; depth and segmentation are those of
the ray through each pixel's centre.
"""

import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import igl
import numpy as np
from scipy.spatial.transform import Rotation

from preprocess.camera import pixels
from preprocess.sample.grasp.scene import HandObjectSequence
from preprocess.sample.hand.skin import (
    SkinAtlas,
    draw_skin,
    sample_skin,
    smooth_noise,
    vertex_normals,
)
from preprocess.sample.objects.ycb import OBJECTS, ObjectMesh, stand_in_object
from preprocess.sample.render.background import draw_background
from preprocess.sample.render.hand import (
    SUPERSAMPLING,
    Lights,
    Picture,
    Sight,
    arm_faces,
    cast_shadow,
    compose,
    shade,
    skin_coordinates,
    with_forearm,
)
from preprocess.sample.render.raster import Fragments, rasterise

HAND: Final = 255
"""Value of the hand in ``RenderedFrame.segmentation``."""
_TABLE_HALF_M: Final = np.array([0.85, 0.65])
_TABLE_PX_PER_M: Final = 400.0
_SHADOW_HALF_M: Final = 0.6
_SHADOW_PX: Final = 256
_CREASE_DEG: Final = 40.0
"""Edges sharper than this are shaded sharp."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RenderedFrame:
    """One picture: ``rgb`` uint8 [h, w, 3].

    ``depth_m`` float32 [h, w] along the optical axis, 0 where nothing was hit; the table has depth.
    ``segmentation`` uint8 [h, w]: 0 background and table, 1 + object slot, 255 hand and forearm.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    segmentation: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Look:
    """Appearance of a sequence: skin, forearm, light directions in the world, table."""

    skin: SkinAtlas
    wrist_bend: np.ndarray
    lights: Lights
    table: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Body:
    """One body in the camera frame: its label, geometry, and normals of every face's corners."""

    label: int
    vertices: np.ndarray
    faces: np.ndarray
    corner_normals: np.ndarray
    mesh: ObjectMesh | None
    """Its texture; None: skin."""


def render_frame(
    sequence: HandObjectSequence,
    frame: int,
    K: np.ndarray,
    T_cam_from_world: np.ndarray,
    size_hw: tuple[int, int],
    look_key: tuple[int, ...],
) -> RenderedFrame:
    """Render one frame as a camera sees it; a pure function of its arguments.

    Args:
        sequence: The scene.
        frame: Index of the frame.
        K: Intrinsics [3, 3], pixels.
        T_cam_from_world: Camera pose [4, 4].
        size_hw: Image height and width, pixels.
        look_key: Non-negative integers behind skin, light, table and room; one per sequence gives
            all its cameras and frames the same look.
    """
    bodies = _bodies(sequence, frame, T_cam_from_world, look_key)
    return render_bodies(bodies, frame, K, T_cam_from_world, size_hw, look_key)


def render_bodies(
    parts: list[Body],
    frame: int,
    K: np.ndarray,
    T_cam_from_world: np.ndarray,
    size_hw: tuple[int, int],
    look_key: tuple[int, ...],
) -> RenderedFrame:
    """Render bodies over a table (z = 0 in the world) in a room; arguments as ``render_frame``."""
    look = _look(look_key)
    vertices = np.concatenate([part.vertices for part in parts])
    starts = np.cumsum([0, *(len(part.vertices) for part in parts)])
    faces = np.concatenate(
        [part.faces + start for part, start in zip(parts, starts[:-1], strict=True)]
    )
    owner = np.repeat(np.arange(len(parts)), [len(part.faces) for part in parts])
    pixel = pixels(vertices, K)
    camera_id = zlib.crc32(T_cam_from_world.tobytes())
    backdrop = _blurred_background(look_key, camera_id, size_hw)
    background, table_depth = _behind(K, T_cam_from_world, look, backdrop, vertices, faces)
    exact = rasterise(pixel, vertices[:, 2], faces, size_hw)
    depth = table_depth.ravel()
    depth[exact.pixel] = exact.depth
    labels = np.zeros(depth.shape, dtype=np.uint8)
    labels[exact.pixel] = np.array([part.label for part in parts], dtype=np.uint8)[
        owner[exact.face]
    ]
    picture = _draw(parts, pixel, vertices, faces, owner, T_cam_from_world, size_hw, look)
    noise = np.random.default_rng([*look_key, 3, frame, camera_id])
    return RenderedFrame(
        rgb=compose(picture, background, noise),
        depth_m=depth.reshape(size_hw),
        segmentation=labels.reshape(size_hw),
    )


@lru_cache(maxsize=8)
def _look(look_key: tuple[int, ...]) -> _Look:
    """Sample the appearance of a sequence."""
    rng = np.random.default_rng([*look_key, 0])
    height, azimuth = rng.uniform(0.7, 1.3), rng.uniform(0, 2 * np.pi)
    key = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * np.cos(height)
    key[2] = np.sin(height)
    fill = np.array([-np.cos(azimuth), -np.sin(azimuth), 0.8]) / np.hypot(1.0, 0.8)
    warmth = rng.normal(0.0, 0.06)
    sky = rng.uniform(0.32, 0.50) * (1.0 + rng.normal(0.0, 0.04, 3))
    lights = Lights(
        key=key,
        fill=fill,
        key_rgb=rng.uniform(0.45, 0.75) * np.array([1.0 + warmth, 1.0, 1.0 - warmth]),
        fill_rgb=rng.uniform(0.05, 0.25) * np.ones(3),
        sky_rgb=sky,
        ground_rgb=sky * rng.uniform(0.5, 0.8),
        gloss=rng.uniform(0.02, 0.12),
    )
    return _Look(
        skin=draw_skin(rng),
        wrist_bend=np.clip(rng.normal(0.0, [0.05, 0.10, 0.10]), -0.25, 0.25),
        lights=lights,
        table=_draw_table(rng),
    )


def _draw_table(rng: np.random.Generator) -> np.ndarray:
    """Draw a table top, float32 [h, w, 3], sRGB: cloth, wood or plain, a light or a dark one."""
    width, height = (2 * _TABLE_HALF_M * _TABLE_PX_PER_M).astype(int)
    tone = rng.uniform(60, 205) + rng.normal(0.0, 14.0, 3)
    image = np.full((height, width, 3), tone, dtype=np.float32)
    kind = rng.integers(3)
    if kind == 0:
        rows, columns = np.mgrid[:height, :width].astype(np.float32)
        wave = np.sin(rows / 9.0 + 2.5 * np.sin(columns / 140.0)) + np.sin(rows / 31.0)
        image += 7.0 * wave[:, :, None]
    elif kind == 1:
        pitch = int(rng.integers(24, 60))
        image[::pitch] *= 0.86
        image[:, ::pitch] *= 0.86
    image += smooth_noise(rng, (height, width), (4, 16, 64, 160), 7.0)[:, :, None]
    return np.asarray(np.clip(image, 0, 255))


@lru_cache(maxsize=16)
def _blurred_background(
    look_key: tuple[int, ...], camera_id: int, size_hw: tuple[int, int]
) -> np.ndarray:
    """What a camera sees behind the table, out of focus, float32 [h, w, 3]."""
    rng = np.random.default_rng([*look_key, 1, camera_id])
    small = draw_background(rng, (size_hw[0] // 4, size_hw[1] // 4))
    return np.asarray(cv2.resize(small, size_hw[::-1], interpolation=cv2.INTER_CUBIC))


@lru_cache(maxsize=len(OBJECTS))
def _corner_normals(name: str) -> np.ndarray:
    return corner_normals(stand_in_object(name))


def object_body(label: int, mesh: ObjectMesh, normals: np.ndarray, pose: np.ndarray) -> Body:
    """Return an object at ``pose`` [4, 4] in the camera; normals [f, 3, 3] of its face corners."""
    return Body(
        label=label,
        vertices=mesh.vertices @ pose[:3, :3].T + pose[:3, 3],
        faces=mesh.faces,
        corner_normals=normals @ pose[:3, :3].T,
        mesh=mesh,
    )


def hand_body(
    label: int,
    side: str,
    vertices: np.ndarray,
    root_rotmat: np.ndarray,
    look_key: tuple[int, ...],
) -> Body:
    """Return a hand with its forearm; ``vertices`` [778, 3] and root in the camera."""
    look = _look(look_key)
    sight = Sight(
        vertices=vertices,
        is_right=side == "right",
        root_rotmat=root_rotmat,
        skin=look.skin,
        wrist_bend=look.wrist_bend,
    )
    body, faces = with_forearm(sight), arm_faces(side)
    normals = vertex_normals(body, faces)[faces]
    return Body(label=label, vertices=body, faces=faces, corner_normals=normals, mesh=None)


def corner_normals(mesh: ObjectMesh) -> np.ndarray:
    """Return normals [f, 3, 3] of an object's face corners, its own frame."""
    normals = igl.per_corner_normals(np.array(mesh.vertices), np.array(mesh.faces), _CREASE_DEG)
    return np.asarray(normals.reshape(-1, 3, 3))


def _bodies(
    sequence: HandObjectSequence,
    frame: int,
    T_cam_from_world: np.ndarray,
    look_key: tuple[int, ...],
) -> list[Body]:
    """Objects and hand of a frame in the camera frame."""
    bodies = []
    for slot, name in enumerate(sequence.object_names):
        pose = T_cam_from_world @ sequence.T_world_from_obj[frame, slot]
        bodies.append(object_body(1 + slot, stand_in_object(name), _corner_normals(name), pose))
    if sequence.hand_there[frame]:
        turn, shift = T_cam_from_world[:3, :3], T_cam_from_world[:3, 3]
        root = Rotation.from_rotvec(sequence.theta[frame, :3]).as_matrix()
        vertices = sequence.vertices[frame] @ turn.T + shift
        bodies.append(hand_body(HAND, sequence.side, vertices, turn @ root, look_key))
    return bodies


def _draw(
    parts: list[Body],
    pixel: np.ndarray,
    vertices: np.ndarray,
    faces: np.ndarray,
    owner: np.ndarray,
    T_cam_from_world: np.ndarray,
    size_hw: tuple[int, int],
    look: _Look,
) -> Picture:
    """Render colour and coverage of all bodies."""
    scale = SUPERSAMPLING
    height, width = size_hw[0] * scale, size_hw[1] * scale
    seen = rasterise((pixel + 0.5) * scale - 0.5, vertices[:, 2], faces, (height, width))
    lights = _turned(look.lights, T_cam_from_world[:3, :3])
    corner_normals = np.concatenate([part.corner_normals for part in parts])
    lit = cast_shadow(vertices, faces, lights.key)[faces]
    corners = np.concatenate([corner_normals, lit[:, :, None]], axis=2).astype(np.float32)
    at = _mixed(seen.weight, corners[seen.face])
    albedo = np.zeros((len(seen.pixel), 3), dtype=np.float32)
    part_of = owner[seen.face]
    first = np.searchsorted(owner, np.arange(len(parts)))
    for i, part in enumerate(parts):
        mine = np.flatnonzero(part_of == i)
        if len(mine):
            albedo[mine] = _albedo(part, seen, mine, int(first[i]), look.skin)
    canvas = np.zeros((height * width, 4), dtype=np.float32)
    canvas[seen.pixel, :3] = shade(albedo, at[:, :3], at[:, 3], lights)
    canvas[seen.pixel, 3] = 1.0
    small = cv2.resize(
        canvas.reshape(height, width, 4), size_hw[::-1], interpolation=cv2.INTER_AREA
    )
    return Picture(rgb=small[:, :, :3], cover=small[:, :, 3])


def _turned(lights: Lights, turn: np.ndarray) -> Lights:
    """Lights with their directions in the camera frame."""
    return Lights(
        key=turn @ lights.key,
        fill=turn @ lights.fill,
        key_rgb=lights.key_rgb,
        fill_rgb=lights.fill_rgb,
        sky_rgb=lights.sky_rgb,
        ground_rgb=lights.ground_rgb,
        gloss=lights.gloss,
    )


def _mixed(weight: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Interpolate values [m, c] from those at a face's corners [m, 3, c]."""
    total = weight[:, :1] * corners[:, 0]
    total += weight[:, 1:2] * corners[:, 1]
    total += weight[:, 2:] * corners[:, 2]
    return np.asarray(total)


def _albedo(
    part: Body, seen: Fragments, mine: np.ndarray, first_face: int, skin: SkinAtlas
) -> np.ndarray:
    """Colours [m, 3] of some fragments of one part, float32, sRGB."""
    face, weight = seen.face[mine] - first_face, seen.weight[mine]
    if part.mesh is None:
        at = _mixed(weight, skin_coordinates().astype(np.float32)[part.faces][face])
        return sample_skin(skin, at[:, :2], at[:, 2])
    mesh = part.mesh
    uv = _mixed(weight, mesh.uv.astype(np.float32)[mesh.uv_faces][face])
    height, width = mesh.texture.shape[:2]
    # remap takes two-dimensional maps of at most 32767 rows.
    columns = 256
    rows = -(-len(uv) // columns)
    places = np.zeros((2, rows * columns), dtype=np.float32)
    places[0, : len(uv)] = uv[:, 0] * width - 0.5
    places[1, : len(uv)] = np.clip((1.0 - uv[:, 1]) * height - 0.5, 0, height - 1)
    x, y = places.reshape(2, rows, columns)
    found = cv2.remap(
        mesh.texture.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    return np.asarray(found.reshape(-1, 3)[: len(uv)])


def _behind(
    K: np.ndarray,
    T_cam_from_world: np.ndarray,
    look: _Look,
    backdrop: np.ndarray,
    vertices: np.ndarray,
    faces: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Room and table with the shadows on it, float32 [h, w, 3], and the table's depth [h, w]."""
    height, width = backdrop.shape[:2]
    turn, shift = T_cam_from_world[:3, :3], T_cam_from_world[:3, 3]
    eye = -shift @ turn
    # Rays in the world, one unit deep: an affine function of the pixel.
    M = turn.T @ np.linalg.inv(K)
    x, y = np.arange(width), np.arange(height)[:, None]
    dx, dy, dz = (M[i, 0] * x + M[i, 1] * y + M[i, 2] for i in range(3))
    depth = -eye[2] / np.where(dz < -1e-6, dz, -1e-6)
    hit_x, hit_y = eye[0] + depth * dx, eye[1] + depth * dy
    on = (depth > 0) & (np.abs(hit_x) < _TABLE_HALF_M[0]) & (np.abs(hit_y) < _TABLE_HALF_M[1])
    world = (vertices - shift) @ turn
    dark = _table_shadow(world, faces, look.lights.key)
    level = np.sqrt(look.lights.sky_rgb + look.lights.key_rgb * look.lights.key[2])
    shaded = np.sqrt(look.lights.sky_rgb * 0.8)

    def looked(image: np.ndarray, half: np.ndarray, px_per_m: float) -> np.ndarray:
        across = ((hit_x + half[0]) * px_per_m - 0.5).astype(np.float32)
        down = ((hit_y + half[1]) * px_per_m - 0.5).astype(np.float32)
        return np.asarray(cv2.remap(image, across, down, cv2.INTER_LINEAR))

    top = looked(look.table, _TABLE_HALF_M, _TABLE_PX_PER_M)
    share = looked(dark, np.full(2, _SHADOW_HALF_M), _SHADOW_PX / (2 * _SHADOW_HALF_M))[..., None]
    colour = top * (level + (shaded - level) * share).astype(np.float32)
    image = np.where(on[:, :, None], np.clip(colour, 0, 255), backdrop)
    return image, np.where(on, depth, 0.0).astype(np.float32)


def _table_shadow(world: np.ndarray, faces: np.ndarray, light: np.ndarray) -> np.ndarray:
    """How dark each place of the table is, 0..1, float32 [n, n]: bodies along the key light."""
    fallen = world[:, :2] - world[:, 2:] * (light[:2] / light[2])
    at = (fallen + _SHADOW_HALF_M) * (_SHADOW_PX / (2 * _SHADOW_HALF_M)) - 0.5
    hit = rasterise(at, np.ones(len(at)), faces, (_SHADOW_PX, _SHADOW_PX), cull=False)
    mask = np.zeros(_SHADOW_PX * _SHADOW_PX, dtype=np.float32)
    mask[hit.pixel] = 1.0
    return np.asarray(cv2.GaussianBlur(mask.reshape(_SHADOW_PX, _SHADOW_PX), (0, 0), 2.0))
