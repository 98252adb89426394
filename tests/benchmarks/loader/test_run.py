import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.config import LoaderBenchConfig
from benchmarks.harness import Measurement
from benchmarks.loader import run as loader
from benchmarks.loader.contenders import (
    CONTRACTS,
    COPY,
    DALI,
    LOADER,
    RESIDENT,
    STREAM,
    _first_epoch,
    source_of,
)
from benchmarks.loader.peers import LoaderInput, decode_cv2, train_ready
from benchmarks.loader.run import (
    Child,
    bars_of,
    main,
    make_images,
    photograph_like,
    require_same_colours,
)

NUM = 128
MODULES = {"simplejpeg": "simplejpeg", "WebDataset": "webdataset", "SPDL": "spdl"}
"""What a contender's name says that it needs; the ``train`` limit decodes with simplejpeg."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loader")
    return make_images(LoaderBenchConfig(out=str(out), num=NUM))


@pytest.fixture
def source(folder: Path) -> LoaderInput:
    return source_of(folder, NUM, seed=0, workers=1)


def rates(**changes: float) -> dict[tuple[str, str], Measurement]:
    """What meets every bar, but for ``changes``."""
    values = {
        "uint8|" + RESIDENT: 80.0,
        "uint8|" + COPY: 100.0,
        "uint8|" + STREAM: 85.0,
        "uint8|" + DALI: 100.0,
        "train|" + LOADER: 10.0,
        "train|DataLoader, cv2": 10.0,
        "train|limit: the work in threads": 50.0,
        "busy uint8, waiting|" + RESIDENT: 1.0,
    } | changes
    return {
        (key.split("|")[0], key.split("|")[1]): Measurement(p20=v, p50=v, p80=v, n=5)
        for key, v in values.items()
    }


def test_images_are_different_jpegs_of_256_px_with_warm_colours() -> None:
    jpegs = photograph_like(8, seed=0)
    assert jpegs == photograph_like(8, seed=0) != photograph_like(8, seed=1)
    assert len(set(jpegs)) == 8
    pictures = np.array([decode_cv2(jpeg) for jpeg in jpegs])
    assert pictures.shape == (8, 256, 256, 3)
    red, green, blue = pictures.mean((0, 1, 2))
    assert red - green > 12 < green - blue


def test_images_are_made_once(folder: Path) -> None:
    config = LoaderBenchConfig(out=str(folder), num=NUM)
    before = (folder / "made.json").stat().st_mtime_ns
    make_images(config)
    assert (folder / "made.json").stat().st_mtime_ns == before
    assert len(list((folder / "files").iterdir())) == NUM


@pytest.mark.parametrize("contract", CONTRACTS)
def test_contenders_deliver_the_same_pictures(contract: str, source: LoaderInput) -> None:
    children = {}
    threads = torch.get_num_threads()
    for name, contender in CONTRACTS[contract].items():
        needed = [module for word, module in MODULES.items() if word in name]
        needed += ["simplejpeg"] if name.startswith("limit: the work") else []
        if all(importlib.util.find_spec(module) for module in needed):
            ready = _first_epoch(contract, contender.make(source)())
            assert ready.samples == NUM, name
            children[name] = Child(None, ready)  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    require_same_colours(contract, children)
    assert len(children) >= (5 if contract == "uint8" else 3)  # those that need no extra

    blue_first = dataclasses.replace(
        children[RESIDENT if contract == "uint8" else LOADER].ready,
        channel_mean=next(iter(children.values())).ready.channel_mean[::-1],
    )
    children["swapped"] = Child(None, blue_first)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="swapped gives colours"):
        require_same_colours(contract, children)


def test_peers_warp_and_recolour_as_the_ranges_say(source: LoaderInput) -> None:
    jpeg = Path(source.files[0]).read_bytes()
    first, second = (train_ready(decode_cv2, jpeg) for _ in range(2))
    assert first.shape == (3, 224, 224)
    assert first.dtype == np.float32
    assert not np.array_equal(first, second)


def test_a_batch_of_another_form_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"gave \(2, 256, 256, 3\) torch.float32"):
        _first_epoch("uint8", iter([torch.zeros(2, 256, 256, 3)]))


def test_the_benchmark_keeps_a_row_of_every_contender_and_says_who_has_none(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = {name: CONTRACTS["uint8"][name] for name in (RESIDENT, COPY)}
    unknown = {"no such loader": few[RESIDENT]}
    monkeypatch.setattr(loader, "CONTRACTS", {"uint8": few | unknown})
    monkeypatch.setattr(loader, "BUSY", {"uint8": (RESIDENT,)})
    config = LoaderBenchConfig(
        out=str(folder),
        num=NUM,
        results=str(tmp_path / "loader.jsonl"),
        min_time_s=0.1,
        repeats=5,
        steps=4,
        busy_ms=2,
    )
    assert main(config) == 1
    rows = [json.loads(line) for line in Path(config.results).read_text().splitlines()]
    assert [(row["metric"], row["variant"]) for row in rows] == [
        ("uint8", RESIDENT),
        ("uint8", COPY),
        ("busy uint8, waiting", RESIDENT),
        ("busy uint8, p99/p50 of a step", RESIDENT),
    ]
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    assert rows[0]["params"]["limit"] == COPY
    assert rows[2]["unit"] == "% of a step"
    printed = capsys.readouterr().out
    assert "no row: uint8: no such loader: KeyError" in printed
    assert "no row: FFCV, raw" in printed


def test_bars_are_met_at_their_edge() -> None:
    assert all(bar.met for bar in bars_of(rates()))


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({"uint8|" + RESIDENT: 79.0}, "resident uint8 of a copy"),
        ({"uint8|" + DALI: 101.0}, "stream of DALI"),
        ({"train|SPDL, simplejpeg": 11.0}, "train-ready of the best peer"),
        ({"busy uint8, waiting|" + RESIDENT: 1.1}, "busy step not waiting"),
    ],
)
def test_each_bar_can_be_missed(changes: dict[str, float], missed: str) -> None:
    assert [bar.name for bar in bars_of(rates(**changes)) if not bar.met] == [missed]


def test_nothing_measured_meets_no_bar() -> None:
    assert not any(bar.met for bar in bars_of({}))


def test_a_single_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="num must be at least 128, got 127"):
        LoaderBenchConfig(num=127)
