"""Two ranks (gloo) against one: the same batches, gradients, weights and scores."""

import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.conftest import SampleStore
from tests.train.device.two_ranks import command, gradients_and_weights
from tests.train.forked import as_rank, start
from tests.train.test_run import config, log_of
from train.config import RunConfig
from train.device.distributed import ALONE, Ranks, joined_ranks, parallel
from train.run import main as run
from train.state.checkpoint import read_checkpoint

CPU = torch.device("cpu")
LEARNS_WITHIN_S = 120


def ranks_end(world: int, said: Path, function: Callable[..., int], *args: object) -> list[int]:
    """Run ranks to their ends and return their exit codes; ``said`` gets what they print."""
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    ranks = [
        start(as_rank, rank, world, store.port, said, function, *args) for rank in range(world)
    ]
    try:
        while all(process.exitcode in (None, 0) for process in ranks) and any(
            process.is_alive() for process in ranks
        ):
            wait([process.sentinel for process in ranks if process.is_alive()])
        for process in ranks:
            process.join(LEARNS_WITHIN_S)
    finally:
        for process in ranks:
            process.kill()
    return [process.exitcode for process in ranks]


def two_ranks_train(words: list[str], said: Path) -> list[int]:
    return ranks_end(2, said, command, "run", *words)


def words_of(settings: RunConfig, data: SampleStore, run_dir: Path) -> list[str]:
    from tests.train.test_run import SMALL

    return [f"store={data.store}", f"mano={data.mano}", f"run_dir={run_dir}", *SMALL]


SAME = [
    "model.backbone=test_vit",
    "steps=6",
    "threads=1",
    "log_every=1",
    "validation.split=evaluation",
    "validation.batch_size=4",
]


def test_a_run_of_two_ranks_is_that_of_one(freihand: SampleStore, tmp_path: Path) -> None:
    alone = config(freihand, tmp_path / "one", *SAME)
    assert run(alone) == 0
    said = tmp_path / "said"
    words = [*words_of(alone, freihand, tmp_path / "two"), *SAME]
    assert two_ranks_train(words, said) == [0, 0], said.read_text()
    # One writer: of the step, and of its validation.
    assert said.read_text().count("6/6 steps") == 2
    one, two = (read_checkpoint(tmp_path / n, say=pytest.fail) for n in ("one", "two"))
    assert one["loader"] == two["loader"]
    rows = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]]
    for a, b in zip(*rows, strict=True):
        for name in a:
            if not name.startswith("meter/"):
                assert b[name] == pytest.approx(a[name], rel=2e-3), name
    first = [(a[k], b[k]) for a, b in [(rows[0][0], rows[1][0])] for k in a if k.startswith("loss")]
    assert all(b == pytest.approx(a, rel=1e-5) for a, b in first)


@pytest.mark.slow  # what torchrun adds to the test above: it imports everything three times
def test_torchrun_starts_the_ranks(freihand: SampleStore, tmp_path: Path) -> None:
    words = words_of(config(freihand, tmp_path), freihand, tmp_path / "run")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [*torchrun, "-m", "train", "run", *words, *SAME],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("6/6 steps") == 2


def test_gradients_and_weights_of_two_ranks(freihand: SampleStore, tmp_path: Path) -> None:
    """In float32 the first gradient to 1e-6, in float64 the weights after 20 steps to 1e-10.

    The weights also where the ranks' batches are in two parts, and where one of the ranks runs out
    of memory, which the other is not told.
    """
    for world, name in ((1, "one"), (2, "two")):
        said, out = tmp_path / f"{name} said", tmp_path / f"{name}.pt"
        ends = ranks_end(world, said, gradients_and_weights, str(freihand.store), out)
        assert ends == [0] * world, said.read_text()
    done = said.read_text()
    assert "rank 0: accumulate=1, at most 4" in done
    assert "rank 1: accumulate=4, at most 4" in done
    assert "rank 1 ran out of memory in step 20 while gradients were being averaged" in done
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    for kind in ("vit", "frozen", "parts", "short"):
        for name, expected in one.get(f"gradient {kind}", {}).items():
            difference = (two[f"gradient {kind}"][name] - expected).abs().max()
            # Rounding of float32 sums in another order; worst found: 9.5e-7 (Intel Xeon), 1.2e-6
            # (AMD EPYC). That nothing else differs is what the float64 weights below prove.
            assert difference <= 2e-6 * expected.abs().max(), (kind, name)
        for name, expected in one[f"weights {kind}"].items():
            assert expected.dtype is torch.float64
            difference = (two[f"weights {kind}"][name] - expected).abs().max()
            assert difference <= 1e-10, (kind, name)


def test_batch_norm_in_training_mode_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert parallel(model, ALONE) is model
    with pytest.raises(ValueError, match=r"1 BatchNorms \(first: 1\).*freezes them"):
        parallel(model, Ranks(rank=0, world=2))


def test_half_an_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined_ranks(CPU) as ranks:
        assert ranks == ALONE
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"RANK is set, but WORLD_SIZE.*start with"):
        joined_ranks(CPU).__enter__()


def test_a_fault_on_one_rank_stops_both(freihand: SampleStore, tmp_path: Path) -> None:
    """Neither hangs: the other rank learns of it at the same log point."""
    settings = config(freihand, tmp_path)
    words = [*words_of(settings, freihand, tmp_path / "run"), "optim.lr=1e30", "steps=20"]
    words += ["model.backbone=test_vit", "optim.warmup_steps=0", "optim.clip_norm=1e30"]
    said = tmp_path / "said"
    assert two_ranks_train(words, said) == [2, 2], said.read_text()
    assert "not finite in" in said.read_text()
