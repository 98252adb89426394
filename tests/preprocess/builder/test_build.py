"""Raw dataset to store: truth survives, bad input stops with one sentence, builds repeat."""

import dataclasses
import hashlib
import json
import os
import shlex
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import numpy as np
import pytest
import zarr
from rich.console import Console

from model.hand import LEFT, RIGHT
from model.mano.files import load_mano
from pipeline.store.errors import StoreError
from pipeline.store.reader import Store, open_store
from pipeline.store.schema import FLAGS, LABELS, SYNTHETIC_FILE
from preprocess import make_sample
from preprocess.builder.build import build, main
from preprocess.builder.plan import StorePlan, make_plan
from preprocess.builder.report.page import PAGE_FILE
from preprocess.builder.report.text import bad_images_line, report_text
from preprocess.builder.tasks import build_command
from preprocess.config import BuildConfig, OnBadImage, SampleConfig
from preprocess.records import DatasetSource, SourceError
from preprocess.sample.generate import write_sample
from preprocess.show.show import describe
from preprocess.sources.registry import open_source
from tests.preprocess.builder.fatal import Fatal
from tests.preprocess.datasets import (
    FreihandTruth,
    decode,
    jpeg,
    write_freihand,
    write_interhand,
    write_mano,
)

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def without_mano_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)


@pytest.fixture
def truth(tmp_path: Path) -> FreihandTruth:
    return write_freihand(tmp_path)


@pytest.fixture(scope="module")
def interhand_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "interhand"
    write_sample("interhand26m", out, 6, 0, num_eval=1, workers=1)
    return out


def config(truth: FreihandTruth, **changes: object) -> BuildConfig:
    out = truth.root.parent / "store.zarr"
    base = BuildConfig(dataset="freihand", root=str(truth.root), out=str(out), workers=1)
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def image_of(truth: FreihandTruth, official_idx: int) -> Path:
    split, number = (
        ("training", official_idx) if official_idx < 12 else ("evaluation", official_idx - 12)
    )
    return truth.root / split / "rgb" / f"{number:08d}.jpg"


def file_hashes(store: Path) -> dict[str, str]:
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def by_official(store: Store) -> np.ndarray:
    """Return the row of each official index."""
    return np.argsort(store.label("official_idx"))


# --- truth ----------------------------------------------------------------------------------------


def test_freihand_survives_with_mano(tmp_path: Path) -> None:
    arrays = write_mano(tmp_path / "mano")["right"]
    truth = write_freihand(tmp_path, mano=arrays)
    report = build(config(truth, mano=str(tmp_path / "mano"), shard_rows=4), console=QUIET)
    store = open_store(report.path)
    assert store.attributes.joint_set == "freihand"
    assert store.attributes.mano_sha256 == load_mano(tmp_path / "mano").sha256
    assert store.attributes.found_counts == {
        "train": 12, "train_gs": 3, "train90": 8, "val10": 4, "evaluation": 2,
    }  # fmt: skip
    rows = by_official(store)
    for official_idx, row in enumerate(rows.tolist()):
        pose = official_idx % 3 if official_idx < 12 else 3 + official_idx - 12
        assert store.jpeg_checked(row).tobytes() == truth.images[official_idx]
        assert store.image_index.crc32c[row] == google_crc32c.value(truth.images[official_idx])
        assert store.image_index.size_hw[row].tolist() == [48, 64]
        joints = store.label("joints_3d")[row]
        assert joints[RIGHT].tolist() == truth.xyz[pose].astype(np.float32).tolist()
        assert np.isnan(joints[LEFT]).all()
        # uv = K xyz / z, from the JSON in float64, against the stored float32
        K = store.label("K")[row].astype(np.float64)
        box = store.label("bbox_xyxy")[row, RIGHT]
        pixels = []
        for stored, (x, y, z) in zip(
            joints[RIGHT].astype(np.float64), truth.xyz[pose], strict=True
        ):
            expected = truth.K[pose] @ [x, y, z] / z
            np.testing.assert_allclose((K @ stored / stored[2])[:2], expected[:2], atol=1e-3)
            pixels.append(expected[:2])
        np.testing.assert_allclose(box[:2], np.min(pixels, 0), atol=1e-3)
        np.testing.assert_allclose(box[2:], np.max(pixels, 0), atol=1e-3)
        theta, beta, transl = (
            store.label(name)[row, RIGHT].astype(np.float64) for name in ("theta", "beta", "transl")
        )
        decoded = decode(arrays, theta, beta) + transl
        assert np.linalg.norm(decoded - truth.verts[pose], axis=1).max() < 1e-5
    assert store.label("has_joints").tolist() == [[True, False]] * 14
    assert store.label("has_mano").tolist() == [[True, False]] * 14
    assert store.label("has_beta").tolist() == [[True, False]] * 14
    assert not store.label("has_world").any()
    assert not store.label("quality").any()
    assert store.label("sample_ok").all()
    np.testing.assert_array_equal(
        store.label("A_stored_from_raw"), np.tile(np.eye(2, 3), (14, 1, 1))
    )
    assert report.max_residual_m < 1e-9


def test_splits_name_the_right_rows(truth: FreihandTruth) -> None:
    store = open_store(build(config(truth), console=QUIET).path)
    official = store.label("official_idx")
    assert official[store.split("train")].tolist() == list(range(12))
    assert official[store.split("val10")].tolist() == [2, 5, 8, 11]
    assert official[store.split("evaluation")].tolist() == [12, 13]
    sequence = np.array(store.attributes.tables["sequence"])[store.label("sequence_idx")]
    assert sequence.tolist() == sorted(sequence.tolist())
    assert set(sequence[store.split("train_gs")]) == {"gs"}


def test_interhand_survives(tmp_path: Path) -> None:
    sides = write_mano(tmp_path / "mano")
    write_interhand(tmp_path / "raw", mano=sides)
    report = build(
        BuildConfig(
            dataset="interhand26m",
            root=str(tmp_path / "raw"),
            out=str(tmp_path / "out.zarr"),
            mano=str(tmp_path / "mano"),
            workers=1,
            shard_rows=10,
        ),
        console=QUIET,
    )
    store = open_store(report.path)
    assert store.num_rows == 36
    assert store.label("has_world").all()
    assert store.label("has_mano").tolist() == store.label("has_joints").tolist()
    assert store.label("has_mano").sum(0).tolist() == [24, 24]
    np.testing.assert_array_equal(store.label("beta"), store.label("beta_raw"))
    assert report.attributes.flag_counts["no_mano"] == 0
    assert len(store.split("test_interacting")) == 4


def test_the_rendered_sample_builds(tmp_path: Path) -> None:
    """The synthetic dataset, written by separate code, decodes to its own vertices."""
    write_sample("freihand", tmp_path / "raw", 1, 0, num_eval=1, workers=1)
    report = build(
        BuildConfig(
            dataset="freihand",
            root=str(tmp_path / "raw"),
            out=str(tmp_path / "out.zarr"),
            mano=str(tmp_path / "raw" / "mano"),
            workers=1,
        ),
        console=QUIET,
    )
    assert report.attributes.num_rows == 5
    assert report.max_residual_m < 1e-6
    assert not any(report.attributes.flag_counts.values())
    assert "warning" not in report_text(report)


@pytest.mark.parametrize("mano", ["mano", "mano_shipped"])
def test_both_hands_of_the_rendered_sample_decode_to_their_joints(
    interhand_sample: Path, tmp_path: Path, mano: str
) -> None:
    """Also with the left model as published: the fix is part of the build."""
    config = BuildConfig(
        dataset="interhand26m",
        root=str(interhand_sample),
        out=str(tmp_path / "out.zarr"),
        mano=str(interhand_sample / mano),
        workers=1,
    )
    store = open_store(build(config, console=QUIET).path)
    models = load_mano(interhand_sample / "mano")
    assert models.interhand_regressor is not None
    # The file has its own joint order; the standard order is wrist, then base to tip.
    order = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
    regressor = models.interhand_regressor.astype(np.float64)[order]
    seen = set()
    for row, slot in np.argwhere(store.label("has_beta")).tolist():
        arrays = dataclasses.asdict(models.right if slot == RIGHT else models.left)
        theta, beta, transl = (
            store.label(name)[row, slot].astype(np.float64) for name in ("theta", "beta", "transl")
        )
        joints = regressor @ (decode(arrays, theta, beta) + transl)
        valid = store.label("joint_valid")[row, slot]
        assert np.abs(joints - store.label("joints_3d")[row, slot])[valid].max() < 1e-5
        seen.add(slot)
    assert seen == {RIGHT, LEFT}


def test_a_build_without_mano_says_so(truth: FreihandTruth) -> None:
    report = build(config(truth), console=QUIET)
    store = open_store(report.path)
    assert not store.label("has_mano").any()
    assert np.isnan(store.label("theta")).all()
    assert store.label("has_joints")[:, RIGHT].all()
    assert store.attributes.flag_counts["no_mano"] == 14
    assert store.attributes.mano_sha256 == ""
    assert "MANO: not used" in report_text(report)
    assert "HANDLOOM_MANO" in report_text(report)


def test_labels_of_another_hand_model_are_flagged(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path, mano=write_mano(tmp_path / "mano")["right"])
    write_mano(tmp_path / "other", seed=1)
    report = build(config(truth, mano=str(tmp_path / "other")), console=QUIET)
    store = open_store(report.path)
    assert report.attributes.flag_counts["mano_residual"] == 14
    assert report.max_residual_m > 0.01
    assert not store.label("has_beta").any()
    assert np.isnan(store.label("beta")).all()
    assert np.isfinite(store.label("beta_raw")[:, RIGHT]).all()


# --- repeatability --------------------------------------------------------------------------------


def test_builds_repeat_byte_for_byte(truth: FreihandTruth) -> None:
    first = build(config(truth, shard_rows=4), console=QUIET)
    hashes = file_hashes(first.path)
    again = build(config(truth, shard_rows=4, workers=2, overwrite=True), console=QUIET)
    assert file_hashes(again.path) == hashes
    assert again.attributes == first.attributes


def test_the_content_hash_is_of_the_content(truth: FreihandTruth) -> None:
    sharded = build(config(truth, shard_rows=5), console=QUIET)
    elsewhere = truth.root.parent / "one shard.zarr"
    whole = build(config(truth, out=str(elsewhere)), console=QUIET)
    assert whole.attributes.content_sha256 == sharded.attributes.content_sha256
    path = truth.root / "training_xyz.json"
    rows = json.loads(path.read_text())
    rows[1][7][0] += 1e-4
    path.write_text(json.dumps(rows))
    changed = build(config(truth, overwrite=True, out=str(elsewhere)), console=QUIET)
    assert changed.attributes.content_sha256 != whole.attributes.content_sha256
    assert changed.attributes.plan_sha256 == whole.attributes.plan_sha256


def test_other_zarr_readers_see_the_same(truth: FreihandTruth) -> None:
    store = open_store(build(config(truth, shard_rows=4), console=QUIET).path)
    group = zarr.open_group(store.path, mode="r")
    for spec in LABELS:
        array = np.asarray(group[f"labels/{spec.name}"])
        assert array.dtype == spec.dtype
        np.testing.assert_array_equal(array, store.label(spec.name))
    start, length = (int(np.asarray(group[f"image/{n}"])[9]) for n in ("offset", "length"))
    data = np.asarray(group["image/bytes"][start : start + length])  # type: ignore[index]
    assert data.tobytes() == store.jpeg(9).tobytes()


# --- bad images -----------------------------------------------------------------------------------

PNG = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
BAD_IMAGES = {
    "cut": (jpeg(1)[:-200], "image_truncated", "is cut off: no end-of-image marker"),
    "empty": (b"", "image_truncated", "is empty"),
    "png": (PNG, "image_not_jpeg", "is a PNG, which a store does not hold as it is"),
    "hole": (
        jpeg(1, 96, 96)[:1500] + bytes(200) + jpeg(1, 96, 96)[1700:],
        "image_damaged",
        "has a hole: nothing but zeros at byte 1500 and on",
    ),
    "closed": (
        jpeg(1, 96, 96)[:1500] + b"\xff\xd9",
        "image_truncated",
        "cannot be decoded (Corrupt JPEG data: premature end of data segment)",
    ),
    "gone": (None, "image_missing", "cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_stops_the_build(truth: FreihandTruth, kind: str) -> None:
    data, _, reason = BAD_IMAGES[kind]
    file = image_of(truth, 4)
    file.unlink() if data is None else file.write_bytes(data)
    with pytest.raises(SourceError) as error:
        build(config(truth), console=QUIET)
    sentence = str(error.value)
    assert "training/rgb/00000004.jpg" in sentence
    assert "on_bad_image=flag" in sentence
    if kind in ("gone", "empty"):
        assert "list 14 images" in sentence
        assert "holds 13 of them; 1 are missing or empty" in sentence
    else:
        assert reason in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_a_bad_image_keeps_its_row_when_flagged(truth: FreihandTruth, kind: str) -> None:
    data, flag, reason = BAD_IMAGES[kind]
    file = image_of(truth, 4)
    file.unlink() if data is None else file.write_bytes(data)
    report = build(config(truth, on_bad_image=OnBadImage.flag, shard_rows=4), console=QUIET)
    store = open_store(report.path)
    row = int(by_official(store)[4])
    assert store.num_rows == 14
    assert len(store.split("train")) == 12
    assert len(store.jpeg(row)) == 0
    assert store.label("sample_ok").tolist() == [r != row for r in range(14)]
    assert store.label("quality")[row] == FLAGS[flag] | FLAGS["no_mano"]
    assert store.label("has_joints")[row].tolist() == [True, False]
    assert store.image_index.size_hw[row].tolist() == [0, 0]
    assert report.attributes.flag_counts[flag] == 1
    assert report.first_rows[flag] == [row]
    line = bad_images_line(report)
    assert line.startswith("warning: 1 of 14 images are kept as rows without an image")
    assert f"training/rgb/00000004.jpg {reason}" in line
    assert line in report_text(report)


def test_a_pipe_or_a_folder_with_the_name_of_an_image_is_a_missing_image(
    truth: FreihandTruth,
) -> None:
    for number, make in ((4, os.mkfifo), (5, os.mkdir)):
        image_of(truth, number).unlink()
        make(image_of(truth, number))
    with pytest.raises(SourceError, match=r"holds 12 of them; 2 are missing or empty"):
        build(config(truth), console=QUIET)
    report = build(config(truth, on_bad_image=OnBadImage.flag), console=QUIET)
    assert report.attributes.flag_counts["image_missing"] == 2
    assert "00000004.jpg is no regular file; " in bad_images_line(report)
    names = "training/rgb/00000004.jpg, training/rgb/00000005.jpg/"
    assert report_text(report).endswith(
        f"2 of 14 files and folders were passed over for their names or kinds: {names}"
    )


def test_a_cut_image_ends_the_build_before_it_begins(truth: FreihandTruth) -> None:
    old = file_hashes(build(config(truth), console=QUIET).path)
    image_of(truth, 4).write_bytes(jpeg(1)[:-200])
    with pytest.raises(SourceError, match=r"1 of 14 images are damaged .*on_bad_image=flag"):
        build(config(truth, shard_rows=2, overwrite=True), console=QUIET)
    assert file_hashes(Path(config(truth).out)) == old


def test_a_black_image_is_flagged_and_kept(truth: FreihandTruth) -> None:
    black = cv2.imencode(".jpg", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    image_of(truth, 4).write_bytes(black)
    report = build(config(truth), console=QUIET)
    store = open_store(report.path)
    row = int(by_official(store)[4])
    assert store.label("quality")[row] == FLAGS["flat_image"] | FLAGS["no_mano"]
    assert store.label("sample_ok").all()
    assert store.jpeg(row).tobytes() == black
    assert report.attributes.flag_counts["flat_image"] == 1
    assert report.bad_images == []


def test_the_error_of_a_worker_process_arrives(truth: FreihandTruth) -> None:
    image_of(truth, 4).write_bytes(jpeg(1)[:-200])
    with pytest.raises(SourceError, match=r"00000004.jpg is cut off"):
        build(config(truth, shard_rows=4, workers=2), console=QUIET)


def test_a_killed_worker_is_one_sentence(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_fatal(*args: Any) -> DatasetSource:
        return dataclasses.replace(open_source(*args), root=Fatal())  # type: ignore[arg-type]

    def plan_elsewhere(source: DatasetSource, **how: Any) -> StorePlan:
        return make_plan(dataclasses.replace(source, root=truth.root), **how)

    monkeypatch.setattr("preprocess.builder.build.open_source", open_fatal)
    monkeypatch.setattr("preprocess.builder.tasks.make_plan", plan_elsewhere)
    # With on_bad_image=flag the process that plans opens no image.
    flagged = config(truth, shard_rows=4, workers=2, on_bad_image=OnBadImage.flag)
    with pytest.raises(StoreError, match=r"worker died .* workers=1: finished shards are kept"):
        build(flagged, console=QUIET)


def test_an_image_that_changes_meanwhile_is_an_error(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_then_change(source: DatasetSource, **how: Any) -> StorePlan:
        plan = make_plan(source, **how)
        image_of(truth, 0).write_bytes(jpeg(0, 8, 8))
        return plan

    monkeypatch.setattr("preprocess.builder.tasks.make_plan", plan_then_change)
    with pytest.raises(SourceError, match=r"changed while the store was built: planned \d+ bytes"):
        build(config(truth), console=QUIET)


# --- where the store goes -------------------------------------------------------------------------


def test_a_finished_store_is_replaced_only_on_request(truth: FreihandTruth) -> None:
    build(config(truth), console=QUIET)
    before = file_hashes(Path(config(truth).out))
    with pytest.raises(StoreError, match=r"holds a finished store; pass overwrite=true"):
        build(config(truth), console=QUIET)
    assert file_hashes(Path(config(truth).out)) == before
    build(config(truth, overwrite=True), console=QUIET)


def test_a_bad_source_does_not_cost_the_old_store(truth: FreihandTruth) -> None:
    report = build(config(truth), console=QUIET)
    before = file_hashes(report.path)
    (truth.root / "training_xyz.json").write_text("[")
    with pytest.raises(SourceError):
        build(config(truth, overwrite=True), console=QUIET)
    assert file_hashes(report.path) == before


def test_an_unfinished_store_is_rebuilt(truth: FreihandTruth) -> None:
    expected = build(config(truth, shard_rows=4), console=QUIET)
    hashes = file_hashes(expected.path)
    image_of(truth, 4).write_bytes(jpeg(1)[:-400] + b"\xff\xd9")  # found when it is decoded
    with pytest.raises(SourceError):
        build(config(truth, shard_rows=4, overwrite=True), console=QUIET)
    with pytest.raises(StoreError, match=r"is not finished; finish it with: python -m preprocess"):
        open_store(expected.path)
    image_of(truth, 4).write_bytes(truth.images[4])
    again = build(config(truth, shard_rows=4), console=QUIET)
    assert file_hashes(again.path) == hashes


def test_foreign_files_are_never_removed(truth: FreihandTruth, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years")
    for overwrite in (False, True):
        with pytest.raises(
            StoreError, match=r"folder with other files \(thesis.txt\), not a store"
        ):
            build(config(truth, out=str(out), overwrite=overwrite), console=QUIET)
    zarr.create_group(tmp_path / "other.zarr", attributes={"mine": 1})
    with pytest.raises(StoreError, match=r"is no Handloom store"):
        build(config(truth, out=str(tmp_path / "other.zarr"), overwrite=True), console=QUIET)
    with pytest.raises(StoreError, match=r"is not a folder"):
        build(config(truth, out=str(out / "thesis.txt")), console=QUIET)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(StoreError, match=r"is not a folder"):
        build(config(truth, out=str(tmp_path / "link"), overwrite=True), console=QUIET)
    assert (out / "thesis.txt").read_text() == "years"


def test_an_empty_folder_is_a_fine_place(truth: FreihandTruth, tmp_path: Path) -> None:
    (tmp_path / "new" / "store").mkdir(parents=True)
    report = build(config(truth, out=str(tmp_path / "new" / "store")), console=QUIET)
    assert open_store(report.path).num_rows == 14


def test_a_store_of_another_version_can_be_replaced(truth: FreihandTruth) -> None:
    report = build(config(truth), console=QUIET)
    file = report.path / "zarr.json"
    file.write_text(file.read_text().replace('"format": 0', '"format": 99'))
    with pytest.raises(StoreError, match=r"pass overwrite=true"):
        build(config(truth), console=QUIET)
    build(config(truth, overwrite=True), console=QUIET)


def test_a_folder_without_mano_is_an_error(truth: FreihandTruth, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"lacks MANO_RIGHT.npz and MANO_LEFT.npz"):
        build(config(truth, mano=str(tmp_path)), console=QUIET)


# --- words ----------------------------------------------------------------------------------------


def test_the_stored_command_builds_the_same(tmp_path: Path) -> None:
    truth = write_freihand(tmp_path / "with space = sign")
    wanted = config(truth, shard_rows=4, on_bad_image=OnBadImage.flag)
    command = shlex.split(build(wanted, console=QUIET).attributes.command)
    assert command[:4] == ["python", "-m", "preprocess", "build-cache"]
    options = dict(word.split("=", 1) for word in command[4:])
    assert options == {
        "dataset": "freihand",
        "root": str(truth.root),
        "out": wanted.out,
        "shard_rows": "4",
        "on_bad_image": "flag",
        "overwrite": "true",  # the cure for a damaged store has to work where that store lies
    }
    assert "mano=/m" in build_command(dataclasses.replace(wanted, mano="/m"))


def test_the_report_names_counts_and_licence(
    truth: FreihandTruth, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(config(truth)) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["train", "12", "130240"] in lines
    assert ["evaluation", "2", "3960"] in lines
    assert ["val10", "4", "-"] in lines
    assert ["no_mano", "14", "0,", "1,", "2,", "3,", "4"] in lines
    assert ["image_missing", "0"] in lines
    for word in ("14 baseline", "research only", "ICCV 2019", "14 rows in 1 shards"):
        assert word in text
    assert "synthetic" not in text
    *_, warning = text.splitlines()
    assert warning.startswith(
        "  warning: 3 of 3 splits differ from the official counts: train has 12 "
    )


def test_a_synthetic_store_says_so_instead_of_the_real_licence_and_citation(
    truth: FreihandTruth, tmp_path: Path
) -> None:
    (truth.root / SYNTHETIC_FILE).touch()
    out = tmp_path / "synthetic.zarr"
    report = build(config(truth, out=str(out)))
    store = open_store(out)
    assert store.attributes.is_synthetic
    assert store.attributes.extra["synthetic"] is True
    page = (out / PAGE_FILE).read_text()
    for text in (report_text(report), describe(store), page):
        assert "synthetic, rendered by make-sample: not freihand" in text
        for real in ("research only", "ICCV 2019", "130,240", "130240"):
            assert real not in text
    store.close()
    (truth.root / SYNTHETIC_FILE).unlink()
    again = build(config(truth))
    assert not again.attributes.is_synthetic
    assert "licence: FreiHAND: research only" in report_text(again)


def test_make_sample_leaves_the_file_that_says_synthetic(interhand_sample: Path) -> None:
    source = open_source("interhand26m", interhand_sample, None)
    assert source.synthetic
    assert source.official_counts == {}
    assert "make-sample dataset=interhand26m" in (interhand_sample / SYNTHETIC_FILE).read_text()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shard_rows", 0, "shard_rows must be at least 1, got 0"),
        ("workers", -1, "workers must be at least 0 and at most 4096, got -1"),
        ("out", "", "out must not be empty, got ''"),
    ],
)
def test_bad_options_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BuildConfig(**{key: value})  # type: ignore[arg-type]


def test_make_sample_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "raw data"
    assert make_sample.main(SampleConfig(out=str(out), num=1, num_eval=1, workers=1)) == 0
    text = capsys.readouterr().out
    assert "synthetic freihand" in text
    words = shlex.split(text.split("next: ")[1])
    assert words[:4] == ["python", "-m", "preprocess", "build-cache"]
    options = BuildConfig(**dict(word.split("=", 1) for word in words[4:]))  # type: ignore[arg-type]
    options.workers = 1
    assert build(options, console=QUIET).attributes.num_rows == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"dataset": "coco"},
            "dataset must be one of freihand, interhand26m, dexycb, ho3d, arctic, got 'coco'",
        ),
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"num_eval": 0}, "num_eval must be at least 1, got 0"),
    ],
)
def test_bad_sample_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleConfig(**options)  # type: ignore[arg-type]
