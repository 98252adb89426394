"""Object models of a run's stores, on the device.

Shape legend: m = objects of all stores, concatenated, p = surface points.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.store.objects import object_names, read_object
from pipeline.store.reader import Store
from pipeline.store.schema import OBJECT_POINTS


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
