"""Build one shard: read and check its labels and images, derive labels, write.

``run_shard`` runs in a worker: a process on this machine or on a cluster that sees the same
folders. A task carries a job that provides the labels: sources with one file per image parse it in
the worker, others send labels from memory. Workers do not import torch.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float

from model.records import Count, as_record
from pipeline.store.errors import StoreError
from pipeline.store.schema import LABELS, OPTIONAL_LABELS, StoreAttributes
from preprocess.builder.plan import StorePlan
from preprocess.builder.report.facts import Residuals, residual_counts
from preprocess.camera import project
from preprocess.images.images import (
    BadImage,
    ImageWork,
    ShardImages,
    bad_image_sentence,
    shard_images,
)
from preprocess.labels.quality import UNREADABLE, derive, joint_bbox
from preprocess.records import LabelJob, LabelStack, Lens, SourceError

if TYPE_CHECKING:
    from model.mano.files import ManoModels
    from preprocess.labels.action import SurfacePoints
    from preprocess.labels.contact import DerivedObjects

_ROUNDED: Final = tuple(
    spec.name
    for spec in (*LABELS, *OPTIONAL_LABELS)
    if spec.name in {field.name for field in fields(LabelStack)} and spec.dtype == "float32"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """Everything a worker needs for one shard."""

    store: Path
    root: Path
    shard: int
    first_row: int
    attributes: StoreAttributes
    """Store attributes without their tables, which can be large: a shard only needs object names.
    """
    object_names: list[str]
    images: list[str]
    """Image paths relative to ``root``."""
    image_bytes: np.ndarray
    """Planned file sizes, bytes."""
    label_job: LabelJob
    indices: dict[str, np.ndarray]
    """``official_idx`` and the other int32 columns of the plan."""
    work: ImageWork
    lenses: list[Lens | None] | None
    """Lens per image; None if no image is undistorted."""
    region: str
    """Crop region of a recoded image: ``frame``, ``hands`` or ``hand_object``."""
    stop_at_bad_image: bool
    mano: Path | None
    left_as_shipped: bool
    pictures: tuple[str, ...]
    """Names in ``schema.PICTURES`` to store."""
    optional: tuple[str, ...]
    """Names in ``schema.OPTIONAL_LABELS`` to store."""
    read_picture: Callable[[Path, str, str], np.ndarray | None] | None
    """``DatasetSource.picture``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardContent:
    """The content of a shard in memory."""

    images: ShardImages
    columns: dict[str, np.ndarray]
    """Every array of ``schema.LABELS``, and the task's optional ones, in the store's dtype."""
    labels: LabelStack
    """Labels from the source, in official pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """Statistics of one shard for the report. Plain values: the build journal stores it as JSON."""

    shard: int
    num_rows: int
    num_bytes: int
    bad_images: list[BadImage]
    processes: dict[str, int]
    """Number of stored images by JPEG coding process."""
    max_residual_m: float | None
    """Largest ``vertices_check_m``; None if nothing was checked."""
    max_refit_m: float | None
    """Largest ``refit_error_m``; None if no left hand was refitted."""
    residuals: Residuals
    object_rows: dict[str, int]
    """Number of rows with a pose, by object."""


def run_shard(task: ShardTask) -> ShardResult:
    """Write one shard and its rows.

    Raises:
        SourceError: If labels or images are broken or changed since the plan, or an image is bad
            and the task stops at bad images.
        StoreError: If the store cannot be written; an unfinished shard leaves no files behind.
    """
    # Slow to import, and the CLI imports this module's types for every command.
    from pipeline.store.pictures import write_pictures
    from pipeline.store.writer import write_image_shard, write_rows

    content = shard_content(task)
    images, columns = content.images, content.columns
    if images.bad and task.stop_at_bad_image:
        raise SourceError(bad_image_sentence(task.attributes.dataset, task.root, images.bad))
    try:
        offset, length, crc32c = write_image_shard(
            task.store, task.shard, images.payloads, task.attributes
        )
        arrays: dict[str, np.ndarray] = {
            "image/offset": offset,
            "image/length": length,
            "image/crc32c": crc32c,
            "image/size_hw": images.size_hw,
        }
        arrays |= {f"labels/{name}": values for name, values in columns.items()}
        write_rows(task.store, task.shard, arrays)
        for name in task.pictures:
            pictures = task_pictures(task, name)
            write_pictures(task.store, task.shard, name, pictures, task.attributes)
    except OSError as error:
        raise StoreError(
            f"shard {task.shard} of {task.store} cannot be written ({error.strerror or error}); "
            "free disk space or fix the disk and run the same command again: finished shards are "
            "kept"
        ) from error
    return _result(task, content, int(length.sum(dtype=np.int64)))


def task_pictures(task: ShardTask, name: str) -> Iterator[np.ndarray | None]:
    """Yield the depth map or segmentation mask of every row of a shard."""
    assert task.read_picture is not None
    for image in task.images:
        yield task.read_picture(task.root, image, name)


def _result(task: ShardTask, content: ShardContent, num_bytes: int) -> ShardResult:
    check, refit = content.labels.vertices_check_m, content.labels.refit_error_m
    has = content.columns["has_object"]
    ids = content.columns["object_id"]
    return ShardResult(
        shard=task.shard,
        num_rows=len(task.images),
        num_bytes=num_bytes,
        bad_images=content.images.bad,
        processes=content.images.processes,
        max_residual_m=_largest(check),
        max_refit_m=_largest(np.where(refit > 0, refit, np.nan)),
        residuals=residual_counts(check, refit),
        object_rows={
            name: int(((ids == i) & has).any(-1).sum()) for i, name in enumerate(task.object_names)
        },
    )


def _largest(values: np.ndarray) -> float | None:
    return float(np.nanmax(values)) if np.isfinite(values).any() else None


# --- content --------------------------------------------------------------------------------------


def shard_content(task: ShardTask) -> ShardContent:
    """Return the content of a shard without writing it.

    Raises:
        SourceError: If labels or images are broken, or images changed since the plan.
    """
    read = functools.partial(
        shard_images,
        task.attributes.dataset,
        task.root,
        task.images,
        task.image_bytes,
        task.first_row,
        task.work,
    )
    if task.region == "frame":
        # Label files are parsed while the images are read.
        with ThreadPoolExecutor(1) as reader:
            under_way = reader.submit(read, None, task.lenses)
            labels = task.label_job()
            images = under_way.result()
    else:
        labels = task.label_job()
        in_files = to_stored_pixels(labels, labels.A_file_from_raw)
        regions = region_boxes(in_files, _object_points(task), region=task.region)
        images = read(regions, task.lenses)
    return ShardContent(images=images, columns=label_columns(task, labels, images), labels=labels)


def label_columns(
    task: ShardTask, labels: LabelStack, images: ShardImages
) -> dict[str, np.ndarray]:
    """Return every array of ``schema.LABELS`` for the rows of a shard, in the store's dtype.

    Masks, flags, boxes and contact are derived from values rounded to the store's dtype, so that a
    reader derives the same ones.
    """
    A_stored_from_raw = _composed(images.A_stored_from_file, labels.A_file_from_raw)
    labels = to_stored_pixels(labels, A_stored_from_raw)
    rounded: dict[str, np.ndarray] = {
        name: getattr(labels, name).astype(np.float32).astype(np.float64) for name in _ROUNDED
    }
    labels = replace(labels, **rounded)
    derived = derive(labels, images.size_hw)
    objects = _derive_objects(task, labels)
    has_mano = derived.has_mano[..., None]
    hidden = replace(
        labels,
        joints_3d=np.where(derived.joint_valid[..., None], labels.joints_3d, np.nan),
        theta=np.where(has_mano, labels.theta, np.nan),
        transl=np.where(has_mano, labels.transl, np.nan),
        root_rest=np.where(has_mano, labels.root_rest, np.nan),
        beta=np.where(derived.has_beta[..., None], labels.beta, np.nan),
        object_pose=np.where(objects.has_object[..., None, None], labels.object_pose, np.nan),
    )
    values: dict[str, Any] = {field.name: getattr(hidden, field.name) for field in fields(hidden)}
    for found in (derived, objects):
        values |= {field.name: getattr(found, field.name) for field in fields(found)}
    values |= task.indices
    values["A_stored_from_raw"] = A_stored_from_raw
    values["quality"] = derived.quality | images.flags
    values["sample_ok"] = images.flags & np.uint32(UNREADABLE) == 0
    specs = [*LABELS, *(spec for spec in OPTIONAL_LABELS if spec.name in task.optional)]
    return {spec.name: np.asarray(values[spec.name]).astype(spec.dtype) for spec in specs}


def to_stored_pixels(
    labels: LabelStack, A_stored_from_raw: Float[np.ndarray, "n 2 3"]
) -> LabelStack:
    """Transform labels from raw to stored pixels: ``K' = A K``, boxes and 2D joints moved."""
    A = _homogeneous(A_stored_from_raw)

    def moved(points: Float[np.ndarray, "n 2 k 2"]) -> Float[np.ndarray, "n 2 k 2"]:
        turned = np.einsum("nij,nhcj->nhci", A[:, :2, :2], points)
        return np.asarray(turned + A[:, None, None, :2, 2])

    corners = labels.bbox_xyxy.reshape(-1, 2, 2, 2)
    return replace(
        labels,
        K=A @ labels.K,
        bbox_xyxy=moved(corners).reshape(labels.bbox_xyxy.shape),
        joints_2d=moved(labels.joints_2d),
    )


def _composed(
    A: Float[np.ndarray, "n 2 3"], B: Float[np.ndarray, "n 2 3"]
) -> Float[np.ndarray, "n 2 3"]:
    """Return the affine maps that apply ``B``, then ``A``."""
    return np.asarray((_homogeneous(A) @ _homogeneous(B))[:, :2])


def _homogeneous(A: Float[np.ndarray, "n 2 3"]) -> Float[np.ndarray, "n 3 3"]:
    full = np.tile(np.eye(3), (len(A), 1, 1))
    full[:, :2] = A
    return full


def region_boxes(
    labels: LabelStack, points: "Mapping[int, SurfacePoints]", *, region: str
) -> Float[np.ndarray, "n 4"]:
    """Return the box that a recoded image must contain; NaN where nothing is labelled.

    Args:
        labels: Labels of the rows, in the pixels of the returned box.
        points: Object surface points by object id.
        region: ``hands``, or ``hand_object`` for hands and objects.
    """
    from preprocess.labels.action import object_bbox_xyxy

    valid = labels.joint_valid & np.isfinite(labels.joints_3d).all(-1)
    joints_2d = project(np.where(valid[..., None], labels.joints_3d, np.nan), labels.K[:, None])
    joints_2d = np.where(valid[..., None], joints_2d, labels.joints_2d)
    official = np.isfinite(labels.bbox_xyxy)
    boxes = [np.where(official, labels.bbox_xyxy, joint_bbox(joints_2d))]
    if region == "hand_object":
        boxes.append(object_bbox_xyxy(labels, points))
    every = np.concatenate(boxes, axis=1)
    seen = np.isfinite(every).all(-1, keepdims=True)
    low = np.where(seen, every[..., :2], np.inf).min(1)
    high = np.where(seen, every[..., 2:], -np.inf).max(1)
    return np.where(seen.any(1), np.concatenate([low, high], axis=-1), np.nan)


# --- objects --------------------------------------------------------------------------------------


def _derive_objects(task: ShardTask, labels: LabelStack) -> "DerivedObjects":
    from preprocess.labels.contact import derive_objects, hand_vertices

    # Parallelism is across shards; igl reads this at its first call.
    os.environ.setdefault("IGL_NUM_THREADS", "1")
    vertices = None
    if task.mano is not None and (labels.object_id >= 0).any():
        mano = _mano(task.mano, task.attributes.mano_sha256)
        vertices = hand_vertices(labels, mano, left_as_shipped=task.left_as_shipped)
    return derive_objects(labels, vertices, _meshes(task), _object_points(task))


def _object_points(task: ShardTask) -> "Mapping[int, SurfacePoints]":
    from preprocess.labels.action import SurfacePoints

    shapes = _shapes(task.store, task.attributes.plan_sha256, tuple(task.object_names))
    return {
        i: SurfacePoints(points=shape.points.astype(np.float64), part_id=shape.part_id)
        for i, shape in shapes.items()
    }


def _meshes(task: ShardTask) -> Mapping[int, Any]:
    from preprocess.objects.shapes import Mesh

    shapes = _shapes(task.store, task.attributes.plan_sha256, tuple(task.object_names))
    return {
        i: Mesh(
            vertices=shape.vertices.astype(np.float64),
            faces=shape.faces.astype(np.int64),
            part=shape.vertex_part,
        )
        for i, shape in shapes.items()
    }


@functools.lru_cache(maxsize=2)
def _shapes(store: Path, plan_sha256: str, names: tuple[str, ...]) -> dict[int, Any]:
    """Return the shapes of a store, cached per process; ``plan_sha256`` identifies the build."""
    from pipeline.store.objects import object_names, read_object

    there = set(object_names(store))
    return {i: read_object(store, name) for i, name in enumerate(names) if name in there}


@functools.lru_cache(maxsize=2)
def _mano(folder: Path, sha256: str) -> "ManoModels":
    from model.mano.files import load_mano

    models = load_mano(folder)
    if models.sha256 != sha256:
        raise StoreError(
            f"MANO in {folder} has hash {models.sha256[:12]} here, the build started with "
            f"{sha256[:12]}; every worker must see the same files"
        )
    return models


# --- tasks ----------------------------------------------------------------------------------------


def plan_indices(plan: StorePlan, rows: slice) -> dict[str, np.ndarray]:
    """Return the int32 columns of the plan for some rows."""
    names = ("sequence_idx", "camera_idx", "subject_idx", "frame_idx", "official_idx")
    return {name: getattr(plan, name)[rows] for name in names}


def result_to_json(result: ShardResult) -> dict[str, Any]:
    """Convert a result to JSON values; the inverse of ``result_from_json``."""
    value = asdict(result)
    for name in ("vertices", "refit"):
        value["residuals"][name] = value["residuals"][name].tolist()
    return value


def result_from_json(value: Mapping[str, Any]) -> ShardResult:
    """Convert JSON values to a result.

    Raises:
        ValueError: If a field is missing or of another type.
    """
    found = as_record(_PlainResult, dict(value))
    known = {f.name: getattr(found, f.name) for f in fields(found)}
    known["residuals"] = Residuals(
        edges_mm=found.residuals.edges_mm,
        vertices=np.array(found.residuals.vertices, np.int64),
        refit=np.array(found.residuals.refit, np.int64),
    )
    return ShardResult(**known)


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlainResiduals:
    edges_mm: tuple[float, ...]
    vertices: list[Count]
    refit: list[Count]


@dataclass(frozen=True, kw_only=True, slots=True)
class _PlainResult:
    """A ``ShardResult`` as JSON."""

    shard: Count
    num_rows: Count
    num_bytes: Count
    bad_images: list[BadImage]
    processes: dict[str, Count]
    max_residual_m: float | None
    max_refit_m: float | None
    residuals: _PlainResiduals
    object_rows: dict[str, Count]
