"""What went wrong in a step, kept on the device until somebody reads it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.loader import Loader
from train.distributed import Ranks, gathered


@dataclass(kw_only=True, slots=True)
class Fault:
    """The first bad step since the last log point, on the device."""

    count: Tensor
    step: Tensor
    sample_id: Tensor
    """Samples of that batch with a non-finite loss term first; -1 where the sample is fine."""


class DivergedError(ValueError):
    """A loss or gradient was not finite."""


def no_fault(batch_size: int, device: torch.device) -> Fault:
    """Return that nothing went wrong; ``batch_size`` is this rank's."""
    return Fault(
        count=torch.zeros((), dtype=torch.int64, device=device),
        step=torch.full((), -1, dtype=torch.int64, device=device),
        sample_id=torch.full((batch_size,), -1, dtype=torch.int64, device=device),
    )


@torch.no_grad()
def note_fault(fault: Fault, bad: Tensor, finite: Tensor, sample_id: Tensor, step: Tensor) -> None:
    """Keep step and samples of the first bad step; ``finite`` [b] says which samples are fine."""
    first = bad & (fault.count == 0)
    ids = torch.where(finite, -1, sample_id)
    fault.sample_id.copy_(torch.where(first, ids, fault.sample_id))
    fault.step.copy_(torch.where(first, step, fault.step))
    fault.count.add_(bad)


def raise_fault(fault: Fault, ranks: Ranks, loader: Loader) -> None:
    """Stop on what the device noted since the last reading, on all ranks alike.

    Raises:
        DivergedError: With the step and the samples.
    """
    count = int(fault.count)
    if count == 0:
        return
    mine = [int(i) for i in fault.sample_id.tolist() if i >= 0]
    ids = [i for share in gathered(mine, ranks) for i in share]
    named = f"samples {ids[:8]}" if ids else "no sample alone is to blame (gradient overflow)"
    if mine:
        named += f" (first: {loader.describe(mine[0])})"
    raise DivergedError(
        f"loss or gradient not finite in {count} steps, first at step {int(fault.step)}: "
        f"{named}; these steps changed no weight. Lower optim.lr or look at the samples"
    )
