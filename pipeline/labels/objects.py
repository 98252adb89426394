"""Object models of a run's stores, on the device, and the object that the hands of a row act on.

Shape legend: m = objects of all stores, concatenated, p = surface points, n = rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from pipeline.store.objects import object_names, read_object
from pipeline.store.reader import Store
from pipeline.store.schema import NUM_OBJECTS, OBJECT_POINTS


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectModels:
    """Surfaces of the objects that ``Batch.object_id`` indexes."""

    names: tuple[str, ...]
    points: Float[Tensor, "m p 3"]
    """Sampled uniformly by area, in random order: the first k are uniform too. Object frame, an
    articulated object at angle 0, metres; NaN where the store has no shape of the object."""
    moving: Bool[Tensor, "m p"]
    """Whether the point belongs to the moving part."""


def load_objects(stores: Sequence[Store], device: torch.device) -> ObjectModels:
    """Return the objects of all stores in the order of their tables."""
    found = [(store, name) for store in stores for name in names_in(store)]
    points = np.full((len(found), OBJECT_POINTS, 3), np.nan, np.float32)
    moving = np.zeros((len(found), OBJECT_POINTS), bool)
    for i, (store, name) in enumerate(found):
        if name in object_names(store.path):
            shape = read_object(store.path, name)
            points[i], moving[i] = shape.points, shape.part_id > 0
    return ObjectModels(
        names=tuple(name for _, name in found),
        points=torch.from_numpy(points).to(device),
        moving=torch.from_numpy(moving).to(device),
    )


def names_in(store: Store) -> list[str]:
    """Return the names that the store's object ids index."""
    return store.attributes.tables.get("object", [])


def acted_on(store: Store, rows: NDArray[np.int64]) -> Int64[np.ndarray, " n"]:
    """Return the object slot that the hands of each row act on, -1 without a posed object.

    The grasped one; where that has no pose, the one nearest to the right, or else the left hand;
    where neither is known, the first one.
    """
    has_object = store.label("has_object")[rows]
    candidates = np.concatenate(
        (
            store.label("grasped_object")[rows][:, None],
            np.where(store.label("has_contact")[rows], store.label("contact_object")[rows], -1),
        ),
        1,
    ).astype(np.int64)
    chosen = np.where(has_object.any(1), has_object.argmax(1), -1)
    for slot in candidates.T[::-1]:
        inside = (slot >= 0) & (slot < NUM_OBJECTS)
        is_posed = inside & np.take_along_axis(has_object, slot.clip(0)[:, None], 1)[:, 0]
        chosen = np.where(is_posed, slot, chosen)
    return chosen
