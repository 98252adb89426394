"""One logger: a line for people, JSONL for machines, TensorBoard for curves."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from pipeline.app.files import replace_file
from pipeline.app.words import say


def cut_rows(path: Path, step: int) -> None:
    """Remove the rows of ``log.jsonl`` beyond ``step`` and what a kill left of a last one."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        replace_file(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    """Return the step of a row; infinite where the row is torn."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class RunLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` in the run folder; use as a context manager.

    What they hold beyond ``first_step`` is from a run that was killed: it is cut, and comes again.
    On a terminal a progress bar with rate and time left is drawn; otherwise plain lines.
    """

    def __init__(self, run_dir: Path, steps: int, first_step: int = 0) -> None:
        self._console = Console()
        self._steps = steps
        self._first = first_step
        cut_rows(run_dir / "log.jsonl", first_step)
        self._file: IO[str] = (run_dir / "log.jsonl").open("a", encoding="utf-8")
        # TensorBoard hides what was written for this step and later ones before.
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._started = time.perf_counter()
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("train"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[line]}"),
                console=self._console,
            )
            self._task = self._bar.add_task("train", total=steps, completed=first_step, line="")
            self._bar.start()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._file.close()
        self._board.close()

    def say(self, text: str) -> None:
        """Print one line for people."""
        say(text, self._console)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of one log point."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        shown = {k: v for k, v in values.items() if not k.startswith("seen/")}
        line = " ".join(
            f"{name.removeprefix('loss/').removeprefix('meter/')}={value:.4g}"
            for name, value in shown.items()
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, line=line)
            return
        elapsed = time.perf_counter() - self._started
        left = elapsed / max(1, step - self._first) * (self._steps - step)
        self.say(f"step {step}/{self._steps} {line} left={left:.0f}s")

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Show a picture in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")


class NoLog(RunLog):
    """Says and writes nothing: the log of every rank but the first."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Do nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Do nothing."""
