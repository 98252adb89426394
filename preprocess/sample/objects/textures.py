"""Textures of synthetic objects: plain colours, bands, labels with a word, speckles.

uint8 [h, w, 3] RGB; row 0 is v = 1. Positions are texture coordinates (u, v) in 0..1.
"""

import zlib
from collections.abc import Iterable

import cv2
import numpy as np

Colour = tuple[int, int, int]


def plain(colour: Colour, size_hw: tuple[int, int] = (256, 512)) -> np.ndarray:
    """Return a texture of one colour."""
    return np.full((*size_hw, 3), colour, dtype=np.uint8)


def fill(image: np.ndarray, u: tuple[float, float], v: tuple[float, float], rgb: Colour) -> None:
    """Paint a rectangle, in place."""
    height, width = image.shape[:2]
    rows = slice(round((1 - v[1]) * height), round((1 - v[0]) * height))
    image[rows, round(u[0] * width) : round(u[1] * width)] = rgb


def spot(image: np.ndarray, centre: tuple[float, float], radius_px: int, rgb: Colour) -> None:
    """Paint a disc, in place."""
    height, width = image.shape[:2]
    at = (round(centre[0] * width), round((1 - centre[1]) * height))
    cv2.circle(image, at, radius_px, rgb, -1, cv2.LINE_AA)


def write(
    image: np.ndarray,
    word: str,
    centre: tuple[float, float],
    width: float,
    rgb: Colour,
) -> None:
    """Write a word ``width`` of the texture wide, in place."""
    rows, columns = image.shape[:2]
    (across, up), _ = cv2.getTextSize(word, cv2.FONT_HERSHEY_DUPLEX, 1.0, 2)
    scale = width * columns / across
    thick = max(1, round(2.2 * scale))
    at = (
        round(centre[0] * columns - scale * across / 2),
        round((1 - centre[1]) * rows + scale * up / 2),
    )
    cv2.putText(image, word, at, cv2.FONT_HERSHEY_DUPLEX, scale, rgb, thick, cv2.LINE_AA)


def lines(
    image: np.ndarray, u: tuple[float, float], v: tuple[float, float], count: int, rgb: Colour
) -> None:
    """Paint thin lines like small print, in place."""
    ends = np.linspace(v[0], v[1], count)
    for i, at in enumerate(ends):
        reach = u[0] + (u[1] - u[0]) * (0.95 if i % 3 else 0.7)
        fill(image, (u[0], reach), (float(at), float(at) + 0.35 * (v[1] - v[0]) / count), rgb)


def worn(image: np.ndarray, name: str, amount: float = 5.0) -> np.ndarray:
    """Add blotches and grain to a texture; deterministic by name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    height, width = image.shape[:2]
    coarse = rng.standard_normal((8, 12)).astype(np.float32)
    blotch = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((height, width)).astype(np.float32)
    change = amount * (0.8 * blotch + 0.5 * grain)
    return np.asarray(np.clip(image + change[:, :, None], 0, 255).astype(np.uint8))


def can(
    base: Colour,
    word: str,
    ink: Colour,
    *,
    bands: Iterable[tuple[float, float, Colour]],
    side: tuple[float, float],
    ends: Colour,
) -> np.ndarray:
    """Return the texture of a can: bands in fractions of its side, two labels, metal ends.

    ``side`` holds the v at which the upright wall begins and ends.
    """
    image = plain(ends)
    low, height = side[0], side[1] - side[0]
    fill(image, (0, 1), side, base)
    for start, end, colour in bands:
        fill(image, (0, 1), (low + start * height, low + end * height), colour)
    middle = low + 0.58 * height
    for u in (0.25, 0.75):
        write(image, word, (u, middle), 0.30, ink)
    lines(image, (0.44, 0.56), (low + 0.15 * height, low + 0.8 * height), 9, ink)
    spot(image, (0.02, middle), 34, ink)
    return image


def carton(
    base: Colour, panel: Colour, ink: Colour, word: str, accents: tuple[Colour, Colour, Colour]
) -> np.ndarray:
    """Return the atlas of a box's six faces; the two largest pairs carry word and stripes."""
    image = plain(base, (384, 576))
    third = 1 / 3
    for cell in range(6):
        u, v = cell % 3 * third, 0.5 - cell // 3 * 0.5
        middle = (u + third / 2, v + 0.25)
        first = cell % 2 == 1
        stripe = accents[cell // 2]
        fill(image, (u, u + third), (v + 0.02, v + 0.10), stripe)
        fill(image, (u + 0.03, u + third - 0.03), (v + 0.14, v + 0.44), panel)
        if first:
            write(image, word, (middle[0], v + 0.30), 0.22, ink)
            spot(image, (middle[0] - 0.06, v + 0.20), 20, stripe)
        else:
            lines(image, (u + 0.06, u + third - 0.06), (v + 0.16, v + 0.41), 7, ink)
            spot(image, (u + third - 0.06, v + 0.40), 14, accents[(cell // 2 + 1) % 3])
    return image
