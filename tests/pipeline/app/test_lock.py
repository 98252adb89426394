"""The lock on a folder: one holder, named; a dead one's is taken over, with and without flock."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from pipeline.app.lock import FolderInUseError, Holder, locked

HOLD = """
import sys, time
from pathlib import Path
from pipeline.app.lock import locked
with locked(Path(sys.argv[1]), "", instead=""):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run" / "lock"


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def other(file: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that holds the lock."""
    words = [sys.executable, "-c", HOLD, str(file)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def acquire(file: Path) -> list[str]:
    said: list[str] = []
    with locked(file, "another run trains in R", instead="choose another run_dir", say=said.append):
        assert Holder.named_in(file.read_bytes()) is not None
    return said


def refusal(file: Path) -> str:
    with pytest.raises(FolderInUseError) as caught:
        acquire(file)
    return str(caught.value)


def test_a_lock_leaves_nothing_behind(file: Path, tmp_path: Path) -> None:
    assert acquire(file) == []
    assert list(tmp_path.iterdir()) == []
    file.parent.mkdir()
    acquire(file)
    assert list(tmp_path.iterdir()) == [file.parent]  # it was there before


def test_what_was_written_meanwhile_stays(file: Path) -> None:
    with locked(file, "", instead=""):
        (file.parent / "log").touch()
    assert list(file.parent.iterdir()) == [file.parent / "log"]


def test_a_living_holder_is_named(file: Path, other: subprocess.Popen[str]) -> None:
    message = refusal(file)
    assert message.startswith(f"another run trains in R (process {other.pid} on ")
    assert message.endswith("); wait for it, stop it, or choose another run_dir")
    assert file.exists()


@pytest.mark.usefixtures("without_flock")
def test_it_is_named_without_flock_too(file: Path, other: subprocess.Popen[str]) -> None:
    assert f"(process {other.pid} on " in refusal(file)


def killed(file: Path, other: subprocess.Popen[str]) -> list[str]:
    other.kill()
    other.wait()
    return acquire(file)


def test_the_lock_of_a_killed_process_is_taken_over(
    file: Path, other: subprocess.Popen[str]
) -> None:
    (line,) = killed(file, other)
    assert line.startswith(f"{file.parent}: taken over from process {other.pid} on ")
    assert acquire(file) == []


@pytest.mark.usefixtures("without_flock")
def test_it_is_taken_over_without_flock_too(file: Path, other: subprocess.Popen[str]) -> None:
    (line,) = killed(file, other)
    assert f"process {other.pid}" in line


@pytest.mark.usefixtures("without_flock")
def test_a_number_given_out_again_is_another_process(file: Path) -> None:
    file.parent.mkdir()
    this = Holder.this()
    file.write_text(json.dumps(asdict(replace(this, ticks=this.ticks - 1))))
    assert len(acquire(file)) == 1


@pytest.mark.usefixtures("without_flock")
def test_a_holder_on_another_host_without_flock_must_be_judged_by_the_user(file: Path) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps(asdict(replace(Holder.this(), host="elsewhere"))))
    assert f"or remove {file} if it ended" in refusal(file)


@pytest.mark.parametrize("text", ["", "no JSON", "[" * 5000, '{"pid": 1}', '{"pid": "x"}'])
def test_a_damaged_lock_file_is_nobody(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    assert acquire(file) == []
