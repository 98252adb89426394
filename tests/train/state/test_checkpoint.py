"""Checkpoints: what is put back, what is refused, how a run is continued, a full disk."""

import hashlib
import json
import os
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import train.loop
from model.regressor.config import RegressorConfig
from pipeline.app.cli import compose
from pipeline.app.files import replace_file
from tests.conftest import SampleStore
from train.config import CheckpointChoice, EvaluateConfig, RunConfig
from train.evaluate.evaluate import main as evaluate
from train.loop import train as train_loop
from train.run import main as run
from train.state.checkpoint import (
    NotWrittenError,
    Score,
    best_step,
    mean_of,
    read_checkpoint,
    require_same,
    restore,
    rng_state,
    save_checkpoint,
    set_rng_state,
)
from train.state.resume import FREE_KEYS, continue_from, flat
from train.step.step import TrainState, train_step
from train.watch.log import cut_rows

TINY = [
    "model.backbone=test_resnet",
    "model.pretrained=false",
    "model.hidden=16",
    "device=cpu",
    "precision=fp32",
    "pipeline.input_px=32",
    "pipeline.cache.size_px=40",
    "batch_size=8",
    "optim.warmup_steps=2",
    "log_every=1",
    "pictures_every=100",
    "checkpoint_every=2",
]


def words(data: SampleStore, run_dir: Path, *more: str) -> list[str]:
    return [f"store={data.store}", f"mano={data.mano}", f"run_dir={run_dir}", *TINY, *more]


def config(data: SampleStore, run_dir: Path, *more: str) -> RunConfig:
    built = compose(RunConfig, words(data, run_dir, *more))
    assert isinstance(built, RunConfig)
    return built


def resumed(run_dir: Path, *more: str) -> RunConfig:
    built = compose(RunConfig, [f"resume={run_dir}", *more])
    assert isinstance(built, RunConfig)
    return built


def files(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def steps_logged(run_dir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(freihand: SampleStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 8 steps; not to be changed."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    assert run(config(freihand, run_dir, "steps=8")) == 0
    return run_dir


def test_the_newest_three_stay(trained: Path) -> None:
    assert files(trained) == [f"step-{step:08d}.pt" for step in (4, 6, 8)]
    payload = read_checkpoint(trained, say=pytest.fail)
    assert payload["step"] == 8
    manifest = json.loads((trained / "manifest.json").read_text())
    assert payload["run_id"] == manifest["run_id"]
    assert len(payload["run_id"]) == 16
    assert payload["store_sha256"] == manifest["store_sha256"]
    assert payload["mano_sha256"] == manifest["mano_sha256"]


def test_a_file_is_a_zip_archive_with_its_sha256_as_the_comment(trained: Path) -> None:
    path = trained / "checkpoints" / "step-00000008.pt"
    with zipfile.ZipFile(path) as archive:
        comment = archive.comment
    data = path.read_bytes()
    assert data[-64:] == comment == hashlib.sha256(data[:-66]).hexdigest().encode()
    assert torch.load(path, weights_only=True)["step"] == 8


def test_everything_is_put_back(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside the loop: the next run begins with the state after 4 steps."""
    seen: list[dict[str, Any]] = []

    def look(state: TrainState, run: Any) -> bool:
        before = snapshot(state, run.loader)
        finished = train_loop(state, run)
        seen.extend([before, snapshot(state, run.loader)])
        return finished

    def step(*arguments: Any) -> Any:
        torch.rand(1)  # as dropout would
        return train_step(*arguments)

    monkeypatch.setattr("train.run.train", look)
    monkeypatch.setattr(train.loop, "train_step", step)
    run(config(freihand, tmp_path / "run", "steps=4"))
    run(config(freihand, tmp_path / "run", "steps=5"))
    _, after, before, _ = seen
    assert equal(before, after)
    assert not equal(before, seen[-1])


def snapshot(state: TrainState, loader: Any) -> dict[str, Any]:
    parts = (state.model.state_dict(), state.ema.state_dict(), state.optimizer.state_dict())
    tensors = [torch.utils._pytree.tree_map(clone, part) for part in parts]
    position = dict(loader.state_dict())
    steps = (state.step, int(state.clock))
    return {"parts": tensors, "loader": position, "rng": torch.get_rng_state(), "step": steps}


def clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def equal(a: Any, b: Any) -> bool:
    flat_a, tree_a = torch.utils._pytree.tree_flatten(a)
    flat_b, tree_b = torch.utils._pytree.tree_flatten(b)
    return tree_a == tree_b and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(flat_a, flat_b, strict=True)
    )


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_taken(
    freihand: SampleStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config(freihand, tmp_path, "steps=4"))
    whole = read_checkpoint(tmp_path, say=pytest.fail)
    newest = tmp_path / "checkpoints" / "step-00000004.pt"
    os.truncate(newest, newest.stat().st_size - 1000)
    capsys.readouterr()
    assert run(config(freihand, tmp_path, "steps=4")) == 0
    said = capsys.readouterr().out
    assert f"checkpoint {newest} is refused: its checksum does not fit" in said.replace("\n", "")
    assert f"run {tmp_path}" in said
    assert "step 2" in said
    again = read_checkpoint(tmp_path, say=pytest.fail)
    assert equal(again["model"], whole["model"])
    assert steps_logged(tmp_path) == [1, 2, 3, 4]


def test_resume_alone_continues_with_the_runs_own_configuration(
    freihand: SampleStore, tmp_path: Path
) -> None:
    run(config(freihand, tmp_path / "whole", "steps=6", "optim.lr=0.002"))
    run(config(freihand, tmp_path / "parts", "steps=6", "optim.lr=0.002"))
    (tmp_path / "parts" / "checkpoints" / "step-00000006.pt").unlink()
    assert run(resumed(tmp_path / "parts", "keep_checkpoints=1")) == 0
    whole, parts = (
        read_checkpoint(tmp_path / name, say=pytest.fail) for name in ("whole", "parts")
    )
    for part in ("model", "ema", "optimizer", "loader", "rng"):
        assert equal(whole[part], parts[part]), part
    assert files(tmp_path / "parts") == ["step-00000006.pt"]
    kept = flat(json.loads(parts["config"]))
    assert kept["optim.lr"] == 0.002
    assert kept["keep_checkpoints"] == 1
    assert kept["resume"] is None
    # The new values hold from then on: the same run_dir alone continues it.
    assert run(resumed(tmp_path / "parts", "steps=7")) == 0
    assert steps_logged(tmp_path / "parts") == [1, 2, 3, 4, 5, 6, 7]


def test_a_key_that_is_given_its_default_counts(trained: Path) -> None:
    """The run was trained with other values, which a resume without the keys keeps."""
    words = {"steps": 20_000, "log_every": 50, "accumulate": 1, "keep_checkpoints": 3}
    kept = {name: getattr(continue_from(resumed(trained), pytest.fail)[0], name) for name in words}
    given = [f"{name}={value}" for name, value in words.items()]
    config, _ = continue_from(resumed(trained, *given), pytest.fail)
    assert {name: getattr(config, name) for name in words} == words
    assert (kept["steps"], kept["log_every"]) == (8, 1)
    with pytest.raises(ValueError, match=r"cannot change \(optim.warmup_steps: 2 -> 100\)"):
        run(resumed(trained, "warmup_steps=100"))


def test_resume_refuses_what_cannot_change(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot change \(optim.lr: 0.0003 -> 0.1\); leave out"):
        run(resumed(trained, "optim.lr=0.1"))
    with pytest.raises(ValueError, match=r"leave out run_dir, got 'x'"):
        resumed(trained, "run_dir=x")
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        run(resumed(trained.parent / "nothing"))
    with pytest.raises(ValueError, match=r"needs store=\.\.\. .* or resume=RUN"):
        compose(RunConfig, [])


def test_free_keys_exist_and_may_differ_in_the_same_run_dir(
    freihand: SampleStore, tmp_path: Path
) -> None:
    run(config(freihand, tmp_path / "run", "steps=2"))
    keys = flat(json.loads(read_checkpoint(tmp_path / "run", say=pytest.fail)["config"])).keys()
    assert keys > FREE_KEYS
    moved = tmp_path / "moved.zarr"
    moved.symlink_to(freihand.store, target_is_directory=True)
    assert run(config(freihand, tmp_path / "run", "steps=3", "log_every=2", f"store={moved}")) == 0


def test_other_data_is_refused_by_name(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(freihand, tmp_path, "steps=2"))
    read = read_checkpoint

    def other(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return read(*args, **kwargs) | {"store_sha256": "0" * 64, "mano_sha256": ""}

    monkeypatch.setattr("train.state.resume.read_checkpoint", other)
    expected = (
        r"other data \(store content 000000000000 -> \w{12}, MANO files none -> \w{12}; sha256\)"
    )
    with pytest.raises(ValueError, match=expected):
        run(config(freihand, tmp_path, "steps=3"))


def test_a_checkpoint_of_format_0_is_refused(freihand: SampleStore, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"old")
    with pytest.raises(ValueError, match=r"has checkpoint format 0, this code reads 2"):
        run(config(freihand, tmp_path, "steps=2"))


class FullDisk:
    """Refuses to put checkpoint files in their place while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._answer)

    def _answer(self, descriptor: int) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self._fsync(descriptor)


def test_a_full_disk_does_not_end_the_training(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = FullDisk(monkeypatch)

    def step(state: TrainState, *rest: Any) -> Any:
        disk.full = state.step in (3, 5)  # full when steps 4 and 6 are saved
        return train_step(state, *rest)

    monkeypatch.setattr(train.loop, "train_step", step)
    assert run(config(freihand, tmp_path, "steps=8")) == 0
    said = capsys.readouterr().out
    sentence = (
        f"the checkpoint of step 4 was not written to {tmp_path / 'checkpoints'}: No space left on "
        "device; the earlier ones are untouched; tried again in 2 steps\n"
    )
    assert sentence in said
    assert files(tmp_path) == ["step-00000002.pt", "step-00000008.pt"]
    assert read_checkpoint(tmp_path, say=pytest.fail)["step"] == 8


@pytest.mark.parametrize("by_signal", [False, True])
def test_a_full_disk_at_the_end_is_an_error(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    by_signal: bool,
) -> None:
    import signal

    disk = FullDisk(monkeypatch)

    def step(state: TrainState, *rest: Any) -> Any:
        if state.step == 3:
            disk.full = True
            if by_signal:
                os.kill(os.getpid(), signal.SIGTERM)
        return train_step(state, *rest)

    monkeypatch.setattr(train.loop, "train_step", step)
    steps = "steps=9" if by_signal else "steps=4"
    assert run(config(freihand, tmp_path, steps, "checkpoint_every=3")) == 1
    assert "the checkpoint of step 4 was not written" in capsys.readouterr().out
    disk.full = False
    assert read_checkpoint(tmp_path, say=pytest.fail)["step"] == 3


def test_two_runs_in_one_folder_do_not_mix(freihand: SampleStore, tmp_path: Path) -> None:
    run(config(freihand, tmp_path / "a", "steps=2"))
    run(config(freihand, tmp_path / "b", "steps=2"))
    theirs = (tmp_path / "b" / "checkpoints" / "step-00000002.pt").read_bytes()
    foreign = tmp_path / "a" / "checkpoints" / "step-00000003.pt"
    foreign.write_bytes(theirs)
    said: list[str] = []
    assert read_checkpoint(tmp_path / "a", say=said.append)["step"] == 2
    assert f"{foreign} is refused: it is foreign: of run" in said[0]
    assert run(config(freihand, tmp_path / "a", "steps=4")) == 0
    assert foreign.read_bytes() == theirs
    (tmp_path / "a" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"files of 2 runs and no manifest.json tells whose it is"):
        read_checkpoint(tmp_path / "a", say=said.append)
    foreign.unlink()
    payload = read_checkpoint(tmp_path / "a", say=pytest.fail)
    with pytest.raises(NotWrittenError, match=r"belongs to run \w{16}, this is run theirs; does"):
        save_checkpoint(tmp_path / "a", payload | {"run_id": "theirs"}, keep=1)


def test_evaluation_takes_the_latest_or_the_best(
    freihand: SampleStore, tmp_path: Path, trained: Path
) -> None:
    wanted = EvaluateConfig(
        run=str(trained),
        store=str(freihand.store),
        mano=str(freihand.mano),
        out=str(tmp_path),
        device=config(freihand, tmp_path).device,
    )
    assert evaluate(wanted) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert (scores["checkpoint"], scores["step"]) == ("latest", 8)
    wanted.checkpoint = CheckpointChoice.best
    with pytest.raises(FileNotFoundError, match="no best checkpoint: none was scored"):
        evaluate(wanted)


def test_generators_of_devices_that_are_not_here_are_passed_over() -> None:
    before = rng_state()
    expected = torch.rand(3)
    set_rng_state(before | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 64})
    assert torch.equal(torch.rand(3), expected)


def test_rows_beyond_the_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    cut_rows(path, 3)
    assert not path.exists()
    rows = [json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 4)]
    path.write_text("".join(rows) + '{"step": 5, "lo')
    cut_rows(path, 3)
    assert path.read_text() == "".join(rows[:3])
    path.write_text(rows[0] + "\0\0\0")
    cut_rows(path, 3)
    assert path.read_text() == rows[0]


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    replace_file(path, b"abc")
    replace_file(path, b"de")
    assert path.read_bytes() == b"de"
    assert list(tmp_path.iterdir()) == [path]


OLD = Path(__file__).parent / "format_2"
"""A run of one linear layer, saved at steps 2 and 4 by the release that kept an index."""


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_run_with_an_index_is_continued(
    old_run: Path, capsys: pytest.CaptureFixture[str], *, damaged: bool
) -> None:
    if damaged:
        os.truncate(old_run / "checkpoints" / "step-00000004.pt", 9999)
    configured, payload = continue_from(resumed(old_run, "steps=6"), print)
    assert ("step-00000004.pt is refused: its checksum" in capsys.readouterr().out) == damaged
    assert (configured.steps, configured.optim.lr) == (6, 0.002)
    assert isinstance(configured.model, RegressorConfig)  # written before there were families
    assert (configured.model.hidden, configured.model.backbone) == (16, "test_resnet")

    model, ema, log_variance = nn.Linear(4, 3), nn.Linear(4, 3), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW(
        [
            {"params": params, "lr": torch.tensor(0.5), "lr_share": 1.0}
            for params in ([*model.parameters()], [log_variance])
        ],
        fused=True,
    )
    state: Any = SimpleNamespace(
        model=model,
        ema=ema,
        optimizer=optimizer,
        log_variance=log_variance,
        clock=torch.zeros((), dtype=torch.int64),
        accumulate=1,
    )
    assert payload is not None
    same = {"store_sha256": "a" * 64, "mano_sha256": "b" * 64}
    require_same(payload, model, **same)
    for other, sentence in (
        (nn.Linear(5, 3), r"1 of its .* \(first: weight, expected \[3, 5\], got \[3, 4\]\)"),
        (nn.Linear(4, 3, bias=False), r"first: bias, expected none, got \[3\]"),
    ):
        with pytest.raises(ValueError, match=f"is of another network: .*{sentence}"):
            require_same(payload, other, **same)
    with pytest.raises(ValueError, match=r"other data \(MANO files bbbbbbbbbbbb -> none; sha256"):
        require_same(payload, model, **(same | {"mano_sha256": ""}))
    restore(state, payload)
    step = 2 if damaged else 4
    assert state.step == state.clock == payload["loader"]["batch"] == step
    assert torch.equal(model.weight, torch.arange(12.0).view(3, 4) / 8 * step)
    assert torch.equal(ema.weight, model.weight / 2)
    assert torch.equal(log_variance, torch.tensor([0.5, -0.5]) * step)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.25 / step
    moments = optimizer.state[model.bias]
    assert torch.equal(moments["exp_avg"], torch.full((3,), 0.25 * step))
    assert torch.equal(moments["exp_avg_sq"], torch.full((3,), 0.5 * step))
    drawn = torch.rand(3)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(step)))
    assert torch.equal(mean_of(payload).place, torch.tensor([[0.0, 0.0, 0.5]]))

    assert not save_checkpoint(
        old_run,
        payload | {"step": 6},
        keep=1,
        score=Score(metric="pa_mpjpe_mm", value=7.0, step=6),
    )
    assert files(old_run) == ["step-00000002.pt", "step-00000006.pt"]
    best = read_checkpoint(old_run, CheckpointChoice.best, say=pytest.fail)
    assert best["step"] == best_step(old_run, "0123456789abcdef") == 2
