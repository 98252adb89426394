"""Run a sample's tasks in several processes, with results in task order."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Final, TypeVar

import cv2

_CHUNK: Final = 8

Task = TypeVar("Task")
Row = TypeVar("Row")


def in_processes(
    job: Callable[[Task], Row],
    tasks: Sequence[Task],
    workers: int,
    progress: Callable[[int, int], None] | None,
    *,
    chunk: int = _CHUNK,
) -> Iterator[Row]:
    """Yield the results of ``job`` in the order of ``tasks``.

    Args:
        job: Picklable function of one task; adjacent tasks run in the same process.
        tasks: The tasks.
        workers: Processes; 0: one per core, 1: run in this process.
        progress: Called with (done, total).
        chunk: Number of tasks sent to a process at a time.
    """
    count = min(workers or len(os.sched_getaffinity(0)), -(-len(tasks) // chunk))
    if count <= 1:
        yield from _reported(map(job, tasks), len(tasks), progress)
        return
    with ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    ) as pool:
        yield from _reported(pool.map(job, tasks, chunksize=chunk), len(tasks), progress)


def _reported(
    rows: Iterator[Row], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Row]:
    """Pass rows on, counting them."""
    for done, row in enumerate(rows, start=1):
        if progress is not None:
            progress(done, total)
        yield row
