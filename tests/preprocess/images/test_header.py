"""Headers of JPEG and PNG files against OpenCV and PIL, which really decode."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from preprocess.images.header import (
    PNG_SIGNATURE,
    ImageProblem,
    JpegHeader,
    PngHeader,
    read_header,
    read_jpeg_header,
    read_png_header,
)


def png(pixels: NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def encode(height: int, width: int, *, mode: str = "RGB", **options: object) -> bytes:
    shape = {"L": (height, width), "RGB": (height, width, 3), "CMYK": (height, width, 4)}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode=None if mode != "CMYK" else "CMYK").save(buffer, "jpeg", **options)
    return buffer.getvalue()


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    mode=st.sampled_from(["L", "RGB", "CMYK"]),
    progressive=st.booleans(),
    restart=st.sampled_from([0, 1, 3]),
)
def test_header_agrees_with_pil(
    height: int, width: int, mode: str, *, progressive: bool, restart: int
) -> None:
    data = encode(height, width, mode=mode, progressive=progressive, restart_marker_blocks=restart)
    header = read_jpeg_header(data)
    assert isinstance(header, JpegHeader)
    with Image.open(io.BytesIO(data)) as image:
        assert (header.width, header.height) == image.size
        assert header.components == len(image.getbands())
        assert (header.process == "progressive") == bool(image.info.get("progressive"))


def test_header_agrees_with_opencv() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    options = [cv2.IMWRITE_JPEG_RST_INTERVAL, 2, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    data = cv2.imencode(".jpg", pixels, options)[1].tobytes()
    header = read_jpeg_header(data)
    assert header == JpegHeader(height=37, width=53, components=3, process="baseline")


def test_every_cut_is_seen() -> None:
    data = encode(16, 16, comment=b"a comment")
    for length in range(len(data)):
        problem = read_jpeg_header(data[:length])
        assert isinstance(problem, ImageProblem), length
        assert problem.flag == "image_truncated", (length, problem)


def test_the_end_marker_of_an_embedded_thumbnail_is_not_the_end() -> None:
    exif = Image.Exif()
    exif[0x010E] = encode(8, 8).decode("latin1")  # a whole JPEG inside the description
    data = encode(40, 40, exif=exif.tobytes() + encode(8, 8))
    assert isinstance(read_jpeg_header(data), JpegHeader)
    problem = read_jpeg_header(data[:-10])
    assert isinstance(problem, ImageProblem)
    assert problem.flag == "image_truncated"


def test_bytes_behind_the_end_do_no_harm() -> None:
    assert isinstance(read_jpeg_header(encode(8, 8) + b"\0" * 3000), JpegHeader)


@pytest.mark.parametrize(
    ("data", "flag", "reason"),
    [
        (b"", "image_truncated", "is empty"),
        (cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes(), "image_not_jpeg", "89 50"),
        (b"<html>not found</html>", "image_not_jpeg", "3c 68"),
        (b"\xff\xd8" + b"\0" * 20, "image_not_jpeg", "no marker at byte 2"),
        (b"\xff\xd8\xff\xd9" + b"\0" * 20, "image_not_jpeg", "ends before its first scan"),
        (b"\xff\xd8\xff\xe0\0\1" + b"\0" * 20, "image_not_jpeg", "broken segment"),
        (b"\xff\xd8\xff\xda\0\2\xff\xd9", "image_not_jpeg", "no frame header"),
        (b"\xff\xd8\xff\xc3\0\x0b" + b"\0" * 20, "image_not_jpeg", "SOF3"),
        (b"\xff\xd8\xff\xc9\0\x0b" + b"\0" * 20, "image_not_jpeg", "SOF9"),
        (
            b"\xff\xd8\xff\xc0\0\x0b\x0c\0\1\0\1\1\0\0\0" + b"\0" * 20,
            "image_not_jpeg",
            "12 bits",
        ),
    ],
    ids=[
        "empty",
        "png",
        "html",
        "zeros",
        "eoi",
        "length",
        "no-frame",
        "lossless",
        "arithmetic",
        "12-bit",
    ],
)
def test_problems_are_named(data: bytes, flag: str, reason: str) -> None:
    problem = read_jpeg_header(data)
    assert isinstance(problem, ImageProblem)
    assert problem.flag == flag
    assert reason in problem.reason


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_an_answer(data: bytes, with_start: bool) -> None:  # noqa: FBT001
    read_jpeg_header(b"\xff\xd8\xff" + data if with_start else data)
    read_header(PNG_SIGNATURE + data)


def test_real_frames(request: pytest.FixtureRequest) -> None:
    frames = sorted((request.config.rootpath / "../shared/real").glob("**/*.jpg"))
    if not frames:
        pytest.skip("../shared/real is not there")
    for frame in frames:
        header = read_jpeg_header(Path(frame).read_bytes())
        assert isinstance(header, JpegHeader)
        image = cv2.imread(str(frame))
        assert image is not None
        assert (header.height, header.width) == image.shape[:2]
        assert header.process == "progressive"


# --- PNG header -----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70))
def test_png_header_agrees_with_opencv(height: int, width: int) -> None:
    data = png(np.zeros((height, width, 3), np.uint8))
    assert read_header(data) == PngHeader(height=height, width=width)


def test_every_cut_of_a_png_is_seen() -> None:
    data = png(np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8))
    for length in range(8, len(data)):
        problem = read_png_header(data[:length])
        assert isinstance(problem, ImageProblem), length
        assert problem.flag == "image_truncated"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xd8\xff", "lacks the signature"),
        (png(np.zeros((4, 4), np.uint8)).replace(b"IHDR", b"IDAT"), "not IHDR"),
        (png(np.zeros((4, 4), np.uint8)).replace(b"\0\0\0\4", b"\0\0\0\0", 1), "0 x 4 pixels"),
    ],
    ids=["signature", "first chunk", "size"],
)
def test_problems_of_a_png_are_named(data: bytes, reason: str) -> None:
    problem = read_png_header(data)
    assert isinstance(problem, ImageProblem)
    assert problem.flag == "image_not_jpeg"
    assert reason in problem.reason
