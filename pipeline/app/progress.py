"""Progress of long operations: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from pipeline.app.words import say

LINE_SECONDS: Final = 5.0
BAR_SECONDS: Final = 0.1
_CLOCK_FROM_S: Final = 100.0
"""Seconds from which the remaining time is shown as hours, minutes and seconds."""

Item = TypeVar("Item")


class Report(Protocol):
    """Progress callback; may be called at any rate."""

    def __call__(self, done: int, total: int | None, note: str = "") -> None:
        """Show the progress if it is due; ``total`` is None if unknown, ``note`` is appended."""


@contextmanager
def show_progress(
    what: str,
    console: Console | None = None,
    *,
    unit: str = "frames",
    already: int = 0,
    line_seconds: float = LINE_SECONDS,
    keep: bool = False,
) -> Iterator[Report]:
    """Yield a progress callback that takes done and total and shows rate and time left.

    Args:
        what: Name of the operation.
        console: Output console; stderr by default. Pass the console used for other lines printed
            meanwhile, so that they appear above the bar.
        unit: What is counted.
        already: Items done before; they do not count for the rate.
        line_seconds: Time between plain lines; 0 prints one at every call.
        keep: Leave the bar on the screen at the end.
    """
    console = console or Console(stderr=True)
    start = last = time.monotonic()
    bar: Progress | None = None
    if console.is_terminal:
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=console,
            transient=not keep,
        )
        task = bar.add_task(what, total=None, state="")
        bar.start()
    pause = line_seconds if bar is None else min(line_seconds, BAR_SECONDS)

    def report(done: int, total: int | None, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < pause and (bar is None or done != total):
            return
        last = now
        state = _state(done, done - already, total, now - start, unit)
        state = f"{state}, {note}" if note else state
        if bar is None:
            say(f"{what}: {state}", console)
        else:
            bar.update(task, completed=done, total=total, state=state)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()


def tracked(items: Iterable[Item], total: int, what: str, unit: str) -> Iterator[Item]:
    """Yield ``items`` and show on stderr how many of ``total`` are done."""
    with show_progress(what, unit=unit) as report:
        for done, item in enumerate(items, start=1):
            yield item
            report(done, total)


def _state(done: int, fresh: int, total: int | None, seconds: float, unit: str) -> str:
    rate = fresh / max(seconds, 1e-9)
    speed = f"{rate:.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"
    if total is None:
        return f"{done} {unit}, {speed}"
    left = f"{_duration((total - done) / rate)} left" if rate else "time left unknown"
    return f"{done}/{total} {unit}, {speed}, {left}"


def _duration(seconds: float) -> str:
    if seconds < _CLOCK_FROM_S:
        return f"{seconds:.0f} s"
    return str(timedelta(seconds=round(seconds)))
