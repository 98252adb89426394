"""Baselines of ``python -m benchmarks preprocess``: the bare library calls on the same files.

Also imported by its second process, so this module must import fast.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import cv2
import jpeglib
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.app.words import sentence
from preprocess.images.images import ImageWork, ShardImages, shard_images
from preprocess.images.recode import Window
from preprocess.records import Lens

QUALITY: Final = 95
PASSED: Final = ImageWork(recode=False, baseline=False, decode=False)
CHECKED: Final = ImageWork(recode=False, baseline=False)
BASELINE: Final = ImageWork(recode=False, baseline=True, decode=False)
RECODED: Final = ImageWork(recode=True, baseline=False, quality=QUALITY)
TURBO: Final = "PyTurboJPEG"


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Files on disk and the region of each that recoding keeps."""

    root: Path
    names: list[str]
    sizes: NDArray[np.int64]
    region_xyxy: NDArray[np.float64]
    windows: list[Window]
    frame_hw: tuple[int, int]
    lens: Lens | None = None
    """Common lens of the files."""
    maps: tuple[NDArray[np.int16], NDArray[np.uint16]] | None = None
    """Undistortion maps of the lens for ``cv2.remap``."""

    def part(self, start: int, stop: int) -> "Files":
        """Return a subset of the files."""
        return replace(
            self,
            names=self.names[start:stop],
            sizes=self.sizes[start:stop],
            region_xyxy=self.region_xyxy[start:stop],
            windows=self.windows[start:stop],
        )


def ours(files: Files, work: ImageWork) -> ShardImages:
    """Return the images as a build encodes them."""
    lenses = None if files.lens is None else [files.lens] * len(files.names)
    return shard_images(
        "benchmark", files.root, files.names, files.sizes, 0, work, files.region_xyxy, lenses
    )


def cropped(pixels: NDArray[Any], window: Window, files: Files) -> NDArray[Any]:
    """Return the crop window of a frame, undistorted if it has a lens."""
    part = slice(window.top, window.bottom), slice(window.left, window.right)
    if files.maps is None:
        return pixels[part]
    place, weights = files.maps
    return cv2.remap(pixels, place[part], weights[part], cv2.INTER_LINEAR)


def loop_simplejpeg(files: Files) -> list[bytes]:
    """Decode into one buffer, slice or remap, encode."""
    buffer, encoded = np.empty(3 * files.frame_hw[0] * files.frame_hw[1], np.uint8), []
    for name, window in zip(files.names, files.windows, strict=True):
        pixels = simplejpeg.decode_jpeg((files.root / name).read_bytes(), buffer=buffer)
        crop = cropped(pixels, window, files)
        encoded.append(simplejpeg.encode_jpeg(crop, quality=QUALITY, colorsubsampling="420"))
    return encoded


def loop_opencv(files: Files) -> list[bytes]:
    """Decode, slice or remap, encode; from Python, OpenCV cannot reuse the decode buffer."""
    options, encoded = [cv2.IMWRITE_JPEG_QUALITY, QUALITY], []
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    for name, window in zip(files.names, files.windows, strict=True):
        pixels = cv2.imdecode(np.frombuffer((files.root / name).read_bytes(), np.uint8), flags)
        assert pixels is not None
        crop = cropped(pixels, window, files)
        encoded.append(cv2.imencode(".jpg", crop, options)[1].tobytes())
    return encoded


def loop_turbojpeg(files: Files) -> list[bytes]:
    """Decode into one buffer, copy or remap the crop, encode: it takes no slices."""
    turbojpeg: Any = importlib.import_module("turbojpeg")
    library, encoded = turbojpeg.TurboJPEG(), []
    buffer = np.empty((*files.frame_hw, 3), np.uint8)
    for name, window in zip(files.names, files.windows, strict=True):
        pixels = library.decode((files.root / name).read_bytes(), dst=buffer)
        crop = cropped(pixels, window, files)
        encoded.append(
            library.encode(
                np.ascontiguousarray(crop), quality=QUALITY, jpeg_subsample=turbojpeg.TJSAMP_420
            )
        )
    return encoded


Loop = Callable[[Files], list[bytes]]
LOOPS: Final[dict[str, Loop]] = {
    "simplejpeg": loop_simplejpeg,
    "OpenCV": loop_opencv,
    TURBO: loop_turbojpeg,
}


def run_ours(files: Files) -> int:
    """Recode as a build does, here or in another process, and return how many images it made."""
    return len(ours(files, RECODED).payloads)


def run_bare(name: str, files: Files) -> int:
    """Run one of ``LOOPS``, here or in another process, and return how many images it made."""
    cv2.setNumThreads(1)
    return len(LOOPS[name](files))


def without_turbo() -> str:
    """Return why PyTurboJPEG cannot run here, "" if it can: it needs an installed libturbojpeg."""
    try:
        importlib.import_module("turbojpeg").TurboJPEG()
    except (ImportError, OSError, RuntimeError) as error:
        return sentence(error)
    return ""


def transcode_bare(files: Files, folder: Path, *, one_read: bool = False) -> list[bytes]:
    """Run jpeglib's two calls on every file, with the same libjpeg-turbo as ours.

    Args:
        files: Progressive files.
        folder: Output folder.
        one_read: Write the coefficients from memory; by default jpeglib reads them twice.
    """
    jpeglib.version.set("turbo210")
    target, baseline = folder / "baseline.jpg", []
    for name in files.names:
        image = jpeglib.read_dct(str(files.root / name))
        if one_read:
            image.load()
            image.content = None
        image.write_dct(str(target))
        baseline.append(target.read_bytes())
    return baseline
