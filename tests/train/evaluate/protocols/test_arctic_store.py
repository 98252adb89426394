"""ARCTIC's protocol on a store, against files written from what the sample's generator drew."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from model.hand import NUM_HANDS
from model.mano.files import load_mano
from model.mano.layer import ManoLayer
from model.prediction import HandPrediction, ObjectPrediction, Prediction, hands_of
from pipeline.batch import Batch
from pipeline.config import (
    Boundary,
    CacheConfig,
    PipelineConfig,
    ViewConfig,
    ViewKind,
    WindowConfig,
)
from pipeline.loader import Loader
from pipeline.store.objects import read_object
from pipeline.store.reader import Store, open_store
from preprocess.sample.arctic.scene import OFFSETS, Truth, plans, truth_of
from tests.conftest import SampleStore
from tests.train.evaluate.protocols.hands import MESH, SCENE
from train.evaluate.protocols import arctic as files
from train.evaluate.protocols import on_store
from train.evaluate.protocols.arctic_store import clips
from train.evaluate.protocols.collected import Collected, ReportContext, collect, empty_collection
from train.evaluate.protocols.report import Report

CPU = torch.device("cpu")
SEED, NUM = 3, 54
"""Of the fixture."""


@pytest.fixture(scope="module")
def store(arctic: SampleStore) -> Store:
    return open_store(arctic.store)


def drawn(store: Store, row: int) -> Truth:
    """What the generator drew in the image of a row."""
    names = store.attributes.tables
    folder = names["sequence"][store.label("sequence_idx")[row]]
    plan = next(plan for plan in plans(SEED, NUM) if plan.folder == folder)
    view = int(names["camera"][store.label("camera_idx")[row]])
    return truth_of(SEED, plan, view, int(store.label("frame_idx")[row]) - OFFSETS[plan.subject])


def noise(row: int, *shape: int) -> np.ndarray:
    return np.random.default_rng([row, 5]).normal(size=shape)


def said(store: Store, batch: Batch, size: float) -> Prediction:
    """The truth as the store has it, with noise of ``size`` (metres, radians)."""
    rows = (batch.sample_id // NUM_HANDS).tolist()
    hands, objects = [], []
    for row in rows:
        off = size * noise(row, 12)
        slot = int(store.label("has_object")[row].argmax())
        pose = store.label("object_pose")[row, slot].astype(np.float64)
        theta = store.label("theta")[row].astype(np.float64).reshape(2 * 16, 3)
        rotmat = Rotation.from_rotvec(theta).as_matrix().reshape(2, 16, 3, 3)
        turn = Rotation.from_rotvec(off[:3]).as_matrix()
        rotmat[:, 0] = turn @ rotmat[:, 0]
        transl = store.label("transl")[row] + off[3:6]
        joints = store.label("joints_3d")[row] + off[6:9] + size * noise(row, 2, 21, 3)
        beta = np.nan_to_num(store.label("beta")[row])  # left: no shape of the fixed model fits
        hands.append((rotmat, beta, transl, joints))
        arti = store.label("object_arti_rad")[row, slot] + off[9]
        objects.append((turn @ pose[:, :3], pose[:, 3] + off[9:12], arti))

    def column(parts: Sequence[tuple[Any, ...]], i: int) -> torch.Tensor:
        return torch.from_numpy(np.stack([part[i] for part in parts])).float()

    return Prediction(
        hands=HandPrediction(
            joints_3d=column(hands, 3),
            vertices=torch.zeros(len(rows), 2, 778, 3),
            theta_rotmat=column(hands, 0),
            beta=column(hands, 1),
            transl=column(hands, 2),
        ),
        object=ObjectPrediction(
            rotmat=column(objects, 0),
            rot6d=torch.zeros(len(rows), 6),
            transl=column(objects, 1),
            arti_rad=column(objects, 2),
        ),
    )


def collect_split(store: Store, arctic: SampleStore, size: float, length: int = 1) -> Collected:
    config = PipelineConfig(
        store=str(store.path),
        split="p1_val",
        batch_size=5,
        input_px=16,
        view=ViewConfig(kind=ViewKind.hand_object),
        cache=CacheConfig(size_px=16, decode_threads=1),
        window=WindowConfig(length=length, stride=length, boundary=Boundary.repeat),
    )
    loader = Loader(config, device=CPU, training=False)
    protocol = on_store.protocol_of(store, "p1_val", SCENE)
    assert protocol is not None
    sample_id = loader.parts[0].view.sample_id
    mano = load_mano(arctic.mano)
    collected = empty_collection(protocol, store, "p1_val", sample_id, is_single=False, mano=mano)
    for windows in loader:
        batch = windows.frames()
        prediction = said(store, batch, size)
        # A frame that only fills a window up must not count.
        wrong = ~batch.is_real
        hands, obj = hands_of(prediction), prediction.object
        assert obj is not None
        hands.joints_3d[wrong] += 1.0
        obj.transl[wrong] += 1.0
        collect(collected, prediction, batch, None)
    return collected


def how(*, strict: bool = False) -> ReportContext:
    return ReportContext(strict=strict, crop="c", camera="true", device=CPU)


def official(collected: Collected, *, strict: bool = False) -> Report:
    report = on_store.official_report(collected, how(strict=strict))
    assert isinstance(report, Report)
    return report


def write_truth(collected: Collected, folder: Path) -> None:
    """Write the generator's truth in the form of ``train evaluate protocol=arctic``."""
    folder.mkdir()
    store = collected.store
    for clip in clips(collected):
        rows = collected.rows[clip.place]
        truths = [drawn(store, int(row)) for row in rows]
        seen = store.label("official_valid")[rows] & store.label("sample_ok")[rows, None]
        points = np.stack([np.concatenate((truth.lid, truth.base)) for truth in truths])
        num_lid = len(truths[0].lid)
        object_id = int(store.label("object_id")[rows[0], 0])
        shape = read_object(store.path, store.attributes.tables["object"][object_id])
        parts = np.where(np.arange(points.shape[1]) < num_lid, 1, 2)
        # The lid lies on the base: only the part tells some of their vertices apart.
        order = nearest(np.c_[shape.vertices, 2 - shape.vertex_part], np.c_[flat(truths[0]), parts])
        corner = np.linalg.norm(shape.vertices[:, None] - shape.vertices[None], axis=-1)
        np.savez(
            folder / f"{clip.name}.npz",
            allow_pickle=False,
            joints_right=np.stack([t.joints_3d[0] for t in truths]),
            joints_left=np.stack([t.joints_3d[1] for t in truths]),
            vertices_right=np.stack([t.vertices[0] for t in truths]),
            vertices_left=np.stack([t.vertices[1] for t in truths]),
            object_vertices=points[:, order],
            arti_rad=np.array([t.arti_rad for t in truths]),
            is_valid=seen[:, 2].astype(float),
            right_valid=seen[:, 0].astype(float),
            left_valid=seen[:, 1].astype(float),
            part_ids=parts[order],
            diameter_m=corner.max(),
        )


def flat(truth: Truth) -> np.ndarray:
    """Lid and base at angle 0, object frame."""
    R, t = truth.T_cam_from_obj[:3, :3], truth.T_cam_from_obj[:3, 3]
    lid, base = ((points - t) @ R for points in (truth.lid, truth.base))
    return np.concatenate((Rotation.from_rotvec([0, 0, truth.arti_rad]).apply(lid), base))


def nearest(wanted: np.ndarray, points: np.ndarray) -> np.ndarray:
    apart = np.linalg.norm(wanted[:, None] - points[None], axis=-1)
    assert apart.min(1).max() < 1e-5
    return np.asarray(apart.argmin(1))


def test_the_truth_scores_zero(store: Store, arctic: SampleStore) -> None:
    collected = collect_split(store, arctic, 0.0)
    # The fixed left model does not give the shipped left hand: that of the truth, for this test.
    assert collected.scenes is not None
    mano = collected.scenes.mano
    shipped = dataclasses.replace(mano, left=mano.left_as_shipped)
    layer, right = ManoLayer(shipped), torch.zeros(len(collected.rows), dtype=torch.bool)
    beta = store.label("beta_raw")[collected.rows, 1]
    wrist = (store.label("root_rest") + store.label("transl"))[collected.rows, 1]
    collected.scenes.beta[:, 1] = beta
    collected.scenes.transl[:, 1] = wrist - layer.root_rest(torch.from_numpy(beta), right).numpy()
    collected = dataclasses.replace(
        collected, scenes=dataclasses.replace(collected.scenes, mano=shipped)
    )
    scores = official(collected).official
    for name in ("aae", "mpjpe/ra/h", "mrrpe/r/l", "mrrpe/r/o", "acc/h", "acc/o"):
        assert scores[name] == pytest.approx(0, abs=1e-2), name
    assert scores["success_rate/0.05"] == pytest.approx(100)


@pytest.mark.parametrize(("length", "strict"), [(1, False), (2, True)])
def test_noisy_scenes_score_as_their_files_do(
    store: Store, arctic: SampleStore, tmp_path: Path, length: int, *, strict: bool
) -> None:
    collected = collect_split(store, arctic, 0.02, length)
    report = official(collected, strict=strict)
    collected.protocol.export(collected, tmp_path)
    write_truth(collected, tmp_path / "drawn")
    expected = files.score(tmp_path / "predictions", tmp_path / "drawn", strict=strict)
    own = files.score(tmp_path / "predictions", tmp_path / "truth", strict=strict).official
    assert report.num_samples == expected.num_samples == len(collected.rows)
    assert report.scores["num_sequences"] == expected.scores["num_sequences"] == 8
    for name, value in expected.official.items():
        if value is None:
            assert report.official[name] is None, name
        else:
            assert report.official[name] == pytest.approx(value, rel=1e-3), name
            assert own[name] == pytest.approx(report.official[name], rel=1e-3), name
    assert min(report.official[name] for name in ("mpjpe/ra/h", "aae", "acc/h", "acc/o")) > 0.1


def test_windows_score_as_single_frames(store: Store, arctic: SampleStore) -> None:
    one, two = (official(collect_split(store, arctic, 0.02, n)).official for n in (1, 2))
    assert one == two


class WithoutImages:
    """A store in which the images of some rows cannot be read."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def label(self, name: str) -> np.ndarray:
        values = self._store.label(name)
        if name == "sample_ok":
            values = values.copy()
            values[self._rows] = False
        return values


def test_rows_without_an_image_are_told_and_not_scored(store: Store, arctic: SampleStore) -> None:
    collected = collect_split(store, arctic, 0.02)
    whole = official(collected)
    assert collected.scenes is not None
    collected.scenes.arti_rad[:2] = collected.scenes.theta_rotmat[:2] = collected.joints_3d[:2] = (
        np.nan
    )
    with pytest.raises(ValueError, match="not finite"):
        official(collected)
    poorer: Any = WithoutImages(store, collected.rows[:2])
    report = official(dataclasses.replace(collected, store=poorer))
    assert report.warnings == ("2 of 24 rows have no readable image: they are not scored",)
    assert report.official["aae"] != whole.official["aae"]
    collected.seen[2] = False
    sentence = on_store.official_report(dataclasses.replace(collected, store=poorer), how())
    assert isinstance(sentence, str)
    assert "1 of 19 rows cannot be predicted" in sentence


def test_a_network_without_an_object_has_no_protocol(store: Store) -> None:
    assert on_store.protocol_of(store, "p1_val", MESH) is None
    assert on_store.protocol_of(store, "p1_train", SCENE) is None
    assert "needs meshes and an object" in on_store.choices()
