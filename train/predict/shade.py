"""Shaded meshes over images: a z-buffer in numpy, without OpenGL and without a window."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float, Float64, Int, Int64, UInt8

MOST_PX: Final = 700
"""Longest side of what is rasterised; larger hands are drawn at that size and enlarged."""
SKIN_RGB: Final = (232, 190, 166)
LIGHT: Final = np.array([-0.35, -0.55, -0.76])
"""Direction from the surface towards the light: over the camera's left shoulder."""
AMBIENT: Final = 0.35
OPACITY: Final = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """A mesh in the camera of an image, and its projection."""

    vertices: Float64[np.ndarray, "n 3"]
    pixels: Float64[np.ndarray, "n 2"]
    """NaN behind the camera."""
    faces: Int64[np.ndarray, "m 3"]


def draw_surfaces(image: UInt8[np.ndarray, "h w 3"], surfaces: Sequence[Surface]) -> None:
    """Draw meshes into an RGB image, in place; the nearer one hides the farther one."""
    height, width = image.shape[:2]
    parts = [_drawable(surface, (width, height)) for surface in surfaces]
    if not sum(len(faces) for _, faces in parts):
        return
    offsets = np.cumsum([0, *(len(surface.vertices) for surface, _ in parts)])
    faces = np.concatenate([own + start for (_, own), start in zip(parts, offsets, strict=False)])
    pixels = np.concatenate([surface.pixels for surface, _ in parts])
    depth = np.concatenate([surface.vertices[:, 2] for surface, _ in parts])
    light = np.concatenate([_light(surface) for surface, _ in parts])

    used = pixels[faces.ravel()]
    low = np.floor(used.min(0)).clip(0)
    high = np.ceil(used.max(0)).clip(max=(width - 1, height - 1))
    if (high < low).any():
        return
    scale = min(1.0, MOST_PX / float((high - low + 1).max()))
    size = np.ceil((high - low + 1) * scale).astype(int)
    covered, shade = rasterise((pixels - low) * scale, depth, light, faces, (size[1], size[0]))
    (x0, y0), (x1, y1) = low.astype(int), high.astype(int) + 1
    whole = (int(x1 - x0), int(y1 - y0))
    alpha = cv2.resize(covered.astype(np.float32), whole, interpolation=cv2.INTER_LINEAR)
    lit = cv2.resize(shade.astype(np.float32), whole, interpolation=cv2.INTER_LINEAR)
    colour = (lit / np.maximum(alpha, 1e-6))[..., None] * np.array(SKIN_RGB, np.float32)
    alpha = OPACITY * alpha[..., None]
    part = image[y0:y1, x0:x1]
    part[:] = (part * (1 - alpha) + colour.clip(0, 255) * alpha).round().astype(np.uint8)


def rasterise(
    pixels: Float64[np.ndarray, "n 2"],
    depth: Float64[np.ndarray, " n"],
    value: Float64[np.ndarray, " n"],
    faces: Int[np.ndarray, "m 3"],
    size_hw: tuple[int, int],
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Return which pixels triangles cover (0 or 1) and the value of the nearest one there.

    Linear in the image within a triangle: those of a hand are small.
    """
    height, width = size_hw
    corner = pixels[faces]  # [m, 3, 2]
    area = _cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    faces, corner, area = faces[area != 0], corner[area != 0], area[area != 0]
    low = np.ceil(corner.min(1)).astype(int).clip(0)
    high = np.floor(corner.max(1)).astype(int).clip(max=(width - 1, height - 1))
    extent = (high - low + 1).clip(0)
    num = extent[:, 0] * extent[:, 1]
    which = np.repeat(np.arange(len(faces)), num)
    within = np.arange(len(which)) - np.repeat(np.cumsum(num) - num, num)
    x = low[which, 0] + within % extent[which, 0]
    y = low[which, 1] + within // extent[which, 0]

    a, b, c = (corner[which, i] for i in range(3))
    at = np.stack((x, y), -1)
    weight = np.stack((_cross(b - at, c - at), _cross(c - at, a - at)), -1) / area[which, None]
    weight = np.concatenate((weight, 1 - weight.sum(-1, keepdims=True)), -1)
    inside = (weight >= -1e-9).all(-1)
    which, weight = which[inside], weight[inside]
    place = y[inside] * width + x[inside]
    far = (weight * depth[faces[which]]).sum(-1)
    order = np.lexsort((far, place))
    first = order[np.flatnonzero(np.diff(place[order], prepend=-1))]
    covered, shown = np.zeros(height * width), np.zeros(height * width)
    covered[place[first]] = 1
    shown[place[first]] = (weight[first] * value[faces[which[first]]]).sum(-1)
    return covered.reshape(height, width), shown.reshape(height, width)


def _cross(
    left: Float64[np.ndarray, "k 2"], right: Float64[np.ndarray, "k 2"]
) -> Float64[np.ndarray, " k"]:
    found: Float64[np.ndarray, " k"] = left[:, 0] * right[:, 1] - left[:, 1] * right[:, 0]
    return found


def _drawable(
    surface: Surface, size_wh: tuple[int, int]
) -> tuple[Surface, Int64[np.ndarray, "k 3"]]:
    """Return the faces that are before the camera and near the image."""
    reach = 4 * max(size_wh)
    near = np.isfinite(surface.pixels).all(-1) & (np.abs(surface.pixels) < reach).all(-1)
    return surface, surface.faces[near[surface.faces].all(-1)]


def _light(surface: Surface) -> Float64[np.ndarray, " n"]:
    """Return how bright each vertex is, from the mean normal of its faces."""
    a, b, c = (surface.vertices[surface.faces[:, i]] for i in range(3))
    normal = np.zeros_like(surface.vertices)
    of_face = np.cross(b - a, c - a)
    for i in range(3):
        np.add.at(normal, surface.faces[:, i], of_face)
    normal /= np.maximum(np.linalg.norm(normal, axis=-1, keepdims=True), 1e-12)
    towards = (normal @ LIGHT).clip(0)
    found: Float64[np.ndarray, " n"] = AMBIENT + (1 - AMBIENT) * towards
    return found
