"""A build that stops anywhere goes on where it was and ends with the same bytes."""

import dataclasses
import errno
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.app.files import PARTIAL
from pipeline.app.lock import locked
from pipeline.store.errors import StoreError
from pipeline.store.reader import open_store
from pipeline.store.schema import LOCK
from pipeline.store.shard import shard_path
from pipeline.store.writer import MEMBERS
from preprocess.builder import executor, journal
from preprocess.builder.build import build
from preprocess.builder.shard import ShardResult, ShardTask, run_shard
from preprocess.builder.tasks import make_tasks
from preprocess.config import BuildConfig
from preprocess.records import SourceError
from tests.preprocess.builder.test_build import config, file_hashes, image_of
from tests.preprocess.datasets import FreihandTruth, jpeg, write_freihand

QUIET = Console(quiet=True)
NUM_SHARDS = 4


@pytest.fixture(autouse=True)
def without_mano_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)


@pytest.fixture
def truth(tmp_path: Path) -> FreihandTruth:
    return write_freihand(tmp_path)


@pytest.fixture
def expected(truth: FreihandTruth, tmp_path: Path) -> dict[str, str]:
    """Return the files of a build that nothing stopped, at the place where the others end."""
    path = build(in_four(truth), console=QUIET).path
    hashes = file_hashes(path)
    path.rename(tmp_path / "expected.zarr")
    return hashes


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the shards that are made from now on."""
    shards: list[int] = []

    def counted(task: ShardTask) -> ShardResult:
        shards.append(task.shard)
        return run_shard(task)

    monkeypatch.setattr(executor, "run_shard", counted)
    return shards


def in_four(truth: FreihandTruth, **changes: object) -> BuildConfig:
    return config(truth, shard_rows=4, **changes)


def stop_at(monkeypatch: pytest.MonkeyPatch, shard: int) -> Callable[[], None]:
    """Make the build stop before it makes ``shard``; return what ends that."""

    def stopping(task: ShardTask) -> ShardResult:
        if task.shard == shard:
            raise KeyboardInterrupt
        return run_shard(task)

    before = vars(executor)["run_shard"]
    monkeypatch.setattr(executor, "run_shard", stopping)
    return lambda: monkeypatch.setattr(executor, "run_shard", before)


def stopped(truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch, shard: int) -> Path:
    go_on = stop_at(monkeypatch, shard)
    with pytest.raises(KeyboardInterrupt):
        build(in_four(truth), console=QUIET)
    go_on()
    return Path(in_four(truth).out)


# --- what is kept ---------------------------------------------------------------------------------


def test_finished_shards_are_kept(
    truth: FreihandTruth,
    expected: dict[str, str],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = stopped(truth, monkeypatch, 2)
    with pytest.raises(StoreError, match="is not finished; finish it with: python -m preprocess"):
        open_store(out)
    made.clear()
    report = build(in_four(truth), console=QUIET)
    assert made == [2, 3]
    assert report.fresh_rows == 6
    assert report.attributes.num_rows == 14
    assert file_hashes(out) == expected
    assert not journal.journal_path(out).exists()


def test_a_bad_image_costs_nothing_that_was_done(
    truth: FreihandTruth, expected: dict[str, str], made: list[int]
) -> None:
    """The file is copied again, so its size is another one than the first plan's."""
    image_of(truth, 9).write_bytes(jpeg(1)[:-400] + b"\xff\xd9")  # seen when it is decoded
    with pytest.raises(SourceError, match=r"00000009.jpg cannot be decoded"):
        build(in_four(truth), console=QUIET)
    first = list(made)
    assert first
    image_of(truth, 9).write_bytes(truth.images[9])
    made.clear()
    build(in_four(truth), console=QUIET)
    assert sorted({*first[:-1], *made}) == list(range(NUM_SHARDS))
    assert not {*first[:-1]} & {*made}
    assert file_hashes(Path(in_four(truth).out)) == expected


def damage_label(out: Path) -> None:
    (out / "labels" / "K" / "c.1.0.0").write_bytes(b"\0" * 40)


def remove_label(out: Path) -> None:
    (out / "labels" / "joints_3d" / "c.1.0.0.0").unlink()


def cut_images(out: Path) -> None:
    path = shard_path(out, 1)
    path.write_bytes(path.read_bytes()[:-5])


def damage_index(out: Path) -> None:
    path = shard_path(out, 1)
    path.write_bytes(path.read_bytes()[:-5] + b"\1\2\3\4\5")


def forget(out: Path) -> None:
    path = journal.journal_path(out)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["result"]["shard"] != 1))


DAMAGE = [damage_label, remove_label, cut_images, damage_index, forget]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__)
def test_a_damaged_shard_is_made_again(
    truth: FreihandTruth,
    expected: dict[str, str],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
) -> None:
    out = stopped(truth, monkeypatch, 3)
    damage(out)
    made.clear()
    build(in_four(truth), console=QUIET)
    assert made == [1, 3]
    assert file_hashes(out) == expected


@pytest.mark.parametrize("cut", [1, 200])
def test_a_torn_line_of_the_journal_is_no_line(
    truth: FreihandTruth,
    expected: dict[str, str],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
    cut: int,
) -> None:
    out = stopped(truth, monkeypatch, 3)
    path = journal.journal_path(out)
    path.write_bytes(path.read_bytes()[:-cut])
    made.clear()
    build(in_four(truth), console=QUIET)
    assert made == [2, 3]
    assert file_hashes(out) == expected


def test_other_settings_start_again(
    truth: FreihandTruth, made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(truth, monkeypatch, 3)
    made.clear()
    build(config(truth, shard_rows=7), console=QUIET)
    assert made == [0, 1]


def test_a_build_killed_behind_its_marker_is_finished(
    truth: FreihandTruth,
    expected: dict[str, str],
    made: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "remove", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(in_four(truth), console=QUIET)
    out = Path(in_four(truth).out)
    assert open_store(out).attributes.finished
    made.clear()
    build(in_four(truth), console=QUIET)
    assert made == []
    assert file_hashes(out) == expected


def test_two_builds_of_one_store_do_not_meet(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = stopped(truth, monkeypatch, 2)
    with (
        locked(out / LOCK, "", instead=""),
        pytest.raises(OSError, match=r"another build is writing .*store.zarr \(process \d+ on "),
    ):
        build(in_four(truth), console=QUIET)
    build(in_four(truth), console=QUIET)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_build_that_begins_while_another_is_planned_is_refused(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    """Both see an empty folder; without a lock the second would take the first one's files away."""
    second = in_four(truth, overwrite=overwrite)

    def meanwhile(*arguments: Any) -> Any:
        with pytest.raises(OSError, match="another build is writing"):
            build(second, console=QUIET)
        return make_tasks(*arguments)

    monkeypatch.setattr("preprocess.builder.build.make_tasks", meanwhile)
    report = build(in_four(truth), console=QUIET)
    assert open_store(report.path).num_rows == report.attributes.num_rows


def test_a_finished_store_is_not_replaced_by_other_settings_after_a_kill(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(journal, "remove", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(in_four(truth), console=QUIET)
    with pytest.raises(StoreError, match="holds a finished store; pass overwrite=true"):
        build(config(truth, shard_rows=7), console=QUIET)
    assert open_store(Path(in_four(truth).out)).attributes.shard_rows == 4


def _interrupt(_: Path) -> None:
    raise KeyboardInterrupt


def test_nothing_beside_the_store_is_touched(truth: FreihandTruth) -> None:
    out = Path(in_four(truth).out)
    neighbours = [out.with_name(out.name + end) for end in (".old", ".partial", ".tmp", ".bak")]
    for neighbour in neighbours:
        neighbour.mkdir()
        (neighbour / "last week").touch()
    before = sorted(out.parent.iterdir())
    for overwrite in (False, True):
        build(in_four(truth, overwrite=overwrite), console=QUIET)
    assert sorted(out.parent.iterdir()) == sorted([*before, out])
    assert all((neighbour / "last week").exists() for neighbour in neighbours)


def test_files_of_the_user_in_a_store_are_named_and_kept(truth: FreihandTruth) -> None:
    out = build(in_four(truth), console=QUIET).path
    (out / "notes.txt").touch()
    with pytest.raises(StoreError, match=r"other files in a store \(notes.txt\); move them away"):
        build(in_four(truth, overwrite=True), console=QUIET)
    assert open_store(out).num_rows == 14


def test_a_store_that_is_being_removed_does_not_look_like_one(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(in_four(truth), console=QUIET)
    out = Path(in_four(truth).out)

    def interrupted(path: Path, **_: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(in_four(truth, overwrite=True), console=QUIET)
    with pytest.raises(StoreError, match="no store at"):
        open_store(out)
    build(in_four(truth), console=QUIET)
    assert sorted(path.name for path in out.iterdir()) == sorted(MEMBERS)


# --- disks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(0, 120, 20))
def test_a_full_disk_is_one_sentence(
    truth: FreihandTruth,
    expected: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """The disk is full at one of the syncs of a build; every one of them is a kernel's chance."""
    calls = iter(range(10**6))

    def full(descriptor: int) -> None:
        if next(calls) == 60 + call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((StoreError, OSError)) as error:
            build(in_four(truth), console=QUIET)
    assert "No space left on device" in str(error.value)
    out = Path(in_four(truth).out)
    assert str(out) in str(error.value)
    build(in_four(truth), console=QUIET)
    assert file_hashes(out) == expected
    assert not list(out.rglob(f"*{PARTIAL}"))


SMALL_FILES = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from preprocess.__main__ import front_door, COMMANDS
sys.exit(front_door("python -m preprocess", COMMANDS, sys.argv[2:]))
"""


def test_a_write_that_the_kernel_refuses_is_one_line(truth: FreihandTruth, tmp_path: Path) -> None:
    words = ["build-cache", "dataset=freihand", f"root={truth.root}", f"out={tmp_path / 's.zarr'}"]
    # -B: the bytecode of what it imports would be cut off too, and break who reads it next.
    command = [sys.executable, "-B", "-c", SMALL_FILES, "8000", *words, "workers=1", "shard_rows=4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "File too large" in last
    assert "run the same command again: finished shards are kept" in last
    assert not list(tmp_path.rglob(f"*{PARTIAL}"))


# --- kills ----------------------------------------------------------------------------------------

PAUSED = """
import sys, time
from preprocess.builder import executor
from preprocess.__main__ import front_door, COMMANDS
from tests.preprocess.builder.test_resume import pausing
executor.run_shard = pausing
sys.exit(front_door("python -m preprocess", COMMANDS, sys.argv[1:]))
"""


def pausing(task: ShardTask) -> ShardResult:
    if task.shard == 2:
        (task.store.parent / f"worker {os.getpid()}").touch()
        time.sleep(600)
    return run_shard(task)


def test_workers_end_with_a_killed_build(truth: FreihandTruth, tmp_path: Path) -> None:
    out = in_four(truth).out
    words = ["build-cache", "dataset=freihand", f"root={truth.root}", f"out={out}", "workers=2"]
    with started([sys.executable, "-c", PAUSED, *words, "shard_rows=4"]) as process:
        while not (marker := list(tmp_path.glob("worker *"))):
            assert process.poll() is None, f"the build ended with {process.returncode}"
            time.sleep(0.01)
        worker = os.pidfd_open(int(marker[0].name.split()[1]))
        process.kill()
        ended, _, _ = select.select([worker], [], [], 120)
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        os.close(worker)
    assert ended, "the worker lives on, 120 s after its build"
    build(dataclasses.replace(in_four(truth), workers=1), console=QUIET)


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that ends with the block at the latest."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def many(tmp_path: Path) -> FreihandTruth:
    """Return 500 images."""
    return write_freihand(tmp_path, num_unique=120, num_eval=20)


def test_killed_at_random_moments_a_build_ends_with_the_same_bytes(
    many: FreihandTruth, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", "preprocess", "build-cache", "dataset=freihand"]
    words += [f"root={many.root}", "shard_rows=20", "workers=2"]
    whole = config(many, shard_rows=20, out=str(tmp_path / "whole.zarr"))
    build(whole, console=QUIET)
    out = tmp_path / "killed.zarr"
    killed = killed_while_building([*words, f"out={out}"], out, random.Random(6), kills=3)
    assert killed >= 2
    if journal.journal_path(out).exists():
        subprocess.run([*words, f"out={out}"], check=True, capture_output=True)
    assert without_command(out) == without_command(tmp_path / "whole.zarr")


def killed_while_building(
    command: list[str], out: Path, rng: random.Random, *, kills: int, most_seconds: float = 0.4
) -> int:
    """Start a build and kill it, up to ``kills`` times; return how often it was killed.

    Each time the kill comes up to ``most_seconds`` after the build began to write.
    """
    for killed in range(kills):
        written = last_change(out)
        with started(command) as process:
            while last_change(out) == written and process.poll() is None:
                time.sleep(0.01)
            try:
                process.wait(rng.uniform(0, most_seconds))
            except subprocess.TimeoutExpired:
                process.kill()
            else:
                return killed
    return kills


def last_change(out: Path) -> int:
    """Return when the journal was last written to, 0 if there is none."""
    path = journal.journal_path(out)
    return path.stat().st_mtime_ns if path.exists() else 0


def without_command(store: Path) -> dict[str, Any]:
    """Return the hashes of a store's files; the group's attributes without the place in them."""
    hashes: dict[str, Any] = file_hashes(store)
    attributes = json.loads((store / "zarr.json").read_text())["attributes"]["handloom"]
    command = attributes.pop("command")
    hashes["zarr.json"] = attributes
    page = "labels/quality/report.html"
    hashes[page] = (store / page).read_text().replace(command, "")
    return hashes
