"""The file that marks a dataset as synthetic; readers of the official files do not see it."""

import json
from pathlib import Path
from typing import Final

MARK_FILE: Final = "synthetic.json"
"""Lies in the root of the dataset."""


def mark_synthetic(root: Path, dataset: str) -> None:
    """Write the mark into the root of a synthetic dataset."""
    content = {"synthetic": True, "format": dataset, "rendered_by": "handloom make-sample"}
    (root / MARK_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def is_marked(root: Path) -> bool:
    """Return whether a dataset is marked as synthetic."""
    return (root / MARK_FILE).is_file()
