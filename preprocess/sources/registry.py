"""Registry of the supported datasets, and of readers in other packages.

A reader is a function ``open_source(root, mano) -> DatasetSource``. One of another package is named
by its module, ``dataset=my_package.my_dataset``, or by a name of its own where the package declares
it as an entry point of the group ``handloom.datasets``, ``my_name = "my_package.my_dataset"``.
"""

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.app.words import nearest
from pipeline.store.schema import SYNTHETIC_FILE
from preprocess.records import DatasetSource, SourceError
from preprocess.sources.annotations import refuse_paths_outside

if TYPE_CHECKING:
    from model.mano.files import ManoModels

DATASETS: Final = ("freihand", "interhand26m", "dexycb", "ho3d", "arctic", "folder")
"""Dataset names. Each is a subpackage whose ``source`` module has ``open_source(root, mano)``."""
GROUP: Final = "handloom.datasets"
_MODULE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def check_dataset(name: str) -> None:
    """Check that a dataset name is known.

    Raises:
        SourceError: If it is unknown; suggests the nearest spelling or lists the choices.
    """
    if name in DATASETS or _MODULE.fullmatch(name):
        return
    known = [*DATASETS, *_installed()]
    if name not in known:
        raise SourceError(
            f"dataset={name!r} is unknown; {nearest(name, known)} (or dataset=PACKAGE.MODULE for a "
            "reader of your own)"
        )


def _installed() -> dict[str, str]:
    """Return the modules of readers that installed packages declare, by name."""
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def _module_of(dataset: str) -> str:
    if dataset in DATASETS:
        return f"preprocess.sources.{dataset}.source"
    return dataset if _MODULE.fullmatch(dataset) else _installed()[dataset]


def _reader(dataset: str) -> Callable[[Path, "ManoModels | None"], Any]:
    """Return the function that opens a dataset.

    Raises:
        SourceError: If its module cannot be imported or has none.
    """
    name = _module_of(dataset)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SourceError(
            f"dataset={dataset!r}: cannot import {name} ({error}); install the package, or run "
            "where it can be found (PYTHONPATH)"
        ) from error
    if not hasattr(module, "open_source"):
        raise SourceError(
            f"dataset={dataset!r}: {name} has no open_source(root, mano); see docs/your-data.md"
        )
    found: Callable[[Path, ManoModels | None], Any] = module.open_source
    return found


def open_source(dataset: str, root: Path, mano: "ManoModels | None") -> DatasetSource:
    """Open a dataset by name.

    Raises:
        SourceError: If the dataset is unknown, ``root`` does not hold it, or its annotations name
            images elsewhere.
    """
    check_dataset(dataset)
    source = _reader(dataset)(root, mano)
    if not isinstance(source, DatasetSource) or source.dataset != dataset:
        found = source.dataset if isinstance(source, DatasetSource) else type(source).__name__
        raise SourceError(
            f"dataset={dataset!r}: open_source must return a DatasetSource with dataset="
            f"{dataset!r}, by which the store is verified; got {found!r}"
        )
    refuse_paths_outside(dataset, root, source.rows.image)
    return _as_synthetic(source) if (root / SYNTHETIC_FILE).is_file() else source


def _as_synthetic(source: DatasetSource) -> DatasetSource:
    """Drop what holds for the real dataset only: licence, citation, official counts."""
    return replace(
        source,
        synthetic=True,
        licence=f"synthetic, rendered by make-sample: not {source.dataset}, nor under its licence",
        citation="none: synthetic",
        official_counts={},
    )
