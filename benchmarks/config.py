"""Configuration of the benchmarks; a field's docstring is its ``--help`` text. Imports fast."""

import math
from dataclasses import dataclass, field
from typing import Final

from omegaconf import MISSING

from model.fields import check_fields

NUM_SHARDS: Final = 8
BATCH: Final = 64
MEASURING: Final = {"min_time_s": (0.0, 3600.0), "repeats": (1.0, 10_000.0)}


@dataclass(kw_only=True, slots=True)
class StoreBenchConfig:
    """Settings of the store benchmark."""

    out: str = "build/bench"
    """Folder for the store; a ``store.zarr`` of an earlier run in it is replaced."""
    num: int = 4000
    """Number of images."""
    seed: int = 0
    """Random seed of the images and of the order of random reads."""
    results: str = "benchmarks/results/store.jsonl"
    """JSON Lines file to which the result rows are appended."""
    min_time_s: float = 2.0
    """Measured time per variant, seconds."""
    repeats: int = 9
    """Number of measurements per variant, interleaved."""

    def __post_init__(self) -> None:
        check_fields(self, num=(BATCH, math.inf), **MEASURING)


@dataclass(kw_only=True, slots=True)
class PreprocessBenchConfig:
    """Settings of the preprocessing benchmark."""

    out: str = "build/bench/preprocess"
    """Folder for files, copies and a store; what an earlier run left there is removed."""
    num: int = 4000
    """Number of files for passthrough; a tenth as many are recoded, a fortieth transcoded, and a
    fiftieth recoded for each of ARCTIC's two kinds of view."""
    seed: int = 0
    """Random seed of the images."""
    results: str = "benchmarks/results/preprocess.jsonl"
    """JSON Lines file to which the result rows are appended."""
    min_time_s: float = 8.0
    """Measured time per variant, seconds."""
    repeats: int = 9
    """Number of measurements per variant, interleaved."""

    def __post_init__(self) -> None:
        check_fields(self, num=(NUM_SHARDS, math.inf), **MEASURING)


@dataclass(kw_only=True, slots=True)
class ManoBenchConfig:
    """Settings of the MANO layer benchmark."""

    num: int = 512
    """Number of hands per call."""
    mano: str | None = None
    """Folder of the MANO files. null: the environment variable HANDLOOM_MANO, else the synthetic
    hand."""
    compiled: bool = True
    """Also measure torch.compile; compiling takes a minute or two on a CPU."""
    results: str = "benchmarks/results/mano.jsonl"
    """JSON Lines file to which the result rows are appended."""
    min_time_s: float = 5.0
    """Measured time per variant, seconds."""
    repeats: int = 15
    """Number of measurements per variant, interleaved."""

    def __post_init__(self) -> None:
        check_fields(self, num=(2, math.inf), **MEASURING)


@dataclass(kw_only=True, slots=True)
class LoaderBenchConfig:
    """Settings of the data loader benchmark."""

    out: str = "build/bench/loader"
    """Folder for the images as files, tars and a store; generated once per num and seed."""
    num: int = 4000
    """Number of 256 px images."""
    seed: int = 0
    """Random seed of the images and of their order."""
    results: str = "benchmarks/results/loader.jsonl"
    """JSON Lines file to which the result rows are appended."""
    min_time_s: float = 10.0
    """Measured time per contender, seconds; each repeat is at least one epoch."""
    repeats: int = 7
    """Number of measurements per contender, interleaved."""
    steps: int = 40
    """Steps of the busy consumer per repeat."""
    busy_ms: float = 100.0
    """Time per step during which the consumer keeps its core busy, milliseconds."""

    def __post_init__(self) -> None:
        check_fields(
            self, num=(2 * BATCH, math.inf), steps=(1, 1e6), busy_ms=(0, 60_000), **MEASURING
        )


@dataclass(kw_only=True, slots=True)
class LossesBenchConfig:
    """Settings of the loss benchmark."""

    compiled: bool = True
    """Also measure torch.compile; compiling takes minutes on a CPU."""
    batches: list[int] = field(default_factory=lambda: [64, 256, 512])
    """Batch sizes."""
    results: str = "benchmarks/results/losses.jsonl"
    """JSON Lines file to which the result rows are appended."""
    min_time_s: float = 3.0
    """Measured time per variant and batch size, seconds."""
    repeats: int = 9
    """Number of measurements per variant, interleaved."""

    def __post_init__(self) -> None:
        check_fields(self, **MEASURING)


@dataclass(kw_only=True, slots=True)
class KernelsBenchConfig:
    """Settings of the register table."""

    results: str = "benchmarks/results/kernels.jsonl"
    """JSON Lines file to which the result rows are appended."""


@dataclass(kw_only=True, slots=True)
class GpuSuiteConfig:
    """Settings of the one-command GPU suite."""

    out: str = MISSING
    """Output folder for result rows, logs and the synthetic store."""
    only: list[str] = field(default_factory=list)
    """Sections to run, by name or pattern: [tests_marked_gpu,loss_terms], ["freihand_*"]. Empty:
    all, the most valuable first."""
    skip: list[str] = field(default_factory=list)
    """Sections to leave out, by name or pattern."""
    budget_s: float = 420.0
    """Time for the whole suite, seconds; what no longer fits is reported as not run. Each section
    has a limit of its own besides."""
    plan: bool = False
    """Only print what would run, in which order and in how many seconds."""
    stores: str | None = None
    """Folder of the sample datasets and their stores; what is missing is built there, in full size.
    Build them before, with only=[sample_stores], where a GPU's time is short. null: in out, small
    without a GPU."""
    num: int = 16384
    """Number of frames in the synthetic store (the CPU dry run takes 64)."""

    def __post_init__(self) -> None:
        check_fields(self, num=(64, math.inf), budget_s=(1, 86_400))


@dataclass(kw_only=True, slots=True)
class QuickstartBenchConfig:
    """Settings of the quickstart benchmark."""

    out: str = "build/bench/quickstart"
    """Folder for the data and runs of every seed; replaced."""
    repeats: int = 3
    """Number of random seeds of the training."""
    results: str = "benchmarks/results/quickstart.jsonl"
    """JSON Lines file to which the result rows are appended."""

    def __post_init__(self) -> None:
        check_fields(self, repeats=(1, 100))


@dataclass(kw_only=True, slots=True)
class ReadmeConfig:
    """Settings of the generated documentation tables."""

    root: str = "."
    """Folder of README.md and docs/."""
    results: str = "benchmarks/results"
    """Folder of the result rows to show."""


@dataclass(kw_only=True, slots=True)
class PictureConfig:
    """Settings of the README.md image."""

    out: str = "docs/images/sample.jpg"
    """Image file to write."""
    work: str = "build/picture"
    """Folder for the synthetic datasets and their stores; existing ones are reused."""
    seed: int = 0
    """Random seed of the sample order and the augmentation."""
    quality: int = 85
    """JPEG quality."""

    def __post_init__(self) -> None:
        check_fields(self, quality=(1, 100))
