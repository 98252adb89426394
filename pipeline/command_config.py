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
    """What fits on a device. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = _ALIASES

    device_gib: float = MISSING
    """Memory of the device, GiB: 24 for a desktop card, 139 for an H200."""
    model_gib: float = 8.0
    """Peak of the training step without the cache, GiB: weights, gradients, optimiser, activations;
    5 % are added. train run logs it."""
    world: int = 1
    """Devices that share the samples."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))

    def __post_init__(self) -> None:
        if self.device_gib <= 0 or self.model_gib < 0:
            raise ValueError(
                f"device_gib must be positive and model_gib not negative, got {self.device_gib} "
                f"and {self.model_gib}"
            )
        if self.world < 1:
            raise ValueError(f"world must be at least 1, got {self.world}")


@dataclass(kw_only=True, slots=True)
class BenchConfig:
    """Rates per stage. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = _ALIASES

    device: str = "cpu"
    """cpu or cuda."""
    seconds: float = 3.0
    """Time measured per stage, after a warm-up."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device must be cpu or cuda, got {self.device!r}")
        if self.seconds <= 0:
            raise ValueError(f"seconds must be positive, got {self.seconds}")
