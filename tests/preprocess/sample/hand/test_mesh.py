from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import smplx
import torch
from scipy.spatial.transform import Rotation

from model.hand import FINGERS, MANO_PARENTS, STANDARD_FROM_INTERHAND, TIP_VERTICES
from model.mano.files import ManoArrays, load_mano, mano_forward
from preprocess.sample.hand.mesh import (
    interhand_regressor,
    mirrored,
    stand_in_axes,
    stand_in_mano,
    stand_in_model,
    stand_in_topology,
    write_mano,
)

SIDES = ("right", "left")
LAST_JOINT = {"thumb": 15, "index": 3, "middle": 6, "ring": 12, "little": 9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("mano")
    write_mano(path)
    return path


def random_pose(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.0, 0.5, 48), rng.normal(0.0, 1.0, 10)


def directed_edges(faces: np.ndarray) -> Counter[tuple[int, int]]:
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return Counter((int(a), int(b)) for a, b in pairs)


def capped(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The mesh with its wrist loop closed by a fan."""
    faces = arrays["f"].astype(int)
    edges = directed_edges(faces)
    after = {b: a for a, b in edges if (b, a) not in edges}
    loop = [next(iter(after))]
    while after[loop[-1]] != loop[0]:
        loop.append(after[loop[-1]])
    centre = len(arrays["v_template"])
    fan = [[loop[i], loop[(i + 1) % len(loop)], centre] for i in range(len(loop))]
    points = np.vstack([arrays["v_template"], arrays["v_template"][loop].mean(0)])
    return points, np.vstack([faces, fan])


def winding_number(points: np.ndarray, faces: np.ndarray, at: np.ndarray) -> float:
    """Van Oosterom and Strackee: sum of the solid angles over 4 pi; 1 inside, 0 outside."""
    a, b, c = (points[faces[:, i]] - at for i in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=1) for x in (a, b, c))
    top = (a * np.cross(b, c)).sum(1)
    bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(2.0 * np.arctan2(top, bottom).sum() / (4.0 * np.pi))


@pytest.mark.parametrize("side", SIDES)
def test_arrays_have_the_layout_of_a_mano_file(side: str) -> None:
    arrays = stand_in_mano()[side]
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "v_template": (778, 3),
        "f": (1538, 3),
        "J_regressor": (16, 778),
        "kintree_table": (2, 16),
        "weights": (778, 16),
        "posedirs": (778, 3, 135),
        "shapedirs": (778, 3, 10),
        "hands_mean": (45,),
        "hands_components": (45, 45),
    }
    assert arrays["f"].dtype == np.uint32
    assert arrays["kintree_table"][0].tolist() == [4294967295, *MANO_PARENTS[1:]]
    for name in ("J_regressor", "weights"):
        assert (arrays[name] >= 0).all()
        np.testing.assert_allclose(arrays[name].sum(1), 1.0, atol=1e-12)
    assert ((arrays["J_regressor"] > 0).sum(1) <= 40).all()
    assert np.linalg.norm(arrays["hands_mean"]) > 0.5
    np.testing.assert_allclose(
        arrays["hands_components"] @ arrays["hands_components"].T, np.eye(45), atol=1e-12
    )
    assert 1e-4 < np.abs(arrays["posedirs"]).max() < 5e-3


@pytest.mark.parametrize("side", SIDES)
def test_mesh_is_a_disk_with_a_wrist_loop_of_sixteen(side: str) -> None:
    faces = stand_in_mano()[side]["f"].astype(int)
    edges = directed_edges(faces)
    assert max(edges.values()) == 1  # consistently oriented manifold
    boundary = [edge for edge in edges if edge[::-1] not in edges]
    undirected = {tuple(sorted(edge)) for edge in edges}
    assert len(boundary) == 16
    assert {a for a, _ in boundary} == set(stand_in_topology().wrist.tolist())
    assert 778 - len(undirected) + 1538 == 1
    assert set(faces.ravel().tolist()) == set(range(778))


@pytest.mark.parametrize("side", SIDES)
def test_mesh_is_closed_outward_and_holds_its_joints(side: str) -> None:
    arrays = stand_in_mano()[side]
    points, faces = capped(arrays)
    for joint in arrays["J_regressor"] @ arrays["v_template"]:
        assert winding_number(points, faces, joint) == pytest.approx(1.0, abs=1e-6)
    above = arrays["v_template"].mean(0) + np.array([0.0, 0.05, 0.0])
    assert winding_number(points, faces, above) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 2.0, -2.0])
def test_no_face_is_degenerate_or_folded(spread: float) -> None:
    arrays = stand_in_mano()["right"]
    rest = arrays["v_template"]
    points = rest + arrays["shapedirs"] @ np.full(10, spread)
    normals = []
    for vertices in (rest, points):
        corner = vertices[arrays["f"].astype(int)]
        normals.append(np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]))
    area_mm2 = np.linalg.norm(normals[1], axis=1) / 2 * 1e6
    assert area_mm2.min() > 0.5
    assert area_mm2.max() < 200.0
    assert (normals[0] * normals[1]).sum(1).min() > 0


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("convention", TIP_VERTICES)
def test_every_convention_names_fingertips(convention: str, side: str) -> None:
    arrays = stand_in_mano()[side]
    joints = arrays["J_regressor"] @ arrays["v_template"]
    owner = arrays["weights"].argmax(1)
    tips = getattr(TIP_VERTICES[convention], side)
    for finger, tip in zip(FINGERS, tips, strict=True):
        joint = LAST_JOINT[finger]
        reach = np.linalg.norm(arrays["v_template"] - joints[joint], axis=1)
        furthest = reach[owner == joint].max()
        assert owner[tip] == joint
        assert reach[tip] > 0.88 * furthest
        assert furthest < 0.04


def test_hand_has_adult_proportions() -> None:
    arrays = stand_in_mano()["right"]
    points = arrays["v_template"]
    wrist = arrays["J_regressor"][0] @ points
    assert 0.17 < wrist[0] - points[443, 0] < 0.21  # wrist to middle fingertip along -x
    assert points[744, 2] > points[320, 2] > points[672, 2]  # thumb, index, little along z
    joints = arrays["J_regressor"] @ points
    assert 0.05 < joints[1, 2] - joints[7, 2] < 0.08  # across the knuckles
    assert points[:, 1].max() - points[:, 1].min() < 0.07


@pytest.mark.parametrize("is_right", [True, False])
def test_smplx_loads_it_and_agrees(folder: Path, *, is_right: bool) -> None:
    side = "right" if is_right else "left"
    theta, beta = random_pose(3)
    layer = smplx.MANO(
        str(folder), is_rhand=is_right, use_pca=False, flat_hand_mean=False, ext="npz"
    ).double()
    mean = stand_in_mano()[side]["hands_mean"]
    output = layer(
        betas=torch.from_numpy(beta[None]),
        global_orient=torch.from_numpy(theta[None, :3]),
        hand_pose=torch.from_numpy(theta[None, 3:]),
        transl=torch.tensor([[0.1, -0.2, 0.6]], dtype=torch.float64),
    )
    absolute = theta.copy()
    absolute[3:] += mean
    expected, joints = mano_forward(
        stand_in_model(side), absolute[None], beta[None], np.array([[0.1, -0.2, 0.6]])
    )
    # smplx reads the files as float32.
    np.testing.assert_allclose(output.vertices.detach().numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(output.joints.detach().numpy(), joints, atol=1e-6)


@pytest.mark.parametrize("is_right", [True, False])
def test_smplx_layer_takes_rotation_matrices(folder: Path, *, is_right: bool) -> None:
    side = "right" if is_right else "left"
    theta, beta = random_pose(4)
    layer = smplx.MANOLayer(str(folder), is_rhand=is_right, ext="npz").double()
    matrices = torch.from_numpy(Rotation.from_rotvec(theta.reshape(16, 3)).as_matrix())[None]
    output = layer(
        betas=torch.from_numpy(beta[None]),
        global_orient=matrices[:, :1],
        hand_pose=matrices[:, 1:],
        transl=torch.zeros(1, 3, dtype=torch.float64),
    )
    expected, _ = mano_forward(stand_in_model(side), theta[None], beta[None], np.zeros((1, 3)))
    np.testing.assert_allclose(output.vertices.detach().numpy(), expected, atol=1e-6)


def test_left_hand_is_the_mirror_image_in_every_pose() -> None:
    for seed in range(3):
        theta, beta = random_pose(seed)
        reflected = (theta.reshape(16, 3) * [1.0, -1.0, -1.0]).ravel()
        right, _ = mano_forward(stand_in_model("right"), theta[None], beta[None], np.zeros((1, 3)))
        left, _ = mano_forward(
            stand_in_model("left"), reflected[None], beta[None], np.zeros((1, 3))
        )
        np.testing.assert_allclose(left[0], right[0] * [-1.0, 1.0, 1.0], atol=1e-10)


def test_mirroring_holds_for_pose_correctives_of_any_kind() -> None:
    # The stand-in's own correctives use the diagonal of R - I only, whose signs do not change.
    right = {
        **stand_in_mano()["right"],
        "posedirs": np.random.default_rng(8).normal(0.0, 1e-3, (778, 3, 135)),
    }
    left = mirrored(right)
    theta, beta = random_pose(9)
    reflected = (theta.reshape(16, 3) * [1.0, -1.0, -1.0]).ravel()
    found = [
        mano_forward(
            ManoArrays(**{**arrays, "f": arrays["f"].astype(np.int64)}),
            pose[None],
            beta[None],
            np.zeros((1, 3)),
        )[0][0]
        for arrays, pose in ((right, theta), (left, reflected))
    ]
    np.testing.assert_allclose(found[1], found[0] * [-1.0, 1.0, 1.0], atol=1e-10)


def test_mean_pose_is_mirrored_with_the_hand() -> None:
    hands = stand_in_mano()
    signs = np.tile([1.0, -1.0, -1.0], 15)
    coefficients = np.random.default_rng(0).normal(size=45)
    right = hands["right"]["hands_mean"] + coefficients @ hands["right"]["hands_components"]
    left = hands["left"]["hands_mean"] + coefficients @ hands["left"]["hands_components"]
    np.testing.assert_allclose(left, right * signs, atol=1e-12)


def test_mean_pose_bends_the_fingers_towards_the_palm() -> None:
    model = stand_in_model("right")
    theta = np.concatenate([np.zeros(3), model.hands_mean])
    posed, _ = mano_forward(model, theta[None], np.zeros((1, 10)), np.zeros((1, 3)))
    for tip in (320, 443, 555, 672):
        # The palm looks along -y.
        assert posed[0, tip, 1] < model.v_template[tip, 1] - 0.02


def test_flexion_axes_are_unit_and_square_to_the_bones() -> None:
    axes = stand_in_axes()
    np.testing.assert_allclose(
        axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (16, 1, 1)), atol=1e-12
    )


def test_shape_components_move_what_they_say() -> None:
    arrays = stand_in_mano()["right"]

    def lengths(beta: np.ndarray) -> np.ndarray:
        """Thumb, index, middle, ring, little, palm length, palm width, girth of the index."""
        points = arrays["v_template"] + arrays["shapedirs"] @ beta
        joints = arrays["J_regressor"] @ points
        fingers = [
            np.linalg.norm(points[tip] - joints[LAST_JOINT[finger] - 2])
            for finger, tip in zip(FINGERS, TIP_VERTICES["freihand"].right, strict=True)
        ]
        ring = points[stand_in_topology().rings["index"][5]]
        girth = np.linalg.norm(ring - np.roll(ring, 4, axis=0), axis=1).mean()
        palm = np.linalg.norm(joints[4] - joints[0])
        return np.array([*fingers, palm, np.linalg.norm(joints[1] - joints[7]), girth])

    rest = lengths(np.zeros(10))
    change = np.stack([lengths(np.eye(10)[k]) / rest - 1.0 for k in range(10)])
    for k in range(5):
        assert change[k, k] == pytest.approx(0.05, abs=0.003)
        assert np.abs(np.delete(change[k], k)).max() < 0.006
    assert change[5, 5] == pytest.approx(0.035, abs=0.004)
    assert change[6, 6] == pytest.approx(0.045, abs=0.012)
    assert change[8, 7] == pytest.approx(0.055, abs=0.01)
    np.testing.assert_allclose(change[9], 0.045, atol=0.004)


def test_shipped_variant_has_the_left_shape_bug(folder: Path, tmp_path: Path) -> None:
    write_mano(tmp_path, shapedirs_bug=True)
    gaps = {}
    for name, path in (("correct", folder), ("shipped", tmp_path)):
        right = np.load(path / "MANO_RIGHT.npz")["shapedirs"]
        left = np.load(path / "MANO_LEFT.npz")["shapedirs"]
        gaps[name] = np.abs(left[:, 0] - right[:, 0]).sum()
    assert gaps["shipped"] < 1 < gaps["correct"]
    fixed, correct = load_mano(tmp_path), load_mano(folder)
    assert fixed.left_was_unfixed
    assert not correct.left_was_unfixed
    np.testing.assert_array_equal(fixed.left.shapedirs, correct.left.shapedirs)


def test_interhand_regressor_is_close_to_manos_but_not_it(folder: Path) -> None:
    regressor = np.load(folder / "J_regressor_mano_ih26m.npy")
    assert regressor.dtype == np.float32
    np.testing.assert_array_equal(regressor, interhand_regressor())
    np.testing.assert_allclose(regressor.sum(1), 1.0, atol=1e-5)
    arrays = stand_in_mano()["right"]
    theirs = (regressor @ arrays["v_template"])[list(STANDARD_FROM_INTERHAND)]
    ours = arrays["J_regressor"] @ arrays["v_template"]
    mano = np.zeros((21, 3))
    mano[[0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19]] = ours[
        [0, 13, 14, 15, 1, 2, 3, 4, 5, 6, 10, 11, 12, 7, 8, 9]
    ]
    mano[[4, 8, 12, 16, 20]] = arrays["v_template"][[744, 320, 443, 555, 672]]
    gap_mm = np.linalg.norm(theirs - mano, axis=1) * 1e3
    assert gap_mm.min() > 0.5
    assert gap_mm.max() < 8.0
