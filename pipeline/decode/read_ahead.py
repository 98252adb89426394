"""Read from disk while the decoder works."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """Yield ``items`` in order, produced ``depth`` ahead in a thread.

    An error of ``items`` is raised in its place. The thread has ended when this iterator ends, is
    closed or fails; what was read ahead is then lost.
    """
    with ThreadPoolExecutor(1, "read-ahead") as pool:
        waiting: deque[Future[list[T]]] = deque()
        try:
            waiting.extend(pool.submit(_next, items) for _ in range(depth))
            while item := waiting.popleft().result():
                waiting.append(pool.submit(_next, items))
                yield item[0]
        finally:
            for future in waiting:
                future.cancel()


def _next(items: Iterator[T]) -> list[T]:
    """Return the next item, or nothing at the end: a thread cannot raise StopIteration."""
    for item in items:
        return [item]
    return []
