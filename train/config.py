"""Configuration of ``train run`` and ``train evaluate``."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from model.config import ModelConfig
from pipeline.config import PipelineConfig
from train.losses.config import LossConfig


class Device(Enum):
    """Where to train."""

    auto = "auto"
    """The GPU if there is one, else the CPU; an unusable GPU is an error."""
    cpu = "cpu"
    cuda = "cuda"


class Precision(Enum):
    """Arithmetic of the backbone; heads, geometry and losses are always fp32."""

    auto = "auto"
    """bf16 where the processor computes it natively, else fp32."""
    fp32 = "fp32"
    bf16 = "bf16"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    lr: float = 3e-4
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay; biases and norms have none."""
    warmup_steps: int = 100
    """Steps from 0 to the peak."""
    final_lr_share: float = 0.01
    """Learning rate at the last step, as a share of the peak."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.lr <= 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")
        if self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm must be positive, got {self.clip_norm}")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps must not be negative, got {self.warmup_steps}")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One training run."""

    EXPERIMENTS: ClassVar[Path] = Path(__file__).parent / "conf" / "experiment"
    ALIASES: ClassVar[dict[str, str]] = {
        "store": "pipeline.store",
        "split": "pipeline.split",
        "subset": "pipeline.subset",
        "batch_size": "pipeline.batch_size",
        "seed": "pipeline.seed",
    }

    run_dir: str | None = None
    """Folder of the run; null makes runs/<date>-<time>. A folder that holds a checkpoint of the
    same configuration is continued."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null asks HANDLOOM_MANO."""
    device: Device = Device.auto
    """Where to train."""
    precision: Precision = Precision.auto
    """Arithmetic of the backbone; auto is bf16 where the processor computes it natively."""
    steps: int = 20_000
    """Optimiser steps in all."""
    ema_decay: float = 0.999
    """Decay of the averaged weights that are evaluated; warmed up from 0."""
    log_every: int = 50
    """Steps between log lines; the device is read only then."""
    pictures_every: int = 1000
    """Steps between pictures of predictions; the last step always draws."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step and a signal always write one."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=MISSING))
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("steps", "log_every", "pictures_every", "checkpoint_every"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Score a run."""

    run: str = MISSING
    """Folder of a run made by train run."""
    store: str = MISSING
    """Store to score on."""
    split: str = "evaluation"
    """Split of the store; 'all' takes every row."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null asks HANDLOOM_MANO."""
    device: Device = Device.auto
    """Where to run."""
    batch_size: int = 64
    """Samples per batch."""
    out: str | None = None
    """Folder for scores.json and pictures; null takes RUN/evaluate-<split>."""
