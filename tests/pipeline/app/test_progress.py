import dataclasses
import io
from collections.abc import Iterator, Sequence

import pytest
from rich.console import Console

from pipeline.app.progress import LINE_SECONDS, show_progress, tracked


@dataclasses.dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def test_progress_off_a_terminal_is_a_line_every_five_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("pipeline.app.progress.time.monotonic", clock)
    with show_progress("pass", Console(force_terminal=False)) as report:
        for done in range(1, 11):
            clock.now += 2.0
            report(done * 100, 1000)
    assert capsys.readouterr().out.splitlines() == [
        "pass: 300/1000 frames, 50 frames/s, 14 s left",
        "pass: 600/1000 frames, 50 frames/s, 8 s left",
        "pass: 900/1000 frames, 50 frames/s, 2 s left",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("pipeline.app.progress.time.monotonic", clock)
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    with show_progress("pass", console) as report:
        clock.now = 2.0
        report(250, 1000)
    assert "250/1000 frames, 125 frames/s, 6 s left" in written.getvalue()


def lines(
    clock: Clock,
    calls: Sequence[tuple[float, int, int | None, str]],
    already: int = 0,
    line_seconds: float = LINE_SECONDS,
) -> str:
    """Return what is printed without a terminal; a call: seconds, done, total and note."""
    written = io.StringIO()
    console = Console(file=written)
    with show_progress(
        "pass", console, unit="clips", already=already, line_seconds=line_seconds
    ) as report:
        for clock.now, done, total, note in calls:
            report(done, total, note)
    return written.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("pipeline.app.progress.time.monotonic", clock)
    return clock


def test_rates_times_and_notes_are_written_for_people(clock: Clock) -> None:
    assert lines(clock, [(10.0, 25, None, "")]) == "pass: 25 clips, 2.5 clips/s\n"
    assert lines(clock, [(20.0, 0, 9, "")]) == "pass: 0/9 clips, 0.0 clips/s, time left unknown\n"
    assert lines(clock, [(30.0, 10, 10000, "loss=[1]")]) == (
        "pass: 10/10000 clips, 1.0 clips/s, 2:46:30 left, loss=[1]\n"
    )


def test_a_pass_that_goes_on_counts_what_is_new(clock: Clock) -> None:
    assert lines(clock, [(10.0, 120, 200, "")], already=100) == (
        "pass: 120/200 clips, 2.0 clips/s, 40 s left\n"
    )


def test_every_call_may_be_a_line(clock: Clock) -> None:
    calls = [(0.0, 1, 3, ""), (0.1, 2, 3, ""), (0.2, 3, 3, "")]
    assert lines(clock, calls, line_seconds=0).count("\n") == 3
    assert lines(clock, calls) == ""


def test_a_bar_is_at_its_end_however_short_the_pass(clock: Clock) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    with show_progress("pass", console, keep=True) as report:
        report(1, 3)
        report(3, 3)
    assert "1/3" not in written.getvalue()
    assert "3/3 frames" in written.getvalue()


def test_what_is_tracked_is_passed_on(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    def slow() -> Iterator[str]:
        for letter in "abc":
            clock.now += 3
            yield letter

    assert list(tracked(slow(), 3, "export", "clips")) == ["a", "b", "c"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "export: 2/3 clips, 0.3 clips/s, 3 s left\n"
