"""Where the time of a step goes, without waiting for the device.

    clock = StageClock(device)
    with clock.stage("data"):
        batch = next(batches)
    with clock.stage("step"):
        train_step(batch)
    shares = clock.read()        # at a log point

On the CPU a stage is wall time; on a GPU it is the time between two events on the current stream.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(kw_only=True, slots=True)
class _Stage:
    seconds: float = 0.0
    pending: list[tuple[torch.Event, torch.Event]] = field(default_factory=list)


class StageClock:
    """Adds up the time of named stages."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stages: dict[str, _Stage] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body."""
        stage = self._stages.setdefault(name, _Stage())
        if self._on_gpu:
            begin, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
            begin.record()
            try:
                yield
            finally:
                end.record()
                stage.pending.append((begin, end))
        else:
            start = time.perf_counter()
            try:
                yield
            finally:
                stage.seconds += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Return the seconds per stage since the last reading; what still runs counts next time."""
        seconds = {}
        for name, stage in self._stages.items():
            done = [pair for pair in stage.pending if pair[1].query()]
            stage.pending = [pair for pair in stage.pending if not pair[1].query()]
            stage.seconds += sum(begin.elapsed_time(end) for begin, end in done) / 1000
            seconds[name], stage.seconds = stage.seconds, 0.0
        return seconds


def share(seconds: dict[str, float], name: str) -> float:
    """Return the part of all time that stage ``name`` took; 0 if nothing was timed."""
    total = sum(seconds.values())
    return seconds.get(name, 0.0) / total if total > 0 else 0.0
