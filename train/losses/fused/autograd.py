"""Shared code of the autograd functions of the three loss kernels.

A kernel writes values and gradients in one pass: forward saves the gradients, backward scales them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def rows_of(terms: tuple[str, ...], names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the output row of each of a kernel's terms, -1: off."""
    return tuple(names.index(term) if term in names else -1 for term in terms)


def room(lam: Tensor, num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return buffers for values [t, num], their validity [t, num] and weighted sums [num]."""
    values = lam.new_empty((len(lam), num), dtype=torch.float32)
    return values, torch.empty_like(values, dtype=torch.bool), values.new_empty(num)


def gradients_like(inputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return float32 buffers for the gradients of inputs; None for None."""
    return [None if x is None else x.new_empty(x.shape, dtype=torch.float32) for x in inputs]


def keep(
    ctx: Any,
    inputs: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    values: Tensor,
    seen: Tensor,
) -> None:
    """Save the gradients of the inputs for backward."""
    ctx.save_for_backward(*gradients)
    ctx.dtypes = [None if x is None else x.dtype for x in inputs]
    ctx.mark_non_differentiable(values, seen)
    ctx.set_materialize_grads(False)  # avoids two fills for outputs without gradient


def scaled(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Return the saved gradients times the upstream gradient, each in its input's dtype."""
    return tuple(
        None if grad is None else (grad * upstream).to(dtype)
        for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
    )
