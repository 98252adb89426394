"""A batch but its pixels: what is shared within a window, what is hidden, where the labels go."""

import dataclasses
import math
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.geometry.camera import project
from model.geometry.crop import apply, compose, invert, square_crop_affine
from pipeline.batch import TENSORS, Batch
from pipeline.config import AugmentConfig, PipelineConfig, ViewConfig, ViewKind
from pipeline.gather.params import GatherParams
from pipeline.labels import prepare as prepare_module
from pipeline.labels import prepare_triton
from pipeline.labels.prepare import prepare, prepare_eager
from pipeline.labels.table import LabelTable
from pipeline.view import ViewTable
from tests.shapes import unchecked

F64 = torch.float64
CACHE_PX = 96
MASKS = ("joint_valid", "has_joints", "has_mano", "has_beta", "has_object")
WIDE = AugmentConfig(
    rotation_deg=180, scale=0.4, shift=0.3, gain=0.3, brightness=0.5, contrast=0.5,
    saturation=0.5, erase_probability=0.5,
)  # fmt: skip
OFF = AugmentConfig(
    rotation_deg=0, scale=0, shift=0, gain=0, brightness=0, contrast=0, saturation=0
)


def config(kind: ViewKind = ViewKind.hand, **changes: Any) -> PipelineConfig:
    built = PipelineConfig(store="-", view=ViewConfig(kind=kind), augment=WIDE, input_px=60, seed=7)
    return dataclasses.replace(built, **changes)


def tables(kind: ViewKind, num: int = 9, seed: int = 0) -> tuple[ViewTable, LabelTable]:
    """Samples with all sorts of labels: every third hand has no MANO, every fourth no joints."""
    g = torch.Generator().manual_seed(seed)
    hands = 1 if kind is ViewKind.hand else 2

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn((num, *shape), generator=g)

    def missing(values: Tensor, every: int, first: int) -> tuple[Tensor, Tensor]:
        values = values.flatten(0, 1)
        values[first::every] = math.nan
        values = values.view(num, hands, *values.shape[1:])
        return values, ~values.flatten(2)[..., 0].isnan()

    center = 100 + 30 * torch.rand(num, 2, generator=g, dtype=F64)
    size = 40 + 100 * torch.rand(num, generator=g, dtype=F64)
    view = ViewTable(
        row=torch.arange(num),
        sample_id=torch.arange(num) * 2 + 1,
        center_px=center,
        size_px=size,
        A_cache_from_frame=square_crop_affine(center, size * 1.25, CACHE_PX),
    )
    joints, has_joints = missing(normal(hands, 21, 3, scale=0.05), 4, 3)
    joints[..., 2] += 0.6
    joints[:, :, 7] = math.nan
    theta, has_mano = missing(torch.linalg.qr(normal(hands, 16, 3, 3))[0].contiguous(), 3, 1)
    transl, _ = missing(normal(hands, 3, scale=0.1), 3, 1)
    rest, _ = missing(normal(hands, 3, scale=0.1), 3, 1)
    beta, has_beta = missing(normal(hands, 10), 3, 2)
    K = torch.tensor([[150.0, 0.5, 112], [0, 140, 118], [0, 0, 1]]) + normal(1, 1) * torch.eye(3)
    K[:, 2, 2] = 1
    labels = LabelTable(
        K=K,
        joints_3d=joints,
        joint_valid=~joints[..., 0].isnan(),
        theta_rotmat=theta,
        beta=beta,
        transl=transl,
        root_rest=rest,
        has_joints=has_joints,
        has_mano=has_mano,
        has_beta=has_beta,
        is_right=(torch.arange(num)[:, None] + torch.arange(hands)) % 2 == 0,
        object_id=torch.arange(num) % 4 - 1,
        object_pose=normal(3, 4).where(torch.arange(num)[:, None, None] % 4 > 0, math.nan),
        object_arti_rad=normal().where(torch.arange(num) % 3 > 0, math.nan),
        has_object=torch.arange(num) % 4 > 0,
        joint_set=torch.arange(num) % 3,
    )
    return view, labels


def assert_same(ours: GatherParams | Batch, theirs: GatherParams | Batch) -> None:
    for f in fields(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=f.name)


def test_a_window_shares_its_draw_but_not_its_crops() -> None:
    view, labels = tables(ViewKind.hand)
    index, plain = torch.tensor([[1, 2, 3], [2, 2, 8]]), config(mirror_left=False)
    how, batch = prepare_eager(view, labels, index, torch.tensor(3), plain)
    for name in TENSORS:
        assert getattr(batch, name).shape[:2] == index.shape
    assert torch.equal(batch.sample_id, view.sample_id[index])
    _, still = prepare_eager(view, labels, index, None, plain)
    to_crop, to_input = still.A_input_from_frame.double(), batch.A_input_from_frame.double()
    change = compose(to_input, invert(to_crop))  # in input pixels: the same whatever the crop
    assert (change - change[:, :1]).abs().max() < 2e-4
    assert (change[0, 0] - change[1, 0]).abs().max() > 0.1
    assert (to_input - to_input[:, :1])[0, 1:].abs().max() > 1
    for shared in (how.colour, how.erase_xyxy):
        assert torch.equal(shared, shared[:, :1].expand_as(shared))
    first, alone = prepare_eager(view, labels, index[:, 0], torch.tensor(3), plain)
    assert torch.equal(first.colour, how.colour[:, 0])
    assert torch.equal(alone.A_input_from_frame, batch.A_input_from_frame[:, 0])


@pytest.mark.parametrize("kind", list(ViewKind))
def test_a_frame_beyond_its_run_has_no_labels(kind: ViewKind) -> None:
    view, labels = tables(kind)
    index, real = torch.tensor([[0, 4], [6, 6]]), torch.tensor([[True, True], [True, False]])
    how, shown = prepare_eager(view, labels, index, None, config(kind))
    same, batch = prepare_eager(view, labels, index, None, config(kind), is_real=real)
    assert_same(how, same)
    assert torch.equal(batch.is_real, real)
    assert shown.is_real.all()
    for name in MASKS:
        ours, theirs = getattr(batch, name), getattr(shown, name)
        assert theirs[1, 1].any()
        assert not ours[1, 1].any()
        assert torch.equal(ours[real], theirs[real])
    assert_same(dataclasses.replace(batch, **{n: getattr(shown, n) for n in (*MASKS, "is_real")}),
                shown)  # fmt: skip


@pytest.mark.parametrize("kind", list(ViewKind))
def test_ranges_of_zero_are_no_augmentation(kind: ViewKind) -> None:
    view, labels = tables(kind)
    index = torch.tensor([5, 0, 1])
    off = prepare_eager(view, labels, index, torch.tensor(4), config(kind, augment=OFF))
    none = prepare_eager(view, labels, index, None, config(kind))
    assert_same(off[0], none[0])
    assert_same(off[1], none[1])
    assert torch.equal(none[0].colour, torch.eye(3, 4).expand(3, 3, 4))
    corners = torch.tensor([[-0.5, -0.5], [59.5, 59.5]], dtype=F64)
    seen = apply(invert(none[1].A_input_from_frame.double()), corners)
    half, center = view.size_px[index, None] / 2, view.center_px[index]
    expected = torch.stack((center - half, center + half), 1)
    # sorted: a mirrored sample has its left edge on the right
    assert (seen.sort(1)[0] - expected).abs().max() < 1e-3


@pytest.mark.parametrize("kind", list(ViewKind))
def test_moved_labels_project_where_their_pixels_go(kind: ViewKind) -> None:
    view, labels = tables(kind)
    index = torch.arange(9)
    _, batch = prepare_eager(view, labels, index, torch.tensor(1), config(kind))
    assert batch.mirrored.any() == (kind is ViewKind.hand)
    ours = project(batch.joints_3d.double(), batch.K[:, None].double())
    recorded = project(labels.joints_3d.double(), labels.K[:, None].double())
    expected = apply(batch.A_input_from_frame[:, None].double(), recorded)
    error = (ours - expected)[batch.joint_valid].abs().max()
    assert error < 2e-3  # float32 labels
    assert torch.equal(ours.isnan().any(-1), ~batch.joint_valid)


def test_a_sample_is_the_same_in_every_batch() -> None:
    view, labels = tables(ViewKind.hand)
    given = config()
    how, batch = prepare_eager(view, labels, torch.tensor([3, 8, 3]), torch.tensor(9), given)
    for k in range(3):
        alone = torch.tensor([[3, 8, 3][k]])
        one, sample = prepare_eager(view, labels, alone, torch.tensor(9), given)
        assert torch.equal(one.A_q16[0], how.A_q16[k])
        assert torch.equal(sample.K[0], batch.K[k])
    for other in (
        prepare_eager(view, labels, torch.tensor([3]), torch.tensor(8), given),
        prepare_eager(view, labels, torch.tensor([3]), torch.tensor(9), config(seed=8)),
    ):
        assert not torch.equal(other[0].A_q16[0], how.A_q16[0])
        assert not torch.equal(other[0].colour[0], how.colour[0])


def test_the_device_decides_who_prepares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "prepare_eager", lambda *a, **k: ("eager", a, k))
    monkeypatch.setattr(prepare_triton, "prepare", lambda *a, **k: ("kernel", a, k))
    view, labels = tables(ViewKind.hand, 1)
    for device, who in (("cpu", "eager"), ("cuda", "kernel")):
        index: Any = SimpleNamespace(device=torch.device(device))
        with unchecked():  # an index that has a device and nothing else
            called: Any = prepare(view, labels, index, None, config(), is_real=index)
        how = {"is_real": index} if who == "eager" else {"is_real": index, "out": None}
        assert called == (who, (view, labels, index, None, config()), how)
