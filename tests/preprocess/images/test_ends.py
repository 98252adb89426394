"""Cut files are found by their ends, whole ones are never refused."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from preprocess.images import ends
from preprocess.images.ends import check_ends, refuse_cut_images
from preprocess.images.images import ImageWork
from preprocess.records import SourceError
from tests.preprocess.datasets import jpeg

PASSTHROUGH = ImageWork(recode=False, baseline=False)
RECODE = ImageWork(recode=True, baseline=False)
PNG = cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes()


def write(root: Path, files: dict[str, bytes]) -> list[str]:
    for name, data in files.items():
        (root / name).write_bytes(data)
    return list(files)


def test_cut_files_are_found_and_whole_ones_are_not(tmp_path: Path) -> None:
    files = {
        "a.jpg": jpeg(1),
        "b.jpg": jpeg(1)[:-1],
        "c.jpg": jpeg(1) + bytes(100),  # padding behind the end
        "d.jpg": bytes(4096),
        "e.jpg": jpeg(1)[:-500] + bytes(500),
        "f.jpg": b"\xff",
    }
    names = [*write(tmp_path, files), "gone.jpg"]
    for work in (PASSTHROUGH, RECODE):
        found = check_ends(tmp_path, names, work, budget_s=60)
        assert found.num_checked == 7
        assert [name for name, _ in found.bad] == ["b.jpg", "d.jpg", "e.jpg", "f.jpg", "gone.jpg"]
        assert "no end-of-image marker" in found.bad[0][1]


def test_pngs_are_judged_as_the_build_does(tmp_path: Path) -> None:
    names = write(tmp_path, {"a.png": PNG, "b.png": PNG[:-3], "c.png": PNG + b"end"})
    found = check_ends(tmp_path, names, RECODE, budget_s=60)
    assert [name for name, _ in found.bad] == ["b.png"]
    found = check_ends(tmp_path, names, PASSTHROUGH, budget_s=60)
    assert [name for name, _ in found.bad] == names


def test_a_slow_disk_costs_no_more_than_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = write(tmp_path, {f"{i}.jpg": jpeg(1) for i in range(3)})
    monkeypatch.setattr(ends, "BUDGET_S", -1.0)
    refuse_cut_images("toy", tmp_path, names, PASSTHROUGH, Console(width=200))
    assert "looked at the ends of 0 of 3 images" in capsys.readouterr().out


def test_the_sentence_counts_names_and_offers_a_way_on(tmp_path: Path) -> None:
    names = write(tmp_path, {"a.jpg": jpeg(1), "b.jpg": jpeg(1)[:-9], "c.jpg": jpeg(2)[:-9]})
    with pytest.raises(SourceError) as error:
        refuse_cut_images("toy", tmp_path, names, PASSTHROUGH, Console(quiet=True))
    sentence = str(error.value)
    assert sentence.startswith(f"toy: 2 of 3 images are damaged (first: {tmp_path}/b.jpg is cut")
    assert "on_bad_image=flag" in sentence
    assert "\n" not in sentence
