"""``python -m train run --multirun``: a run for every point of a grid, and one table at the end."""

import dataclasses
import gc
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipeline.app.cli import USER_ERRORS, GridPoint
from pipeline.app.files import replace_file
from pipeline.app.words import say, sentence
from train.run import main as run

INTERRUPTED = 130
"""Exit code of a run that a signal stopped; the grid stops with it."""
_SHOWN = ("loss", "validation/mpjpe_mm", "validation/pa_mpjpe_mm", "meter/samples_per_s")


def main(points: Sequence[GridPoint]) -> int:
    """Train every configuration, one after another, each in a folder of its own.

    The folders lie in run_dir, named by number and values; without run_dir in
    runs/<date>-<time>-multirun. The same command with the same run_dir goes on with what is not
    finished. A configuration that fails is reported in the table and does not stop the others;
    the exit code is 1 then, and 130 after a signal.

    Raises:
        ValueError: If there are several ranks, or the grid is over the folders themselves.
    """
    if "RANK" in os.environ:
        raise ValueError("--multirun is for one process: start it without torchrun")
    swept = sorted(points[0].chosen.keys() & {"run_dir", "resume"})
    if swept:
        raise ValueError(f"--multirun gives every run a folder of its own: give one {swept[0]}")
    base = points[0].config.run_dir or f"runs/{datetime.now().astimezone():%Y%m%d-%H%M%S}-multirun"
    table_file = Path(base).expanduser() / "multirun.json"
    table_file.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    code = 0
    for number, point in enumerate(points):
        folder = Path(base).expanduser() / folder_name(number, point.chosen)
        say(f"multirun {number + 1}/{len(points)}: {folder}")
        row: dict[str, Any] = {**point.chosen, "folder": str(folder)}
        try:
            ended = run(dataclasses.replace(point.config, run_dir=str(folder)))
            row |= last_values(folder)
        except (*USER_ERRORS, RuntimeError) as error:  # RuntimeError: of torch, out of memory too
            ended, row["failed"] = 1, sentence(error)
        rows.append(row)
        replace_file(table_file, (json.dumps(rows, indent=2) + "\n").encode())
        torch.compiler.reset()  # or compiled code of all runs counts against one limit
        gc.collect()  # before the next one measures how much memory there is
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if ended == INTERRUPTED:
            code = ended
            break
        code = max(code, ended)
    Console(soft_wrap=True).print(table(rows, list(points[0].chosen)))
    for row in rows:
        if "failed" in row:
            say(f"failed: {row['folder']}: {row['failed']}")
    say(f"written: {table_file}")
    return code


def folder_name(number: int, chosen: dict[str, str]) -> str:
    """Return a folder's name: the number and the values, without what a path does not like."""
    words = [f"{key.rpartition('.')[2]}={value}" for key, value in chosen.items()]
    safe = "".join(c if c.isalnum() or c in "._=-+" else "-" for c in "_".join(words))
    return f"{number:02d}_{safe}"[:120]


def last_values(folder: Path) -> dict[str, float]:
    """Return the newest value of each number that the table shows, from the run's log."""
    found: dict[str, float] = {}
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found |= {name: row[name] for name in ("step", *_SHOWN) if name in row}
    return found


def table(rows: Sequence[dict[str, Any]], swept: Sequence[str]) -> Table:
    """Return the runs, a row each: what was chosen, and what came out."""
    shown = [name for name in _SHOWN if any(name in row for row in rows)]
    sheet = Table(*swept, "step", *(name.rpartition("/")[2] for name in shown), "folder")
    for row in rows:
        values = [f"{row[name]:.4g}" if name in row else "-" for name in ("step", *shown)]
        end = "failed" if "failed" in row else Path(row["folder"]).name
        sheet.add_row(*(row[key] for key in swept), *values, end)
    return sheet
