"""Views: the samples of a store, each a row, its hands and a square crop of the frame.

Shape legend: n = samples. The input square (``center_px``, ``size_px``) is what the network sees
without augmentation; the cached square has the same centre and ``margin`` times its side. Beyond
the frame the border pixel is repeated, in the cache and in the gather: unlike black padding it
adds no artificial edge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Final, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from model.geometry.crop import square_crop_affine
from model.hand import NUM_HANDS
from pipeline.config import ViewConfig, ViewKind
from pipeline.store.objects import acted_on
from pipeline.store.reader import Store
from pipeline.store.schema import FLAGS


@runtime_checkable
class SampleTable(Protocol):
    """A dataclass of tensors with one row per sample."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Table = TypeVar("Table", bound=SampleTable)


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewTable:
    """The samples of a view, in the split's order (hand view: right before left)."""

    row: Int64[Tensor, " n"]
    """Row of the store."""
    sample_id: Int64[Tensor, " n"]
    """Row times two plus the hand slot (hand view), or times two (other views)."""
    center_px: Float64[Tensor, "n 2"]
    """Centre of the input square, frame pixels."""
    size_px: Float64[Tensor, " n"]
    """Side of the input square, frame pixels."""
    A_cache_from_frame: Float64[Tensor, "n 2 3"]

    def __len__(self) -> int:
        return len(self.row)


def samples_at(table: Table, index: Int64[Tensor, " b"]) -> Table:
    """Return the samples of ``table`` at ``index``."""
    return map_table(table, lambda column: column.index_select(0, index))


def table_to(table: Table, device: torch.device) -> Table:
    """Return ``table`` on ``device``."""
    return map_table(table, lambda column: column.to(device))


def concatenated(tables: Sequence[Table]) -> Table:
    """Concatenate tables of one type."""
    if len(tables) == 1:
        return tables[0]
    names = column_names(tables[0])
    return replace(tables[0], **{n: torch.cat([getattr(t, n) for t in tables]) for n in names})


def column_names(table: Table) -> list[str]:
    """Return the names of a table's tensors; nested tables of a batch are left out."""
    return [f.name for f in fields(table) if isinstance(getattr(table, f.name), Tensor)]


def table_bytes(table: Table) -> int:
    """Return the memory of a table's tensors."""
    return sum(getattr(table, name).nbytes for name in column_names(table))


def split(table: Table, lengths: Sequence[int]) -> list[Table]:
    """Split a table into parts; inverts ``concatenated``."""
    names = column_names(table)
    parts = zip(*(getattr(table, n).split_with_sizes(lengths) for n in names), strict=True)
    return [type(table)(**dict(zip(names, part, strict=True))) for part in parts]


def map_table(table: Table, function: Callable[[Tensor], Tensor]) -> Table:
    """Return ``table`` with ``function`` applied to every column."""
    if hasattr(table, "mapped"):  # a table with nested tables
        mapped: Table = table.mapped(function)
        return mapped
    return replace(table, **{f.name: function(getattr(table, f.name)) for f in fields(table)})


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to ``device``; does not synchronise."""
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


OWN_SPLITS: Final[dict[str, dict[str, str]]] = {
    "dexycb": {"train": "s0_train", "evaluation": "s0_test"},
    "arctic": {"train": "p1_train", "evaluation": "p1_val"},
    "interhand26m": {"evaluation": "test"},
}
"""What "train" and "evaluation" mean for datasets that call their usual splits otherwise."""


def own_split(store: Store, split: str) -> str:
    """Return the name of a split in this store; "train" and "evaluation" mean the usual ones."""
    if split in store.split_counts():
        return split
    return OWN_SPLITS.get(store.attributes.dataset, {}).get(split, split)


def split_rows(store: Store, split: str, subset: float) -> NDArray[np.int64]:
    """Return ``subset`` of the rows of a split, evenly spaced in its order, at least one.

    Raises:
        StoreError: If there is no such split; lists the choices.
        ValueError: If the split is empty.
    """
    rows = store.split(own_split(store, split)).astype(np.int64)
    if not len(rows):
        others = [f"{name} ({count})" for name, count in store.split_counts().items() if count]
        raise ValueError(
            f"split {split!r} of {store.path} is empty: the images of its rows were not there when "
            f"it was built; splits with rows: {', '.join(others)}"
        )
    kept = max(1, round(subset * len(rows)))
    spaced: NDArray[np.int64] = rows[((np.arange(kept) + 0.5) * len(rows) / kept).astype(np.int64)]
    return spaced


def build_view(
    store: Store, rows: NDArray[np.int64], config: ViewConfig, cache_px: int, *, training: bool
) -> ViewTable:
    """Build the view: the samples of ``rows``.

    hand: one per row and hand with a finite box. hand_object: one per row with a box of a hand or
    of the object that the hands act on (``pipeline.store.objects.acted_on``), around all of these.
    The square has the box's centre and ``pad`` times its longer side. frame: one per row; the
    square is the frame's longer side.

    Args:
        store: The open store.
        rows: Rows to use.
        config: Kind of view and padding of the square.
        cache_px: Side of the cached crop.
        training: Apply ``config.exclude_flags``.

    Raises:
        ValueError: If no sample remains; reports the numbers left out and why.
    """
    left_out: dict[str, NDArray[Any]] = {}
    left_out["with an unreadable image"] = ~store.label("sample_ok")[rows]
    if training and config.exclude_flags:
        mask = np.bitwise_or.reduce([FLAGS[flag] for flag in config.exclude_flags])
        left_out["with an excluded flag"] = (store.label("quality")[rows] & mask) != 0
    in_view = store.label("official_valid")[rows, :NUM_HANDS]
    annotated = in_view & _has_joints(store)[rows]
    if config.kind is ViewKind.hand:
        row = np.repeat(rows, NUM_HANDS)
        slot = np.tile(np.arange(NUM_HANDS), len(rows))
        left_out = {reason: np.repeat(out, NUM_HANDS) for reason, out in left_out.items()}
        sample_id, has_joints = 2 * row + slot, annotated.ravel()
        box = store.label("bbox_xyxy")[row, slot].astype(np.float64)
    else:
        row, sample_id = rows, 2 * rows
        has_joints = np.asarray(annotated.any(-1))
        is_frame = config.kind is ViewKind.frame
        box = _frame_box(store, row) if is_frame else _hand_object_box(store, row)
    if config.require_joints:
        left_out["without joints in view"] = ~has_joints
    center, side = (box[:, :2] + box[:, 2:]) / 2, (box[:, 2:] - box[:, :2]).max(-1)
    left_out["without a box"] = ~(np.isfinite(box).all(-1) & (side >= 1))
    pad, margin = (1.0, 1.0) if config.kind is ViewKind.frame else (config.pad, config.margin)
    size = side * pad
    kept = ~np.logical_or.reduce(list(left_out.values()))
    if not kept.any():
        reasons = ", ".join(f"{int(out.sum())} {reason}" for reason, out in left_out.items())
        raise ValueError(f"store {store.path}: none of {len(kept)} samples is left: {reasons}")
    center_px, size_px = torch.from_numpy(center[kept].copy()), torch.from_numpy(size[kept])
    return ViewTable(
        row=torch.from_numpy(row[kept]),
        sample_id=torch.from_numpy(sample_id[kept]),
        center_px=center_px,
        size_px=size_px,
        A_cache_from_frame=square_crop_affine(center_px, size_px * margin, cache_px),
    )


def _has_joints(store: Store) -> NDArray[np.bool_]:
    """Return which hands [n, 2] have an annotated joint, in 3D or 2D."""
    has = np.asarray(store.label("has_joints"))
    if store.has_label("joints_2d"):
        annotated = np.isfinite(store.label("joints_2d")).all(-1).any(-1)
        return np.asarray(has | annotated)
    return has


def _frame_box(store: Store, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the outer edges of each frame [n, 4]."""
    far = store.image_index.size_hw[rows][:, ::-1].astype(np.float64) - 0.5
    return np.concatenate((np.full_like(far, -0.5), far), -1)


def _hand_object_box(store: Store, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the box [n, 4] around all hands of a row and the object they act on; NaN without any.

    What has no box of its own is left out: nothing else takes its place.
    """
    slot = acted_on(store, rows)
    box = store.label("object_bbox_xyxy")[rows, slot]
    box = np.where(slot[:, None] >= 0, box, np.nan)
    hands = store.label("bbox_xyxy")[rows]
    boxes: NDArray[np.float64] = np.concatenate((hands, box[:, None]), 1).astype(np.float64)
    used = np.isfinite(boxes.sum(-1, keepdims=True))
    low = boxes[..., :2].min(1, where=used, initial=np.inf)
    high = boxes[..., 2:].max(1, where=used, initial=-np.inf)
    return np.where(used.any(1), np.concatenate((low, high), -1), np.nan)
