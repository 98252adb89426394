"""Configuration of ``train run`` and ``train evaluate``."""

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar

from model.config import ModelConfig
from pipeline.config import PipelineConfig
from train.losses.config import LossConfig


class Device(Enum):
    """Where to train."""

    auto = "auto"
    """The GPU if there is one, else the CPU; an unusable GPU is an error."""
    cpu = "cpu"
    cuda = "cuda"


class CheckpointChoice(Enum):
    """Which checkpoint of a run."""

    latest = "latest"
    """The newest one that is whole."""
    best = "best"
    """The one with the best score while training."""


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
        "weight": "pipeline.weight",
        "mix": "pipeline.mix",
        "batch_size": "pipeline.batch_size",
        "seed": "pipeline.seed",
    }

    run_dir: str | None = None
    """Folder of the run; null makes runs/<date>-<time>. A folder that holds a checkpoint of the
    same configuration is continued."""
    resume: str | None = None
    """Folder of a run to continue with its own configuration; store is not needed then. Only steps,
    *_every, keep_checkpoints, threads, device, mano and store may be given beside it; one that is
    set to its default counts as not given."""
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
    keep_checkpoints: int = 3
    """Newest checkpoints that are kept; the best one is kept as well."""
    threads: int = 0
    """CPU threads of torch; 0 leaves torch's choice."""
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=""))
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.resume is None and not self.pipeline.store:
            raise ValueError(
                "needs store=... (Store directory written by python -m preprocess build-cache.), "
                "or resume=RUN to continue a run"
            )
        if self.resume is not None and self.run_dir is not None:
            raise ValueError(
                f"resume={self.resume!r} continues in that folder: leave out run_dir, got "
                f"{self.run_dir!r}"
            )
        cadences = ("log_every", "pictures_every", "checkpoint_every")
        for name in ("steps", *cadences, "keep_checkpoints"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")


class Protocol(Enum):
    """Official protocols that score files."""

    freihand = "freihand"
    ho3d = "ho3d"
    dexycb = "dexycb"
    arctic = "arctic"
    interhand26m = "interhand26m"
    world = "world"


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """Score a run on a store, or files of predictions by an official protocol."""

    run: str | None = None
    """Folder of a run made by train run; needs store."""
    checkpoint: CheckpointChoice = CheckpointChoice.latest
    """Which checkpoint of the run: latest, or best by the score while training."""
    store: str | None = None
    """Store to score the run on."""
    split: str = "evaluation"
    """Split of the store; 'all' takes every row."""
    export: str | None = None
    """With run and store: also write the predictions here, in the dataset's submission format."""
    protocol: Protocol | None = None
    """Official protocol for files; needs predictions and truth."""
    predictions: str | None = None
    """File of predictions in the protocol's format (arctic: or a folder of them)."""
    truth: str | None = None
    """Ground truth in the dataset's format, file or folder."""
    root_depth: str | None = None
    """interhand26m: RootNet's json, the official depth of the wrists; null takes the true depth."""
    strict: bool = False
    """False follows the official tool in its quirks; true gives the mathematically right score."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null asks HANDLOOM_MANO."""
    device: Device = Device.auto
    """Where to run."""
    batch_size: int = 64
    """Samples per batch."""
    out: str | None = None
    """Folder for scores.json and pictures; null takes RUN/evaluate-<split>, and for files writes
    none."""

    def __post_init__(self) -> None:
        """Check that the keys make one of the two forms."""
        files = {"protocol": self.protocol, "predictions": self.predictions, "truth": self.truth}
        runs = {"run": self.run, "store": self.store}
        for mine, theirs in ((files, runs), (runs, files)):
            if all(mine.values()) and not any(theirs.values()):
                break
        else:
            given = [key for key, value in {**runs, **files}.items() if value]
            raise ValueError(
                "give run=... store=... to score a run, or protocol=... predictions=... truth=... "
                f"to score files; got {' and '.join(given) or 'none of them'}"
            )
        if self.export and not self.run:
            raise ValueError("export=... writes the predictions of a run: give run=... store=...")
        if self.root_depth and self.protocol is not Protocol.interhand26m:
            raise ValueError("root_depth=... belongs to protocol=interhand26m")
