"""Every input that was asked for is used or named; results survive a kill and go on."""

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.app.cli import front_door
from tests.pipeline.hand_store import frame
from tests.train.predict.networks import a_box, blank, config, predicted, write_image, write_json
from train.__main__ import COMMANDS
from train.predict.boxes import by_frame, read_boxes
from train.predict.cameras import Cameras, read_cameras
from train.predict.hands import crop_of, predict_hands
from train.predict.lines import open_lines
from train.predict.outputs import Hand, hand_record, picture_name
from train.predict.predict import main

NO_UTF8 = os.fsdecode(b"na\xefve.png")


def write_video(path: Path, num: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 96))
    for i in range(num):
        writer.write(frame(i)[..., ::-1])
    writer.release()


def test_a_name_that_is_not_utf8_costs_nothing(joints_run: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    write_image(images / "a.png", frame(0))
    (images / "a.png").rename(images / NO_UTF8)
    write_image(images / "a.png", frame(0))
    (images / os.fsdecode(b"torn\xff.png")).write_bytes(b"no image")
    boxes = write_json(tmp_path / "b.json", {NO_UTF8: [a_box()], "a.png": [a_box()]})
    words = [f"run={joints_run}", f"images={images}", f"boxes={boxes}", f"out={tmp_path / 'out'}"]
    assert front_door("python -m train", COMMANDS, ["predict", *words, "device=cpu"]) == 1
    record = json.loads((tmp_path / "out" / "predictions.json").read_bytes())
    assert record["images"][NO_UTF8]["hands"] == record["images"]["a.png"]["hands"]
    assert (tmp_path / "out" / record["images"][NO_UTF8]["picture"]).is_file()
    assert [os.fsencode(one["name"]) for one in record["skipped"]] == [b"torn\xff.png"]


def test_a_video_whose_name_is_not_utf8_is_read(joints_run: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 2)
    path = tmp_path / os.fsdecode(b"100%02d \xff.mp4")
    (tmp_path / "v.mp4").rename(path)
    assert len(predicted(joints_run, path, tmp_path / "out")["images"]) == 2


def test_every_entry_of_a_folder_is_read_or_named(
    joints_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    for name in ("a.ppm", "b.gif", "c.webp"):
        write_image(images / name, frame(0))
    write_video(images / "clip.mp4", 1)
    moving = cv2.Animation()
    moving.frames, moving.durations = [frame(0), frame(1)], [100, 100]
    (images / "moving.gif").write_bytes(cv2.imencodeanimation(".gif", moving)[1].tobytes())
    (images / "phone.HEIC").write_bytes(b"heic")
    (images / "sub").mkdir()
    os.mkfifo(images / "pipe.png")
    (images / "gone.png").symlink_to("nowhere")
    for name in ("notes.txt", "._a.png"):
        (images / name).write_text("")
    record = predicted(joints_run, images, images / "out", code=1)
    assert list(record["images"]) == ["a.ppm", "b.gif", "c.webp"]
    reasons = {one["name"]: one["reason"] for one in record["skipped"]}
    expected = {
        "moving.gif": "an animation: ",
        "clip.mp4": "a video among images: ",
        "gone.png": "no regular file, or a link",
        "phone.HEIC": ".heic cannot be decoded: convert",
        "pipe.png": "no regular file, or a link",
        "sub": "a folder in the folder: ",
    }
    assert reasons.keys() == expected.keys()
    assert all(reasons[name].startswith(start) for name, start in expected.items())
    said = capsys.readouterr().out
    assert "are no images ('._a.png', 'notes.txt')" in " ".join(said.split())
    assert "skipped: 6;" in said


def test_boxes_of_a_video_may_be_named_as_programs_name_frames(
    joints_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "v.mp4", 5)
    given = {f"{i:06d}": [a_box()] for i in (0, 1, 4, 70)} | {"cover": [a_box()]}
    boxes = write_json(tmp_path / "b.json", given)
    out = tmp_path / "out"
    record = predicted(joints_run, tmp_path / "v.mp4", out, code=1, boxes=boxes, every=2)
    assert [len(one["hands"]) for one in record["images"].values()] == [1, 0, 1]
    assert [one["name"] for one in record["skipped"]] == ["70", "cover"]
    said = " ".join(capsys.readouterr().out.split())
    assert "names 2 inputs that do not exist ('70', 'cover')" in said
    assert "1 entries of boxes=" in said
    assert "were not asked for ('1')" in said
    with pytest.raises(ValueError, match="two entries for frame 1: '1' and '01'"):
        by_frame({"1": 0, "01": 0}, "boxes='b.json'")


def test_boxes_of_absent_files_are_named(joints_run: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "images" / name, frame(0))
    (tmp_path / "images" / "c.heic").touch()
    given = {name: [a_box()] for name in ("a.png", "b.png", "c.heic", "gone.png")}
    boxes = write_json(tmp_path / "b.json", given)
    record = predicted(
        joints_run, tmp_path / "images", tmp_path / "out", code=1, boxes=boxes, every=2
    )
    assert [one["name"] for one in record["skipped"]] == ["c.heic", "gone.png"]
    one = predicted(joints_run, tmp_path / "images" / "a.png", tmp_path / "one", boxes=boxes)
    assert one["skipped"] == []


# --- results as they come -------------------------------------------------------------------------


class Stopped(KeyboardInterrupt):
    """Ctrl-C at a moment of the test's choice."""


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    left = [10**9]

    def recorded(hand: Hand) -> dict[str, Any]:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        return hand_record(hand)

    monkeypatch.setattr("train.predict.predict.hand_record", recorded)
    return lambda number: left.__setitem__(0, number)


def a_folder(path: Path, num: int) -> Path:
    for i in range(num):
        write_image(path / f"{i}.png", frame(i))
    (path / "3-torn.png").write_bytes(b"no image")
    return path


def test_a_second_call_goes_on_where_the_first_was_stopped(
    joints_run: Path, tmp_path: Path, stop_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images = a_folder(tmp_path / "images", 6)
    given = {f"{i}.png": [a_box(), a_box("left"), a_box(xyxy=(900, 0, 950, 9))] for i in range(6)}
    options = {"boxes": write_json(tmp_path / "b.json", given), "batch_size": 2}
    whole = predicted(joints_run, images, tmp_path / "whole", code=1, **options)

    out = tmp_path / "out"
    stop_after(9)  # in the middle of the fifth image
    with pytest.raises(Stopped):
        main(config(joints_run, images, out=out, **options))
    assert not (out / "predictions.json").exists()
    lines = (out / "predictions.jsonl").read_text().splitlines()
    assert sum('"done"' in line for line in lines) == 5
    with (out / "predictions.jsonl").open("a") as file:
        file.write('{"hand": {"tor')  # a kill in the middle of a line
    capsys.readouterr()
    stop_after(4)
    record = predicted(joints_run, images, out, code=1, **options)
    assert "goes on after 5 inputs" in capsys.readouterr().out
    assert record["images"] == whole["images"]
    assert record["skipped"] == whole["skipped"]
    assert sorted(p.name for p in out.iterdir()) == ["pictures", "predictions.json"]


def test_a_call_with_other_boxes_begins_anew(
    joints_run: Path, tmp_path: Path, stop_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images, out = a_folder(tmp_path / "images", 3), tmp_path / "out"
    boxes = write_json(tmp_path / "b.json", {f"{i}.png": [a_box()] for i in range(3)})
    stop_after(2)
    with pytest.raises(Stopped):
        main(config(joints_run, images, out=out, boxes=boxes))
    write_json(tmp_path / "b.json", {f"{i}.png": [a_box("left")] for i in range(3)})
    stop_after(10)
    record = predicted(joints_run, images, out, code=1, boxes=boxes)
    assert [one["hands"][0]["side"] for one in record["images"].values()] == ["left"] * 3
    assert "holds results with other boxes: begun anew" in capsys.readouterr().out


def test_what_is_not_ours_is_left_alone(joints_run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "predictions.jsonl"
    mine.write_text('{"mine": 1}\n')
    with pytest.raises(ValueError, match="is none of predict's files: move it away"):
        main(config(joints_run, tmp_path / "a.png", out=tmp_path / "out"))
    assert mine.read_text() == '{"mine": 1}\n'

    (tmp_path / "new").mkdir()
    with open_lines(tmp_path / "new", {"options": 1}, print):  # killed in its first image
        write_image(tmp_path / "new" / "meshes" / "a.png", frame(0))
        (tmp_path / "killed").mkdir()
        shutil.copytree(tmp_path / "new", tmp_path / "killed", dirs_exist_ok=True)
    with open_lines(tmp_path / "killed", {"options": 1}, print) as lines:
        assert lines.num_done == 0

    photo = tmp_path / "album" / "pictures" / "a.png.jpg"  # what its picture would be called
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="holds pictures, which would be replaced"):
        main(config(joints_run, tmp_path / "a.png", out=tmp_path / "album"))
    assert [path.name for path in (tmp_path / "album").rglob("*")] == ["pictures", "a.png.jpg"]
    assert photo.read_bytes() == b"mine"


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files cannot grow beyond 8,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_torn_file(
    joints_run: Path, tmp_path: Path, small_files: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for i in range(9):
        small = cv2.imencode(".jpg", frame(i)[:40, :40])[1].tobytes()
        (tmp_path / "images" / f"{i}.jpg").write_bytes(small)
    words = [f"run={joints_run}", f"images={tmp_path / 'images'}", f"out={tmp_path / 'out'}"]
    assert front_door("python -m train", COMMANDS, ["predict", *words, "device=cpu"]) == 2
    assert "File too large" in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.json").exists()
    assert not list((tmp_path / "out").rglob("*.partial"))


# --- absurd numbers, many boxes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("K", "expected"),
    [
        ("1,1,64,48", "expected focal lengths from 2.56 to 25600 pixels.*got fx=1 fy=1"),
        ("1e7,1e7,64,48", "got fx=1e.07"),
        ("100,900,64,48", "one at most 4 times the other"),
        ("100,100,1e6,48", "expected a principal point within 2560 pixels.*got cx=1e.06"),
    ],
)
def test_absurd_intrinsics_are_refused(K: str, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"image of 128 x 96 pixels: .*{expected}"):
        read_cameras(K, 60).of(blank("a", (128, 96)))


@pytest.mark.parametrize("value", [10**400, "500", True, float("nan"), 1e300])
def test_intrinsics_are_finite_numbers(tmp_path: Path, value: Any) -> None:
    K = write_json(tmp_path / "K.json", {"a": [[value, 0, 1], [0, 500, 1], [0, 0, 1]]})
    with pytest.raises(ValueError, match=r"K.json', a: expected one 3x3 matrix.* got \[\["):
        read_cameras(K, 60)
    assert Cameras().of(blank("a", (4, 4))).shape == (3, 3)


@pytest.mark.parametrize(
    "box", [[0, 0, 10**400, 5], [0, 0, 1e300, 5], [-1e7, 0, 50, 50], [0, 0, 500, 1e-9]]
)
def test_absurd_boxes_are_refused(tmp_path: Path, box: list[float]) -> None:
    hands = [a_box(), {"box_xyxy": box, "side": "left"}]
    boxes = write_json(tmp_path / "b.json", {"a.png": hands})
    with pytest.raises(ValueError, match=r"a.png, hand 1: box_xyxy must be .*pixel.*, got \["):
        read_boxes(boxes)


def test_many_boxes_of_one_image_are_taken_a_batch_at_a_time(
    joints_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", frame(0))
    boxes = write_json(tmp_path / "b.json", {"a.png": [a_box()] * 100})
    held: list[int] = []
    made = 0

    def counted_crop(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        return crop_of(*arguments)

    def counted_hands(predictor: Any, crops: list[Any]) -> Any:
        held.append(made - sum(held))
        return predict_hands(predictor, crops)

    monkeypatch.setattr("train.predict.predict.crop_of", counted_crop)
    monkeypatch.setattr("train.predict.predict.predict_hands", counted_hands)
    record = predicted(joints_run, tmp_path / "a.png", tmp_path / "out", boxes=boxes, batch_size=16)
    hands = record["images"]["a.png"]["hands"]
    assert len(hands) == 100
    np.testing.assert_allclose(hands[99]["joints_3d"], hands[0]["joints_3d"], atol=1e-4)
    assert max(held) == 16


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("a.png", "a.png.jpg"),
        ("a.png.jpg", "a.png.jpg.jpg"),  # not the picture of a.png
        ("手.webp", "手.webp.jpg"),
    ],
)
def test_pictures_have_names_of_their_own(name: str, expected: str) -> None:
    assert picture_name(name, is_video=False) == expected


def test_long_names_are_cut_to_what_file_systems_take() -> None:
    long = [picture_name("n" * 249 + end, is_video=False) for end in ("a.png", "b.png")]
    assert long[0] != long[1]
    assert {len(name) <= 180 and name.endswith(".jpg") for name in long} == {True}
