import hashlib
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from preprocess.sample.freihand import write as freihand
from preprocess.sample.generate import _freihand_task, _interhand26m_task, write_sample
from preprocess.sample.interhand26m import write as interhand26m


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["freihand", "interhand26m", "dexycb", "ho3d", "arctic"])
def test_number_of_workers_changes_nothing(dataset: str, tmp_path: Path) -> None:
    # Starting two processes alone takes seconds: they import torch.
    for workers in (1, 2):
        write_sample(dataset, tmp_path / str(workers), 17, 1, num_eval=8, workers=workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


def test_tasks_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    for job in (partial(_freihand_task, tmp_path, 0, 4), partial(_interhand26m_task, tmp_path, 0)):
        assert pickle.loads(pickle.dumps(job)).args == job.args  # noqa: S301


def test_freihand_samples_do_not_depend_on_num_or_order(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    write_sample("freihand", small, 2, 11, num_eval=1, workers=1)
    freihand.make_folders(large)
    row = freihand.write_one(large, 11, "training", 1, 50)
    for version in range(4):
        one = small / f"training/rgb/{1 + 2 * version:08d}.jpg"
        other = large / f"training/rgb/{1 + 50 * version:08d}.jpg"
        assert one.read_bytes() == other.read_bytes()
    assert row["xyz"] in (small / "training_xyz.json").read_text()
    assert row["mano"] in (small / "training_mano.json").read_text()


def test_interhand26m_samples_do_not_depend_on_num_or_order(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    rows = [interhand26m.write_one(one, 2, "train", i) for i in (0, 1, 2)]
    again = [interhand26m.write_one(other, 2, "train", i) for i in (2, 0)]
    assert [again[1], again[0]] == [rows[0], rows[2]]
    for row in again:
        name = Path("images") / "train" / row.slot.file_name
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_seeds_and_splits_differ() -> None:
    scenes = [
        freihand.draw_scene(seed, split, 0).vertices
        for seed, split in ((0, "training"), (1, "training"), (0, "evaluation"))
    ]
    assert not np.allclose(scenes[0], scenes[1])
    assert not np.allclose(scenes[0], scenes[2])


def test_progress_and_summary(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = write_sample(
        "freihand",
        tmp_path / "out",
        1,
        0,
        num_eval=2,
        workers=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert summary.num_images == {"training": 4, "evaluation": 2}
    assert (summary.mano / "MANO_LEFT.npz").is_file()
    assert (summary.mano_shipped / "MANO_LEFT.npz").is_file()


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dexycb, ho3d, arctic, got 'nope'"):
        write_sample("nope", tmp_path, 1, 0)
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        write_sample("freihand", tmp_path, 0, 0)
    with pytest.raises(ValueError, match="num_eval must be at least 1, got 0"):
        write_sample("freihand", tmp_path, 1, 0, num_eval=0)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_sample("freihand", tmp_path, 1, 0)
