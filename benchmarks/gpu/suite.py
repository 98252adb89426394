"""Shared state of the GPU suite's sections: device, remaining time, rows."""

import dataclasses
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from benchmarks.config import GpuSuiteConfig
from benchmarks.harness import (
    Measurement,
    Row,
    append_rows,
    measure,
    record,
)

ROOT: Final = Path(__file__).resolve().parent.parent.parent
RESERVE_S: Final = 10.0
"""No section starts with less time left, seconds."""
MARGIN_S: Final = 3.0
"""A process that a section starts ends so long before the section's limit, seconds."""


class CannotRun(Exception):  # noqa: N818 - not an error: a reason
    """A section does not apply to this machine; the message is the reason."""


class TimeUp(BaseException):
    """The running section's time is over; no ``except Exception`` on the way stops it."""


@dataclass(kw_only=True, slots=True)
class Suite:
    """Shared state of the sections."""

    config: GpuSuiteConfig
    out: Path
    device: torch.device
    clock: Callable[[], float] = time.perf_counter
    deadline: float = math.inf
    section_deadline: float = math.inf
    rows: list[Row] = field(default_factory=list)
    store: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether this is a run on a GPU, not the CPU dry run."""
        return self.device.type == "cuda"

    @property
    def num(self) -> int:
        """Number of frames in the synthetic store."""
        return self.config.num if self.on_gpu else 64

    def left(self) -> float:
        """Seconds until the limit of the suite or of the running section."""
        return min(self.deadline, self.section_deadline) - self.clock()

    def note(
        self, variant: str, metric: str, unit: str, value: Measurement | float, **params: object
    ) -> None:
        """Keep one row; a plain number is a single observation."""
        if not isinstance(value, Measurement):
            value = Measurement(p20=value, p50=value, p80=value, n=1)
        config = dataclasses.asdict(self.config)
        row = record("gpu", variant, metric, unit, value, params=params, config=config)
        append_rows(self.out / "gpu.jsonl", [row])  # immediately: rows survive a kill
        self.rows.append(row)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """One independent part of the suite."""

    name: str
    run: Callable[[Suite], None]
    expected_s: float
    """Estimated seconds on an H200 with cold caches."""
    cap_s: float
    """Seconds after which it is stopped; rows written until then stay."""


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
            timeout=max(5.0, suite.left() - MARGIN_S),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        output: bytes = error.stdout or b""  # bytes even with ``text=True``
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
