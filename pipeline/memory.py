"""The memory plan: resident RGB, else resident YUV 4:2:0, else streaming. Needs no device.

    needed = (1 + margin) * model + pixels + labels + decoder

The decoder's pool is counted although it is given back after the fill: model and cache are there
when it works.
"""

import math
from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipeline.codec import Codec, bytes_per_sample
from pipeline.command_config import PlanConfig
from pipeline.config import PipelineConfig
from pipeline.graph import PREFETCH
from pipeline.labels import load_labels
from pipeline.store.reader import open_store
from pipeline.view import build_view, samples_at, split_rows

GIB: Final = 2**30
MODEL_MARGIN: Final = 0.05
DECODER_FIXED_BYTES: Final = GIB
"""Context and scratch of the decoder beside its batches; an estimate until it is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a view of a store asks of each device."""

    num_samples: int
    """On this device."""
    size_px: int
    label_bytes: int
    """Per sample."""
    decoder_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One way to hold the samples."""

    codec: Codec
    pixel_bytes: int
    label_bytes: int
    decoder_bytes: int
    model_bytes: int
    """With its margin."""

    @property
    def total_bytes(self) -> int:
        """What the device must have."""
        return self.pixel_bytes + self.label_bytes + self.decoder_bytes + self.model_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """The choice and the reasons."""

    device_bytes: int
    num_samples: int
    options: tuple[Option, ...]
    """In order of preference: rgb, then yuv420 where the side is even."""
    chosen: Codec | None
    """None: nothing fits, so the samples are streamed."""

    def sentence(self) -> str:
        """Return the choice in one line: what and why."""
        parts = []
        for option in self.options:
            fits = option.total_bytes <= self.device_bytes
            parts.append(
                f"{option.codec.value} needs {_gib(option.total_bytes)} GiB"
                f" ({'fits' if fits else 'does not fit'})"
            )
            if fits:
                break
        what = f"resident {self.chosen.value}" if self.chosen else "stream: the cache does not fit"
        return (
            f"{what}: {self.num_samples:,} samples on a device of {_gib(self.device_bytes)} GiB; "
            f"{', '.join(parts)}"
        )


def plan_memory(
    demand: Demand, *, device_bytes: int, model_bytes: int, codecs: tuple[Codec, ...]
) -> MemoryPlan:
    """Choose the first codec whose cache fits beside the model.

    Args:
        demand: What the samples ask for.
        device_bytes: Memory of the device that this process may use.
        model_bytes: Peak of the training step without the cache.
        codecs: Allowed ones, best first.
    """
    options = tuple(
        Option(
            codec=codec,
            pixel_bytes=demand.num_samples * bytes_per_sample(codec, demand.size_px),
            label_bytes=demand.num_samples * demand.label_bytes,
            decoder_bytes=demand.decoder_bytes,
            model_bytes=math.ceil((1 + MODEL_MARGIN) * model_bytes),
        )
        for codec in codecs
    )
    fitting = [option.codec for option in options if option.total_bytes <= device_bytes]
    return MemoryPlan(
        device_bytes=device_bytes,
        num_samples=demand.num_samples,
        options=options,
        chosen=fitting[0] if fitting else None,
    )


def demand_of(config: PipelineConfig, *, world: int = 1) -> Demand:
    """Return what a configuration asks of each of ``world`` devices; reads labels, no image.

    Raises:
        ValueError: If configuration and store do not fit.
        StoreError: If the store cannot be read.
    """
    store = open_store(config.store, reader=config.cache.reader.value)
    try:
        rows = split_rows(store, config.split, config.subset)
        view = build_view(store, rows, config.view, config.cache.size_px, training=True)
        one = samples_at(view, torch.zeros(1, dtype=torch.int64))
        tables = (one, load_labels(store, one, config.view.kind))
        height_width = store.image_index.size_hw[np.unique(view.row.numpy())].astype(np.int64)
        crops = max(1, math.ceil(len(view) / len(height_width)))
        frame_bytes = 3 * int(height_width.prod(1).max()) + crops * 3 * config.cache.size_px**2
        label_bytes = sum(
            getattr(table, field.name).nbytes for table in tables for field in fields(table)
        )
    finally:
        store.close()
    return Demand(
        num_samples=math.ceil(len(view) / world),
        size_px=config.cache.size_px,
        label_bytes=label_bytes + torch.int64.itemsize,  # and its place in the order
        decoder_bytes=(PREFETCH + 1) * config.cache.decode_batch * frame_bytes
        + DECODER_FIXED_BYTES,
    )


def main(config: PlanConfig) -> int:
    """Say what of a store fits on a device: resident rgb, resident yuv420, or streamed.

    Counts pixels, labels, the decoder's pool and the model with 5 % of margin, as the fill does. A
    smaller cache.size_px, subset=... or more devices (world=...) make more fit.

    Example:
        python -m pipeline plan store=build/dexycb.zarr split=s0_train device_gib=24 model_gib=8
    """
    side_is_even = config.pipeline.cache.size_px % 2 == 0
    plan = plan_memory(
        demand_of(config.pipeline, world=config.world),
        device_bytes=int(config.device_gib * GIB),
        model_bytes=int(config.model_gib * GIB),
        codecs=(Codec.rgb, Codec.yuv420) if side_is_even else (Codec.rgb,),
    )
    console = Console()
    console.print(plan.sentence(), highlight=False, soft_wrap=True)
    sheet = Table()
    for name in ("codec", "pixels", "labels", "decoder", "model + 5 %", "total GiB", "fits"):
        sheet.add_column(name, justify="left" if name == "codec" else "right")
    for option in plan.options:
        sheet.add_row(
            option.codec.value,
            _gib(option.pixel_bytes),
            _gib(option.label_bytes),
            _gib(option.decoder_bytes),
            _gib(option.model_bytes),
            _gib(option.total_bytes),
            "yes" if option.total_bytes <= plan.device_bytes else "no",
        )
    console.print(sheet)
    return 0


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
