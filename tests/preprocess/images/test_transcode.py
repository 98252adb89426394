"""Lossless transcoding, against OpenCV, PIL and the coefficients that libjpeg reads."""

import io
import tempfile
from pathlib import Path
from typing import Any

import cv2
import jpeglib
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from preprocess.images.header import ImageProblem, JpegHeader, read_jpeg_header
from preprocess.images.transcode import to_baseline


def picture(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0).astype(np.uint8)


def progressive(
    height: int, width: int, sampling: int = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
) -> bytes:
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return cv2.imencode(".jpg", picture(height, width), options)[1].tobytes()


def by_pil(pixels: NDArray[np.uint8], mode: str | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "jpeg", progressive=True, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> NDArray[Any]:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded


def assert_same_image(source: bytes, folder: Path) -> bytes:
    baseline = to_baseline(source, folder)
    assert isinstance(baseline, bytes), baseline
    before, after = read_jpeg_header(source), read_jpeg_header(baseline)
    assert isinstance(before, JpegHeader)
    assert isinstance(after, JpegHeader)
    assert after.process == "baseline"
    assert (after.height, after.width, after.components) == (
        before.height,
        before.width,
        before.components,
    )
    np.testing.assert_array_equal(pixels(baseline), pixels(source))
    with Image.open(io.BytesIO(baseline)) as image:
        assert not image.info.get("progressive")
    return baseline


@pytest.mark.parametrize(
    "sampling",
    [
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ],
    ids=["420", "422", "440", "411", "444"],
)
@pytest.mark.parametrize("size", [(64, 48), (37, 53), (1, 1)], ids=str)
def test_the_pixels_stay_and_the_file_is_baseline(
    size: tuple[int, int], sampling: int, tmp_path: Path
) -> None:
    assert_same_image(progressive(*size, sampling), tmp_path)


def test_grey_stays_grey(tmp_path: Path) -> None:
    source = by_pil(picture(40, 30)[..., 0])
    assert pixels(assert_same_image(source, tmp_path)).shape == (40, 30)


def test_the_coefficients_are_untouched(tmp_path: Path) -> None:
    (tmp_path / "source.jpg").write_bytes(progressive(37, 53))
    baseline = assert_same_image((tmp_path / "source.jpg").read_bytes(), tmp_path)
    (tmp_path / "result.jpg").write_bytes(baseline)
    before, after = (jpeglib.read_dct(str(tmp_path / f"{n}.jpg")) for n in ("source", "result"))
    for name in ("Y", "Cb", "Cr", "qt"):
        np.testing.assert_array_equal(getattr(before, name), getattr(after, name))


def test_metadata_is_left_out_and_the_orientation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    source = by_pil(picture(40, 24), exif=exif.tobytes(), comment=b"camera 7", icc_profile=b"none")
    plain = by_pil(picture(40, 24))
    assert assert_same_image(source, tmp_path) == assert_same_image(plain, tmp_path)


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (by_pil(picture(40, 24), keep_rgb=True), "RGB 444"),
        (by_pil(np.zeros((16, 16, 4), np.uint8), "CMYK"), "CMYK"),
    ],
    ids=["rgb", "cmyk"],
)
def test_colours_that_jpeglib_would_mistake_are_named(
    source: bytes, kind: str, tmp_path: Path
) -> None:
    problem = to_baseline(source, tmp_path)
    assert isinstance(problem, ImageProblem)
    assert problem.flag == "image_not_jpeg"
    assert kind in problem.reason


def test_a_result_with_other_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> bytes:
        return cv2.imencode(".jpg", picture(64, 48))[1].tobytes()

    monkeypatch.setattr("preprocess.images.transcode._code_again", other)
    problem = to_baseline(progressive(64, 48, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444), tmp_path)
    assert isinstance(problem, ImageProblem)
    assert "other pixels" in problem.reason


def test_a_cut_off_image_is_named_before_libjpeg_sees_it(tmp_path: Path) -> None:
    source = progressive(64, 48)
    problem = to_baseline(source[: len(source) // 2] + b"\xff\xd9", tmp_path)
    assert isinstance(problem, ImageProblem)
    assert problem.flag == "image_truncated"
    assert not list(tmp_path.iterdir())


def test_jpeglib_leaves_nothing_outside_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(outside))

    def fail(*_: object, **__: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("jpeglib._bind.CJpegLib.read_jpeg_dct", fail)
    with pytest.raises(OSError, match="no room"):
        to_baseline(progressive(64, 48), folder)
    assert tempfile.tempdir == str(outside)
    assert not list(outside.iterdir())


def test_real_progressive_frames(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    frames = sorted((request.config.rootpath / "../shared/real").glob("**/*.jpg"))
    if not frames:
        pytest.skip("../shared/real is not there")
    for frame in frames:
        assert_same_image(frame.read_bytes(), tmp_path)
