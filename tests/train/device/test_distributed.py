"""Two ranks (gloo) against one: the same batches, gradients, weights and scores."""

import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.conftest import SampleStore
from tests.train.device.two_ranks import command, gradients_and_weights, shared_statistics
from tests.train.forked import as_rank, start
from tests.train.test_run import config, log_of
from train.config import RunConfig
from train.device.distributed import (
    ALONE,
    Ranks,
    has_shared_statistics,
    joined_ranks,
    parallel,
    require_same_statistics,
    with_shared_statistics,
)
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step.out_of_memory import NoMemoryError
from train.step.step import take_more_parts

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
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
    with pytest.raises(ValueError, match=r"1 BatchNorms \(first: 1\).*sync_bn=true.*freezes them"):
        parallel(model, Ranks(rank=0, world=2))


def test_statistics_are_shared_by_torchs_own_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs only; names, weights and timm's activations stay, and nothing is refused any more."""
    import timm

    two = Ranks(rank=0, world=2)
    model = timm.create_model("test_resnet", num_classes=0)
    before = model.state_dict()
    assert with_shared_statistics(model, ALONE) is model
    with pytest.raises(ValueError, match="sync_bn=true needs GPUs"):
        with_shared_statistics(model, two)
    image = torch.rand(2, 3, 32, 32)
    expected = model.eval()(image)
    monkeypatch.setattr(nn.Module, "parameters", lambda _: iter([SimpleNamespace(device=CUDA)]))
    shared = with_shared_statistics(model, two)
    monkeypatch.undo()
    assert has_shared_statistics(shared)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in shared.modules())
    assert shared.state_dict().keys() == before.keys()
    assert torch.equal(shared.eval()(image), expected)
    require_same_statistics(shared, {name for name, _ in shared.named_parameters()}, two)


def test_a_run_that_would_share_them_on_cpus_is_refused(
    freihand: SampleStore, tmp_path: Path
) -> None:
    words = words_of(config(freihand, tmp_path), freihand, tmp_path / "run")
    said = tmp_path / "said"
    assert two_ranks_train([*words, "sync_bn=true"], said) == [2, 2]
    assert "sync_bn=true needs GPUs" in said.read_text()


@pytest.mark.gpu
def test_shared_statistics_of_two_ranks_are_those_of_one(
    freihand: SampleStore, tmp_path: Path
) -> None:
    for world in (1, 2):
        said, out = tmp_path / f"{world} said", tmp_path / f"{world}.pt"
        ends = ranks_end(world, said, shared_statistics, str(freihand.store), out)
        assert ends == [0] * world, said.read_text()
    one, two = (torch.load(tmp_path / f"{world}.pt") for world in (1, 2))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-5)


def test_a_rank_that_shares_statistics_does_not_try_again_alone() -> None:
    """The others would wait for ever in the statistics of a part that they do not have."""
    state: Any = SimpleNamespace(
        accumulate=1, step=3, has_stepped=True, net=None, ranks=Ranks(rank=1, world=2),
        model=nn.Sequential(nn.SyncBatchNorm(4)),
    )  # fmt: skip
    with pytest.raises(NoMemoryError, match=r"rank 1 .*statistics were shared.*accumulate=2"):
        take_more_parts(state, 8)


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


@pytest.mark.parametrize(("device", "backend"), [("cuda:3", "nccl"), ("cpu", "gloo")])
def test_a_group_is_told_its_device(
    monkeypatch: pytest.MonkeyPatch, device: str, backend: str
) -> None:
    """Without it the first collective guesses a rank's GPU."""
    calls: list[tuple[Any, Any]] = []

    def begin(name: str, *, device_id: Any = None) -> None:
        calls.append((name, device_id))

    monkeypatch.setattr(dist, "init_process_group", begin)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "a",
    }.items():
        monkeypatch.setenv(name, value)
    with joined_ranks(torch.device(device)):
        pass
    assert calls == [(backend, torch.device(device) if backend == "nccl" else None)]
