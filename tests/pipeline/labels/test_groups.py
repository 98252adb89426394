"""Label groups: what is loaded is what the store has, moved as the pixels moved."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.geometry.palm import aperture_m, palm_pose
from model.hand import LEFT, RIGHT
from pipeline.batch import LabelGroup, blank_batch
from pipeline.config import AugmentConfig, CacheConfig, PipelineConfig, ViewConfig, ViewKind
from pipeline.labels.contact import ContactLabels, in_contact
from pipeline.labels.interaction import STILL_M_PER_S, Interaction, interaction
from pipeline.labels.object_slots import ObjectSlots
from pipeline.labels.world import WorldLabels
from pipeline.loader import Loader
from pipeline.store.reader import open_store
from tests.conftest import SampleStore
from tests.shapes import unchecked

CPU = torch.device("cpu")
GROUPS: tuple[type[LabelGroup], ...] = (ObjectSlots, ContactLabels, WorldLabels)


def config(data: SampleStore, kind: ViewKind, **augment: float) -> PipelineConfig:
    return PipelineConfig(
        store=str(data.store),
        split="all",
        batch_size=4,
        input_px=32,
        view=ViewConfig(kind=kind, require_joints=False),
        cache=CacheConfig(size_px=36),
        augment=AugmentConfig(**augment),
    )


@pytest.mark.parametrize("kind", [ViewKind.hand, ViewKind.hand_object])
def test_unaugmented_labels_are_the_stores(arctic: SampleStore, kind: ViewKind) -> None:
    settings = config(arctic, kind)
    settings.mirror_left = False
    store = open_store(settings.store)
    with Loader(settings, device=CPU, training=False, groups=GROUPS) as loader:
        batch = next(iter(loader))
    row = (batch.sample_id // 2).numpy()
    slots = (batch.sample_id % 2)[:, None].numpy() if kind is ViewKind.hand else np.array([[0, 1]])
    contact, objects = ContactLabels.of(batch), ObjectSlots.of(batch)
    np.testing.assert_array_equal(contact.dist, store.label("contact_dist")[row[:, None], slots])
    np.testing.assert_array_equal(contact.slot, store.label("contact_object")[row[:, None], slots])
    assert contact.has_contact.any()
    touching = in_contact(contact.dist).any(-1) & contact.has_contact
    np.testing.assert_array_equal(touching, store.label("in_contact")[row[:, None], slots])
    np.testing.assert_allclose(objects.pose, store.label("object_pose")[row], atol=1e-6)
    np.testing.assert_array_equal(objects.id, store.label("object_id")[row])
    world = WorldLabels.of(batch)
    np.testing.assert_allclose(
        world.T_world_from_input, store.label("T_world_from_cam")[row, :3], atol=1e-6
    )
    np.testing.assert_array_equal(world.has_world, store.label("has_world")[row])
    store.close()


def test_labels_turn_with_the_crop(arctic: SampleStore) -> None:
    settings = config(arctic, ViewKind.hand, rotation_deg=90, scale=0.2, shift=0.1)
    with Loader(settings, device=CPU, groups=GROUPS) as loader:
        batch = next(iter(loader))
    objects = ObjectSlots.of(batch)
    assert batch.mirrored.any()
    assert not batch.mirrored.all()
    # The object that the hands act on is one of the slots, moved by other code.
    same = (objects.pose - batch.object_pose[:, None]).abs().amax((-1, -2)) < 1e-5
    assert same.any(1)[batch.has_object].all()
    # World points of an object do not depend on the crop: the store's own are the oracle.
    store = open_store(settings.store)
    row = (batch.sample_id // 2).numpy()
    T = WorldLabels.of(batch).T_world_from_input
    ours = torch.einsum("bij,bkj->bki", T[..., :3], objects.pose[..., 3]) + T[:, None, :, 3]
    T_store = store.label("T_world_from_cam")[row].astype(np.float64)
    centre = store.label("object_pose")[row][..., 3].astype(np.float64)
    theirs = np.einsum("bij,bkj->bki", T_store[:, :3, :3], centre) + T_store[:, None, :3, 3]
    known = (objects.has_object & WorldLabels.of(batch).has_world[:, None]).numpy()
    assert known.any()
    np.testing.assert_allclose(ours.numpy()[known], theirs[known], atol=1e-5)
    store.close()


def test_palm_and_aperture_are_the_stores(arctic: SampleStore) -> None:
    store = open_store(arctic.store)
    joints = torch.from_numpy(np.array(store.label("joints_3d")))
    valid = np.asarray(store.label("joint_valid")).all(-1)
    side = torch.tensor([True, False]).expand(len(joints), 2)
    np.testing.assert_allclose(
        palm_pose(joints, side).numpy()[valid], store.label("palm_pose")[:][valid], atol=1e-5
    )
    np.testing.assert_allclose(
        aperture_m(joints).numpy()[valid], store.label("aperture_m")[:][valid], atol=1e-5
    )
    # A mirrored hand looks like the other side: its palm is the mirror image.
    flip = torch.diag(torch.tensor([-1.0, 1, 1]))
    mirrored = palm_pose(joints @ flip, ~side)
    moved = palm_pose(joints, side)
    np.testing.assert_allclose(
        mirrored[..., 3].numpy()[valid], (moved[..., 3] @ flip).numpy()[valid], atol=1e-6
    )
    store.close()


def _loop(store: object, row: int, hand: int) -> tuple[int, bool] | None:
    """One hand of one row, as the sentence in ``Interaction`` says; None = unknown."""
    label = store.label  # type: ignore[attr-defined]
    key = [(label("sequence_idx")[r], label("camera_idx")[r]) for r in range(len(label("K")))]
    frame = label("frame_idx")
    same = [r for r in range(len(key)) if key[r] == key[row]]
    stride = min((int(frame[b] - frame[a]) for a, b in itertools.pairwise(same)), default=1)
    at = {int(frame[r]): r for r in same}
    run = [at.get(int(frame[row]) + step * stride) for step in (-2, -1, 0, 1, 2)]
    if None in run or not label("has_contact")[row, hand]:
        return None
    ends = (run[0], run[-1])
    slot = int(label("contact_object")[row, hand])
    if not label("in_contact")[row, hand] or slot < 0:
        return int(Interaction.none), False
    places = []
    for r in ends:
        T = label("T_world_from_cam")[r].astype(np.float64)
        if not (label("has_world")[r] and label("has_object")[r, slot]):
            return None
        if not label("joint_valid")[r, hand, 0]:
            return None
        points = label("object_pose")[r, slot, :, 3], label("joints_3d")[r, hand, 0]
        places.append([T[:3, :3] @ p + T[:3, 3] for p in points])
    seconds = 4 * stride / 30
    obj, wrist = (np.array(places[1][i]) - np.array(places[0][i]) for i in range(2))
    speed = np.linalg.norm(obj) / seconds
    holds = speed > STILL_M_PER_S and np.linalg.norm(wrist - obj) / seconds < speed / 2
    return int(Interaction.hold if holds else Interaction.touch), bool(holds)


class Rows:
    """Labels of drawn rows: objects and hands that rest, drift together or apart, and gaps."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        keys = [(s, c, f) for s in range(4) for c in range(2) for f in range(0, 24, 1 + s % 2)]
        keys = [key for key in keys if rng.random() > 0.05]
        self.num_rows = n = len(keys)
        seconds = np.array([f / 30 for *_, f in keys])
        sequence = [s for s, *_ in keys]
        moves = rng.choice([0.0, 0.005, 0.3], (4, 2, 3))  # of two objects, metres per second
        drift = rng.choice([0.0, 0.02, 0.4], (4, 2, 3))  # of the hands
        slots = rng.integers(-1, 2, (4, 2))
        moves[0], drift[0], slots[0] = 0.3, 0.0, 1  # both hands carry the same object
        moves, drift, slot = moves[sequence], drift[sequence], slots[sequence]
        R = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
        R *= np.sign(np.linalg.det(R))[:, None, None]
        T = np.concatenate((R, rng.normal(size=(n, 3, 1))), -1)
        places = moves * seconds[:, None, None]
        carried = np.take_along_axis(moves, slot.clip(0)[..., None], 1) + drift
        poses, joints = np.zeros((n, 10, 3, 4)), np.zeros((n, 2, 21, 3))
        back = R.transpose(0, 2, 1)
        poses[:, :2, :, 3] = np.einsum("nij,nkj->nki", back, places - T[:, None, :, 3])
        wrists = carried * seconds[:, None, None] - T[:, None, :, 3]
        joints[:, :, 0] = np.einsum("nij,nkj->nki", back, wrists)
        world = np.tile(np.eye(4), (n, 1, 1))
        world[:, :3] = T
        self.columns = {
            **{f"{k}_idx": np.array([key[i] for key in keys])
               for i, k in enumerate(("sequence", "camera", "frame"))},
            "T_world_from_cam": world,
            "has_world": rng.random(n) > 0.05,
            "object_pose": poses,
            "has_object": rng.random((n, 10)) > 0.05,
            "contact_object": slot,
            "has_contact": rng.random((n, 2)) > 0.1,
            "in_contact": rng.random((n, 2)) > 0.3,
            "joints_3d": joints,
            "joint_valid": rng.random((n, 2, 21)) > 0.02,
            "K": np.zeros((n, 3, 3)),
        }  # fmt: skip

    def label(self, name: str) -> np.ndarray:
        return self.columns[name]


def test_interaction_is_the_loop_over_rows() -> None:
    seen = set()
    for seed in range(4):
        store: Any = Rows(seed)
        with unchecked():  # rows that are no store
            kind, known = interaction(store, np.arange(store.num_rows))
        for row in range(store.num_rows):
            found = [_loop(store, row, hand) for hand in (RIGHT, LEFT)]
            slots = store.label("contact_object")[row]
            for hand in (RIGHT, LEFT):
                one, other = found[hand], found[1 - hand]
                assert known[row, hand] == (one is not None), (row, hand)
                if one is None:
                    assert kind[row, hand] == 0
                    continue
                expected, holds = one
                if holds and other is not None and other[1] and slots[0] == slots[1]:
                    expected = int(Interaction.both_hold)
                assert kind[row, hand] == expected, (row, hand)
                seen.add(expected)
    assert seen == {0, 1, 2, 3}


def test_blank_groups_are_like_real_ones(arctic: SampleStore, tmp_path: Path) -> None:
    with Loader(config(arctic, ViewKind.hand_object), device=CPU, groups=GROUPS) as loader:
        real = next(iter(loader))
    blank = blank_batch(torch.zeros(4, 3, 32, 32), 2, GROUPS)
    for name, group in real.groups.items():
        for field in dataclasses.fields(group):
            a, b = getattr(group, field.name), getattr(blank.groups[name], field.name)
            assert (a.shape, a.dtype) == (b.shape, b.dtype), (name, field.name)
        for mask in group.MASKS:
            assert not getattr(blank.groups[name], mask).any()


def test_a_group_that_was_not_loaded_is_one_sentence() -> None:
    with pytest.raises(
        ValueError, match=r"no labels 'contact'; give Loader\(..., groups=\[Contact"
    ):
        ContactLabels.of(blank_batch(torch.zeros(1, 3, 8, 8), 1))
