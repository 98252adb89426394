"""Damage in coded pixels: what is found, and what intact files never show."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from preprocess.images.check import check_jpeg, decode_strictly, find_hole, is_flat
from preprocess.images.header import ImageProblem, JpegHeader, read_jpeg_header


def photo(seed: int, height: int = 240, width: int = 320) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (7, 7), 0).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], *options: int) -> bytes:
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


OPTIMIZED = (cv2.IMWRITE_JPEG_OPTIMIZE, 1)
PROGRESSIVE = (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
RESTARTS = (cv2.IMWRITE_JPEG_RST_INTERVAL, 8)


def header_of(data: bytes) -> JpegHeader:
    header = read_jpeg_header(data)
    assert isinstance(header, JpegHeader)
    return header


def is_damaged(data: bytes, *, decode: bool = True) -> bool:
    header = read_jpeg_header(data)
    if isinstance(header, ImageProblem):
        return True
    return isinstance(check_jpeg(data, header, decode=decode), ImageProblem)


def with_hole(data: bytes, size: int, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(header_of(data).scan_byte + 20, len(data) - size - 40))
    return data[:start] + bytes(size) + data[start + size :]


@pytest.mark.parametrize("size", [64, 512, 4096])
@pytest.mark.parametrize("decode", [True, False], ids=["decode", "header"])
def test_every_hole_in_a_sequential_file_is_found(size: int, *, decode: bool) -> None:
    rng = np.random.default_rng(size)
    for options in ((), RESTARTS, OPTIMIZED):
        data = encoded(photo(1), *options)
        for _ in range(20):
            assert is_damaged(with_hole(data, size, rng), decode=decode)


def test_most_holes_in_a_progressive_file_are_found() -> None:
    rng = np.random.default_rng(1)
    data = encoded(photo(1), *PROGRESSIVE)
    found = [is_damaged(with_hole(data, 512, rng), decode=decode) for decode in (True, False) * 20]
    assert sum(found) >= 38


@pytest.mark.parametrize("options", [(), RESTARTS, OPTIMIZED, PROGRESSIVE])
def test_every_cut_with_an_end_marker_is_found(options: tuple[int, ...]) -> None:
    rng = np.random.default_rng(2)
    data = encoded(photo(1), *options)
    start = header_of(data).scan_byte
    for stop in rng.integers(start + 20, len(data) - 100, 20).tolist():
        assert is_damaged(data[:stop] + b"\xff\xd9")


@pytest.mark.parametrize("options", [(), RESTARTS, OPTIMIZED, PROGRESSIVE])
@pytest.mark.parametrize("colour", [0, 128, 255])
def test_flat_areas_are_no_holes(colour: int, options: tuple[int, ...]) -> None:
    """With tables made for it, a black border is coded as zero bits."""
    pixels = np.full((2000, 2000, 3), colour, np.uint8)
    pixels[900:1100, 900:1100] = photo(1, 200, 200)
    data = encoded(pixels, *options)
    assert not is_damaged(data)
    assert find_hole(data, header_of(data)) is None
    if options == OPTIMIZED and colour == 0:
        assert bytes(64) in data  # so the case is one


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"keep_rgb": True}])
def test_intact_files_of_every_kind_pass(mode: str, options: dict[str, bool]) -> None:
    if mode != "RGB" and "keep_rgb" in options:
        pytest.skip("RGB alone")
    buffer = io.BytesIO()
    Image.fromarray(photo(1)).convert(mode).save(buffer, "jpeg", **options)
    for tail in (b"", bytes(3000)):  # padding behind the end
        data = buffer.getvalue() + tail
        assert check_jpeg(data, header_of(data), decode=True) is False


def test_chroma_sampling_that_this_decoder_lacks_is_no_damage() -> None:
    data = bytearray(encoded(photo(1)))
    data[data.index(b"\xff\xc0") + 14] = 0x21
    assert not is_damaged(bytes(data))


def test_harmless_warnings_do_not_cost_the_image() -> None:
    data = encoded(photo(1))
    expected = decode_strictly(data)
    padded = data[:-2] + b"\x55\xaa\x55" + data[-2:]  # "3 extraneous bytes before marker 0xd9"
    version = data.index(b"JFIF\0") + 5
    future = data[:version] + b"\x07" + data[version + 1 :]
    np.testing.assert_array_equal(decode_strictly(padded), expected)
    assert not is_damaged(padded)
    assert not is_damaged(future)
    assert is_damaged(data[:-2] + b"\x55\xaa" * 20 + data[-2:])


def test_noise_is_flat_and_a_small_thing_is_not() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(20, 2, (480, 640, 3)).clip(0, 255).astype(np.uint8)
    assert is_flat(noise)
    noise[200:216, 300:316] += 60
    assert not is_flat(noise)
    assert not is_flat(photo(1))
    assert is_flat(np.zeros((1, 1, 3), np.uint8))
