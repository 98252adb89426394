"""What the report page says about a store beyond its attributes: counts, objects, rejected rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, Int64

from pipeline.store.schema import FLAGS, LABELS

if TYPE_CHECKING:
    from pipeline.store.reader import Store

RESIDUAL_EDGES_MM: Final = tuple(round(10.0 ** (k / 4), 6) for k in range(-12, 9))
"""0.001 to 100 mm, four bins a decade."""
MOST_ROWS: Final = 1000
"""Rows that the page lists for one flag."""
_MASKS: Final = (
    "sample_ok", "has_joints", "has_mano", "has_beta", "has_object", "has_contact", "has_world",
)  # fmt: skip
_OF_A_HAND: Final = ("has_joints", "has_mano", "has_beta", "has_contact")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Residuals:
    """How many values lie in each bin; ``+`` joins the counts of two parts of a store.

    Bin i holds ``edges_mm[i - 1] <= value < edges_mm[i]``; the first and the last are open.
    """

    edges_mm: tuple[float, ...]
    vertices: Int64[np.ndarray, " bins"]
    """Rows by ``vertices_check_m``."""
    refit: Int64[np.ndarray, " bins"]
    """Hands by ``refit_error_m``; hands without a refit are in none."""

    def __add__(self, other: "Residuals") -> "Residuals":
        """Return the counts of both; the edges must be the same."""
        if self.edges_mm != other.edges_mm:
            raise ValueError("histograms with different edges cannot be added")
        return Residuals(
            edges_mm=self.edges_mm,
            vertices=self.vertices + other.vertices,
            refit=self.refit + other.refit,
        )


def residual_counts(
    vertices_check_m: Float[np.ndarray, " n"], refit_error_m: Float[np.ndarray, "n 2"]
) -> Residuals:
    """Return the histograms of some rows; NaN is no value, nor is a refit error of exactly 0.

    Args:
        vertices_check_m: As in ``records.LabelStack``, metres.
        refit_error_m: As in ``records.LabelStack``, metres.
    """
    edges_m = np.array(RESIDUAL_EDGES_MM) / 1000

    def count(values: np.ndarray) -> Int64[np.ndarray, " bins"]:
        bins = np.searchsorted(edges_m, values, side="right")
        return np.bincount(bins, minlength=len(edges_m) + 1).astype(np.int64)

    return Residuals(
        edges_mm=RESIDUAL_EDGES_MM,
        vertices=count(vertices_check_m[~np.isnan(vertices_check_m)]),
        refit=count(refit_error_m[refit_error_m > 0]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedRow:
    """A row that carries a flag, with what it takes to find it in the dataset."""

    row: int
    official_idx: int
    image: str
    """Path relative to the root of the dataset; empty where it is not known."""
    sequence: str
    camera: str
    frame_idx: int
    flag: str
    reason: str
    """Completes "the image ...", as ``shard.BadImage``; empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How many rows have one group of labels."""

    name: str
    """Of the mask, such as ``has_mano``."""
    meaning: str
    rows: int
    """Rows in which some hand or object has it."""
    right: int | None
    """Rows in which the right hand has it; None for what no hand has."""
    left: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """One object of a store."""

    name: str
    diameter_m: float
    num_symmetries: int
    """Turns that leave the shape as it is, the identity too."""
    num_vertices: int
    num_rows: int
    """Rows that have its pose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFacts:
    """What the page says about a store beyond its attributes."""

    image_bytes: int
    num_clean: int
    """Rows without a flag."""
    coverage: tuple[Coverage, ...]
    objects: tuple[ObjectFacts, ...]


def store_facts(store: "Store") -> StoreFacts:
    """Return what the page says beyond the attributes.

    Raises:
        StoreError: If an object of the store cannot be read.
    """
    return StoreFacts(
        image_bytes=int(store.image_index.length.sum(dtype=np.int64)),
        num_clean=int(np.count_nonzero(store.label("quality") == 0)),
        coverage=tuple(_coverage(store, name) for name in _MASKS),
        objects=tuple(_objects(store)),
    )


def rejected_rows(
    store: "Store", images: Sequence[str] = (), reasons: Mapping[int, str] | None = None
) -> dict[str, list[RejectedRow]]:
    """Return the first rows that carry each flag, at most ``MOST_ROWS``.

    A flag of every row (``no_mano`` without MANO) singles none out and has no list.

    Args:
        store: A store with its labels.
        images: Path of each row's image relative to the root of the dataset; empty = not known.
        reasons: What is wrong with the image of a row, as in ``shard.BadImage``.
    """
    tables = store.attributes.tables
    quality = store.label("quality")
    index = {
        name: store.label(f"{name}_idx") for name in ("official", "sequence", "camera", "frame")
    }
    listed: dict[str, list[RejectedRow]] = {}
    for flag, bit in FLAGS.items():
        rows = np.flatnonzero(quality & np.uint32(bit))
        if not 0 < len(rows) < store.num_rows:
            continue
        listed[flag] = [
            RejectedRow(
                row=row,
                official_idx=int(index["official"][row]),
                image=images[row] if images else "",
                sequence=tables["sequence"][index["sequence"][row]],
                camera=tables["camera"][index["camera"][row]],
                frame_idx=int(index["frame"][row]),
                flag=flag,
                reason=(reasons or {}).get(row, "") if flag.startswith("image_") else "",
            )
            for row in rows[:MOST_ROWS].tolist()
        ]
    return listed


def _coverage(store: "Store", name: str) -> Coverage:
    mask = store.label(name)
    rows = mask.reshape(len(mask), -1).any(-1)
    of_hand = name in _OF_A_HAND
    return Coverage(
        name=name,
        meaning=next(spec.meaning for spec in LABELS if spec.name == name),
        rows=int(np.count_nonzero(rows)),
        right=int(np.count_nonzero(mask[:, 0])) if of_hand else None,
        left=int(np.count_nonzero(mask[:, 1])) if of_hand else None,
    )


def _objects(store: "Store") -> list[ObjectFacts]:
    from pipeline.store.objects import object_names, read_object

    found = []
    ids, has = store.label("object_id"), store.label("has_object")
    there = object_names(store.path)
    for i, name in enumerate(store.attributes.tables.get("object", [])):
        if name not in there:  # in the table of the dataset, without a mesh
            continue
        shape = read_object(store.path, name)
        found.append(
            ObjectFacts(
                name=name,
                diameter_m=shape.diameter_m,
                num_symmetries=len(shape.symmetries),
                num_vertices=len(shape.vertices),
                num_rows=int(np.count_nonzero(((ids == i) & has).any(-1))),
            )
        )
    return found
