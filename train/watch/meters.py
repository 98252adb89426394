"""Performance meters of a run: throughput, step times and their breakdown; read at log points only.

Fractions are 0..1. Per device: ``tflops``, ``mfu``, ``gpu_util``, ``sm_active``, ``memory_gb``,
``power_w``, ``j_per_sample``. Values that cannot be measured are absent.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import torch

from pipeline.stats import Lap, StageClock, share
from train.config import RunConfig
from train.step.step import TrainState
from train.watch.best_effort import BestEffort
from train.watch.flops import FlopCount, peak_tflops

if TYPE_CHECKING:
    from train.watch.nvml import DeviceMeter

WAITING: Final = 0.1
"""Fraction of the time spent on data from which data is the bottleneck."""
IDLE: Final = 0.9
"""Fraction of the time with a kernel running below which the device waits for the host."""
SPARSE: Final = 0.5
"""Fraction of active SMs below which the kernels are too small for the device."""
UNEVEN: Final = 2.0
"""p99 of the step over its median from which steps are called uneven."""
_NVML: Final = "NVML"


class Meters:
    """Accumulates between two log points; use as a context manager.

    NVML and the count of FLOPs may fail: their values are then absent.
    """

    def __init__(self, state: TrainState, config: RunConfig, attempt: BestEffort) -> None:
        self._state, self._input_px = state, config.pipeline.input_px
        self._attempt = attempt
        self._device = state.clock.device
        self._clock = StageClock(self._device)
        self._meter = self._attempt(_NVML, self._open_meter)
        self._is_warm = self._has_counted = False
        self._flops: FlopCount | None = None
        self._peak: float | None = None
        if self._device.type == "cuda":
            self._peak = peak_tflops(torch.cuda.get_device_name(self._device))
        self.skip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._meter is not None:
            self._attempt(_NVML, self._meter.close)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Time the body as ``data`` or ``step``."""
        return self._clock.stage(name)

    def add(self, samples: int) -> None:
        """Count a step of this many samples on this rank; skips the first step, which compiles."""
        if not self._is_warm:
            self._is_warm = True
            self.skip()
            return
        self._clock.end_lap()
        self._seen += samples
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Return the means since the last reading; the device must be synchronised.

        Empty if no step was counted. The first reading counts the FLOPs of a sample, outside any
        measured interval.
        """
        if not self._steps:
            self.skip()
            return {}
        seconds = time.perf_counter() - self._mark
        laps = self._clock.read()
        meter = self._meter
        read = None if meter is None else self._attempt(_NVML, partial(meter.read, seconds))
        rate = self._seen / seconds
        values = {
            "samples_per_s": self._state.ranks.world * rate,
            "step_ms": 1000 * seconds / self._steps,
            **_step_times(laps),
            **(read or {}),
            **self._memory(),
        }
        if "power_w" in values:
            values["j_per_sample"] = values["power_w"] / rate
        if not self._has_counted:
            self._has_counted = True
            self._flops = self._attempt("counting FLOPs", self._count)
        if self._flops is not None:
            values["tflops"] = 1e-12 * rate * self._flops.of_a_step(self._state.model)
            if self._peak is not None:
                values["mfu"] = values["tflops"] / self._peak
        self.skip()
        return values

    def skip(self) -> None:
        """Restart the interval: the time since the last reading was not training."""
        self._clock.drop()
        if self._meter is not None:
            self._attempt(_NVML, self._meter.begin)
        self._seen, self._steps, self._mark = 0, 0, time.perf_counter()

    def _open_meter(self) -> "DeviceMeter":
        from train.watch.nvml import DeviceMeter  # its library may be missing or broken

        return DeviceMeter(self._device)

    def _count(self) -> FlopCount:
        return FlopCount(self._state.ema, self._input_px, self._state.ema.num_hands)

    def _memory(self) -> dict[str, float]:
        values = {}
        if self._device.type == "cuda":
            values["memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        if (own := own_host_bytes()) is not None:
            values["host_memory_gb"] = own / 1e9
        return values


def own_host_bytes() -> int | None:
    """Return the host memory of this process, without files it has mapped."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    held = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return 1024 * sum(map(int, held)) if held else None


def bottleneck(values: Mapping[str, float]) -> str:
    """Return a sentence that names the bottleneck of a run, from one reading."""
    waiting, util, active = (values.get(k) for k in ("data_share", "gpu_util", "sm_active"))
    sentence = _cause(values, waiting or 0.0, util, active)
    median, slowest = values.get("step_p50_ms", 0.0), values.get("step_p99_ms", 0.0)
    if median and slowest > UNEVEN * median:
        sentence += f"; steps are uneven, the slowest take {slowest / median:.1f} times the median"
    return sentence


def _cause(
    values: Mapping[str, float], waiting: float, util: float | None, active: float | None
) -> str:
    if waiting >= WAITING:
        return f"bottleneck: data, {waiting:.0%} of the time goes into making batches"
    if "memory_gb" not in values:
        return f"bottleneck: the CPU computing, {1 - waiting:.0%} of the time is in the step"
    if util is None:
        return "bottleneck: not data; NVML cannot be read, so host or device is not told apart"
    if util < IDLE:
        return (
            f"bottleneck: the host, no kernel runs in {1 - util:.0%} of the time; larger batches "
            "or fewer, compiled kernels help"
        )
    if active is not None and active < SPARSE:
        return (
            f"bottleneck: the device's kernels, some always runs but only {active:.0%} of the SMs "
            "have work; larger batches help"
        )
    busy = f"{active:.0%} of the SMs have work" if active is not None else f"{util:.0%} in use"
    mfu = f", {values['mfu']:.0%} of its peak" if "mfu" in values else ""
    return f"bottleneck: the device, {busy}{mfu}"


def _step_times(laps: list[Lap]) -> dict[str, float]:
    """Return step time jitter and breakdown; absent where no step has finished."""
    if not laps:
        return {}
    median, slowest = np.percentile([1000 * sum(lap.values()) for lap in laps], (50, 99))
    return {
        "step_p50_ms": float(median),
        "step_p99_ms": float(slowest),
        "data_share": share(laps, "data"),
    }
