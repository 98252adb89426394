"""Options of ``python -m pipeline``. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from pipeline.config import PipelineConfig

_ALIASES = {
    "store": "pipeline.store",
    "split": "pipeline.split",
    "subset": "pipeline.subset",
    "weight": "pipeline.weight",
    "mix": "pipeline.mix",
    "batch_size": "pipeline.batch_size",
    "size_px": "pipeline.cache.size_px",
    "codec": "pipeline.cache.codec",
    "window": "pipeline.window",
    "input_px": "pipeline.input_px",
}


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Options of the memory plan. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = _ALIASES

    device_gib: float | None = None
    """Memory of the device, GiB; null compares cards of 24, 48, 80 and 141 GB."""
    model_gib: float = 8.0
    """Peak memory of the training step without the cache, GiB: weights, gradients, optimiser,
    activations; train run logs it. 5 % are added as a margin."""
    world: int = 1
    """Number of devices that the samples are split over."""
    num_samples: int | None = None
    """Plan for this many samples instead of the store's: to extrapolate from a partial build to the
    whole dataset."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))

    def __post_init__(self) -> None:
        if (self.device_gib is not None and self.device_gib <= 0) or self.model_gib < 0:
            raise ValueError(
                f"device_gib must be positive and model_gib not negative, got {self.device_gib} "
                f"and {self.model_gib}"
            )
        if self.world < 1:
            raise ValueError(f"world must be at least 1, got {self.world}")
        if self.num_samples is not None and self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {self.num_samples}")


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """Options of the throughput benchmark. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = _ALIASES

    device: str = "cpu"
    """cpu or cuda."""
    seconds: float = 3.0
    """Duration of the measurement per stage after a warm-up, seconds; increase it on a noisy
    machine."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
