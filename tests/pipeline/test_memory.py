"""The memory plan: arithmetic by hand, and the commands on a sample store."""

import pytest

from pipeline.__main__ import COMMANDS
from pipeline.cli import front_door
from pipeline.codec import Codec
from pipeline.config import CacheConfig, PipelineConfig, ViewConfig
from pipeline.memory import DECODER_FIXED_BYTES, Demand, demand_of, plan_memory
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
        cache=CacheConfig(size_px=64, decode_batch=10),
        view=ViewConfig(margin=1.0),
    )
    found = demand_of(config)
    assert found.num_samples == 64  # 16 poses in four versions
    assert demand_of(config, world=3).num_samples == 22
    assert found.decoder_bytes == 3 * 10 * (3 * 224 * 224 + 3 * 64 * 64) + DECODER_FIXED_BYTES
    # K, joints, theta, beta, transl, root_rest; validity, masks; row, id, square, affine, place
    labels = 4 * (9 + 63 + 16 * 9 + 10 + 3 + 3) + 21 + 4
    assert found.label_bytes == labels + 8 * (1 + 1 + 2 + 1 + 6 + 1)


def test_the_plan_is_one_line_and_a_table(
    freihand: SampleStore, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"store={freihand.store}", "model_gib=0.5"]
    assert front_door("python -m pipeline", COMMANDS, [*words, "device_gib=24"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("resident rgb: 64 samples on a device of 24.00 GiB; rgb needs 1.")
    assert any("yuv420" in line for line in rest)
    assert front_door("python -m pipeline", COMMANDS, [*words, "device_gib=1"]) == 0
    assert capsys.readouterr().out.startswith("stream: the cache does not fit: 64 samples")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "needs device_gib=..."),
        (["device_gib=0"], "device_gib must be positive"),
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
