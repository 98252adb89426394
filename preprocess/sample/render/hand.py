"""Rendering hands: forearm, light, shading, antialiasing, camera noise.

A hand is drawn at twice the resolution and averaged down. The output keeps coverage apart from
colour, so one rendering goes over several backgrounds.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from model.hand import NUM_VERTICES
from preprocess.camera import pixels
from preprocess.sample.hand.mesh import stand_in_mano, stand_in_topology
from preprocess.sample.hand.skin import SkinAtlas, atlas_coordinates, sample_skin, vertex_normals
from preprocess.sample.render.raster import rasterise

SUPERSAMPLING: Final = 2
_ARM_RINGS: Final = 7
_ARM_LENGTH_M: Final = 0.24


@dataclass(frozen=True, kw_only=True, slots=True)
class Lights:
    """``key`` and ``fill``: unit vectors to the light, camera frame; colours are linear RGB."""

    key: np.ndarray
    fill: np.ndarray
    key_rgb: np.ndarray
    fill_rgb: np.ndarray
    sky_rgb: np.ndarray
    ground_rgb: np.ndarray
    gloss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """One hand to draw: camera-frame ``vertices`` [778, 3] metres, its side, skin and forearm.

    ``wrist_bend`` is the axis-angle [3] by which the forearm leaves the hand's direction, in the
    rest frame of the right hand.
    """

    vertices: np.ndarray
    is_right: bool
    root_rotmat: np.ndarray
    skin: SkinAtlas
    wrist_bend: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """``rgb`` float32 [h, w, 3] in sRGB 0..255 times ``cover`` float32 [h, w] in 0..1."""

    rgb: np.ndarray
    cover: np.ndarray


def draw_lights(rng: np.random.Generator) -> Lights:
    """Sample lights: a key light anywhere in front, a weaker fill, sky and ground."""
    key = _direction(rng, forward=-0.15)
    fill = _direction(rng, forward=-0.6)
    warmth = rng.normal(0.0, 0.10)
    tint = np.array([1.0 + warmth, 1.0, 1.0 - warmth])
    key_level, fill_level = rng.uniform(0.45, 1.0), rng.uniform(0.0, 0.35)
    sky = rng.uniform(0.22, 0.50) * (1.0 + rng.normal(0.0, 0.06, 3))
    ground = sky * rng.uniform(0.35, 0.9) * (1.0 + rng.normal(0.0, 0.06, 3))
    return Lights(
        key=key,
        fill=fill,
        key_rgb=key_level * tint,
        fill_rgb=fill_level * (1.0 + rng.normal(0.0, 0.10, 3)),
        sky_rgb=sky,
        ground_rgb=ground,
        gloss=rng.uniform(0.0, 0.16),
    )


def _direction(rng: np.random.Generator, *, forward: float) -> np.ndarray:
    """Sample a unit vector to a light: more often from above, never from far behind the hand."""
    while True:
        vector = rng.standard_normal(3)
        vector /= np.linalg.norm(vector)
        if vector[2] < forward and vector[1] < 0.6:
            return vector


@lru_cache(maxsize=2)
def arm_faces(side: str) -> np.ndarray:
    """Return triangles of hand and forearm [f, 3]; the forearm's rings follow the 778 vertices."""
    loop = stand_in_topology().wrist
    later = NUM_VERTICES + np.arange(_ARM_RINGS * len(loop)).reshape(_ARM_RINGS, len(loop))
    rings = [loop, *later]
    faces = [stand_in_mano()["right"]["f"].astype(np.int64)]
    for near, far in pairwise(rings):
        a, b = near, np.roll(near, -1)
        c, d = np.roll(far, -1), far
        faces += [np.stack([a, b, d], 1), np.stack([b, c, d], 1)]
    last = rings[-1]
    fan = np.stack([np.full(len(last) - 2, last[0]), last[1:-1], last[2:]], 1)
    joined = np.concatenate([*faces, fan])
    return joined if side == "right" else joined[:, ::-1]


def with_forearm(sight: Sight) -> np.ndarray:
    """Return vertices of hand and forearm [n, 3], camera frame."""
    mirror = np.array([1.0 if sight.is_right else -1.0, 1.0, 1.0])
    loop = sight.vertices[stand_in_topology().wrist]
    # The wrist loop in the root's rest axes, where the forearm runs along +x for a right hand.
    local = (loop @ sight.root_rotmat) * mirror
    centre = local.mean(0)
    rings, offset = [], local - centre
    for i in range(1, _ARM_RINGS + 1):
        t = i / _ARM_RINGS
        bend = Rotation.from_rotvec(sight.wrist_bend * min(1.0, 1.6 * t)).as_matrix()
        step = bend @ np.array([_ARM_LENGTH_M / _ARM_RINGS, 0.0, 0.0])
        centre = centre + step
        ring = offset * np.array([1.0, 1.0 + 0.22 * t, 1.0 + 0.18 * t])
        rings.append(centre + ring @ bend.T)
    arm = np.concatenate(rings) * mirror
    return np.concatenate([sight.vertices, arm @ sight.root_rotmat.T])


@lru_cache(maxsize=1)
def skin_coordinates() -> np.ndarray:
    """Return atlas x, y and facing of hand and forearm vertices [n, 3]."""
    place, back = atlas_coordinates()
    hand = np.column_stack([place, back])
    loop = hand[stand_in_topology().wrist]
    # The forearm uses a short strip of the atlas beyond the wrist; the sheet reflects there.
    rings = [loop - np.array([0.0, 9.0 * (i + 1), 0.0]) for i in range(_ARM_RINGS)]
    return np.concatenate([hand, *rings])


def render_hands(
    sights: list[Sight], K: np.ndarray, size_hw: tuple[int, int], lights: Lights
) -> Picture:
    """Render hands with their forearms; nearer ones occlude farther ones."""
    points, faces, skins, count = [], [], [], 0
    for sight in sights:
        body = with_forearm(sight)
        points.append(body)
        faces.append(arm_faces("right" if sight.is_right else "left") + count)
        count += len(body)
        skins.append(len(faces[-1]))
    vertices, triangles = np.concatenate(points), np.concatenate(faces)
    normal = vertex_normals(vertices, triangles)
    pixel = pixels(vertices, K)
    scale = SUPERSAMPLING
    height, width = size_hw[0] * scale, size_hw[1] * scale
    fragments = rasterise((pixel + 0.5) * scale - 0.5, vertices[:, 2], triangles, (height, width))
    shadow = cast_shadow(vertices, triangles, lights.key)
    coordinates = np.concatenate([skin_coordinates()] * len(sights))
    values = np.column_stack([normal, coordinates, shadow])
    at = fragments.interpolate(triangles, values)
    if len(sights) == 1:
        albedo = sample_skin(sights[0].skin, at[:, 3:5], at[:, 5])
    else:
        albedo = np.zeros((len(at), 3), dtype=np.float32)
        owner = np.searchsorted(np.cumsum(skins), fragments.face, side="right")
        for i, sight in enumerate(sights):
            mine = owner == i
            albedo[mine] = sample_skin(sight.skin, at[mine, 3:5], at[mine, 5])
    colour = shade(albedo, at[:, :3], at[:, 6], lights)
    canvas = np.zeros((height * width, 4), dtype=np.float32)
    canvas[fragments.pixel, :3] = colour
    canvas[fragments.pixel, 3] = 1.0
    small = cv2.resize(
        canvas.reshape(height, width, 4), size_hw[::-1], interpolation=cv2.INTER_AREA
    )
    return Picture(rgb=small[:, :, :3], cover=small[:, :, 3])


def cast_shadow(vertices: np.ndarray, faces: np.ndarray, light: np.ndarray) -> np.ndarray:
    """Return the fraction of key light that reaches each vertex, 0..1, from a small shadow map."""
    size = 128
    side = np.cross(light, [0.0, 1.0, 0.0] if abs(light[1]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    # Rows: screen x, screen y, away from the light.
    turn = np.stack([side, np.cross(-light, side), -light])
    seen = vertices @ turn.T
    low, high = seen.min(0), seen.max(0)
    scale = (size - 3) / float((high - low)[:2].max())
    plane = (seen[:, :2] - low[:2]) * scale + 1.0
    depth = seen[:, 2] - low[2] + 1.0
    hit = rasterise(plane, depth, faces, (size, size), cull=False)
    empty = np.full(size * size, 1e3, dtype=np.float32)
    empty[hit.pixel] = hit.depth
    nearest = cv2.erode(empty.reshape(size, size), np.ones((3, 3), np.uint8))
    x, y = plane.astype(np.float32).T[:, :, None]
    found = cv2.remap(nearest, x, y, cv2.INTER_LINEAR, borderValue=1e3)[:, 0]
    gap = depth - found - 0.006
    lit = np.clip(1.0 - gap / 0.010, 0.0, 1.0)
    return np.asarray(0.12 + 0.88 * lit)


def shade(albedo: np.ndarray, normal: np.ndarray, shadow: np.ndarray, lights: Lights) -> np.ndarray:
    """Return colours [m, 3], sRGB 0..255; gamma is approximated by square and square root."""
    unit = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    facing = unit @ np.stack([lights.key, lights.fill], 1).astype(np.float32)
    # Wrap lighting for skin.
    wrapped = np.clip((facing + 0.22) / 1.22, 0.0, 1.0)
    wrapped[:, 0] *= shadow
    up = 0.5 - 0.5 * unit[:, 1]
    factors = np.stack([wrapped[:, 0], wrapped[:, 1], up, 1.0 - up], axis=1)
    colours = np.stack([lights.key_rgb, lights.fill_rgb, lights.sky_rgb, lights.ground_rgb])
    light = factors @ colours.astype(np.float32)
    half = lights.key + np.array([0.0, 0.0, -1.0])
    half /= np.linalg.norm(half)
    shine = np.clip(unit @ half.astype(np.float32), 0.0, 1.0) ** 24
    shine *= np.float32(lights.gloss * 255.0) * shadow
    return np.asarray(albedo * np.sqrt(light) + shine[:, None] * 0.6)


def compose(
    picture: Picture, background: np.ndarray, rng: np.random.Generator, *, noise: bool = True
) -> np.ndarray:
    """Composite a rendering over a background and add sensor noise. uint8 [h, w, 3] RGB."""
    image = picture.rgb + background * (1.0 - picture.cover[:, :, None])
    if noise:
        grain = rng.standard_normal(image.shape, dtype=np.float32)
        image = image + grain * np.float32(rng.uniform(0.5, 4.0))
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def draw_wrist_bend(rng: np.random.Generator) -> np.ndarray:
    """Sample the forearm's bend, axis-angle [3]: twist, sideways, flexion; at most 0.7 rad each."""
    return np.clip(rng.normal(0.0, [0.08, 0.18, 0.28]), -0.7, 0.7)
