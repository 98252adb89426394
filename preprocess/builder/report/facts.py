"""Facts for the report page beyond the store's attributes: counts, objects, rejected rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, Int64

from pipeline.store.schema import FLAGS, LABELS

if TYPE_CHECKING:
    from pipeline.store.reader import Store

RESIDUAL_EDGES_MM: Final = tuple(round(10.0 ** (k / 4), 6) for k in range(-12, 9))
"""Histogram edges: 0.001 to 100 mm, four bins per decade."""
MOST_ROWS: Final = 1000
"""Maximum number of rows that the page lists per flag."""
_MASKS: Final = (
    "sample_ok", "has_joints", "has_mano", "has_beta", "has_object", "has_contact", "has_world",
)  # fmt: skip
_OF_A_HAND: Final = ("has_joints", "has_mano", "has_beta", "has_contact")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Residuals:
    """Histograms of the vertex errors; ``+`` adds the counts of two parts of a store.

    Bin i holds ``edges_mm[i - 1] <= value < edges_mm[i]``; the first and last bins are open.
    """

    edges_mm: tuple[float, ...]
    vertices: Int64[np.ndarray, " bins"]
    """Number of rows by ``vertices_check_m``."""
    refit: Int64[np.ndarray, " bins"]
    """Number of hands by ``refit_error_m``; hands without a refit are not counted."""

    def __add__(self, other: "Residuals") -> "Residuals":
        """Return the summed counts; the edges must be the same."""
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
    """Return the histograms of some rows, ignoring NaN and refit errors of exactly 0.

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
    """A flagged row, with the information needed to find it in the dataset."""

    row: int
    official_idx: int
    image: str
    """Path relative to the dataset root; empty if unknown."""
    sequence: str
    camera: str
    frame_idx: int
    flag: str
    reason: str
    """Completes "the image ...", as in ``BadImage``; empty if there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """Number of rows that have one group of labels."""

    name: str
    """Name of the mask, such as ``has_mano``."""
    meaning: str
    rows: int
    """Number of rows in which some hand or object has it."""
    right: int | None
    """Number of rows in which the right hand has it; None for labels that are not per hand."""
    left: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectFacts:
    """Facts about one object of a store."""

    name: str
    diameter_m: float
    num_symmetries: int
    """Number of symmetries of the shape, including the identity."""
    num_vertices: int
    num_rows: int
    """Number of rows that have its pose."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreFacts:
    """Facts for the report page beyond the store's attributes."""

    image_bytes: int
    num_clean: int
    """Number of rows without a flag."""
    coverage: tuple[Coverage, ...]
    objects: tuple[ObjectFacts, ...]


def store_facts(store: "Store") -> StoreFacts:
    """Collect the facts for the report page.

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

    A flag that every row carries (``no_mano`` without MANO) gets no list.

    Args:
        store: A store with its labels.
        images: Path of each row's image relative to the dataset root; empty = unknown.
        reasons: Problem with the image by row, as in ``BadImage``.
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
        if name not in there:  # listed by the dataset, without a mesh
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
