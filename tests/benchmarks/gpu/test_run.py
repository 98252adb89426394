"""The GPU suite's order, budget, caps and isolation, by a fake clock; its sections on a CPU."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from benchmarks import figures
from benchmarks.config import GpuSuiteConfig
from benchmarks.gpu import training
from benchmarks.gpu.run import choose, main, plan_of, run_sections
from benchmarks.gpu.sections import SECTIONS, files_marked_gpu
from benchmarks.gpu.suite import ROOT, CannotRun, Section, Suite

CONSOLE = Console(quiet=True)
SECOND_COMMAND = ["tests_marked_gpu", "loss_terms"]


class Clock:
    """Seconds that pass only where a section says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def suite_of(out: Path, budget_s: float = 420.0, **more: Any) -> tuple[Suite, Clock]:
    clock = Clock()
    config = GpuSuiteConfig(out=str(out), budget_s=budget_s, **more)
    return Suite(config=config, out=out, device=torch.device("cpu"), clock=clock), clock


def section(name: str, run: Callable[[Suite], None], cap_s: float = 100.0) -> Section:
    return Section(name=name, run=run, expected_s=10, cap_s=cap_s)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]


def test_the_first_command_takes_at_most_420_seconds_and_holds_the_headline_sections() -> None:
    planned = [one for one in plan_of(SECTIONS, 420.0) if one.fits]
    names = [one.section.name for one in planned]
    assert sum(one.section.expected_s for one in planned) <= 420
    assert names[:3] == ["dali_beside_torch", "dlpack_lifetime", "ceilings"]
    assert {
        "fill_and_stream", "gather_alone", "data_share_of_a_step", "training_by_dataloader",
        *(f"freihand_{net}_{kind}" for net in ("resnet50", "vits") for kind in training.KINDS),
    } <= set(names)  # fmt: skip
    assert not set(names) & set(SECOND_COMMAND)
    for net in ("resnet50", "vits"):  # the rows of the real loop before what is measured beside it
        assert names.index(f"freihand_{net}_loop") < names.index(f"freihand_{net}_probe")
        assert names.index(f"freihand_{net}_probe") < names.index("freihand_resnet50_graph")


def test_the_second_command_takes_at_most_300_seconds() -> None:
    planned = plan_of(choose(SECTIONS, SECOND_COMMAND, []), 300.0)
    assert [one.section.name for one in planned] == SECOND_COMMAND
    assert all(one.fits for one in planned)


def test_every_section_is_capped_above_its_estimate() -> None:
    assert len({one.name for one in SECTIONS}) == len(SECTIONS)
    for one in SECTIONS:
        assert one.expected_s < one.cap_s < 300, one.name


def test_by_the_estimates_the_run_ends_in_time(tmp_path: Path) -> None:
    """Each section of the real table takes its estimate: those planned run, in order."""
    suite, clock = suite_of(tmp_path)
    ran: list[str] = []

    def pretended(real: Section) -> Section:
        def run(suite: Suite) -> None:
            ran.append(real.name)
            clock.now += min(real.expected_s, suite.left())

        return Section(name=real.name, run=run, expected_s=real.expected_s, cap_s=real.cap_s)

    results = run_sections(suite, [pretended(one) for one in SECTIONS], CONSOLE)
    planned = [one.section.name for one in plan_of(SECTIONS, 420.0) if one.fits]
    assert ran[: len(planned)] == planned
    assert clock.now <= 1000 + 420
    assert [state for _, state, _ in results[: len(planned)]] == ["ok"] * len(planned)
    assert results[-1][:2] == ("loss_terms", "not run")
    assert "budget of 420 s" in results[-1][2]


def test_a_greedy_section_leaves_the_others_their_time(tmp_path: Path) -> None:
    suite, clock = suite_of(tmp_path, budget_s=100)
    seen = []

    def greedy(suite: Suite) -> None:
        seen.append(suite.left())
        clock.now += suite.left()

    sections = [section("a", greedy, 60), section("b", greedy, 60), section("c", greedy, 60)]
    results = run_sections(suite, sections, CONSOLE)
    assert seen == [60, 40]
    assert [state for _, state, _ in results] == ["ok", "ok", "not run"]


def test_what_fails_keeps_its_rows_and_the_next_one_runs(tmp_path: Path) -> None:
    suite, _ = suite_of(tmp_path)

    def fails(suite: Suite) -> None:
        suite.note("fails", "rate", "1", 1.0)
        raise RuntimeError("a kernel is missing")

    def cannot(suite: Suite) -> None:
        raise CannotRun("no CUDA device")

    def works(suite: Suite) -> None:
        suite.note("works", "rate", "1", 2.0)

    sections = [section("a", fails), section("b", cannot), section("c", works)]
    assert run_sections(suite, sections, CONSOLE)[:2] == [
        ("a", "FAILED", "RuntimeError: a kernel is missing"),
        ("b", "not run", "no CUDA device"),
    ]
    assert [row["variant"] for row in rows_of(tmp_path)] == ["fails", "works"]
    assert "a kernel is missing" in (tmp_path / "a.txt").read_text()


def test_a_section_beyond_its_cap_is_stopped(tmp_path: Path) -> None:
    suite, _ = suite_of(tmp_path)
    suite.clock = time.perf_counter

    def hangs(suite: Suite) -> None:
        suite.note("hangs", "rate", "1", 1.0)
        try:
            time.sleep(30)
        except Exception:
            pytest.fail("the alarm is no ordinary exception")

    begin = time.perf_counter()
    ((name, state, why),) = run_sections(suite, [section("a", hangs, 0.05)], CONSOLE)
    assert (name, state) == ("a", "stopped")
    assert "its rows are kept" in why
    assert time.perf_counter() - begin < 5
    assert len(rows_of(tmp_path)) == 1


def test_only_and_skip_choose_by_name_and_pattern() -> None:
    names = [one.name for one in choose(SECTIONS, ["freihand_*", "ceilings"], ["*_graph"])]
    assert names == [
        "ceilings", "freihand_resnet50_loop", "freihand_resnet50_probe", "freihand_vits_loop",
        "freihand_vits_probe",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"only must name .* got 'cielings'; did you mean 'ceil"):
        choose(SECTIONS, ["cielings"], [])
    with pytest.raises(ValueError, match="skip must name"):
        choose(SECTIONS, [], ["nothing_*"])


def test_a_plan_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(GpuSuiteConfig(out=str(out), plan=True, only=["dali*", "decode_rate"])) == 0
    text = capsys.readouterr().out
    assert "dali_beside_torch" in text
    assert "planned: 37 of 420 s" in text
    assert not out.exists()


def fake_training(rates: dict[str, float]) -> Callable[[Any], int]:
    def run(config: Any) -> int:
        kind = "graph" if config.graph else "probe" if config.probe else "loop"
        if kind not in rates:
            raise RuntimeError("the capture ended")
        log = Path(config.run_dir) / "log.jsonl"
        log.parent.mkdir(exist_ok=True)
        meters = {"samples_per_s": rates[kind], "data_share": 0.001, "gpu_util": 0.98}
        log.write_text(json.dumps({f"meter/{name}": value for name, value in meters.items()}))
        return 0

    return run


def test_a_training_that_fails_costs_no_other_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of every headline figure of a recipe, though its graph fails."""
    monkeypatch.setattr(training, "sample_store", lambda *_: (tmp_path / "s.zarr", tmp_path))
    monkeypatch.setattr("train.run.main", fake_training({"loop": 990.0, "probe": 1000.0}))
    suite, _ = suite_of(tmp_path)
    chosen = choose(SECTIONS, ["freihand_*"], [])
    states = {name: state for name, state, _ in run_sections(suite, chosen, CONSOLE)}
    assert {name for name, state in states.items() if state == "FAILED"} == {
        "freihand_resnet50_graph", "freihand_vits_graph",
    }  # fmt: skip
    found = {(row.variant, row.metric): row.p50 for row in suite.rows}
    wanted = [one for one in figures.GPU if one.variant.startswith("freihand")]
    assert len(wanted) == 8
    assert {(one.variant, one.metric) for one in wanted} <= set(found)
    assert found["freihand_vits, loop", "of the cached batch's ceiling"] == 99


def test_stores_built_before_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []

    def write_sample(dataset: str, root: Path, num: int, seed: int) -> Any:
        root.mkdir(parents=True)
        built.append(num)
        return SimpleNamespace(mano=root / "mano")

    monkeypatch.setattr("preprocess.sample.generate.write_sample", write_sample)
    monkeypatch.setattr("preprocess.builder.build.build", lambda config: None)
    stores = tmp_path / "stores"
    for turn in range(2):
        suite, _ = suite_of(tmp_path / str(turn), stores=str(stores))
        store, mano = training.sample_store(suite, "freihand")
        assert (store, mano) == (stores / "freihand.zarr", stores / "freihand" / "mano")
    assert built == [training.SAMPLE_IMAGES["freihand"][True]]


BLOCKER = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"jpeglib", "igl", "dask", "distributed"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
"""


def test_gpu_tests_are_found_without_the_packages_of_others(tmp_path: Path) -> None:
    """As on a GPU machine that lacks what only building stores needs: all skipped, no error."""
    (tmp_path / "blocker.py").write_text(BLOCKER)
    words = ["-m", "pytest", "-c", "/dev/null", "--rootdir", ".", "-p", "no:cacheprovider"]
    words += ["-p", "blocker", "--continue-on-collection-errors", "-m", "gpu", "-q"]
    files = files_marked_gpu()
    assert "tests/train/test_gpu.py" in files
    done = subprocess.run(
        [sys.executable, *words, *files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search(r"^\d\d+ skipped, \d+ deselected", done.stdout, re.MULTILINE), done.stdout
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_dry_run_gives_the_headline_rows(tmp_path: Path) -> None:
    """Every section of the first command on a CPU, at a small size."""
    names = [one.section.name for one in plan_of(SECTIONS, 420.0) if one.fits]
    assert main(GpuSuiteConfig(out=str(tmp_path), only=names, budget_s=3000)) == 0
    found = {(row["variant"], row["metric"]) for row in rows_of(tmp_path)}
    for one in figures.GPU:
        if one.variant.startswith(("arctic", "vit_large")) or one.metric == "gpu_util":
            continue
        variant = one.variant.replace("resnet50", "test_resnet") if "Data" in one.variant else None
        pattern = variant or one.variant
        assert any(re.fullmatch(pattern, v) and m == one.metric for v, m in found), one
