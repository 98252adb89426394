"""A fault at any moment of a save, and damage afterwards: the old or the new state, never another.

200 faults here, in a few seconds; ``make soak`` runs 4,000 others.
"""

import errno
import json
import math
import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.harness import Measurement, append_rows, record
from train.config import CheckpointChoice
from train.state.checkpoint import (
    FORMAT,
    TEMPORARY,
    NotWrittenError,
    Score,
    best_step,
    read_checkpoint,
    save_checkpoint,
)

CALLS = ("mkdir", "open", "fsync", "close", "replace", "unlink")
"""Of ``os``; those of an open file are open, write, flush and close."""
QUICK, SOAK, EACH = 200, 4000, 50
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "soak.jsonl"


def payload(step: int, run_id: str = "ours") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "weight": torch.randn(7, 5, generator=generator),
        "bias": torch.randn(3, generator=generator).double(),
        "count": torch.tensor(step),
    }
    empty = ("ema", "optimizer", "loader", "rng", "mean_pose")
    return {
        "format": FORMAT,
        "run_id": run_id,
        "step": step,
        "model": tensors,
        **{name: {} for name in empty},
        "config": "{}",
        "store_sha256": "",
        "mano_sha256": "",
    }


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    names = found.keys() - {"best"} == expected.keys()
    plain = all(found[k] == expected[k] for k in ("format", "run_id", "step"))
    model, other = found["model"], expected["model"]
    return names and plain and all(torch.equal(model[k], other[k]) for k in other)


class Killed(BaseException):
    """The process is gone."""


class Disk:
    """Counts the calls that change a disk and answers from the ``at``-th on with a fault."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.calls: list[str] = []

    def answer(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        if self.at is None or number < self.at:
            return call(*args, **kwargs)
        return self.fault(name, number, call, *args, **kwargs)

    def fault(
        self, name: str, number: int, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        raise NotImplementedError

    @contextmanager
    def mounted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, partial(self.answer, name, getattr(os, name)))
            real_open = Path.open

            def open_(path: Path, mode: str = "r", **kwargs: Any) -> Any:
                if "w" not in mode:
                    return real_open(path, mode, **kwargs)
                return WatchedFile(self.answer("open", real_open, path, mode, **kwargs), self)

            patch.setattr(Path, "open", open_)
            yield


class WatchedFile:
    """A file that asks the disk before it writes, flushes or closes."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._file, name)
        if name not in ("write", "flush", "close"):
            return found
        return lambda *args: self._disk.answer(name, found, *args)

    def __enter__(self) -> "WatchedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Kill(Disk):
    """Nothing is done any more; half of a last write may have been."""

    def fault(
        self, name: str, number: int, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if name == "close":
            call(*args)  # as the system does for a process that is gone
        if name == "write" and number == self.at:
            call(args[0][: len(args[0]) // 2])
        raise Killed


class Refuse(Disk):
    """One call fails, those after it work."""

    def fault(
        self, name: str, number: int, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if number != self.at:
            return call(*args, **kwargs)
        if name == "close":
            call(*args)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class Full(Disk):
    """The disk takes half of a write and then nothing more; what is there can be removed."""

    def fault(
        self, name: str, number: int, call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if name not in ("write", "flush", "mkdir"):
            return call(*args, **kwargs)
        if name == "write" and number == self.at:
            call(args[0][: len(args[0]) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def new_run(run_dir: Path, *steps: int, keep: int = 3) -> Path:
    """Return the folder of a run that was saved at these steps."""
    run_dir.mkdir(parents=True)
    (run_dir / "manifest.json").write_text(json.dumps({"run_id": "ours"}) + "\n")
    for step in steps:
        save_checkpoint(run_dir, payload(step), keep=keep)
    return run_dir


def file_of(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"step-{step:08d}.pt"


def step_files(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "checkpoints").glob("step-*.pt"))


def newest(run_dir: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the newest intact checkpoint; None for a run that was never saved."""
    try:
        return read_checkpoint(run_dir, say=say)
    except FileNotFoundError:
        return None


def calls_of_a_save(run_dir: Path, keep: int) -> list[str]:
    copy = run_dir.with_name("counted")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run_dir, copy)
    disk = Disk()
    with disk.mounted():
        save_checkpoint(copy, payload(30), keep=keep)
    shutil.rmtree(copy)
    return disk.calls


def flip_a_bit(path: Path, draw: Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut_short(path: Path, draw: Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size - 1))  # the last byte is a line end


def put_a_foreign_file(path: Path, draw: Random) -> None:
    other = path.parent.parent.with_name("other")
    shutil.rmtree(other, ignore_errors=True)
    step = int(path.stem.removeprefix("step-"))
    save_checkpoint(other, payload(step, "theirs"), keep=1)
    path.write_bytes(file_of(other, step).read_bytes())


def remove(path: Path, draw: Random) -> None:
    path.unlink()


FILE_DAMAGE: dict[str, Callable[[Path, Random], None]] = {
    "flip_a_bit": flip_a_bit,
    "cut_short": cut_short,
    "put_a_foreign_file": put_a_foreign_file,
    "remove": remove,
}
MANIFEST_DAMAGE = {name: FILE_DAMAGE[name] for name in ("flip_a_bit", "cut_short", "remove")}
KINDS = (
    *("kill", "refuse", "full", "kill_first", "refuse_first", "full_first"),
    *(f"file_{name}" for name in FILE_DAMAGE),
    *(f"manifest_{name}" for name in MANIFEST_DAMAGE),
    *("both", "foreign_beside", "left_over", "all"),
)


def one_fault(seed: int, run_dir: Path) -> str:
    """Make a run, hurt it, read it, train on; return what was hurt."""
    draw, kind = Random(seed), KINDS[seed % len(KINDS)]
    keep = draw.choice([1, 2, 3])
    said: list[str] = []
    old = () if kind.endswith("_first") else (10, 20)
    new_run(run_dir, *old, keep=keep)
    expected: set[int | None] = {old[-1] if old else None, 30}

    if kind.split("_")[0] in ("kill", "refuse", "full"):
        number = draw.randrange(len(calls_of_a_save(run_dir, keep)) + 1)
        disk = {"kill": Kill, "refuse": Refuse, "full": Full}[kind.split("_")[0]](number)
        try:
            with disk.mounted():
                save_checkpoint(run_dir, payload(30), keep=keep)
            expected = {30}  # what said that it was written is there
        except (Killed, OSError):
            pass
    else:
        keep = max(keep, 2)
        for step in (20, 30):
            save_checkpoint(run_dir, payload(step), keep=keep)
        newest_file, manifest = file_of(run_dir, 30), run_dir / "manifest.json"
        expected = {30}
        if kind.startswith("file_"):
            FILE_DAMAGE[kind.removeprefix("file_")](newest_file, draw)
            expected = {20}
        elif kind.startswith("manifest_"):
            MANIFEST_DAMAGE[kind.removeprefix("manifest_")](manifest, draw)
        elif kind == "both":
            MANIFEST_DAMAGE[draw.choice(["cut_short", "remove"])](manifest, draw)
            FILE_DAMAGE[draw.choice(["flip_a_bit", "cut_short"])](newest_file, draw)
            expected = {20}
        elif kind == "foreign_beside":
            put_a_foreign_file(file_of(run_dir, 40), draw)
        elif kind == "left_over":
            for name in ("step-00000040.pt", "step-00000030.pt"):
                (newest_file.with_name(name + TEMPORARY)).write_bytes(draw.randbytes(100))
        else:
            damage = [FILE_DAMAGE[name] for name in FILE_DAMAGE if name != "remove"]
            for path in step_files(run_dir):
                draw.choice(damage)(path, draw)
            with pytest.raises(ValueError, match=r"no checkpoint in .* is whole; put back a copy"):
                newest(run_dir, said.append)
            return kind

    if kind == "manifest_flip_a_bit" and owner_named(run_dir) not in ("ours", None):
        with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
            newest(run_dir, said.append)
        assert all("it is foreign: of run 'ours', expected run " in line for line in said)
        train_on(run_dir, keep)
        return kind
    found = newest(run_dir, said.append)
    step_found = None if found is None else found["step"]
    assert step_found in expected, (kind, keep, said)
    assert found is None or same(found, payload(found["step"])), kind
    if kind.startswith("file_") or kind in ("both", "foreign_beside"):
        assert said or kind == "file_remove", f"{kind}: not said"
        assert all(str(run_dir) in line for line in said)
    else:
        assert not said, (kind, said)
    train_on(run_dir, keep)
    return kind


def owner_named(run_dir: Path) -> str | None:
    """Return the run that a manifest names, be it damaged or not."""
    try:
        return str(json.loads((run_dir / "manifest.json").read_bytes())["run_id"])
    except (ValueError, KeyError):
        return None


def train_on(run_dir: Path, keep: int) -> None:
    """The next save works, and leaves nothing behind that it should not."""
    (run_dir / "manifest.json").write_text(json.dumps({"run_id": "ours"}))  # as a run does first
    save_checkpoint(run_dir, payload(50), keep=keep)
    found = newest(run_dir, pytest.fail)
    assert found is not None
    assert same(found, payload(50))
    assert not list((run_dir / "checkpoints").glob(f"*{TEMPORARY}"))
    files = step_files(run_dir)
    foreign = [path for path in files if b"theirs" in path.read_bytes()]
    assert len(files) - len(foreign) <= keep
    assert len(foreign) <= 1


def many_faults(seeds: range, folder: Path) -> None:
    kinds = set()
    for seed in seeds:
        kinds.add(one_fault(seed, folder / str(seed) / "run"))
        shutil.rmtree(folder / str(seed))
    assert kinds == set(KINDS)


@pytest.mark.parametrize("begin", range(0, QUICK, EACH))
def test_a_fault_leaves_the_old_or_the_new_state(begin: int, tmp_path: Path) -> None:
    many_faults(range(begin, begin + EACH), tmp_path)


@pytest.mark.slow
def test_a_fault_leaves_the_old_or_the_new_state_soak(tmp_path: Path) -> None:
    begin = time.perf_counter()
    for first in range(QUICK, QUICK + SOAK, EACH):
        many_faults(range(first, first + EACH), tmp_path / str(first))
    value = Measurement(p20=SOAK, p50=SOAK, p80=SOAK, n=SOAK)
    params = {"minutes": round((time.perf_counter() - begin) / 60, 1)}
    row = record("soak", "checkpoint faults", "old or new state", "faults", value, params=params)
    append_rows(RESULTS, [row])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fault", [Kill, Refuse, Full])
def test_every_single_call_may_be_the_last(
    fault: type[Disk], *, first: bool, tmp_path: Path
) -> None:
    base = new_run(tmp_path / "base", *(() if first else (20,)))
    total = len(calls_of_a_save(base, 1))
    assert total > 20
    for number in range(total):
        run_dir = tmp_path / str(number)
        shutil.copytree(base, run_dir)
        try:
            with fault(number).mounted():
                save_checkpoint(run_dir, payload(30), keep=1)
            allowed: set[int | None] = {30}
        except (Killed, OSError):
            allowed = {None if first else 20, 30}
        found = newest(run_dir, pytest.fail)
        assert (None if found is None else found["step"]) in allowed, number
        assert found is None or same(found, payload(found["step"])), number


def test_data_is_on_the_disk_before_its_name_is(tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run", 10)
    disk = Disk()
    with disk.mounted():
        save_checkpoint(run_dir, payload(20), keep=1)
    calls = [call for call in disk.calls if call not in ("mkdir", "write", "flush")]
    folder = ["open", "fsync", "close"]
    assert calls == ["open", "fsync", "close", "replace", *folder, *folder, "unlink", "unlink"]
    assert "write" not in disk.calls[disk.calls.index("fsync") :]


@pytest.mark.parametrize("number", range(0, 40, 5))
def test_a_full_disk_is_named_by_the_systems_own_words(number: int, tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run", 10)
    writes = [i for i, name in enumerate(calls_of_a_save(run_dir, 1)) if name == "write"]
    with (
        Full(writes[number % len(writes)]).mounted(),
        pytest.raises(NotWrittenError, match=r"step 30 was not written to .*: No space left on"),
    ):
        save_checkpoint(run_dir, payload(30), keep=1)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000010.pt"]


@pytest.mark.parametrize(("damage", "times"), [(flip_a_bit, 200), (cut_short, 50)])
def test_every_damage_is_refused_and_the_one_before_is_taken(
    damage: Callable[[Path, Random], None], times: int, tmp_path: Path
) -> None:
    path = file_of(new_run(tmp_path / "run", 10, 20), 20)
    intact, draw = path.read_bytes(), Random(0)
    for _ in range(times):
        path.write_bytes(intact)
        damage(path, draw)
        said: list[str] = []
        found = newest(tmp_path / "run", said.append)
        assert found is not None
        assert same(found, payload(10))
        reason = "its checksum does not fit: it is torn, damaged or foreign"
        assert said == [f"checkpoint {path} is refused: {reason}"]


def test_damage_that_the_crcs_of_zip_leave_out_is_refused(tmp_path: Path) -> None:
    """An entry that is marked as a folder: torch.load then returns uninitialised memory."""
    path = file_of(new_run(tmp_path / "run", 10, 20), 20)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"archive/data/0") - 46  # in the archive's directory, which is at its end
    assert data[entry : entry + 4] == b"PK\1\2"
    data[entry + 38] ^= 0x10
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    said: list[str] = []
    found = newest(tmp_path / "run", said.append)
    assert found is not None
    assert found["step"] == 10
    assert len(said) == 1


def test_the_best_file_stays_and_is_found(tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run")
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0), (40, math.nan), (50, 1.0)):
        score = Score(metric="mm", value=value, step=step)
        is_best = save_checkpoint(run_dir, payload(step), keep=2, score=score)
        assert is_best == (step in (10, 20))
    assert step_files(run_dir) == [file_of(run_dir, step) for step in (20, 40, 50)]
    assert same(read_checkpoint(run_dir, CheckpointChoice.best, say=pytest.fail), payload(20))
    assert best_step(run_dir, "ours") == 20
    save_checkpoint(run_dir, payload(50), keep=2)  # once more, after a signal: not scored
    assert best_step(run_dir, "ours") == 20
    flip_a_bit(file_of(run_dir, 20), Random(0))
    with pytest.raises(ValueError, match=r"the best checkpoint .*20.pt is refused: its checksum"):
        read_checkpoint(run_dir, CheckpointChoice.best, say=pytest.fail)


def test_a_best_beyond_the_step_that_a_run_continues_from_is_forgotten(tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run", 10)
    save_checkpoint(run_dir, payload(20), keep=2, score=Score(metric="mm", value=1.0, step=20))
    cut_short(file_of(run_dir, 20), Random(0))
    score = Score(metric="mm", value=2.0, step=15)
    assert save_checkpoint(run_dir, payload(15), keep=2, score=score)
    assert step_files(run_dir) == [file_of(run_dir, step) for step in (10, 15)]


def test_a_score_in_a_damaged_file_is_not_believed(tmp_path: Path) -> None:
    run_dir = new_run(tmp_path / "run")
    for step, value in ((10, 2.0), (20, 3.0)):
        save_checkpoint(
            run_dir, payload(step), keep=3, score=Score(metric="mm", value=value, step=step)
        )
    data = file_of(run_dir, 20).read_bytes()
    assert data.count(struct.pack(">d", 2.0)) == 1
    file_of(run_dir, 20).write_bytes(data.replace(struct.pack(">d", 2.0), struct.pack(">d", 4.0)))
    assert not save_checkpoint(
        run_dir, payload(30), keep=3, score=Score(metric="mm", value=3.0, step=30)
    )
