"""Crop, shrink and encode, against cv2.remap, sums over areas and pictures known in closed form."""

import io
import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from preprocess.images.header import ImageProblem, JpegHeader, read_header
from preprocess.images.recode import (
    Recoded,
    Window,
    crop_window,
    recode,
    stored_from_raw,
    stored_size,
)


def png(pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def as_jpeg(pixels: NDArray[np.uint8], mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "jpeg", **options)
    return buffer.getvalue()


def photo(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (9, 9), 0).astype(np.uint8)


def recoded(data: bytes, window: Window, max_px: int = 0, quality: int = 95) -> Recoded:
    header = read_header(data)
    assert not isinstance(header, ImageProblem)
    buffer = np.zeros(3 * header.height * header.width, np.uint8)
    result = recode(data, header, window, max_px=max_px, quality=quality, buffer=buffer)
    assert isinstance(result, Recoded), result
    return result


def rgb(data: bytes) -> NDArray[np.float64]:
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(np.float64)


def box(*values: float) -> NDArray[np.float64]:
    return np.array(values, np.float64)


def window_of(
    region: NDArray[np.float64] | None,
    *,
    margin: float = 1.0,
    on_blocks: bool = False,
    max_px: int = 0,
) -> tuple[int, int, int, int]:
    window = crop_window(region, (100, 200), margin=margin, max_px=max_px, on_blocks=on_blocks)
    return window.left, window.top, window.right, window.bottom


# --- window ---------------------------------------------------------------------------------------


def test_window_holds_every_pixel_that_the_box_touches() -> None:
    # Pixel 10 covers 9.5 to 10.5.
    assert window_of(box(10.0, 20.0, 30.0, 40.0)) == (10, 20, 31, 41)
    assert window_of(box(10.4, 20.0, 29.6, 40.0)) == (10, 20, 31, 41)
    assert window_of(box(10.6, 20.0, 29.4, 40.0)) == (11, 20, 30, 41)


def test_margin_multiplies_the_sides_about_the_centre() -> None:
    # 20 x 10 about (60, 45), times 1.5: 30 x 15.
    assert window_of(box(50, 40, 70, 50), margin=1.5) == (45, 38, 76, 53)


def test_window_is_cut_at_the_image() -> None:
    assert window_of(box(-50.0, 90.0, 20.0, 300.0)) == (0, 90, 21, 100)


@pytest.mark.parametrize(
    "region",
    [None, box(*4 * [math.nan]), box(10, 10, math.nan, 20), box(300, 10, 400, 20)],
    ids=["none", "nan", "part nan", "outside"],
)
def test_without_a_region_in_sight_the_whole_image_is_kept(
    region: NDArray[np.float64] | None,
) -> None:
    assert window_of(region, margin=1.5, on_blocks=True) == (0, 0, 200, 100)


def test_a_point_keeps_its_pixel() -> None:
    assert window_of(box(20, 30, 20, 30), margin=1.5) == (20, 30, 21, 31)


def test_window_of_a_jpeg_is_widened_to_its_blocks() -> None:
    assert window_of(box(17, 33, 40, 50), on_blocks=True) == (16, 32, 48, 64)
    assert window_of(box(190, 90, 195, 95), on_blocks=True) == (176, 80, 200, 96)


def test_blocks_are_given_up_where_they_alone_would_make_the_image_shrink() -> None:
    assert window_of(box(17, 33, 40, 50), on_blocks=True, max_px=32) == (16, 32, 48, 64)
    assert window_of(box(17, 33, 40, 50), on_blocks=True, max_px=31) == (17, 33, 41, 51)


coordinate = st.floats(-50, 250, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(coordinate, coordinate, coordinate, coordinate, st.floats(1, 4), st.booleans())
def test_window_is_the_least_that_holds_the_box(
    a: float,
    b: float,
    c: float,
    d: float,
    margin: float,
    blocks: bool,  # noqa: FBT001
) -> None:
    x0, x1, y0, y1 = min(a, c), max(a, c), min(b, d), max(b, d)
    left, top, right, bottom = window_of(box(x0, y0, x1, y1), margin=margin, on_blocks=blocks)
    assert 0 <= left < right <= 200
    assert 0 <= top < bottom <= 100
    slack = 17 if blocks else 1
    for low, high, first, stop, size in ((x0, x1, left, right, 200), (y0, y1, top, bottom, 100)):
        grow = (high - low) * (margin - 1) / 2
        if (low - grow > 199 or high + grow < 0) or (left, top, right, bottom) == (0, 0, 200, 100):
            continue
        assert first - 0.5 <= max(low - grow, -0.5) + 1e-9
        assert stop - 0.5 >= min(high + grow, size - 0.5) - 1e-9
        assert first + 0.5 + slack > low - grow
        assert stop - 1.5 - slack < high + grow


# --- map ------------------------------------------------------------------------------------------


def test_a_crop_moves_coordinates_by_whole_pixels() -> None:
    window = Window(left=33, top=12, right=97, bottom=80)
    np.testing.assert_array_equal(
        stored_from_raw(window, window.size_hw), [[1, 0, -33], [0, 1, -12]]
    )


def test_a_crop_holds_the_pixels_of_the_image() -> None:
    image = photo(100, 140)
    window = Window(left=33, top=12, right=97, bottom=80)
    result = recoded(png(image[..., ::-1]), window, quality=100)
    assert result.size_hw == (68, 64)
    error = rgb(result.data) - image[12:80, 33:97]
    # Quality 100 rounds coefficients to whole numbers; what is left is the halved chroma.
    assert abs(error.mean()) < 0.5
    assert abs(rgb(result.data).mean(-1) - image[12:80, 33:97].mean(-1)).max() < 16


def test_stored_size_keeps_the_longer_side_and_never_enlarges() -> None:
    window = Window(left=0, top=0, right=300, bottom=100)
    assert stored_size(window, 0) == (100, 300)
    assert stored_size(window, 300) == (100, 300)
    assert stored_size(window, 500) == (100, 300)
    assert stored_size(window, 150) == (50, 150)
    assert stored_size(window, 2) == (1, 2)


@pytest.mark.parametrize("max_px", [0, 150, 97, 61], ids="max_px={}".format)
@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
def test_coordinates_follow_the_pixels(axis: int, max_px: int) -> None:
    """The grey of a gradient is its own raw coordinate, at every scale."""
    grey = np.mgrid[:240, :240][1 - axis].astype(np.uint8)
    window = Window(left=20, top=31, right=220, bottom=190)
    result = recoded(png(grey), window, max_px=max_px)
    stored = rgb(result.data).mean(-1)
    A = np.vstack([result.A_stored_from_file, [0, 0, 1]])
    rows, columns = np.mgrid[: stored.shape[0], : stored.shape[1]]
    raw = (np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(A).T)[..., axis]
    error = (stored - raw)[2:-2, 2:-2]
    # A map that is off by half a stored pixel is off by 0.5 to 1.6 raw ones. Greys are whole, and
    # where every third one is a half, rounding up adds a sixth.
    assert abs(error.mean()) < 0.2
    assert abs(error).max() < 1.5


@pytest.mark.parametrize("max_px", [0, 50], ids=["crop", "shrink"])
def test_pixels_agree_with_remap_along_the_map(max_px: int) -> None:
    noise = np.random.default_rng(5).normal(0, 1500, (200, 240)).astype(np.float32)
    image = np.clip(cv2.GaussianBlur(noise, (0, 0), 9) + 128, 0, 255).astype(np.uint8)
    window = Window(left=24, top=40, right=174, bottom=160)
    result = recoded(png(image), window, max_px=max_px)
    raw_from_stored = cv2.invertAffineTransform(result.A_stored_from_file)
    height, width = result.size_hw
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    at = np.stack([columns, rows, np.ones_like(rows)], -1) @ raw_from_stored.T.astype(np.float32)
    stored = rgb(result.data).mean(-1)
    expected = cv2.remap(image, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    assert abs(stored - expected).mean() < 1.0
    for dx, dy in ((0.5, 0.0), (0.0, 0.5)):
        moved = cv2.remap(image, at[..., 0] + dx, at[..., 1] + dy, cv2.INTER_LINEAR)
        assert abs(stored - moved).mean() > 1.5 * abs(stored - expected).mean()


def test_shrinking_takes_the_mean_of_the_area_below_each_pixel() -> None:
    image = np.random.default_rng(3).integers(0, 256, (40, 60), np.uint8)
    window = Window(left=4, top=2, right=49, bottom=32)  # 45 x 30 -> 18 x 12, 2.5 to one
    result = recoded(png(image), window, max_px=18, quality=100)
    assert result.size_hw == (12, 18)
    fine = np.repeat(np.repeat(image[2:32, 4:49].astype(np.float64), 2, 0), 2, 1)
    expected = fine.reshape(12, 5, 18, 5).mean((1, 3))
    assert abs(rgb(result.data).mean(-1) - expected).max() < 2.5


# --- files ----------------------------------------------------------------------------------------


def test_the_result_is_baseline_420_and_always_the_same_bytes() -> None:
    data = as_jpeg(photo(96, 128), progressive=True, quality=90)
    window = Window(left=16, top=16, right=96, bottom=80)
    result = recoded(data, window)
    again = recoded(data, window)
    assert result.data == again.data
    header = read_header(result.data)
    assert header == JpegHeader(height=64, width=80, components=3, process="baseline")
    with Image.open(io.BytesIO(result.data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]
        assert not image.getexif()


def test_a_crop_on_blocks_is_closer_to_its_source_than_one_beside_them() -> None:
    image = photo(160, 160)
    data = as_jpeg(image, quality=90)
    source = rgb(data)

    def error(left: int) -> float:
        window = Window(left=left, top=left, right=left + 96, bottom=left + 96)
        stored = rgb(recoded(data, window).data)
        return float(np.square(stored - source[left : left + 96, left : left + 96]).mean())

    assert error(32) < 0.6 * error(35)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_orientation_in_exif_is_ignored(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = io.BytesIO(), io.BytesIO()
    Image.fromarray(photo(40, 64)).save(turned, kind, exif=exif.tobytes())
    Image.fromarray(photo(40, 64)).save(plain, kind)
    window = Window(left=0, top=0, right=64, bottom=40)
    result = recoded(turned.getvalue(), window)
    assert result.size_hw == (40, 64)
    assert result.data == recoded(plain.getvalue(), window).data


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_colours_keep_their_places(kind: str) -> None:
    colour = np.array([200, 90, 30], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.tile(colour, (32, 48, 1))).save(buffer, kind)
    stored = rgb(recoded(buffer.getvalue(), Window(left=0, top=0, right=48, bottom=32)).data)
    assert abs(stored - colour).max() <= 4


def test_grey_becomes_colour() -> None:
    image = photo(40, 64)[..., 0]
    window = Window(left=0, top=0, right=64, bottom=40)
    for data in (as_jpeg(image, quality=98), png(image)):
        stored = rgb(recoded(data, window, quality=98).data)
        assert abs(stored - image[..., None]).max() < 16
        assert np.ptp(stored, axis=-1).max() <= 2


@pytest.mark.parametrize("kind", ["palette", "alpha", "16 bit"])
def test_kinds_of_png(kind: str) -> None:
    image = photo(40, 64)
    expected = image.astype(np.float64)
    if kind == "palette":
        buffer = io.BytesIO()
        palette = Image.fromarray(image).quantize(256)
        palette.save(buffer, "png")
        data, expected = buffer.getvalue(), np.asarray(palette.convert("RGB")).astype(np.float64)
    elif kind == "alpha":
        data = png(np.dstack([image[..., ::-1], np.zeros((40, 64), np.uint8)]))
    else:
        data = png(image[..., ::-1].astype(np.uint16) * 256 + 99)
    stored = rgb(recoded(data, Window(left=0, top=0, right=64, bottom=40), quality=100).data)
    assert abs(stored.mean(-1) - expected.mean(-1)).mean() < 3


def problem_of(data: bytes) -> ImageProblem:
    header = read_header(data)
    if isinstance(header, ImageProblem):
        return header
    window = Window(left=0, top=0, right=header.width, bottom=header.height)
    buffer = np.zeros(3 * header.height * header.width, np.uint8)
    result = recode(data, header, window, max_px=0, quality=95, buffer=buffer)
    assert isinstance(result, ImageProblem)
    return result


def test_cmyk_is_named() -> None:
    problem = problem_of(as_jpeg(np.zeros((16, 16, 4), np.uint8), "CMYK"))
    assert problem.flag == "image_not_jpeg"
    assert "CMYK" in problem.reason


def test_chroma_sampling_that_no_decoder_names_is_refused() -> None:
    data = bytearray(as_jpeg(photo(40, 64)))
    data[data.index(b"\xff\xc0") + 14] = 0x21  # Cb at two samples a block, Cr at one
    assert "subsampling" in problem_of(bytes(data)).reason


def test_lost_scan_data_is_seen_behind_a_whole_header() -> None:
    data = as_jpeg(photo(96, 128))
    cut = data[: len(data) // 2] + b"\xff\xd9"
    assert isinstance(read_header(cut), JpegHeader)
    problem = problem_of(cut)
    assert problem.flag == "image_truncated"
    assert "premature end" in problem.reason


def test_damaged_scan_data_is_seen() -> None:
    data = bytearray(as_jpeg(photo(96, 128)))
    data[len(data) // 2 : len(data) // 2 + 40] = 10 * b"\xff\x00\xfe\xfe"
    problem = problem_of(bytes(data))
    assert problem.flag == "image_damaged"
    assert "cannot be decoded" in problem.reason


def test_a_damaged_png_is_seen(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(png(photo(40, 64)))
    data[len(data) // 2] ^= 0x55
    problem = problem_of(bytes(data))
    assert problem.flag == "image_damaged"
    assert "cannot be decoded" in problem.reason
    capfd.readouterr()  # libpng speaks for itself
