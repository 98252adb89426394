"""Backgrounds: gradients, multi-scale noise and cluttered shapes, sometimes skin-coloured."""

from typing import Final

import cv2
import numpy as np

from preprocess.sample.hand.skin import smooth_noise

_SKIN_LIKE: Final = np.array([[228, 184, 154], [205, 152, 118], [170, 118, 86], [110, 72, 52]])


def draw_background(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Draw a cluttered background, float32 [h, w, 3], sRGB 0..255."""
    image = _gradient(rng, size_hw)
    cells = (3, 6, 12, 24, 48, 96)
    strength = rng.uniform(4.0, 26.0)
    grey = smooth_noise(rng, size_hw, cells, strength)
    tint = smooth_noise(rng, size_hw, (4, 9), rng.uniform(0.0, 18.0))
    image += grey[:, :, None] + tint[:, :, None] * rng.normal(0.0, 0.7, 3).astype(np.float32)
    if rng.random() < 0.85:
        image = _clutter(rng, image, int(rng.integers(4, 26)), skin_like=rng.random() < 0.45)
    sigma = rng.uniform(0.0, 2.6)
    if sigma > 0.4:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    return np.asarray(np.clip(image, 0.0, 255.0), dtype=np.float32)


def draw_green_screen(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Draw an unevenly lit green cloth, float32 [h, w, 3], sRGB 0..255."""
    colour = np.array([rng.uniform(30, 90), rng.uniform(130, 195), rng.uniform(40, 105)])
    height, width = size_hw
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    ramp = (np.cos(angle) * columns / width + np.sin(angle) * rows / height) * rng.uniform(0, 0.35)
    folds = smooth_noise(rng, size_hw, (4, 8, 16), rng.uniform(0.02, 0.08))
    return np.asarray(np.clip(colour * (0.9 + ramp + folds)[:, :, None], 0, 255), dtype=np.float32)


def _gradient(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Two colours that run into one another across the image."""
    height, width = size_hw
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    t = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5) + 0.5
    first, second = _colour(rng), _colour(rng)
    if rng.random() < 0.6:
        second = first + (second - first) * 0.4
    return np.asarray(first + (second - first) * t[:, :, None], dtype=np.float32)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A colour of any lightness and mostly low saturation, sRGB."""
    grey = rng.uniform(15, 235)
    return np.clip(grey + rng.normal(0.0, rng.choice([8.0, 25.0, 60.0]), 3), 0, 255)


def _clutter(
    rng: np.random.Generator, image: np.ndarray, count: int, *, skin_like: bool
) -> np.ndarray:
    """Draw boxes, ellipses, bars and polygons over the image."""
    height, width = image.shape[:2]
    extent = np.array([width, height])
    # OpenCV antialiases on 8 bits only.
    canvas = np.clip(image, 0, 255).astype(np.uint8)
    for _ in range(count):
        colour = _colour(rng)
        if skin_like and rng.random() < 0.5:
            colour = _SKIN_LIKE[rng.integers(len(_SKIN_LIKE))] * rng.uniform(0.7, 1.1)
        ink = np.clip(colour, 0, 255).tolist()
        centre = rng.uniform(-0.1, 1.1, 2) * extent
        size = rng.uniform(0.03, 0.32, 2) * extent.mean()
        turn = rng.uniform(0, 180)
        place = (int(centre[0]), int(centre[1]))
        kind = rng.integers(4)
        if kind == 0:
            axes = (int(size[0]) + 1, int(size[1]) + 1)
            cv2.ellipse(canvas, place, axes, turn, 0, 360, ink, -1, cv2.LINE_AA)
        elif kind == 1:
            # Rounded bars: the width and length of fingers and forearms occur among them.
            end = centre + rng.uniform(-0.6, 0.6, 2) * extent
            thickness = int(rng.uniform(0.01, 0.14) * width) + 1
            cv2.line(canvas, place, (int(end[0]), int(end[1])), ink, thickness, cv2.LINE_AA)
        elif kind == 2:
            box = cv2.boxPoints(((*centre.tolist(),), (*(size * 2).tolist(),), turn))
            cv2.fillConvexPoly(canvas, np.round(box).astype(np.int32), ink, cv2.LINE_AA)
        else:
            corners = centre + rng.normal(0.0, 1.0, (rng.integers(3, 7), 2)) * size
            cv2.fillPoly(canvas, [np.round(corners).astype(np.int32)], ink, cv2.LINE_AA)
    return np.asarray(canvas, dtype=np.float32)


def draw_studio(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """Draw a dark capture dome: star-shaped lights, at times the subject's shirt behind the hands.

    float32 [h, w, 3], sRGB 0..255.
    """
    height, width = size_hw
    image = np.full((height, width, 3), rng.uniform(2.0, 14.0), dtype=np.float32)
    if rng.random() < 0.7:
        _draw_shirt(rng, image)
    pitch = rng.uniform(70.0, 120.0)
    offset = rng.uniform(0.0, pitch, 2)
    glow = np.zeros((height, width), dtype=np.float32)
    for y in np.arange(offset[1], height, pitch):
        for x in np.arange(offset[0], width, pitch):
            if rng.random() < 0.35:
                continue
            at = np.array([x, y]) + rng.normal(0.0, 5.0, 2)
            place = (int(at[0]), int(at[1]))
            if (
                image[min(max(place[1], 0), height - 1), min(max(place[0], 0), width - 1)].max()
                > 30
            ):
                continue
            cv2.circle(glow, place, int(rng.integers(3, 6)), 255.0, -1, cv2.LINE_AA)
            for angle in np.arange(4) * np.pi / 4:
                reach = 11.0 * np.array([np.cos(angle), np.sin(angle)])
                ends = [(int(p[0]), int(p[1])) for p in (at - reach, at + reach)]
                cv2.line(glow, ends[0], ends[1], 130.0, 1, cv2.LINE_AA)
    glow = cv2.GaussianBlur(glow, (0, 0), 0.8) + 2.0 * cv2.GaussianBlur(glow, (0, 0), 6.0)
    return np.asarray(np.clip(image + glow[:, :, None], 0, 255), dtype=np.float32)


def _draw_shirt(rng: np.random.Generator, image: np.ndarray) -> None:
    """Paint a shirt over part of the image, in place: plain, striped or checked."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    left = rng.uniform(-0.3, 0.6) * width
    right = left + rng.uniform(0.8, 1.3) * width
    slope = rng.uniform(-0.15, 0.15)
    inside = (columns > left + slope * rows) & (columns < right - slope * rows)
    folds = 1.0 + smooth_noise(rng, (height, width), (5, 11, 23), 0.12)
    colour = _colour(rng) * rng.uniform(0.3, 0.7)
    cloth = colour * folds[:, :, None]
    if rng.random() < 0.5:
        period = rng.uniform(18.0, 50.0)
        check = 0.5 + 0.25 * (np.sign(np.sin(columns / period * 6.28)))
        if rng.random() < 0.6:
            check = check + 0.25 * np.sign(np.sin(rows / period * 6.28))
        cloth = cloth * (0.6 + 0.5 * check)[:, :, None]
    image[inside] = cloth[inside]
