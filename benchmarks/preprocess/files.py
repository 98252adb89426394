"""Files of ``python -m benchmarks preprocess``: few images, each file with its own comment."""

import bisect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.config import PreprocessBenchConfig
from benchmarks.preprocess.peers import RECODED, Files
from preprocess.images.recode import crop_window
from preprocess.records import Lens
from preprocess.sample.arctic.scene import DIST8

FRAME_HW: Final = (480, 640)
MOST_BYTES: Final = 88_000
"""Maximum file size; the highest quality below it makes about 85 KB."""
NUM_DISTINCT: Final = 40
REGION_PX: Final = (120.0, 240.0)
"""Side of the box that a recoded image must contain, pixels: a hand in DexYCB or HO-3D."""
CENTRAL: Final = (0.3125, 0.6875)
"""Range of the centre of a box, as a fraction of the frame's sides."""

STILL_HW: Final = (2800, 2000)
HEAD_HW: Final = (2000, 2800)
HEAD_LENS: Final = Lens(
    K=np.array([[2050.0, 0.0, 1390.0], [0.0, 2053.0, 1005.0], [0.0, 0.0, 1.0]]), dist8=DIST8
)
"""Lens of the small synthetic ARCTIC, in pixels of the full size."""
ARCTIC_QUALITY: Final = 92
ARCTIC_NOISE: Final = (1.5, 2.7)
"""Noise, grey levels; gives files of 0.5 to 0.9 MB."""
ARCTIC_DISTINCT: Final = 6
ARCTIC_REGION_PX: Final = (600.0, 1200.0)
"""Side of a box of two hands and their object."""

Pixels = NDArray[np.uint8]


def pictures(config: PreprocessBenchConfig) -> Iterator[tuple[Pixels, int]]:
    """Yield different images, each with the JPEG quality that gives about 85 KB."""
    rng = np.random.default_rng(config.seed)
    for _ in range(min(config.num, NUM_DISTINCT)):
        pixels = rng.normal(128, rng.uniform(18, 26), (*FRAME_HW, 3))
        for _ in range(12):
            centre, axes = rng.integers(0, 640, 2).tolist(), rng.integers(5, 150, 2).tolist()
            colour = rng.uniform(0, 255, 3).tolist()
            cv2.ellipse(pixels, centre, axes, rng.uniform(0, 360), 0, 360, colour, -1)
        picture = pixels.clip(0, 255).astype(np.uint8)
        # The highest quality that fits.
        quality = bisect.bisect_right(
            range(97),
            MOST_BYTES,
            lo=30,
            key=lambda q: len(encode((picture, q), progressive=False)),
        )
        yield picture, quality - 1


def arctic_picture(size_hw: tuple[int, int], rng: np.random.Generator) -> Pixels:
    """Return an image of gradients with discs and sensor noise."""
    height, width = size_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [
        np.sin(x / 300 + channel) * 80 + np.cos(y / 200 - channel) * 30 for channel in range(3)
    ]
    pixels = np.stack(waves, axis=-1) + np.float32(128)
    for _ in range(40):
        centre, axes = rng.integers(0, (width, height)).tolist(), rng.integers(20, 500, 2).tolist()
        colour = rng.uniform(0, 255, 3).tolist()
        cv2.ellipse(pixels, centre, axes, rng.uniform(0, 360), 0, 360, colour, -1)
    noise = rng.standard_normal(pixels.shape, np.float32)
    pixels += np.float32(rng.uniform(*ARCTIC_NOISE)) * noise
    return pixels.clip(0, 255, out=pixels).astype(np.uint8)


def arctic_files(config: PreprocessBenchConfig, folder: Path) -> dict[str, Files]:
    """Write frames in ARCTIC's sizes, of a ``still`` camera and of the ``head`` camera."""
    rng, num = np.random.default_rng(config.seed), max(1, config.num // 50)
    views: dict[str, tuple[tuple[int, int], Lens | None]] = {
        "still": (STILL_HW, None),
        "head": (HEAD_HW, HEAD_LENS),
    }
    files = {}
    for view, (size_hw, lens) in views.items():
        jpegs = [
            encode((arctic_picture(size_hw, rng), ARCTIC_QUALITY), progressive=False)
            for _ in range(min(num, ARCTIC_DISTINCT))
        ]
        files[view] = write_files(
            folder / view,
            [with_comment(jpegs, row) for row in range(num)],
            frame_hw=size_hw,
            region_px=ARCTIC_REGION_PX,
            lens=lens,
        )
    return files


def encode(picture: tuple[Pixels, int], *, progressive: bool) -> bytes:
    """Return a picture as JPEG."""
    pixels, quality = picture
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def with_comment(jpegs: Sequence[bytes], row: int) -> bytes:
    """Return the JPEG of a row: few images, each row with its own comment."""
    jpeg, comment = jpegs[row % len(jpegs)], f"row {row}".encode()
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def write_files(
    root: Path,
    jpegs: Sequence[bytes],
    *,
    frame_hw: tuple[int, int] = FRAME_HW,
    region_px: tuple[float, float] = REGION_PX,
    lens: Lens | None = None,
) -> Files:
    """Write JPEGs to a folder, and sample a region for each.

    Args:
        root: The folder.
        jpegs: One per file.
        frame_hw: Common height and width, pixels.
        region_px: Shortest and longest side of a region, pixels.
        lens: Common lens, used for undistortion.
    """
    root.mkdir(parents=True)
    names = [f"{row:06d}.jpg" for row in range(len(jpegs))]
    for name, jpeg in zip(names, jpegs, strict=True):
        (root / name).write_bytes(jpeg)
    rng = np.random.default_rng(len(jpegs))
    low, high = np.multiply.outer(CENTRAL, frame_hw[::-1])
    centre = rng.uniform(low, high, (len(jpegs), 2))
    half = rng.uniform(*region_px, (len(jpegs), 2)) / 2
    region = np.concatenate([centre - half, centre + half], axis=-1)
    return Files(
        root=root,
        names=names,
        sizes=np.array([len(jpeg) for jpeg in jpegs], np.int64),
        region_xyxy=region,
        windows=[
            crop_window(box, frame_hw, margin=RECODED.margin, max_px=0, on_blocks=True)
            for box in region
        ],
        frame_hw=frame_hw,
        lens=lens,
        maps=None if lens is None else remap_maps(lens, frame_hw),
    )


def remap_maps(
    lens: Lens, size_hw: tuple[int, int]
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Return the undistortion maps for ``cv2.remap``, in its fastest format."""
    place, weights = cv2.initUndistortRectifyMap(
        lens.K, lens.dist8, None, lens.K, size_hw[::-1], cv2.CV_16SC2
    )
    return place.astype(np.int16, copy=False), weights.astype(np.uint16, copy=False)
