"""Annotated pixels: what the network sees under them is what was annotated, in any crop."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from model.prediction import HandPrediction, Prediction
from pipeline.batch import Batch
from pipeline.config import AugmentConfig, CacheConfig, MixPart, PipelineConfig, ViewConfig
from pipeline.labels.joints_2d import Joints2DLabels
from pipeline.loader import Loader
from pipeline.store.reader import open_store
from pipeline.store.schema import FLAGS
from preprocess.builder.build import build
from preprocess.builder.verify import verify
from preprocess.config import BuildConfig, ImageConfig, ImageEncoding, Region, VerifyConfig
from tests.preprocess.sources.folder.dataset import Folder, write_folder
from train.losses.config import LossConfig
from train.losses.plan import plan_losses
from train.losses.total import total_loss

CPU = torch.device("cpu")
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Two of twelve images have 3D joints; the camera of the others is assumed."""
    made = write_folder(tmp_path_factory.mktemp("own") / "own", num=12, size_hw=(96, 128))
    for record in made.records[2:]:
        del record["hands"][0]["joints_3d"]
        del record["K"]
    made.records[5]["hands"][0]["joints_2d"][7] = None
    made.write()
    return made


@pytest.fixture(scope="module")
def store(folder: Folder) -> Path:
    config = BuildConfig(
        dataset="folder", root=str(folder.root), out=str(folder.root.parent / "s.zarr"), workers=1
    )
    return build(config, console=QUIET).path


def settings(store: Path, **augment: float) -> PipelineConfig:
    return PipelineConfig(
        store=str(store),
        split="all",
        batch_size=4,
        input_px=32,
        view=ViewConfig(pad=4.0),
        cache=CacheConfig(size_px=36),
        augment=AugmentConfig(**augment),
    )


@pytest.fixture
def batch(store: Path) -> Iterator[Batch]:
    config = settings(store, rotation_deg=90, scale=0.2, shift=0.1)
    with Loader(config, device=CPU, groups=[Joints2DLabels]) as loader:
        yield next(iter(loader))


def given_pixels(folder: Folder, batch: Batch) -> Tensor:
    """The annotated pixels of a batch [b, 21, 2]; rows are in the order of the records."""
    rows = (batch.sample_id // 2).tolist()
    hands = [folder.records[row]["hands"][0]["joints_2d"] for row in rows]
    return torch.tensor([[joint or [np.nan] * 2 for joint in hand] for hand in hands])


def test_the_store_has_the_annotated_pixels(folder: Folder, store: Path) -> None:
    opened = open_store(store)
    stored = opened.label("joints_2d")
    for row, record in enumerate(folder.records):
        expected = [joint or [np.nan] * 2 for joint in record["hands"][0]["joints_2d"]]
        np.testing.assert_allclose(stored[row, 0], np.array(expected), rtol=1e-6)
    assert np.isnan(stored[:, 1]).all()
    assert opened.label("has_joints")[:, 0].tolist() == [True] * 2 + [False] * 10
    no_mano = FLAGS["no_mano"]  # 3D joints without parameters
    assert opened.label("quality").tolist() == [no_mano] * 2 + [0] * 10
    # The box is that of the annotated pixels.
    np.testing.assert_allclose(
        opened.label("bbox_xyxy")[4, 0], [*stored[4, 0].min(0), *stored[4, 0].max(0)], rtol=1e-6
    )
    assert not verify(VerifyConfig(store=str(store), root=str(folder.root)), console=QUIET).problems


def test_a_crop_of_the_store_moves_them(folder: Folder) -> None:
    config = BuildConfig(
        dataset="folder",
        root=str(folder.root),
        out=str(folder.root.parent / "cropped.zarr"),
        workers=1,
        image=ImageConfig(encoding=ImageEncoding.recode, region=Region.hands, max_px=32),
    )
    opened = open_store(build(config, console=QUIET).path)
    A = opened.label("A_stored_from_raw").astype(np.float64)
    assert np.abs(A - np.eye(2, 3)).max() > 1
    pixels = np.array(folder.records[3]["hands"][0]["joints_2d"])
    expected = pixels @ A[3, :, :2].T + A[3, :, 2]
    np.testing.assert_allclose(opened.label("joints_2d")[3, 0], expected, atol=1e-4)


def test_rays_project_to_the_pixels_of_the_input(folder: Folder, batch: Batch) -> None:
    """The affine map of the pixels is the oracle: rotated, scaled, shifted."""
    labels = Joints2DLabels.of(batch)
    pixels = given_pixels(folder, batch).float()
    expected = torch.einsum("bij,bkj->bki", batch.A_input_from_frame[..., :2], pixels)
    expected = expected + batch.A_input_from_frame[:, None, :, 2]
    projected = torch.einsum("bij,bkj->bki", batch.K, labels.ray[:, 0])
    found = projected[..., :2] / projected[..., 2:]
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4, equal_nan=True)
    assert torch.equal(labels.valid[:, 0], pixels.isfinite().all(-1))


def test_stores_without_pixels_load_none(folder: Folder, store: Path, tmp_path: Path) -> None:
    plain = write_folder(tmp_path / "plain", num=4, size_hw=(96, 128))
    for record in plain.records:
        del record["hands"][0]["joints_2d"]
    plain.write()
    out = tmp_path / "plain.zarr"
    build(
        BuildConfig(dataset="folder", root=str(plain.root), out=str(out), workers=1),
        console=QUIET,
    )
    with Loader(settings(out), device=CPU, groups=[Joints2DLabels]) as loader:
        assert not next(iter(loader)).groups
    mixed = replace(settings(out), mix={"own": MixPart(store=str(store), split="all")})
    with Loader(mixed, device=CPU, groups=[Joints2DLabels]) as loader:
        found = next(iter(loader))
        labels, is_own = Joints2DLabels.of(found), found.sample_id >= 2**40
    assert is_own.any()
    assert not labels.valid[~is_own].any()
    assert labels.valid[is_own].any((-1, -2)).all()


def test_the_loss_holds_joints_against_their_pixels(folder: Folder, batch: Batch) -> None:
    """3D labels where there are some, else the annotated pixel; by a loop over the joints."""
    labels = Joints2DLabels.of(batch)
    joints = torch.randn(4, 1, 21, 3) * 0.05 + torch.tensor([0.0, 0, 0.6])
    joints.requires_grad_()
    plan = plan_losses(LossConfig(joints_2d=2.0, joints_abs=1.0), CPU)
    prediction = Prediction(hands=HandPrediction(joints_3d=joints))
    total, terms = total_loss(prediction, batch, None, plan)
    (gradient,) = torch.autograd.grad(total, joints)
    value = dict(zip(terms.names, terms.values, strict=True))["joints_2d"]
    for b in range(4):
        off = []
        for j in range(21):
            has_3d = bool(batch.joint_valid[b, 0, j] & batch.has_joints[b, 0])
            if not (has_3d or labels.valid[b, 0, j]):
                assert (gradient[b, 0, j] == 0).all()
                continue
            true = batch.joints_3d[b, 0, j] if has_3d else labels.ray[b, 0, j]
            pixel = [(batch.K[b] @ p / p[2])[:2] for p in (joints[b, 0, j].detach(), true)]
            off.append(float((pixel[0] - pixel[1]).abs().sum()) / 32)
        assert float(value[b]) == pytest.approx(np.mean(off), rel=1e-4)
    assert terms.seen[terms.names.index("joints_2d")].all()
    without = replace(batch, groups={})
    _, alone = total_loss(prediction, without, None, plan)
    seen = alone.seen[alone.names.index("joints_2d")]
    assert torch.equal(seen, batch.has_joints[:, 0])
    others = [i for i, name in enumerate(terms.names) if name != "joints_2d"]
    assert torch.equal(terms.values[others], alone.values[others])
