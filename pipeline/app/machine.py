"""Environment of this process: memory, cores, the commit of the code, installed packages."""

import functools
import os
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

CGROUP: Final = Path("/sys/fs/cgroup")
"""Folder of the container's (cgroup) limits."""
_GIT_LIMIT_S: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class HostMemory:
    """Host memory, bytes."""

    total: int
    """Total memory of the machine."""
    available: int
    limit: int | None = None
    """Memory limit of this container; None without a limit."""
    used: int = 0
    """Used part of ``limit``."""

    @property
    def left(self) -> int:
        """Memory that this process can still allocate."""
        if self.limit is None:
            return self.available
        return min(self.available, self.limit - self.used)


def read_host_memory() -> HostMemory:
    """Return the memory of the machine and the limit of its container."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":") for line in lines)
    total, available = (int(fields[k].split()[0]) * 1024 for k in ("MemTotal", "MemAvailable"))
    limit = _first_number("memory.max")
    if limit is None:
        return HostMemory(total=total, available=available)
    used = int((CGROUP / "memory.current").read_text(encoding="utf-8"))
    return HostMemory(total=total, available=available, limit=limit, used=used)


def usable_cores() -> float:
    """Return the cores that this process may use: its affinity and its container's quota."""
    number = float(len(os.sched_getaffinity(0)))
    quota = _first_number("cpu.max")
    if quota is None:
        return number
    period = float((CGROUP / "cpu.max").read_text(encoding="utf-8").split()[1])
    return min(number, quota / period)


def _first_number(name: str) -> int | None:
    """Return the first number of a cgroup file; None where there is no limit."""
    try:
        first = (CGROUP / name).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError):
        return None
    return None if first == "max" else int(first)


@dataclass(frozen=True, kw_only=True, slots=True)
class Commit:
    """Git state of the code; None outside of a checkout."""

    sha: str | None
    dirty: bool | None
    """Whether there are modified or untracked files."""


@functools.cache
def git_state() -> Commit:
    """Return the commit of the checkout that this code runs from."""
    sha, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain")
    return Commit(sha=sha, dirty=None if status is None else bool(status))


def _git(*words: str) -> str | None:
    call = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        done = subprocess.run(
            call, capture_output=True, text=True, check=True, timeout=_GIT_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
