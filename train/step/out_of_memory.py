"""When the memory of the device does not suffice for a batch: the same batch in more parts.

    loss, terms = retried(lambda: backward(state, batch), lambda: take_more_parts(state, batch))

Every loss term is a mean over samples, so the parts' gradients add up to the same gradient, and the
order of the batches does not know of parts. Only what leads to a gradient is tried again: no weight
has been changed by then.

Several ranks. How many parts a rank makes is its own affair: all parts but the last add to this
rank's gradient alone, and the last one averages it with the other ranks, so that a step has the
same collectives however many parts it has. A rank that ran out of memory before it had begun to
average tries again while the others wait for it in the averaging, as for any slow rank; they need
not be told, and a step in which nothing happens costs nothing. At the next checkpoint one
all-reduce gives all of them the largest number of parts. A rank that ran out of memory in the
middle of the averaging cannot take back what it gave: the run ends with a sentence. So it does with
``sync_bn``, where every part waits for the other ranks.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class NoMemoryError(ValueError):
    """The device's memory does not suffice, and smaller parts are no help."""


def retried(attempt: Callable[[], T], prepare: Callable[[], None]) -> T:
    """Return the result of ``attempt``, called again after ``prepare`` while memory runs out.

    Raises:
        NoMemoryError: By ``prepare``, where there is no other way to try.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not _ran_out(error):
                raise
        # Here the failed attempt's tensors, which its traceback held, are free.
        prepare()


def more_parts(parts: int, batch_size: int, step: int) -> int:
    """Return twice the parts, at most one sample each.

    Raises:
        NoMemoryError: If every part is one sample already.
    """
    if parts >= batch_size:
        raise NoMemoryError(
            f"step {step} runs out of memory even with one sample at a time (accumulate={parts}, "
            f"batch of {batch_size}); use a smaller pipeline.input_px or model.backbone, "
            "model.checkpoint_activations=1, or a device with more memory"
        )
    return min(2 * parts, batch_size)


def _ran_out(error: BaseException | None) -> bool:
    """Return whether an error is, or came of, a lack of memory: a capture ends in its own."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__context__
    return False
