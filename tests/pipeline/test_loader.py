import dataclasses
import gc
import itertools
import logging
import time
import weakref
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
from model.hand import JointSet
from pipeline.batch import TENSORS, Batch
from pipeline.config import (
    AugmentConfig,
    Boundary,
    CacheCodec,
    CacheConfig,
    ImageDtype,
    MixPart,
    OnBadImage,
    PipelineConfig,
    ViewConfig,
    ViewKind,
    WindowConfig,
)
from pipeline.decode.errors import BadImageError
from pipeline.loader import Loader
from pipeline.store.errors import StoreCorruptError
from pipeline.store.reader import open_store
from pipeline.store.shard import shard_path
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
        for name in TENSORS:
            x, y = getattr(a, name), getattr(b, name)
            assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), name


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
    expected = {"version": 2, "epoch": 1, "step": 2, "seed": 3, "num_samples": 30, "batch_size": 4}
    assert batches.state_dict() == expected | {"weights": None, "window_length": 1}


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
    with pytest.raises(ValueError, match="version 3, this code reads 2"):
        batches.load_state_dict(batches.state_dict() | {"version": 3})


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
            for name in TENSORS:
                x, y = getattr(whole, name)[k], getattr(part, name)[j]
                assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), name
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


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_an_evaluation(path: Path, world: int) -> None:
    """Any number of them, whatever the number of samples."""
    how = config(path)
    alone = [i for part in ids(Loader(how, device=CPU, training=False)) for i in part]
    shares = [
        [i for part in ids(Loader(how, device=CPU, training=False, rank=r, world=world))
         for i in part]
        for r in range(world)
    ]  # fmt: skip
    assert [i for share in shares for i in share] == alone


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


@pytest.mark.parametrize("dtype", [ImageDtype.float32, ImageDtype.bfloat16, ImageDtype.float16])
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
    cache = dataclasses.replace(raw.cache, codec=CacheCodec.yuv420)
    small = dataclasses.replace(raw, cache=cache)
    ours, plain = (next(iter(Loader(which, device=CPU))) for which in (small, raw))
    # the frames are coloured noise of 16 px: 4:2:0 loses some of it
    assert 0 < (ours.image - plain.image).abs().mean() < 3
    assert_same([dataclasses.replace(ours, image=plain.image)], [plain])


def test_summary_names_what_is_cached(path: Path) -> None:
    batches = loader(path)
    assert "cached 30 samples of" in batches.summary()
    assert "split=train: 282.2 kB on cpu as rgb, 24 images at" in batches.summary()
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


def test_a_device_is_given_by_its_name(path: Path) -> None:
    named = Loader(config(path), device="cpu")
    assert named.device == CPU
    assert_same(take(named, 1), take(loader(path), 1))
    for name, message in (
        ("gpu", "must be cpu, cuda or cuda:N, got 'gpu'"),
        ("meta", "must be cpu, cuda or cuda:N, got 'meta'"),
        ("cuda:99", "device='cuda:99', but torch .* usable GPUs; .*device='cpu'"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(config(path), device=name)


# --- mixtures -------------------------------------------------------------------------------------


def mixture(path: Path, other: Path, **changes: Any) -> PipelineConfig:
    parts = {"other": MixPart(store=str(other), split="val", weight=3.0)}
    return config(path, batch_size=8, mix=parts, **changes)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tables = {"joint_set": "interhand26m"}
    return hand_store(tmp_path_factory.mktemp("mix") / "s.zarr", 24, attributes=tables)


def test_a_mixture_draws_from_its_stores_by_weight(path: Path, other: Path) -> None:
    batches = Loader(mixture(path, other), device=CPU)
    assert batches.num_samples == NUM_HANDS + 18
    assert batches.joint_sets == {JointSet.smplx, JointSet.interhand26m}
    drawn = take(batches, 24)
    number = torch.stack([batch.sample_id // 2**40 for batch in drawn])
    assert [(one == 1).sum() for one in number] == [6] * 24
    assert (torch.stack([b.joint_set for b in drawn])[number == 0] == JointSet.smplx).all()
    assert (torch.stack([b.joint_set for b in drawn])[number == 1] == JointSet.interhand26m).all()


def test_a_mixtures_samples_are_those_of_its_stores(path: Path, other: Path) -> None:
    """Pixels and labels of each sample, by its id, are what the store alone gives."""
    plain = {"augment": AugmentConfig(**dict.fromkeys(RANGES, 0.0))}
    stores = (config(path, **plain), config(other, split="val", **plain))
    alone = [
        {int(i): (batch, k) for batch in Loader(one, device=CPU, training=False)
         for k, i in enumerate(batch.sample_id)}
        for one in stores
    ]  # fmt: skip
    for batch in take(Loader(mixture(path, other, **plain), device=CPU), 6):
        for k, sample_id in enumerate(batch.sample_id.tolist()):
            expected, j = alone[sample_id // 2**40][sample_id % 2**40]
            for name in TENSORS:
                if name != "sample_id":
                    x, y = getattr(batch, name)[k], getattr(expected, name)[j]
                    assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)), name


RANGES = ("rotation_deg", "scale", "shift", "gain", "brightness", "contrast", "saturation")


def test_a_small_store_of_a_mixture_is_augmented_anew_each_time(path: Path, other: Path) -> None:
    seen = [
        (int(i), tuple(A.flatten().tolist()))
        for batch in take(Loader(mixture(path, other), device=CPU), 12)
        for i, A in zip(batch.sample_id, batch.A_input_from_frame, strict=True)
    ]
    assert len({i for i, _ in seen}) < len(seen) == len(set(seen))


@pytest.mark.parametrize("steps", [1, 5, 9])
def test_a_resumed_mixture_is_the_uninterrupted_one(path: Path, other: Path, steps: int) -> None:
    how = mixture(path, other)
    expected = take(Loader(how, device=CPU), steps + 6)[steps:]
    stopped, resumed = Loader(how, device=CPU), Loader(how, device=CPU)
    take(stopped, steps)
    resumed.load_state_dict(stopped.state_dict())
    assert_same(take(resumed, 6), expected)
    heavier = dataclasses.replace(how, weight=2.0)
    with pytest.raises(ValueError, match=r"weights=\[1.0, 3.0\], this run has \[2.0, 3.0\]"):
        Loader(heavier, device=CPU).load_state_dict(stopped.state_dict())


def test_the_state_of_a_mixture_in_another_order_is_refused(path: Path, other: Path) -> None:
    batches = Loader(mixture(path, other), device=CPU)
    old = {name: value for name, value in batches.state_dict().items() if name != "mix_order"}
    with pytest.raises(ValueError, match=r"a mixture in order 1, this code deals order 2.*init="):
        batches.load_state_dict(old)
    single = Loader(config(path, batch_size=8), device=CPU)
    assert "mix_order" not in single.state_dict()  # states of earlier releases go on
    single.load_state_dict(single.state_dict())


def test_ranks_share_a_mixture(path: Path, other: Path) -> None:
    how = mixture(path, other)
    alone = take(Loader(how, device=CPU), 10)
    ranks = [take(Loader(how, device=CPU, rank=r, world=2), 10) for r in range(2)]
    for whole, *shares in zip(alone, *ranks, strict=True):
        together = [i for part in shares for i in part.sample_id.tolist()]
        assert sorted(whole.sample_id.tolist()) == sorted(together)


@pytest.mark.parametrize("codec", [CacheCodec.rgb, CacheCodec.stream])
@pytest.mark.parametrize("world", [2, 5])
def test_ranks_share_an_evaluation_of_a_mixture(
    path: Path, other: Path, codec: CacheCodec, world: int
) -> None:
    """Some of them have nothing of one store."""
    how = mixture(path, other, cache=CacheConfig(size_px=56, decode_threads=1, codec=codec))
    alone = [i for part in ids(Loader(how, device=CPU, training=False)) for i in part]
    shares = [
        [i for part in ids(Loader(how, device=CPU, training=False, rank=r, world=world))
         for i in part]
        for r in range(world)
    ]  # fmt: skip
    assert [i for share in shares for i in share] == alone


def test_a_sample_of_a_mixture_is_described(path: Path, other: Path) -> None:
    batches = Loader(mixture(path, other), device=CPU)
    assert batches.describe(10) == (
        f"sample 10, 11 (row 5, sequence 'grasp', camera 'c1', frame 5) of {path}"
    )
    assert str(other) in batches.describe(2**40 + 7)
    with pytest.raises(ValueError, match="no store of this run has a sample 2199023255552"):
        batches.describe(2 * 2**40)


def test_stores_of_another_size_than_the_ranks_share_are_named(path: Path, other: Path) -> None:
    with pytest.raises(ValueError, match="8 samples in 1 virtual shards, which 2 ranks cannot"):
        Loader(mixture(path, hand_store(other.parent / "tiny.zarr", 10)), device=CPU, world=2)


# --- windows --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of 20 frames, both hands in each."""
    return hand_store(
        tmp_path_factory.mktemp("clips") / "s.zarr",
        40,
        runs=20,
        has_hand=lambda row, slot: True,
    )


def test_windows_are_frames_of_one_run_in_order(clips: Path) -> None:
    batches = loader(clips, window=WindowConfig(length=4, stride=2, step=2), batch_size=8)
    assert batches.num_samples == 2 * 2 * 7
    for batch in take(batches, 6):
        assert batch.image.shape == (8, 4, 3, 48, 48)
        assert batch.theta_rotmat.shape == (8, 4, 1, 16, 3, 3)
        row, slot = batch.sample_id // 2, batch.sample_id % 2
        assert (row.diff(dim=1) == 2).all()
        assert (slot == slot[:, :1]).all()
        assert (row // 20 == row[:, :1] // 20).all()
        assert batch.is_real.all()


def test_a_windows_frames_are_its_samples_with_one_draw(clips: Path) -> None:
    """Each frame has its own crop; turn, zoom and colours are those of the first frame's id."""
    single = {
        int(i): (batch, k)
        for batch in loader(clips, batch_size=8).epoch(0) for k, i in enumerate(batch.sample_id)
    }  # fmt: skip
    for batch in loader(clips, window=WindowConfig(length=3), batch_size=8).epoch(0):
        for k in range(8):
            R = batch.R_input_from_cam[k]
            assert torch.equal(R, R[:1].expand_as(R))
            first, j = single[int(batch.sample_id[k, 0])]
            assert torch.equal(batch.image[k, 0], first.image[j])
            assert torch.equal(batch.K[k, 0], first.K[j])
            assert not torch.equal(batch.K[k, 0], batch.K[k, 1])


def test_frames_beyond_a_run_have_no_labels(clips: Path) -> None:
    window = WindowConfig(length=6, stride=5, boundary=Boundary.repeat)
    seen = list(loader(clips, window=window, batch_size=8, training=False))
    real = torch.cat([batch.is_real for batch in seen])
    assert real.sum(1).tolist() == [6, 6, 6, 5] * 4
    for batch in seen:
        assert torch.equal(batch.is_real, batch.has_joints[..., 0])
        assert torch.equal(batch.is_real, batch.joint_valid[..., 0, 0])
        held = ~batch.is_real
        assert torch.equal(batch.image[held], batch.image.roll(1, 1)[held])


def test_ranks_share_windows_and_hold_only_their_frames(clips: Path) -> None:
    how = config(clips, window=WindowConfig(length=3), batch_size=8)
    alone = Loader(how, device=CPU)
    ranks = [Loader(how, device=CPU, rank=r, world=2) for r in range(2)]
    for whole, *shares in zip(alone.epoch(1), *(r.epoch(1) for r in ranks), strict=True):
        together = [tuple(w) for part in shares for w in part.sample_id.tolist()]
        assert sorted(tuple(w) for w in whole.sample_id.tolist()) == sorted(together)
    held = [len(ids(rank.label_batches())) for rank in ranks]
    assert sum(held) <= 80 / 4 + 2


# --- stream ---------------------------------------------------------------------------------------


def streamed(built: PipelineConfig) -> PipelineConfig:
    return dataclasses.replace(
        built, cache=dataclasses.replace(built.cache, codec=CacheCodec.stream)
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_stream_gives_the_batches_of_the_cache(path: Path, *, training: bool) -> None:
    held, passing = (
        Loader(how, device=CPU, training=training) for how in (config(path), streamed(config(path)))
    )
    assert "decoded as they are needed" in passing.summary()
    num = 17 if training else 8  # over two epochs' ends
    assert_same(take(passing, num), take(held, num))
    assert passing.state_dict() == held.state_dict()


def test_a_stream_of_a_mixture_of_windows(clips: Path, path: Path) -> None:
    how = mixture(clips, clips, window=WindowConfig(length=3))
    assert_same(take(Loader(streamed(how), device=CPU), 5), take(Loader(how, device=CPU), 5))


def test_a_resumed_stream_is_the_uninterrupted_one(path: Path) -> None:
    how = streamed(config(path))
    expected = take(Loader(how, device=CPU), 11)[5:]
    stopped, resumed = Loader(how, device=CPU), Loader(how, device=CPU)
    take(stopped, 5)  # the decoder has read further
    assert stopped.state_dict()["step"] == 5
    resumed.load_state_dict(stopped.state_dict())
    assert_same(take(resumed, 6), expected)


def test_a_stream_names_or_skips_what_does_not_decode(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {5: b"\xff\xd8 none", 11: jpeg(frame(11))[:800]}
    how = streamed(config(hand_store(tmp_path / "s.zarr", 24, images=bad)))
    with pytest.raises(BadImageError, match=r"sample \d+(, \d+)? \(row (5|11), sequence 'grasp'"):
        take(Loader(how, device=CPU), 7)
    cache = dataclasses.replace(how.cache, on_bad_image=OnBadImage.skip)
    skipping = dataclasses.replace(how, cache=cache)
    resident = dataclasses.replace(skipping, cache=dataclasses.replace(cache, codec=CacheCodec.rgb))
    ours, theirs = (Loader(which, device=CPU) for which in (skipping, resident))
    with caplog.at_level(logging.WARNING):
        take(ours, 7)  # until all bad ones have been met
    assert sum("cannot be decoded; skipped" in message for message in caplog.messages) >= 2
    assert_same(list(ours.epoch(1)), list(theirs.epoch(1)))


def test_a_stream_names_changed_bytes(tmp_path: Path) -> None:
    path = hand_store(tmp_path / "s.zarr", 24)
    store = open_store(path)
    with shard_path(path, 1).open("r+b") as file:
        offset = int(store.image_index.offset[6] - store.attributes.shard_capacity_bytes)
        file.seek(offset + 700)
        file.write(b"\0\1\2\3")
    with pytest.raises(StoreCorruptError, match=r"sample 12 \(row 6, .*crc32c"):
        take(Loader(streamed(config(path)), device=CPU), 7)


# --- read ahead, change ---------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [CacheCodec.rgb, CacheCodec.stream])
def test_batches_made_ahead_are_the_same(path: Path, codec: CacheCodec) -> None:
    how = config(path, cache=CacheConfig(size_px=56, decode_threads=1, codec=codec))
    plain, ahead = (
        Loader(how, device=CPU),
        Loader(dataclasses.replace(how, read_ahead=2), device=CPU),
    )
    before = num_threads()
    running = iter(ahead)
    for expected in itertools.islice(plain, 10):
        assert_same([next(running)], [expected])
        assert ahead.state_dict() == plain.state_dict()
    assert num_threads() > before
    ahead.close()
    assert list(running) == []


def test_a_change_of_the_batch_begins_with_the_next_epoch(path: Path) -> None:
    how = config(path)
    larger = dataclasses.replace(how, batch_size=8, augment=AugmentConfig(rotation_deg=5))
    batches = Loader(how, device=CPU)
    take(batches, 3)
    batches.change(dataclasses.replace(how))
    assert batches.state_dict()["step"] == 3
    batches.change(larger)
    assert (batches.state_dict()["epoch"], batches.state_dict()["step"]) == (1, 0)
    assert_same(take(batches, 3), list(Loader(larger, device=CPU).epoch(1)))
    off = dataclasses.replace(how, augment=AugmentConfig(**dict.fromkeys(RANGES, 0.0)))
    batches.change(off)
    assert_same(take(batches, 3), itertools.islice(Loader(off, device=CPU).epoch(2), 3))
    with pytest.raises(ValueError, match="batch_size must be at most 30"):
        batches.change(dataclasses.replace(how, batch_size=31))


# --- bytes as they are ----------------------------------------------------------------------------


def square_store(path: Path) -> Path:
    images = {row: jpeg(np.ascontiguousarray(frame(row)[:64, :64])) for row in range(24)}
    return hand_store(path, 24, images=images, size_hw=(64, 64))


@pytest.mark.parametrize("codec", [CacheCodec.rgb, CacheCodec.stream])
@pytest.mark.parametrize("training", [True, False])
def test_frames_as_they_are(tmp_path: Path, codec: CacheCodec, *, training: bool) -> None:
    """A copy of the decoded bytes, which is what the gather gives for the identity."""
    how = config(
        square_store(tmp_path / "s.zarr"),
        view=ViewConfig(kind=ViewKind.frame),
        cache=CacheConfig(size_px=64, decode_threads=1, codec=codec),
        input_px=64,
        image_dtype=ImageDtype.uint8,
        channels_last=True,
        augment=AugmentConfig(**dict.fromkeys(RANGES, 0.0)),
    )
    copied, gathered = (Loader(how, device=CPU, training=training) for _ in range(2))
    assert copied._assembler.copies
    gathered._assembler._is_copy = False
    ours, theirs = take(copied, 5), take(gathered, 5)
    assert ours[0].image.shape == (4, 3, 64, 64)
    assert ours[0].image.is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, theirs)
    for batch in ours:
        for k, sample_id in enumerate(batch.sample_id.tolist()):
            data = np.frombuffer(
                jpeg(np.ascontiguousarray(frame(sample_id // 2)[:64, :64])), np.uint8
            )
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
            assert image is not None
            difference = batch.image[k].permute(1, 2, 0).numpy().astype(int) - image
            assert np.abs(difference).max() <= 2


def test_whole_numbers_are_the_rounded_input(path: Path) -> None:
    raw: dict[str, Any] = {"mean": [0.0] * 3, "std": [1 / 255] * 3}
    ours = take(loader(path, image_dtype=ImageDtype.uint8), 3)
    theirs = take(loader(path, **raw), 3)
    for a, b in zip(ours, theirs, strict=True):
        assert a.image.dtype is torch.uint8
        assert (a.image.float() - b.image).abs().max() <= 0.5 + 1e-3


# --- memory, threads ------------------------------------------------------------------------------


def test_a_batch_that_is_kept_is_not_overwritten(path: Path) -> None:
    batches = iter(loader(path))
    kept = [(batch.image, batch.image.clone()) for batch in itertools.islice(batches, 12)]
    assert all(torch.equal(now, then) for now, then in kept)


def test_memory_of_a_batch_is_used_again(path: Path) -> None:
    batches = iter(loader(path))
    places = {next(batches).image.data_ptr() for _ in range(20)}
    assert len(places) <= 2


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def settled(before: tuple[int, int]) -> tuple[int, int]:
    """Threads and files now: a thread that was joined may still be listed for a moment."""
    gc.collect()
    for _ in range(3000):
        if (num_threads(), num_files()) == before:
            break
        time.sleep(0.01)
    return num_threads(), num_files()


def test_nothing_runs_behind_the_loader(path: Path) -> None:
    take(loader(path), 3)  # DALI and torch keep a few threads for good after their first use
    before = num_threads(), num_files()
    batches = iter(loader(path))
    next(batches)
    assert num_threads() <= before[0]
    assert num_files() <= before[1]  # garbage of other tests may have gone in between


def test_a_stream_left_early_ends_its_decoder(path: Path) -> None:
    how = streamed(config(path))
    take(Loader(how, device=CPU), 3)
    gc.collect()
    before = num_threads(), num_files()
    for leave in (close_early, leave_by_exception):
        leave(how)
        assert settled(before) == before, leave


def close_early(how: PipelineConfig) -> None:
    with Loader(how, device=CPU) as batches:
        running = iter(batches)
        next(running)
        assert num_files() > 0
    assert list(running) == []


def leave_by_exception(how: PipelineConfig) -> None:
    def train() -> None:
        with Loader(how, device=CPU) as batches:
            for _ in batches:
                raise RuntimeError("out of patience")

    with pytest.raises(RuntimeError, match="out of patience"):
        train()


def test_a_closed_loader_holds_no_pixels(path: Path) -> None:
    batches = loader(path)
    held = batches.resident
    assert held is not None
    assert held.pixels.rgb is not None
    pixels = weakref.ref(held.pixels.rgb)
    del held
    running = iter(batches)
    next(running)
    batches.close()
    assert list(running) == []
    gc.collect()
    assert pixels() is None


def test_a_fill_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    broken = hand_store(tmp_path / "s.zarr", 24, images={2: jpeg(frame(2))[:800]})
    with pytest.raises(BadImageError):
        loader(broken)
    gc.collect()
    before = num_threads(), num_files()
    with pytest.raises(BadImageError):
        loader(broken)
    assert settled(before) == before


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PipelineConfig(batch_size=0), "batch_size must be at least 1, got 0"),
        (lambda: PipelineConfig(subset=0), r"subset must lie in \(0, 1\], got 0"),
        (lambda: PipelineConfig(std=[1.0, 0.0, 1.0]), "std must lie in 0.001..1"),
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


# --- memory that a captured step reads ------------------------------------------------------------

STILL = AugmentConfig(
    rotation_deg=0, scale=0, shift=0, gain=0, brightness=0, contrast=0, saturation=0
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels_last": True, "image_dtype": ImageDtype.bfloat16},
        {"augment": STILL},
        {"augment": STILL, "image_dtype": ImageDtype.uint8, "channels_last": True, "input_px": 56},
        {"window": WindowConfig(length=3, boundary=Boundary.repeat), "batch_size": 2},
    ],
)
@pytest.mark.parametrize("codec", [CacheCodec.rgb, CacheCodec.stream])
def test_batches_are_written_where_they_are_wanted(
    path: Path, changes: dict[str, Any], codec: CacheCodec
) -> None:
    changes = changes | {"cache": CacheConfig(size_px=56, decode_threads=1, codec=codec)}
    expected = [batch.mapped(torch.Tensor.clone) for batch in take(loader(path, **changes), 5)]
    reused = loader(path, **changes)
    batches = iter(reused)
    place = next(batches).mapped(torch.Tensor.clone)
    assert_same([place], expected[:1])
    reused.write_into(place)
    where = [tensor.data_ptr() for tensor in place.tensors()]
    for batch, same in zip(batches, expected[1:], strict=False):
        assert [tensor.data_ptr() for tensor in batch.tensors()] == where
        assert_same([batch], [same])
    reused.write_into(None)
    assert next(batches).K.data_ptr() != place.K.data_ptr()


def test_memory_given_ends_with_a_change_of_the_batches(path: Path) -> None:
    batches = loader(path)
    place = next(iter(batches)).mapped(torch.Tensor.clone)
    batches.write_into(place)
    batches.change(dataclasses.replace(batches.config, batch_size=8))
    assert len(next(iter(batches))) == 8
    assert len(place) == 4


def test_batches_made_ahead_share_no_memory(path: Path) -> None:
    ahead = loader(path, read_ahead=2)
    with pytest.raises(ValueError, match="use read_ahead=0"):
        ahead.write_into(next(iter(ahead)))
