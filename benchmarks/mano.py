"""Cost of the MANO layer compared with ``smplx.MANOLayer``.

    python -m benchmarks mano

Forward and backward pass on the same hands, interleaved, on the GPU if there is one, else on all
CPU cores: right hands only, and batches of both sides. smplx has one side per layer; a batch of
both is decoded by two layers and selected from, as ours does internally.

smplx is compiled with ``fullgraph=False``: it indexes lists with tensors on the device, which
breaks its graph.
"""

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from benchmarks.config import ManoBenchConfig
from benchmarks.harness import (
    Bar,
    Measurement,
    append_rows,
    measure_together,
    print_bars,
    print_table,
    record,
)
from model.mano.files import ManoModels, find_mano, load_mano
from model.mano.layer import ManoLayer, smplx_layer

Hands = tuple[Tensor, Tensor, Tensor, Tensor]
"""theta as matrices [n, 16, 3, 3], beta [n, 10], transl [n, 3], is_right [n]."""
Decode = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
SAME_M: Final = 1e-5
OURS: Final = "ours"
SMPLX: Final = "smplx"
_NUM_INPUTS: Final = 4


def main(config: ManoBenchConfig) -> int:
    """Measure, append the rows and print them; return 0 if ours is nowhere slower, else 1."""
    # Avoid a page of warnings for each of smplx's graph breaks.
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models, source = models_of(config)
    metrics: dict[str, dict[str, Measurement]] = {}
    for sides, right_only in (("right hands", True), ("both sides", False)):
        inputs = [
            draw_hands(config.num, seed, right_only=right_only, device=device)
            for seed in range(_NUM_INPUTS)
        ]
        decoders: dict[str, Decode] = {
            OURS: ManoLayer(models, right_only=right_only).to(device),
            SMPLX: smplx_decoder(models, right_only=right_only, device=device),
        }
        check_same(decoders, inputs[0])
        for mode in ("eager", "compiled")[: 1 + config.compiled]:
            metrics[f"{sides}, {mode}"] = measure_together(
                {
                    name: forward_backward(_compiled(name, decode) if mode != "eager" else decode)
                    for name, decode in decoders.items()
                },
                min_time_s=config.min_time_s,
                repeats=config.repeats,
                warmup_s=config.min_time_s / 5,
                device="cuda" if device.type == "cuda" else "cpu",
                inputs=inputs,
            )
    params = {"hands": config.num, "model": source, "threads": torch.get_num_threads()}
    rows = [
        record(
            "mano",
            name,
            metric,
            "hands/s",
            times.rate(config.num),
            params=params,
            config=dataclasses.asdict(config),
        )
        for metric, variants in metrics.items()
        for name, times in variants.items()
    ]
    append_rows(config.results, rows)
    print_table(rows)
    bars = [
        Bar(
            name=f"{metric}: of smplx's rate",
            measured=variants[SMPLX].p50 / variants[OURS].p50,
            at_least=1.0,
            unit="x",
        )
        for metric, variants in metrics.items()
    ]
    return 0 if print_bars(bars) else 1


def models_of(config: ManoBenchConfig) -> tuple[ManoModels, str]:
    """Return the MANO models to measure and their name in the rows: a hash prefix."""
    folder = find_mano(config.mano)
    if folder is not None:
        models = load_mano(folder)
        return models, models.sha256[:12]
    from preprocess.sample.hand.mesh import write_mano

    with tempfile.TemporaryDirectory() as stand_in:
        write_mano(Path(stand_in))
        return load_mano(Path(stand_in)), "stand-in"


def draw_hands(num: int, seed: int, *, right_only: bool, device: torch.device) -> Hands:
    """Return random hands as leaf tensors."""
    rng = np.random.default_rng(seed)
    turns = Rotation.from_rotvec(rng.normal(0, 0.5, (num * 16, 3))).as_matrix()
    parts = (turns.reshape(num, 16, 3, 3), rng.normal(0, 1, (num, 10)), rng.normal(0, 1, (num, 3)))
    theta, beta, transl = (
        torch.tensor(part, dtype=torch.float32, device=device, requires_grad=True) for part in parts
    )
    is_right = torch.ones(num, dtype=torch.bool, device=device)
    if not right_only:
        is_right[1::2] = False
    return theta, beta, transl, is_right


def smplx_decoder(models: ManoModels, *, right_only: bool, device: torch.device) -> Decode:
    """Wrap smplx with the signature of ``ManoLayer``."""
    layers = [
        smplx_layer(arrays, is_right=is_right).to(device)
        for arrays, is_right in ((models.right, True), (models.left, False))
    ]

    def decode_side(layer: Any, theta: Tensor, beta: Tensor, transl: Tensor) -> list[Tensor]:
        out = layer(betas=beta, global_orient=theta[:, :1], hand_pose=theta[:, 1:], transl=transl)
        return [out.vertices, out.joints]

    def decode(
        theta: Tensor, beta: Tensor, transl: Tensor, is_right: Tensor
    ) -> tuple[Tensor, Tensor]:
        right = decode_side(layers[0], theta, beta, transl)
        if right_only:
            return right[0], right[1]
        left = decode_side(layers[1], theta, beta, transl)
        pick = is_right[:, None, None]
        return torch.where(pick, right[0], left[0]), torch.where(pick, right[1], left[1])

    return decode


def forward_backward(decode: Decode) -> Callable[[Tensor, Tensor, Tensor, Tensor], object]:
    """Return a function that computes vertices, joints and the gradients of all three inputs."""

    def run(theta: Tensor, beta: Tensor, transl: Tensor, is_right: Tensor) -> object:
        vertices, joints = decode(theta, beta, transl, is_right)
        loss = vertices.square().mean() + joints.square().mean()
        return torch.autograd.grad(loss, (theta, beta, transl))

    return run


def check_same(decoders: dict[str, Decode], hands: Hands) -> None:
    """Raise if the layers to compare give different hands."""
    ours, theirs = (decoders[name](*hands) for name in (OURS, SMPLX))
    for mine, other in zip(ours, theirs, strict=True):
        worst = float((mine - other).abs().max().detach())
        if worst > SAME_M:
            raise RuntimeError(f"ours and smplx differ by {worst} m on the same hands")


def _compiled(name: str, decode: Decode) -> Decode:
    compiled: Decode = torch.compile(decode, fullgraph=name == OURS)
    return compiled
