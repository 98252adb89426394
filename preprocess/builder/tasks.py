"""Turn a build configuration into shard tasks: settings, store attributes, one task per shard."""

import dataclasses
import shlex
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.app.cli import compose
from pipeline.store.schema import FLAGS, FORMAT_VERSION, StoreAttributes
from preprocess.builder.plan import StorePlan, make_plan
from preprocess.builder.shard import ShardTask, plan_indices
from preprocess.config import (
    BuildConfig,
    ImageCheck,
    ImageEncoding,
    JpegProcess,
    OnBadImage,
    Region,
)
from preprocess.images.header import SizeLimit
from preprocess.images.images import ImageWork
from preprocess.records import DatasetSource, LabelStack, Lens, SourceError

if TYPE_CHECKING:
    from model.mano.files import ManoModels

_NOT_CONTENT: Final = frozenset({"workers", "overwrite", "executor"})
"""Options that do not affect the result."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Tasks:
    """Everything from which the shard tasks of a build are created."""

    config: BuildConfig
    source: DatasetSource
    plan: StorePlan
    attributes: StoreAttributes
    work: ImageWork
    store: Path
    mano: Path | None
    """Folder of the MANO files."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """Return the names in ``schema.PICTURES`` that the build stores."""
        chosen = {"depth_mm": self.config.depth, "segmentation": self.config.segmentation}
        return tuple(name for name, wanted in chosen.items() if wanted)

    def _lenses(self, official_idx: list[int]) -> list[Lens | None] | None:
        """Return the lens of each of some images; None if nothing is undistorted."""
        source = self.source
        if not straightens(self.config, source) or source.lens_of is None:
            return None
        return [None if k < 0 else source.lenses[k] for k in source.lens_of[official_idx].tolist()]

    def task(self, shard: int, *, with_labels: bool = True) -> ShardTask:
        """Return the task of a shard.

        Args:
            shard: Shard number.
            with_labels: False: a task that cannot run, for comparing or hashing the other fields.
        """
        rows = self.plan.rows_of_shard(shard)
        official = self.plan.official_idx[rows].tolist()
        return ShardTask(
            store=self.store,
            root=self.source.root,
            shard=shard,
            first_row=rows.start,
            attributes=dataclasses.replace(self.attributes, tables={}, extra={}, found_counts={}),
            object_names=self.attributes.tables["object"],
            images=self.plan.image[rows],
            image_bytes=self.plan.image_bytes[rows],
            label_job=self.source.label_job(official) if with_labels else _no_labels,
            indices=plan_indices(self.plan, rows),
            work=self.work,
            lenses=self._lenses(official),
            region=self.config.image.region.name if self.work.recode else "frame",
            stop_at_bad_image=self.config.on_bad_image is OnBadImage.error,
            mano=self.mano,
            left_as_shipped=self.source.left_as_shipped,
            pictures=self.pictures,
            optional=self.source.optional_labels,
            read_picture=self.source.picture,
        )


def straightens(config: BuildConfig, source: DatasetSource) -> bool:
    """Return whether a build undistorts images."""
    return bool(source.lenses) and config.image.undistort


def _no_labels() -> LabelStack:
    raise AssertionError("this task is only compared")


def make_tasks(
    config: BuildConfig, source: DatasetSource, mano_folder: Path | None, mano: "ManoModels | None"
) -> Tasks:
    """Plan a build.

    Raises:
        SourceError: If the source has no rows, or lacks data that the configuration requires.
    """
    work = image_work(config, source)
    plan = make_plan(source, shard_rows=config.shard_rows, may_grow=work.recode or work.baseline)
    return Tasks(
        config=config,
        source=source,
        plan=plan,
        attributes=store_attributes(config, source, plan, work, mano),
        work=work,
        store=Path(config.out).expanduser(),
        mano=mano_folder,
    )


def load_mano_of(path: str | None) -> "tuple[Path, ManoModels] | tuple[None, None]":
    """Return the MANO folder of a ``mano=`` option (or the environment) and its models.

    Raises:
        FileNotFoundError: If the given folder has no MANO files.
    """
    from model.mano.files import find_mano, load_mano

    folder = find_mano(path)
    return (None, None) if folder is None else (folder, load_mano(folder))


def built_with(attributes: StoreAttributes) -> BuildConfig:
    """Return the settings that a store was built with, parsed from its recorded command."""
    words = shlex.split(attributes.command)
    config = compose(BuildConfig, words[words.index("build-cache") + 1 :])
    assert isinstance(config, BuildConfig)
    return config


def image_work(config: BuildConfig, source: DatasetSource) -> ImageWork:
    """Return the image settings, resolving ``auto`` by the file names.

    Raises:
        SourceError: If the images cannot be passed through, or the dataset lacks depth or
            segmentation images.
    """
    image = config.image
    num_png = sum(name.lower().endswith(".png") for name in source.rows.image)
    if num_png and image.encoding is ImageEncoding.passthrough:
        raise SourceError(
            f"{source.dataset}: {num_png} of {len(source.rows)} images below {source.root} are "
            "PNGs, which a store cannot hold unchanged; pass image.encoding=recode"
        )
    straight = straightens(config, source)
    if straight and image.encoding is ImageEncoding.passthrough:
        raise SourceError(
            f"{source.dataset}: some images have lens distortion, and the labels do not; pass "
            "image.encoding=recode, which undistorts them, or image.undistort=false to keep "
            "distorted pixels that do not match the labels"
        )
    if (config.depth or config.segmentation) and source.picture is None:
        raise SourceError(
            f"{source.dataset} has no depth or segmentation images to store; leave out "
            "depth= and segmentation="
        )
    recode = image.encoding is ImageEncoding.recode or (
        image.encoding is ImageEncoding.auto
        and (num_png > 0 or straight or image.region is not Region.frame or image.max_px > 0)
    )
    return ImageWork(
        recode=recode,
        baseline=image.jpeg is JpegProcess.baseline and not recode,
        quality=image.quality,
        max_px=image.max_px,
        margin=image.margin,
        decode=image.check is ImageCheck.decode,
        limit=SizeLimit(side_px=image.limit_side_px, megapixels=image.limit_megapixels),
    )


def store_attributes(
    config: BuildConfig,
    source: DatasetSource,
    plan: StorePlan,
    work: ImageWork,
    mano: "ManoModels | None",
) -> StoreAttributes:
    """Return the attributes of the store before its images are read."""
    extra: dict[str, Any] = {
        "on_bad_image": config.on_bad_image.name,
        "official_boxes": source.official_boxes,
        "notes": source.notes,
    }
    if source.synthetic:
        extra["synthetic"] = True
    if work.recode:
        extra["recode"] = {
            "region": config.image.region.name,
            "margin": work.margin,
            "max_px": work.max_px,
            "quality": work.quality,
            "undistort": straightens(config, source),
        }
    return StoreAttributes(
        format=FORMAT_VERSION,
        dataset=source.dataset,
        joint_set=source.joint_set.name,
        num_rows=plan.num_rows,
        shard_rows=plan.shard_rows,
        shard_capacity_bytes=plan.shard_capacity_bytes,
        image_encoding="recode" if work.recode else "passthrough",
        licence=source.licence,
        citation=source.citation,
        official_counts=source.official_counts,
        found_counts={name: len(rows) for name, rows in plan.splits.items()},
        flags=FLAGS,
        flag_counts={},
        tables={**plan.tables, "object": [file.name for file in source.objects]},
        plan_sha256=plan.sha256,
        content_sha256="",
        mano_sha256="" if mano is None else mano.sha256,
        command=build_command(config),
        finished=False,
        extra=extra,
    )


def build_command(config: BuildConfig) -> str:
    """Return the command line that rebuilds the same store, with absolute paths.

    It overwrites the store: errors about a damaged or unfinished store suggest it as the fix.
    """
    words = [*_words(config, ""), "overwrite=true"]
    return shlex.join(["python", "-m", "preprocess", "build-cache", *words])


def _words(config: Any, prefix: str) -> Iterator[str]:
    """Yield ``key=value`` for every field that differs from its default and affects the content."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _NOT_CONTENT:
            continue
        if dataclasses.is_dataclass(value):
            yield from _words(value, f"{prefix}{field.name}.")
        elif field.name in ("root", "out", "mano") and value is not None:
            yield f"{field.name}={Path(value).expanduser().absolute()}"
        elif value != field.default:
            shown = value.name if isinstance(value, Enum) else value
            yield f"{prefix}{field.name}={str(shown).lower() if shown is True else shown}"
