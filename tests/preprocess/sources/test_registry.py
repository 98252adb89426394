"""Readers and families of other packages, by module and by entry point."""

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from model import families
from model.families import Family, config_class, row_of
from pipeline.store.reader import open_store
from preprocess.builder.build import build
from preprocess.builder.verify import verify
from preprocess.config import BuildConfig, VerifyConfig
from preprocess.records import SourceError
from preprocess.sources.registry import check_dataset, open_source
from tests.preprocess.datasets import jpeg
from tests.preprocess.sources.folder.dataset import hand

PAGE = Path(__file__).parents[3] / "docs/your-data.md"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader of the page, where Python finds it."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    folder = tmp_path / "code"
    (folder / "glove").mkdir(parents=True)
    (folder / "glove/__init__.py").touch()
    (folder / "glove/reader.py").write_text(code)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "glove"]:
        del sys.modules[name]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    root, rng = tmp_path / "glove", np.random.default_rng(0)
    for name in ("images", "joints"):
        (root / name).mkdir(parents=True)
    with (root / "frames.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "take", "frame"))
        for i in range(6):
            (root / f"images/f{i}.jpg").write_bytes(jpeg(i))
            np.save(root / f"joints/f{i}.npy", hand(rng))
            table.writerow((f"f{i}", "test_1" if i > 3 else "wave", i))
    return root


@pytest.mark.usefixtures("package")
def test_the_reader_of_the_page_builds_a_store_that_verifies(
    recording: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"
    settings = BuildConfig(dataset="glove.reader", root=str(recording), out=str(out), workers=1)
    build(settings, console=Console(quiet=True))
    store = open_store(out)
    assert store.split_counts() == {"all": 6, "evaluation": 2, "train": 4}
    row = int(store.split("train")[2])
    expected = np.load(recording / "joints/f2.npy")
    np.testing.assert_allclose(store.label("joints_3d")[row, 0], expected, rtol=1e-6)
    report = verify(VerifyConfig(store=str(out), root=str(recording)), console=Console(quiet=True))
    assert not report.problems


def declare(folder: Path, group: str, line: str) -> None:
    """Declare an entry point as an installed package does."""
    info = folder / "glove-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: glove\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{line}\n")


def test_an_installed_package_gives_its_reader_a_name(package: Path, recording: Path) -> None:
    reader = package / "glove/reader.py"
    reader.write_text(reader.read_text().replace('"glove.reader"', '"glove"'))
    with pytest.raises(SourceError, match=r"dataset='glove' is unknown"):
        check_dataset("glove")
    declare(package, "handloom.datasets", "glove = glove.reader")
    check_dataset("glove")
    assert len(open_source("glove", recording, None).rows) == 6


@pytest.mark.usefixtures("package")
def test_what_is_no_reader_is_one_sentence(recording: Path) -> None:
    for name, message in (
        ("glove.nothing", r"cannot import glove\.nothing"),
        ("json.decoder", r"json\.decoder has no open_source"),
        ("glove", "is unknown"),
        ("glove.reader;x", "is unknown"),
        ("../glove", "is unknown"),
    ):
        with pytest.raises(SourceError, match=message):
            open_source(name, recording, None)


def test_another_name_than_that_of_the_store_is_refused(package: Path, recording: Path) -> None:
    reader = package / "glove/reader.py"
    reader.write_text(reader.read_text().replace('"glove.reader"', '"gloves"'))
    with pytest.raises(SourceError, match=r"dataset='glove\.reader', by which .* got 'gloves'"):
        open_source("glove.reader", recording, None)


def test_an_installed_package_adds_a_family(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "glove/family.py").write_text(
        "from model.families import Family\n"
        "ROW = Family(config='tests.train.toy.config:ToyConfig',\n"
        "             network='tests.train.toy.net:ToyNet',\n"
        "             losses='tests.train.toy.losses:GROUPS')\n"
    )
    declare(package, "handloom.families", "toy = glove.family:ROW")
    families._installed.cache_clear()
    try:
        row = row_of("toy")
        assert isinstance(row, Family)
        assert config_class("toy").__name__ == "ToyConfig"
        assert "toy" in families.config_classes()
        with pytest.raises(ValueError, match=r"model='toys' .* there are regressor, toy"):
            row_of("toys")
    finally:
        families._installed.cache_clear()
