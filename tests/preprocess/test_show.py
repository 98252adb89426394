"""The contact sheet: labels lie where the image shows them, and the text says what it must."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.console import Console

from pipeline.store.errors import StoreError
from pipeline.store.reader import open_store
from preprocess.build import build
from preprocess.config import BuildConfig, OnBadImage, ShowConfig
from preprocess.show import choose_rows, draw_row, main, show
from tests.preprocess.datasets import FreihandTruth, write_freihand, write_mano

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def without_mano_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)


def make_store(truth: FreihandTruth, mano: Path | None = None) -> Path:
    config = BuildConfig(
        dataset="freihand",
        root=str(truth.root),
        out=str(truth.root.parent / "store.zarr"),
        mano=None if mano is None else str(mano),
        workers=1,
        on_bad_image=OnBadImage.flag,
    )
    return build(config, console=QUIET).path


def black_images(truth: FreihandTruth) -> None:
    for file in truth.root.glob("*/rgb/*.jpg"):
        cv2.imwrite(str(file), np.zeros((48, 64, 3), np.uint8))


def test_the_sheet_is_written_and_described(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(write_freihand(tmp_path))
    out = tmp_path / "new folder" / "sheet.png"
    assert main(ShowConfig(store=str(store), out=str(out), num=6, tile_px=128)) == 0
    sheet = cv2.imread(str(out))
    assert sheet is not None
    assert sheet.shape == (2 * (128 + 34), 3 * 128, 3)
    text = capsys.readouterr().out
    for word in (
        "freihand, 14 rows",
        "train 12",
        "no_mano 14",
        "joint set: freihand",
        "research only, non-commercial",
        "ICCV 2019",
        str(out),
    ):
        assert word in text


@pytest.mark.parametrize("tile_px", [64, 100, 640])
def test_joints_are_drawn_where_they_project(tmp_path: Path, tile_px: int) -> None:
    truth = write_freihand(tmp_path)
    black_images(truth)
    store = open_store(make_store(truth))
    row = 1  # version auto of pose 1
    pose = 1
    picture = draw_row(store, row, tile_px)[:tile_px].max(-1)
    scale = tile_px / 64
    assert not picture[: int(48 * scale)].min()  # black where nothing is drawn
    for x, y, z in truth.xyz[pose]:
        u, v, w = truth.K[pose] @ [x, y, z]
        column, line = (round((c / w + 0.5) * scale - 0.5) for c in (u, v))
        if 0 <= column < tile_px and 0 <= line < tile_px:
            assert picture[line, column] > 60


def test_vertices_are_drawn_only_with_the_mano_of_the_store(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path, mano=write_mano(tmp_path / "mano")["right"])
    write_mano(tmp_path / "other", seed=1)
    black_images(truth)
    store = make_store(truth, tmp_path / "mano")
    lit = {}
    for name in ("mano", "other", None):
        config = ShowConfig(
            store=str(store),
            out=str(tmp_path / f"{name}.png"),
            rows=[0],
            mano=None if name is None else str(tmp_path / name),
        )
        sheet = cv2.imread(str(show(config)), cv2.IMREAD_GRAYSCALE)
        assert sheet is not None
        lit[name] = int(np.count_nonzero(sheet[:240] > 250))
    assert lit["mano"] > lit["other"] + 100
    assert lit["other"] == lit[None]


def test_a_row_without_image_says_so(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path)
    (truth.root / "training" / "rgb" / "00000000.jpg").write_bytes(b"")
    store = open_store(make_store(truth))
    row = int(np.flatnonzero(store.label("official_idx") == 0)[0])
    whole, missing = draw_row(store, row + 1, 128), draw_row(store, row, 128)
    assert whole.shape == missing.shape == (128 + 34, 128, 3)
    assert (missing[:30, :, 0] == 48).mean() > 0.5  # grey, no picture


def test_rows_are_chosen_by_hand_or_by_seed(tmp_path: Path) -> None:
    path = make_store(write_freihand(tmp_path))
    store = open_store(path)

    def rows(**options: object) -> list[int]:
        return choose_rows(ShowConfig(store=str(path), **options), store)  # type: ignore[arg-type]

    assert rows(rows=[5, 0, 5]) == [5, 0, 5]
    assert rows(num=4, seed=1) == rows(num=4, seed=1)
    assert rows(num=4, seed=1) != rows(num=4, seed=2)
    assert rows(num=99) == list(range(14))
    assert set(rows(num=99, split="evaluation")) == set(store.split("evaluation").tolist())
    with pytest.raises(ValueError, match=r"rows must lie in 0..13, got \[14, -1\]"):
        rows(rows=[3, 14, -1])
    with pytest.raises(StoreError, match=r"has no split 'test'"):
        rows(split="test")


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    path = make_store(write_freihand(tmp_path, num_unique=1))
    with pytest.raises(ValueError, match=r"split='val10' of store .* is empty"):
        show(ShowConfig(store=str(path), split="val10"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "sheet.pdf"}, "out must end in .png or .jpg, got 'sheet.pdf'"),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"tile_px": 10}, "tile_px must be at least 64, got 10"),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShowConfig(**options)  # type: ignore[arg-type]


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    path = make_store(write_freihand(tmp_path))
    (tmp_path / "sheet.png").mkdir()
    with pytest.raises(OSError, match=r"cannot write the contact sheet"):
        show(ShowConfig(store=str(path), out=str(tmp_path / "sheet.png"), num=1))
