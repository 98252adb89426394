"""Images and videos of ``train predict``; every entry of a folder is read or named.

Pixels are those of the decoded image. An EXIF orientation (and a video's rotation) is applied while
decoding, as every viewer does: boxes, intrinsics and results refer to the upright image. Pixel
(0, 0) is the centre of the top-left pixel.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import UInt8

from pipeline.app.files import existing, read_regular
from train.predict.boxes import some
from train.predict.exif import focal_px_of

IMAGE_SUFFIXES: Final = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
ANIMATED_SUFFIXES: Final = (".avif", ".gif", ".webp")
VIDEO_SUFFIXES: Final = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
USUAL_FPS: Final = 30.0
UNREAD_SUFFIXES: Final = (
    ".arw", ".cr2", ".cr3", ".dng", ".exr", ".hdr", ".heic", ".heif", ".jfif", ".jxl", ".nef",
    ".orf", ".pfm", ".psd", ".raf", ".raw", ".rw2", ".svg",
)  # fmt: skip
"""Images that OpenCV, as it is packaged, does not decode to 8-bit colours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A skipped input or hand, and why."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class InputMedia:
    """Existing images or an existing video."""

    path: Path
    names: tuple[str, ...] | None
    """File names, sorted; None for a video, whose names are its frame numbers."""
    total: int | None
    """Number of images; None where a video does not report it."""
    every: int
    fps: float | None = None
    """Frames per second of a video, of those that are taken."""
    size_wh: tuple[int, int] | None = None
    """Of a video's frames."""
    all_names: tuple[str, ...] = ()
    """File names of a folder, also those that ``every`` leaves out."""
    left_out: tuple[Skipped, ...] = ()
    """Entries of a folder that may be meant, and are no image that can be read."""
    others: tuple[str, ...] = ()
    """Other entries of a folder."""
    is_single: bool = False
    """One image, whose folder is ``path``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputImage:
    """One decoded image."""

    name: str
    rgb: UInt8[np.ndarray, "h w 3"]
    number: int = 0
    """Place among the inputs."""
    focal_px: float | None = None
    """As the camera wrote it into the file."""

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height, pixels."""
        return self.rgb.shape[1], self.rgb.shape[0]


def find_source(path: str, every: int) -> InputMedia:
    """Return the images of a folder, one image, or a video.

    Raises:
        FileNotFoundError: If there is nothing to read.
        ValueError: If the file type is unknown, or a video cannot be opened.
    """
    found = existing(path, "images")
    if found.is_dir():
        return _folder(found, path, every)
    suffix = found.suffix.lower()
    if suffix not in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
        raise ValueError(
            f"images={path!r} must be a folder, an image ({' '.join(IMAGE_SUFFIXES)}) or a video "
            f"({' '.join(VIDEO_SUFFIXES)}), got {suffix or 'no ending'!r}"
        )
    if not found.is_file():
        raise ValueError(f"images={path!r} is no regular file, nor a folder")
    if suffix in IMAGE_SUFFIXES:
        name = found.name
        return InputMedia(path=found.parent, names=(name,), total=1, every=1, is_single=True)
    with _opened(found) as video:
        count = video.get(cv2.CAP_PROP_FRAME_COUNT) if video.isOpened() else -1
        rate = video.get(cv2.CAP_PROP_FPS)
        opened, first = video.read()
    if not opened:
        raise ValueError(
            f"images={path!r} cannot be read as a video: it is damaged or its codec is unknown to "
            "OpenCV; write it as H.264 in .mp4, or give a folder of its frames"
        )
    total = math.ceil(count / every) if count > 0 else None
    return InputMedia(
        path=found,
        names=None,
        total=total,
        every=every,
        fps=(rate if 0 < rate < 1000 else USUAL_FPS) / every,
        size_wh=(first.shape[1], first.shape[0]),
    )


def _folder(folder: Path, path: str, every: int) -> InputMedia:
    names: list[str] = []
    left_out: list[Skipped] = []
    others: list[str] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        suffix = Path(entry.name).suffix.lower()
        if entry.name.startswith("."):
            others.append(entry.name)
        elif entry.is_dir():
            reason = "a folder in the folder: not searched; give it as images="
            left_out.append(Skipped(name=entry.name, reason=reason))
        elif suffix in VIDEO_SUFFIXES:
            reason = "a video among images: give it as images="
            left_out.append(Skipped(name=entry.name, reason=reason))
        elif suffix in UNREAD_SUFFIXES:
            reason = f"{suffix} cannot be decoded: convert it to .png or .jpg"
            left_out.append(Skipped(name=entry.name, reason=reason))
        elif suffix not in IMAGE_SUFFIXES:
            others.append(entry.name)
        elif entry.is_file():
            names.append(entry.name)
        else:
            reason = "no regular file, or a link to nothing"
            left_out.append(Skipped(name=entry.name, reason=reason))
    if not names:
        found = [one.name for one in left_out] + others
        raise FileNotFoundError(
            f"images={path!r} holds no image ({' '.join(IMAGE_SUFFIXES)}); folders in it are "
            f"not searched; it holds {some(found)}"
        )
    taken = tuple(names[::every])
    return InputMedia(
        path=folder,
        names=taken,
        total=len(taken),
        every=1,
        all_names=tuple(names),
        left_out=tuple(left_out),
        others=tuple(others),
    )


def frames(source: InputMedia, done: int = 0) -> Iterator[InputImage | Skipped]:
    """Yield every image in order, or why it could not be read; the first ``done`` are left out."""
    if source.names is None:
        yield from _video_frames(source, done)
        return
    for number, name in enumerate(source.names[done:], start=done):
        try:
            yield _decoded(source.path / name, number)
        except (OSError, ValueError, cv2.error) as error:
            yield Skipped(name=name, reason=f"cannot be read: {error}")


def _decoded(path: Path, number: int) -> InputImage | Skipped:
    """Return the image in a file.

    Raises:
        OSError: If the file cannot be read.
        cv2.error: If the image is too large.
    """
    content = read_regular(path)
    data = np.frombuffer(content, np.uint8)
    bgr = None
    if len(data) and path.suffix.lower() in ANIMATED_SUFFIXES:
        _, images = cv2.imdecodemulti(data, cv2.IMREAD_COLOR, None, (0, 2))
        if len(images) > 1:
            reason = "an animation: write it as a video, or as a folder of its frames"
            return Skipped(name=path.name, reason=reason)
        bgr = images[0] if images else None
    elif len(data):
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    if bgr is None:
        return Skipped(name=path.name, reason="cannot be decoded: damaged, empty or no image")
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8)
    focal_px = focal_px_of(content, (rgb.shape[1], rgb.shape[0]))
    return InputImage(name=path.name, rgb=rgb, number=number, focal_px=focal_px)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    """Open a video by its descriptor: OpenCV takes no name that is not UTF-8, and expands ``%``."""
    with path.open("rb") as file:
        video = cv2.VideoCapture(f"/proc/self/fd/{file.fileno()}")
        try:
            yield video
        finally:
            video.release()


def _video_frames(source: InputMedia, done: int) -> Iterator[InputImage | Skipped]:
    with _opened(source.path) as video:
        number = 0
        while video.grab():
            if number % source.every == 0 and number >= done * source.every:
                read, bgr = video.retrieve()
                if read:
                    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB).astype(np.uint8)
                    yield InputImage(name=str(number), rgb=rgb, number=number // source.every)
                else:
                    yield Skipped(name=str(number), reason="the frame cannot be decoded")
            number += 1


def unanswered(
    source: InputMedia, given: Mapping[str, Any], num_read: int, key: str
) -> tuple[list[Skipped], str | None]:
    """Return what a file names and no input is, and a sentence on the inputs that were not asked.

    Args:
        source: The images.
        given: Entries by name.
        num_read: Number of images read, by which a video is as long as it is.
        key: The option that gave the file.
    """
    if source.names is None:
        taken = {str(number * source.every) for number in range(num_read)}
        rest = [name for name in given if name not in taken]
        not_asked = [n for n in rest if n.isdecimal() and int(n) % source.every]
        reason = f"{key} names it, but the video has no such frame"
    else:
        taken = set(source.names)
        named = taken.union(one.name for one in source.left_out)  # each with its own reason
        rest = [name for name in given if name not in named]
        known = set(source.all_names)
        not_asked = [n for n in rest if n in known or source.is_single]
        reason = f"{key} names it, but images= has no such file"
    unasked = set(not_asked)
    absent = [Skipped(name=name, reason=reason) for name in rest if name not in unasked]
    remark = None
    if not_asked:
        remark = (
            f"{len(not_asked)} entries of {key} are of inputs that were not asked for "
            f"({some(not_asked)})"
        )
    return absent, remark


def check_names(
    source: InputMedia, given: Mapping[str, Any], key: str, *, each: bool
) -> str | None:
    """Compare the names in a file with those of the images; return a warning, or None.

    Args:
        source: The images; the names of a video are not known before it is read.
        given: Entries by name.
        key: The option that gave the file.
        each: Whether every image needs an entry.

    Raises:
        ValueError: If entries are missing: any where ``each``, else all.
    """
    names = source.names
    if names is None:
        if any(name.isdecimal() for name in given):
            return None
        raise ValueError(
            f"{key}: a video's frames are named by their numbers, 0 for the first; got "
            f"{some(given)}"
        )
    missing = [name for name in names if name not in given]
    if missing and (each or len(missing) == len(names)):
        raise ValueError(
            f"{key} has no entry for {len(missing)} of {len(names)} images ({some(missing)}); its "
            f"names are {some(given)}; expected file names without folder"
        )
    if missing:
        return (
            f"{len(missing)} of {len(names)} images have no entry in {key} and so no hands "
            f"({some(missing)})"
        )
    return None
