"""A signal at any moment, on one rank or many."""

import os
import signal
from typing import Any

import pytest

from train.device import stop as stopping
from train.device.distributed import Ranks
from train.device.stop import ASK_EVERY, KINDS, Stop, stop_on_signal


def test_a_signal_asks_once() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as stop:
        assert not stop.asked_by_any(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked_by_any(1)
        assert stop.name == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == before  # the next one acts as usual


@pytest.mark.parametrize("first", ["SIGHUP", "SIGUSR1"])
def test_warnings_of_a_terminal_or_a_batch_system_ask_and_never_kill(first: str) -> None:
    before = {kind: signal.getsignal(kind) for kind in KINDS}
    with stop_on_signal() as stop:
        for kind in (first, first, "SIGTERM", "SIGHUP", "SIGUSR1"):
            os.kill(os.getpid(), signal.Signals[kind])
        assert (stop.asked, stop.name) == (True, first)
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
    assert {kind: signal.getsignal(kind) for kind in KINDS} == before


def test_nohup_is_respected() -> None:
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, usual)


def test_ranks_ask_each_other_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def all_gather(name: str, ranks: Ranks) -> list[str]:
        asked.append(name)
        return [name, "SIGTERM"]

    monkeypatch.setattr(stopping, "all_gather", all_gather)
    stop = Stop(ranks=Ranks(world=2))
    assert not stop.asked_by_any(ASK_EVERY + 1)
    assert asked == []
    assert stop.asked_by_any(ASK_EVERY)
    assert (stop.asked, stop.name) == (True, "SIGTERM")


def test_a_signal_while_the_ranks_talk_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop(ranks=Ranks(world=2))

    def all_gather(name: str, ranks: Ranks) -> list[Any]:
        if not stop.name:  # the handler runs as soon as the collective returns
            stop.asked, stop.name = True, "SIGTERM"
        return [name, ""]

    monkeypatch.setattr(stopping, "all_gather", all_gather)
    assert not stop.asked_by_any(ASK_EVERY)  # nobody knew when they talked
    assert stop.asked_by_any(2 * ASK_EVERY)
    assert stop.name == "SIGTERM"
