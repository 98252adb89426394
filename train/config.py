"""Configuration of ``train run`` and ``train evaluate``."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Final

from model.config import ModelConfig
from model.families import config_classes
from model.fields import NO_OPTION, check_fields
from model.regressor.config import RegressorConfig
from pipeline.config import PipelineConfig
from train.losses.config import LossConfig

DEFAULT_STEPS: Final = 20_000


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


class Schedule(Enum):
    """Shape of the learning rate after the warm-up; ``train.step.schedule`` has the formulas."""

    cosine = "cosine"
    warm_restarts = "warm_restarts"
    one_cycle = "one_cycle"
    constant = "constant"


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """AdamW and its schedule; with stages each has its own."""

    lr: float = 3e-4
    """Peak learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay; biases, norms, position embeddings and tokens have none."""
    beta1: float = 0.9
    """Decay of the gradient's mean."""
    beta2: float = 0.999
    """Decay of the squared gradient's mean."""
    schedule: Schedule = Schedule.cosine
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 100
    """Steps from 0 to the peak."""
    final_lr_share: float = 0.01
    """Learning rate at the last step, as a share of the peak."""
    cycle_steps: int = 1000
    """warm_restarts: steps of the first cycle."""
    cycle_growth: float = 2.0
    """warm_restarts: length of a cycle over that of the one before."""
    backbone_lr: float = 1.0
    """Learning rate of the backbone, as a share of the head's."""
    layer_decay: float = 1.0
    """Learning rate of a layer of the backbone over that of the layer above it; 1 = all equal."""
    shares: dict[str, float] = field(default_factory=dict)
    """Learning rate of modules as a share of the peak, by the beginning of their parameters' names,
    for example {temporal: 0.5, backbone.layer4: 0.1}; the longest name that fits counts, the rest
    stays at 1. In the backbone it stands in the place of backbone_lr; layer_decay multiplies it."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "optim", weight_decay=(0, 100), final_lr_share=(0, 1))
        for name in ("lr", "clip_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optim.{name} must be positive, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"optim.warmup_steps must not be negative, got {self.warmup_steps}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optim.{name} must lie in [0, 1), got {getattr(self, name)}")
        for name in ("backbone_lr", "layer_decay"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"optim.{name} must lie in (0, 1], got {getattr(self, name)}")
        for name, share in self.shares.items():
            if not 0 < share <= 1:
                raise ValueError(f"optim.shares.{name} must lie in (0, 1], got {share}")
        if "backbone" in self.shares and self.backbone_lr != 1.0:
            raise ValueError(
                "optim.shares.backbone and optim.backbone_lr are the same share: give one of them, "
                f"got {self.shares['backbone']} and {self.backbone_lr}"
            )
        if self.cycle_steps < 1 or self.cycle_growth < 1:
            raise ValueError(
                "optim.cycle_steps and optim.cycle_growth must be at least 1, got "
                f"{self.cycle_steps} and {self.cycle_growth}"
            )


@dataclass(kw_only=True, slots=True)
class StageConfig:
    """Part of a run. What is null stays as the run has it."""

    steps: int = 0
    """Its length; or"""
    epochs: float = 0.0
    """its length in passes over the training set."""
    lr: float | None = None
    """Peak learning rate; null = optim.lr. The schedule starts anew with every stage."""
    batch_size: int | None = None
    """Samples per step; null = batch_size."""
    augment: float = 1.0
    """Strength: all ranges of pipeline.augment times this."""
    freeze: list[str] = field(default_factory=list)
    """Modules that are not trained, for example [backbone]; or"""
    train: list[str] = field(default_factory=list)
    """the only modules that are, for example [mlp, backbone.layer4]: all others are frozen. Both
    empty trains everything. Frozen modules compute as in evaluation."""
    loss: dict[str, float] = field(default_factory=dict)
    """Weights of loss terms that differ, for example {theta: 1.0}."""
    ramp: float = 0.0
    """Share of the stage, 0 to 1, over which the weights of the loss terms go in a straight line
    from those of the stage before (the first stage: from those of loss) to its own; 0 = at once. A
    term that is on at either end is computed all the stage long."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "stages.NAME", batch_size=(1, math.inf))
        if self.steps < 0 or self.epochs < 0 or self.augment < 0:
            raise ValueError(
                "a stage's steps, epochs and augment must not be negative, got "
                f"{self.steps}, {self.epochs}, {self.augment}"
            )
        if self.lr is not None and self.lr <= 0:
            raise ValueError(f"a stage's lr must be positive, got {self.lr}")
        if self.freeze and self.train:
            raise ValueError(
                "a stage says freeze=[what is not trained] or train=[what alone is trained], not "
                f"both; got freeze=[{', '.join(self.freeze)}] and train=[{', '.join(self.train)}]"
            )
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"a stage's ramp must lie in [0, 1], got {self.ramp}")


@dataclass(kw_only=True, slots=True)
class ValidationConfig:
    """Scores on held-out samples while the run goes on, with the averaged weights."""

    split: str | None = None
    """Row list to score, for example val; null = no validation."""
    store: str | None = None
    """Store of that split; null = the training store."""
    subset: float = 1.0
    """Share of the split's rows, evenly spaced over its sequences."""
    every: int = 1000
    """Steps between scores; the last step is always scored."""
    batch_size: int = 64
    """Samples per batch, over all ranks."""
    metric: str = "pa_mpjpe_mm"
    """Score whose smallest value makes the best checkpoint; one of train.evaluate.metrics.hand."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, "validation", every=(1, math.inf), batch_size=(1, math.inf))
        if not 0 < self.subset <= 1:
            raise ValueError(f"validation.subset must lie in (0, 1], got {self.subset}")
        if self.metric not in VALIDATION_METRICS:
            raise ValueError(
                f"validation.metric must be one of {', '.join(VALIDATION_METRICS)}, got "
                f"{self.metric!r}"
            )


VALIDATION_METRICS: Final = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm", "pa_mpvpe_mm")


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One training run."""

    EXPERIMENTS: ClassVar[Path] = Path(__file__).parent / "conf" / "experiment"
    GROUPS: ClassVar[dict[str, Callable[[], dict[str, type[ModelConfig]]]]] = {
        "model": config_classes
    }
    ALIASES: ClassVar[dict[str, str]] = {
        "store": "pipeline.store",
        "split": "pipeline.split",
        "subset": "pipeline.subset",
        "weight": "pipeline.weight",
        "mix": "pipeline.mix",
        "batch_size": "pipeline.batch_size",
        "seed": "pipeline.seed",
    }
    HABITS: ClassVar[dict[str, str]] = {
        "workers": "cache.decode_threads=N sets the decoder's threads; no processes load",
        "num_workers": "cache.decode_threads=N sets the decoder's threads; no processes load",
        "epochs": "steps=N sets the length, or stages.NAME.epochs=N that of a stage",
        "max_epochs": "steps=N sets the length, or stages.NAME.epochs=N that of a stage",
        "max_steps": "it is steps=N",
        "gpus": "torchrun --nproc-per-node=N -m train run ... uses N GPUs",
        "devices": "torchrun --nproc-per-node=N -m train run ... uses N GPUs",
        "amp": "precision=bf16 or precision=fp32",
        "wandb": "curves are written as JSON lines and for TensorBoard, below run_dir",
        "output_dir": "it is run_dir=FOLDER",
        "out": "it is run_dir=FOLDER",
        "dataset": "store=FOLDER; python -m preprocess build-cache dataset=... makes one",
        "data": "store=FOLDER; python -m preprocess build-cache dataset=... makes one",
        "learning_rate": "it is lr=RATE",
        "checkpoint": "resume=RUN continues a run, init=RUN begins with its weights",
        "img_size": "it is input_px=SIDE",
    }
    """Names from other tools, and what to say here."""
    SPELLINGS: ClassVar[dict[str, str]] = {"pipeline.batch_size=auto": "auto_batch_size=true"}

    run_dir: str | None = None
    """Folder of the run; null makes runs/<date>-<time>. A folder that holds a checkpoint of the
    same configuration is continued."""
    resume: str | None = None
    """Folder of a run to continue with its own configuration; store is not needed then. Only steps,
    *_every, keep_checkpoints, threads, accumulate, debug, device, mano and store may be given
    beside it."""
    init: str | None = None
    """Folder of a run, or of weights, to begin with: every tensor of the same name and shape is
    taken over, what is left begins anew. For fine-tuning, or windows after single frames."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null asks HANDLOOM_MANO."""
    device: Device = Device.auto
    """Where to train."""
    precision: Precision = Precision.auto
    """Arithmetic of the backbone; auto is bf16 where the processor computes it natively."""
    steps: int = DEFAULT_STEPS
    """Optimiser steps in all; refused where there are stages, whose lengths add up."""
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
    accumulate: int = 1
    """Parts that a batch is split into, one forward and backward after another: less memory, the
    same step (but for BatchNorm in training mode). Where the device's memory does not suffice, the
    run doubles it by itself, takes the same batch again and says so; a resumed run keeps that."""
    auto_batch_size: bool = False
    """What batch_size=auto says: before anything is loaded, steps on blank batches find the most
    samples whose step stays below 90 % of the device's free memory (of the machine's on a CPU), and
    that number becomes batch_size, in the manifest and in a resumed run as well. What is left is
    the cache's: a large store is then streamed, so give a number where it is to be resident. The
    learning rate is not scaled. Stages with a batch_size of their own keep it."""
    sync_bn: bool = False
    """On several GPUs: BatchNorm in training mode takes its statistics over the batch of all ranks
    (torch's SyncBatchNorm), for small CNNs from scratch. Without it such a network is refused."""
    compile: bool = True
    """Compile network and losses on a GPU with torch.compile."""
    graph: bool = False
    """Replay the whole step as one CUDA graph on a GPU: for small networks, whose launches cost
    more than their work. One process only."""
    debug: bool = False
    """Look for what goes wrong: eager losses, no compile and no graph, torch's anomaly detection,
    the norm of each loss term's gradient in the log (grad_norm/NAME), and a stop at the first value
    that is not finite: the batch is written to RUN/debug, and step, term and samples are named.
    Many times slower; on a CPU the same weights. One process only."""
    probe: bool = False
    """Train on one batch again and again, without data: the ceiling that the loader is measured
    against. Nothing is saved."""
    stages: dict[str, StageConfig] = field(default_factory=dict)
    """Stages of the run, by names of your own, in this order; none = one of steps."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    pipeline: PipelineConfig = field(default_factory=lambda: PipelineConfig(store=""))
    model: ModelConfig = field(default_factory=RegressorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    given: list[str] = field(default_factory=list, compare=False, metadata=NO_OPTION)
    """Keys that ``compose`` was given, also those that equal their default."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, threads=(0, 4096))
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
        for name in ("steps", *cadences, "keep_checkpoints", "accumulate"):
            value = getattr(self, name)
            if value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.stages and self.steps != DEFAULT_STEPS:
            raise ValueError(
                f"steps={self.steps} is not read where there are stages, whose lengths add up: set "
                f"{', '.join(f'stages.{name}.steps' for name in self.stages)}"
            )
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
    hamer = "hamer"


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
    """Split of the store; evaluation is the dataset's own (dexycb: s0_test, arctic: p1_val,
    interhand26m: test), all takes every row."""
    export: str | None = None
    """With run and store: also write the predictions here, in the dataset's submission format;
    of arctic a folder of what protocol=arctic reads."""
    protocol: Protocol | None = None
    """Official protocol for files; needs predictions and truth."""
    predictions: str | None = None
    """File of predictions in the protocol's format (arctic: or a folder of them)."""
    truth: str | None = None
    """Ground truth in the dataset's format, file or folder. With run and store, of freihand and
    ho3d: scores the official split by it instead of the store's labels."""
    root_depth: str | None = None
    """interhand26m: RootNet's json, the official depth of the wrists; null takes the true depth."""
    details: str | None = None
    """File, .csv or .parquet, for the values per sample and per joint, PCK curves and medians."""
    min_track: int = 1
    """world: shortest track that is scored, frames; HaWoR's tables take 16."""
    right_only: bool = False
    """world: score the tracks of right hands only, as HaWoR's tables do; needs is_right."""
    strict: bool = False
    """False follows the official tool in its quirks; true gives the mathematically right score."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null takes the run's, else HANDLOOM_MANO."""
    device: Device = Device.auto
    """Where to run."""
    batch_size: int = 64
    """Samples per batch."""
    window_stride: int | None = None
    """Of a run on windows: frames from one to the next. Every frame is taken from the window in
    whose middle it is, or as near to it as any; null = a third of the length, at three times the
    cost of the length itself, which puts windows side by side."""
    out: str | None = None
    """Folder for scores.json and pictures; null takes RUN/evaluate-<store>-<hash>-<split>, and for
    files writes none."""

    def __post_init__(self) -> None:
        """Check that the keys make one of the two forms."""
        check_fields(self, batch_size=(1, math.inf), window_stride=(1, math.inf))
        runs = {"run": self.run, "store": self.store}
        files = {"protocol": self.protocol, "predictions": self.predictions}
        is_run = all(runs.values()) and not any(files.values())
        is_files = all(files.values()) and self.truth and not any(runs.values())
        if not is_run and not is_files:
            given = [k for k, v in {**runs, **files, "truth": self.truth}.items() if v]
            raise ValueError(
                "give run=... store=... to score a run, or protocol=... predictions=... truth=... "
                f"to score files; got {' and '.join(given) or 'none of them'}"
            )
        if self.export and not self.run:
            raise ValueError("export=... writes the predictions of a run: give run=... store=...")
        check_fields(self, min_track=(1, math.inf))
        if (self.min_track, self.right_only) != (1, False) and self.protocol is not Protocol.world:
            raise ValueError("min_track=... and right_only=... belong to protocol=world")
        if self.root_depth and self.protocol is not Protocol.interhand26m:
            raise ValueError("root_depth=... belongs to protocol=interhand26m")


NO_BOXES: Final = "none"
"""Value of ``boxes`` that takes whole images."""


class MeshFormat(Enum):
    """How meshes are written."""

    obj = "obj"
    glb = "glb"
    """glTF: y up, for viewers and the web."""


class Side(Enum):
    """Which hand an image without boxes shows."""

    right = "right"
    left = "left"
    both = "both"
    """Unknown: predicted twice, once as each."""


@dataclass(kw_only=True, slots=True)
class PredictConfig:
    """Predict the hands of one's own images."""

    run: str | None = None
    """Folder of a run made by train run, or a folder of weights; or"""
    model: str | None = None
    """an ONNX file of train export, which onnxruntime runs; it needs the extra export."""
    images: str = "???"
    """Folder of images, one image, or a video."""
    boxes: str | None = None
    """JSON file {"a.jpg": [{"box_xyxy": [x0, y0, x1, y1], "side": "left"}]}, around the joints, or
    with their 21 points as joints_2d; for a video the frame's number is the name, 7 or 000007. COCO
    results, data sets and COCO-WholeBody's hands are read as well. none takes whole images as crops
    of one hand; null does so for square images and skips others."""
    side: Side | None = None
    """Which hand it is where boxes do not say; null = a right one in a whole image, one of each
    side in a box."""
    box_scale: float = 1.0
    """Factor on the sides of the boxes: 0.87 where they are 1.15 times as large as the joints'."""
    intrinsics: str | None = None
    """fx,fy,cx,cy in pixels, or a JSON file with one 3x3 matrix or one by name; null assumes
    fov_deg."""
    fov_deg: float = 60.0
    """Field of view of the longer side of an image, degrees, where intrinsics are not given."""
    every: int = 1
    """Take every N-th frame of a video, or image of a folder."""
    joint_set: str | None = None
    """What the 21 joints mean, for example smplx or freihand; null = as in training."""
    meshes: bool = False
    """Also write a mesh of every hand, meshes/; needs MANO."""
    mesh_format: MeshFormat = MeshFormat.obj
    """obj, in the camera's axes, or glb, with y up."""
    pictures: bool = True
    """Draw the hands over the images, pictures/*.jpg: skeletons, and beside them shaded meshes."""
    csv: bool = False
    """Also write the joints as a table, joints.csv."""
    video: bool = False
    """Of a video: also write its pictures as one, predictions.mp4."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null takes the run's, else HANDLOOM_MANO."""
    device: Device = Device.auto
    """Where to run."""
    precision: Precision = Precision.auto
    """Arithmetic of the backbone."""
    batch_size: int = 32
    """Hands per batch."""
    out: str | None = None
    """Folder for predictions.json, pictures and meshes; null takes predict-<name of images> in the
    folder of the run or file."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self, every=(1, math.inf), batch_size=(1, math.inf))
        if (self.run is None) == (self.model is None):
            given = "neither" if self.run is None else f"run={self.run!r} and model={self.model!r}"
            raise ValueError(f"give run=RUN or model=FILE.onnx, one of them; got {given}")
        if not 1 <= self.fov_deg < 180:
            raise ValueError(f"fov_deg must lie in [1, 180), got {self.fov_deg}")
        if not 0.1 <= self.box_scale <= 10:
            raise ValueError(f"box_scale must lie in [0.1, 10], got {self.box_scale}")
        if self.video and not self.pictures:
            raise ValueError("video=true is made of the pictures: leave pictures=true")


class ExportFormat(Enum):
    """What runs an exported file."""

    onnx = "onnx"
    """onnxruntime and its kin; needs the extra ``export``."""
    pt2 = "pt2"
    """torch.export.load, ahead-of-time compilers of torch."""
    torchscript = "torchscript"
    """torch.jit.load; deprecated by torch, for programs that know nothing else."""


class Decode(Enum):
    """Where MANO parameters become vertices."""

    inside = "inside"
    outside = "outside"


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """Write a trained network as one file for programs without this package."""

    run: str = "???"
    """Folder of a run made by train run, or a folder of weights."""
    format: ExportFormat = ExportFormat.onnx
    """onnx, pt2 (torch.export) or torchscript."""
    out: str | None = None
    """File to write, .onnx, .pt2 or .ts; its description is written beside it as .json. null takes
    RUN/export/model.<ending>."""
    joint_set: str | None = None
    """What the 21 joints mean, for example smplx or freihand; null = as in training."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; null takes the run's, else HANDLOOM_MANO."""
    decode: Decode = Decode.inside
    """Where MANO decodes its parameters: inside, then the file holds MANO's arrays, under their
    licence; or outside, then it gives pose, shape and wrist, and holds none."""

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)
