import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from benchmarks.config import PreprocessBenchConfig
from benchmarks.preprocess.files import (
    HEAD_LENS,
    arctic_files,
    encode,
    pictures,
    with_comment,
    write_files,
)
from benchmarks.preprocess.peers import LOOPS, Files
from benchmarks.preprocess.run import main
from preprocess.images.header import JpegHeader, read_jpeg_header


def test_the_files_have_the_stated_size(tmp_path: Path) -> None:
    chosen = list(pictures(PreprocessBenchConfig(num=8)))
    assert len(chosen) == 8
    for progressive in (False, True):
        jpegs = [encode(picture, progressive=progressive) for picture in chosen]
        files = write_files(
            tmp_path / str(progressive), [with_comment(jpegs, i) for i in range(12)]
        )
        contents = [(files.root / name).read_bytes() for name in files.names]
        assert len(set(contents)) == 12
        assert files.sizes.tolist() == [len(content) for content in contents]
        for content in contents:
            header = read_jpeg_header(content)
            assert header == JpegHeader(
                height=480,
                width=640,
                components=3,
                process="progressive" if progressive else "baseline",
            )
            assert cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) is not None
        if not progressive:
            assert 75_000 <= min(files.sizes) <= max(files.sizes) <= 88_100
        for window in files.windows:
            assert 120 * 1.5 <= min(window.size_hw) <= max(window.size_hw) <= 240 * 1.5 + 32


@pytest.fixture(scope="module")
def arctic(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Files]:
    return arctic_files(PreprocessBenchConfig(num=100), tmp_path_factory.mktemp("arctic"))


def test_files_of_arctic_are_large_and_one_kind_is_distorted(arctic: dict[str, Files]) -> None:
    assert list(arctic) == ["still", "head"]
    for view, size_hw in (("still", (2800, 2000)), ("head", (2000, 2800))):
        shown = arctic[view]
        contents = [(shown.root / name).read_bytes() for name in shown.names]
        assert len(set(contents)) == 2
        for content in contents:
            assert 500_000 <= len(content) <= 900_000
            header = read_jpeg_header(content)
            assert isinstance(header, JpegHeader)
            assert (header.height, header.width) == size_hw == shown.frame_hw
        for window in shown.windows:
            assert 600 <= min(window.size_hw) <= max(window.size_hw) <= 1200 * 1.5 + 32
    assert arctic["still"].lens is None
    assert arctic["still"].maps is None
    assert arctic["head"].lens is HEAD_LENS


@pytest.mark.parametrize("name", ["simplejpeg", "OpenCV"])
def test_the_bare_loops_straighten_the_view_of_the_head(
    arctic: dict[str, Files], name: str
) -> None:
    head = arctic["head"].part(1, 2)
    window = head.windows[0]
    frame = simplejpeg.decode_jpeg((head.root / head.names[0]).read_bytes())
    straight = cv2.undistort(frame, HEAD_LENS.K, HEAD_LENS.dist8)
    part = slice(window.top, window.bottom), slice(window.left, window.right)
    got = simplejpeg.decode_jpeg(LOOPS[name](head)[0]).astype(int)
    assert got.shape == straight[part].shape
    assert abs(got - straight[part]).mean() < 1.5
    assert abs(got - frame[part]).mean() > 3


def test_the_benchmark_runs_and_keeps_a_row_of_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "preprocess.jsonl"
    config = PreprocessBenchConfig(
        out=str(tmp_path / "bench"), num=8, results=str(results), min_time_s=0.02, repeats=5
    )
    assert main(config) in {0, 1}
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    found = [(row["metric"], row["variant"]) for row in rows if row["variant"] != "PyTurboJPEG"]
    assert found[:-1] == [
        ("passthrough", "shard_images"),
        ("passthrough", "shard_images, image.check=decode"),
        ("passthrough", "read, one file per shard, fsync"),
        ("passthrough", "shutil.copyfile"),
        ("recode", "shard_images"),
        ("recode", "simplejpeg"),
        ("recode", "OpenCV"),
        ("recode, ARCTIC still", "shard_images"),
        ("recode, ARCTIC still", "simplejpeg"),
        ("recode, ARCTIC still", "OpenCV"),
        ("recode, ARCTIC head", "shard_images"),
        ("recode, ARCTIC head", "simplejpeg"),
        ("recode, ARCTIC head", "OpenCV"),
        ("transcode", "shard_images"),
        ("transcode", "jpeglib, as documented"),
        ("transcode", "jpeglib, one read, unchecked"),
        ("recode, 2 processes", "shard_images"),
    ]
    assert found[-1][0] == "recode, 2 processes"
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    assert {row["config"]["num"] for row in rows} == {8}
    printed = capsys.readouterr().out
    for bar in (
        "passthrough of copy",
        "recode of ",
        "ARCTIC still of ",
        "ARCTIC head of ",
        "transcode of jpeglib",
        "2 processes of",
    ):
        assert bar in printed


def test_fewer_files_than_shards_are_refused() -> None:
    with pytest.raises(ValueError, match="num must be at least 8, got 7"):
        PreprocessBenchConfig(num=7)
