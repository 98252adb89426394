"""The kernels compile to machine code for every GPU; one process, for the interpreter cannot."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from benchmarks import kernels
from benchmarks.coalescing import lanes_of, loads_layout, sectors_per_load
from benchmarks.config import KernelsBenchConfig
from benchmarks.kernels import (
    MAX_SPILLED,
    TARGETS,
    Build,
    few_variants,
    is_coalesced,
    variants,
)
from pipeline.gather.triton import pixel_of

MAX_REGISTERS = 96
"""At 4 warps a program, 5 programs then share an SM: 20 warps to hide the loads' latency."""
MAX_LOSS_REGISTERS = 144
"""One warp of a sample's joints: 14 of them fit on an SM, 1,848 on an H200."""


# Seconds of compiler a target: of the data centre the oldest and the one the aims are for.
EACH_TIME = {80: "sm_80", 90: "sm_90a"}
NOW_AND_THEN = {86: "sm_86", 89: "sm_89", 100: "sm_100a", 120: "sm_120a"}


@pytest.mark.parametrize("targets", [EACH_TIME, pytest.param(NOW_AND_THEN, marks=pytest.mark.slow)])
def test_every_kernel_compiles_without_spills_and_the_gather_is_coalesced(
    targets: dict[int, str],
) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    words = [sys.executable, "-m", "benchmarks.kernels", *map(str, targets)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    builds = [Build(**build) for build in json.loads(done.stdout)]
    assert {build.target for build in builds} == set(targets.values())
    found = {(build.variant, build.target) for build in builds}
    assert len(found) == len(few_variants()) * len(targets)
    assert not [build for build in builds if build.spilled_bytes > MAX_SPILLED]
    gathers = [build for build in builds if build.variant.startswith("gather")]
    assert gathers
    assert not [build for build in gathers if build.load_sectors is None or not is_coalesced(build)]
    for build in builds:
        limit = MAX_LOSS_REGISTERS if build.variant.startswith("joint losses") else MAX_REGISTERS
        assert build.registers <= limit, build
    assert min(build.registers for build in builds) > 0


def test_no_target_is_left_out() -> None:
    assert {*EACH_TIME, *NOW_AND_THEN} == set(TARGETS)


def test_the_table_holds_every_specialisation() -> None:
    names = {variant.name for variant in variants()}
    gathers, prepares, losses = 2 * 2 * 4 + 2, 3 * 2 * 2, 2 * 2 * (3 + 2)
    assert len(names) == len(variants()) == gathers + prepares + losses
    assert {variant.name for variant in few_variants()} <= names


def test_the_interpreter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set"):
        kernels.compile_all([])


def test_a_spill_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Build(variant="a", target="sm_80", registers=40, spilled_bytes=0, shared_bytes=0)
    bad = Build(variant="b", target="sm_80", registers=255, spilled_bytes=24, shared_bytes=0)
    config = KernelsBenchConfig(results=str(tmp_path / "rows.jsonl"))
    monkeypatch.setattr(kernels, "compile_all", lambda chosen: [good])
    assert kernels.main(config) == 0
    monkeypatch.setattr(kernels, "compile_all", lambda chosen: [good, bad])
    assert kernels.main(config) == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["p50"] for row in rows] == [40, 40, 255]
    assert rows[2]["params"]["spilled_bytes"] == 24
    assert rows[2]["metric"] == "sm_80"
    assert "NO" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("load_sectors", "shared_bytes"), [(28.0, 0), (7.0, 1024)], ids=["scattered", "shared memory"]
)
def test_an_uncoalesced_gather_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, load_sectors: float, shared_bytes: int
) -> None:
    build = Build(
        variant="gather",
        target="sm_90a",
        registers=56,
        spilled_bytes=0,
        shared_bytes=shared_bytes,
        load_sectors=load_sectors,
        store_sectors=6.0,
    )
    config = KernelsBenchConfig(results=str(tmp_path / "rows.jsonl"))
    monkeypatch.setattr(kernels, "compile_all", lambda chosen: [build])
    assert kernels.main(config) == 1
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["p50"] for row in rows] == [56, load_sectors, 6.0]


TTGIR = """
#blocked = #ttg.blocked<{sizePerThread = [1, 1], threadsPerWarp = [%s], \
warpsPerCTA = [1, 4], order = [%s]}>
  %%p = tt.load %%o : tensor<32x16x!tt.ptr<i8>, #blocked> loc(#loc)
  %%n = tt.load %%q : !tt.ptr<i32>
"""


@pytest.mark.parametrize(
    ("threads", "order", "expected"),
    [("2, 16", "1, 0", 7.6), ("32, 1", "0, 1", 28.0)],
    ids=["two rows of 16", "a column"],
)
def test_sectors_follow_the_layout(threads: str, order: str, expected: float) -> None:
    lanes = lanes_of(loads_layout(TTGIR % (threads, order)))
    assert lanes.shape[1] == 32
    assert set(lanes.ravel().tolist()) == set(range(512))
    v, u = np.divmod(lanes, 16)
    assert sectors_per_load(u, v) == pytest.approx(expected, abs=0.1)


def test_a_known_place_of_every_lane() -> None:
    lanes = np.arange(64)
    v, u = np.mgrid[:4, :16]
    columns, rows = pixel_of.fn(lanes, 16)
    assert columns[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert rows[:9].tolist() == [0] * 8 + [1]
    assert sorted(zip(rows, columns, strict=True)) == sorted(zip(v.flat, u.flat, strict=True))
