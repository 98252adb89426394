"""A fault at any moment of a save, and damage afterwards: the old or the new state, never another.

200 faults here, in about 2 s; ``make soak`` runs 4,000 others.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from benchmarks.harness import Measurement, append_rows, record
from train.state.atomic import TEMPORARY
from train.state.checkpoint_archive import FORMAT
from train.state.checkpoint_files import add_file, best_of, newest
from train.state.checkpoint_index import INDEX, Score, step_files

CALLS = ("mkdir", "open", "write", "fsync", "close", "replace", "unlink")
QUICK, SOAK, EACH = 200, 4000, 50
RESULTS = Path(__file__).parents[3] / "benchmarks" / "results" / "soak.jsonl"


def payload(step: int, run_id: str = "ours") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "weight": torch.randn(7, 5, generator=generator),
        "bias": torch.randn(3, generator=generator).double(),
        "count": torch.tensor(step),
    }
    return {"format": FORMAT, "run_id": run_id, "step": step, "model": tensors}


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
        self.real = {name: getattr(os, name) for name in CALLS}

    def answer(self, name: str, *args: Any, **kwargs: Any) -> Any:
        number = len(self.calls)
        self.calls.append(name)
        if self.at is None or number < self.at:
            return self.real[name](*args, **kwargs)
        return self.fault(name, number, *args, **kwargs)

    def fault(self, name: str, number: int, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @contextmanager
    def mounted(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:

                def call(*args: Any, _name: str = name, **kwargs: Any) -> Any:
                    return self.answer(_name, *args, **kwargs)

                patch.setattr(os, name, call)
            yield


class Kill(Disk):
    """Nothing is done any more; half of a last write may have been."""

    def fault(self, name: str, number: int, *args: Any, **kwargs: Any) -> Any:
        if name == "close":
            self.real[name](*args)  # as the system does for a process that is gone
        if name == "write" and number == self.at:
            self.real[name](args[0], args[1][: len(args[1]) // 2])
        raise Killed


class Refuse(Disk):
    """One call fails, those after it work."""

    def fault(self, name: str, number: int, *args: Any, **kwargs: Any) -> Any:
        if number != self.at:
            return self.real[name](*args, **kwargs)
        if name == "close":
            self.real[name](*args)
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class Full(Disk):
    """The disk takes half of a write and then nothing more; what is there can be removed."""

    def fault(self, name: str, number: int, *args: Any, **kwargs: Any) -> Any:
        if name not in ("write", "mkdir"):
            return self.real[name](*args, **kwargs)
        if name == "write" and number == self.at and len(args[1]) > 1:
            return self.real[name](args[0], args[1][: len(args[1]) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def calls_of_a_save(folder: Path, keep: int) -> list[str]:
    copy = folder.with_name("counted")
    shutil.rmtree(copy, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, copy)
    disk = Disk()
    with disk.mounted():
        add_file(copy, payload(30), keep=keep)
    shutil.rmtree(copy)
    return disk.calls


def flip_a_bit(path: Path, draw: Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut_short(path: Path, draw: Random) -> None:
    os.truncate(path, draw.randrange(path.stat().st_size - 1))  # the last byte is a line end


def put_a_foreign_file(path: Path, draw: Random) -> None:
    other = path.parent.parent / "other"
    shutil.rmtree(other, ignore_errors=True)
    step = int(path.stem.removeprefix("step-"))
    source, _ = add_file(other, payload(step, "theirs"), keep=1)
    path.write_bytes(source.read_bytes())


def remove(path: Path, draw: Random) -> None:
    path.unlink()


FILE_DAMAGE: dict[str, Callable[[Path, Random], None]] = {
    "flip_a_bit": flip_a_bit,
    "cut_short": cut_short,
    "put_a_foreign_file": put_a_foreign_file,
    "remove": remove,
}
INDEX_DAMAGE = {name: FILE_DAMAGE[name] for name in ("flip_a_bit", "cut_short", "remove")}
KINDS = (
    *("kill", "refuse", "full", "kill_first", "refuse_first", "full_first"),
    *(f"file_{name}" for name in FILE_DAMAGE),
    *(f"index_{name}" for name in INDEX_DAMAGE),
    *("both", "foreign_beside", "left_over", "all"),
)


def one_fault(seed: int, folder: Path) -> str:
    """Make a run, hurt it, read it, train on; return what was hurt."""
    draw, kind = Random(seed), KINDS[seed % len(KINDS)]
    keep = draw.choice([1, 2, 3])
    said: list[str] = []
    old = () if kind.endswith("_first") else (10, 20)
    for step in old:
        add_file(folder, payload(step), keep=keep)
    expected: set[int | None] = {old[-1] if old else None, 30}

    if kind.split("_")[0] in ("kill", "refuse", "full"):
        number = draw.randrange(len(calls_of_a_save(folder, keep)) + 1)
        disk = {"kill": Kill, "refuse": Refuse, "full": Full}[kind.split("_")[0]](number)
        try:
            with disk.mounted():
                add_file(folder, payload(30), keep=keep)
            expected = {30}  # what said that it was written is there
        except (Killed, OSError):
            pass
    else:
        keep = max(keep, 2)
        for step in (20, 30):
            add_file(folder, payload(step), keep=keep)
        newest_file = folder / "step-00000030.pt"
        expected = {30}
        if kind.startswith("file_"):
            FILE_DAMAGE[kind.removeprefix("file_")](newest_file, draw)
            expected = {20}
        elif kind.startswith("index_"):
            INDEX_DAMAGE[kind.removeprefix("index_")](folder / INDEX, draw)
        elif kind == "both":
            INDEX_DAMAGE[draw.choice(list(INDEX_DAMAGE))](folder / INDEX, draw)
            FILE_DAMAGE[draw.choice(["flip_a_bit", "cut_short"])](newest_file, draw)
            expected = {20}
        elif kind == "foreign_beside":
            put_a_foreign_file(folder / "step-00000040.pt", draw)
        elif kind == "left_over":
            for name in ("step-00000040.pt", INDEX):
                (folder / (name + TEMPORARY)).write_bytes(draw.randbytes(100))
        else:
            for path in step_files(folder):
                FILE_DAMAGE[draw.choice(list(FILE_DAMAGE))](path, draw)
            with pytest.raises(ValueError, match=r"no checkpoint in .* is whole; put back a copy"):
                newest(folder, said.append)
            return kind

    found = newest(folder, said.append)
    step_found = None if found is None else found["step"]
    assert step_found in expected, (kind, keep, said)
    assert found is None or same(found, payload(found["step"])), kind
    if kind.startswith(("file_", "index_")) or kind in ("both", "foreign_beside"):
        assert said, f"{kind}: not said"
        assert all(str(folder) in line for line in said)
    train_on(folder, keep)
    return kind


def train_on(folder: Path, keep: int) -> None:
    """The next save works, and leaves nothing behind that it should not."""
    add_file(folder, payload(50), keep=keep)
    said: list[str] = []
    found = newest(folder, said.append)
    assert found is not None
    assert same(found, payload(50))
    assert not list(folder.glob(f"*{TEMPORARY}"))
    foreign = [path for path in step_files(folder) if any(str(path) in line for line in said)]
    assert len(step_files(folder)) - len(foreign) <= keep
    assert len(foreign) <= 1


def many_faults(seeds: range, folder: Path) -> None:
    kinds = set()
    for seed in seeds:
        kinds.add(one_fault(seed, folder / str(seed) / "checkpoints"))
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
    base = tmp_path / "base"
    if not first:
        add_file(base, payload(20), keep=1)
    total = len(calls_of_a_save(base, 1))
    assert total > 20
    for number in range(total):
        folder = tmp_path / str(number)
        if not first:
            shutil.copytree(base, folder)
        try:
            with fault(number).mounted():
                add_file(folder, payload(30), keep=1)
            allowed: set[int | None] = {30}
        except (Killed, OSError):
            allowed = {None if first else 20, 30}
        found = newest(folder, lambda _: None)
        assert (None if found is None else found["step"]) in allowed, number
        assert found is None or same(found, payload(found["step"])), number


def test_data_is_on_the_disk_before_its_name_is(tmp_path: Path) -> None:
    add_file(tmp_path, payload(10), keep=1)
    disk = Disk()
    with disk.mounted():
        add_file(tmp_path, payload(20), keep=1)
    order = [
        name
        for name, before in zip(disk.calls, [None, *disk.calls], strict=False)
        if name != before
    ]
    whole = ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"]
    assert order == [*whole, *whole, "unlink"]  # file, index, then the one that is not kept


def test_the_best_file_stays_and_is_found_without_the_index(tmp_path: Path) -> None:
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0), (40, float("nan")), (50, 1.0)):
        _, is_best = add_file(
            tmp_path, payload(step), keep=2, score=Score(metric="mm", value=value)
        )
        assert is_best == (step in (10, 20))
    names = [path.name for path in step_files(tmp_path)]
    assert names == ["step-00000020.pt", "step-00000040.pt", "step-00000050.pt"]
    assert same(best_of(tmp_path, pytest.fail), payload(20))
    (tmp_path / INDEX).unlink()
    assert same(best_of(tmp_path, lambda _: None), payload(20))
