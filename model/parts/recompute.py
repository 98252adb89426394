"""Activations computed again in the backward pass, of all blocks of a backbone or of some."""

import functools
import re
from typing import Any, Final

from torch import nn
from torch.utils.checkpoint import checkpoint

_STACK: Final = re.compile(r"blocks|layers|stages|layer\d+")
"""Names of timm's sequences of blocks."""


def checkpoint_activations(backbone: Any, name: str, share: float = 1.0) -> None:
    """Keep no activations of the first ``share`` of the backbone's blocks for the backward pass.

    With 1 timm does it in its own way, which not only models of blocks have.

    Args:
        backbone: A timm model.
        name: Of it.
        share: Over 0, up to 1.

    Raises:
        ValueError: If the model cannot do without them, or has no blocks that it could be said of.
    """
    if share == 1.0:
        try:
            backbone.set_grad_checkpointing(enable=True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(
                f"model.checkpoint_activations: {name!r} cannot compute activations again; use "
                "another backbone or a smaller batch"
            ) from error
        return
    blocks = blocks_of(backbone)
    if not blocks:
        raise ValueError(
            f"model.checkpoint_activations={share:g}: no blocks are to be found in {name!r}, of "
            "which a share could be computed again; use 0 or 1, or another backbone"
        )
    for block in blocks[: max(1, round(share * len(blocks)))]:
        # Set on the module itself, so that names of parameters stay; a partial of a bound method is
        # copied with its module.
        again: Any = functools.partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = again


def blocks_of(backbone: nn.Module) -> list[nn.Module]:
    """Return the blocks from the input on: the children of the innermost stacks."""
    stacks = {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        and _STACK.fullmatch(name.rpartition(".")[2])
    }
    return [
        block
        for name, stack in stacks.items()
        if not any(other.startswith(f"{name}.") for other in stacks)
        for block in stack.children()
    ]
