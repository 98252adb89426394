"""Leave the loop at the end of a step when SIGINT or SIGTERM asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from train.device.distributed import ALONE, Ranks, all_gather

ASK_EVERY: Final = 16
"""Steps between questions to the other ranks: each one waits for the device."""


@dataclass(kw_only=True, slots=True)
class Stop:
    """Set by SIGINT or SIGTERM."""

    ranks: Ranks = ALONE
    asked: bool = False
    name: str = ""

    def asked_by_any(self, step: int) -> bool:
        """Return whether any rank was asked: all leave the loop at the same step."""
        if self.ranks.world == 1:
            return self.asked
        if step % ASK_EVERY:
            return False
        found = next(filter(None, all_gather(self.name, self.ranks)), "")
        if found:  # a signal of this very moment, not yet in found, is told next time
            self.name, self.asked = found, True
        return bool(found)


@contextmanager
def stop_on_signal(ranks: Ranks = ALONE) -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request to stop; the second one acts as usual."""
    stop = Stop(ranks=ranks)
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.getsignal(kind) for kind in kinds}

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.asked, stop.name = True, signal.Signals(number).name
        for kind in kinds:
            signal.signal(kind, before[kind])

    for kind in kinds:
        signal.signal(kind, ask)
    try:
        yield stop
    finally:
        for kind in kinds:
            signal.signal(kind, before[kind])
