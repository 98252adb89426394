"""How much memory a training step takes, measured before the cache is given the rest."""

import copy
from dataclasses import replace
from typing import Final

import torch

from model.network import Network
from pipeline.assemble import DTYPES
from pipeline.batch import blank_batch
from pipeline.labels.objects import ObjectModels
from pipeline.store.schema import OBJECT_POINTS
from train.build import label_groups
from train.config import RunConfig
from train.step.stages import resolve_stages
from train.step.step import build_state, train_step

STEPS: Final = 2
"""The optimiser's state comes with the first."""


def step_bytes(model: Network, config: RunConfig, *, world: int = 1) -> int:
    """Return the peak of the device's memory in a training step, weights included; 0 on a CPU.

    Two steps on blank batches; weights, buffers and random numbers are then what they were.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return 0
    before = copy.deepcopy(model.state_dict())
    torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng([device]):
        rehearse(model, config, world=world)
    peak = int(torch.cuda.max_memory_allocated(device))
    model.load_state_dict(before)
    torch.cuda.empty_cache()
    return peak - int(sum(value.nbytes for value in before.values()))


def rehearse(model: Network, config: RunConfig, *, world: int = 1) -> None:
    """Take the steps; the model's weights change."""
    pipeline = config.pipeline
    sizes = [stage.batch_size or pipeline.batch_size for stage in config.stages.values()]
    num = max(1, max(sizes, default=pipeline.batch_size) // world)
    device = next(model.parameters()).device
    (stage,) = resolve_stages(replace(config, stages={}), lambda _: 1)
    state = build_state(model, config, num, objects=_one_object(device))
    length = pipeline.window.length
    image = torch.zeros(
        (num, length, 3, pipeline.input_px, pipeline.input_px),
        dtype=DTYPES[pipeline.image_dtype],
        device=device,
    )
    if pipeline.channels_last:
        image = image.movedim(2, -1).contiguous().movedim(-1, 2)
    if length == 1:
        image = image[:, 0]
    groups = label_groups(config.model.family)
    for _ in range(STEPS):
        train_step(state, blank_batch(image, model.num_hands, groups), config, stage)


def _one_object(device: torch.device) -> ObjectModels:
    points = torch.zeros(1, OBJECT_POINTS, 3, device=device)
    return ObjectModels(names=("blank",), points=points, moving=points[..., 0] > 0)
