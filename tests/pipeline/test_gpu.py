"""The pipeline on a GPU is the pipeline on the CPU, and a batch never waits for the device."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import CacheConfig, PipelineConfig
from pipeline.decode.codec import Codec, Pixels
from pipeline.gather.reference import warp
from pipeline.loader import Loader
from tests.pipeline.hand_store import hand_store

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")


def config(path: Path) -> PipelineConfig:
    return PipelineConfig(
        store=str(hand_store(path, 24)), batch_size=8, input_px=48, cache=CacheConfig(size_px=64)
    )


def cached_rgb(built: PipelineConfig, device: torch.device) -> Tensor:
    held = Loader(built, device=device).resident
    assert held is not None
    assert held.pixels.rgb is not None
    return held.pixels.rgb


def test_a_filled_cache_holds_the_same_pixels(tmp_path: Path) -> None:
    built = config(tmp_path / "store.zarr")
    ours, theirs = (cached_rgb(built, device) for device in (CUDA, CPU))
    difference = (ours.cpu().int() - theirs.int()).abs()
    # Decoders differ by a rounding of the inverse DCT and one of the filter, more at a few edges.
    assert difference.float().quantile(0.999) <= 4
    assert difference.float().mean() < 0.5


def test_the_integer_half_of_the_gather_gives_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8, generator=generator)
    index = torch.tensor([4, 0, 2, 2, 1, 3])
    A = torch.randint(-90_000, 90_000, (6, 2, 3), dtype=torch.int32, generator=generator)
    here, there = (Pixels(codec=Codec.rgb, rgb=pixels.to(device)) for device in (CPU, CUDA))
    expected = warp(here, index, A, 48)
    assert torch.equal(warp(there, index.to(CUDA), A.to(CUDA), 48).cpu(), expected)


def test_batches_are_those_of_the_cpu(tmp_path: Path) -> None:
    built = config(tmp_path / "store.zarr")
    ours, theirs = (next(iter(Loader(built, device=device))).to(CPU) for device in (CUDA, CPU))
    for field in fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name == "image":
            assert (a - b).abs().mean() < 0.02
        elif a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(a, b), field.name


def test_a_batch_never_waits_for_the_device(tmp_path: Path) -> None:
    loader = Loader(config(tmp_path / "store.zarr"), device=CUDA)
    batches = loader.epoch(0)
    next(batches)  # the epoch's order is copied to the device with its first batch
    torch.cuda.set_sync_debug_mode("error")
    try:
        next(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
