"""One shard, self-contained: read its images, check them, derive labels, write.

``run_shard`` is what a worker process runs. A task carries its labels, so no worker parses the
annotations again (the JSON of InterHand2.6M's train split alone is about a gigabyte), and the same
task can run on any machine that sees both folders. Workers import no torch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.store.schema import FLAGS, LABELS, StoreAttributes
from preprocess.jpeg import JpegHeader, JpegProblem, read_header
from preprocess.plan import Plan
from preprocess.quality import LabelStack, derive
from preprocess.records import Labels, SourceError

_ROUNDED: Final = tuple(
    spec.name
    for spec in LABELS
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
    images: list[str]
    """Relative to ``root``."""
    image_bytes: np.ndarray
    """Planned sizes."""
    labels: LabelStack
    indices: dict[str, np.ndarray]
    """``official_idx`` and the other int32 columns of the plan."""
    stop_at_bad_image: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class BadImage:
    """An image that a store keeps no bytes of."""

    row: int
    image: str
    flag: str
    reason: str
    """Completes "the image ...": ``is cut off: ...``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardResult:
    """What one shard adds to the report."""

    shard: int
    quality: np.ndarray
    num_bytes: int
    bad_images: list[BadImage]
    processes: dict[str, int]
    """Images by JPEG coding process."""
    max_residual_m: float
    """Largest ``vertices_check_m``; NaN if nothing was checked."""


def run_shard(task: ShardTask) -> ShardResult:
    """Write one shard and its rows.

    Raises:
        SourceError: If an image changed since the plan, or is bad and the task stops at it.
    """
    # Heavy, and the front door reads this module's types before it knows that it will build.
    from pipeline.store.writer import write_image_shard, write_rows

    payloads: list[bytes] = []
    size_hw = np.zeros((len(task.images), 2), np.uint16)
    image_flags = np.zeros(len(task.images), np.uint32)
    processes: Counter[str] = Counter()
    bad: list[BadImage] = []
    for i, name in enumerate(task.images):
        data, header = read_image(task.root / name)
        if isinstance(header, JpegProblem):
            data = b""
            image_flags[i] = FLAGS[header.flag]
            row = task.first_row + i
            bad.append(BadImage(row=row, image=name, flag=header.flag, reason=header.reason))
        else:
            if len(data) != task.image_bytes[i]:
                raise SourceError(
                    f"{task.attributes.dataset}: {task.root / name} changed while the store was "
                    f"built: planned {task.image_bytes[i]} bytes, found {len(data)}; build again"
                )
            size_hw[i] = header.height, header.width
            processes[header.process] += 1
        payloads.append(data)
    if bad and task.stop_at_bad_image:
        raise SourceError(bad_image_sentence(task.attributes.dataset, task.root, bad))
    offset, length, crc32c = write_image_shard(task.store, task.shard, payloads, task.attributes)
    columns = label_columns(task.labels, size_hw, task.indices, image_flags)
    arrays: dict[str, np.ndarray] = {
        "image/offset": offset,
        "image/length": length,
        "image/crc32c": crc32c,
        "image/size_hw": size_hw,
    }
    arrays |= {f"labels/{name}": values for name, values in columns.items()}
    write_rows(task.store, task.shard, arrays)
    checked = task.labels.vertices_check_m
    return ShardResult(
        shard=task.shard,
        quality=columns["quality"],
        num_bytes=int(length.sum(dtype=np.int64)),
        bad_images=bad,
        processes=dict(processes),
        max_residual_m=float(np.nanmax(checked)) if np.isfinite(checked).any() else float("nan"),
    )


def read_image(path: Path) -> tuple[bytes, JpegHeader | JpegProblem]:
    """Return the bytes of a file and its header, or what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        return b"", JpegProblem(flag="image_missing", reason=reason)
    return data, read_header(data)


def bad_image_sentence(dataset: str, root: Path, bad: Sequence[BadImage]) -> str:
    """Return why a build stops at bad images, and the two ways on."""
    more = f" ({len(bad) - 1} more in the same shard)" if len(bad) > 1 else ""
    return (
        f"{dataset}: the image {root / bad[0].image} {bad[0].reason}{more}; copy it again, or pass "
        "on_bad_image=flag to keep its row without an image"
    )


def stack_labels(labels: Callable[[int], Labels], official_idx: Sequence[int]) -> LabelStack:
    """Return the labels of several rows, stacked."""
    rows = [labels(int(i)) for i in official_idx]
    return LabelStack(
        **{field.name: np.stack([getattr(r, field.name) for r in rows]) for field in fields(Labels)}
    )


def plan_indices(plan: Plan, rows: slice) -> dict[str, np.ndarray]:
    """Return the int32 columns of the plan for some rows."""
    names = ("sequence_idx", "camera_idx", "subject_idx", "frame_idx", "official_idx")
    return {name: getattr(plan, name)[rows] for name in names}


def label_columns(
    labels: LabelStack,
    size_hw: np.ndarray,
    indices: dict[str, np.ndarray],
    image_flags: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return every array of ``schema.LABELS`` for some rows, in the dtype of the store.

    Masks, flags and boxes are derived from the values as rounded for the store, so that a reader
    derives the same ones.
    """
    rounded: dict[str, np.ndarray] = {
        name: getattr(labels, name).astype(np.float32).astype(np.float64) for name in _ROUNDED
    }
    labels = replace(labels, **rounded)
    derived = derive(labels, size_hw)
    has_mano = derived.has_mano[..., None]
    hidden = replace(
        labels,
        joints_3d=np.where(derived.joint_valid[..., None], labels.joints_3d, np.nan),
        theta=np.where(has_mano, labels.theta, np.nan),
        transl=np.where(has_mano, labels.transl, np.nan),
        root_rest=np.where(has_mano, labels.root_rest, np.nan),
        beta=np.where(derived.has_beta[..., None], labels.beta, np.nan),
    )
    values: dict[str, Any] = {field.name: getattr(hidden, field.name) for field in fields(hidden)}
    values |= {field.name: getattr(derived, field.name) for field in fields(derived)}
    values |= indices
    values["A_stored_from_raw"] = np.broadcast_to(np.eye(2, 3), (len(size_hw), 2, 3))
    values["quality"] = derived.quality | image_flags
    values["sample_ok"] = image_flags == 0
    return {spec.name: np.asarray(values[spec.name]).astype(spec.dtype) for spec in LABELS}
