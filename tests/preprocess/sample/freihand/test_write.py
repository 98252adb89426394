import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import smplx
import torch

from model.hand import STANDARD_FROM_MANO21
from preprocess.sample.generate import write_sample

NUM, NUM_EVAL = 5, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("freihand") / "sample"
    write_sample("freihand", path, NUM, 7, num_eval=NUM_EVAL, workers=1)
    return path


def read(root: Path, name: str) -> Any:
    return json.loads((root / f"{name}.json").read_text())


def project(K: np.ndarray, points: np.ndarray) -> np.ndarray:
    homogeneous = points @ K.T
    return np.asarray(homogeneous[:, :2] / homogeneous[:, 2:])


def test_tree_is_the_official_one(root: Path) -> None:
    names = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    fields = ("K", "mano", "xyz", "scale", "verts")
    assert names == {
        "SYNTHETIC.txt",
        *(f"training/rgb/{i:08d}.jpg" for i in range(4 * NUM)),
        *(f"training/mask/{i:08d}.jpg" for i in range(NUM)),
        *(f"evaluation/rgb/{i:08d}.jpg" for i in range(NUM_EVAL)),
        *(f"{split}_{field}.json" for split in ("training", "evaluation") for field in fields),
        *(
            f"{folder}/{name}"
            for folder in ("mano", "mano_shipped")
            for name in ("MANO_RIGHT.npz", "MANO_LEFT.npz", "J_regressor_mano_ih26m.npy")
        ),
    }


@pytest.mark.parametrize(("split", "count"), [("training", NUM), ("evaluation", NUM_EVAL)])
def test_label_rows_have_the_official_shapes(root: Path, split: str, count: int) -> None:
    shapes = {
        field: np.array(read(root, f"{split}_{field}")).shape
        for field in ("K", "mano", "xyz", "scale", "verts")
    }
    assert shapes == {
        "K": (count, 3, 3),
        "mano": (count, 1, 61),
        "xyz": (count, 21, 3),
        "scale": (count,),
        "verts": (count, 778, 3),
    }


@pytest.mark.parametrize("split", ["training", "evaluation"])
def test_smplx_decodes_the_mano_rows_to_the_vertices(root: Path, split: str) -> None:
    layer = smplx.MANO(
        str(root / "mano"), use_pca=False, flat_hand_mean=False, is_rhand=True, ext="npz"
    )
    regressor = np.load(root / "mano" / "MANO_RIGHT.npz")["J_regressor"]
    rows = zip(
        *(read(root, f"{split}_{field}") for field in ("mano", "verts", "xyz", "K", "scale")),
        strict=True,
    )
    for mano, verts, xyz, K_row, scale in rows:
        row, K = np.array(mano[0]), np.array(K_row)
        pose, shape = torch.tensor(row[None, :48]).float(), torch.tensor(row[None, 48:58]).float()
        out = layer(betas=shape, global_orient=pose[:, :3], hand_pose=pose[:, 3:])
        posed = out.vertices[0].detach().numpy().astype(np.float64)
        tips = posed[[744, 320, 443, 555, 672]]
        joints = np.concatenate([regressor @ posed, tips])[list(STANDARD_FROM_MANO21)]
        # FreiHAND utils/model.py: the translation comes from the middle finger's base.
        focal = (K[0, 0] + K[1, 1]) / 2
        u, v = row[58:60]
        root_xyz = np.array([u - K[0, 2], v - K[1, 2], focal]) / row[60]
        shift = root_xyz - joints[9]
        np.testing.assert_allclose(posed + shift, verts, atol=1e-5)
        np.testing.assert_allclose(joints + shift, xyz, atol=1e-5)
        assert np.linalg.norm(np.subtract(xyz[9], xyz[10])) == pytest.approx(scale)
        assert K[0, 0] == K[1, 1]


def test_joints_and_vertices_land_on_the_mask(root: Path) -> None:
    columns = zip(
        *(read(root, f"training_{field}") for field in ("K", "xyz", "verts")), strict=True
    )
    for i, (K, xyz, verts) in enumerate(columns):
        mask = cv2.imread(str(root / f"training/mask/{i:08d}.jpg"), cv2.IMREAD_GRAYSCALE)
        assert mask is not None
        assert mask.shape == (224, 224)
        outline = project(np.array(K), np.array(verts))
        assert outline.min() >= 2.0
        assert outline.max() <= 221.0
        extent = (outline.max(0) - outline.min(0)).max() / 224
        assert 0.49 < extent < 0.86
        pixel = np.round(project(np.array(K), np.array(xyz))).astype(int)
        grown = cv2.dilate(mask, np.ones((3, 3), np.uint8))
        # Joints lie inside the flesh, tips on the skin.
        inner = np.delete(pixel, [4, 8, 12, 16, 20], axis=0)
        assert (mask[inner[:, 1], inner[:, 0]] > 127).all()
        assert (grown[pixel[:, 1], pixel[:, 0]] > 127).all()
        at = np.round(outline).astype(int)
        assert (grown[at[:, 1], at[:, 0]] > 100).all()
        # The mask is the hand with its forearm and no more than that.
        assert 0.02 < (mask > 127).mean() < 0.6


def test_masked_pixels_differ_from_the_green_screen(root: Path) -> None:
    for i in range(NUM):
        mask = cv2.imread(str(root / f"training/mask/{i:08d}.jpg"), cv2.IMREAD_GRAYSCALE)
        image = cv2.imread(str(root / f"training/rgb/{i:08d}.jpg"))
        assert mask is not None
        assert image is not None
        blue, green, red = (image[:, :, c].astype(float) for c in range(3))
        greenness = green - np.maximum(blue, red)
        assert np.median(greenness[mask < 20]) > 20
        assert np.median(greenness[mask > 235]) < 5


def test_versions_share_the_hand_and_differ_behind_it(root: Path) -> None:
    mask = cv2.imread(str(root / "training/mask/00000002.jpg"), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    hand, behind = cv2.erode(mask, np.ones((7, 7), np.uint8)) > 235, mask < 20
    pictures = []
    for version in range(4):
        image = cv2.imread(str(root / f"training/rgb/{2 + NUM * version:08d}.jpg"))
        assert image is not None
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float)
        pictures.append(grey)
    for other in pictures[1:]:
        assert np.corrcoef(pictures[0][hand], other[hand])[0, 1] > 0.8
        assert abs(np.corrcoef(pictures[0][behind], other[behind])[0, 1]) < 0.6


def test_images_are_baseline_420_jpegs(root: Path) -> None:
    for path in (root / "training" / "rgb").iterdir():
        data = path.read_bytes()
        at = data.index(b"\xff\xc0")  # SOF0: baseline
        assert b"\xff\xc2" not in data[: at + 1]
        height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
        assert (height, width) == (224, 224)
        sampling = [data[at + 11 + 3 * c] for c in range(data[at + 9])]
        assert sampling == [0x22, 0x11, 0x11]
