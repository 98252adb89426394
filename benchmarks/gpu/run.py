"""The GPU suite: correctness checks first, then benchmarks, in one command.

    python -m benchmarks gpu --out DIR

Needs no network and no data: it builds its own synthetic store. Without a GPU it runs the sections
that work on a CPU at a small size, and reports why the others were not run. Sections are
independent: one that fails is reported with its error and the next one runs. Rows go to
``DIR/gpu.jsonl``, the log of the test suite to ``DIR/pytest-gpu.txt``.
"""

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.config import GpuSuiteConfig
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.suite import RESERVE_S, CannotRun, Suite
from benchmarks.harness import machine, print_table, versions
from pipeline.app.words import say


def main(config: GpuSuiteConfig) -> int:
    """Run every GPU check and measurement and write the rows; 1 if a section failed.

    Example:
        python -m benchmarks gpu --out build/gpu
    """
    console = Console(soft_wrap=True)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    suite = Suite(
        config=config, out=out, device=device, deadline=time.perf_counter() + config.limit_s
    )
    say(f"machine: {machine()}\nversions: {versions()}", console)
    results = [run_section(suite, section, console) for section in SECTIONS]
    if suite.rows:
        print_table(suite.rows)
    print_results(results, console)
    return int(any(state == "FAILED" for _, state, _ in results))


Section = Callable[[Suite], None]
Result = tuple[str, str, str]


def run_section(suite: Suite, section: Section, console: Console) -> Result:
    """Run one section; return its name, ``ok``, ``not run`` or ``FAILED``, and why."""
    name = section.__name__
    if suite.left() < RESERVE_S:
        return name, "not run", f"the limit of {suite.config.limit_s:.0f} s is used up"
    begin = time.perf_counter()
    try:
        section(suite)
    except CannotRun as reason:
        result = (name, "not run", str(reason))
    except Exception as error:
        (suite.out / f"{name}.txt").write_text(traceback.format_exc())
        lines = str(error).strip().splitlines() or [""]
        result = (name, "FAILED", f"{type(error).__name__}: {lines[-1]}")
    else:
        result = (name, "ok", f"{time.perf_counter() - begin:.1f} s")
    say(f"{result[0]}: {result[1]} ({result[2]})", console)
    return result


def print_results(results: Sequence[Result], console: Console) -> None:
    """Print the state of every section."""
    table = Table("section", "state", "detail")
    for row in results:
        table.add_row(*row)
    console.print(table)
