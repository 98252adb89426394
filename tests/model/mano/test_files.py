"""The left hand as MANO ships it, whichever left file the user has."""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from model.mano.files import ManoModels, find_mano, load_mano
from tests.model.conftest import MIRROR, random_mano


def _loaded(folder: Path, *, fixed: bool) -> ManoModels:
    right, left = random_mano(5)
    if not fixed:
        left["shapedirs"] = left["shapedirs"] * MIRROR[:, None]
    folder.mkdir()
    np.savez(folder / "MANO_RIGHT.npz", allow_pickle=False, **right)
    np.savez(folder / "MANO_LEFT.npz", allow_pickle=False, **left)
    return load_mano(folder)


def test_the_left_hand_as_shipped_is_the_file_as_published(tmp_path: Path) -> None:
    right, left = random_mano(5)
    models = _loaded(tmp_path / "published", fixed=False)
    published = left["shapedirs"] * MIRROR[:, None]
    np.testing.assert_array_equal(models.left_as_shipped.shapedirs, published)
    np.testing.assert_array_equal(models.left.shapedirs, left["shapedirs"])
    np.testing.assert_array_equal(published[:, 0], right["shapedirs"][:, 0])  # the bug itself
    for field in fields(models.left):
        if field.name != "shapedirs":
            one, other = (getattr(m, field.name) for m in (models.left, models.left_as_shipped))
            np.testing.assert_array_equal(one, other)


def test_models_with_one_hash_decode_alike(tmp_path: Path) -> None:
    published = _loaded(tmp_path / "published", fixed=False)
    fixed = _loaded(tmp_path / "fixed", fixed=True)
    assert published.sha256 == fixed.sha256
    assert published.left_was_unfixed
    assert not fixed.left_was_unfixed
    for side in ("left", "left_as_shipped"):
        one, other = (getattr(models, side).shapedirs for models in (published, fixed))
        np.testing.assert_array_equal(one, other)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m preprocess import-mano path=.* out="):
        find_mano(str(tmp_path))
