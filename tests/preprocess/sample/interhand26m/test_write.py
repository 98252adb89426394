import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import smplx
import torch

from preprocess.sample.generate import write_sample
from preprocess.sample.interhand26m.scene import Slot, pose_hands, slot_of
from preprocess.sample.interhand26m.write import INVALID_POINT_MM, render

SEED, NUM = 5, 15
REAL = Path(__file__).parents[5] / "shared" / "real" / "InterHand2.6M" / "annotations" / "train"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("interhand") / "sample"
    write_sample("interhand26m", path, NUM, SEED, num_eval=4, workers=1)
    return path


def read(root: Path, split: str, name: str) -> Any:
    return json.loads(
        (root / "annotations" / split / f"InterHand2.6M_{split}_{name}.json").read_text()
    )


def pairs(root: Path, split: str = "train") -> list[tuple[dict[str, Any], dict[str, Any]]]:
    data = read(root, split, "data")
    return list(zip(data["images"], data["annotations"], strict=True))


def project_officially(camera: dict[str, Any], name: str, world: np.ndarray) -> np.ndarray:
    """The toolkit's formula, point by point: X_cam = camrot (X - campos), u = fx x / z + cx."""
    rotation, position = np.array(camera["camrot"][name]), np.array(camera["campos"][name])
    (fx, fy), (cx, cy) = camera["focal"][name], camera["princpt"][name]
    pixels = []
    for point in world:
        x, y, z = rotation @ (point - position)
        pixels.append([x / z * fx + cx, y / z * fy + cy])
    return np.array(pixels)


def signature(value: Any, *, depth: int = 3) -> Any:
    """Types and keys of a JSON value, numbers as keys read as one, lists by their first entry."""
    if isinstance(value, dict):
        return {
            ("#" if key.isdigit() else key): signature(entry, depth=depth)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [signature(value[0], depth=depth - 1)] if value and depth else []
    return type(value).__name__


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_files_and_counts(root: Path, split: str) -> None:
    rows = pairs(root, split)
    assert len(rows) == (NUM if split == "train" else 4)
    names = {image["file_name"] for image, _ in rows}
    found = {
        str(p.relative_to(root / "images" / split)) for p in root.glob(f"images/{split}/**/*.jpg")
    }
    assert found == names
    assert len(names) == len(rows)
    for image, annotation in rows:
        assert annotation["id"] == annotation["image_id"] == image["id"]
        assert image["file_name"] == (
            f"Capture{image['capture']}/{image['seq_name']}/cam{image['camera']}"
            f"/image{image['frame_idx']}.jpg"
        )


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real InterHand2.6M annotations at {REAL}")
@pytest.mark.parametrize("name", ["data", "camera", "joint_3d"])
def test_layout_equals_the_real_files(root: Path, name: str) -> None:
    real = json.loads((REAL / f"InterHand2.6M_train_{name}.json").read_text())
    assert signature(read(root, "train", name)) == signature(real)


def test_variety(root: Path) -> None:
    rows = pairs(root)
    assert {a["hand_type"] for _, a in rows} == {"right", "left", "interacting"}
    assert len({i["capture"] for i, _ in rows}) >= 3
    assert len({i["camera"] for i, _ in rows}) >= 4
    assert {(i["width"], i["height"]) for i, _ in rows} == {(512, 334), (334, 512)}


def test_images_are_progressive_jpegs_of_the_written_size(root: Path) -> None:
    for image, _ in pairs(root):
        path = root / "images" / "train" / image["file_name"]
        data = path.read_bytes()
        at = data.index(b"\xff\xc2")  # SOF2: progressive
        assert int.from_bytes(data[at + 5 : at + 7]) == image["height"]
        assert int.from_bytes(data[at + 7 : at + 9]) == image["width"]
        assert data[at + 11] == 0x22  # 4:2:0
        pixels = cv2.imread(str(path))
        assert pixels is not None
        spread = np.ptp(pixels.astype(int), axis=2).mean()
        assert (spread < 2) == image["camera"].startswith("41")  # grey cameras


def test_official_projection_lands_in_the_box_and_on_the_hand(root: Path) -> None:
    cameras, joints = read(root, "train", "camera"), read(root, "train", "joint_3d")
    for idx, (image, annotation) in enumerate(pairs(root)):
        capture = str(image["capture"])
        frame = joints[capture][str(image["frame_idx"])]
        assert annotation["hand_type"] == frame["hand_type"]
        valid = np.array(annotation["joint_valid"])[:, 0] == 1
        np.testing.assert_array_equal(valid, np.array(frame["joint_valid"])[:, 0])
        world = np.array(frame["world_coord"])
        np.testing.assert_array_equal(world[~valid], INVALID_POINT_MM)
        pixel = project_officially(cameras[capture], image["camera"], world[valid])
        x, y, width, height = annotation["bbox"]
        low, high = pixel.min(0), pixel.max(0)
        np.testing.assert_allclose([width, height], 1.2 * (high - low))
        np.testing.assert_allclose([x + width / 2, y + height / 2], (low + high) / 2)
        cover = render(SEED, slot_of("train", idx)).cover
        at = np.round(pixel).astype(int)
        inside = (at >= 0).all(1) & (at < [image["width"], image["height"]]).all(1)
        assert inside.mean() > 0.85
        assert (cover[at[inside, 1], at[inside, 0]] > 0.5).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_smplx_decodes_the_mano_files_to_the_joints(root: Path, side: str) -> None:
    layer = smplx.MANO(str(root / "mano"), use_pca=False, is_rhand=side == "right", ext="npz")
    regressor = np.load(root / "mano" / "J_regressor_mano_ih26m.npy")
    mano, joints = read(root, "train", "MANO_NeuralAnnot"), read(root, "train", "joint_3d")
    start = 0 if side == "right" else 21
    checked = 0
    for capture, frames in mano.items():
        for name, entry in frames.items():
            if entry[side] is None:
                continue
            pose, shape, trans = (
                torch.tensor([entry[side][key]], dtype=torch.float32)
                for key in ("pose", "shape", "trans")
            )
            out = layer(betas=shape, global_orient=pose[:, :3], hand_pose=pose[:, 3:], transl=trans)
            found_mm = regressor @ out.vertices[0].detach().numpy() * 1000.0
            frame = joints[capture][name]
            valid = np.array(frame["joint_valid"])[start : start + 21, 0]
            world = np.array(frame["world_coord"])[start : start + 21]
            # float32 at 1 m: 1e-7 m per operation.
            np.testing.assert_allclose(found_mm[valid], world[valid], atol=5e-3)
            checked += 1
    assert checked >= 3


def test_the_shipped_left_hand_does_not_decode_them(root: Path) -> None:
    right, left = (
        np.load(root / "mano_shipped" / f"MANO_{s}.npz")["shapedirs"] for s in ("RIGHT", "LEFT")
    )
    assert np.abs(right[:, 0] - left[:, 0]).sum() < 1
    correct = np.load(root / "mano" / "MANO_LEFT.npz")["shapedirs"]
    np.testing.assert_allclose(left[:, 0], -correct[:, 0])


def test_two_hands_keep_apart() -> None:
    for sequence in (2, 5, 8):
        right, left = pose_hands(
            3, Slot(split="train", sequence=sequence, frame=1, camera="400012")
        )
        gaps = np.linalg.norm(right.vertices[:, None] - left.vertices[None], axis=2)
        assert 0.0025 < gaps.min() < 0.12


def test_some_frames_lack_joints_and_some_lack_mano() -> None:
    from preprocess.sample.interhand26m.write import joint_labels, mano_label

    slots = {(s.sequence, s.frame): s for s in (slot_of("train", i) for i in range(300))}
    holes, missing = 0, 0
    for slot in list(slots.values())[:80]:
        _, valid = joint_labels(1, slot)
        expected = {"right": [0], "left": [1], "interacting": [0, 1]}[slot.hand_type]
        for hand in (0, 1):
            part = valid[21 * hand : 21 * hand + 21]
            assert part[20] == (hand in expected)  # the wrist
            assert part.any() == (hand in expected)
            holes += bool(hand in expected and not part.all())
        label = mano_label(1, slot)
        missing += sum(label[("right", "left")[hand]] is None for hand in expected)
    assert holes > 3
    assert missing > 2


def test_slots_are_unique_and_frames_unique_within_a_capture() -> None:
    slots = [slot_of("train", i) for i in range(400)]
    assert len({slot.file_name for slot in slots}) == 400
    owner: dict[tuple[int, int], int] = {}
    for slot in slots:
        key = (slot.capture, slot.frame_idx)
        assert owner.setdefault(key, slot.sequence) == slot.sequence
