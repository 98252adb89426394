import dataclasses
import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.config import CacheConfig, OnBadImage, ViewConfig, ViewKind
from pipeline.decode.codec import Codec, encode
from pipeline.decode.errors import BadImageError
from pipeline.decode.resident import Resident, fill
from pipeline.decode.source import are_whole_frames, encoded_batches, plan_images
from pipeline.store.errors import StoreCorruptError
from pipeline.store.reader import Store, open_store
from pipeline.store.shard import shard_path
from pipeline.view import ViewTable, build_view
from tests.pipeline.hand_store import frame, hand_store, jpeg

CPU = torch.device("cpu")
SMALL = CacheConfig(size_px=32, decode_threads=1, decode_batch=4)
HAND = ViewConfig(pad=4.0)  # crops about as large as the frame


def view_of(
    path: Path, config: CacheConfig = SMALL, view_config: ViewConfig = HAND, split: str = "train"
) -> tuple[Store, ViewTable]:
    store = open_store(path)
    rows = store.split(split).astype(np.int64)
    return store, build_view(store, rows, view_config, config.size_px, training=True)


def filled(
    path: Path, config: CacheConfig = SMALL, *, codec: Codec = Codec.rgb, **view: Any
) -> Resident:
    return fill([view_of(path, config, **view)], config, codec, CPU)


def rgb(cache: Resident) -> torch.Tensor:
    assert cache.pixels.rgb is not None
    return cache.pixels.rgb


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_store(tmp_path_factory.mktemp("resident") / "s.zarr")


def expected_crop(view: ViewTable, k: int) -> np.ndarray:
    """OpenCV's average over each cached pixel's square of the frame, 4 x 4 points per pixel."""
    A = view.A_cache_from_frame[k].numpy()
    data = np.frombuffer(jpeg(frame(int(view.row[k]))), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert image is not None
    fine = np.diag([4.0, 4.0]) @ A + [[0, 0, 1.5], [0, 0, 1.5]]
    drawn = cv2.warpAffine(image, fine, (128, 128), borderMode=cv2.BORDER_REPLICATE)
    return cv2.resize(drawn, (32, 32), interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("kind", list(ViewKind))
def test_every_sample_holds_its_own_crop(path: Path, kind: ViewKind) -> None:
    how: dict[str, Any] = {"view_config": ViewConfig(kind=kind, pad=4.0), "split": "val"}
    cache, (_, view) = filled(path, **how), view_of(path, **how)
    for k in range(len(view)):
        ours = rgb(cache)[k].numpy().astype(int)
        # triangle against box filter: a few levels on smooth noise; another frame is 60 away
        assert np.abs(ours - expected_crop(view, k)).mean() < 6


def test_a_cache_holds_the_crops_in_its_codec(path: Path) -> None:
    plain, small = filled(path), filled(path, codec=Codec.yuv420)
    assert small.pixels.nbytes * 2 == plain.pixels.nbytes
    for ours, theirs in zip(small.pixels.planes(), encode(rgb(plain)), strict=True):
        assert torch.equal(ours, theirs)


def test_a_frame_with_two_hands_is_decoded_once(path: Path) -> None:
    cache = filled(path)
    assert len(cache.pixels) == 15
    assert cache.num_images == 12
    _, view = view_of(path)
    assert torch.equal(view.row[4:6], torch.tensor([3, 4]))  # 3 has no right hand
    assert view.sample_id[1:3].tolist() == [2, 3]
    assert not torch.equal(rgb(cache)[1], rgb(cache)[2])


def test_the_batch_size_of_the_decoder_changes_nothing(path: Path) -> None:
    whole = filled(path, dataclasses.replace(SMALL, decode_batch=64, decode_threads=2))
    single = filled(path, dataclasses.replace(SMALL, decode_batch=1))
    assert torch.equal(rgb(whole), rgb(single))


def test_a_square_off_the_frame_repeats_the_border(tmp_path: Path) -> None:
    """DALI 2.4 crashes on such a square; the plan moves it to the border."""
    boxes = [[-400, -300, -380, -280], [500, 40, 520, 60]]
    path = hand_store(tmp_path / "s.zarr", 4, bbox_xyxy=np.array(boxes, np.float32))
    cache = filled(path, view_config=ViewConfig(pad=1.0))
    data = np.frombuffer(jpeg(frame(0)), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    assert image is not None
    assert np.abs(rgb(cache)[0].numpy().astype(int) - image[0, 0]).max() <= 2
    rows = rgb(cache)[1].numpy().astype(int)  # 25 frame pixels at the right edge, y 37.5 .. 62.5
    assert np.abs(rows - rows[:, :1]).max() == 0
    assert np.abs(rows[:, 0] - cv2.resize(image[38:63, -1:], (1, 32))[:, 0]).max() <= 20


def test_plan_follows_the_store_whatever_the_split_order(path: Path) -> None:
    store = open_store(path)
    view = build_view(store, store.split("val").astype(np.int64), HAND, 32, training=True)
    plan = plan_images(store, view, 32)
    assert plan.row.tolist() == sorted(set(view.row.tolist()))
    for row, samples in zip(plan.row, plan.sample, strict=True):
        assert view.row[samples[samples >= 0]].tolist() == [row] * (samples >= 0).sum()
    used = plan.sample[plan.sample >= 0]
    assert sorted(used.tolist()) == list(range(len(view)))
    batches = list(encoded_batches(store, view, plan, 4))
    assert [len(jpegs) for jpegs, *_ in batches] == [4, 2]


BAD = jpeg(frame(7))[:900]


def test_an_image_that_does_not_decode_is_named(tmp_path: Path) -> None:
    path = hand_store(tmp_path / "s.zarr", images={7: BAD})
    with pytest.raises(BadImageError, match=r"sample 15 \(row 7, sequence 'grasp', .*frame 7\)"):
        filled(path)


def test_bad_images_can_be_skipped(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = hand_store(tmp_path / "s.zarr", images={5: b"\xff\xd8 none", 7: BAD, 11: BAD})
    with caplog.at_level(logging.WARNING):
        cache = filled(broken, dataclasses.replace(SMALL, on_bad_image=OnBadImage.skip))
    assert ["sample 10, 11 (row 5" in m or "sample 15" in m or "sample 23" in m
            for m in caplog.messages] == [True] * 3  # fmt: skip
    whole, (_, view) = filled(path), view_of(path)
    is_bad = torch.isin(view.row, torch.tensor([5, 7, 11]))
    assert is_bad.sum() == 4
    assert cache.skipped.sort().values.tolist() == is_bad.nonzero()[:, 0].tolist()
    assert (rgb(cache)[is_bad] == 0).all()
    assert torch.equal(rgb(cache)[~is_bad], rgb(whole)[~is_bad])
    assert cache.num_images == whole.num_images


def test_stores_follow_one_another(path: Path, tmp_path: Path) -> None:
    other = hand_store(tmp_path / "s.zarr", 9, images={3: BAD})
    skip = dataclasses.replace(SMALL, on_bad_image=OnBadImage.skip)
    first, second = view_of(path), view_of(other, split="val")
    both = fill([first, second], skip, Codec.rgb, CPU)
    apart = [fill([one], skip, Codec.rgb, CPU) for one in (first, second)]
    assert torch.equal(rgb(both), torch.cat([rgb(one) for one in apart]))
    assert both.skipped.tolist() == (apart[1].skipped + len(first[1])).tolist()
    assert len(both.skipped) == 0 or both.skipped.min() >= len(first[1])
    assert both.num_images == sum(one.num_images for one in apart)


def test_changed_bytes_are_named(tmp_path: Path) -> None:
    path = hand_store(tmp_path / "s.zarr")
    store = open_store(path)
    with shard_path(path, 1).open("r+b") as file:
        offset = int(store.image_index.offset[6] - store.attributes.shard_capacity_bytes)
        file.seek(offset + 700)
        file.write(b"\0\1\2\3")
    with pytest.raises(StoreCorruptError, match=r"sample 12 \(row 6, .*crc32c"):
        filled(path)


def test_progress_counts_images_and_bytes(path: Path) -> None:
    (store, view), seen = view_of(path), []
    fill([(store, view)], SMALL, Codec.rgb, CPU, progress=lambda *done: seen.append(done))
    assert [(images, total) for images, _, total in seen] == [(4, 12), (8, 12), (12, 12)]
    lengths = store.image_index.length.reshape(3, 4).sum(1).cumsum()
    assert [num_bytes for _, num_bytes, _ in seen] == lengths.tolist()


def test_frames_of_the_caches_size_are_not_resized(tmp_path: Path) -> None:
    """Byte for byte what DALI decodes: a resize with the identity costs time, not pixels."""
    square = [jpeg(np.ascontiguousarray(frame(row)[:64, :64])) for row in range(12)]
    path = hand_store(tmp_path / "s.zarr", images=dict(enumerate(square)), size_hw=(64, 64))
    config, frames = CacheConfig(size_px=64, decode_threads=1), ViewConfig(kind=ViewKind.frame)
    store, view = view_of(path, config, frames)
    plan = plan_images(store, view, 64)
    assert are_whole_frames(store, plan.row[:, None], plan.start, plan.end, 64)
    cache = rgb(filled(path, config, view_config=frames))
    for row in range(12):
        image = cv2.imdecode(np.frombuffer(square[row], np.uint8), cv2.IMREAD_COLOR_RGB)
        assert image is not None
        assert np.abs(cache[row].numpy().astype(int) - image).max() <= 2
    near = dataclasses.replace(plan, start=plan.start + np.float32(0.25))
    assert not are_whole_frames(store, near.row[:, None], near.start, near.end, 64)
