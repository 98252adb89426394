"""What made a run: configuration, versions, hardware, code, data."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "nvidia-dali-cuda120", "timm", "smplx", "zarr", "numpy")


def manifest(config: dict[str, Any], store_sha256: str, mano_sha256: str) -> dict[str, Any]:
    """Return everything needed to make the run again."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "config": config,
        "store_sha256": store_sha256,
        "mano_sha256": mano_sha256,
        "git": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
    }


def git_state(folder: Path) -> str | None:
    """Return the commit of the code with ``-dirty`` where it was changed; None outside git."""
    call = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
