"""Provenance of a run: configuration, versions, hardware, code, data."""

import platform
import sys
from datetime import UTC, datetime
from typing import Any

import torch

from pipeline.app.machine import git_state, version_of

_PACKAGES = ("torch", "triton", "nvidia-dali-cuda120", "timm", "smplx", "zarr", "numpy")


def manifest(config: dict[str, Any], store_sha256: str, mano_sha256: str) -> dict[str, Any]:
    """Return everything needed to reproduce the run."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "config": config,
        "store_sha256": store_sha256,
        "mano_sha256": mano_sha256,
        "git": _code(),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
    }


def _code() -> str | None:
    """Return the commit of the code, with ``-dirty`` if modified; None outside git."""
    commit = git_state()
    return commit.sha and commit.sha[:12] + ("-dirty" if commit.dirty else "")
