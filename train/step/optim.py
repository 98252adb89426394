"""The optimiser and its groups of parameters."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # no __all__
from torch import nn

from model.network import Network
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
    require_known(model, config)
    layer_shares = _layer_shares(model, config.layer_decay)
    undecayed = model.no_weight_decay() if isinstance(model, Network) else frozenset()
    groups: dict[GroupRule, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(rule_of(name, parameter, layer_shares, undecayed, config), []).append(
                parameter
            )
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
    name: str,
    parameter: nn.Parameter,
    layer_shares: dict[int, float],
    undecayed: frozenset[str],
    config: OptimConfig,
) -> GroupRule:
    """Return how a parameter is trained.

    Parameters with fewer than two axes (biases, norms), position embeddings, tokens and what the
    network names do not decay. The learning rate is multiplied by the share of the longest of
    ``shares`` that names the parameter or a module around it; without one the backbone has
    ``backbone_lr``, the rest 1. Each layer of the backbone has ``layer_decay`` times the rate of
    the layer above it besides (as BEiT and MAE are fine-tuned).
    """
    plain = parameter.ndim < 2 or name.endswith(NOT_DECAYED) or name in undecayed
    is_backbone = name.startswith("backbone.")
    named = [prefix for prefix in config.shares if f"{name}.".startswith(f"{prefix}.")]
    share = config.backbone_lr if is_backbone else 1.0
    if named:
        share = config.shares[max(named, key=len)]
    if is_backbone:
        share *= layer_shares.get(id(parameter), 1.0)
    return GroupRule(lr_share=share, weight_decay=0.0 if plain else config.weight_decay)


def require_known(model: nn.Module, config: OptimConfig) -> None:
    """Refuse shares of what the model does not have.

    Raises:
        ValueError: Names the share, with the nearest name.
    """
    for _ in parameters_of(model, list(config.shares), "optim.shares"):
        pass


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write ``lr`` times each group's share into the optimizer's tensors, in place."""
    groups = optimizer.param_groups
    rates = [group["lr"] for group in groups]  # two calls for all groups: layer decay makes dozens
    torch._foreach_zero_(rates)
    torch._foreach_add_(rates, [lr * group["lr_share"] for group in groups])


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


def parameters_of(
    model: nn.Module, prefixes: Sequence[str], key: str = "freeze"
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of the modules that ``prefixes``, the value of ``key``, name.

    Raises:
        ValueError: If a name has no parameter; lists what there is, with the nearest name.
    """
    for prefix in prefixes:
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if name == prefix or name.startswith(f"{prefix}.")
        ]
        if not named:
            names = [name for name, _ in model.named_parameters()]
            known = sorted({name.partition(".")[0] for name in names})
            near = difflib.get_close_matches(prefix, modules_with(names), n=1, cutoff=0.5)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{key}: no parameters in a module {prefix!r}; there are {', '.join(known)}{hint}"
            )
        yield from named


def modules_with(names: Sequence[str]) -> list[str]:
    """Return the parameters' names and those of all modules around them, outer ones first."""
    parts = (name.split(".") for name in names)
    found = {".".join(path[:end]) for path in parts for end in range(1, len(path) + 1)}
    return sorted(found, key=lambda name: (name.count("."), name))
