"""What ``test_distributed`` runs on one rank or two."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.network import Inputs, Network
from model.parts.backbone import freeze_batch_norm
from model.prediction import HandPrediction, Prediction
from pipeline.app.cli import front_door
from pipeline.batch import Batch
from pipeline.config import CacheConfig, PipelineConfig
from pipeline.loader import Loader
from train.__main__ import COMMANDS
from train.config import OptimConfig, Precision, RunConfig
from train.device.distributed import Ranks, joined_ranks, most_of, with_shared_statistics
from train.step.out_of_memory import NoMemoryError
from train.step.stages import resolve_stages
from train.step.step import TrainState, build_state, enter_stage, train_step

CPU = torch.device("cpu")


class Toy(Network):
    """Joints from an image, in any precision; ``frozen`` has BatchNorms that are fixed maps."""

    def __init__(self, kind: str) -> None:
        super().__init__(input_px=32, num_hands=1)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4),
            nn.GroupNorm(2, 8) if kind == "vit" else nn.BatchNorm2d(8),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.mlp = nn.Linear(32, 63)
        if kind == "frozen":
            norm = self.backbone[1]
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_mean is not None
            norm.running_mean.normal_(0, 0.1)
            freeze_batch_norm(self.backbone)

    def forward(self, inputs: Inputs) -> Prediction:
        out = self.mlp(self.backbone(inputs.image.to(self.mlp.weight.dtype)))
        place = torch.tensor([0.0, 0.0, 0.5], dtype=out.dtype)
        joints = out.view(-1, 1, 21, 3) * 0.1 + place
        return Prediction(hands=HandPrediction(joints_3d=joints))


class Memory:
    """Runs out at one of the places in a Toy: of more than ``room`` samples, or at a visit."""

    def __init__(self, net: Toy, place: str) -> None:
        self.room, self.visit, self.seen = 10**9, 0, 0
        layer = net.backbone[2]
        if place == "forward":
            layer.register_forward_hook(lambda _, __, out: self.check((out,)))
        elif place == "backward begins":
            net.mlp.register_full_backward_pre_hook(lambda _, gradient: self.check(gradient))
        else:  # in its middle: the gradient of mlp is there already
            layer.register_full_backward_hook(lambda _, __, gradient: self.check(gradient))

    def check(self, values: Any) -> None:
        self.seen += 1
        if len(values[0]) > self.room or self.seen == self.visit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def state_of(kind: str, config: RunConfig, ranks: Ranks, dtype: torch.dtype) -> TrainState:
    torch.manual_seed(3)
    state = build_state(
        Toy(kind).to(dtype), config, config.pipeline.batch_size // ranks.world, ranks
    )
    (stage,) = resolve_stages(config, lambda _: 1)
    enter_stage(state, stage, config)
    return state


def in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    cast = batch.mapped(lambda x: x.to(dtype) if x.is_floating_point() else x)
    return dataclasses.replace(cast, image=batch.image)


def short_of_memory(config: RunConfig, store: str, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Take 20 steps, in which rank 1 runs out of memory three times: before it averages gradients.

    Afterwards it does so in the middle of that, in a step that it takes alone.
    """
    state = state_of("vit", config, ranks, torch.float64)
    (stage,) = resolve_stages(config, lambda _: 1)
    batches = iter(Loader(config.pipeline, device=CPU, rank=ranks.rank, world=ranks.world))
    net: Any = state.model
    places = {3: ("forward", 4), 6: ("backward begins", 2)}
    for step in range(20):
        if ranks.rank == 1 and step in places:
            place, room = places[step]
            Memory(net, place).room = room
        train_step(state, in_dtype(next(batches), torch.float64), config, stage)
    weights = {name: value.clone() for name, value in state.model.state_dict().items()}
    most = most_of(state.accumulate, ranks)
    print(f"rank {ranks.rank}: accumulate={state.accumulate}, at most {most}", flush=True)  # noqa: T201
    if ranks.rank == 1:
        Memory(net, "in the middle of backward").visit = 4  # of four parts the last, which averages
        try:
            train_step(state, in_dtype(next(batches), torch.float64), config, stage)
        except NoMemoryError as error:
            print(error, flush=True)  # noqa: T201
    return weights


def gradients_and_weights(store: str, out: Path) -> int:
    config = RunConfig(
        steps=20,
        precision=Precision.fp32,
        pipeline=PipelineConfig(
            store=store, batch_size=16, input_px=32, cache=CacheConfig(size_px=40)
        ),
        optim=OptimConfig(warmup_steps=2),
    )
    (stage,) = resolve_stages(config, lambda _: 1)
    found: dict[str, dict[str, torch.Tensor]] = {}
    with joined_ranks(CPU) as ranks:
        for kind in ("vit", "frozen"):
            who = ranks.rank, ranks.world
            batches = iter(Loader(config.pipeline, device=CPU, rank=who[0], world=who[1]))
            state = state_of(kind, config, ranks, torch.float32)
            first: dict[str, torch.Tensor] = {}
            state.optimizer.register_step_pre_hook(
                lambda *_, first=first, state=state: first.update(
                    {n: p.grad.clone() for n, p in state.model.named_parameters()}
                )
            )
            train_step(state, next(batches), config, stage)
            found[f"gradient {kind}"] = first
            state = state_of(kind, config, ranks, torch.float64)
            for _ in range(20):
                train_step(state, in_dtype(next(batches), torch.float64), config, stage)
            found[f"weights {kind}"] = dict(state.model.state_dict())
        parts = dataclasses.replace(config, accumulate=1 if ranks.world == 1 else 2)
        who = ranks.rank, ranks.world
        batches = iter(Loader(config.pipeline, device=CPU, rank=who[0], world=who[1]))
        state = state_of("vit", parts, ranks, torch.float64)
        for _ in range(20):
            train_step(state, in_dtype(next(batches), torch.float64), parts, stage)
        found["weights parts"] = dict(state.model.state_dict())
        found["weights short"] = short_of_memory(config, store, ranks)
        if ranks.is_first:
            torch.save(found, out)
    return 0


def shared_statistics(store: str, out: Path) -> int:
    """Take a step with BatchNorm in training mode; the ranks share one GPU, so gloo joins them."""
    cuda = torch.device("cuda", 0)
    config = RunConfig(
        steps=1,
        precision=Precision.fp32,
        compile=False,
        pipeline=PipelineConfig(
            store=store, batch_size=16, input_px=32, cache=CacheConfig(size_px=40)
        ),
    )
    (stage,) = resolve_stages(config, lambda _: 1)
    with joined_ranks(CPU) as ranks:
        torch.manual_seed(3)
        net = with_shared_statistics(Toy("norm").to(cuda), ranks)
        state = build_state(net, config, 16 // ranks.world, ranks)
        enter_stage(state, stage, config)
        batches = iter(Loader(config.pipeline, device=cuda, rank=ranks.rank, world=ranks.world))
        train_step(state, next(batches), config, stage)
        if ranks.is_first:
            torch.save(net.state_dict(), out)
    return 0


def command(*words: str) -> int:
    return front_door("python -m train", COMMANDS, words)
