"""What can be set for each command; a field's docstring is its ``--help``."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final

from omegaconf import MISSING

SAMPLE_DATASETS: Final = ("freihand", "interhand26m", "dexycb", "ho3d", "arctic")
"""Formats that ``make-sample`` writes."""


class OnBadImage(Enum):
    """What a build does with an image that is missing, cut off or not a JPEG."""

    error = "error"
    flag = "flag"


class ImageEncoding(Enum):
    """How images get into the store."""

    auto = "auto"
    passthrough = "passthrough"
    recode = "recode"


class JpegProcess(Enum):
    """Which JPEG coding process the stored files have."""

    asis = "asis"
    baseline = "baseline"


class Region(Enum):
    """What a recoded image is cropped to."""

    frame = "frame"
    hands = "hands"
    hand_object = "hand_object"


class ExecutorKind(Enum):
    """Where shards are made."""

    local = "local"
    dask = "dask"


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """What happens to the images."""

    encoding: ImageEncoding = ImageEncoding.auto
    """passthrough: the files' bytes, untouched; recode: decode, crop, encode as baseline JPEG
    4:2:0. auto: passthrough for a dataset of JPEGs, recode for one of PNGs or of distorted
    images."""
    jpeg: JpegProcess = JpegProcess.asis
    """baseline: turn progressive files into baseline ones without loss (passthrough); hardware
    decoders take no progressive files."""
    region: Region = Region.frame
    """recode: keep the whole frame, the hands, or the hands and the objects."""
    margin: float = 1.5
    """recode of a region: sides of the crop over those of the box around it."""
    max_px: int = 0
    """recode: make the longer side at most this long; 0 keeps the scale."""
    quality: int = 95
    """recode: JPEG quality."""
    undistort: bool = True
    """recode: straighten what a lens has distorted (arctic's view 0). false keeps such pixels, and
    the labels do not lie on them."""

    def __post_init__(self) -> None:
        _require_at_least(self, max_px=0, quality=1)
        if not 1 <= self.margin <= 10:
            raise ValueError(f"image.margin must lie in 1..10, got {self.margin}")
        if self.quality > 100:
            raise ValueError(f"image.quality must be at most 100, got {self.quality}")
        if self.encoding is ImageEncoding.passthrough and (
            self.region is not Region.frame or self.max_px
        ):
            raise ValueError(
                "image.region and image.max_px need image.encoding=recode: passthrough keeps the "
                "files as they are"
            )
        if self.encoding is ImageEncoding.recode and self.jpeg is JpegProcess.baseline:
            raise ValueError("jpeg=baseline is for passthrough; recoded images are baseline anyway")


@dataclass(kw_only=True, slots=True)
class ExecutorConfig:
    """Who makes the shards."""

    kind: ExecutorKind = ExecutorKind.local
    """local: processes of this machine; dask: the workers of a cluster that all see ``root``,
    ``out`` and ``mano`` at the same paths (pip install distributed)."""
    address: str | None = None
    """executor=dask: the scheduler, such as tcp://node1:8786."""

    def __post_init__(self) -> None:
        if self.kind is ExecutorKind.dask and not self.address:
            raise ValueError("executor=dask needs executor.address=tcp://HOST:PORT")
        if self.kind is ExecutorKind.local and self.address:
            raise ValueError("executor.address is for executor=dask")


@dataclass(kw_only=True, slots=True)
class BuildConfig:
    """A raw dataset becomes one store. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = {"executor": "executor.kind", "jpeg": "image.jpeg"}

    dataset: str = MISSING
    """Which dataset ``root`` holds: freihand, interhand26m, dexycb, ho3d or arctic."""
    root: str = MISSING
    """Folder of the unpacked dataset: FreiHAND_pub_v2, HO3D_v2 or HO3D_v3, the one with DexYCB's
    subjects, InterHand2.6M's with images and annotations, or ARCTIC's with images (or
    cropped_images), raw_seqs and meta."""
    out: str = MISSING
    """Folder of the store; created, conventionally named <dataset>.zarr."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; else HANDLOOM_MANO, else no MANO labels."""
    shard_rows: int = 2048
    """Images per shard file; one process writes one shard at a time."""
    workers: int = 0
    """Processes; 0 takes one per core, 1 stays in this process. Does not change the result. Each
    holds the JPEGs of one shard: with shard_rows=2048 and files of 100 KB some 200 MB."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Where the shards are made. Does not change the result."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are stored."""
    depth: bool = False
    """Also store the depth images, in millimetres (dexycb, ho3d)."""
    segmentation: bool = False
    """Also store the segmentation images (dexycb, ho3d)."""
    overwrite: bool = False
    """Replace a finished store at ``out``. An unfinished one is finished: shards that are done and
    fit these settings are kept."""
    on_bad_image: OnBadImage = OnBadImage.error
    """At a missing or damaged image: stop (error), or keep its row without an image (flag)."""

    def __post_init__(self) -> None:
        _require_text(self, "dataset", "root", "out")
        _require_at_least(self, shard_rows=1, workers=0)
        if (self.depth or self.segmentation) and (
            self.image.region is not Region.frame or self.image.max_px
        ):
            raise ValueError(
                "depth and segmentation have the official pixels; they go with image.region=frame "
                "and image.max_px=0"
            )


@dataclass(kw_only=True, slots=True)
class ImportManoConfig:
    """A MANO download becomes plain .npz files. Treat as read-only."""

    path: str = MISSING
    """The download mano_v1_2.zip, the folder it unpacks to, or a folder with MANO_RIGHT.npz and
    MANO_LEFT.npz, which are checked and copied."""
    out: str = MISSING
    """Folder for MANO_RIGHT.npz and MANO_LEFT.npz; created. Pass it as mano= afterwards."""
    overwrite: bool = False
    """Replace files at ``out`` that have other content."""

    def __post_init__(self) -> None:
        _require_text(self, "path", "out")


@dataclass(kw_only=True, slots=True)
class VerifyConfig:
    """A store is read again, every byte of it. Treat as read-only."""

    store: str = MISSING
    """Folder of the store."""
    root: str | None = None
    """Folder of the raw dataset: also compare every image with its file, labels again, and those
    that the dataset has twice with each other (arctic's processed_seqs and splits)."""
    mano: str | None = None
    """MANO folder for the comparison with ``root``; else HANDLOOM_MANO."""

    def __post_init__(self) -> None:
        _require_text(self, "store")


@dataclass(kw_only=True, slots=True)
class ShowConfig:
    """A contact sheet of a store. Treat as read-only."""

    store: str = MISSING
    """Folder of the store."""
    out: str = "contact_sheet.png"
    """Picture to write, .png or .jpg."""
    num: int = 16
    """How many rows, when ``rows`` is empty."""
    seed: int = 0
    """Which random rows, when ``rows`` is empty."""
    rows: list[int] = field(default_factory=list)
    """Rows to show, such as [0,5,9]; empty takes ``num`` random ones."""
    split: str = "all"
    """Split to take random rows from."""
    tile_px: int = 320
    """Longer side of one picture, pixels."""
    mano: str | None = None
    """MANO folder, else HANDLOOM_MANO: also draws the vertices, if the store was built with it."""

    def __post_init__(self) -> None:
        _require_text(self, "store", "out", "split")
        _require_at_least(self, num=1, seed=0, tile_px=64)
        if not self.out.lower().endswith((".png", ".jpg", ".jpeg")):
            raise ValueError(f"out must end in .png or .jpg, got {self.out!r}")


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    """A small rendered dataset in an official on-disk format. Treat as read-only."""

    dataset: str = "freihand"
    """Which format: freihand, interhand26m, dexycb, ho3d or arctic."""
    out: str = MISSING
    """Folder to create; gets the dataset and the stand-in MANO files (out/mano)."""
    num: int = 256
    """FreiHAND: training poses, each written as four images. InterHand2.6M and HO-3D: training
    images. DexYCB: images, rounded up to eight per time step. ARCTIC: images of the official set,
    nine per frame; some twenty frames of a sequence are outside of it."""
    num_eval: int | None = None
    """FreiHAND and HO-3D: evaluation images. InterHand2.6M: images of each of val and test. null:
    num // 8, at least a few. DexYCB and ARCTIC: not used, their splits are rules over the same
    images."""
    seed: int = 0
    """The same seed gives the same files."""
    workers: int = 0
    """Processes; 0 takes one per core. Does not change the result."""

    def __post_init__(self) -> None:
        _require_text(self, "dataset", "out")
        _require_at_least(self, num=1, seed=0, workers=0)
        if self.num_eval is not None:
            _require_at_least(self, num_eval=1)
        if self.dataset not in SAMPLE_DATASETS:
            raise ValueError(
                f"dataset must be one of {', '.join(SAMPLE_DATASETS)}, got {self.dataset!r}"
            )


def _require_text(config: Any, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key):
            raise ValueError(f"{key} must not be empty, got {getattr(config, key)!r}")


def _require_at_least(config: Any, **minimum: int) -> None:
    for key, low in minimum.items():
        if getattr(config, key) < low:
            raise ValueError(f"{key} must be at least {low}, got {getattr(config, key)}")
