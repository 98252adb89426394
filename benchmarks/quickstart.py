"""Time and scores of ``make quickstart``, with their spread over random seeds.

    python -m benchmarks quickstart

What a newcomer runs, from rendering the data to the table of scores, once per seed. The set-up of
the environment is not in the time.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.config import QuickstartBenchConfig
from benchmarks.harness import append_rows, print_table, quantiles, record
from pipeline.app.cli import ROOT
from pipeline.app.words import say

SCORE: Final = "pa_mpjpe_mm"


def main(config: QuickstartBenchConfig) -> int:
    """Run ``make quickstart`` several times; record its time and its scores on held-out images.

    Example:
        python -m benchmarks quickstart
    """
    minutes: list[float] = []
    loads: list[float] = []
    scores: dict[str, list[float]] = {"model": [], "untrained": [], "mean_pose": []}
    for seed in range(config.repeats):
        folder = Path(config.out).absolute() / f"seed-{seed}"
        begin = time.perf_counter()
        words = ["make", "quickstart", f"DIR={folder}", f"SEED={seed}"]
        done = subprocess.run(words, cwd=ROOT, stdout=sys.stderr, check=False)
        if done.returncode:
            raise ValueError(f"{' '.join(words)} ended with exit code {done.returncode}")
        loads.append(os.getloadavg()[1])
        minutes.append((time.perf_counter() - begin) / 60)
        (path,) = folder.glob("run/evaluate-freihand-*-evaluation/scores.json")
        found = json.loads(path.read_bytes())
        for name, values in scores.items():
            values.append(found[name][SCORE])
        say(f"seed {seed}: {minutes[-1]:.1f} min, PA-MPJPE {scores['model'][-1]:.2f} mm")
    load = max(loads) / (os.cpu_count() or 1)
    rows = [
        record(
            "quickstart",
            "make quickstart",
            "time",
            "min",
            quantiles(minutes),
            params={"load_per_core": round(load, 1)},
        )
    ]
    rows += [
        record("quickstart", name, "PA-MPJPE", "mm", quantiles(values))
        for name, values in scores.items()
    ]
    append_rows(config.results, rows)
    print_table(rows)
    return 0
