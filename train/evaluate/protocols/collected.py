"""Predictions for a store's split, collected in the order of the dataset's official protocol.

Shape legend: n = rows of the split, b = batch, h = hands (slot 0 right, slot 1 left).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from model.geometry.rotation import rotate
from model.hand import NUM_BETAS, NUM_HANDS, NUM_MANO_JOINTS, RIGHT
from model.mano.files import ManoModels
from model.prediction import Prediction, hands_of
from pipeline.batch import Batch
from pipeline.store.reader import Store
from train.evaluate.protocols import freihand
from train.evaluate.protocols.checks import require_count
from train.evaluate.protocols.freihand import Points
from train.evaluate.protocols.report import Report


@dataclass(frozen=True, kw_only=True, slots=True)
class MeshForm:
    """Point format of a protocol that scores the mesh of one right hand per image."""

    report: Callable[..., Report]
    to_official: Callable[[Points, Points], tuple[Points, Points]]
    """Converts joints and vertices from OpenCV axes and standard order to the official ones."""
    to_standard: Callable[[Points, Points], tuple[Points, Points]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitProtocol:
    """How a store feeds the official protocol of its dataset."""

    splits: tuple[str, ...]
    crop: str
    """Source of the crops of these splits."""
    row_lists: tuple[str, ...] = ("{split}",)
    """Splits of the store that form one of ``splits``, concatenated."""
    mesh: MeshForm | None = None
    """None: only joints, or a scene, are scored."""
    requires: frozenset[str] = frozenset({"hands.joints_3d"})
    """Tensors of the prediction that it scores, by ``model.prediction.tensors_of``'s names."""
    wanted: Callable[["Collected"], Bool[np.ndarray, "n 2"]]
    """Hands without which the official tool gives no score."""
    report: Callable[["Collected", "ReportContext"], Report | str]
    """The report, or the sentence that says what it lacks."""
    export: Callable[["Collected", Path], None]
    """Writes the predictions as the official tool reads them."""
    endings: tuple[str, ...]
    """Endings of the exported file; none: a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportContext:
    """What a report names beside its numbers."""

    strict: bool
    crop: str
    camera: str
    device: torch.device
    """Device on which meshes are decoded and compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Meshes:
    """Predicted meshes and the true hands beside them, as in ``Collected``."""

    vertices: Float32[np.ndarray, "n 778 3"]
    true_joints: Float64[np.ndarray, "n 21 3"]
    """NaN where unknown; so is ``true_vertices``."""
    true_vertices: Float64[np.ndarray, "n 778 3"]
    source: str
    """Source of the truth, in words."""
    from_store: bool
    """Whether ``true_vertices`` are decoded from the store's MANO parameters, batch by batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """Predicted hands and object, as in ``Collected``; NaN where there is no crop.

    Parameters instead of meshes take a fourteenth of the memory per hand.
    """

    theta_rotmat: Float32[np.ndarray, "n 2 16 3 3"]
    beta: Float32[np.ndarray, "n 2 10"]
    transl: Float32[np.ndarray, "n 2 3"]
    object_rotmat: Float32[np.ndarray, "n 3 3"]
    object_transl: Float32[np.ndarray, "n 3"]
    arti_rad: Float32[np.ndarray, " n"]
    mano: ManoModels
    """MANO models that the parameters belong to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collected:
    """Predictions of a split; camera frame of the dataset, OpenCV axes, metres."""

    protocol: SplitProtocol
    store: Store
    split: str
    rows: Int64[np.ndarray, " n"]
    """Rows of the store, official order."""
    sorter: Int64[np.ndarray, " n"]
    """``np.argsort(rows)``, computed once to look up batches."""
    seen: Bool[np.ndarray, "n 2"]
    """Whether there is a crop of the hand."""
    joints_3d: Float32[np.ndarray, "n 2 21 3"]
    """Zero where there is none."""
    meshes: Meshes | None
    scenes: Scenes | None
    """Given where the protocol scores the object as well."""

    @property
    def source(self) -> str:
        """Return what is scored, in words."""
        return f"{self.store.path} split={self.split}"


def empty_collection(
    protocol: SplitProtocol,
    store: Store,
    split: str,
    sample_id: Int64[Tensor, " m"],
    truth: Path | None = None,
    *,
    is_single: bool = True,
    mano: ManoModels | None = None,
) -> Collected:
    """Return room for the predictions of a split, in the official order of its protocol.

    Args:
        protocol: Protocol of the store and the split.
        store: The open store.
        split: One of the protocol's splits.
        sample_id: Every sample that will be predicted.
        truth: The dataset's own ground truth, for a mesh that the store does not have.
        is_single: The view is of single hands; else every sample shows both.
        mano: MANO models of the network; a scene needs them.

    Raises:
        ValueError: If ``truth`` does not fit the split, or the protocol takes none.
        FileNotFoundError: If ``truth`` lacks a file.
    """
    lists = [store.split(name.format(split=split)) for name in protocol.row_lists]
    rows = np.concatenate(lists).astype(np.int64)
    has_crop = np.zeros((store.num_rows, NUM_HANDS), bool)
    row, slot = divmod(sample_id.numpy(), NUM_HANDS)
    for shown in (slot,) if is_single else range(NUM_HANDS):
        has_crop[row, shown] = True
    return Collected(
        protocol=protocol,
        store=store,
        split=split,
        rows=rows,
        sorter=np.argsort(rows),
        seen=has_crop[rows],
        joints_3d=np.zeros((len(rows), NUM_HANDS, 21, 3), np.float32),
        meshes=_meshes(protocol, store, rows, truth),
        scenes=_scenes(len(rows), mano) if "object.rotmat" in protocol.requires else None,
    )


def collect(
    collected: Collected,
    prediction: Prediction,
    batch: Batch,
    true_vertices: Float[Tensor, "b h 778 3"] | None,
) -> None:
    """Store the predictions for a batch (``Batch.frames``), mapped back to the dataset's camera.

    ``true_vertices`` are decoded from its labels.
    """
    real = batch.is_real.cpu().numpy()
    row, slot = divmod(batch.sample_id.cpu().numpy()[real], NUM_HANDS)
    place = collected.sorter[np.searchsorted(collected.rows, row, sorter=collected.sorter)]
    back = batch.R_input_from_cam.double().mT

    def in_camera(points: Tensor) -> np.ndarray:
        return np.asarray(rotate(back, points.double()).cpu().numpy()[real], np.float32)

    hands = hands_of(prediction)
    if hands.joints_3d.shape[1] == 1:
        collected.joints_3d[place, slot] = in_camera(hands.joints_3d[:, 0])
    else:
        for hand in range(NUM_HANDS):
            collected.joints_3d[place, hand] = in_camera(hands.joints_3d[:, hand])
    if collected.meshes is not None:
        assert hands.vertices is not None
        collected.meshes.vertices[place] = in_camera(hands.vertices[:, RIGHT])
        if collected.meshes.from_store:
            assert true_vertices is not None
            known = (batch.has_mano & batch.has_beta)[:, RIGHT].cpu().numpy()[real]
            collected.meshes.true_vertices[place[known]] = in_camera(true_vertices[:, RIGHT])[known]
    if collected.scenes is not None:
        _put_scene(collected.scenes, place, prediction, real)


def _put_scene(
    scenes: Scenes, place: Int64[np.ndarray, " k"], prediction: Prediction, real: np.ndarray
) -> None:
    """Store parameters unchanged: images of both hands are neither rotated nor mirrored here."""
    hands, obj = hands_of(prediction), prediction.object
    assert hands.theta_rotmat is not None
    assert hands.beta is not None
    assert hands.transl is not None
    assert obj is not None
    columns = {
        "theta_rotmat": hands.theta_rotmat,
        "beta": hands.beta,
        "transl": hands.transl,
        "object_rotmat": obj.rotmat,
        "object_transl": obj.transl,
        "arti_rad": obj.arti_rad,
    }
    for name, values in columns.items():
        getattr(scenes, name)[place] = values.float().cpu().numpy()[real]


def _scenes(num: int, mano: ManoModels | None) -> Scenes:
    assert mano is not None, "the protocol requires vertices, and they need the MANO files"

    def missing(*shape: int) -> np.ndarray:
        return np.full((num, *shape), np.nan, np.float32)

    return Scenes(
        theta_rotmat=missing(NUM_HANDS, NUM_MANO_JOINTS, 3, 3),
        beta=missing(NUM_HANDS, NUM_BETAS),
        transl=missing(NUM_HANDS, 3),
        object_rotmat=missing(3, 3),
        object_transl=missing(3),
        arti_rad=missing(),
        mano=mano,
    )


def unpredicted(collected: Collected) -> str | None:
    """Return a sentence about hands that the official tool wants and no crop shows, if any."""
    wanted = collected.protocol.wanted(collected)
    absent = np.flatnonzero((wanted & ~collected.seen).any(1))
    if not len(absent):
        return None
    num, first = int(wanted.any(1).sum()), collected.rows[absent[0]]
    return (
        f"{collected.source}: {len(absent)} of {num} rows cannot be predicted, they have no box of "
        f"a hand or no readable image (first: row {first}); the official tool wants every one"
    )


def _meshes(
    protocol: SplitProtocol, store: Store, rows: Int64[np.ndarray, " n"], truth: Path | None
) -> Meshes | None:
    if protocol.mesh is None:
        if truth is not None:
            raise ValueError(
                f"truth={str(truth)!r}: the official truth of {store.attributes.dataset} is in the "
                "store; leave truth out"
            )
        return None
    vertices = np.zeros((len(rows), 778, 3), np.float32)
    if truth is None:
        return Meshes(
            vertices=vertices,
            true_joints=store.label("joints_3d")[rows, RIGHT].astype(np.float64),
            true_vertices=np.full(vertices.shape, np.nan),
            source="true mesh decoded from the store's MANO parameters",
            from_store=True,
        )
    official = freihand.read_truth(truth)
    require_count("rows of the split", len(rows), len(official[0]), str(truth))
    true_joints, true_vertices = protocol.mesh.to_standard(*official)
    return Meshes(
        vertices=vertices,
        true_joints=true_joints,
        true_vertices=true_vertices,
        source=f"truth from {truth}",
        from_store=False,
    )
