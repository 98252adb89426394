"""The memory plan: resident RGB, else resident YUV 4:2:0, else streaming. Needs no device.

    needed = (1 + margin) * model + pixels + labels + decoder

Labels are counted as recorded, once more as an unaugmented stage holds them (``Assembler``), and
the indices of the order.
The decoder's pool is counted although it is released after the fill: model and cache are allocated
while it works.
"""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pipeline.app.machine import read_host_memory
from pipeline.app.words import say
from pipeline.batch import LabelGroup
from pipeline.config import CacheCodec, CacheConfig, PipelineConfig, PlanConfig
from pipeline.decode.buffers import PREFETCH
from pipeline.decode.codec import Codec, bytes_per_sample
from pipeline.decode.threads import DEVICE_BYTES, decoder_threads
from pipeline.labels.prepare import prepare
from pipeline.labels.table import load_groups, load_labels
from pipeline.order.parts import Part, open_parts
from pipeline.view import samples_at, table_bytes

GIB: Final = 2**30
CARDS: Final = {"24 GB": 23.5, "48 GB": 44.4, "80 GB": 79.0, "141 GB": 139.0}
"""Name: approximate GiB that a process finds free on such cards."""
MODEL_MARGIN: Final = 0.05
DECODER_FIXED_BYTES: Final = GIB
"""Context and scratch memory of the decoder besides batches and threads; an unmeasured estimate."""
GPU: Final = torch.device("cuda")


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """Memory demand of a view of a store on each device."""

    num_samples: int
    """Number of samples on this device."""
    size_px: int
    label_bytes: int
    """Bytes per sample, as recorded and as prepared."""
    decoder_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """One cache format and its memory."""

    codec: Codec
    pixel_bytes: int
    label_bytes: int
    decoder_bytes: int
    model_bytes: int
    """Memory of the model including the margin."""

    @property
    def total_bytes(self) -> int:
        """Total device memory needed."""
        return self.pixel_bytes + self.label_bytes + self.decoder_bytes + self.model_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Chosen cache format and the alternatives."""

    device_bytes: int
    num_samples: int
    options: tuple[Option, ...]
    """In order of preference."""
    chosen: Codec | None
    """None: nothing fits, so the samples are streamed."""

    def sentence(self) -> str:
        """Return the choice and its reason in one line."""
        parts = []
        for option in self.options:
            fits = option.total_bytes <= self.device_bytes
            parts.append(
                f"{option.codec.value} needs {_gib(option.total_bytes)} GiB"
                f" ({'fits' if fits else 'does not fit'})"
            )
            if fits:
                break
        what = f"resident {self.chosen.value}" if self.chosen else "stream"
        if not parts:
            return f"{what}: {self.num_samples:,} samples, decoded in every epoch as configured"
        return (
            f"{what}: {self.num_samples:,} samples on a device of {_gib(self.device_bytes)} GiB; "
            f"{', '.join(parts)}"
        )


def plan_memory(
    demand: Demand, *, device_bytes: int, model_bytes: int, codecs: tuple[Codec, ...]
) -> MemoryPlan:
    """Choose the first codec whose cache fits beside the model.

    Args:
        demand: Memory demand of the samples.
        device_bytes: Memory of the device that this process may use.
        model_bytes: Peak of the training step without the cache.
        codecs: Allowed codecs, best first.
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


def demand_of(
    parts: Sequence[Part],
    config: PipelineConfig,
    num_samples: int,
    groups: Sequence[type[LabelGroup]] = (),
    device: torch.device = GPU,
) -> Demand:
    """Return the demand of ``num_samples`` of the parts on a device; loads one sample's labels."""
    label_bytes, frame_bytes = [], []
    for part in parts:
        one = samples_at(part.view, torch.zeros(1, dtype=torch.int64))
        stores = [(part.store, one)]
        labels = load_labels(part.store, one, config.view.kind)
        tables: list[Any] = [one, labels, *load_groups(groups, stores, config.view.kind, [0])]
        tables += prepare(one, labels, torch.zeros(1, dtype=torch.int64), None, config)
        label_bytes.append(sum(table_bytes(table) for table in tables))
        height_width = part.store.image_index.size_hw[np.unique(part.view.row)].astype(np.int64)
        crops = max(1, math.ceil(len(part.view) / len(height_width)))
        frame_bytes.append(
            3 * int(height_width.prod(1).max()) + crops * 3 * config.cache.size_px**2
        )
    decoded = (PREFETCH + 1) * config.cache.decode_batch * max(frame_bytes)
    if device.type == "cuda":
        decoded += decoder_threads(config.cache, device) * DEVICE_BYTES
    return Demand(
        num_samples=num_samples,
        size_px=config.cache.size_px,
        label_bytes=max(label_bytes) + torch.int64.itemsize,  # and its index in the order
        decoder_bytes=decoded + DECODER_FIXED_BYTES,
    )


def allowed_codecs(cache: CacheConfig, *, training: bool) -> tuple[Codec, ...]:
    """Return the codecs that the cache may use, best first.

    Evaluation never reads a codec that loses more than the JPEG did.
    """
    if cache.codec is CacheCodec.stream:
        return ()
    if cache.codec is CacheCodec.rgb or not training or cache.size_px % 2:
        return (Codec.rgb,)
    if cache.codec is CacheCodec.yuv420:
        return (Codec.yuv420,)
    return (Codec.rgb, Codec.yuv420)


def available_bytes(device: torch.device) -> int:
    """Return the memory of ``device`` that this process may use, including what it holds."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks on this machine share it
    return read_host_memory().left // ranks


def require_room(plan: MemoryPlan, cache: CacheConfig, *, training: bool) -> None:
    """Reject a requested codec that does not fit; evaluation streams instead.

    Raises:
        ValueError: States what is missing and what to change.
    """
    named = cache.codec in (CacheCodec.rgb, CacheCodec.yuv420)
    if plan.chosen is None and named and training:
        raise ValueError(
            f"the cache does not fit: {plan.sentence()}; use cache.codec=auto, subset=... or a "
            "smaller cache.size_px"
        )


def capacity(demand: Demand, codec: Codec, *, device_bytes: int, model_bytes: int) -> int:
    """Return how many samples like those of ``demand`` fit alongside the model and the decoder."""
    model = math.ceil((1 + MODEL_MARGIN) * model_bytes)
    free = device_bytes - demand.decoder_bytes - model
    return max(0, free // (bytes_per_sample(codec, demand.size_px) + demand.label_bytes))


def main(config: PlanConfig) -> int:
    """Plan how a store fits on a device: resident rgb, resident yuv420, or streamed.

    Counts pixels, labels, the decoder's pool and the model with a margin of 5 %, as the fill does.
    If too little fits, reduce cache.size_px or subset, or use more devices (world=...). Without
    device_gib it compares cards; num_samples extrapolates from a partial build to the whole
    dataset.

    Example:
        python -m pipeline plan store=build/dexycb.zarr split=s0_train device_gib=24 model_gib=8
        python -m pipeline plan store=build/arctic.zarr num_samples=1496400
    """
    with ExitStack() as stack:
        parts = open_parts(config.pipeline, stack, training=True)
        total = config.num_samples or sum(len(part.view) for part in parts)
        demand = demand_of(parts, config.pipeline, math.ceil(total / config.world))
    codecs = allowed_codecs(config.pipeline.cache, training=True)
    model_bytes = int(config.model_gib * GIB)
    console = Console()
    if config.device_gib is None:
        _show_cards(console, demand, codecs, model_bytes, config)
        return 0
    plan = plan_memory(
        demand,
        device_bytes=int(config.device_gib * GIB),
        model_bytes=model_bytes,
        codecs=codecs,
    )
    say(plan.sentence(), console)
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


def _show_cards(
    console: Console,
    demand: Demand,
    codecs: tuple[Codec, ...],
    model_bytes: int,
    config: PlanConfig,
) -> None:
    """Print each card's capacity, the plan for the store on it, and the number of cards needed."""
    say(
        f"{demand.num_samples:,} samples of {demand.size_px} px on each of {config.world}, beside "
        f"a model of {config.model_gib:g} GiB",
        console,
    )
    sheet = Table("card")
    for codec in codecs:
        sheet.add_column(f"holds {codec.value}", justify="right")
    sheet.add_column("this store")
    for codec in codecs:
        sheet.add_column(f"cards for {codec.value}", justify="right")
    for card, gib in CARDS.items():
        device_bytes = int(gib * GIB)
        plan = plan_memory(
            demand, device_bytes=device_bytes, model_bytes=model_bytes, codecs=codecs
        )
        held = [
            capacity(demand, codec, device_bytes=device_bytes, model_bytes=model_bytes)
            for codec in codecs
        ]
        everything = demand.num_samples * config.world
        sheet.add_row(
            card,
            *(f"{num:,}" for num in held),
            plan.chosen.value if plan.chosen else "stream",
            *(str(math.ceil(everything / num)) if num else "-" for num in held),
        )
    console.print(sheet)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.2f}"
