"""A dataset's official protocol on a store: predictions of a split, gathered in official order.

Shape legend: n = rows of the split, b = batch, h = hands (slot 0 right, slot 1 left).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from model.geometry.rotation import rotate
from model.hand import LEFT, RIGHT, STANDARD_FROM_INTERHAND
from model.prediction import HandPrediction
from pipeline.batch import Batch
from pipeline.store.reader import Store
from train.protocols import freihand, interhand26m
from train.protocols.files import write_two_lists
from train.protocols.report import Report

WITH_MESH: Final = ("freihand",)
"""Datasets whose protocol scores vertices."""
WITHOUT_MESH: Final = ("interhand26m",)
_INTERHAND_FROM_STANDARD: Final = np.argsort(STANDARD_FROM_INTERHAND)
_NO_HANDEDNESS: Final = "handedness is given, not predicted: no score"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gathered:
    """Predictions and true meshes of a split; camera frame of the dataset, metres."""

    rows: Int64[np.ndarray, " n"]
    """Rows of the store, official order."""
    sorter: Int64[np.ndarray, " n"]
    """``np.argsort(rows)``, once: a batch is looked up by it."""
    joints_3d: Float32[np.ndarray, "n 2 21 3"]
    """Zero where there was no hand to predict."""
    seen: Bool[np.ndarray, "n 2"]
    vertices: Float32[np.ndarray, "n 778 3"] | None
    """Of the row's only hand."""
    true_vertices: Float32[np.ndarray, "n 778 3"] | None
    """Decoded from the store's MANO parameters; NaN where there are none."""


def is_official(store: Store, split: str, *, has_mesh: bool) -> bool:
    """Return whether ``store`` has a protocol for ``split`` that the predictions can answer."""
    dataset = store.attributes.dataset
    if dataset in WITH_MESH:
        return has_mesh and split == "evaluation"
    return dataset in WITHOUT_MESH and split in ("val", "test")


def gathered(store: Store, split: str, *, with_mesh: bool) -> Gathered:
    """Return room for the predictions of a split, in the official order of its protocol."""
    if store.attributes.dataset == "interhand26m":
        parts = [store.split(f"{split}_{kind}") for kind in ("single", "interacting")]
        rows = np.concatenate(parts).astype(np.int64)
    else:
        rows = store.split(split).astype(np.int64)
    n = len(rows)
    return Gathered(
        rows=rows,
        sorter=np.argsort(rows),
        joints_3d=np.zeros((n, 2, 21, 3), np.float32),
        seen=np.zeros((n, 2), bool),
        vertices=np.zeros((n, 778, 3), np.float32) if with_mesh else None,
        true_vertices=np.full((n, 778, 3), np.nan, np.float32) if with_mesh else None,
    )


def gather(
    held: Gathered,
    prediction: HandPrediction,
    batch: Batch,
    true_vertices: Float[Tensor, "b h 778 3"] | None,
) -> None:
    """Put a batch of single-hand crops where it belongs, back in the dataset's camera frame."""
    row, slot = divmod(batch.sample_id.cpu().numpy(), 2)
    place = held.sorter[np.searchsorted(held.rows, row, sorter=held.sorter)]
    back = batch.R_input_from_cam.double().mT

    def in_camera(points: Tensor) -> np.ndarray:
        return np.asarray(rotate(back, points.double()).cpu().numpy(), np.float32)

    held.joints_3d[place, slot] = in_camera(prediction.joints_3d[:, 0])
    held.seen[place, slot] = True
    if held.vertices is not None and held.true_vertices is not None:
        assert prediction.vertices is not None
        assert true_vertices is not None
        known = (batch.has_mano & batch.has_beta)[:, 0, None, None]
        held.vertices[place] = in_camera(prediction.vertices[:, 0])
        held.true_vertices[place] = in_camera(true_vertices[:, 0].where(known, torch.nan))


def official_report(
    held: Gathered, store: Store, split: str, *, strict: bool, crop: str, camera: str
) -> Report:
    """Score a split by the protocol of its dataset.

    Raises:
        ValueError: If a sample has no prediction or no ground truth.
    """
    source = f"{store.path} split={split}"
    if store.attributes.dataset == "interhand26m":
        return interhand26m.report(
            interhand_predictions(held),
            _interhand_truth(held, store, split),
            strict=strict,
            crop=crop,
            camera=f"{camera}; {_NO_HANDEDNESS}",
        )
    assert held.vertices is not None
    assert held.true_vertices is not None
    absent = np.flatnonzero(~held.seen[:, RIGHT] | np.isnan(held.true_vertices[:, 0, 0]))
    if len(absent):
        raise ValueError(
            f"{source}: {len(absent)} of {len(held.rows)} rows have no hand or no MANO label "
            f"(first: row {held.rows[absent[0]]}); FreiHAND's protocol scores every sample, so "
            "build the store with mano=..."
        )
    return freihand.report(
        held.joints_3d[:, RIGHT].astype(np.float64),
        held.vertices.astype(np.float64),
        store.label("joints_3d")[held.rows, RIGHT].astype(np.float64),
        held.true_vertices.astype(np.float64),
        source=source,
        strict=strict,
        crop=crop,
        camera=f"{camera}; true mesh decoded from the store's MANO parameters",
    )


def export(held: Gathered, store: Store, path: Path) -> None:
    """Write the predictions as the official tool reads them; see ``train.protocols.<dataset>``.

    Raises:
        ValueError: If a FreiHAND row has no prediction.
    """
    if store.attributes.dataset == "interhand26m":
        pred = interhand_predictions(held)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez(file, joints_mm=pred.joints_mm, hand_type=pred.hand_type)
        return
    assert held.vertices is not None
    absent = np.flatnonzero(~held.seen[:, RIGHT])
    if len(absent):
        raise ValueError(
            f"export: {len(absent)} of {len(held.rows)} rows have no prediction (first: row "
            f"{held.rows[absent[0]]}); the official tool wants every sample"
        )
    joints = held.joints_3d[:, RIGHT].astype(np.float64)
    write_two_lists(path, joints, held.vertices.astype(np.float64))


def interhand_predictions(held: Gathered) -> interhand26m.Predictions:
    """Return both hands in InterHand's joint order, mm; the score of a hand is its presence."""
    joints = held.joints_3d[:, :, _INTERHAND_FROM_STANDARD].astype(np.float64) * 1000
    joints = joints.reshape(len(joints), 42, 3)
    between = joints[:, interhand26m.LEFT_WRIST] - joints[:, interhand26m.RIGHT_WRIST]
    return interhand26m.Predictions(
        joints_mm=joints, hand_type=held.seen.astype(np.float64), left_from_right_mm=between
    )


def _interhand_truth(held: Gathered, store: Store, split: str) -> interhand26m.Truth:
    valid = store.label("joint_valid")[held.rows][:, :, _INTERHAND_FROM_STANDARD]
    joints = store.label("joints_3d")[held.rows][:, :, _INTERHAND_FROM_STANDARD]
    num = len(held.rows)
    num_single = len(store.split(f"{split}_single"))
    hand_type = np.where(valid[:, RIGHT].sum(1) >= valid[:, LEFT].sum(1), RIGHT, LEFT)
    hand_type[num_single:] = interhand26m.HAND_TYPES.index("interacting")
    K = store.label("K")[held.rows].astype(np.float64)
    joints_mm = np.where(valid[..., None], joints, 0).astype(np.float64).reshape(num, 42, 3) * 1000
    return interhand26m.Truth(
        joints_mm=joints_mm,
        joint_valid=valid.reshape(num, 42),
        hand_type=hand_type.astype(np.int64),
        hand_type_valid=np.zeros(num, bool),
        focal_px=K[:, [0, 1], [0, 1]],
        princpt_px=K[:, :2, 2],
        root_depth_mm=joints_mm[:, [interhand26m.RIGHT_WRIST, interhand26m.LEFT_WRIST], 2],
        depth_source="prediction",
        file_position=np.arange(num),
    )
