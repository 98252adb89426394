"""The long proof that a loader neither leaks nor piles up: ``make soak``; also under a minute.

Rows go to benchmarks/results/soak.jsonl.
"""

import ctypes
import gc
import resource
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness import Measurement, append_rows, record
from pipeline.config import CacheCodec, CacheConfig, PipelineConfig
from pipeline.loader import Loader
from tests.pipeline.hand_store import hand_store

RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak.jsonl"
CPU = torch.device("cpu")
SAMPLES_PER_FRAME = 1.25
"""Of ``hand_store``."""
WARM_EPOCHS = 10


def host_memory_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def memory_by_epoch(
    path: Path, codec: CacheCodec, epochs: int, leak: list[torch.Tensor] | None = None
) -> list[float]:
    """Host memory after every epoch, MB; the files that are open stay the same."""
    config = PipelineConfig(
        store=str(path),
        batch_size=64,
        input_px=56,
        cache=CacheConfig(size_px=64, codec=codec),
    )
    memory, files = [], 0
    with Loader(config, device=CPU) as loader:
        batches = iter(loader)
        for epoch in range(epochs):
            for _ in range(len(loader)):
                image = next(batches).image
            if leak is not None:
                leak.append(image.clone())
            if epoch % 10 == 0:  # a quarter of a second each
                gc.collect()
            memory.append(host_memory_mb())
            if epoch == WARM_EPOCHS:
                files = num_files()
        assert num_files() == files
    return memory


def slope(memory: list[float]) -> float:
    """MB per epoch, fitted behind the warm-up."""
    later = memory[WARM_EPOCHS:]
    return float(np.polyfit(np.arange(len(later)), later, 1)[0])


@pytest.mark.slow
@pytest.mark.parametrize("codec", [CacheCodec.rgb, CacheCodec.stream])
def test_a_hundred_epochs_take_no_memory(tmp_path: Path, codec: CacheCodec) -> None:
    path = hand_store(tmp_path / "s.zarr", 3200, shard_rows=200)
    begin = time.perf_counter()
    memory = memory_by_epoch(path, codec, 100)
    found = slope(memory)
    value = Measurement(p20=found, p50=found, p80=found, n=len(memory) - WARM_EPOCHS)
    params = {
        "samples": round(3200 * SAMPLES_PER_FRAME),
        "epochs": len(memory),
        "first_mb": round(memory[WARM_EPOCHS], 1),
        "last_mb": round(memory[-1], 1),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
    }
    row = record("soak", f"loader, {codec.value}", "host memory", "MB/epoch", value, params=params)
    append_rows(RESULTS, [row])
    assert found < 0.2


def test_a_leak_shows(tmp_path: Path) -> None:
    """The measurement itself, on a small set: 64 inputs of 56 px kept per epoch are 2.4 MB."""
    path = hand_store(tmp_path / "s.zarr", 128, shard_rows=64)
    # What earlier tests freed goes back to the system: a leak that fits into it would not show.
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    flat = slope(memory_by_epoch(path, CacheCodec.rgb, WARM_EPOCHS + 20))
    kept: list[torch.Tensor] = []
    steep = slope(memory_by_epoch(path, CacheCodec.rgb, WARM_EPOCHS + 20, kept))
    assert flat < 1.0  # twenty epochs beside other tests' garbage; the soak fits ninety
    assert steep > 2.0
