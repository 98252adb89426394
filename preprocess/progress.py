"""How far a long pass is: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

LINE_SECONDS: Final = 5.0
BAR_SECONDS: Final = 0.1


@contextmanager
def show_progress(
    what: str, console: Console, *, already: int = 0, unit: str = "frames"
) -> Iterator[Callable[[int, int], None]]:
    """Yield a function to call with (done, total) frames as often as one likes.

    Args:
        what: Name of the pass.
        console: Where to write.
        already: How many were done before the pass; they do not count for the rate.
        unit: What is counted.
    """
    start = last = time.monotonic()
    bar: Progress | None = None
    if console.is_terminal:
        columns = (
            TextColumn(what),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
        )
        bar = Progress(*columns, console=console, transient=True)
        task = bar.add_task(what, total=None, state="")
        bar.start()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (LINE_SECONDS if bar is None else BAR_SECONDS):
            return
        last = now
        rate = (done - already) / (now - start)
        left = f"{(total - done) / rate:.0f} s left" if rate else "time left unknown"
        state = f"{done}/{total} {unit}, {rate:.0f} {unit}/s, {left}"
        if bar is None:
            console.print(f"{what}: {state}", highlight=False, markup=False, soft_wrap=True)
        else:
            bar.update(task, completed=done, total=total, state=state)

    try:
        yield report
    finally:
        if bar is not None:
            bar.stop()
