"""Configuration of the preprocessing commands; a field's docstring is its ``--help`` text."""

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Final

from omegaconf import MISSING

from model.fields import check_fields

SAMPLE_DATASETS: Final = ("freihand", "interhand26m", "dexycb", "ho3d", "arctic")
"""Formats that ``make-sample`` writes."""


class OnBadImage(Enum):
    """How a build handles an image that is missing, truncated or not a JPEG."""

    error = "error"
    flag = "flag"


class ImageEncoding(Enum):
    """How image files are encoded in the store."""

    auto = "auto"
    passthrough = "passthrough"
    recode = "recode"


class JpegProcess(Enum):
    """JPEG coding process of the stored files."""

    asis = "asis"
    baseline = "baseline"


class ImageCheck(Enum):
    """How JPEG files are checked for damage."""

    header = "header"
    decode = "decode"


class Region(Enum):
    """Crop region of a recoded image."""

    frame = "frame"
    hands = "hands"
    hand_object = "hand_object"


class ExecutorKind(Enum):
    """Where shards are built."""

    local = "local"
    dask = "dask"


@dataclass(kw_only=True, slots=True)
class ImageConfig:
    """Image encoding, cropping and undistortion."""

    encoding: ImageEncoding = ImageEncoding.auto
    """passthrough: store the file bytes unchanged. recode: decode, crop and re-encode as baseline
    JPEG 4:2:0. auto: passthrough for JPEG datasets, recode for PNG or lens-distorted ones."""
    jpeg: JpegProcess = JpegProcess.asis
    """asis: keep the coding process of each file. baseline: losslessly transcode progressive files
    to baseline, which hardware JPEG decoders require (passthrough only)."""
    region: Region = Region.frame
    """recode: crop to the whole frame, the hands, or the hands and objects."""
    margin: float = 1.5
    """recode with a crop: side length of the crop as a multiple of the region's bounding box."""
    max_px: int = 0
    """recode: downscale so that the longer side is at most this many pixels; 0 keeps the scale."""
    quality: int = 95
    """recode: JPEG quality, 1..100."""
    check: ImageCheck = ImageCheck.decode
    """passthrough: decode each file to find damaged pixels and images of one colour (decode, 0.1 to
    0.8 ms of one core a file), or only look at its header and for holes of zeros (header). recode
    decodes anyway."""
    limit_side_px: int = 16_384
    """Longest side of an image file, pixels; a larger one counts as damaged and is not decoded."""
    limit_megapixels: float = 200.0
    """Size of an image file, million pixels; a larger one counts as damaged and is not decoded."""
    undistort: bool = True
    """recode: undistort images with lens distortion (arctic's view 0). false keeps the distorted
    pixels, on which the projected labels are misaligned."""

    def __post_init__(self) -> None:
        check_fields(
            self,
            "image",
            max_px=(0, 65_535),
            quality=(1, 100),
            margin=(1, 10),
            limit_side_px=(1, 65_500),
            limit_megapixels=(0.01, 4290),
        )
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
    """Executor that builds the shards."""

    kind: ExecutorKind = ExecutorKind.local
    """local: processes on this machine. dask: workers of a Dask cluster, all of which must see
    ``root``, ``out`` and ``mano`` at the same paths (pip install distributed)."""
    address: str | None = None
    """executor=dask: address of the scheduler, such as tcp://node1:8786."""

    def __post_init__(self) -> None:
        check_fields(self, "executor")
        if self.kind is ExecutorKind.dask and not self.address:
            raise ValueError("executor=dask needs executor.address=tcp://HOST:PORT")
        if self.kind is ExecutorKind.local and self.address:
            raise ValueError("executor.address is for executor=dask")


@dataclass(kw_only=True, slots=True)
class BuildConfig:
    """Settings of ``build-cache``: convert a raw dataset to one store. Treat as read-only."""

    ALIASES: ClassVar[dict[str, str]] = {"executor": "executor.kind", "jpeg": "image.jpeg"}

    dataset: str = MISSING
    """Which dataset ``root`` holds: freihand, interhand26m, dexycb, ho3d, arctic; folder: your own
    images with annotations.jsonl; PACKAGE.MODULE: a reader of your own."""
    root: str = MISSING
    """Folder of the unpacked dataset: FreiHAND_pub_v2; HO3D_v2 or HO3D_v3; DexYCB's folder of
    subjects; InterHand2.6M's with images and annotations; ARCTIC's with images (or
    cropped_images), raw_seqs and meta; your own with annotations.jsonl."""
    out: str = MISSING
    """Output folder of the store; created. By convention <dataset>.zarr."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz. null: the environment variable HANDLOOM_MANO;
    without either, the store has no MANO labels."""
    shard_rows: int = 2048
    """Images per shard file; one process writes one shard at a time. Reduce it to save memory."""
    workers: int = 0
    """Worker processes; 0: one per core, 1: run in this process. Does not affect the result. Each
    holds the JPEGs of one shard in memory: about 200 MB for shard_rows=2048 and 100 KB files."""
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Where the shards are built. Does not affect the result."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How images are encoded, cropped and undistorted."""
    depth: bool = False
    """Also store the depth maps, in millimetres (dexycb, ho3d)."""
    segmentation: bool = False
    """Also store the segmentation masks (dexycb, ho3d)."""
    overwrite: bool = False
    """Replace a finished store at ``out``. An unfinished build is resumed either way: finished
    shards that match these settings are kept."""
    on_bad_image: OnBadImage = OnBadImage.error
    """For a missing or damaged image: stop the build (error), or keep its row without an image and
    set its quality flag (flag)."""

    def __post_init__(self) -> None:
        _require_text(self, "dataset", "root", "out")
        check_fields(self, shard_rows=(1, math.inf), workers=(0, 4096))
        if (self.depth or self.segmentation) and (
            self.image.region is not Region.frame or self.image.max_px
        ):
            raise ValueError(
                "depth and segmentation have the official pixels; they go with image.region=frame "
                "and image.max_px=0"
            )


@dataclass(kw_only=True, slots=True)
class CheckConfig:
    """Settings of ``check``: look at a raw dataset before a build. Treat as read-only."""

    dataset: str = MISSING
    """Which dataset ``root`` holds, as for build-cache; folder for your own images."""
    root: str = MISSING
    """Folder of the unpacked dataset, or of your images with their annotations."""
    mano: str | None = None
    """MANO folder. null: the environment variable HANDLOOM_MANO; without either, MANO parameters
    are not looked at."""
    out: str = "check.png"
    """Contact sheet to write, .png or .jpg."""
    num: int = 16
    """Number of images on the sheet, evenly spaced over the dataset."""
    tile_px: int = 320
    """Longer side of each image on the sheet, pixels."""

    def __post_init__(self) -> None:
        _require_text(self, "dataset", "root", "out")
        check_fields(self, num=(1, 1000), tile_px=(64, 8192))
        if not self.out.lower().endswith((".png", ".jpg", ".jpeg")):
            raise ValueError(f"out must end in .png or .jpg, got {self.out!r}")


@dataclass(kw_only=True, slots=True)
class ImportManoConfig:
    """Settings of ``import-mano``: convert MANO to plain .npz files. Treat as read-only."""

    path: str = MISSING
    """The downloaded mano_v1_2.zip, the folder it unpacks to, or a folder with MANO_RIGHT.npz and
    MANO_LEFT.npz, which are checked and copied."""
    out: str = MISSING
    """Output folder for MANO_RIGHT.npz and MANO_LEFT.npz; created. Pass it as mano= to the other
    commands."""
    overwrite: bool = False
    """Replace files at ``out`` whose content differs."""

    def __post_init__(self) -> None:
        check_fields(self)
        _require_text(self, "path", "out")


@dataclass(kw_only=True, slots=True)
class VerifyConfig:
    """Settings of ``verify-cache``: check every byte of a store. Treat as read-only."""

    store: str = MISSING
    """Folder of the store."""
    root: str | None = None
    """Folder of the raw dataset. If given, also compare every image with its file, every label
    with a fresh conversion, and labels that the dataset provides twice with each other (arctic's
    processed_seqs and splits)."""
    mano: str | None = None
    """MANO folder for the comparison with ``root``. null: the environment variable
    HANDLOOM_MANO."""
    relist: bool = False
    """If no problem is found, list the store's files anew. For a store that another tool rewrote
    (other chunks, the same content) or that an earlier release built."""
    check: ImageCheck = ImageCheck.decode
    """Beside the checksum of each image, decode it to find damage that its file already had
    (decode), or only look at its header and for holes of zeros (header). Recoded images are not
    decoded: the build did."""

    def __post_init__(self) -> None:
        check_fields(self)
        _require_text(self, "store")


@dataclass(kw_only=True, slots=True)
class ShowConfig:
    """Settings of ``show-cache``: draw a contact sheet of a store. Treat as read-only."""

    store: str = MISSING
    """Folder of the store."""
    out: str = "contact_sheet.png"
    """Image file to write, .png or .jpg."""
    num: int = 16
    """Number of random rows to show if ``rows`` is empty."""
    seed: int = 0
    """Random seed for sampling the rows if ``rows`` is empty."""
    rows: list[int] = field(default_factory=list)
    """Rows to show, such as [0,5,9]; empty: sample ``num`` at random."""
    split: str = "all"
    """Split to sample random rows from."""
    tile_px: int = 320
    """Longer side of each image on the sheet, pixels."""
    mano: str | None = None
    """MANO folder; also draws the hand vertices if the store was built with the same MANO. null:
    the environment variable HANDLOOM_MANO."""

    def __post_init__(self) -> None:
        _require_text(self, "store", "out", "split")
        check_fields(self, num=(1, math.inf), seed=(0, 2**63 - 1), tile_px=(64, 8192))
        if not self.out.lower().endswith((".png", ".jpg", ".jpeg")):
            raise ValueError(f"out must end in .png or .jpg, got {self.out!r}")


@dataclass(kw_only=True, slots=True)
class SampleConfig:
    """Settings of ``make-sample``: render a small synthetic dataset. Treat as read-only."""

    dataset: str = "freihand"
    """Official on-disk format to write: freihand, interhand26m, dexycb, ho3d or arctic."""
    out: str = MISSING
    """Folder to create; holds the dataset and synthetic MANO files (out/mano)."""
    num: int = 256
    """Dataset size. FreiHAND: training poses, each written as four images. InterHand2.6M and HO-3D:
    training images. DexYCB: images, rounded up to eight per time step. ARCTIC: images of the
    official set, nine per frame; about twenty more frames per sequence are not part of it."""
    num_eval: int | None = None
    """FreiHAND and HO-3D: evaluation images. InterHand2.6M: images in each of val and test. null:
    num // 8, at least a few. DexYCB and ARCTIC: not used, their splits are rules over the same
    images."""
    seed: int = 0
    """Random seed; the same seed gives the same files."""
    workers: int = 0
    """Worker processes; 0: one per core. Does not affect the result."""

    def __post_init__(self) -> None:
        _require_text(self, "dataset", "out")
        positive = dict.fromkeys(("num", "num_eval"), (1, math.inf))
        check_fields(self, **positive, seed=(0, 2**63 - 1), workers=(0, 4096))
        if self.dataset not in SAMPLE_DATASETS:
            raise ValueError(
                f"dataset must be one of {', '.join(SAMPLE_DATASETS)}, got {self.dataset!r}"
            )


def _require_text(config: Any, *keys: str) -> None:
    for key in keys:
        if not getattr(config, key):
            raise ValueError(f"{key} must not be empty, got {getattr(config, key)!r}")
