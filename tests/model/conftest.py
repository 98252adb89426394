"""A random stand-in for MANO: right shapes, row-normalised regressor and weights, no hand."""

from pathlib import Path

import numpy as np
import pytest

from model.mano.files import ManoModels, load_mano

MIRROR = np.array([-1.0, 1.0, 1.0])


def random_mano(seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the arrays of a right model and of the left model that mirrors it."""
    rng = np.random.default_rng(seed)
    weights = rng.random((778, 16)) ** 8
    J_regressor = rng.random((16, 778)) ** 40
    parents = [2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    right = {
        "v_template": rng.normal(0, 0.05, (778, 3)),
        "shapedirs": rng.normal(0, 0.003, (778, 3, 10)),
        "posedirs": rng.normal(0, 0.001, (778, 3, 135)),
        "J_regressor": J_regressor / J_regressor.sum(1, keepdims=True),
        "weights": weights / weights.sum(1, keepdims=True),
        "hands_mean": rng.normal(0, 0.2, 45),
        "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0],
        "f": rng.integers(0, 778, (1538, 3)).astype(np.uint32),
        "kintree_table": np.array([parents, range(16)], np.uint32),
    }
    # A mirrored rotation is M R M, so entry (i, k) of the pose feature changes sign by M_i M_k.
    feature_sign = np.tile(np.outer(MIRROR, MIRROR).ravel(), 15)
    left = dict(right)
    left["v_template"] = right["v_template"] * MIRROR
    left["shapedirs"] = right["shapedirs"] * MIRROR[:, None]
    left["posedirs"] = right["posedirs"] * MIRROR[:, None] * feature_sign
    left["hands_mean"] = right["hands_mean"] * np.tile(-MIRROR, 15)
    left["hands_components"] = right["hands_components"] * np.tile(-MIRROR, 15)
    left["f"] = right["f"][:, ::-1]
    return right, left


@pytest.fixture(scope="session")
def mano_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both stand-in files; the left one as published (unfixed)."""
    folder = tmp_path_factory.mktemp("mano")
    right, left = random_mano(0)
    left["shapedirs"] = left["shapedirs"] * MIRROR[:, None]
    np.savez(folder / "MANO_RIGHT.npz", allow_pickle=False, **right)
    np.savez(folder / "MANO_LEFT.npz", allow_pickle=False, **left)
    return folder


@pytest.fixture(scope="session")
def mano(mano_folder: Path) -> ManoModels:
    return load_mano(mano_folder)
