"""A corpus of damaged and hostile files: refused in a sentence, or read as what they are."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import Measurement, append_rows, record

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "soak.jsonl"
QUICK = 150


def run(folder: Path, every: int) -> list[dict[str, Any]]:
    """Run the corpus in a small process; a fork of it costs little."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.borders.corpus", str(folder), str(every)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    total, *found = map(json.loads, ended.stdout.splitlines())
    assert total["total"] >= 1000
    assert len(found) == -(-total["total"] // every)
    return found


def assert_sound(found: list[dict[str, Any]]) -> None:
    wrong = [f"{one['case']}: {one['wrong']}" for one in found if one["wrong"]]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(found)}", *wrong[:20]])
    ways = Counter(one["how"] for one in found)
    assert ways["refused"] > 0.8 * len(found)  # not: everything is harmless


def test_a_sample_of_the_corpus(tmp_path: Path) -> None:
    found = run(tmp_path, 50)
    assert len(found) >= QUICK
    assert_sound(found)


@pytest.mark.slow
def test_the_whole_corpus(tmp_path: Path) -> None:
    found = run(tmp_path, 1)
    ways = Counter(one["how"] for one in found)
    right = len(found) - sum(bool(one["wrong"]) for one in found)
    params = {
        "cases": len(found),
        "refused": ways["refused"],
        "read": ways["value"],
        "minutes": round(sum(one["seconds"] for one in found) / 60, 1),
    }
    value = Measurement(p20=right, p50=right, p80=right, n=len(found))
    name = "damaged and hostile inputs"
    append_rows(RESULTS, [record("soak", name, "handled", "cases", value, params=params)])
    assert_sound(found)
