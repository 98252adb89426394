"""What went wrong in a step, kept on the device until somebody reads it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.loader import Loader
from train.device.distributed import Ranks, all_gather
from train.losses.plan import MAX_TERMS
from train.losses.total import LossTerms


@dataclass(kw_only=True, slots=True)
class Fault:
    """The first bad step since the last log point, on the device."""

    count: Tensor
    step: Tensor
    sample_id: Tensor
    """Of that batch, the samples with a loss term that is not finite; -1 where all are."""
    bad_terms: Tensor
    """Those terms, per sample: bit k is number k of ``names``."""
    bits: Tensor
    """2^k."""
    names: tuple[str, ...] = ()


class DivergedError(ValueError):
    """A loss or gradient was not finite."""


def no_fault(batch_size: int, device: torch.device) -> Fault:
    """Return that nothing went wrong; ``batch_size`` is this rank's."""
    return Fault(
        count=torch.zeros((), dtype=torch.int64, device=device),
        step=torch.full((), -1, dtype=torch.int64, device=device),
        sample_id=torch.full((batch_size,), -1, dtype=torch.int64, device=device),
        bad_terms=torch.zeros((batch_size,), dtype=torch.int64, device=device),
        bits=torch.ones((), dtype=torch.int64, device=device) << torch.arange(MAX_TERMS).to(device),
    )


@torch.no_grad()
def note_fault(
    fault: Fault, bad: Tensor, terms: LossTerms, sample_id: Tensor, step: Tensor
) -> None:
    """Keep step, samples and terms of the first bad step."""
    fault.names = terms.names
    first = bad & (fault.count == 0)
    bits = fault.bits[: len(terms.names), None]
    bad_terms = (~torch.isfinite(terms.values) * bits).sum(0)
    ids = torch.where(bad_terms == 0, -1, sample_id)
    fault.sample_id.copy_(torch.where(first, ids, fault.sample_id))
    fault.bad_terms.copy_(torch.where(first, bad_terms, fault.bad_terms))
    fault.step.copy_(torch.where(first, step, fault.step))
    fault.count.add_(bad)


def raise_fault(fault: Fault, ranks: Ranks, loader: Loader) -> None:
    """Stop on what the device noted since the last reading, on all ranks alike.

    Raises:
        DivergedError: With the step, the samples and the terms.
    """
    count = int(fault.count)
    if count == 0:
        return
    found = zip(fault.sample_id.tolist(), fault.bad_terms.tolist(), strict=True)
    mine = [(i, bits) for i, bits in found if i >= 0]
    all_found = [one for share in all_gather(mine, ranks) for one in share]
    ids = [i for i, _ in all_found]
    named = f"samples {ids[:8]}" if ids else "no sample alone is to blame (gradient overflow)"
    terms = [n for k, n in enumerate(fault.names) if any(bits >> k & 1 for _, bits in all_found)]
    if terms:
        named += f", in {', '.join(terms)}"
    if mine:
        named += f" (first: {loader.describe(mine[0][0])})"
    raise DivergedError(
        f"loss or gradient not finite in {count} steps, first at step {int(fault.step)}: "
        f"{named}; these steps changed no weight. Lower optim.lr or look at the samples"
    )
