"""Make ARCTIC's ``cropped_images`` from ``images`` with PIL, as the dataset's page describes.

Written from the dataset notes (5.4, 5.5) in float32, without Handloom's code.
"""

from pathlib import Path

import numpy as np
from PIL import Image


def official_square(object_px: np.ndarray) -> tuple[np.float32, np.float32, np.float32]:
    """Return the official bbox (cx, cy, s) of projected vertices; its side is 200 s pixels."""
    points = object_px.astype(np.float32)
    left, top = points.min(0)
    right, bottom = points.max(0)
    longer = max(right - left, bottom - top)
    side = np.float32(1.1) * longer + np.float32(0.6) * longer
    s = max(side / np.float32(200), np.float32(3))
    return left + (right - left) / 2, top + (bottom - top) / 2, s


def cropped(image: Image.Image, square: tuple[np.float32, np.float32, np.float32]) -> Image.Image:
    """Return the cropped file of a static camera."""
    cx, cy, s = square
    side = s * np.float32(1.5) * np.float32(200)
    left, top, right, bottom = (
        float(edge) for edge in (cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2)
    )
    cut = image.crop((left, top, right, bottom))
    return cut.resize((1000, 1000))


def scaled(image: Image.Image) -> Image.Image:
    """Return the scaled file of the egocentric camera."""
    width, height = image.size
    return image.resize((int(width * 0.3), int(height * 0.3)))


def write_cropped(
    target: Path, root: Path, objects: dict[str, np.ndarray], *, quality: int = 95
) -> None:
    """Make ``target`` a dataset with the labels of ``root`` and crops of its images.

    Args:
        target: New folder.
        root: Dataset with ``images``.
        objects: Projected vertices of the object by image (``images/...``).
        quality: JPEG quality.
    """
    target.mkdir()
    for entry in root.iterdir():
        if entry.name != "images":
            (target / entry.name).symlink_to(entry)
    for name, object_px in objects.items():
        path = root / name
        if not path.is_file():
            continue
        with Image.open(path) as image:
            on_head = path.parent.name == "0"
            small = scaled(image) if on_head else cropped(image, official_square(object_px))
        file = target / name.replace("images/", "cropped_images/", 1)
        file.parent.mkdir(parents=True, exist_ok=True)
        small.save(file, quality=quality)
