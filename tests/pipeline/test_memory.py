"""The memory plan: arithmetic by hand, and the commands on a sample store."""

import gc
import math
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import COMMANDS
from pipeline.app import machine
from pipeline.app.cli import front_door
from pipeline.config import AugmentConfig, CacheCodec, CacheConfig, PipelineConfig, ViewConfig
from pipeline.decode.codec import Codec, bytes_per_sample
from pipeline.decode.threads import decoder_threads
from pipeline.loader import Loader
from pipeline.memory import (
    DECODER_FIXED_BYTES,
    GIB,
    Demand,
    allowed_codecs,
    available_bytes,
    capacity,
    demand_of,
    plan_memory,
    require_room,
)
from pipeline.order.parts import open_parts
from tests.conftest import SampleStore

BOTH = (Codec.rgb, Codec.yuv420)
DEMAND = Demand(num_samples=1000, size_px=100, label_bytes=500, decoder_bytes=7_000_000)
RGB = 1000 * 30_000 + 1000 * 500 + 7_000_000 + 10_500_000
YUV = 1000 * 15_000 + 1000 * 500 + 7_000_000 + 10_500_000


@pytest.mark.parametrize(
    ("device_bytes", "expected"),
    [(RGB, Codec.rgb), (RGB - 1, Codec.yuv420), (YUV, Codec.yuv420), (YUV - 1, None)],
)
def test_the_best_codec_that_fits_is_chosen(device_bytes: int, expected: Codec | None) -> None:
    plan = plan_memory(DEMAND, device_bytes=device_bytes, model_bytes=10_000_000, codecs=BOTH)
    assert [option.total_bytes for option in plan.options] == [RGB, YUV]
    assert plan.chosen is expected
    assert plan.sentence().startswith(f"resident {expected.value}" if expected else "stream")


def test_the_demand_counts_samples_frames_and_labels(freihand: SampleStore) -> None:
    config = PipelineConfig(
        store=str(freihand.store),
        cache=CacheConfig(size_px=64, decode_batch=10, decode_threads=5),
        view=ViewConfig(margin=1.0),
    )
    with ExitStack() as stack:
        parts = open_parts(config, stack, training=True)
        assert len(parts[0].view) == 64  # 16 poses in four versions
        found = demand_of(parts, config, 22)
        on_cpu = demand_of(parts, config, 22, device=torch.device("cpu"))
    assert found.num_samples == 22
    assert on_cpu.decoder_bytes == 3 * 10 * (3 * 224 * 224 + 3 * 64 * 64) + DECODER_FIXED_BYTES
    assert found.decoder_bytes == on_cpu.decoder_bytes + 5 * 16 * 2**20  # DALI's, for each thread
    # K, joints, theta, beta, transl, root_rest; validity, masks; row, id, square, affine, place
    labels = 4 * (9 + 63 + 16 * 9 + 10 + 3 + 3) + 21 + 4 + 8  # and the joint set
    labels += 8 + 4 * (12 + 1) + 1  # of the object: id, pose, angle, mask
    # as prepared: without root_rest, with id, affine, R, is_real, mirrored; gather's parameters
    prepared = labels - 4 * 3 + 8 + 4 * (6 + 9) + 2 + 4 * (6 + 12 + 4 + 1)
    assert found.label_bytes == labels + 8 * (1 + 1 + 2 + 1 + 6 + 1) + prepared


@pytest.mark.parametrize(
    ("cores", "ranks", "device", "threads"),
    [(224, 8, "cuda", 16), (224, 1, "cpu", 224), (16, 8, "cuda", 2), (4, 8, "cpu", 1)],
)
def test_ranks_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, device: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(machine, "CGROUP", Path("/nowhere"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    config = CacheConfig()
    assert decoder_threads(config, torch.device(device)) == threads
    assert decoder_threads(replace(config, decode_threads=9), torch.device(device)) == 9


@pytest.mark.parametrize("augments", [True, False])
def test_a_loader_holds_what_was_planned(freihand: SampleStore, *, augments: bool) -> None:
    """All tensors that come with a loader, in labels and pixels; none is held twice."""
    still = dict.fromkeys(("rotation_deg", "scale", "shift", "gain", "brightness"), 0.0)
    still |= dict.fromkeys(("contrast", "saturation"), 0.0)
    config = PipelineConfig(
        store=str(freihand.store),
        cache=CacheConfig(size_px=64),
        augment=AugmentConfig(**({} if augments else still)),
    )
    with ExitStack() as stack:
        planned = demand_of(open_parts(config, stack, training=True), config, 64).label_bytes
    gc.collect()
    before = storages()
    loader = Loader(config, device="cpu")
    gc.collect()
    found = sum(size for at, size in storages().items() if at not in before)
    pixels = 64 * bytes_per_sample(Codec.rgb, 64)
    objects = loader.objects.points.nbytes + loader.objects.moving.nbytes
    assert found <= pixels + 64 * (planned + 128) + objects  # and indices on the host
    assert loader.held_bytes - pixels > 0.4 * 64 * planned
    assert loader.held_bytes <= found


def storages() -> dict[int, int]:
    """Bytes of every tensor's memory that is alive, by address."""
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def test_the_plan_is_one_line_and_a_table(
    freihand: SampleStore, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"store={freihand.store}", "model_gib=0.5"]
    assert front_door("python -m pipeline", COMMANDS, [*words, "device_gib=24"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("resident rgb: 64 samples on a device of 24.00 GiB; rgb needs 1.")
    assert any("yuv420" in line for line in rest)
    assert front_door("python -m pipeline", COMMANDS, [*words, "device_gib=1"]) == 0
    assert capsys.readouterr().out.startswith("stream: 64 samples on a device of 1.00 GiB; rgb")
    assert front_door("python -m pipeline", COMMANDS, [*words, "device_gib=24", "world=3"]) == 0
    assert capsys.readouterr().out.startswith("resident rgb: 22 samples")


def test_the_capacity_is_the_largest_number_that_the_plan_calls_resident() -> None:
    for codec in BOTH:
        num = capacity(DEMAND, codec, device_bytes=GIB, model_bytes=10_000_000)
        for count, fits in ((num, True), (num + 1, False)):
            plan = plan_memory(
                replace(DEMAND, num_samples=count),
                device_bytes=GIB,
                model_bytes=10_000_000,
                codecs=(codec,),
            )
            assert (plan.chosen is codec) is fits
    assert capacity(DEMAND, Codec.rgb, device_bytes=7_000_000, model_bytes=10_000_000) == 0


def test_without_a_device_cards_are_compared(
    freihand: SampleStore, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"store={freihand.store}", "size_px=256", "num_samples=400000"]
    assert front_door("python -m pipeline", COMMANDS, words) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "400,000 samples of 256 px on each of 1, beside a model of 8 GiB"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in rest if " GB" in line]
    assert [row[0] for row in cells] == ["24 GB", "48 GB", "80 GB", "141 GB"]
    # 400,000 x 256 x 256 x 3 bytes are 73.2 GiB: two bytes of three on 48 GB, all on 141 GB
    assert [row[3] for row in cells] == ["stream", "stream", "yuv420", "rgb"]
    for row in cells:
        held = [int(cell.replace(",", "")) for cell in row[1:3]]
        assert 1.97 < held[1] / held[0] < 2.0
        assert [int(cell) for cell in row[4:]] == [math.ceil(400_000 / num) for num in held]


@pytest.mark.parametrize(
    ("codec", "training", "size_px", "expected"),
    [
        (CacheCodec.auto, True, 64, BOTH),
        (CacheCodec.auto, True, 63, (Codec.rgb,)),
        (CacheCodec.rgb, True, 64, (Codec.rgb,)),
        (CacheCodec.yuv420, True, 64, (Codec.yuv420,)),
        (CacheCodec.stream, True, 64, ()),
        # evaluation reads nothing that loses more than the JPEG did
        (CacheCodec.auto, False, 64, (Codec.rgb,)),
        (CacheCodec.yuv420, False, 64, (Codec.rgb,)),
        (CacheCodec.stream, False, 64, ()),
    ],
)
def test_codecs_that_a_cache_may_take(
    codec: CacheCodec,
    training: bool,  # noqa: FBT001
    size_px: int,
    expected: tuple[Codec, ...],
) -> None:
    cache = CacheConfig(size_px=size_px, codec=codec)
    assert allowed_codecs(cache, training=training) == expected


def test_a_codec_that_was_asked_for_must_fit() -> None:
    small = plan_memory(DEMAND, device_bytes=YUV, model_bytes=10_000_000, codecs=(Codec.rgb,))
    asked = CacheConfig(codec=CacheCodec.rgb)
    with pytest.raises(ValueError, match=r"does not fit: stream: 1,000 samples .* rgb needs 0.04"):
        require_room(small, asked, training=True)
    require_room(small, asked, training=False)  # evaluation streams
    require_room(small, CacheConfig(), training=True)
    large = plan_memory(DEMAND, device_bytes=RGB, model_bytes=10_000_000, codecs=(Codec.rgb,))
    require_room(large, asked, training=True)


def test_available_memory_of_this_machine() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert total / 50 < available_bytes(torch.device("cpu")) < total


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["num_samples=0"], "num_samples must be at least 1"),
        (["device_gib=0"], "device_gib must be at least 1"),
        (["device_gib=1", "world=0"], "world must be at least 1"),
        (["device_gib=1", "split=no"], "no split 'no'"),
    ],
)
def test_bad_words_are_one_sentence(
    freihand: SampleStore, words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front_door("p", COMMANDS, ["plan", f"store={freihand.store}", *words]) == 2
    assert expected in capsys.readouterr().err


def test_the_bench_measures_every_stage(
    freihand: SampleStore, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", f"store={freihand.store}", "seconds=0.05", "batch_size=8"]
    small = ["size_px=40", "input_px=32"]
    assert front_door("python -m pipeline", COMMANDS, [*words, *small]) == 0
    shown = capsys.readouterr().out
    assert all(stage in shown for stage in ("scan", "fill", "batches", "labels"))
