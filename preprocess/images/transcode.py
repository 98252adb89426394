"""Losslessly transcode progressive JPEG to baseline: the same DCT coefficients, entropy-coded anew.

Hardware decoders do not support progressive files. jpeglib, a wrapper of libjpeg, does the work: of
the libraries that read and write coefficients, it is the one with a licence and wheels for every
Python version. It works on files and keeps global state, so a lock serialises the calls. libjpeg
ends the whole process on an error, so each image is decoded beforehand, and again afterwards: both
must give the same pixels. Metadata is dropped: no EXIF, no colour profile.
"""

import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import jpeglib
import numpy as np
import simplejpeg

from preprocess.images.check import decode_strictly, undecodable
from preprocess.images.header import ImageProblem, JpegHeader, read_jpeg_header

_LIBJPEG: Final = "turbo210"
"""libjpeg-turbo 2.1.0, the newest version in jpeglib; its default is libjpeg 6b of 1998."""
_FACTORS: Final[Mapping[str, list[tuple[int, int]]]] = {
    "Gray": [(1, 1)],
    "444": [(1, 1), (1, 1), (1, 1)],
    "422": [(1, 2), (1, 1), (1, 1)],
    "440": [(2, 1), (1, 1), (1, 1)],
    "420": [(2, 2), (1, 1), (1, 1)],
    "411": [(1, 4), (1, 1), (1, 1)],
}
"""Vertical and horizontal sampling factors of each component, by name of chroma subsampling."""
_LOCK: Final = threading.Lock()


@contextmanager
def work_folder() -> Iterator[Path]:
    """Provide a temporary folder, and remove it with everything that jpeglib left in it."""
    with _LOCK:  # jpeglib's folder of temporary files is global
        folder = tempfile.TemporaryDirectory(prefix="handloom-")
    with folder as name:
        yield Path(name)


def to_baseline(data: bytes, folder: Path) -> bytes | ImageProblem:
    """Transcode an image to baseline JPEG, or return the problem with it.

    Args:
        data: A JPEG file, progressive or extended.
        folder: From ``work_folder``.
    """
    try:
        height, width, colours, sampling = simplejpeg.decode_jpeg_header(data, strict=False)
    except ValueError as error:
        return undecodable(str(error))
    pixels = decode_strictly(data)
    if isinstance(pixels, ImageProblem):
        return pixels
    if colours not in {"Gray", "YCbCr"} or sampling not in _FACTORS:
        return _cannot(f"it is {colours} {sampling}")
    with _LOCK:
        baseline = _code_again(data, (height, width), sampling, folder)
    found = read_jpeg_header(baseline)
    if not isinstance(found, JpegHeader) or found.process != "baseline":
        return _cannot("the result is not baseline")
    if not np.array_equal(simplejpeg.decode_jpeg(baseline), pixels):
        return _cannot("the result has other pixels")
    return baseline


def _code_again(data: bytes, size_hw: tuple[int, int], sampling: str, folder: Path) -> bytes:
    """Re-encode the JPEG's coefficients with baseline coding."""
    target = folder / "baseline.jpg"
    target.unlink(missing_ok=True)
    if jpeglib.version.get() != _LIBJPEG:
        jpeglib.version.set(_LIBJPEG)
    # jpeglib leaves its own temporary files behind when it fails.
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        image = _described(data, size_hw, sampling)
        image.load()
        image.content = None  # otherwise jpeglib reads the coefficients again before writing
        image.write_dct(str(target))
    finally:
        tempfile.tempdir = before
    return target.read_bytes()


def _described(data: bytes, size_hw: tuple[int, int], sampling: str) -> Any:
    """Return what ``jpeglib.read_dct`` would, without the decode it does to describe the file."""
    factors = np.array(_FACTORS[sampling], np.int32)
    # Every component covers the image, at its share of the samples, in blocks of 8.
    blocks = -(-np.array(size_hw) * factors // (8 * factors.max(0)))
    return jpeglib.DCTJPEG(
        path="",
        content=data,
        height=size_hw[0],
        width=size_hw[1],
        block_dims=blocks.astype(np.int32),
        samp_factor=factors,
        jpeg_color_space=jpeglib.JCS_GRAYSCALE if sampling == "Gray" else jpeglib.JCS_YCbCr,
        progressive_mode=True,
        num_scans=1,
        markers=[],
        huffmans=None,
        Y=None,
        Cb=None,
        Cr=None,
        K=None,
        qt=None,
        quant_tbl_no=None,
    )


def _cannot(reason: str) -> ImageProblem:
    return ImageProblem(
        flag="image_not_jpeg",
        reason=f"cannot be made baseline without loss: {reason}; pass image.jpeg=asis, or "
        "image.encoding=recode",
    )
