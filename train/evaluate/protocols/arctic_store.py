"""ARCTIC's protocol on a store: predicted and true scenes, one view of a sequence at a time.

The truth is decoded from the store as the dataset defines it: hands with the model that they were
fitted with (the left one, and the shapes, as shipped), the whole object mesh, and in-view flags by
the official rule. Two things differ from the official files: validity is boolean here, and an
object's diameter is the largest distance between two vertices of its mesh.

Shape legend: f = frames of a sequence in order, v = object vertices.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from model.geometry.articulation import articulated
from model.geometry.rotation import axis_angle_to_rotmat, rotate
from model.hand import LEFT, NUM_MANO_JOINTS, RIGHT
from model.mano.files import ManoModels
from model.mano.layer import ManoLayer
from pipeline.app.progress import tracked
from pipeline.store.objects import ObjectShape, read_object
from pipeline.store.reader import Store
from train.evaluate.metrics.arctic import (
    ArcticAccumulator,
    ArcticPose,
    ArcticTruth,
    Nearest,
    field_of,
    score_pose,
)
from train.evaluate.protocols.arctic import report_of
from train.evaluate.protocols.collected import Collected, ReportContext
from train.evaluate.protocols.files import write_npz
from train.evaluate.protocols.report import Report

SPLITS = ("p1_val", "p2_val")
"""Splits with labelled whole sequences; the labels of the test set (s03) are not public."""
TOP, BOTTOM = 1, 2
"""Part ids of the protocol."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One sequence seen by one camera."""

    name: str
    """``s05_box_grab_01_1``: named as the leaderboard's folders."""
    sequence: int
    place: Int64[np.ndarray, " f"]
    """Where its frames are in ``Collected``, in order."""


def wanted(collected: Collected) -> Bool[np.ndarray, "n 2"]:
    """Return the hands of rows that the protocol scores anything of."""
    store = collected.store
    scored = (
        store.label("official_valid")[collected.rows].any(1)
        & store.label("sample_ok")[collected.rows]
    )
    return np.repeat(scored[:, None], 2, 1)


def report(collected: Collected, context: ReportContext) -> Report | str:
    """Score all clips, or say what they lack."""
    store, scenes = collected.store, collected.scenes
    assert scenes is not None
    lacking = _lacking(collected)
    if lacking is not None:
        return lacking
    layer = ManoLayer(scenes.mano).to(context.device)
    own_layer = ManoLayer(_as_fitted(scenes.mano)).to(context.device)
    scores, found = ArcticAccumulator(), list(clips(collected))
    known: tuple[int, Int64[np.ndarray, " f"], Nearest] | None = None
    for clip in tracked(found, len(found), "official protocol", "clips"):
        rows = collected.rows[clip.place]
        shape = _shape(store, rows)
        truth = true_scene(store, rows, shape, own_layer, context.device)
        frames = store.label("frame_idx")[rows]
        # Distances are the same in every camera.
        if known is None or known[0] != clip.sequence or not np.array_equal(known[1], frames):
            known = clip.sequence, frames, field_of(truth.pose)
        pred = predicted_scene(collected, clip.place, shape, layer, context.device)
        scores.update(score_pose(pred, truth, strict=context.strict, field=known[2]))
    return report_of(
        scores.summary(),
        strict=context.strict,
        num_frames=len(collected.rows),
        num_sequences=len(found),
        crop=context.crop,
        camera=context.camera,
        warnings=_warnings(collected),
        parts=scores.parts,
    )


def export(collected: Collected, path: Path) -> None:
    """Write ``predictions`` and ``truth``, a file per clip: what ``protocol=arctic`` reads.

    Raises:
        ValueError: If the truth of some rows is incomplete.
    """
    assert collected.scenes is not None
    lacking = _lacking(collected)
    if lacking is not None:
        raise ValueError(f"export: {lacking}")
    device = torch.device("cpu")
    layer, own_layer = (
        ManoLayer(collected.scenes.mano),
        ManoLayer(_as_fitted(collected.scenes.mano)),
    )
    found = list(clips(collected))
    for clip in tracked(found, len(found), "export", "clips"):
        rows = collected.rows[clip.place]
        shape = _shape(collected.store, rows)
        truth = true_scene(collected.store, rows, shape, own_layer, device)
        more = {
            "is_valid": truth.is_valid.numpy(),
            "right_valid": truth.right_valid.numpy(),
            "left_valid": truth.left_valid.numpy(),
            "part_ids": truth.part_ids.numpy(),
            "diameter_m": np.float64(truth.diameter_m),
        }
        pose = predicted_scene(collected, clip.place, shape, layer, device)
        _write(path / "predictions" / f"{clip.name}.npz", pose, {})
        _write(path / "truth" / f"{clip.name}.npz", truth.pose, more)


def _write(path: Path, pose: ArcticPose, more: Mapping[str, Any]) -> None:
    arrays = {
        field.name: getattr(pose, field.name).float().numpy() for field in dataclasses.fields(pose)
    }
    write_npz(path, **arrays, **more)


def _as_fitted(mano: ManoModels) -> ManoModels:
    """Return the models that the dataset was fitted with."""
    return dataclasses.replace(mano, left=mano.left_as_shipped)


def clips(collected: Collected) -> Iterator[Clip]:
    """Yield the clips of a split by sequence and camera."""
    store = collected.store
    names = store.attributes.tables
    keys = [store.label(f"{key}_idx")[collected.rows] for key in ("frame", "camera", "sequence")]
    order = np.lexsort(keys)
    _, camera, sequence = (key[order] for key in keys)
    begins = np.flatnonzero((np.diff(sequence) != 0) | (np.diff(camera) != 0)) + 1
    for place in np.split(order, begins):
        row = collected.rows[place[0]]
        folder = names["sequence"][store.label("sequence_idx")[row]].replace("/", "_")
        view = names["camera"][store.label("camera_idx")[row]]
        yield Clip(
            name=f"{folder}_{view}", sequence=int(store.label("sequence_idx")[row]), place=place
        )


def predicted_scene(
    collected: Collected,
    place: Int64[np.ndarray, " f"],
    shape: ObjectShape,
    layer: ManoLayer,
    device: torch.device,
) -> ArcticPose:
    """Return what was predicted of the frames at ``place``; NaN where nothing was."""
    scenes = collected.scenes
    assert scenes is not None

    def at(name: str) -> Tensor:
        return torch.from_numpy(getattr(scenes, name)[place]).to(device)

    hands = [
        layer(
            at("theta_rotmat")[:, hand],
            at("beta")[:, hand],
            at("transl")[:, hand],
            torch.full((len(place),), hand == RIGHT, device=device),
        )[0]
        for hand in (RIGHT, LEFT)
    ]
    joints = torch.from_numpy(collected.joints_3d[place]).to(device)
    joints[~torch.from_numpy(collected.seen[place]).to(device)] = torch.nan
    return ArcticPose(
        joints_right=joints[:, RIGHT],
        joints_left=joints[:, LEFT],
        vertices_right=hands[RIGHT],
        vertices_left=hands[LEFT],
        object_vertices=_object(
            shape, at("object_rotmat"), at("object_transl"), at("arti_rad"), device
        ),
        arti_rad=at("arti_rad"),
    )


def true_scene(
    store: Store,
    rows: Int64[np.ndarray, " f"],
    shape: ObjectShape,
    layer: ManoLayer,
    device: torch.device,
) -> ArcticTruth:
    """Return the truth of a clip.

    Args:
        store: The store.
        rows: The clip's frames in order.
        shape: Shape of its object.
        layer: MANO layer with the left model as shipped.
        device: Where to decode.
    """

    def at(name: str) -> Tensor:
        return torch.from_numpy(store.label(name)[rows]).to(device)

    theta, joints = at("theta"), at("joints_3d")
    rotmat = axis_angle_to_rotmat(theta.double().view(len(rows), 2, NUM_MANO_JOINTS, 3)).float()
    wrist = at("root_rest") + at("transl")  # for the store's shape and for the shipped one
    hands = []
    for hand in (RIGHT, LEFT):
        right = torch.full((len(rows),), hand == RIGHT, device=device)
        beta = at("beta_raw")[:, hand]
        transl = wrist[:, hand] - layer.root_rest(beta, right)
        hands.append(layer(rotmat[:, hand], beta, transl, right)[0])
    slot = torch.from_numpy(_slot(store, rows)).to(device)
    place = torch.arange(len(rows), device=device)
    pose, arti = at("object_pose")[place, slot], at("object_arti_rad")[place, slot]
    valid = store.label("official_valid")[rows] & store.label("sample_ok")[rows, None]
    seen = torch.from_numpy(valid).to(device, torch.float64)
    return ArcticTruth(
        pose=ArcticPose(
            joints_right=joints[:, RIGHT],
            joints_left=joints[:, LEFT],
            vertices_right=hands[RIGHT],
            vertices_left=hands[LEFT],
            object_vertices=_object(shape, pose[..., :3], pose[..., 3], arti, device),
            arti_rad=arti,
        ),
        is_valid=seen[:, 2],
        right_valid=seen[:, RIGHT],
        left_valid=seen[:, LEFT],
        part_ids=torch.from_numpy(np.where(shape.vertex_part == 1, TOP, BOTTOM)).to(device),
        diameter_m=shape.diameter_m,
    )


def _object(
    shape: ObjectShape,
    R: Float[Tensor, "f 3 3"],
    t: Float[Tensor, "f 3"],
    arti_rad: Float[Tensor, " f"],
    device: torch.device,
) -> Float[Tensor, "f v 3"]:
    num = (len(t), len(shape.vertices))
    points = torch.from_numpy(shape.vertices).to(device).expand(*num, 3)
    moving = torch.from_numpy(shape.vertex_part == 1).to(device).expand(num)
    return rotate(R, articulated(points, moving, arti_rad)) + t[:, None]


def _shape(store: Store, rows: Int64[np.ndarray, " f"]) -> ObjectShape:
    row = rows[:1]
    number = int(store.label("object_id")[row, _slot(store, row)][0])
    return read_object(store.path, store.name_of("object", number))


def _slot(store: Store, rows: Int64[np.ndarray, " f"]) -> Int64[np.ndarray, " f"]:
    """Return the slot of the sequence's object: ARCTIC has one per sequence."""
    return np.asarray(store.label("has_object")[rows].argmax(1), np.int64)


def _lacking(collected: Collected) -> str | None:
    """Return a sentence about rows whose truth is not whole, if any."""
    store, rows = collected.store, collected.rows
    has_hands = store.label("has_mano")[rows].all(1)
    has_object = store.label("has_object")[rows].any(1)
    for what, known in (("MANO parameters of both hands", has_hands), ("an object", has_object)):
        if not known.all():
            first = rows[~known][0]
            return (
                f"{collected.source}: {int((~known).sum())} of {len(rows)} rows lack {what} "
                f"(first: row {first}), and the protocol follows whole sequences; build the store "
                "with mano=FOLDER from the whole raw_seqs and meta"
            )
    return None


def _warnings(collected: Collected) -> tuple[str, ...]:
    absent = int((~collected.store.label("sample_ok")[collected.rows]).sum())
    if not absent:
        return ()
    return (f"{absent} of {len(collected.rows)} rows have no readable image: they are not scored",)
