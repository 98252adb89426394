"""How far a long pass is: a bar on a terminal, a plain line every few seconds elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

LINE_SECONDS: Final = 5.0


@contextmanager
def show_progress(what: str, total: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of frames just done.

    Args:
        what: Name of the pass.
        total: Frames to do.
        console: Where to write.
    """
    start = time.monotonic()
    done = 0

    def state() -> str:
        rate = done / max(time.monotonic() - start, 1e-9)
        left = f"{(total - done) / rate:.0f} s left" if done else "time left unknown"
        return f"{done}/{total} frames, {rate:.0f} frames/s, {left}"

    if console.is_terminal:
        columns = (
            TextColumn(what),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, state=state())

            def advance(frames: int) -> None:
                nonlocal done
                done += frames
                bar.update(task, completed=done, state=state())

            yield advance
        return

    last_line = start

    def advance_line(frames: int) -> None:
        nonlocal done, last_line
        done += frames
        if time.monotonic() - last_line >= LINE_SECONDS:
            last_line = time.monotonic()
            console.print(f"{what}: {state()}", highlight=False, markup=False, soft_wrap=True)

    yield advance_line
