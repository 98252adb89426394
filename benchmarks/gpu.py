"""Everything that needs a GPU, in one go: correctness first, then what it costs.

    python -m benchmarks gpu --out DIR

Needs no network and no data: it builds its own synthetic store. Without a GPU it runs what can run
on the CPU at a small size and says what it could not run and why. Each section stands alone: one
that fails is reported with its error and the next one runs. Rows go to ``DIR/gpu.jsonl``, the log
of the test suite to ``DIR/pytest-gpu.txt``.
"""

import dataclasses
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.config import GpuSuiteConfig
from benchmarks.harness import (
    Measurement,
    Row,
    append_rows,
    machine,
    measure,
    print_table,
    record,
    versions,
)

ROOT: Final = Path(__file__).resolve().parent.parent
RESERVE_S: Final = 15.0
"""Kept for writing the results."""


class CannotRun(Exception):  # noqa: N818 - not an error: a reason
    """Why a section does not apply to this machine."""


@dataclass(kw_only=True, slots=True)
class Suite:
    """What the sections share."""

    config: GpuSuiteConfig
    out: Path
    device: torch.device
    deadline: float
    rows: list[Row] = field(default_factory=list)
    store: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether this is the real thing and not the dry run."""
        return self.device.type == "cuda"

    @property
    def num(self) -> int:
        """Frames of the synthetic store."""
        return self.config.num if self.on_gpu else 64

    def left(self) -> float:
        """Seconds until the limit."""
        return self.deadline - time.perf_counter()

    def note(
        self, variant: str, metric: str, unit: str, value: Measurement | float, **params: object
    ) -> None:
        """Keep one row; a plain number is a single observation."""
        if not isinstance(value, Measurement):
            value = Measurement(p20=value, p50=value, p80=value, n=1)
        config = dataclasses.asdict(self.config)
        row = record("gpu", variant, metric, unit, value, params=params, config=config)
        append_rows(self.out / "gpu.jsonl", [row])  # at once: a kill keeps what was measured
        self.rows.append(row)


def main(config: GpuSuiteConfig) -> int:
    """Run every GPU check and measurement and write the rows; 1 if a section failed.

    Example:
        python -m benchmarks gpu --out build/gpu
    """
    from benchmarks import gpu_sections

    console = Console(soft_wrap=True)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suite = Suite(
        config=config, out=out, device=device, deadline=time.perf_counter() + config.limit_s
    )
    console.print(f"machine: {machine()}\nversions: {versions()}", highlight=False)
    results = [run_section(suite, section, console) for section in gpu_sections.SECTIONS]
    if suite.rows:
        print_table(suite.rows)
    print_results(results, console)
    return int(any(state == "FAILED" for _, state, _ in results))


Section = Callable[[Suite], None]
Result = tuple[str, str, str]


def run_section(suite: Suite, section: Section, console: Console) -> Result:
    """Run one section; return its name, ``ok``, ``not run`` or ``FAILED``, and why."""
    name = section.__name__
    if suite.left() < RESERVE_S:
        return name, "not run", f"the limit of {suite.config.limit_s:.0f} s is used up"
    begin = time.perf_counter()
    try:
        section(suite)
    except CannotRun as reason:
        result = (name, "not run", str(reason))
    except Exception as error:
        (suite.out / f"{name}.txt").write_text(traceback.format_exc())
        lines = str(error).strip().splitlines() or [""]
        result = (name, "FAILED", f"{type(error).__name__}: {lines[-1]}")
    else:
        result = (name, "ok", f"{time.perf_counter() - begin:.1f} s")
    console.print(f"{result[0]}: {result[1]} ({result[2]})", highlight=False)
    return result


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print the state of every section."""
    table = Table("section", "state", "detail")
    for row in results:
        table.add_row(*row)
    console.print(table)


def run_python(
    suite: Suite, arguments: Sequence[str], environment: Mapping[str, str], log: str
) -> subprocess.CompletedProcess[str]:
    """Run this Python on ``arguments`` within the time left; its output goes to ``out/log``.

    Raises:
        RuntimeError: If it takes longer.
    """
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(5.0, suite.left() - RESERVE_S),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output: bytes = error.stdout or b""  # bytes, whatever ``text`` says
        (suite.out / log).write_bytes(output)
        raise RuntimeError(f"{' '.join(arguments)} did not end in time; see {log}") from error
    (suite.out / log).write_text(done.stdout)
    return done


def measured(suite: Suite, fn: Callable[..., object], inputs: Sequence[Any] = ((),)) -> Measurement:
    """Return the seconds per call on the suite's device, shorter in the dry run."""
    return measure(
        fn,
        min_time_s=1.0 if suite.on_gpu else 0.05,
        repeats=7 if suite.on_gpu else 5,
        warmup_s=0.3 if suite.on_gpu else 0.01,
        device="cuda" if suite.on_gpu else "cpu",
        inputs=inputs,
    )
