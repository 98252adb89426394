"""The GPU suite: the checks and measurements that need a GPU, the most valuable first.

    python -m benchmarks gpu --out DIR
    python -m benchmarks gpu --out DIR only=[tests_marked_gpu,loss_terms] budget_s=300

Needs no network and no data: it builds its own synthetic store. Without a GPU it runs the sections
that work on a CPU at a small size, and reports why the others were not run. Sections are
independent: one that fails or runs out of its time is reported and the next one runs. Rows go to
``DIR/gpu.jsonl`` as they come, the log of the test suite to ``DIR/pytest-gpu.txt``.
"""

import math
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.config import GpuSuiteConfig
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.suite import RESERVE_S, CannotRun, Section, Suite, TimeUp
from benchmarks.harness import machine, print_table, versions
from pipeline.app.words import nearest, say


def main(config: GpuSuiteConfig) -> int:
    """Run the chosen GPU checks and measurements and write the rows; 1 if a section failed.

    Example:
        python -m benchmarks gpu --out build/gpu
    """
    console = Console(soft_wrap=True)
    chosen = choose(SECTIONS, config.only, config.skip)
    print_plan(plan_of(chosen, config.budget_s), config.budget_s, console)
    if config.plan:
        return 0
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suite = Suite(config=config, out=out, device=device)
    say(f"machine: {machine()}\nversions: {versions()}", console)
    results = run_sections(suite, chosen, console)
    if suite.rows:
        print_table(suite.rows)
    print_results(results, console)
    return int(any(state == "FAILED" for _, state, _ in results))


Result = tuple[str, str, str]


def choose(sections: Sequence[Section], only: Sequence[str], skip: Sequence[str]) -> list[Section]:
    """Return the sections that ``only`` selects (all if empty) and ``skip`` does not, in order.

    Raises:
        ValueError: If a name or pattern is that of no section.
    """
    names = [section.name for section in sections]
    for key, patterns in (("only", only), ("skip", skip)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(
                    f"{key} must name sections of the suite, got {pattern!r}; "
                    f"{nearest(pattern, names)} (plan=true lists them)"
                )
    return [
        section
        for section in sections
        if (not only or any(fnmatchcase(section.name, pattern) for pattern in only))
        and not any(fnmatchcase(section.name, pattern) for pattern in skip)
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A section in the plan."""

    section: Section
    begins_s: float
    fits: bool
    """Whether it is expected to end within the time."""


def plan_of(sections: Sequence[Section], budget_s: float) -> list[Planned]:
    """Return when each section is expected to begin, and whether it ends in time."""
    planned, begins = [], 0.0
    for section in sections:
        fits = begins + section.expected_s <= budget_s
        planned.append(Planned(section=section, begins_s=begins, fits=fits))
        begins += section.expected_s
    return planned


def print_plan(planned: Sequence[Planned], budget_s: float, console: Console) -> None:
    """Print the plan; the seconds are estimates for an H200."""
    table = Table("section", "begins, s", "takes, s", "at most, s", "")
    for one in planned:
        seconds = (one.begins_s, one.section.expected_s, one.section.cap_s)
        note = "" if one.fits else "if time is left"
        table.add_row(one.section.name, *(f"{value:.0f}" for value in seconds), note)
    console.print(table)
    total = sum(one.section.expected_s for one in planned if one.fits)
    say(f"planned: {total:.0f} of {budget_s:.0f} s", console)


def run_sections(suite: Suite, sections: Sequence[Section], console: Console) -> list[Result]:
    """Run the sections one after another within the budget."""
    suite.deadline = suite.clock() + suite.config.budget_s
    return [run_section(suite, section, console) for section in sections]


def run_section(suite: Suite, section: Section, console: Console) -> Result:
    """Run one section; return its name, ``ok``, ``not run``, ``stopped`` or ``FAILED``, and why."""
    name, begin = section.name, suite.clock()
    suite.section_deadline = begin + section.cap_s
    if suite.deadline - begin < min(RESERVE_S, section.cap_s):
        budget = f"the budget of {suite.config.budget_s:.0f} s is used up"
        result: Result = (name, "not run", budget)
    else:
        try:
            with alarm(suite.left()):
                section.run(suite)
        except CannotRun as reason:
            result = (name, "not run", str(reason))
        except TimeUp:
            result = (name, "stopped", f"after {suite.clock() - begin:.1f} s; its rows are kept")
        except Exception as error:
            (suite.out / f"{name}.txt").write_text(traceback.format_exc())
            lines = str(error).strip().splitlines() or [""]
            result = (name, "FAILED", f"{type(error).__name__}: {lines[-1]}")
        else:
            result = (name, "ok", f"{suite.clock() - begin:.1f} s")
    suite.section_deadline = math.inf
    say(f"{result[0]}: {result[1]} ({result[2]})", console)
    return result


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise ``TimeUp`` in this code after ``seconds``, when the call that runs then returns."""

    def raise_time_up(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, raise_time_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print the state of every section."""
    table = Table("section", "state", "detail")
    for row in results:
        table.add_row(*row)
    console.print(table)
