import dataclasses
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from model.geometry.camera import project
from model.geometry.crop import apply
from pipeline.batch import Batch
from pipeline.config import (
    AugmentConfig,
    CacheConfig,
    Codec,
    ImageDtype,
    OnBadImage,
    PipelineConfig,
    ViewConfig,
    ViewKind,
)
from pipeline.loader import Loader
from pipeline.resident import BadImageError
from pipeline.stats import StageClock, share
from pipeline.store.reader import open_store
from tests.pipeline.hand_store import frame, hand_store, jpeg

CPU = torch.device("cpu")
NUM_HANDS = 30
"""Of 24 frames: 18 right and 12 left."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_store(tmp_path_factory.mktemp("loader") / "s.zarr", 24)


def config(path: Path, **changes: Any) -> PipelineConfig:
    small = PipelineConfig(
        store=str(path),
        batch_size=4,
        seed=3,
        input_px=48,
        cache=CacheConfig(size_px=56, decode_threads=1),
        augment=AugmentConfig(erase_probability=0.5),
    )
    return dataclasses.replace(small, **changes)


def loader(path: Path, *, training: bool = True, **changes: Any) -> Loader:
    return Loader(config(path, **changes), device=CPU, training=training)


def take(batches: Iterable[Batch], num: int) -> list[Batch]:
    return list(itertools.islice(batches, num))


def assert_same(left: Iterable[Batch], right: Iterable[Batch]) -> None:
    """Every field of every batch, bit for bit (NaN equals NaN)."""
    for a, b in zip(left, right, strict=True):
        for field in dataclasses.fields(Batch):
            x, y = getattr(a, field.name), getattr(b, field.name)
            assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), field.name


def ids(batches: Iterable[Batch]) -> list[list[int]]:
    return [batch.sample_id.tolist() for batch in batches]


# --- order, repetition, resumption ----------------------------------------------------------------


def test_two_runs_are_bitwise_the_same(path: Path) -> None:
    assert_same(take(loader(path), 10), take(loader(path), 10))


def test_training_goes_on_epoch_after_epoch(path: Path) -> None:
    batches = loader(path)
    assert batches.num_samples == NUM_HANDS
    assert len(batches) == 7
    drawn = [i for part in ids(take(batches, 2 * 7)) for i in part]
    assert len(set(drawn[:28])) == len(set(drawn[28:])) == 28


def test_epochs_differ_in_order_and_augmentation(path: Path) -> None:
    batches = loader(path)
    first, second = list(batches.epoch(0)), list(batches.epoch(1))
    assert ids(first) != ids(second)
    seen = {
        int(i): A for b in first for i, A in zip(b.sample_id, b.A_input_from_frame, strict=True)
    }
    for batch in second:
        for i, A in zip(batch.sample_id, batch.A_input_from_frame, strict=True):
            assert int(i) not in seen or not torch.equal(seen[int(i)], A)


@pytest.mark.parametrize("steps", [0, 3, 7, 9])
def test_resumed_run_is_the_uninterrupted_run(path: Path, steps: int) -> None:
    whole = loader(path)
    expected = take(whole, steps + 6)[steps:]
    stopped = loader(path)
    take(stopped, steps)
    resumed = loader(path)
    resumed.load_state_dict(stopped.state_dict())
    assert_same(take(resumed, 6), expected)


def test_state_counts_the_batches_handed_out(path: Path) -> None:
    batches = loader(path)
    take(batches, 7 + 2)
    expected = {"version": 1, "epoch": 1, "step": 2, "seed": 3, "num_samples": 30, "batch_size": 4}
    assert batches.state_dict() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5}, "batch_size=4, this run has 5"),
        ({"seed": 4}, "seed=3, this run has 4"),
        ({"subset": 0.5}, "num_samples=30, this run has "),
    ],
)
def test_state_of_another_order_is_refused(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    state = loader(path).state_dict()
    with pytest.raises(ValueError, match=f"written with {message}.*order of the samples"):
        loader(path, **changes).load_state_dict(state)


def test_state_of_another_version_is_refused(path: Path) -> None:
    batches = loader(path)
    with pytest.raises(ValueError, match="version 2, this code reads 1"):
        batches.load_state_dict(batches.state_dict() | {"version": 2})


def test_ranks_together_see_the_batches_of_one(path: Path) -> None:
    alone = list(loader(path).epoch(2))
    ranks = [Loader(config(path), device=CPU, rank=r, world=2) for r in range(2)]
    held = [ids(rank.label_batches()) for rank in ranks]
    assert {len(part) for share in held for part in share[:-1]} == {2}
    assert len({i for share in held for part in share for i in part}) == NUM_HANDS
    for whole, *shares in zip(alone, *(r.epoch(2) for r in ranks), strict=True):
        assert [len(part.sample_id) for part in shares] == [2, 2]
        place = {int(i): (part, k) for part in shares for k, i in enumerate(part.sample_id)}
        for k, i in enumerate(whole.sample_id.tolist()):
            part, j = place.pop(i)
            for field in dataclasses.fields(Batch):
                x, y = getattr(whole, field.name)[k], getattr(part, field.name)[j]
                assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), field.name
        assert not place


# --- evaluation -----------------------------------------------------------------------------------


def test_evaluation_is_every_sample_once_in_order_unaugmented(path: Path) -> None:
    batches = loader(path, training=False)
    first = list(batches)
    assert [len(b.sample_id) for b in first] == [4] * 7 + [2]
    assert len(batches) == 8
    in_order = [i for part in ids(first) for i in part]
    assert in_order == sorted(in_order)
    assert len(in_order) == NUM_HANDS
    assert_same(first, list(batches))
    other_seed = dataclasses.replace(config(path), seed=99)
    assert_same(first, list(Loader(other_seed, device=CPU, training=False)))


def test_evaluation_ignores_skip(tmp_path: Path) -> None:
    broken = hand_store(tmp_path / "s.zarr", 24, images={2: jpeg(frame(2))[:800]})
    skip = CacheConfig(size_px=56, on_bad_image=OnBadImage.skip)
    with pytest.raises(BadImageError, match=r"sample 4 \(row 2, sequence 'wave'"):
        loader(broken, training=False, cache=skip)
    assert loader(broken, cache=skip).num_samples == NUM_HANDS


# --- contents -------------------------------------------------------------------------------------


def test_labels_land_on_the_pixels(path: Path) -> None:
    store = open_store(path)
    for batch in take(loader(path), 7):
        for k, sample_id in enumerate(batch.sample_id.tolist()):
            row, slot = divmod(sample_id, 2)
            K, joints = store.label("K")[row], store.label("joints_3d")[row, slot]
            recorded = project(torch.tensor(joints).double(), torch.tensor(K).double())
            expected = apply(batch.A_input_from_frame[k].double(), recorded)
            seen = project(batch.joints_3d[k, 0].double(), batch.K[k].double())
            valid = batch.joint_valid[k, 0]
            assert valid.sum() == 20
            assert (seen - expected)[valid].abs().max() < 5e-3
            assert bool(batch.is_right[k, 0]) == (slot == 0)
            assert bool(batch.mirrored[k]) == (slot == 1)


def test_pixels_are_the_frame_through_the_affine(path: Path) -> None:
    """Cache and gather together against one OpenCV warp of the decoded frame."""
    raw = {"mean": [0.0] * 3, "std": [1 / 255] * 3, "cache": CacheConfig(size_px=120)}
    flat = ViewConfig(pad=3.0)
    for batch in loader(path, training=False, view=flat, input_px=96, **raw):
        for k, sample_id in enumerate(batch.sample_id.tolist()):
            data = np.frombuffer(jpeg(frame(sample_id // 2)), np.uint8)
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
            assert image is not None
            expected = cv2.warpAffine(
                image.astype(np.float32),
                batch.A_input_from_frame[k].double().numpy(),
                (96, 96),
                borderMode=cv2.BORDER_REPLICATE,
            )
            ours = batch.image[k].permute(1, 2, 0).numpy()
            # bilinear twice: the second pass smooths by up to half a pixel of curvature
            assert np.abs(ours - expected).mean() < 2.5
            half_pixel = np.abs(np.diff(expected, axis=1)).mean() / 2
            assert np.abs(ours - expected).mean() < half_pixel


def test_frame_view_has_both_hands_and_never_mirrors(path: Path) -> None:
    view = ViewConfig(kind=ViewKind.frame)
    batch = next(iter(loader(path, view=view)))
    assert batch.joints_3d.shape == (4, 2, 21, 3)
    assert batch.is_right.tolist() == [[True, False]] * 4
    assert not batch.mirrored.any()
    assert (torch.linalg.det(batch.R_input_from_cam) > 0).all()


def test_left_hands_stay_left_by_choice(path: Path) -> None:
    kept = list(loader(path, mirror_left=False, training=False))
    assert not any(batch.mirrored.any() for batch in kept)
    assert {bool(s) for batch in kept for s in batch.is_right} == {True, False}


def test_label_batches_are_the_evaluation_labels_of_the_training_split(path: Path) -> None:
    training, evaluation = loader(path), loader(path, training=False)
    state = training.state_dict()
    for a, b in zip(training.label_batches(), evaluation, strict=True):
        assert a.image.shape == (len(b.image), 3, 0, 0)
        assert_same([dataclasses.replace(a, image=b.image)], [b])
    assert training.state_dict() == state


@pytest.mark.parametrize("dtype", list(ImageDtype))
@pytest.mark.parametrize("channels_last", [False, True])
def test_image_has_the_configured_form(
    path: Path, dtype: ImageDtype, *, channels_last: bool
) -> None:
    batch = next(iter(loader(path, image_dtype=dtype, channels_last=channels_last)))
    assert batch.image.dtype == getattr(torch, dtype.value)
    assert batch.image.shape == (4, 3, 48, 48)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert batch.image.is_contiguous(memory_format=order)
    assert batch.K.dtype == torch.float32
    plain = next(iter(loader(path)))
    assert torch.equal(batch.image, plain.image.to(batch.image.dtype))


def test_a_compressed_cache_changes_the_pixels_a_little_and_nothing_else(path: Path) -> None:
    raw = config(path, mean=[0.0] * 3, std=[1 / 255] * 3)
    cache = dataclasses.replace(raw.cache, codec=Codec.yuv420)
    small = dataclasses.replace(raw, cache=cache)
    ours, plain = (next(iter(Loader(which, device=CPU))) for which in (small, raw))
    # the frames are coloured noise of 16 px: 4:2:0 loses some of it
    assert 0 < (ours.image - plain.image).abs().mean() < 3
    assert_same([dataclasses.replace(ours, image=plain.image)], [plain])


def test_summary_names_what_is_cached(path: Path) -> None:
    batches = loader(path)
    assert "cached 30 samples of" in batches.summary()
    assert "split=train: 282.2 kB on cpu, 24 images at" in batches.summary()
    assert batches.content_sha256 == open_store(path).attributes.content_sha256


def test_a_terminal_shows_the_fill(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loader(path)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    loader(path)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "cache train" in shown.err
    assert "24/24" in shown.err
    assert "images/s" in shown.err


def test_nothing_runs_behind_the_loader(path: Path) -> None:
    def num_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    take(loader(path), 3)  # DALI and torch keep a few threads for good after their first use
    before = num_threads()
    batches = iter(loader(path))
    next(batches)
    assert num_threads() == before


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PipelineConfig(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: PipelineConfig(subset=0), r"subset must lie in \(0, 1\], got 0"),
        (lambda: PipelineConfig(std=[1.0, 0.0, 1.0]), "std must be positive"),
        (lambda: PipelineConfig(mean=[0.5]), "mean must have 3 values"),
        (lambda: PipelineConfig(seed=-1), "seed must be at least 0 .*got -1"),
        (lambda: CacheConfig(size_px=5000), "cache.size_px must be .*at most 4096, got 5000"),
        (lambda: ViewConfig(margin=0.9), "view.margin must be at least 1 .*got 0.9"),
        (lambda: ViewConfig(exclude_flags=["blurred"]), "must be among image_missing.*'blurred'"),
        (lambda: AugmentConfig(scale=0.6), "augment.scale must be .*at most 0.5, got 0.6"),
        (lambda: AugmentConfig(shift=float("nan")), "augment.shift must be .*got nan"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_batch_larger_than_the_split_is_refused_before_the_fill(path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size must be at most 30 for 30 samples, got 31"):
        loader(path, batch_size=31)


def test_config_survives_omegaconf() -> None:
    node = OmegaConf.structured(PipelineConfig)
    changed = OmegaConf.merge(node, {"store": "s", "view": {"kind": "frame"}, "batch_size": 8})
    made = OmegaConf.to_object(changed)
    assert made == PipelineConfig(store="s", view=ViewConfig(kind=ViewKind.frame), batch_size=8)


# --- stats ----------------------------------------------------------------------------------------


def test_stage_clock_adds_up_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0, 8.0, 10.0, 11.0])
    monkeypatch.setattr("pipeline.stats.time.perf_counter", lambda: next(now))
    clock = StageClock(CPU)
    for name in ("data", "step", "data"):
        with clock.stage(name):
            pass
    seconds = clock.read()
    assert seconds == {"data": 2.0, "step": 3.0}
    assert share(seconds, "data") == 0.4
    assert clock.read() == {"data": 0.0, "step": 0.0}
    assert share({}, "data") == 0.0
