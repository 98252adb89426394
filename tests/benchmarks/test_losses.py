import json
from pathlib import Path

import pytest
import torch

from benchmarks.config import LossesBenchConfig
from benchmarks.losses import EAGER, TRITON, draw_inputs, main, step
from train.losses.config import Impl

CPU = torch.device("cpu")


def test_without_a_gpu_launches_and_bytes_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "losses.jsonl"
    config = LossesBenchConfig(
        compiled=False, batches=[2], results=str(results), min_time_s=0.05, repeats=5
    )
    assert main(config) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    found = {(row["variant"], row["metric"]): row["p50"] for row in rows}
    assert set(found) == {
        (EAGER, "launches"), (EAGER, "bytes"), (EAGER, "forward + backward"),
        (TRITON, "launches"), (TRITON, "bytes"),
    }  # fmt: skip
    assert found[TRITON, "launches"] * 20 < found[EAGER, "launches"]
    assert found[TRITON, "bytes"] * 5 < found[EAGER, "bytes"]
    assert "Triton's time needs a GPU" in capsys.readouterr().out


def test_all_ways_give_the_same_gradients() -> None:
    inputs = draw_inputs(2, 0, CPU)
    found = [step(impl, CPU)(inputs) for impl in (Impl.eager, Impl.triton)]
    assert isinstance(found[0], tuple)
    assert len(found[0]) == 6
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
