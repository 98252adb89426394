"""Parameter groups and averaged weights."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # no __all__
from torch import Tensor, nn

from train.config import OptimConfig

NOT_DECAYED = ("pos_embed", "cls_token", "reg_token", "temporal.distance")
"""Ends of the names of position embeddings and tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRule:
    """How parameters of a group are trained."""

    lr_share: float
    """Learning rate over that of the schedule."""
    weight_decay: float


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return fused AdamW over the groups of ``rule_of``.

    Learning rates are tensors, so that a captured step can be replayed with new ones.
    """
    shares = _layer_shares(model, config.layer_decay)
    groups: dict[GroupRule, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(rule_of(name, parameter, shares, config), []).append(parameter)
    device = next(model.parameters()).device
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": rule.weight_decay,
                "lr": torch.tensor(config.lr * rule.lr_share, device=device),
                "lr_share": rule.lr_share,
            }
            for rule, parameters in groups.items()
        ],
        betas=(config.beta1, config.beta2),
        fused=True,
        capturable=device.type == "cuda",
    )


def add_parameter(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, config: OptimConfig
) -> None:
    """Train a parameter that is not the model's, at the head's learning rate, without decay."""
    lr = torch.tensor(config.lr, device=parameter.device)
    group = {"params": [parameter], "weight_decay": 0.0, "lr": lr, "lr_share": 1.0}
    optimizer.add_param_group(group)


def rule_of(
    name: str, parameter: nn.Parameter, layer_shares: dict[int, float], config: OptimConfig
) -> GroupRule:
    """Return how a parameter is trained.

    Parameters with fewer than two axes (biases, norms), position embeddings and tokens do not
    decay. The backbone has ``backbone_lr`` times the learning rate, and each of its layers
    ``layer_decay`` times that of the layer above it (as BEiT and MAE are fine-tuned).
    """
    plain = parameter.ndim < 2 or name.endswith(NOT_DECAYED)
    share = 1.0
    if name.startswith("backbone."):
        share = config.backbone_lr * layer_shares.get(id(parameter), 1.0)
    return GroupRule(lr_share=share, weight_decay=0.0 if plain else config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write ``lr`` times each group's share into the optimizer's tensors, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr * group["lr_share"])


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: Tensor, decay: float) -> None:
    """Move the averaged weights towards the model; buffers are copied.

    The decay grows as (1 + step) / (10 + step), so that the first steps do not linger.

    Args:
        ema: The averaged model.
        model: The trained one.
        step: From 0, on the device: a replayed graph reads it again.
        decay: Largest decay.
    """
    weight = 1.0 - torch.clamp((1.0 + step) / (10.0 + step), max=decay)
    averaged: list[Tensor] = list(ema.parameters())
    trained: list[Tensor] = list(model.parameters())
    moves = torch._foreach_sub(trained, averaged)  # noqa: SLF001 - torch's own optimisers' way
    torch._foreach_mul_(moves, weight)
    torch._foreach_add_(averaged, moves)
    if buffers := list(ema.buffers()):
        torch._foreach_copy_(buffers, list(model.buffers()))


def _layer_shares(model: nn.Module, layer_decay: float) -> dict[int, float]:
    """Return the ``id`` of every trained parameter of the backbone, and its layer's share.

    The layers are timm's own for this purpose. The highest one has 1, and so has the norm above it.
    """
    backbone = next(
        (module for module in model.modules() if hasattr(module, "pretrained_cfg")), None
    )
    if backbone is None:
        return {}
    groups = param_groups_layer_decay(backbone, layer_decay=layer_decay)
    return {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}


def parameters_of(model: nn.Module, prefixes: list[str]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the modules that ``prefixes`` name.

    Raises:
        ValueError: If a name has no parameter; lists what there is.
    """
    for prefix in prefixes:
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if name == prefix or name.startswith(f"{prefix}.")
        ]
        if not named:
            known = sorted({name.partition(".")[0] for name, _ in model.named_parameters()})
            raise ValueError(f"no parameters in a module {prefix!r}; there are {', '.join(known)}")
        yield from named
