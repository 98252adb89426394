import os
import subprocess
from pathlib import Path

import pytest

from pipeline.app import machine
from pipeline.app.machine import (
    Commit,
    HostMemory,
    git_state,
    read_host_memory,
    usable_cores,
    version_of,
)


def test_quotas_of_the_container_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert usable_cores() == 64
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 64
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert usable_cores() == 2.5


def test_the_limit_of_the_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    free = read_host_memory()
    assert 0 < free.left == free.available < free.total
    (tmp_path / "memory.max").write_text("max\n")
    assert read_host_memory().limit is None
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("3000\n")
    memory = read_host_memory()
    assert (memory.limit, memory.used, memory.left) == (4000, 3000, 1000)
    assert memory.total == free.total
    assert HostMemory(total=9, available=5, limit=8, used=1).left == 5


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"rev-parse": "abc\n", "status": ""}

    def run(call: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(call, 0, stdout=answers[call[3]])

    monkeypatch.setattr(subprocess, "run", run)
    assert git_state.__wrapped__() == Commit(sha="abc", dirty=False)
    answers["status"] = "?? new.py\n"
    assert git_state.__wrapped__() == Commit(sha="abc", dirty=True)


@pytest.mark.parametrize(
    "error", [subprocess.CalledProcessError(128, "git"), subprocess.TimeoutExpired("git", 10)]
)
def test_outside_of_a_checkout_the_commit_is_unknown(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert git_state.__wrapped__() == Commit(sha=None, dirty=None)


def test_the_version_of_a_package_is_found() -> None:
    assert version_of("pytest") == pytest.__version__
    assert version_of("no-such-package") is None
