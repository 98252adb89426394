import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.config import StoreBenchConfig
from benchmarks.store import main, synthetic_jpegs


def test_synthetic_jpegs_are_different_pictures_of_the_stated_size() -> None:
    jpegs = synthetic_jpegs(10, seed=0)
    assert jpegs == synthetic_jpegs(10, seed=0) != synthetic_jpegs(10, seed=1)
    assert len(set(jpegs)) == 10
    for jpeg in jpegs:
        assert 20_000 <= len(jpeg) <= 100_100
        pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert pixels is not None
        assert pixels.shape == (480, 640, 3)


def test_the_benchmark_runs_and_keeps_a_row_of_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "store.jsonl"
    config = StoreBenchConfig(
        out=str(tmp_path / "bench"), num=64, results=str(results), min_time_s=0.05, repeats=5
    )
    assert main(config) in {0, 1}
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["metric"], row["variant"]) for row in rows] == [
        ("random images", "mmap, crc32c checked"),
        ("random images", "pread, crc32c checked"),
        ("random images", "tensorstore, 64 futures"),
        ("random images", "zarr-python, slices"),
        ("scan", "mmap"),
        ("scan", "pread"),
        ("scan", "memory copy"),
        ("shard write", "write_image_shard"),
        ("shard write", "plain file"),
    ]
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    assert {row["config"]["num"] for row in rows} == {64}
    assert "random images, mmap" in capsys.readouterr().out


def test_fewer_images_than_a_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="num must be at least 64, got 63"):
        StoreBenchConfig(num=63)
