"""Run logger: lines for people, JSONL for machines, TensorBoard for curves."""

import json
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from pipeline.app.files import replace_file
from pipeline.app.progress import show_progress
from pipeline.app.words import say
from train.watch.best_effort import BestEffort

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

T = TypeVar("T")


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


def append_row(path: Path, row: bytes) -> None:
    """Append a row to a file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            rest = memoryview(row)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            os.ftruncate(descriptor, size)  # a full disk takes the beginning of a row
            raise
    finally:
        os.close(descriptor)


class RunLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` in the run folder; use as a context manager.

    Entries after ``first_step`` are from a run that was killed: they are removed and logged again.
    On a terminal a progress bar is shown; elsewhere each log point is a plain line. What cannot be
    written costs a warning.
    """

    def __init__(self, run_dir: Path, steps: int, first_step: int = 0) -> None:
        self._console = Console()
        self._steps = steps
        self._path = run_dir / "log.jsonl"
        self.attempt = BestEffort(self.say)
        self.attempt(f"writing {self._path}", partial(cut_rows, self._path, first_step))
        self._resources = ExitStack()
        self._board = self._curves(partial(self._open_board, run_dir, first_step))
        shown = show_progress(
            "train", self._console, unit="steps", already=first_step, line_seconds=0, keep=True
        )
        self._report = self._resources.enter_context(shown)

    def _open_board(self, run_dir: Path, first_step: int) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter  # half a second

        usual = threading.excepthook

        def hook(args: threading.ExceptHookArgs) -> None:
            # A failure of its writer thread is raised, and warned of, at the next log point.
            if type(args.thread).__name__ != "_AsyncWriterThread":
                usual(args)

        threading.excepthook = hook
        self._resources.callback(setattr, threading, "excepthook", usual)
        # TensorBoard hides earlier entries for this step and later ones.
        board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)
        self._resources.callback(self._curves, board.close)
        return board

    def _curves(self, call: Callable[[], T]) -> T | None:
        return self.attempt("TensorBoard", call)

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
        row = (json.dumps({"step": step, **finite}, allow_nan=False) + "\n").encode()
        self.attempt(f"writing {self._path}", partial(append_row, self._path, row))
        board = self._board
        if board is not None:
            for name, value in values.items():
                self._curves(partial(board.add_scalar, name, value, step))
        shown = {k: v for k, v in values.items() if not k.startswith("seen/")}
        line = " ".join(
            f"{name.removeprefix('loss/').removeprefix('meter/')}={value:.4g}"
            for name, value in shown.items()
        )
        self._report(step, self._steps, line)

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Show a picture in TensorBoard."""
        if self._board is not None:
            show = partial(self._board.add_image, name, image, step, dataformats="HWC")
            self._curves(show)


class NoLog(RunLog):
    """Prints and writes nothing: the log of every rank but the first."""

    def __init__(self) -> None:
        self.attempt = BestEffort(self.say)

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Do nothing."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def picture(self, step: int, name: str, image: UInt8[np.ndarray, "h w 3"]) -> None:
        """Do nothing."""
