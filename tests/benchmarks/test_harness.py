import dataclasses
import json
import time
from pathlib import Path

import pytest

from benchmarks.harness import (
    Bar,
    Measurement,
    append_rows,
    machine,
    measure,
    measure_together,
    print_bars,
    print_table,
    record,
    versions,
)


class Clock:
    """A clock that only moves when work is done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def work(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_measure_returns_seconds_per_call(clock: Clock) -> None:
    measured = measure(lambda: clock.work(0.003), min_time_s=1.0, repeats=5)
    assert (measured.p20, measured.p50, measured.p80) == pytest.approx((0.003, 0.003, 0.003))
    assert measured.n == 5


def test_quantiles_are_over_repeats(clock: Clock) -> None:
    durations = iter([1.0, 1.0, 5.0, 2.0, 4.0, 3.0])  # one call to warm up, one per turn
    measured = measure(lambda: clock.work(next(durations)), min_time_s=5.0, repeats=5, warmup_s=0.0)
    assert (measured.p20, measured.p50, measured.p80) == pytest.approx((1.8, 3.0, 4.2))


def test_each_variant_gets_its_time_and_its_turn(clock: Clock) -> None:
    order: list[str] = []

    def variant(name: str, seconds: float) -> None:
        order.append(name)
        clock.work(seconds)

    measure_together(
        {"fast": lambda: variant("fast", 0.01), "slow": lambda: variant("slow", 0.5)},
        min_time_s=1.0,
        repeats=5,
        warmup_s=0.0,
    )
    assert order[:2] == ["fast", "slow"]  # one call of each warms up
    assert order[2:] == ([*["fast"] * 20, "slow"]) * 5


def test_warm_up_lasts_as_long_as_told(clock: Clock) -> None:
    starts: list[float] = []

    def work() -> None:
        starts.append(clock.now)
        clock.work(0.125)

    measure(work, min_time_s=0.1, repeats=5, warmup_s=1.0)
    assert sum(start < 1.0 for start in starts) == 8
    assert len(starts) == 15 + 5  # batches of 1, 2, 4, 8; then one call per turn


def test_inputs_are_rotated(clock: Clock) -> None:
    seen: list[tuple[int, str]] = []

    def work(number: int, letter: str) -> None:
        seen.append((number, letter))
        clock.work(1.0)

    measure(work, min_time_s=10.0, repeats=5, warmup_s=0.0, inputs=[(1, "a"), (2, "b"), (3, "c")])
    assert seen[:4] == [(1, "a"), (2, "b"), (3, "c"), (1, "a")]
    assert len(seen) == 1 + 5 * 2


def test_less_than_five_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 5, got 4"):
        measure(lambda: None, repeats=4)


def test_a_rate_turns_quantiles_around() -> None:
    rate = Measurement(p20=1.0, p50=2.0, p80=4.0, n=7).rate(8.0)
    assert rate == Measurement(p20=2.0, p50=4.0, p80=8.0, n=7)


def test_rows_are_appended_with_everything_they_depend_on(tmp_path: Path) -> None:
    file = tmp_path / "results" / "toy.jsonl"
    measurement = Measurement(p20=1.0, p50=2.0, p80=3.0, n=5)
    rows = [
        record("toy", name, "read", "MB/s", measurement, params={"k": 1}, config={"seed": 0})
        for name in ("a", "b")
    ]
    append_rows(file, rows)
    append_rows(str(file), rows[:1])
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["variant"] for row in found] == ["a", "b", "a"]
    assert found[0] == dataclasses.asdict(rows[0])
    assert found[0].keys() == {
        "bench", "variant", "metric", "unit", "p20", "p50", "p80", "n",
        "params", "config", "machine", "versions", "git", "date",
    }  # fmt: skip


def test_a_row_that_is_no_number_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "toy.jsonl"
    good = Measurement(p20=1.0, p50=2.0, p80=3.0, n=5)
    rows = [
        record("toy", "good", "read", "MB/s", good),
        record("toy", "bad", "read", "MB/s", dataclasses.replace(good, p50=float("nan"))),
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_rows(file, rows)
    assert not file.exists()


def test_machine_versions_and_commit_are_known() -> None:
    assert machine().keys() == {"cpu", "cores", "gpu", "power_limit_w", "driver"}
    assert machine()["cpu"]
    assert versions()["python"]
    assert {"torch", "nvidia-dali-cuda120", "triton", "zarr", "numpy"} <= versions().keys()


def test_the_table_tells_rows_apart_and_names_the_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    measurement = Measurement(p20=1.5, p50=12345.0, p80=3.0, n=5)
    print_table(
        [
            record("toy", "a", "read", "MB/s", measurement, params={"disk": "warm", "size": size})
            for size in (1, 2)
        ]
    )
    out = capsys.readouterr().out
    for part in ("12,345", "1.5 .. 3", "size=1", "size=2", f"cpu={machine()['cpu']}"):
        assert part in out
    assert out.count("disk=warm") == 1


def test_bars_are_met_at_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    met = Bar(name="exactly", measured=5.0, at_least=5.0, unit="x")
    missed = Bar(name="below", measured=4.99, at_least=5.0, unit="x")
    assert print_bars([met])
    assert not print_bars([met, missed])
    assert "NO" in capsys.readouterr().out


@pytest.mark.gpu
def test_cuda_time_is_the_time_of_the_device() -> None:
    import torch

    a = torch.randn(4096, 4096, device="cuda")
    b = torch.randn(8192, 8192, device="cuda")
    small = measure(lambda: a @ a, device="cuda")
    large = measure(lambda: b @ b, device="cuda")
    assert 4 < large.p50 / small.p50 < 16  # eight times the work
