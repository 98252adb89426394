"""How much memory a training step takes, measured before the cache is given the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import torch

from model.network import Network
from pipeline.assemble import DTYPES
from pipeline.batch import Batch, blank_batch
from pipeline.config import PipelineConfig
from pipeline.labels.objects import ObjectModels
from pipeline.store.schema import OBJECT_POINTS
from train.build import label_groups
from train.config import RunConfig
from train.step.live_bytes import LiveBytes
from train.step.stages import resolve_stages
from train.step.step import TrainState, build_state, enter_stage, predict, train_step

STEPS: Final = 2
"""Of each stage; the optimiser's state comes with the first."""
NCCL_BYTES: Final = 2**30
"""Of the communication between ranks, which takes its memory beside torch's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What training takes of a device."""

    bytes: int
    """At most at once, weights included; 0 where it was not measured."""
    accumulate: int
    """Parts of a batch that it takes then: more than configured if memory ran out."""


def measure_need(model: Network, config: RunConfig, *, world: int = 1) -> Need:
    """Return what training takes on a GPU; on a CPU nothing is measured.

    Raises:
        NoMemoryError: If the device is too small for one sample at a time.
    """
    if next(model.parameters()).device.type != "cuda":
        return Need(bytes=0, accumulate=config.accumulate)
    with as_before(model):
        return peak_of(model, config, world=world)


@contextmanager
def as_before(model: Network) -> Iterator[None]:
    """Put weights, buffers, modes and random numbers back to what they were at the beginning."""
    device = next(model.parameters()).device
    before = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        model.load_state_dict(before)
        for parameter, was_trained in zip(model.parameters(), trained, strict=True):
            parameter.requires_grad_(was_trained)
            parameter.grad = None
        if device.type == "cuda":
            torch.cuda.empty_cache()


def peak_of(model: Network, config: RunConfig, *, world: int = 1) -> Need:
    """Return what ``rehearse`` took at most; the model's weights change.

    On a GPU that is what torch reserved: pieces that cannot be used count. On a CPU it is the
    tensors that are alive, without scratch memory inside an operation.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        with LiveBytes() as live:
            state = rehearse(model, config, world=world)
            validate_once(state, config, world=world)
        return Need(bytes=live.peak, accumulate=state.accumulate)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    state = rehearse(model, config, world=world)
    extra = NCCL_BYTES if world > 1 else 0
    if config.graph and not config.debug:  # its memory is its own, validation is beside it
        steps, held = torch.cuda.max_memory_reserved(device), torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        validate_once(state, config, world=world)
        extra += max(0, torch.cuda.max_memory_allocated(device) - held)
        return Need(bytes=steps + extra, accumulate=state.accumulate)
    validate_once(state, config, world=world)
    extra += torch.cuda.max_memory_reserved(device)
    return Need(bytes=extra, accumulate=state.accumulate)


def rehearse(model: Network, config: RunConfig, *, world: int = 1) -> TrainState:
    """Take steps of every stage on blank batches of one rank; the model's weights change."""
    device = next(model.parameters()).device
    stages = resolve_stages(_of_one_rank(config, world), lambda _: 1)
    most = max(stage.pipeline.batch_size for stage in stages)
    state = build_state(model, config, most, objects=_one_object(device))
    for stage in stages:
        state.step = stage.begin
        enter_stage(state, stage, replace(config, compile=False))
        for _ in range(STEPS):
            batch = _blank(state, stage.pipeline, stage.pipeline.batch_size)
            train_step(state, batch, config, stage)
    return state


def validate_once(state: TrainState, config: RunConfig, *, world: int = 1) -> None:
    """Run the averaged model on a blank batch as validation does, if there is one."""
    if config.validation.split is None:
        return
    length = config.pipeline.window.length
    size = max(1, config.validation.batch_size // length // world)
    with torch.inference_mode():
        predict(state.ema, _blank(state, config.pipeline, size), state.dtype)


def _of_one_rank(config: RunConfig, world: int) -> RunConfig:
    """Return the configuration with the batch sizes of one rank."""

    def share(batch_size: int) -> int:
        return max(1, batch_size // world)

    return replace(
        config,
        pipeline=replace(config.pipeline, batch_size=share(config.pipeline.batch_size)),
        stages={
            name: replace(stage, batch_size=stage.batch_size and share(stage.batch_size))
            for name, stage in config.stages.items()
        },
    )


def _blank(state: TrainState, pipeline: PipelineConfig, num: int) -> Batch:
    length, side = pipeline.window.length, pipeline.input_px
    image = torch.zeros(
        (num, length, 3, side, side),
        dtype=DTYPES[pipeline.image_dtype],
        device=state.clock.device,
    )
    if pipeline.channels_last:
        image = image.movedim(2, -1).contiguous().movedim(-1, 2)
    if length == 1:
        image = image[:, 0]
    needed = [group for group in label_groups(state.family) if not group.OPTIONAL]
    return blank_batch(image, state.model.num_hands, needed)


def _one_object(device: torch.device) -> ObjectModels:
    points = torch.zeros(1, OBJECT_POINTS, 3, device=device)
    return ObjectModels(names=("blank",), points=points, moving=points[..., 0] > 0)
