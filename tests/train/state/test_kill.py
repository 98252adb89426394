"""Trainings killed with SIGKILL at any moment and continued equal one that was left alone."""

import json
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.harness import Measurement, append_rows, record
from model.mano.files import load_mano
from model.prediction import hands_of
from model.pretrained import load_pretrained
from pipeline.loader import Loader
from tests.conftest import SampleStore
from tests.train.forked import start
from tests.train.state.test_checkpoint import config, equal, steps_logged
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step.step import predict

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "soak.jsonl"


def last_step(run_dir: Path) -> int:
    path = run_dir / "log.jsonl"
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def kill_after(process: Any, run_dir: Path, step: int, wait_s: float) -> None:
    """Kill ``wait_s`` after the row of ``step`` is seen."""
    while last_step(run_dir) < step:
        assert process.is_alive(), f"ended with {process.exitcode} before step {step}"
        time.sleep(0.002)
    time.sleep(wait_s)
    process.kill()
    process.join()


def rows(run_dir: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("meter/")} for row in found]


@pytest.mark.parametrize(
    ("steps", "num_kills"), [(30, 2), pytest.param(60, 5, marks=pytest.mark.slow)]
)
def test_killed_and_continued_equals_left_alone(
    freihand: SampleStore, tmp_path: Path, steps: int, num_kills: int
) -> None:
    draw = Random(steps)
    words = [f"steps={steps}", "checkpoint_every=3", "keep_checkpoints=2", "threads=1"]
    alone = config(freihand, tmp_path / "alone", *words)
    killed = config(freihand, tmp_path / "killed", *words)
    left = start(run, alone)
    for step in sorted(draw.sample(range(2, steps - 2), num_kills)):
        kill_after(start(run, killed), tmp_path / "killed", step, draw.uniform(0, 0.05))
        assert last_step(tmp_path / "killed") < steps
    last = start(run, killed)
    for process in (left, last):
        process.join()
        assert process.exitcode == 0

    assert steps_logged(tmp_path / "killed") == list(range(1, steps + 1))
    assert rows(tmp_path / "killed") == rows(tmp_path / "alone")
    first, second = (read_checkpoint(tmp_path / k, say=pytest.fail) for k in ("alone", "killed"))
    for part in ("model", "ema", "optimizer", "loader", "rng"):
        assert equal(first[part], second[part]), part
    assert first["run_id"] != second["run_id"]

    mano = load_mano(freihand.mano)
    batch = next(iter(Loader(alone.pipeline, device=torch.device("cpu"), training=False)))
    hands = []
    for name in ("alone", "killed"):
        model = load_pretrained(tmp_path / name / "weights", mano=mano)
        with torch.inference_mode():
            hands.append(hands_of(predict(model, batch, torch.float32)))
    assert hands[0].vertices is not None
    assert hands[1].vertices is not None
    assert torch.equal(hands[0].vertices, hands[1].vertices)
    assert torch.equal(hands[0].joints_3d, hands[1].joints_3d)
    assert float(hands[0].vertices.std()) > 0
    if steps == 60:
        value = Measurement(p20=num_kills, p50=num_kills, p80=num_kills, n=1)
        row = record(
            "soak", "killed and continued", "bitwise equal", "kills", value, params={"steps": steps}
        )
        append_rows(RESULTS, [row])
