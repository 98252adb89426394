"""InterHand2.6M's files: both forms of predictions against loops over the annotations."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import SampleStore
from tests.reference import interhand26m as loops
from tests.train.evaluate.protocols.hands import save_npz
from train.evaluate.protocols import interhand26m

HAND_TYPES = {"right": 0, "left": 1, "interacting": 2}


def folder_of(data: SampleStore, split: str = "train") -> Path:
    return data.root / "annotations" / split


def annotations(folder: Path) -> list[dict[str, Any]]:
    """Return the annotations with joints in the camera, in the order of the official tool."""
    (data_path,) = folder.glob("*_data.json")
    split = data_path.name.split("_")[1]
    tables = {
        name: json.loads((folder / f"InterHand2.6M_{split}_{name}.json").read_text())
        for name in ("data", "camera", "joint_3d")
    }
    images = {image["id"]: image for image in tables["data"]["images"]}
    rows = []
    for item in tables["data"]["annotations"]:
        image = images[item["image_id"]]
        camera = tables["camera"][str(image["capture"])]
        name = str(image["camera"])
        R, centre = np.array(camera["camrot"][name]), np.array(camera["campos"][name])
        world = tables["joint_3d"][str(image["capture"])][str(image["frame_idx"])]["world_coord"]
        joints = np.array([R @ (np.array(point) - centre) for point in world])
        valid = np.array(item["joint_valid"]).reshape(42).astype(bool)
        row = {
            "id": item["id"],
            "target_mm": joints,
            "joint_valid": valid,
            "hand_type": HAND_TYPES[item["hand_type"]],
            "hand_type_valid": bool(np.array(item["hand_type_valid"]).reshape(())),
            "focal": camera["focal"][name],
            "princpt": camera["princpt"][name],
        }
        rows.append(row)
    return [r for r in rows if r["hand_type"] != 2] + [r for r in rows if r["hand_type"] == 2]


def with_predictions(rows: list[dict[str, Any]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for row in rows:
        row["joints_mm"] = row["target_mm"] + rng.normal(0, 9, (42, 3))
        row["pred_hand_type"] = rng.uniform(0, 1, 2)
        row["pred_left_from_right_mm"] = row["joints_mm"][41] - row["joints_mm"][20]


def compare(report: Any, rows: list[dict[str, Any]], *, strict: bool, rel: float = 1e-9) -> None:
    for name, value in loops.score(rows, strict=strict).items():
        found = report.scores[name]
        assert (found is None) == (value is None), name
        assert found is None or found == pytest.approx(value, rel=rel), name


@pytest.mark.parametrize("strict", [False, True])
def test_camera_space_predictions_are_scored_as_by_the_loops(
    interhand: SampleStore, tmp_path: Path, *, strict: bool
) -> None:
    rows = annotations(folder_of(interhand))
    with_predictions(rows, 0)
    assert {row["hand_type"] for row in rows} == {0, 1, 2}
    path = tmp_path / "pred.npz"
    np.savez(
        path,
        joints_mm=np.stack([row["joints_mm"] for row in rows]),
        hand_type=np.stack([row["pred_hand_type"] for row in rows]),
    )
    report = interhand26m.score(path, folder_of(interhand), strict=strict)
    compare(report, rows, strict=strict)
    assert not report.warnings
    assert report.official["MRRPE"] == report.scores["mrrpe_mm"]


@pytest.mark.parametrize("with_rootnet", [False, True])
def test_heat_map_predictions_are_lifted_as_the_tool_lifts_them(
    interhand: SampleStore, tmp_path: Path, *, with_rootnet: bool
) -> None:
    rows = annotations(folder_of(interhand))
    rng = np.random.default_rng(1)
    arrays: dict[str, list[Any]] = {
        "joint_coord": [], "rel_root_depth": [], "hand_type": [], "inv_trans": [],
    }  # fmt: skip
    rootnet = []
    for row in rows:
        depth = row["target_mm"][[20, 41], 2]
        if with_rootnet:
            depth = depth + rng.normal(0, 30, 2)
            rootnet.append({"annot_id": row["id"], "bbox": [0, 0, 1, 1], "abs_depth": list(depth)})
        coord = rng.uniform(20, 44, (42, 3))
        offset = rng.uniform(20, 44, 1)
        matrix = np.array([[1.3, 0, 40], [0, 1.3, 20]]) + rng.normal(0, 0.1, (2, 3))
        focal, centre = row["focal"], row["princpt"]

        def lifted(point: np.ndarray, z: float) -> list[float]:
            x, y = matrix @ [point[0] / 64 * 256, point[1] / 64 * 256, 1]  # noqa: B023
            return [(x - centre[0]) / focal[0] * z, (y - centre[1]) / focal[1] * z, z]  # noqa: B023

        relative = [(point[2] / 64 * 2 - 1) * 200 for point in coord]
        row["joints_mm"] = np.array(
            [lifted(coord[j], relative[j] + depth[0 if j < 21 else 1]) for j in range(42)]
        )
        between = (offset[0] / 64 * 2 - 1) * 200
        left = np.array(lifted(coord[41], relative[41] + depth[0] + between))
        right = np.array(lifted(coord[20], relative[20] + depth[0]))
        row["pred_left_from_right_mm"] = left - right
        row["pred_hand_type"] = rng.uniform(0, 1, 2)
        for name, value in (
            ("joint_coord", coord), ("rel_root_depth", offset),
            ("hand_type", row["pred_hand_type"]), ("inv_trans", matrix),
        ):  # fmt: skip
            arrays[name].append(value)
    path, depths = tmp_path / "pred.npz", tmp_path / "rootnet.json"
    save_npz(path, {name: np.stack(values) for name, values in arrays.items()})
    depths.write_text(json.dumps(rootnet[::-1]))
    report = interhand26m.score(
        path, folder_of(interhand), strict=False, root_depth=depths if with_rootnet else None
    )
    compare(report, rows, strict=False)
    assert ("RootNet" in report.camera) is with_rootnet


def saved(path: Path, rows: list[dict[str, Any]], factor: float = 1.0, count: int = -1) -> Path:
    end = None if count < 0 else count
    joints = np.stack([row["joints_mm"] for row in rows])[:end] * factor
    np.savez(path, joints_mm=joints, hand_type=np.ones((len(joints), 2)))
    return path


def test_bad_files_are_one_sentence(interhand: SampleStore, tmp_path: Path) -> None:
    folder = folder_of(interhand)
    rows = annotations(folder)
    with_predictions(rows, 2)
    path = tmp_path / "pred.npz"
    with pytest.raises(ValueError, match=f"hold 3 samples, the truth holds {len(rows)}"):
        interhand26m.score(saved(path, rows, count=3), folder, strict=False)
    with pytest.raises(ValueError, match=r"hand\) look like metres.*multiply by 1000"):
        interhand26m.score(saved(path, rows, factor=0.001), folder, strict=False)
    np.savez(path, hand_type=np.ones((len(rows), 2)))
    with pytest.raises(ValueError, match="no 'joints_mm'"):
        interhand26m.score(path, folder, strict=False)
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder with one InterHand2\.6M_<split>"
    ):
        interhand26m.score(saved(path, rows), tmp_path, strict=False)
    depths = tmp_path / "rootnet.json"
    depths.write_text(json.dumps([]))
    with pytest.raises(ValueError, match=f"lacks {len(rows)} of {len(rows)} annotations"):
        interhand26m.score(saved(path, rows), folder, strict=False, root_depth=depths)


def test_joints_from_base_to_tip_are_flagged(interhand: SampleStore, tmp_path: Path) -> None:
    folder = folder_of(interhand)
    rows = annotations(folder)
    with_predictions(rows, 3)
    standard = [20, 3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12, 19, 18, 17, 16]
    for row in rows:
        hands = row["joints_mm"].reshape(2, 21, 3)
        row["joints_mm"] = hands[:, standard].reshape(42, 3)
    report = interhand26m.score(saved(tmp_path / "pred.npz", rows), folder, strict=False)
    assert any("look to be in standard order" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("halves", "left hand's joints look to stand before"),
        ("file order", "look to be in the order of the annotation file"),
    ],
)
def test_another_order_of_halves_or_samples_is_flagged(
    interhand: SampleStore, tmp_path: Path, change: str, expected: str
) -> None:
    folder = folder_of(interhand)
    rows = annotations(folder)
    rng = np.random.default_rng(4)
    for row in rows:
        row["joints_mm"] = row["target_mm"] + rng.normal(0, 1, (42, 3))
    joints = np.stack([row["joints_mm"] for row in rows])
    if change == "halves":
        joints = np.concatenate((joints[:, 21:], joints[:, :21]), 1)
    else:
        joints = joints[np.argsort(interhand26m.read_truth(folder).file_position)]
        assert not np.array_equal(joints, np.stack([row["joints_mm"] for row in rows]))
    for row, value in zip(rows, joints, strict=True):
        row["joints_mm"] = value
    report = interhand26m.score(saved(tmp_path / "pred.npz", rows), folder, strict=False)
    assert any(expected in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        ("joint_3d", lambda table: table.clear(), "annotation .* is incomplete"),
        ("camera", lambda table: table.clear(), "annotation .* is incomplete"),
        ("data", lambda table: table["images"].clear(), "annotation .* is incomplete"),
        ("data", lambda table: table.pop("images"), "expected images and annotations"),
        ("data", lambda table: table["annotations"].clear(), "holds no annotation"),
        ("data", lambda table: table["annotations"][0].update(hand_type="both"), "is incomplete"),
        ("data", lambda table: table["annotations"][0].update(joint_valid=[1]), "incomplete in"),
    ],
)
def test_broken_annotations_are_one_sentence(
    interhand: SampleStore, tmp_path: Path, file: str, change: Any, expected: str
) -> None:
    for path in folder_of(interhand).glob("InterHand2.6M_*.json"):
        table = json.loads(path.read_text())
        if path.stem.endswith(file):
            change(table)
        (tmp_path / path.name).write_text(json.dumps(table))
    with pytest.raises(ValueError, match=expected):
        interhand26m.read_truth(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"{}", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_npz_is_one_sentence(
    interhand: SampleStore, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "pred.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"pred\.npz is no zip file"):
        interhand26m.score(path, folder_of(interhand), strict=False)
