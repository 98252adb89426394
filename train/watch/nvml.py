"""NVML readings of one GPU: utilisation, SM activity, energy. Unavailable values are absent.

``gpu_util`` is the fraction of the last NVML sampling period (1/6 s to 1 s) in which any kernel
ran, even one on a single SM. ``sm_active`` is the mean fraction of active SMs over an interval,
from the GPM counters of Hopper and later; virtual machines may hide them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import pynvml
import torch

T = TypeVar("T")


def read_or_none(call: Callable[[], T]) -> T | None:
    """Return the result of an NVML call, None where this GPU, driver or machine lacks it."""
    try:
        return call()
    except pynvml.NVMLError:
        return None


def open_device(device: torch.device) -> Any | None:
    """Return NVML's handle of torch's GPU, whose index may differ; None without NVML."""
    if read_or_none(_init) is None:
        return None
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    for name in (f"GPU-{uuid}", f"MIG-{uuid}"):
        handle = read_or_none(partial(pynvml.nvmlDeviceGetHandleByUUID, name))
        if handle is not None:
            return handle
    read_or_none(pynvml.nvmlShutdown)
    return None


def _init() -> bool:
    pynvml.nvmlInit()
    return True


class DeviceMeter:
    """Means over the interval since ``begin``; starting and reading one costs some 0.1 ms."""

    def __init__(self, device: torch.device) -> None:
        self._handle = open_device(device) if device.type == "cuda" else None
        self._millijoules: int | None = None
        self._samples: list[Any] = []
        self._has_begun = False
        if self._handle is not None and read_or_none(self._has_gpm):
            new = [read_or_none(pynvml.nvmlGpmSampleAlloc) for _ in range(2)]
            self._samples = [sample for sample in new if sample is not None]
        self.begin()

    def begin(self) -> None:
        """Begin an interval."""
        if self._handle is None:
            return
        self._millijoules = read_or_none(self._energy)
        self._has_begun = self._take_sample(0)

    def read(self, seconds: float) -> dict[str, float]:
        """Return the available means over the interval that began ``seconds`` ago."""
        if self._handle is None:
            return {}
        found = {
            "gpu_util": read_or_none(self._utilisation),
            "sm_active": self._sm_active(),
            "power_w": self._power(seconds),
        }
        return {name: value for name, value in found.items() if value is not None}

    def close(self) -> None:
        """Shut NVML down."""
        if self._handle is None:
            return
        for sample in self._samples:
            read_or_none(partial(pynvml.nvmlGpmSampleFree, sample))
        self._samples, self._handle = [], None
        read_or_none(pynvml.nvmlShutdown)

    def _has_gpm(self) -> bool:
        return bool(pynvml.nvmlGpmQueryDeviceSupport(self._handle).isSupportedDevice)

    def _utilisation(self) -> float:
        return float(pynvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    def _energy(self) -> int:
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def _power(self, seconds: float) -> float | None:
        """Return the mean over the interval; the current power where there is no energy counter."""
        now = read_or_none(self._energy)
        if now is not None and self._millijoules is not None and now > self._millijoules:
            return (now - self._millijoules) / 1000 / seconds
        momentary = read_or_none(partial(pynvml.nvmlDeviceGetPowerUsage, self._handle))
        return None if momentary is None else momentary / 1000

    def _take_sample(self, which: int) -> bool:
        if len(self._samples) < 2:
            return False

        def take() -> bool:
            pynvml.nvmlGpmSampleGet(self._handle, self._samples[which])
            return True

        return bool(read_or_none(take))

    def _sm_active(self) -> float | None:
        if not self._has_begun or not self._take_sample(1):
            return None
        request = pynvml.c_nvmlGpmMetricsGet_t()
        request.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = 1
        request.sample1, request.sample2 = self._samples
        request.metrics[0].metricId = pynvml.NVML_GPM_METRIC_SM_UTIL
        if read_or_none(partial(pynvml.nvmlGpmMetricsGet, request)) is None:
            return None
        metric = request.metrics[0]
        if metric.nvmlReturn != pynvml.NVML_SUCCESS or not math.isfinite(metric.value):
            return None
        return float(metric.value) / 100
