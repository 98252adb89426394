"""DexYCB's files: the result text, the annotation pickle, and what can be wrong with them."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.reference import dexycb as loops
from tests.train.evaluate.protocols.hands import near, points
from train.evaluate.protocols import dexycb

NUM = 6


@pytest.fixture
def truth_mm() -> np.ndarray:
    """Labels as the toolkit holds them: metres in float32, scaled, then widened."""
    metres = points(np.random.default_rng(1), NUM, 21).astype(np.float32)
    return (metres * np.float32(1000)).astype(np.float64)


@pytest.fixture
def guess_mm(truth_mm: np.ndarray) -> np.ndarray:
    return near(np.random.default_rng(2), truth_mm, 9.0).round(6)


def annotation(folder: Path, truth_mm: np.ndarray, index: list[int], protocol: int = 4) -> Path:
    path = folder / "anno_hpe_s0_test.pkl"
    table = {i: row.astype(np.float32) for i, row in zip(index, truth_mm, strict=True)}
    path.write_bytes(pickle.dumps({"joint_3d": table}, protocol=protocol))
    return path


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_scores_are_those_of_the_loops(
    tmp_path: Path, truth_mm: np.ndarray, guess_mm: np.ndarray, *, strict: bool, protocol: int
) -> None:
    guess_mm[2] = (truth_mm[2] * [-1, 1, 1]).round(6)  # as the file holds it
    index = [0, 3, 4, 7, 9, 20]
    truth = annotation(tmp_path, truth_mm, index, protocol)
    results = tmp_path / "results.txt"
    # Frames without a hand may be there too; the last line of an image counts.
    lines = np.concatenate((guess_mm[:1] + 50, guess_mm[::-1], guess_mm[:1] * 0))
    dexycb.write_results(results, np.array([0, *index[::-1], 5]), lines)
    report = dexycb.score(results, truth, strict=strict)
    expected = loops.score(truth_mm, guess_mm, strict=strict)
    for name, (mean, auc) in expected.items():
        assert report.official[name] == pytest.approx({"mpjpe": mean, "auc": auc}, rel=1e-9)
    assert report.num_samples == NUM
    assert dexycb.score(results, tmp_path, strict=strict).official == report.official


def test_other_forms_of_truth_give_the_same(
    tmp_path: Path, truth_mm: np.ndarray, guess_mm: np.ndarray
) -> None:
    index = np.arange(NUM)
    results = tmp_path / "results.txt"
    dexycb.write_results(results, index, guess_mm)
    truth_mm[4] = -1000  # the toolkit's mark of a frame without a hand
    np.savez(tmp_path / "truth.npz", index=index, joints_mm=truth_mm)
    dexycb.write_results(tmp_path / "truth.txt", index, truth_mm)
    seen = np.arange(NUM) != 4
    mean, _ = loops.score(truth_mm[seen], guess_mm[seen])["absolute"]
    for name in ("truth.npz", "truth.txt"):
        report = dexycb.score(results, tmp_path / name, strict=False)
        assert report.num_samples == NUM - 1
        assert report.official["absolute"]["mpjpe"] == pytest.approx(mean, rel=1e-7)


def test_an_image_without_a_prediction_is_named(
    tmp_path: Path, truth_mm: np.ndarray, guess_mm: np.ndarray
) -> None:
    truth = annotation(tmp_path, truth_mm, [1, 2, 3, 4, 5, 6])
    results = tmp_path / "results.txt"
    dexycb.write_results(results, np.array([1, 2, 4, 5, 6]), guess_mm[:5])
    with pytest.raises(ValueError, match=r"1 of 6 images with a hand have no prediction.*image 3"):
        dexycb.score(results, truth, strict=False)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0,1,2", "line 1: expected an image index and 63 numbers .*, got .0,1,2."),
        (",".join(["0.5"] * 64), "line 1: expected an image index"),
        (",".join(["0", *["x"] * 63]), "line 1"),
        ("", "is empty"),
        (
            ",".join(["0", *["nan"] * 63]),
            "results.txt: 1 of 1 images with a hand hold NaN .*first: image 0",
        ),
    ],
)
def test_a_broken_result_file_is_one_sentence(
    tmp_path: Path, truth_mm: np.ndarray, line: str, expected: str
) -> None:
    truth = annotation(tmp_path, truth_mm[:1], [0])
    (tmp_path / "results.txt").write_text(line)
    with pytest.raises(ValueError, match=expected):
        dexycb.score(tmp_path / "results.txt", truth, strict=False)


def test_metres_are_refused(tmp_path: Path, truth_mm: np.ndarray, guess_mm: np.ndarray) -> None:
    truth = annotation(tmp_path, truth_mm, list(range(NUM)))
    dexycb.write_results(tmp_path / "results.txt", np.arange(NUM), guess_mm / 1000)
    with pytest.raises(ValueError, match=r"look like metres.*holds millimetres; multiply by 1000"):
        dexycb.score(tmp_path / "results.txt", truth, strict=False)


def test_a_truth_in_metres_is_refused(
    tmp_path: Path, truth_mm: np.ndarray, guess_mm: np.ndarray
) -> None:
    """Predictions in the same unit would look right beside it."""
    index = np.arange(NUM)
    np.savez(tmp_path / "truth.npz", index=index, joints_mm=truth_mm / 1000)
    dexycb.write_results(tmp_path / "results.txt", index, guess_mm / 1000)
    with pytest.raises(ValueError, match=r"truth\.npz, joints look like metres.* as large as a "):
        dexycb.score(tmp_path / "results.txt", tmp_path / "truth.npz", strict=False)


def test_a_hostile_annotation_is_refused(tmp_path: Path, guess_mm: np.ndarray) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    (tmp_path / "truth.pkl").write_bytes(pickle.dumps({"joint_3d": Evil()}))
    dexycb.write_results(tmp_path / "results.txt", np.arange(NUM), guess_mm)
    with pytest.raises(ValueError, match="print"):
        dexycb.score(tmp_path / "results.txt", tmp_path / "truth.pkl", strict=False)


def test_a_folder_without_annotation_says_what_it_wants(
    tmp_path: Path, guess_mm: np.ndarray
) -> None:
    dexycb.write_results(tmp_path / "results.txt", np.arange(NUM), guess_mm)
    with pytest.raises(FileNotFoundError, match=r"expected one anno_hpe_<setup>\.pkl"):
        dexycb.score(tmp_path / "results.txt", tmp_path, strict=False)


def test_windows_text_blank_lines_and_numpy_keys_are_read(
    tmp_path: Path, truth_mm: np.ndarray, guess_mm: np.ndarray
) -> None:
    table = {np.int64(i): row for i, row in enumerate(truth_mm.astype(np.float32))}
    (tmp_path / "truth.pkl").write_bytes(pickle.dumps({"joint_3d": table}))
    results = tmp_path / "results.txt"
    dexycb.write_results(results, np.arange(NUM), guess_mm)
    expected = dexycb.score(results, tmp_path / "truth.pkl", strict=False).official
    lines = results.read_text().splitlines()
    big = ",".join([str(10**25), *lines[0].split(",")[1:]])
    results.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, big, "", ""]).encode())
    assert dexycb.score(results, tmp_path / "truth.pkl", strict=False).official == expected
    results.write_bytes(b"\xff\xfe0,1")
    with pytest.raises(ValueError, match="is no text"):
        dexycb.score(results, tmp_path / "truth.pkl", strict=False)
