"""The models of a run's objects on the device."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model.geometry.articulation import articulated
from pipeline.labels.objects import load_objects
from pipeline.store.objects import write_object
from pipeline.store.reader import Store, open_store
from tests.pipeline.hand_store import hand_store
from tests.pipeline.store.test_objects import object_shape


def _with_object(path: Path, name: str, others: list[str], seed: int) -> Store:
    tables = {"sequence": ["wave", "grasp"], "camera": ["a", "b"], "object": [*others, name]}
    hand_store(path, 2, attributes={"tables": tables})
    group = zarr.open_group(path, mode="r+").require_group("objects")
    write_object(group, object_shape(name, seed))
    return open_store(path)


def test_objects_of_all_stores_stand_one_after_another(tmp_path: Path) -> None:
    first = _with_object(tmp_path / "a.zarr", "box", ["cup"], 1)
    second = _with_object(tmp_path / "b.zarr", "laptop", [], 2)
    models = load_objects([first, second], torch.device("cpu"))
    assert models.names == ("cup", "box", "laptop")
    assert models.points[0].isnan().all()  # the store has no shape of it
    for place, name, seed in ((1, "box", 1), (2, "laptop", 2)):
        shape = object_shape(name, seed)
        np.testing.assert_array_equal(models.points[place], shape.points)
        np.testing.assert_array_equal(models.moving[place], shape.part_id == 1)


def test_stores_without_objects_give_none(tmp_path: Path) -> None:
    models = load_objects([open_store(hand_store(tmp_path / "s.zarr", 2))], torch.device("cpu"))
    assert models.names == ()
    assert models.points.shape == (0, 2048, 3)


def test_the_moving_part_turns_about_minus_z() -> None:
    rng = np.random.default_rng(3)
    points = rng.normal(size=(4, 6, 3))
    moving = rng.random((4, 6)) < 0.5
    angle = np.array([0.0, 0.7, -2.9, np.nan])
    found = articulated(torch.tensor(points), torch.tensor(moving), torch.tensor(angle))
    for i, one in enumerate(np.nan_to_num(angle)):
        turned: NDArray[Any] = Rotation.from_rotvec([0.0, 0.0, -one]).apply(points[i])
        expected = np.where(moving[i, :, None], turned, points[i])
        np.testing.assert_allclose(found[i], expected, atol=1e-12)
