"""Read, check and encode the image files of one shard for the store.

Passthrough keeps the bytes of a JPEG; ``baseline`` transcodes progressive ones without loss;
recode decodes, crops and encodes (``preprocess.images.recode``). Peak memory is the results plus
one image.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float, UInt16, UInt32

from pipeline.store.schema import FLAGS
from preprocess.images.header import (
    PNG_SIGNATURE,
    ImageProblem,
    JpegHeader,
    PngHeader,
    SizeLimit,
    read_header,
)
from preprocess.records import Lens, SourceError

_MAX_BYTES: Final = 1 << 29
"""Largest file that is read; a JPEG of 200 million pixels at quality 95 has a third of that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageWork:
    """Image processing settings of a build."""

    recode: bool
    """Decode, crop, encode as baseline JPEG 4:2:0; False: passthrough."""
    baseline: bool
    """Passthrough: losslessly transcode files that are not baseline."""
    quality: int = 95
    """Recode: JPEG quality."""
    max_px: int = 0
    """Recode: longest side of a stored image, pixels; 0 keeps the scale. Never upscales."""
    decode: bool = True
    """Decode passed-through JPEGs to find damage, and images of one colour."""
    margin: float = 1.5
    """Recode with a region: side length of the crop as a multiple of the region's box."""
    limit: SizeLimit = field(default_factory=SizeLimit)
    """Largest image file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BadImage:
    """An image whose bytes are not stored."""

    row: int
    image: str
    flag: str
    reason: str
    """Completes "the image ...": ``is cut off: ...``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardImages:
    """The stored images of a shard, n rows. A bad image has no bytes, size 0 and the identity."""

    payloads: list[bytes]
    size_hw: UInt16[np.ndarray, "n 2"]
    """Size of the stored image, pixels."""
    raw_size_hw: UInt16[np.ndarray, "n 2"]
    """Size of the image file, pixels."""
    A_stored_from_file: Float[np.ndarray, "n 2 3"]
    flags: UInt32[np.ndarray, " n"]
    """Bits of ``schema.FLAGS``."""
    processes: dict[str, int]
    """Number of stored images by JPEG coding process."""
    bad: list[BadImage]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    data: bytes
    num_read: int
    """Size of the source file, bytes."""
    process: str
    size_hw: tuple[int, int]
    raw_size_hw: tuple[int, int]
    A_stored_from_file: Float[np.ndarray, "2 3"] | None = None
    """None: the identity."""
    is_flat: bool = False


_Region = Float[np.ndarray, " 4"] | None
_Convert = Callable[[bytes, _Region, Lens | None], _Stored | ImageProblem]


def shard_images(
    dataset: str,
    root: Path,
    names: Sequence[str],
    planned_bytes: np.ndarray,
    first_row: int,
    work: ImageWork,
    region_xyxy: Float[np.ndarray, "n 4"] | None,
    lenses: Sequence[Lens | None] | None = None,
) -> ShardImages:
    """Read and encode the images of a shard for the store.

    Sets OpenCV to one thread in this process: parallelism is across shards.

    Args:
        dataset: Name for messages.
        root: Folder of the dataset.
        names: Files, relative to ``root``.
        planned_bytes: Size of each file when the build was planned, ``[n]``.
        first_row: Store row of the first image.
        work: Processing settings.
        region_xyxy: Recode: box that each crop must contain, raw pixels; NaN or None: whole image.
        lenses: Recode: lens of each image, used to undistort it.

    Raises:
        SourceError: If a file changed since the plan.
    """
    payloads: list[bytes] = []
    size_hw = np.zeros((len(names), 2), np.uint16)
    raw_size_hw = np.zeros_like(size_hw)
    A_stored_from_file = np.tile(np.eye(2, 3), (len(names), 1, 1))
    flags = np.zeros(len(names), np.uint32)
    processes: Counter[str] = Counter()
    bad: list[BadImage] = []
    with _converter(work) as convert:
        for i, name in enumerate(names):
            data = read_image_file(root / name)
            region = None if region_xyxy is None else region_xyxy[i]
            lens = None if lenses is None else lenses[i]
            image = convert(data, region, lens) if isinstance(data, bytes) else data
            if isinstance(image, ImageProblem):
                payloads.append(b"")
                flags[i] = FLAGS[image.flag]
                row = first_row + i
                bad.append(BadImage(row=row, image=name, flag=image.flag, reason=image.reason))
                continue
            if image.num_read != planned_bytes[i]:
                raise SourceError(
                    f"{dataset}: {root / name} changed while the store was built: planned "
                    f"{planned_bytes[i]} bytes, found {image.num_read}; build again"
                )
            payloads.append(image.data)
            size_hw[i], raw_size_hw[i] = image.size_hw, image.raw_size_hw
            if image.A_stored_from_file is not None:
                A_stored_from_file[i] = image.A_stored_from_file
            processes[image.process] += 1
            flags[i] = FLAGS["flat_image"] * image.is_flat
    return ShardImages(
        payloads=payloads,
        size_hw=size_hw,
        raw_size_hw=raw_size_hw,
        A_stored_from_file=A_stored_from_file,
        flags=flags,
        processes=dict(processes),
        bad=bad,
    )


def bad_image_sentence(dataset: str, root: Path, bad: Sequence[BadImage]) -> str:
    """Return the error sentence for bad images, with the two ways to continue."""
    more = f" ({len(bad) - 1} more in the same shard)" if len(bad) > 1 else ""
    return (
        f"{dataset}: the image {root / bad[0].image} {bad[0].reason}{more}; copy it again, or pass "
        "on_bad_image=flag to keep its row without an image"
    )


@contextmanager
def _converter(work: ImageWork) -> Iterator[_Convert]:
    """Return the function that converts file bytes to the stored image."""
    # Codecs are slow to import, and the CLI imports this module's types for every command.
    if work.recode:
        yield _recoder(work)
    elif work.baseline:
        from preprocess.images.transcode import work_folder

        with work_folder() as folder:
            yield _transcoder(folder, work)
    else:
        yield lambda data, *_: _passed_through(data, work)


def header_of(data: bytes, work: ImageWork) -> JpegHeader | PngHeader | ImageProblem:
    """Return the header of a file that the build can store, or the problem with it."""
    if not work.recode and data.startswith(PNG_SIGNATURE):
        return ImageProblem(
            flag="image_not_jpeg",
            reason="is a PNG, which a store does not hold as it is; pass image.encoding=recode",
        )
    header = read_header(data)
    if isinstance(header, ImageProblem):
        return header
    return work.limit.problem(header) or header


def _passed_through(data: bytes, work: ImageWork) -> _Stored | ImageProblem:
    from preprocess.images.check import check_jpeg

    header = header_of(data, work)
    if isinstance(header, ImageProblem):
        return header
    assert isinstance(header, JpegHeader)
    is_flat = check_jpeg(data, header, decode=work.decode)
    if isinstance(is_flat, ImageProblem):
        return is_flat
    size_hw = header.height, header.width
    return _Stored(
        data=data,
        num_read=len(data),
        process=header.process,
        size_hw=size_hw,
        raw_size_hw=size_hw,
        is_flat=is_flat,
    )


def _transcoder(folder: Path, work: ImageWork) -> _Convert:
    from preprocess.images.transcode import to_baseline

    def convert(data: bytes, _: _Region, __: Lens | None) -> _Stored | ImageProblem:
        image = _passed_through(data, work)
        if isinstance(image, ImageProblem) or image.process == "baseline":
            return image
        baseline = to_baseline(data, folder)
        if isinstance(baseline, ImageProblem):
            return baseline
        return replace(image, data=baseline, process="baseline")

    return convert


def _recoder(work: ImageWork) -> _Convert:
    import cv2

    from preprocess.images.recode import crop_window, recode

    cv2.setNumThreads(1)
    buffer = np.empty(0, np.uint8)

    def convert(data: bytes, region: _Region, lens: Lens | None) -> _Stored | ImageProblem:
        nonlocal buffer
        header = header_of(data, work)
        if isinstance(header, ImageProblem):
            return header
        raw_size_hw = header.height, header.width
        window = crop_window(
            region,
            raw_size_hw,
            margin=work.margin,
            max_px=work.max_px,
            on_blocks=isinstance(header, JpegHeader),
        )
        if len(buffer) < 3 * header.height * header.width:
            buffer = np.empty(3 * header.height * header.width, np.uint8)
        image = recode(
            data,
            header,
            window,
            max_px=work.max_px,
            quality=work.quality,
            buffer=buffer,
            lens=lens,
        )
        if isinstance(image, ImageProblem):
            return image
        return _Stored(
            data=image.data,
            num_read=len(data),
            process="baseline",
            size_hw=image.size_hw,
            raw_size_hw=raw_size_hw,
            A_stored_from_file=image.A_stored_from_file,
            is_flat=image.is_flat,
        )

    return convert


def read_image_file(path: Path) -> bytes | ImageProblem:
    """Return the bytes of a regular file of a reasonable size, or the problem with it."""
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return ImageProblem(flag="image_missing", reason="is no regular file")
            if status.st_size > _MAX_BYTES:
                return ImageProblem(
                    flag="image_not_jpeg",
                    reason=f"has {status.st_size} bytes, expected at most {_MAX_BYTES}",
                )
            return file.read()
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        return ImageProblem(flag="image_missing", reason=reason)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; unlike ``open``, do not wait for the writer of a named pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
