"""Parameter groups, the schedule and averaged weights."""

import math

import torch
from torch import nn

from train.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Return fused AdamW; parameters with fewer than two axes (biases, norms) do not decay.

    The learning rate is a tensor, so that a captured step can be replayed with a new one.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    device = trained[0].device
    lr = torch.tensor(config.lr, device=device)
    return torch.optim.AdamW(groups, lr=lr, fused=True, capturable=device.type == "cuda")


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Return the learning rate of ``step`` (0-based): linear warm-up, then cosine."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr_share + (1.0 - config.final_lr_share) * cosine)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Write ``lr`` into the optimizer's tensors, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(lr)


@torch.no_grad()
def update_ema(ema: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the model; buffers are copied.

    The decay grows as (1 + step) / (10 + step), so that the first steps do not linger.
    """
    weight = 1.0 - min(decay, (1.0 + step) / (10.0 + step))
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), weight)
    torch._foreach_copy_(list(ema.buffers()), list(model.buffers()))
