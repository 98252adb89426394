"""Official protocols on stores: which splits of which dataset have one, and what it requires.

``PROTOCOLS`` is the table: what ``train.evaluate.protocols.collected`` collected becomes the report
and the submission file of each dataset.

Shape legend: n = rows of the split, m = hands.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, Int64

from model.hand import LEFT, RIGHT, STANDARD_FROM_INTERHAND
from pipeline.config import ViewKind
from pipeline.store.reader import Store
from train.evaluate.protocols import arctic_store, dexycb, freihand, ho3d, interhand26m
from train.evaluate.protocols.collected import (
    Collected,
    MeshForm,
    ReportContext,
    SplitProtocol,
    unpredicted,
)
from train.evaluate.protocols.files import write_npz, write_two_lists
from train.evaluate.protocols.freihand import Points
from train.evaluate.protocols.report import Report

LABELLED_BOX: Final = "box of the labelled joints"
CROPS: Final = {
    ViewKind.hand_object: "box around the labelled hands and the object",
    ViewKind.frame: "none: the whole frame",
}
_INTERHAND_FROM_STANDARD: Final = np.argsort(STANDARD_FROM_INTERHAND)
_JOINTS: Final = frozenset({"hands.joints_3d"})
_MESH: Final = _JOINTS | {"hands.vertices"}
_SCENE: Final = _MESH | {"hands.theta_rotmat", "object.rotmat"}
_NO_HANDEDNESS: Final = "handedness is given, not predicted: no score"


def protocol_of(store: Store, split: str, provided: Collection[str]) -> SplitProtocol | None:
    """Return the protocol of a split that a network which predicts ``provided`` can answer."""
    found = PROTOCOLS.get(store.attributes.dataset)
    if found is None or split not in found.splits or not found.requires <= set(provided):
        return None
    return found


def crop_source(store: Store, split: str, kind: ViewKind) -> str:
    """Return the source of the crops of a split, in words."""
    if kind is not ViewKind.hand:
        return CROPS[kind]
    found = PROTOCOLS.get(store.attributes.dataset)
    return found.crop if found is not None and split in found.splits else LABELLED_BOX


def choices() -> str:
    """Return the splits that have a protocol, in words."""
    found = [
        f"{', '.join(protocol.splits)} of {dataset}{_needs(protocol)}"
        for dataset, protocol in PROTOCOLS.items()
    ]
    return "; ".join(found)


def _needs(protocol: SplitProtocol) -> str:
    if protocol.requires >= _SCENE:
        return " (needs meshes and an object: model.scene=hand_object)"
    return " (needs a mesh)" if protocol.requires >= _MESH else ""


def official_report(collected: Collected, context: ReportContext) -> Report | str:
    """Score a split by the protocol of its dataset, or say in a sentence why it cannot be scored.

    Raises:
        ValueError: If the predictions are implausible.
    """
    return unpredicted(collected) or collected.protocol.report(collected, context)


# --- FreiHAND, HO-3D: joints and mesh of one right hand per image ---------------------------------


def _right_hand(collected: Collected) -> Bool[np.ndarray, "n 2"]:
    wanted = np.zeros_like(collected.seen)
    wanted[:, RIGHT] = True
    return wanted


def _mesh_report(collected: Collected, context: ReportContext) -> Report | str:
    form, meshes = collected.protocol.mesh, collected.meshes
    assert form is not None
    assert meshes is not None
    truth = (meshes.true_joints, meshes.true_vertices)
    unknown = ~np.logical_and(*(np.isfinite(points).all((1, 2)) for points in truth))
    if meshes.from_store and unknown.any():
        first = collected.rows[unknown][0]
        return (
            f"{collected.source}: {int(unknown.sum())} of {len(unknown)} rows have no true joints "
            f"or no true mesh in the store (first: row {first}), and the protocol "
            "scores both of every row; give truth=FOLDER, the dataset's evaluation_xyz.json and "
            "evaluation_verts.json"
        )
    return form.report(
        *_official_points(collected),
        *form.to_official(*truth),
        source=collected.source,
        strict=context.strict,
        crop=context.crop,
        camera=f"{context.camera}; {meshes.source}",
    )


def _export_meshes(collected: Collected, path: Path) -> None:
    write_two_lists(path, *_official_points(collected))


def _official_points(collected: Collected) -> tuple[Points, Points]:
    assert collected.protocol.mesh is not None
    assert collected.meshes is not None
    joints, vertices = collected.joints_3d[:, RIGHT], collected.meshes.vertices
    return collected.protocol.mesh.to_official(
        joints.astype(np.float64), vertices.astype(np.float64)
    )


# --- DexYCB: joints of the only hand of an image, images without one left out ---------------------


def _labelled_hands(collected: Collected) -> Bool[np.ndarray, "n 2"]:
    return np.asarray(collected.store.label("has_joints")[collected.rows])


def _dexycb_report(collected: Collected, context: ReportContext) -> Report | str:
    place, slot = np.nonzero(_labelled_hands(collected))
    if not len(place):
        num = len(collected.rows)
        return f"{collected.source}: none of {num} rows has a hand with labelled joints"
    # In float32, as the toolkit scales its labels.
    truth = collected.store.label("joints_3d")[collected.rows[place], slot] * np.float32(1000)
    _, joints_mm = _dexycb_results(collected)
    return dexycb.report(
        joints_mm,
        truth.astype(np.float64),
        strict=context.strict,
        crop=context.crop,
        camera=context.camera,
        samples=place.tolist(),
    )


def _export_dexycb(collected: Collected, path: Path) -> None:
    dexycb.write_results(path, *_dexycb_results(collected))


def _dexycb_results(collected: Collected) -> tuple[Int64[np.ndarray, " m"], dexycb.Joints]:
    """Return the position within the split and the joints, mm, of every image with a hand."""
    place, slot = np.nonzero(_labelled_hands(collected))
    return place, collected.joints_3d[place, slot].astype(np.float64) * 1000


# --- InterHand2.6M: both hands of an image, those of one hand first -------------------------------


def _no_hand(collected: Collected) -> Bool[np.ndarray, "n 2"]:
    return np.zeros_like(collected.seen)


def _interhand_report(collected: Collected, context: ReportContext) -> Report:
    return interhand26m.report(
        _interhand_predictions(collected),
        _interhand_truth(collected),
        strict=context.strict,
        crop=context.crop,
        camera=f"{context.camera}; {_NO_HANDEDNESS}",
    )


def _export_interhand(collected: Collected, path: Path) -> None:
    pred = _interhand_predictions(collected)
    write_npz(path, joints_mm=pred.joints_mm, hand_type=pred.hand_type)


def _interhand_predictions(collected: Collected) -> interhand26m.Predictions:
    """Return both hands in InterHand's joint order, mm; the score of a hand is its presence.

    A view of both hands predicts absent hands too: presence is taken from the labels.
    """
    shown = collected.seen & collected.store.label("has_joints")[collected.rows]
    joints = collected.joints_3d[:, :, _INTERHAND_FROM_STANDARD].astype(np.float64) * 1000
    joints = joints.reshape(len(joints), 42, 3)
    between = joints[:, interhand26m.LEFT_WRIST] - joints[:, interhand26m.RIGHT_WRIST]
    return interhand26m.Predictions(
        joints_mm=joints, hand_type=shown.astype(np.float64), left_from_right_mm=between
    )


def _interhand_truth(collected: Collected) -> interhand26m.Truth:
    store, rows = collected.store, collected.rows
    valid = store.label("joint_valid")[rows][:, :, _INTERHAND_FROM_STANDARD]
    joints = store.label("joints_3d")[rows][:, :, _INTERHAND_FROM_STANDARD]
    num = len(rows)
    num_single = len(store.split(f"{collected.split}_single"))
    hand_type = np.where(valid[:, RIGHT].sum(1) >= valid[:, LEFT].sum(1), RIGHT, LEFT)
    hand_type[num_single:] = interhand26m.HAND_TYPES.index("interacting")
    K = store.label("K")[rows].astype(np.float64)
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


def _unchanged(joints: Points, vertices: Points) -> tuple[Points, Points]:
    return joints, vertices


PROTOCOLS: Final = {
    "freihand": SplitProtocol(
        splits=("evaluation",),
        crop=LABELLED_BOX,
        requires=_MESH,
        mesh=MeshForm(report=freihand.report, to_official=_unchanged, to_standard=_unchanged),
        wanted=_right_hand,
        report=_mesh_report,
        export=_export_meshes,
        endings=(".json", ".zip"),
    ),
    "ho3d": SplitProtocol(
        splits=("evaluation",),
        crop="the dataset's handBoundingBox",
        requires=_MESH,
        mesh=MeshForm(
            report=ho3d.report, to_official=ho3d.to_official, to_standard=ho3d.to_standard
        ),
        wanted=_right_hand,
        report=_mesh_report,
        export=_export_meshes,
        endings=(".json", ".zip"),
    ),
    "dexycb": SplitProtocol(
        splits=tuple(f"s{setup}_{part}" for setup in range(4) for part in ("val", "test")),
        crop=LABELLED_BOX,
        wanted=_labelled_hands,
        report=_dexycb_report,
        export=_export_dexycb,
        endings=(".txt",),
    ),
    "interhand26m": SplitProtocol(
        splits=("val", "test"),
        crop=f"annotated box of an image with one hand, else {LABELLED_BOX}",
        row_lists=("{split}_single", "{split}_interacting"),
        wanted=_no_hand,
        report=_interhand_report,
        export=_export_interhand,
        endings=(".npz",),
    ),
    "arctic": SplitProtocol(
        splits=arctic_store.SPLITS,
        crop=LABELLED_BOX,
        requires=_SCENE,
        wanted=arctic_store.wanted,
        report=arctic_store.report,
        export=arctic_store.export,
        endings=(),
    ),
}
"""Protocols by the dataset of a store."""
