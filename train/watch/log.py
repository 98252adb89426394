"""Run logger: lines for people, JSONL for machines, TensorBoard for curves."""

import json
import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from pipeline.app.files import replace_file
from pipeline.app.progress import show_progress
from pipeline.app.words import say


def cut_rows(path: Path, step: int) -> None:
    """Remove the rows of ``log.jsonl`` after ``step``, and a last row truncated by a kill."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if kept != lines:
        replace_file(path, b"".join(kept))


def _step_of(line: bytes) -> float:
    """Return the step of a row; infinite where the row is truncated."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class RunLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` in the run folder; use as a context manager.

    Entries after ``first_step`` are from a run that was killed: they are removed and logged again.
    On a terminal a progress bar is shown; elsewhere each log point is a plain line.
    """

    def __init__(self, run_dir: Path, steps: int, first_step: int = 0) -> None:
        self._console = Console()
        self._steps = steps
        cut_rows(run_dir / "log.jsonl", first_step)
        self._file: IO[str] = (run_dir / "log.jsonl").open("a", encoding="utf-8")
        from torch.utils.tensorboard import SummaryWriter  # half a second

        # TensorBoard hides earlier entries for this step and later ones.
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
        shown = show_progress(
            "train", self._console, unit="steps", already=first_step, line_seconds=0, keep=True
        )
        self._resources = ExitStack()
        self._resources.callback(self._board.close)
        self._resources.callback(self._file.close)
        self._report = self._resources.enter_context(shown)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

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
        self._report(step, self._steps, line)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Show a picture in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")


class NoLog(RunLog):
    """Prints and writes nothing: the log of every rank but the first."""

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
