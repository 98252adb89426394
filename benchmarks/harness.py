"""Shared harness of the benchmarks: measure, record and print numbers.

    times = measure_together({"ours": ours, "plain": plain}, min_time_s=2.0)
    rows = [record("store", name, "read", "images/s", t.rate(64)) for name, t in times.items()]
    append_rows("benchmarks/results/store.jsonl", rows)
    print_table(rows)

A row holds everything that its number depends on. Variants to compare run interleaved, so that
other load on the machine affects all of them equally.
"""

import dataclasses
import datetime as dt
import functools
import itertools
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table

from pipeline.app.machine import git_state, version_of
from pipeline.app.words import say

PACKAGES: Final = ("torch", "nvidia-dali-cuda120", "triton", "zarr", "tensorstore", "numpy")
MIN_REPEATS: Final = 5

Inputs = Sequence[tuple[Any, ...]]


class Timing(Protocol):
    """Benchmark options that control the measuring time."""

    min_time_s: float
    repeats: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Quantiles over ``n`` repeats: seconds per call, or a rate."""

    p20: float
    p50: float
    p80: float
    n: int

    def rate(self, amount: float) -> "Measurement":
        """Return the amount per second if one call processes ``amount``."""
        return Measurement(
            p20=amount / self.p80, p50=amount / self.p50, p80=amount / self.p20, n=self.n
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of ``benchmarks/results/<bench>.jsonl``."""

    bench: str
    variant: str
    metric: str
    unit: str
    p20: float
    p50: float
    p80: float
    n: int
    params: dict[str, Any]
    """Conditions of the measurement: sizes, codec, disk cold or warm."""
    config: dict[str, Any]
    """The whole configuration of the benchmark."""
    machine: dict[str, Any]
    versions: dict[str, str | None]
    git: dict[str, Any]
    date: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """A target that a benchmark must reach."""

    name: str
    measured: float
    at_least: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.measured >= self.at_least


def measure(
    fn: Callable[..., object],
    *,
    min_time_s: float = 1.0,
    repeats: int = 7,
    warmup_s: float = 0.2,
    device: Literal["cpu", "cuda"] = "cpu",
    inputs: Inputs = ((),),
) -> Measurement:
    """Return the seconds per call of ``fn``; see ``measure_together``."""
    times = measure_together(
        {"fn": fn},
        min_time_s=min_time_s,
        repeats=repeats,
        warmup_s=warmup_s,
        device=device,
        inputs=inputs,
    )
    return times["fn"]


def measure_together(
    variants: Mapping[str, Callable[..., object]],
    *,
    min_time_s: float = 1.0,
    repeats: int = 7,
    warmup_s: float = 0.2,
    device: Literal["cpu", "cuda"] = "cpu",
    inputs: Inputs = ((),),
) -> dict[str, Measurement]:
    """Return the seconds per call of every variant, measured interleaved.

    Args:
        variants: Functions by name.
        min_time_s: Measured time per variant, over all repeats.
        repeats: Number of measurements per variant; quantiles are over these.
        warmup_s: Time that each variant first runs unmeasured.
        device: ``cuda`` measures the time between CUDA events, not on the host.
        inputs: Argument tuples, cycled from call to call, so that data does not stay in a cache.

    Raises:
        ValueError: If ``repeats`` is below 5, too few for quantiles.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"repeats must be at least {MIN_REPEATS}, got {repeats}")
    time_calls = _time_calls_cuda if device == "cuda" else _time_calls
    streams = {name: itertools.cycle(inputs) for name in variants}
    calls = {}
    for name, fn in variants.items():
        spent, done, batch = 0.0, 0, 1
        while spent < warmup_s or done == 0:
            last = time_calls(fn, streams[name], batch)
            spent, done, batch = spent + last, done + batch, batch * 2
        # The last and largest batch is the warmest.
        per_call = last / (batch / 2)
        calls[name] = max(1, math.ceil(min_time_s / repeats / max(per_call, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, fn in variants.items():
            seconds[name].append(time_calls(fn, streams[name], calls[name]) / calls[name])
    return {name: quantiles(values) for name, values in seconds.items()}


def rates_together(
    config: Timing,
    variants: Mapping[str, Callable[..., object]],
    amount: float,
    inputs: Inputs = ((),),
) -> dict[str, Measurement]:
    """Return the rate per second of every variant if one call processes ``amount``."""
    times = measure_together(
        variants,
        min_time_s=config.min_time_s,
        warmup_s=config.min_time_s / 10,
        repeats=config.repeats,
        inputs=inputs,
    )
    return {name: measured.rate(amount) for name, measured in times.items()}


def record(
    bench: str,
    variant: str,
    metric: str,
    unit: str,
    measurement: Measurement,
    *,
    params: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
) -> Row:
    """Return the row of one measurement with machine, versions, commit and date."""
    return Row(
        bench=bench,
        variant=variant,
        metric=metric,
        unit=unit,
        params=dict(params or {}),
        config=dict(config or {}),
        machine=machine(),
        versions=versions(),
        git=dataclasses.asdict(git_state()),
        date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **dataclasses.asdict(measurement),
    )


def append_rows(path: str | Path, rows: Iterable[Row]) -> None:
    """Append ``rows`` to a JSON lines file; slower and failed variants keep their rows."""
    lines = [json.dumps(dataclasses.asdict(row), allow_nan=False) + "\n" for row in rows]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(lines)


def print_table(rows: Sequence[Row]) -> None:
    """Print ``rows`` of one run, followed by their shared parameters, machine and commit."""
    shared = {
        name: value
        for name, value in rows[0].params.items()
        if all(row.params.get(name) == value for row in rows)
    }
    table = Table("metric", "variant", "params", "p50", "p20 .. p80", "unit", "n")
    for row in rows:
        own = [f"{name}={value}" for name, value in row.params.items() if name not in shared]
        spread = f"{short_number(row.p20)} .. {short_number(row.p80)}"
        table.add_row(
            row.metric,
            row.variant,
            " ".join(own),
            short_number(row.p50),
            spread,
            row.unit,
            str(row.n),
        )
    below = " ".join(f"{k}={v}" for k, v in (shared | rows[0].machine | rows[0].git).items())
    Console().print(table)
    say(below)


def print_bars(bars: Sequence[Bar]) -> bool:
    """Print the bars and return whether all are met."""
    table = Table("bar", "measured", "at least", "unit", "met")
    for bar in bars:
        table.add_row(
            bar.name,
            short_number(bar.measured),
            short_number(bar.at_least),
            bar.unit,
            "yes" if bar.met else "NO",
        )
    Console().print(table)
    return all(bar.met for bar in bars)


def short_number(value: float) -> str:
    """Format a measured number for a table."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@functools.cache
def machine() -> dict[str, Any]:
    """Return CPU model and cores; GPU, power limit and driver, None without one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = {"cpu": models[0] if models else platform.processor(), "cores": os.cpu_count()}
    return cpu | _gpu()


@functools.cache
def versions() -> dict[str, str | None]:
    """Return the versions of Python and of ``PACKAGES``, None where one is not installed."""
    found = {package: version_of(package) for package in PACKAGES}
    return {"python": platform.python_version()} | found


def _gpu() -> dict[str, Any]:
    import pynvml

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        return {
            "gpu": pynvml.nvmlDeviceGetName(device),
            "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000,
            "driver": pynvml.nvmlSystemGetDriverVersion(),
        }
    except pynvml.NVMLError:
        return {"gpu": None, "power_limit_w": None, "driver": None}


def _time_calls(fn: Callable[..., object], inputs: Iterable[Any], calls: int) -> float:
    chosen = list(itertools.islice(inputs, calls))
    start = time.perf_counter()
    for arguments in chosen:
        fn(*arguments)
    return time.perf_counter() - start


def _time_calls_cuda(fn: Callable[..., object], inputs: Iterable[Any], calls: int) -> float:
    import torch

    chosen = list(itertools.islice(inputs, calls))
    start, stop = torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)
    start.record()
    for arguments in chosen:
        fn(*arguments)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000


def quantiles(values: Sequence[float]) -> Measurement:
    """Return the quantiles over repeated measurements."""
    p20, p50, p80 = (float(value) for value in np.quantile(values, [0.2, 0.5, 0.8]))
    return Measurement(p20=p20, p50=p50, p80=p80, n=len(values))
