"""Paths and numbers in annotations that no official file holds."""

import json
from pathlib import Path
from typing import Any

import pytest

from preprocess.records import SourceError
from preprocess.sources.annotations import read_json, read_number_rows, refuse_paths_outside
from preprocess.sources.registry import open_source
from tests.preprocess.datasets import interhand_file, write_interhand


@pytest.mark.parametrize(
    "path",
    ["../a.jpg", "b/../../a.jpg", "b/..", "/a.jpg", "b//etc/a.jpg", "", "b/", "a\0.jpg",
     "\ud800.jpg", "\xe9/../a.jpg"],
    ids=ascii,
)  # fmt: skip
def test_a_path_that_leaves_the_root_is_refused(path: str) -> None:
    with pytest.raises(SourceError, match=r"toy: the annotations name 1 of 2 images by a path"):
        refuse_paths_outside("toy", Path("data"), ["a.jpg", path])


def test_odd_names_below_the_root_are_fine() -> None:
    refuse_paths_outside(
        "toy", Path("data"), ["a..b/c..jpg", "./a.jpg", "\xe9/\udc80 .jpg", "...jpg"]
    )


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/hostname", "{root}/outside.jpg"])
def test_interhand_does_not_read_outside_its_root(tmp_path: Path, name: str) -> None:
    write_interhand(tmp_path / "root", splits=("train",))
    (tmp_path / "outside.jpg").write_bytes(b"secret")
    path = interhand_file(tmp_path / "root", "train", "data")
    table = json.loads(path.read_text())
    table["images"][3]["file_name"] = name.format(root=tmp_path)
    path.write_text(json.dumps(table))
    with pytest.raises(SourceError) as error:
        open_source("interhand26m", tmp_path / "root", None)
    for word in ("interhand26m: ", "1 of 12 images", "(first: 'images/train/", "without '..'"):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_links_of_the_user_may_lead_anywhere(tmp_path: Path) -> None:
    write_interhand(tmp_path / "disk", splits=("train",))
    images = tmp_path / "disk" / "images" / "train"
    images.rename(tmp_path / "elsewhere")
    images.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root").symlink_to(tmp_path / "disk")
    source = open_source("interhand26m", tmp_path / "root", None)
    assert all((source.root / name).is_file() for name in source.rows.image)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]"], ids=["deep", "long"])
def test_json_that_python_gives_up_on_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)

    def read_rows(dataset: str, path: Path) -> Any:
        return read_number_rows(dataset, path, (3,))

    for read in (read_json, read_rows):
        with pytest.raises(SourceError, match=r"toy: .*a.json is not valid JSON") as error:
            read("toy", path)
        assert len(str(error.value)) < 400
