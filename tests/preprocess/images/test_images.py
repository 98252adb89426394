"""The images of a shard: what is kept of every kind of file, and what is said about bad ones."""

import hashlib
import os
import pickle
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.store.schema import FLAGS
from preprocess.images.header import JpegHeader, SizeLimit, read_jpeg_header
from preprocess.images.images import (
    BadImage,
    ImageWork,
    ShardImages,
    bad_image_sentence,
    shard_images,
)
from preprocess.records import SourceError
from tests.preprocess.datasets import jpeg_of_claimed_size, png_of_claimed_size

PASSTHROUGH = ImageWork(recode=False, baseline=False)
HEADER = ImageWork(recode=False, baseline=False, decode=False)
BASELINE = ImageWork(recode=False, baseline=True)
RECODE = ImageWork(recode=True, baseline=False)


def picture(seed: int, height: int = 64, width: int = 96) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], ending: str = ".jpg", *options: int) -> bytes:
    return cv2.imencode(ending, pixels, options)[1].tobytes()


def decoded(data: bytes) -> NDArray[np.uint8]:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels.astype(np.uint8)


def images_of(
    root: Path,
    files: dict[str, bytes],
    work: ImageWork,
    region: NDArray[np.float64] | None = None,
    first_row: int = 0,
) -> ShardImages:
    for name, data in files.items():
        (root / name).write_bytes(data)
    sizes = np.array([len(data) for data in files.values()], np.int64)
    return shard_images("toy", root, list(files), sizes, first_row, work, region)


def test_passthrough_keeps_every_byte(tmp_path: Path) -> None:
    files = {
        "a.jpg": encoded(picture(1)),
        "b.jpg": encoded(picture(2, 40, 30), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    }
    images = images_of(tmp_path, files, PASSTHROUGH)
    assert images.payloads == list(files.values())
    assert images.size_hw.tolist() == images.raw_size_hw.tolist() == [[64, 96], [40, 30]]
    assert images.size_hw.dtype == images.raw_size_hw.dtype == np.uint16
    np.testing.assert_array_equal(images.A_stored_from_file, np.tile(np.eye(2, 3), (2, 1, 1)))
    assert images.flags.tolist() == [0, 0]
    assert images.processes == {"baseline": 1, "progressive": 1}
    assert images.bad == []


def test_bad_images_keep_their_place_and_are_named(tmp_path: Path) -> None:
    whole = encoded(picture(1))
    files = {
        "cut.jpg": whole[:-1000],
        "good.jpg": whole,
        "page.jpg": b"<html>",
        "picture.png": encoded(picture(1), ".png"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = [*files, "missing.jpg"]
    sizes = np.array([*map(len, files.values()), 5])
    images = shard_images("toy", tmp_path, names, sizes, 100, PASSTHROUGH, None)
    assert [len(data) for data in images.payloads] == [0, len(whole), 0, 0, 0]
    kinds = [
        "image_truncated",
        None,
        "image_not_jpeg",
        "image_not_jpeg",
        "image_missing",
    ]
    assert images.flags.tolist() == [0 if kind is None else FLAGS[kind] for kind in kinds]
    assert [(bad.row, bad.image, bad.flag) for bad in images.bad] == [
        (100 + i, names[i], kind) for i, kind in enumerate(kinds) if kind is not None
    ]
    reasons = [bad.reason for bad in images.bad]
    assert "is cut off" in reasons[0]
    assert "3c 68" in reasons[1]
    assert reasons[2].endswith("pass image.encoding=recode")
    assert "No such file" in reasons[3]
    assert images.size_hw.tolist() == images.raw_size_hw.tolist() == [
        [0, 0], [64, 96], [0, 0], [0, 0], [0, 0]
    ]  # fmt: skip
    np.testing.assert_array_equal(images.A_stored_from_file[0], np.eye(2, 3))
    assert images.processes == {"baseline": 1}


@pytest.mark.parametrize(
    "work", [PASSTHROUGH, BASELINE, RECODE], ids=["asis", "baseline", "recode"]
)
def test_a_file_that_changed_since_the_plan_stops_the_build(
    tmp_path: Path, work: ImageWork
) -> None:
    data = encoded(picture(1))
    (tmp_path / "a.jpg").write_bytes(data)
    planned = np.array([len(data) + 7])
    message = f"a.jpg changed .* planned {len(data) + 7} bytes, found {len(data)}; build again"
    with pytest.raises(SourceError, match=message):
        shard_images("toy", tmp_path, ["a.jpg"], planned, 0, work, None)


def test_baseline_touches_only_what_is_not(tmp_path: Path) -> None:
    files = {
        "a.jpg": encoded(picture(1)),
        "b.jpg": encoded(picture(2), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    }
    images = images_of(tmp_path, files, BASELINE)
    assert images.payloads[0] == files["a.jpg"]
    header = read_jpeg_header(images.payloads[1])
    assert header == JpegHeader(height=64, width=96, components=3, process="baseline")
    np.testing.assert_array_equal(decoded(images.payloads[1]), decoded(files["b.jpg"]))
    assert images.processes == {"baseline": 2}
    np.testing.assert_array_equal(images.A_stored_from_file[1], np.eye(2, 3))


def test_baseline_leaves_no_files_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("data", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    progressive = encoded(picture(2), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    cut = progressive[: len(progressive) // 2] + b"\xff\xd9"
    images = images_of(tmp_path / "data", {"a.jpg": progressive, "b.jpg": cut}, BASELINE)
    assert images.flags.tolist() == [0, FLAGS["image_truncated"]]
    assert not list((tmp_path / "temporary").iterdir())
    with pytest.raises(SourceError, match="changed"):
        shard_images("toy", tmp_path / "data", ["a.jpg"], np.array([1]), 0, BASELINE, None)
    assert not list((tmp_path / "temporary").iterdir())


def test_recode_crops_to_the_region_of_each_image(tmp_path: Path) -> None:
    files = {"a.png": encoded(picture(1), ".png"), "b.jpg": encoded(picture(2, 100, 120))}
    region = np.array([[20.0, 10, 39, 29], [40, 40, 60, 60]])
    work = ImageWork(recode=True, baseline=False, margin=1.0)
    images = images_of(tmp_path, files, work, region)
    assert images.raw_size_hw.tolist() == [[64, 96], [100, 120]]
    # A PNG to the pixel, a JPEG to blocks of 16.
    assert images.size_hw.tolist() == [[20, 20], [32, 32]]
    np.testing.assert_array_equal(
        images.A_stored_from_file, [[[1, 0, -20], [0, 1, -10]], [[1, 0, -32], [0, 1, -32]]]
    )
    crops = [picture(1)[10:30, 20:40], decoded(files["b.jpg"])[32:64, 32:64]]
    for data, crop in zip(images.payloads, crops, strict=True):
        assert abs(decoded(data).mean(-1) - crop.mean(-1)).mean() < 4
        assert read_jpeg_header(data) == JpegHeader(
            height=crop.shape[0], width=crop.shape[1], components=3, process="baseline"
        )
    assert images.processes == {"baseline": 2}


def test_recode_keeps_the_frame_where_there_is_no_region(tmp_path: Path) -> None:
    files = {"a.jpg": encoded(picture(1)), "b.jpg": encoded(picture(2))}
    region = np.array([[np.nan] * 4, [20, 10, 39, 29]])
    images = images_of(tmp_path, files, RECODE, region)
    assert images.size_hw[0].tolist() == [64, 96]
    assert images.size_hw[1].tolist() != [64, 96]
    assert images_of(tmp_path, files, RECODE).size_hw.tolist() == [[64, 96], [64, 96]]


def test_recode_shrinks_to_the_longest_side(tmp_path: Path) -> None:
    files = {"a.jpg": encoded(picture(1)), "b.jpg": encoded(picture(2, 20, 30))}
    work = ImageWork(recode=True, baseline=False, max_px=48)
    images = images_of(tmp_path, files, work)
    assert images.size_hw.tolist() == [[32, 48], [20, 30]]
    assert images.raw_size_hw.tolist() == [[64, 96], [20, 30]]
    np.testing.assert_array_equal(images.A_stored_from_file[0], [[0.5, 0, -0.25], [0, 0.5, -0.25]])


def test_the_quality_is_the_one_asked_for(tmp_path: Path) -> None:
    file = {"a.jpg": encoded(picture(1))}
    sizes = [
        len(
            images_of(tmp_path, file, ImageWork(recode=True, baseline=False, quality=q)).payloads[0]
        )
        for q in (60, 80, 95)
    ]
    assert sizes == sorted(set(sizes))


def test_one_image_does_not_leak_into_the_next(tmp_path: Path) -> None:
    """The memory that images are decoded into is used again."""
    files = {
        f"{i}.jpg": encoded(picture(i, height, width))
        for i, (height, width) in enumerate([(64, 96), (20, 30), (130, 50), (64, 96)])
    }
    together = images_of(tmp_path, files, RECODE).payloads
    alone = [images_of(tmp_path, {name: data}, RECODE).payloads[0] for name, data in files.items()]
    assert together == alone


@pytest.mark.parametrize(
    "work", [PASSTHROUGH, BASELINE, RECODE], ids=["asis", "baseline", "recode"]
)
@pytest.mark.parametrize("progressive", [0, 1])
def test_damage_in_the_pixels_is_seen_and_named(
    tmp_path: Path, work: ImageWork, progressive: int
) -> None:
    whole = encoded(picture(1, 200, 200), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    middle = len(whole) // 2
    files = {
        "cut.jpg": whole[:middle] + b"\xff\xd9",
        "hole.jpg": whole[:middle] + bytes(512) + whole[middle + 512 :],
        "good.jpg": whole,
        "other.jpg": whole[:middle] + encoded(picture(3))[700:1200] + whole[middle + 500 :],
    }
    images = images_of(tmp_path, files, work)
    assert [bad.image for bad in images.bad] == ["cut.jpg", "hole.jpg", "other.jpg"]
    assert images.bad[0].flag == "image_truncated"
    assert {bad.flag for bad in images.bad[1:]} <= {"image_truncated", "image_damaged"}
    assert [bool(data) for data in images.payloads] == [False, False, True, False]
    if not progressive:
        assert images.bad[1].flag == "image_damaged"
        assert images.bad[1].reason == f"has a hole: nothing but zeros at byte {middle} and on"


def test_without_decoding_holes_are_seen(tmp_path: Path) -> None:
    whole = encoded(picture(1, 200, 200))
    middle = len(whole) // 2
    files = {
        "cut.jpg": whole[:middle] + b"\xff\xd9",
        "hole.jpg": whole[:middle] + bytes(512) + whole[middle + 512 :],
        "black.jpg": encoded(np.zeros((64, 64, 3), np.uint8)),
    }
    images = images_of(tmp_path, files, HEADER)
    assert [bad.image for bad in images.bad] == ["hole.jpg"]
    assert images.flags.tolist() == [0, FLAGS["image_damaged"], 0]


@pytest.mark.parametrize(
    "work", [PASSTHROUGH, BASELINE, RECODE], ids=["asis", "baseline", "recode"]
)
def test_images_of_one_colour_are_flagged_and_kept(tmp_path: Path, work: ImageWork) -> None:
    black = np.random.default_rng(0).integers(0, 4, (256, 256, 3), np.uint8)
    dark = black.copy()
    dark[100:140, 100:140] = 20
    files = {
        "black.jpg": encoded(black),
        "green.jpg": encoded(np.full((64, 64, 3), (0, 200, 0), np.uint8)),
        "tiny.jpg": encoded(np.full((4, 4, 3), 255, np.uint8)),
        "dark.jpg": encoded(dark),
        "photo.jpg": encoded(picture(1)),
    }
    images = images_of(tmp_path, files, work)
    assert images.flags.tolist() == [FLAGS["flat_image"]] * 3 + [0, 0]
    assert all(images.payloads)
    assert images.bad == []


def test_recoding_sees_what_the_header_does_not_say(tmp_path: Path) -> None:
    whole = encoded(picture(1))
    files = {
        "a.jpg": whole[: len(whole) // 2] + b"\xff\xd9",
        "b.png": encoded(picture(2), ".png")[:-30],
        "c.jpg": whole,
    }
    assert images_of(tmp_path, files, HEADER).flags[0] == 0
    images = images_of(tmp_path, files, RECODE, first_row=7)
    assert [(bad.row, bad.image, bad.flag) for bad in images.bad] == [
        (7, "a.jpg", "image_truncated"),
        (8, "b.png", "image_truncated"),
    ]
    assert images.payloads[:2] == [b"", b""]
    assert images.size_hw.tolist() == [[0, 0], [0, 0], [64, 96]]
    assert images.raw_size_hw.tolist() == [[0, 0], [0, 0], [64, 96]]


def test_recoding_runs_on_one_thread_of_opencv(tmp_path: Path) -> None:
    cv2.setNumThreads(2)
    images_of(tmp_path, {"a.jpg": encoded(picture(1))}, RECODE)
    assert cv2.getNumThreads() == 1


@pytest.mark.parametrize("work", [BASELINE, RECODE], ids=["baseline", "recode"])
def test_shards_in_threads_of_one_process_do_not_disturb_each_other(
    tmp_path: Path, work: ImageWork
) -> None:
    """A cluster's worker may run several."""
    files = {
        f"{i}.jpg": encoded(picture(i), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1) for i in range(12)
    }
    expected = images_of(tmp_path, files, work).payloads
    found: list[list[bytes]] = []

    def run() -> None:
        sizes = np.array([len(data) for data in files.values()])
        found.append(shard_images("toy", tmp_path, list(files), sizes, 0, work, None).payloads)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == 4 * [expected]
    assert tempfile.tempdir is None or Path(tempfile.tempdir).is_dir()


def test_the_work_and_its_result_can_travel(tmp_path: Path) -> None:
    assert pickle.loads(pickle.dumps(RECODE)) == RECODE  # noqa: S301
    images = images_of(tmp_path, {"a.jpg": encoded(picture(1))}, RECODE)
    again = pickle.loads(pickle.dumps(images))  # noqa: S301
    assert again.payloads == images.payloads


def test_what_cannot_be_read_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    images = shard_images("toy", tmp_path, ["a.jpg"], np.array([5]), 0, PASSTHROUGH, None)
    assert images.bad[0].flag == "image_missing"
    assert images.bad[0].reason == "cannot be read (Is a directory)"


def test_what_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "pipe.jpg")
    names = ["pipe.jpg", "link.jpg", "zero.jpg"]
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    images = shard_images("toy", tmp_path, names, np.zeros(3, np.int64), 0, PASSTHROUGH, None)
    assert [bad.flag for bad in images.bad] == ["image_missing"] * 3
    assert {bad.reason for bad in images.bad} == {"is no regular file"}


@pytest.mark.parametrize(
    "work", [PASSTHROUGH, BASELINE, RECODE], ids=["asis", "baseline", "recode"]
)
def test_a_header_that_claims_gigabytes_is_a_bad_image(tmp_path: Path, work: ImageWork) -> None:
    files = {
        "a.jpg": jpeg_of_claimed_size(65_500, 65_500),
        "b.jpg": jpeg_of_claimed_size(20, 16_385),
        "c.jpg": jpeg_of_claimed_size(16_000, 16_000),
    }
    if work.recode:
        files["d.jpg"] = png_of_claimed_size(65_500, 65_500)
    images = images_of(tmp_path, files, work)
    assert images.payloads == [b""] * len(files)
    assert [bad.flag for bad in images.bad] == ["image_not_jpeg"] * len(files)
    assert images.bad[1].reason == (
        "claims 20 x 16385 pixels, expected at most 16384 a side (image.limit_side_px) and 200 "
        "million (image.limit_megapixels)"
    )


def test_the_limit_of_the_size_is_a_setting(tmp_path: Path) -> None:
    file = {"a.jpg": encoded(picture(1))}  # 96 x 64
    for limit, num_bad in (
        (SizeLimit(side_px=96), 0),
        (SizeLimit(side_px=95), 1),
        (SizeLimit(megapixels=0.006144), 0),
        (SizeLimit(megapixels=0.006), 1),
    ):
        work = ImageWork(recode=False, baseline=False, limit=limit)
        assert len(images_of(tmp_path, file, work).bad) == num_bad


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    os.truncate(tmp_path / "a.jpg", 1 << 40)
    images = shard_images("toy", tmp_path, ["a.jpg"], np.array([1 << 40]), 0, PASSTHROUGH, None)
    assert images.bad[0].flag == "image_not_jpeg"
    assert images.bad[0].reason == "has 1099511627776 bytes, expected at most 536870912"


def test_the_sentence_names_the_file_the_reason_and_the_ways_on() -> None:
    bad = [
        BadImage(row=3, image="a/b.jpg", flag="image_missing", reason="cannot be read (gone)"),
        BadImage(row=4, image="a/c.jpg", flag="image_missing", reason="cannot be read (gone)"),
    ]
    assert bad_image_sentence("toy", Path("data"), bad) == (
        "toy: the image data/a/b.jpg cannot be read (gone) (1 more in the same shard); copy it "
        "again, or pass on_bad_image=flag to keep its row without an image"
    )


def test_real_progressive_frames_become_baseline(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = (request.config.rootpath / "../shared/real").resolve()
    frames = sorted(root.glob("**/*.jpg"))
    if not frames:
        pytest.skip("../shared/real is not there")
    before = [hashlib.sha256(frame.read_bytes()).hexdigest() for frame in frames]
    names = [str(frame.relative_to(root)) for frame in frames]
    sizes = np.array([frame.stat().st_size for frame in frames])
    images = shard_images("real", root, names, sizes, 0, BASELINE, None)
    assert images.processes == {"baseline": len(frames)}
    for frame, data in zip(frames, images.payloads, strict=True):
        np.testing.assert_array_equal(decoded(data), decoded(frame.read_bytes()))
    assert [hashlib.sha256(frame.read_bytes()).hexdigest() for frame in frames] == before
