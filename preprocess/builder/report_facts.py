"""Reads from a finished store what its report page says about it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from pipeline.store.schema import FLAGS, LABELS
from preprocess.builder.report_page import MOST_ROWS, Coverage, ObjectFacts, RejectedRow, StoreFacts

if TYPE_CHECKING:
    from pipeline.store.reader import Store

_MASKS: Final = (
    "sample_ok", "has_joints", "has_mano", "has_beta", "has_object", "has_contact", "has_world",
)  # fmt: skip
_OF_A_HAND: Final = ("has_joints", "has_mano", "has_beta", "has_contact")


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
