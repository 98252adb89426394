"""The folder format: labels against what was written, and 60 faulty files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.hand import LEFT, RIGHT
from model.mano.files import load_mano, mano_forward
from preprocess.records import SourceError
from preprocess.sources.folder.records import json_schema
from preprocess.sources.registry import open_source
from tests.preprocess.datasets import labels_at, write_mano
from tests.preprocess.sources.folder.dataset import Folder, write_folder


@pytest.mark.parametrize("units", ["m", "cm", "mm"])
@pytest.mark.parametrize("axes", ["opencv", "opengl"])
@pytest.mark.parametrize("order", ["openpose", "mano", "interhand", list(range(20, -1, -1))])
def test_units_axes_and_orders_are_converted(
    tmp_path: Path, units: str, axes: str, order: str | list[int]
) -> None:
    folder = write_folder(tmp_path / "own", units=units, axes=axes, joint_order=order)
    source = open_source("folder", folder.root, None)
    labels = labels_at(source, 4)
    np.testing.assert_allclose(labels.joints_3d[RIGHT], folder.joints[4], atol=1e-12)
    np.testing.assert_array_equal(labels.K, folder.K)
    assert labels.joint_valid[RIGHT].all()
    assert not labels.joint_valid[LEFT].any()
    assert source.notes == {"name": "folder"}


def test_everything_but_the_image_is_optional(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", num=2)
    folder.records[:] = [{"image": "images/000.jpg"}, {"image": "images/001.jpg", "focal_px": 80}]
    folder.write()
    source = open_source("folder", folder.root, None)
    assumed, given = (labels_at(source, i).K for i in (0, 1))
    # 60 degrees across the 64 columns.
    np.testing.assert_allclose(assumed[0, 0], 32 / np.tan(np.pi / 6))
    np.testing.assert_allclose(given, np.array([[80, 0, 31.5], [0, 80, 23.5], [0, 0, 1]]))


def test_mano_is_moved_to_opencv_axes_and_metres(tmp_path: Path) -> None:
    write_mano(tmp_path / "mano")
    models = load_mano(tmp_path / "mano")
    folder = write_folder(tmp_path / "own", num=1, units="mm", axes="opengl")
    rng = np.random.default_rng(0)
    theta, beta, transl = rng.normal(0, 0.5, 48), rng.normal(0, 1, 10), rng.normal(0, 0.1, 3)
    folder.header["mano_mean"] = "relative"
    folder.records[0]["hands"] = [
        {
            "side": side,
            "mano": {
                "theta": theta.tolist(), "beta": beta.tolist(), "transl": (1000 * transl).tolist(),
            },
        }
        for side in ("right", "left")
    ]  # fmt: skip
    folder.write()
    labels = labels_at(open_source("folder", folder.root, models), 0)
    for slot, arrays in ((RIGHT, models.right), (LEFT, models.left)):
        absolute = theta + np.concatenate((np.zeros(3), arrays.hands_mean))
        expected, _ = mano_forward(arrays, absolute[None], beta[None], transl[None])
        found, _ = mano_forward(
            arrays, labels.theta[slot][None], labels.beta[slot][None], labels.transl[slot][None]
        )
        np.testing.assert_allclose(found[0], expected[0] * [1, -1, -1], atol=1e-9)


def test_world_and_objects(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", num=1, units="cm", axes="opengl")
    folder.header["objects"] = [{"name": "cup"}, {"name": "box"}]
    R = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    pose: np.ndarray = np.concatenate((R, np.array([[10.0], [20], [-30]])), 1)
    folder.records[0] |= {
        "objects": [{"name": "box", "pose": pose.tolist(), "grasped": True}],
        "T_world_from_cam": [*pose.tolist(), [0, 0, 0, 1]],
    }
    folder.write()
    labels = labels_at(open_source("folder", folder.root, None), 0)
    flip = np.diag([1.0, -1, -1])
    assert labels.object_id.tolist() == [1] + [-1] * 9
    assert labels.grasped_object == 0
    np.testing.assert_allclose(labels.object_pose[0, :, :3], flip @ R)
    np.testing.assert_allclose(labels.object_pose[0, :, 3], [0.1, -0.2, 0.3])
    point = np.array([0.3, 0.2, 0.5])  # OpenCV's camera axes, metres
    world = R @ (flip @ point) + [0.1, 0.2, -0.3]
    np.testing.assert_allclose((labels.T_world_from_cam @ [*point, 1])[:3], world)


def test_splits_are_those_stated_or_the_last_tenth(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", num=20)
    source = open_source("folder", folder.root, None)
    assert {name: len(rows) for name, rows in source.splits.items()} == {
        "train": 20, "train90": 18, "val10": 2,
    }  # fmt: skip
    assert source.splits["val10"].tolist() == [18, 19]
    for i, record in enumerate(folder.records):
        record["split"] = "test" if i < 5 else ["train", "small"] if i < 7 else "train"
    folder.write()
    splits = open_source("folder", folder.root, None).splits
    assert {name: len(rows) for name, rows in splits.items()} == {
        "test": 5, "train": 15, "small": 2,
    }  # fmt: skip


def test_a_table_gives_the_same_labels(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    folder = write_folder(tmp_path / "own", units="mm")
    folder.records[2]["hands"] = []
    del folder.records[3]["K"]
    folder.write()
    lines = open_source("folder", folder.root, None)
    expected = lines.label_job(range(6))()
    parquet.write_table(
        pyarrow.Table.from_pylist(folder.records),
        folder.root / "annotations.parquet",
        row_group_size=4,
    )
    (folder.root / "header.json").write_text(json.dumps(folder.header))
    (folder.root / "annotations.jsonl").unlink()
    table = open_source("folder", folder.root, None)
    assert table.rows.image == lines.rows.image
    found = table.label_job([5, 0, 3])()
    np.testing.assert_array_equal(found.joints_3d, expected.joints_3d[[5, 0, 3]])
    np.testing.assert_array_equal(found.K, expected.K[[5, 0, 3]])


def test_the_published_schema_is_that_of_the_records() -> None:
    # Regenerate it with json_schema() after a change of the records.
    path = Path(__file__).parents[4] / "docs/folder.schema.json"
    assert json.loads(path.read_text()) == json_schema()


# --- faulty files ---------------------------------------------------------------------------------


def _of_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Folder], None]:
    def apply(folder: Folder) -> None:
        change(folder.records[2])
        folder.write()

    return apply


def _of_hand(change: Callable[[dict[str, Any]], object]) -> Callable[[Folder], None]:
    return _of_record(lambda record: change(record["hands"][0]))


def _of_all(change: Callable[[dict[str, Any]], object]) -> Callable[[Folder], None]:
    def apply(folder: Folder) -> None:
        for record in folder.records:
            change(record)
        folder.write()

    return apply


def _of_header(**values: Any) -> Callable[[Folder], None]:
    def apply(folder: Folder) -> None:
        folder.header |= values
        folder.header = {k: v for k, v in folder.header.items() if v is not None}
        folder.write()

    return apply


def _of_text(change: Callable[[str], str]) -> Callable[[Folder], None]:
    def apply(folder: Folder) -> None:
        path = folder.root / "annotations.jsonl"
        path.write_text(change(path.read_text()))

    return apply


def _of_lines(change: Callable[[list[str]], object]) -> Callable[[Folder], None]:
    def apply(folder: Folder) -> None:
        path = folder.root / "annotations.jsonl"
        lines = path.read_text().splitlines()
        change(lines)
        path.write_text("\n".join(lines) + "\n")

    return apply


def _missing_file(folder: Folder) -> None:
    (folder.root / "annotations.jsonl").unlink()


def _two_files(folder: Folder) -> None:
    (folder.root / "annotations.parquet").write_bytes(b"PAR1")


def _no_parquet(folder: Folder) -> None:
    (folder.root / "annotations.jsonl").rename(folder.root / "annotations.parquet")
    (folder.root / "header.json").write_text(json.dumps(folder.header))


def _swapped(lines: list[str]) -> None:
    lines[0], lines[1] = lines[1], lines[0]


def _set(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.__setitem__(key, value)


EYE = [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
TURN = [[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]
FAULTS: dict[str, tuple[Callable[[Folder], None], str]] = {
    # The file.
    "none": (_missing_file, "must have annotations.jsonl or annotations.parquet, found neither"),
    "two": (_two_files, "found both"),
    "no parquet": (_no_parquet, "annotations.parquet is no Parquet file"),
    "empty": (_of_text(lambda _: ""), "the header of .*: no JSON"),
    "no header": (_of_lines(lambda lines: lines.pop(0)), "does not begin with a header"),
    "header second": (_of_lines(_swapped), "does not begin with a header"),
    "header a list": (_of_text(lambda text: "[1]\n" + text), "does not begin with a header"),
    "binary": (_of_text(lambda text: "\0\1" + text), "the header of .*: no JSON"),
    "one JSON list": (
        _of_lines(lambda lines: lines.__setitem__(slice(1, None), ["[", *lines[1:], "]"])),
        r"line 2: ",
    ),
    "cut": (_of_text(lambda text: text[:-50]), r"line 7: "),
    "torn line": (_of_lines(lambda lines: lines.insert(2, '{"image": ')), "line 3: "),
    "two records a line": (
        _of_lines(lambda lines: lines.__setitem__(2, lines[2] + lines[3])),
        "line 3: ",
    ),
    "huge line": (
        _of_lines(lambda lines: lines.__setitem__(2, " " * (1 << 21))),
        "line 3 has over 1048576 bytes",
    ),
    "deep": (_of_lines(lambda lines: lines.__setitem__(2, "[" * 100_000)), "line 3: "),
    "NaN": (_of_hand(lambda h: h["joints_3d"][3].__setitem__(0, float("nan"))), "line 4: NaN is"),
    "infinity": (_of_hand(lambda h: h["joints_3d"][3].__setitem__(0, float("inf"))), "Infinity is"),
    "no text": (
                _of_lines(lambda lines: lines.__setitem__(2, lines[2].replace("right", "\x01"))),
                "line 3: "),
    # The header.
    "unit": (_of_header(units="inch"), "units: "),
    "no unit": (_of_header(units=None), "missing required field units"),
    "version": (_of_header(handloom=2), "format 2, this release reads 1"),
    "axes": (_of_header(axes="blender"), "axes: "),
    "order": (_of_header(joint_order="mediapipe"), "joint_order: "),
    "order of 20": (_of_header(joint_order=list(range(20))), "joint_order"),
    "order of 22": (_of_header(joint_order=[*range(20), 21]), "joint_order"),
    "order twice": (_of_header(joint_order=[*range(20), 0]), "joint_order names joint 0 twice"),
    "set": (_of_header(joint_set="coco"), "joint_set: "),
    "header key": (_of_header(unit="mm"), "there is no key 'unit'; did you mean 'units'"),
    "object twice": (_of_header(objects=[{"name": "a"}, {"name": "a"}]), "an object twice"),
    "mesh outside": (
        _of_header(objects=[{"name": "a", "mesh": "../a.obj"}]),
        "objects: expected a mesh below the folder",
    ),
    # The image.
    "no image": (_of_record(lambda r: r.pop("image")), "line 4: .* required field image"),
    "number": (_of_record(_set("image", 3)), "line 4: image: expected str, got int"),
    "outside": (_of_record(_set("image", "../a.jpg")), r"line 4: image: expected a path below"),
    "absolute": (_of_record(_set("image", "/etc/a.jpg")), r"line 4: image: expected a path below"),
    "backslash": (_of_record(_set("image", "images\\a.jpg")), "expected a path below"),
    "dot": (_of_record(_set("image", "./images/a.jpg")), "expected a path below"),
    "zero byte": (_of_record(_set("image", "a\0.jpg")), "expected a path below"),
    "video": (_of_record(_set("image", "a.mp4")), r"expected a file that ends in \.jpg"),
    "twice": (_of_record(_set("image", "images/000.jpg")), "line 4 names .* after line 2"),
    "empty name": (_of_record(_set("image", "")), "line 4: image: expected str of length >= 1"),
    # The hands.
    "key": (_of_hand(_set("joint_3d", [])), "there is no key 'joint_3d'; did you mean 'joints_3d'"),
    "record key": (_of_record(_set("cam", [])), "there is no key 'cam'; did you mean 'camera'"),
    "side": (_of_hand(_set("side", "Right")), r"hands\[0\].side: "),
    "no side": (_of_hand(lambda h: h.pop("side")), r"hands\[0\]: missing required field side"),
    "two right": (_of_record(lambda r: r["hands"].append(r["hands"][0])), "at most one right hand"),
    "three": (_of_record(lambda r: r.__setitem__("hands", r["hands"] * 3)), "hands: expected"),
    "20 joints": (_of_hand(lambda h: h["joints_3d"].pop()), "array of length >= 21"),
    "22 joints": (_of_hand(lambda h: h["joints_3d"].append([0, 0, 1])), "array of length <= 21"),
    "flat list": (_of_hand(_set("joints_3d", [0.1] * 63)), "expected array . null, got float"),
    "2D as 3D": (_of_hand(lambda h: h.__setitem__("joints_3d", h["joints_2d"])), "length >= 3"),
    "text": (_of_hand(lambda h: h["joints_3d"][3].__setitem__(0, "0.1")), "float, got str"),
    "far": (_of_hand(lambda h: h["joints_3d"][3].__setitem__(0, 1e30)), "float <= 1000000"),
    "box order": (_of_hand(_set("bbox_xyxy", [9, 9, 3, 3])), "left, top, right, bottom"),
    "box of 3": (_of_hand(_set("bbox_xyxy", [9, 9, 3])), "array of length >= 4"),
    "45 angles": (
        _of_hand(_set("mano", {"theta": [0] * 45, "beta": [0] * 10, "transl": [0] * 3})),
        "theta: expected array of length >= 48",
    ),
    # Cameras and objects.
    "K and focal": (_of_record(_set("focal_px", 80)), "K and focal_px are given"),
    "focal": (_of_record(lambda r: r.update(K=None, focal_px=0)), "focal_px: expected float > 0"),
    "K transposed": (_of_record(lambda r: r.update(K=np.array(r["K"]).T.tolist())), "K: expected"),
    "K negative": (_of_record(_set("K", [[-1, 0, 0], [0, 1, 0], [0, 0, 1]])), "K: expected"),
    "unknown object": (
        _of_record(_set("objects", [{"name": "mug", "pose": EYE}])),
        "the header has no object 'mug'",
    ),
    "scaled world": (_of_record(_set("T_world_from_cam", [[2.0, 0, 0, 0], *EYE[1:]])), "rotation"),
    "mirrored world": (
        _of_record(_set("T_world_from_cam", (np.array(TURN) * [[-1], [1], [1]]).tolist())),
        "T_world_from_cam: the first three columns are no rotation",
    ),
    "last row": (_of_record(_set("T_world_from_cam", [*EYE, [0, 0, 0, 2]])), "the last row"),
    "frame": (_of_record(_set("frame", -1)), "frame: expected int >= 0"),
    "half frame": (_of_record(_set("frame", 1.5)), "frame: expected int .*, got float"),
    # What only the numbers tell.
    "wrong unit": (_of_header(units="mm"), "the joints look like m"),
    "wrong axes": (_of_header(axes="opengl"), "behind the camera"),
    "wrong order": (_of_header(joint_order="interhand"), "in the order 'standard'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_files_are_one_sentence(tmp_path: Path, fault: str) -> None:
    apply, message = FAULTS[fault]
    folder = write_folder(tmp_path / "own")
    apply(folder)
    with pytest.raises(SourceError, match=message) as caught:
        open_source("folder", folder.root, None)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_byte_order_mark_carriage_returns_and_empty_lines_are_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    path = folder.root / "annotations.jsonl"
    text = path.read_text().replace("\n", "\r\n\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    source = open_source("folder", folder.root, None)
    np.testing.assert_allclose(labels_at(source, 5).joints_3d[RIGHT], folder.joints[5])


@pytest.mark.parametrize("kind", ["side", "K"])
def test_what_may_be_right_is_a_warning(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "own")
    for record in folder.records:
        if kind == "side":
            record["hands"][0]["side"] = "left"
        else:
            record["K"] = (np.array(record["K"]) * [[4], [4], [1]]).tolist()
    folder.write()
    (warning,) = open_source("folder", folder.root, None).notes["warnings"]
    assert warning.startswith(kind)


def test_images_without_a_record_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    for name in ("forgotten.JPG", "._000.jpg", "notes.txt"):
        (folder.root / "images" / name).write_bytes(b"")
    notes = open_source("folder", folder.root, None).notes
    assert notes["passed_over"] == {"count": 1, "names": ["images/forgotten.JPG"]}
    assert notes["hidden_files"] == 1
    (warning,) = notes["warnings"]
    assert warning.startswith("1 of 8 files and folders were passed over")
