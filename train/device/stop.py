"""Leave the loop at the end of a step when a signal asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from train.device.distributed import ALONE, Ranks, all_gather

KINDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ASK_EVERY: Final = 16
"""Steps between questions to the other ranks: each one waits for the device."""


@dataclass(kw_only=True, slots=True)
class Stop:
    """Set by a signal."""

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
    """Turn signals into a request to stop; a second SIGINT or SIGTERM acts as usual.

    SIGHUP (the terminal is gone) and SIGUSR1 (a batch system's warning before its limit) often come
    twice, or before a SIGTERM: they never end what the first one asked for. A run that ignores
    SIGHUP, under nohup, still does.
    """
    stop = Stop(ranks=ranks)
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    if before[signal.SIGHUP] is signal.SIG_IGN:
        del before[signal.SIGHUP]

    def ask(number: int, _frame: FrameType | None) -> None:
        kind = signal.Signals(number)
        stop.asked, stop.name = True, stop.name or kind.name
        if kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, before[kind])

    for kind in before:
        signal.signal(kind, ask)
    try:
        yield stop
    finally:
        for kind, usual in before.items():
            signal.signal(kind, usual)
