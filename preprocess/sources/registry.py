"""Registry of the supported datasets."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.app.words import nearest
from pipeline.store.schema import SYNTHETIC_FILE
from preprocess.records import DatasetSource, SourceError
from preprocess.sources.annotations import refuse_paths_outside

if TYPE_CHECKING:
    from model.mano.files import ManoModels

DATASETS: Final = ("freihand", "interhand26m", "dexycb", "ho3d", "arctic", "folder")
"""Dataset names. Each is a subpackage whose ``source`` module has ``open_source(root, mano)``."""


def check_dataset(name: str) -> None:
    """Check that a dataset name is known.

    Raises:
        SourceError: If it is unknown; suggests the nearest spelling or lists the choices.
    """
    if name not in DATASETS:
        raise SourceError(f"dataset={name!r} is unknown; {nearest(name, DATASETS)}")


def open_source(dataset: str, root: Path, mano: "ManoModels | None") -> DatasetSource:
    """Open a dataset by name.

    Raises:
        SourceError: If the dataset is unknown, ``root`` does not hold it, or its annotations name
            images elsewhere.
    """
    check_dataset(dataset)
    module = importlib.import_module(f"preprocess.sources.{dataset}.source")
    source = module.open_source(root, mano)
    assert isinstance(source, DatasetSource)
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
