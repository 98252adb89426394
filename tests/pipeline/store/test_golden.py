"""Stores of every format version that is read, as they were written when it was fixed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.store.content import content_sha256
from pipeline.store.errors import StoreVersionError
from pipeline.store.objects import read_object
from pipeline.store.reader import open_store
from pipeline.store.schema import FORMAT_VERSION

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = sorted(int(path.name.removeprefix("format_")) for path in GOLDEN.iterdir())


def facts_of(version: int) -> dict[str, Any]:
    found = json.loads((GOLDEN / f"format_{version}" / "facts.json").read_text())
    assert isinstance(found, dict)
    return found


def test_the_present_format_has_its_golden_store() -> None:
    assert FORMAT_VERSION in VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_a_golden_store_holds_what_it_held(version: int) -> None:
    facts = facts_of(version)
    store = open_store(GOLDEN / f"format_{version}" / "store.zarr")
    assert store.attributes.content_sha256 == facts["content_sha256"]
    assert store.num_rows == facts["num_rows"]
    ok = np.flatnonzero(store.label("sample_ok"))
    assert [len(store.jpeg(int(row))) for row in ok] == facts["jpeg_bytes"]
    for name, rows in facts["labels"].items():
        for row, expected in rows.items():
            found = np.asarray(store.label(name)[int(row)], np.float64)
            np.testing.assert_allclose(found, np.array(expected, float), atol=1e-6, err_msg=name)
    store.close()
    box = read_object(GOLDEN / f"format_{version}" / "store.zarr", "box")
    assert sorted(np.unique(box.part_id)) == [0, 1]


@pytest.mark.parametrize("version", VERSIONS)
def test_its_content_has_its_hash(version: int) -> None:
    store = open_store(GOLDEN / f"format_{version}" / "store.zarr")
    assert content_sha256(store) == facts_of(version)["content_sha256"]
    store.close()


def test_a_store_of_format_0_says_how_to_rebuild_it(tmp_path: Path) -> None:
    path = tmp_path / "old.zarr"
    shutil.copytree(GOLDEN / f"format_{FORMAT_VERSION}" / "store.zarr", path)
    meta = json.loads((path / "zarr.json").read_text())
    meta["attributes"]["handloom"]["format"] = 0
    (path / "zarr.json").write_text(json.dumps(meta))
    with pytest.raises(
        StoreVersionError,
        match=r"has format version 0, this code reads 1; rebuild it with: python -m preprocess",
    ):
        open_store(path)
