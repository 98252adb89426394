"""What can be set for each command; a field's docstring is its ``--help``."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from omegaconf import MISSING

SAMPLE_DATASETS: Final = ("freihand", "interhand26m")
"""Formats that ``make-sample`` writes."""


class OnBadImage(Enum):
    """What a build does with an image that is missing, cut off or not a JPEG."""

    error = "error"
    flag = "flag"


@dataclass(kw_only=True, slots=True)
class BuildConfig:
    """A raw dataset becomes one store. Treat as read-only."""

    dataset: str = MISSING
    """Which dataset ``root`` holds: freihand or interhand26m."""
    root: str = MISSING
    """Folder of the unpacked dataset: FreiHAND_pub_v2, or the one with images and annotations."""
    out: str = MISSING
    """Folder of the store; created, conventionally named <dataset>.zarr."""
    mano: str | None = None
    """Folder with MANO_RIGHT.npz and MANO_LEFT.npz; else HANDLOOM_MANO, else no MANO labels."""
    shard_rows: int = 2048
    """Images per shard file; one process writes one shard at a time."""
    workers: int = 0
    """Processes; 0 takes one per core, 1 stays in this process. Does not change the result."""
    overwrite: bool = False
    """Replace a finished store at ``out``; an unfinished one is always replaced."""
    on_bad_image: OnBadImage = OnBadImage.error
    """At a missing or damaged image: stop (error), or keep its row without an image (flag)."""

    def __post_init__(self) -> None:
        _require_text(self, "dataset", "root", "out")
        _require_at_least(self, shard_rows=1, workers=0)


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
    """Folder of the raw dataset: also compare every image with its file, and labels again."""
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
    """Which format: freihand or interhand26m."""
    out: str = MISSING
    """Folder to create; gets the dataset and the stand-in MANO files (out/mano)."""
    num: int = 256
    """FreiHAND: training poses, each written as four images. InterHand2.6M: training images."""
    num_eval: int | None = None
    """FreiHAND: evaluation images. InterHand2.6M: images of each of val and test. null: num // 8,
    at least a few."""
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
