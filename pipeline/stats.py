"""Time per stage of a training step, without synchronising with the device.

    clock = StageClock(device)
    with clock.stage("data"):
        batch = next(batches)
    with clock.stage("step"):
        train_step(batch)
    clock.end_lap()
    laps = clock.read()          # at a log point

On the CPU a stage is wall time. On a GPU it is the time between two events on the current stream:
the GPU's work and its waiting for the host, but not host time that is hidden behind GPU work.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import torch

Lap: TypeAlias = dict[str, float]
"""Seconds per stage of one step."""
MOST_PENDING: Final = 1024
"""Laps whose events are kept; beyond, finished ones are read, which takes 5 us each."""


class StageClock:
    """Times named stages, lap by lap."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._lap: list[tuple[str, torch.Event, torch.Event]] = []
        self._pending: deque[list[tuple[str, torch.Event, torch.Event]]] = deque()
        self._free: list[torch.Event] = []
        self._seconds: Lap = {}
        self._laps: list[Lap] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body as part of the lap; a stage entered twice adds up."""
        if self._on_gpu:
            begin, end = self._event(), self._event()
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._lap.append((name, begin, end))
        else:
            start = time.perf_counter()
            try:
                yield
            finally:
                seconds = time.perf_counter() - start
                self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def end_lap(self) -> None:
        """Begin the next lap."""
        if self._on_gpu:
            self._pending.append(self._lap)
            self._lap = []
            if len(self._pending) > MOST_PENDING:
                self._collect()
        else:
            self._laps.append(self._seconds)
            self._seconds = {}

    def read(self) -> list[Lap]:
        """Return the laps since the last reading; an unfinished one is returned with the next."""
        self._collect()
        laps, self._laps = self._laps, []
        return laps

    def drop(self) -> None:
        """Discard all laps, including the current one."""
        for marks in (self._lap, *self._pending):
            self._recycle(marks)
        self._lap, self._seconds, self._laps = [], {}, []
        self._pending.clear()

    def _event(self) -> torch.Event:
        if self._free:
            return self._free.pop()
        return torch.Event(self._device, enable_timing=True)

    def _collect(self) -> None:
        """Convert completed events to seconds."""
        while self._pending and all(end.query() for _, _, end in self._pending[0]):
            marks, lap = self._pending.popleft(), Lap()
            for name, begin, end in marks:
                lap[name] = lap.get(name, 0.0) + begin.elapsed_time(end) / 1000
            self._laps.append(lap)
            self._recycle(marks)

    def _recycle(self, marks: list[tuple[str, torch.Event, torch.Event]]) -> None:
        for _, begin, end in marks:
            self._free += (begin, end)


def share(laps: Iterable[Lap], name: str) -> float:
    """Return the fraction of the total time spent in stage ``name``; 0 if nothing was timed."""
    laps = list(laps)
    total = sum(sum(lap.values()) for lap in laps)
    return sum(lap.get(name, 0.0) for lap in laps) / total if total > 0 else 0.0
