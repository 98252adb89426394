"""FreiHAND's and HO-3D's files: scores equal the loops, bad files say what is wrong."""

import json
import resource
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from model.hand import STANDARD_FROM_MANO21
from tests.reference import freihand as freihand_loops
from tests.reference import ho3d as ho3d_loops
from tests.train.evaluate.protocols.hands import near, points
from train.evaluate.protocols import freihand, ho3d
from train.evaluate.protocols.files import write_two_lists

OPENGL = np.array([1.0, -1.0, -1.0])
MANO21_FROM_STANDARD = np.argsort(STANDARD_FROM_MANO21)
NUM = 5


@dataclass(frozen=True, kw_only=True)
class Files:
    protocol: ModuleType
    loops: ModuleType
    joints: np.ndarray
    vertices: np.ndarray
    true_joints: np.ndarray
    true_vertices: np.ndarray
    folder: Path

    @property
    def truth(self) -> Path:
        return self.folder / "truth"


@pytest.fixture(params=["freihand", "ho3d"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    rng = np.random.default_rng(5)
    is_ho3d = request.param == "ho3d"
    axes = OPENGL if is_ho3d else np.ones(3)
    true_joints, true_vertices = points(rng, NUM, 21) * axes, points(rng, NUM, 778) * axes
    (tmp_path / "truth").mkdir()
    for name, value in (("xyz", true_joints), ("verts", true_vertices)):
        (tmp_path / "truth" / f"evaluation_{name}.json").write_text(json.dumps(value.tolist()))
    return Files(
        protocol=ho3d if is_ho3d else freihand,
        loops=ho3d_loops if is_ho3d else freihand_loops,
        joints=near(rng, true_joints, 0.008),
        vertices=near(rng, true_vertices, 0.008),
        true_joints=true_joints,
        true_vertices=true_vertices,
        folder=tmp_path,
    )


def written(files: Files, joints: np.ndarray, vertices: np.ndarray | None = None) -> Path:
    path = files.folder / "pred.json"
    write_two_lists(path, joints, files.vertices if vertices is None else vertices)
    return path


def warnings(files: Files, joints: np.ndarray) -> str:
    report = files.protocol.score(written(files, joints), files.truth, strict=False)
    return " | ".join(report.warnings)


@pytest.mark.parametrize("strict", [False, True])
def test_scores_are_those_of_the_loops(files: Files, *, strict: bool) -> None:
    joints = files.joints.copy()
    joints[0] = files.true_joints[0] * [-1, 1, 1]  # a mirrored hand
    path = written(files, joints)
    report = files.protocol.score(path, files.truth, strict=strict)
    expected = files.loops.score(
        files.true_joints, joints, files.true_vertices, files.vertices, strict=strict
    )
    assert report.official == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert report.num_samples == NUM
    assert report.strict is strict


def test_a_mesh_with_other_vertices_is_scored_as_the_tool_does(files: Files) -> None:
    fewer = files.vertices[:, :500]
    report = files.protocol.score(written(files, files.joints, fewer), files.truth, strict=False)
    expected = files.loops.score(files.true_joints, files.joints, files.true_vertices, fewer)
    assert report.official == pytest.approx(expected, rel=1e-9)
    assert report.scores["mpvpe_mm"] is None


def test_a_folder_and_a_zip_are_understood(files: Files) -> None:
    path = written(files, files.joints)
    expected = files.protocol.score(path, files.truth, strict=False).official
    with zipfile.ZipFile(files.folder / "pred.zip", "w") as archive:
        archive.write(path, "submission/pred.json")
    for given in (files.folder, files.folder / "pred.zip"):
        assert files.protocol.score(given, files.truth, strict=False).official == expected
    verts = files.truth / "evaluation_verts.json"
    assert files.protocol.score(path, verts, strict=False).official == expected
    same = files.folder / "same.json"
    write_two_lists(same, files.true_joints, files.true_vertices)
    assert files.protocol.score(path, same, strict=False).official == expected


def test_another_number_of_samples_is_refused(files: Files) -> None:
    path = written(files, files.joints[:-1], files.vertices[:-1])
    with pytest.raises(ValueError, match=r"hold 4 samples, .*truth holds 5"):
        files.protocol.score(path, files.truth, strict=False)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_refused(files: Files, bad: float) -> None:
    vertices = files.vertices.copy()
    vertices[3, 7, 1] = bad
    with pytest.raises(ValueError, match=r"vertices: 1 of 5 samples hold NaN .*first: 3"):
        files.protocol.score(written(files, files.joints, vertices), files.truth, strict=False)


@pytest.mark.parametrize(
    ("factor", "unit", "cure"),
    [(1000, "millimetres", "divide by 1000"), (100, "centimetres", "divide by 100")],
)
def test_another_unit_is_refused(files: Files, factor: float, unit: str, cure: str) -> None:
    path = written(files, files.joints * factor)
    with pytest.raises(ValueError, match=f"joints look like {unit}.*{cure}"):
        files.protocol.score(path, files.truth, strict=False)
    path = written(files, files.joints, files.vertices * factor)
    with pytest.raises(ValueError, match=f"vertices look like {unit}"):
        files.protocol.score(path, files.truth, strict=False)


def test_a_zero_prediction_is_scored(files: Files) -> None:
    path = written(files, files.joints * 0, files.vertices * 0)
    report = files.protocol.score(path, files.truth, strict=False)
    assert report.official["xyz_mean3d"] > 50
    assert not [w for w in report.warnings if "look" in w]


def test_good_predictions_raise_no_suspicion(files: Files) -> None:
    found = warnings(files, files.joints)
    assert "look" not in found
    assert "official evaluation has" in found  # 5 samples


def test_foreign_axes_are_flagged(files: Files) -> None:
    theirs = "OpenCV" if files.protocol is ho3d else "OpenGL"
    assert f"look like {theirs} axes" in warnings(files, files.joints * OPENGL)


def test_a_foreign_joint_order_is_flagged(files: Files) -> None:
    if files.protocol is ho3d:
        joints, theirs = files.joints[:, list(STANDARD_FROM_MANO21)], "standard"
    else:
        joints, theirs = files.joints[:, MANO21_FROM_STANDARD], "MANO"
    assert f"look to be in {theirs} order" in warnings(files, joints)


@pytest.mark.parametrize(("joint", "named"), [(0, "the wrist"), (9, "joint 9")])
def test_root_relative_joints_are_flagged(files: Files, joint: int, named: str) -> None:
    found = warnings(files, files.joints - files.joints[:, joint, None])
    assert f"in every sample {named} is predicted at (0, 0, 0): the joints look relative" in found


def test_meshes_that_are_zeros_are_flagged(files: Files) -> None:
    vertices = files.vertices.copy()
    vertices[1:3] = 0
    path = written(files, files.joints, vertices)
    found = " | ".join(files.protocol.score(path, files.truth, strict=False).warnings)
    assert "the predicted vertices of 2 of 5 samples are zeros" in found


def test_a_zip_is_written_to_be_uploaded(files: Files) -> None:
    path = files.folder / "upload.zip"
    write_two_lists(path, files.joints, files.vertices)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        text = archive.read("pred.json").decode()
    assert text == json.dumps([files.joints.tolist(), files.vertices.tolist()])
    expected = files.protocol.score(written(files, files.joints), files.truth, strict=False)
    assert files.protocol.score(path, files.truth, strict=False).official == expected.official


@pytest.mark.parametrize("name", ["pred.json", "pred.zip"])
def test_a_full_disk_leaves_the_export_of_before(files: Files, name: str) -> None:
    path = files.folder / name
    path.write_text("before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: .*{name}"):
            write_two_lists(path, files.joints, files.vertices)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "before"
    assert not list(files.folder.glob("*.partial"))


def test_mirrored_hands_are_flagged(files: Files) -> None:
    assert "look mirrored" in warnings(files, files.joints * [-1, 1, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("{}", r"expected a list \[joints, vertices\] of two lists, got dict of 0"),
        ("[[]]", "got list of 1"),
        ("5", "got int of no length"),
        ("[[[[1,2,3]]], [[[1,2,3]]]]", r"joints: expected shape \(n, 21, 3\), got \(1, 1, 3\)"),
        ("[[[[1,2],[3]]], []]", "joints: expected numbers of shape .*, got lists of uneven length"),
        ('[[["a"]], []]', "expected numbers"),
    ],
)
def test_a_broken_file_is_one_sentence(files: Files, text: str, expected: str) -> None:
    path = files.folder / "pred.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        files.protocol.score(path, files.truth, strict=False)


def test_missing_files_are_named(files: Files) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no pred\.json and not one single"):
        files.protocol.score(files.folder, files.truth, strict=False)
    path = written(files, files.joints)
    (files.truth / "evaluation_verts.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks evaluation_verts\.json"):
        files.protocol.score(path, files.truth, strict=False)
