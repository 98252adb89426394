"""Label rows with hands and objects for tests; every other label is missing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from preprocess.records import Labels, LabelStack, empty_labels, stack_labels


def pose_of(seed: int, t: Sequence[float] = (0.0, 0.0, 0.8)) -> np.ndarray:
    """Return ``[R | t]`` with a random rotation and a given translation."""
    return np.concatenate([Rotation.random(rng=seed).as_matrix(), np.array(t)[:, None]], axis=1)


def row(objects: Sequence[tuple[int, Any]] = (), grasped: int = -1, **arrays: Any) -> Labels:
    """Return labels with (object id, ``[R | t]``) in the first slots and other fields as given."""
    labels = empty_labels()
    labels.K[:] = [[600.0, 2.0, 320.0], [0.0, 620.0, 240.0], [0.0, 0.0, 1.0]]
    labels.grasped_object[...] = grasped
    for slot, (object_id, pose) in enumerate(objects):
        labels.object_id[slot] = object_id
        labels.object_pose[slot] = pose
    for name, values in arrays.items():
        getattr(labels, name)[:] = values
    return labels


def stack(*rows: Labels) -> LabelStack:
    return stack_labels(rows)
