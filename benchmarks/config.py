"""Options of the benchmarks. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Final

from omegaconf import MISSING

NUM_SHARDS: Final = 8
BATCH: Final = 64


@dataclass(kw_only=True, slots=True)
class StoreBenchConfig:
    """What is built and how long it is measured."""

    out: str = "build/bench"
    """Folder for the store; a ``store.zarr`` in it is replaced."""
    num: int = 4000
    """Images."""
    seed: int = 0
    """Of the images and of the order of random reads."""
    results: str = "benchmarks/results/store.jsonl"
    """File that the rows are appended to."""
    min_time_s: float = 2.0
    """Time measured per variant."""
    repeats: int = 9
    """Turns of each variant."""

    def __post_init__(self) -> None:
        if self.num < BATCH:
            raise ValueError(f"num must be at least {BATCH}, got {self.num}")


@dataclass(kw_only=True, slots=True)
class PreprocessBenchConfig:
    """How many files, and how long they are measured."""

    out: str = "build/bench/preprocess"
    """Folder for files, copies and a store; replaced."""
    num: int = 4000
    """Files passed through; a tenth as many are recoded, a fortieth transcoded, and a fiftieth
    recoded of each of ARCTIC's two kinds."""
    seed: int = 0
    """Of the pictures."""
    results: str = "benchmarks/results/preprocess.jsonl"
    """File that the rows are appended to."""
    min_time_s: float = 8.0
    """Time measured per variant."""
    repeats: int = 9
    """Turns of each variant."""

    def __post_init__(self) -> None:
        if self.num < NUM_SHARDS:
            raise ValueError(f"num must be at least {NUM_SHARDS}, got {self.num}")


@dataclass(kw_only=True, slots=True)
class ManoBenchConfig:
    """How many hands, and how long they are measured."""

    num: int = 512
    """Hands per call."""
    mano: str | None = None
    """Folder of the MANO files; None looks at HANDLOOM_MANO, then takes the stand-in hand."""
    compiled: bool = True
    """Measure under torch.compile too, which takes a minute or two to build on a CPU."""
    results: str = "benchmarks/results/mano.jsonl"
    """File that the rows are appended to."""
    min_time_s: float = 5.0
    """Time measured per variant."""
    repeats: int = 15
    """Turns of each variant."""

    def __post_init__(self) -> None:
        if self.num < 2:
            raise ValueError(f"num must be at least 2, got {self.num}")


@dataclass(kw_only=True, slots=True)
class LoaderBenchConfig:
    """How many images, and how long every contender is measured."""

    out: str = "build/bench/loader"
    """Folder for the images as files, tars and a store; made once per num and seed."""
    num: int = 4000
    """Images of 256 px."""
    seed: int = 0
    """Of the images and of their order."""
    results: str = "benchmarks/results/loader.jsonl"
    """File that the rows are appended to."""
    min_time_s: float = 10.0
    """Time measured per contender, at least one epoch in each of its turns."""
    repeats: int = 7
    """Turns of each contender."""
    steps: int = 40
    """Steps of the busy consumer in each of its turns."""
    busy_ms: float = 100.0
    """What a step keeps the consumer's core busy."""

    def __post_init__(self) -> None:
        if self.num < 2 * BATCH:
            raise ValueError(f"num must be at least {2 * BATCH}, got {self.num}")


@dataclass(kw_only=True, slots=True)
class LossesBenchConfig:
    """What is measured, and how long."""

    compiled: bool = True
    """Measure torch.compile too, which takes minutes to build on a CPU."""
    results: str = "benchmarks/results/losses.jsonl"
    """File that the rows are appended to."""
    min_time_s: float = 3.0
    """Time measured per variant and batch size."""
    repeats: int = 9
    """Turns of each variant."""


@dataclass(kw_only=True, slots=True)
class KernelsBenchConfig:
    """The register table."""

    results: str = "benchmarks/results/kernels.jsonl"
    """File that the rows are appended to."""


@dataclass(kw_only=True, slots=True)
class GpuSuiteConfig:
    """The one-command GPU suite."""

    out: str = MISSING
    """Folder for rows, logs and the synthetic store."""
    limit_s: float = 520.0
    """Time for everything; sections that do not fit any more are reported as not run."""
    num: int = 4096
    """Frames of the synthetic store (the CPU dry run takes 64)."""


@dataclass(kw_only=True, slots=True)
class ReadmeConfig:
    """Where the generated tables go, and the rows that they show."""

    root: str = "."
    """Folder of README.md and docs/."""
    results: str = "benchmarks/results"
    """Folder of the rows."""


@dataclass(kw_only=True, slots=True)
class PictureConfig:
    """The picture of README.md."""

    out: str = "docs/images/sample.jpg"
    """Picture to write."""
    work: str = "build/picture"
    """Folder for the synthetic datasets and their stores; what is there already is used again."""
    seed: int = 0
    """Of the order and the augmentation."""
    quality: int = 85
    """JPEG quality."""
