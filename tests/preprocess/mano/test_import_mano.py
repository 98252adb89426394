"""A download becomes exactly its arrays, which smplx reads; a bad one changes nothing."""

import hashlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import smplx
import torch
from smplx.utils import Struct

from model.mano.files import load_mano, mano_forward
from pipeline.app.cli import front_door
from preprocess.__main__ import COMMANDS
from preprocess.config import ImportManoConfig
from preprocess.mano.import_mano import PUBLISHED_MD5, ImportReport, import_mano, report_text
from tests.model.conftest import MIRROR, random_mano
from tests.pipeline.pickles.pickle_words import mano_pickle

Hand = dict[str, np.ndarray]
Hands = tuple[Hand, Hand]


@pytest.fixture(scope="module")
def hands() -> Hands:
    """Right and left as published: the left shape basis has the x axis of the right one."""
    right, left = random_mano(0)
    left["shapedirs"] = left["shapedirs"] * MIRROR[:, None]
    return right, left


@pytest.fixture(scope="module")
def pickles(hands: Hands) -> dict[str, bytes]:
    return dict(zip(PUBLISHED_MD5, map(mano_pickle, hands), strict=True))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, pickles: dict[str, bytes]) -> Path:
    """Return a folder like the one that the download unpacks to."""
    folder = tmp_path_factory.mktemp("download")
    models = folder / "mano_v1_2" / "models"
    models.mkdir(parents=True)
    for name, content in pickles.items():
        (models / name).write_bytes(content)
    (models / "SMPLH_female.pkl").write_bytes(b"not for us")
    (folder / "mano_v1_2" / "LICENSE.txt").write_text("not for others")
    return folder


def zipped(file: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file


def run(path: Path, out: Path, *, overwrite: bool = False) -> ImportReport:
    return import_mano(ImportManoConfig(path=str(path), out=str(out), overwrite=overwrite))


def refusal(path: Path, out: Path, *, overwrite: bool = False) -> str:
    """Return the sentence of an import that fails and must not have touched ``out``."""
    before = snapshot(out)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the callers look at the words
        run(path, out, overwrite=overwrite)
    assert snapshot(out) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def written(out: Path) -> Hands:
    """Return what is in both files, which must be plain arrays."""
    right, left = (
        dict(np.load(out / name, allow_pickle=False))
        for name in ("MANO_RIGHT.npz", "MANO_LEFT.npz")
    )
    return right, left


def assert_equal(actual: Hands, expected: Hands) -> None:
    right, left = actual
    assert right.keys() == expected[0].keys()
    assert left.keys() == expected[1].keys() | {"shapedirs_fixed"}
    for one, other in zip(actual, expected, strict=True):
        for key, values in other.items():
            assert one[key].dtype == values.dtype
            np.testing.assert_array_equal(one[key], values)
    np.testing.assert_array_equal(left["shapedirs_fixed"], left["shapedirs"] * MIRROR[:, None])


# --- what comes out -------------------------------------------------------------------------------


def test_a_folder_comes_out_exactly(template: Path, tmp_path: Path, hands: Hands) -> None:
    report = run(template, tmp_path / "new" / "mano")
    assert report.done == {"MANO_RIGHT.npz": "written", "MANO_LEFT.npz": "written"}
    assert report.left_was_unfixed
    assert_equal(written(tmp_path / "new" / "mano"), hands)
    assert sorted(f.name for f in (tmp_path / "new" / "mano").iterdir()) == sorted(report.done)


def test_a_zip_comes_out_as_the_folder_does(
    template: Path, tmp_path: Path, pickles: dict[str, bytes]
) -> None:
    members = {f"mano_v1_2/models/{name}": content for name, content in pickles.items()}
    members |= {"mano_v1_2/webuser/lbs.py": b"x", "__MACOSX/mano_v1_2/._MANO_LEFT.pkl": b"x"}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        run(zipped(tmp_path / "mano_v1_2.zip", members, method), tmp_path / f"zip{method}")
        run(template, tmp_path / f"folder{method}")
        for name in ("MANO_RIGHT.npz", "MANO_LEFT.npz"):
            one, other = (tmp_path / f"{kind}{method}" / name for kind in ("zip", "folder"))
            assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_converted_by_python_3(protocol: int, tmp_path: Path, hands: Hands) -> None:
    for name, arrays in zip(PUBLISHED_MD5, hands, strict=True):
        sparse = scipy.sparse.csc_matrix(arrays["J_regressor"])
        content = pickle.dumps({**arrays, "J_regressor": sparse, "bs_type": "lrotmin"}, protocol)
        (tmp_path / name).write_bytes(content)
    run(tmp_path, tmp_path / "out")
    assert_equal(written(tmp_path / "out"), hands)


def test_the_new_spelling_of_scipy_and_numpy(tmp_path: Path, hands: Hands) -> None:
    for name, arrays in zip(PUBLISHED_MD5, hands, strict=True):
        content = mano_pickle(arrays, csc="scipy.sparse._csc")
        content = content.replace(b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n")
        (tmp_path / name).write_bytes(content)
    run(tmp_path, tmp_path / "out")
    assert_equal(written(tmp_path / "out"), hands)


def test_a_left_basis_that_is_right_already_is_kept(tmp_path: Path) -> None:
    hands = random_mano(0)
    for name, arrays in zip(PUBLISHED_MD5, hands, strict=True):
        (tmp_path / name).write_bytes(pickle.dumps(arrays, 2))
    report = run(tmp_path, tmp_path / "out")
    left = written(tmp_path / "out")[1]
    assert not report.left_was_unfixed
    np.testing.assert_array_equal(left["shapedirs"], hands[1]["shapedirs"])
    np.testing.assert_array_equal(left["shapedirs_fixed"], hands[1]["shapedirs"])
    assert "already fixed" in report_text(report)


def test_npz_files_are_checked_and_copied(template: Path, tmp_path: Path, hands: Hands) -> None:
    for name, arrays in zip(("MANO_RIGHT.npz", "MANO_LEFT.npz"), hands, strict=True):
        np.savez(tmp_path / name, allow_pickle=False, **arrays, J=np.zeros((16, 3)))
    report = run(tmp_path, tmp_path / "out")
    assert report.md5 == {}
    assert_equal(written(tmp_path / "out"), hands)
    run(template, tmp_path / "direct")
    assert [*snapshot(tmp_path / "out").values()] == [*snapshot(tmp_path / "direct").values()]


def test_the_product_reads_what_was_written(template: Path, tmp_path: Path, hands: Hands) -> None:
    run(template, tmp_path)
    models = load_mano(tmp_path)
    assert models.left_was_unfixed
    fixed = hands[1]["shapedirs"] * MIRROR[:, None]
    np.testing.assert_array_equal(models.left.shapedirs, fixed)
    np.testing.assert_array_equal(models.left_as_shipped.shapedirs, hands[1]["shapedirs"])
    theta, beta, transl = np.zeros((1, 48)), np.ones((1, 10)), np.zeros((1, 3))
    vertices, _ = mano_forward(models.right, theta, beta, transl)
    shaped = hands[0]["v_template"] + hands[0]["shapedirs"].sum(-1)
    np.testing.assert_allclose(vertices[0], shaped, atol=1e-12)


@pytest.mark.parametrize("side", ["RIGHT", "LEFT"])
def test_smplx_decodes_the_file_as_it_decodes_the_arrays(
    template: Path, tmp_path: Path, hands: Hands, side: str
) -> None:
    run(template, tmp_path)
    is_right = side == "RIGHT"
    options: dict[str, Any] = {"is_rhand": is_right, "use_pca": False, "flat_hand_mean": True}
    struct = Struct(**hands[0 if is_right else 1])
    expected = smplx.MANO(model_path="", data_struct=struct, **options)
    file = str(tmp_path / f"MANO_{side}.npz")
    rng = np.random.default_rng(1)
    inputs = {
        key: torch.from_numpy(rng.normal(0, 0.5, (1, n)).astype(np.float32))
        for key, n in {"global_orient": 3, "hand_pose": 45, "betas": 10, "transl": 3}.items()
    }
    for model in (
        smplx.create(file, model_type="mano", ext="npz", **options),
        smplx.MANO(str(tmp_path), ext="npz", **options),
    ):
        assert torch.equal(model(**inputs).vertices, expected(**inputs).vertices)
        assert torch.equal(model(**inputs).joints, expected(**inputs).joints)
        np.testing.assert_array_equal(model.faces, expected.faces)


# --- what is said ---------------------------------------------------------------------------------


def test_the_report_names_files_md5_licence_and_next_step(template: Path, tmp_path: Path) -> None:
    text = report_text(run(template, tmp_path / "my mano"))
    assert "MANO_RIGHT.npz written, MANO_LEFT.npz written" in text
    assert "mano_v1_2/models/MANO_LEFT.pkl" in text
    assert "smplx issue 48" in text
    assert text.count("warning:") == 2
    assert PUBLISHED_MD5["MANO_LEFT.pkl"] in text
    assert "J_regressor_mano_ih26m.npy: not found" in text
    assert "not to pass on" in text
    assert f"export HANDLOOM_MANO='{tmp_path}/my mano'" in text


def test_the_published_md5_is_recognised(
    template: Path, tmp_path: Path, pickles: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in pickles.items():
        monkeypatch.setitem(PUBLISHED_MD5, name, hashlib.md5(content).hexdigest())
    text = report_text(run(template, tmp_path))
    assert "warning" not in text
    assert text.count("md5 as published") == 2


def test_the_command_runs_and_says_one_sentence_at_an_error(
    template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["import-mano", f"path={template}", f"out={tmp_path / 'out'}"]
    assert front_door("python -m preprocess", COMMANDS, words) == 0
    assert "next: pass mano=" in capsys.readouterr().out
    words[1] = f"path={tmp_path / 'nothing'}"
    assert front_door("python -m preprocess", COMMANDS, words) == 2
    error = capsys.readouterr().err
    assert "does not exist; expected the download mano_v1_2.zip" in error
    assert error.count("\n") == 1
    assert front_door("python -m preprocess", COMMANDS, ["import-mano", "--help"]) == 0
    assert "python -m preprocess import-mano path=" in capsys.readouterr().out


# --- InterHand2.6M's regressor --------------------------------------------------------------------


def test_the_regressor_is_checked_and_copied_along(
    pickles: dict[str, bytes], tmp_path: Path
) -> None:
    source = tmp_path / "download"
    source.mkdir()
    for name, content in pickles.items():
        (source / name).write_bytes(content)
    file = source / "J_regressor_mano_ih26m.npy"
    np.save(file, np.full((21, 778), 1 / 778, np.float32))
    report = run(source, tmp_path / "out")
    assert report.done["J_regressor_mano_ih26m.npy"] == "written"
    assert "not found" not in report_text(report)
    assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert load_mano(tmp_path / "out").interhand_regressor is not None
    for bad in (np.zeros((16, 778)), np.zeros((21, 778), int), np.full((21, 778), np.nan)):
        np.save(file, bad)
        assert "expected finite floats of shape (21, 778)" in refusal(source, tmp_path / "bad")
    file.write_bytes(b"\x93NUMPY")
    assert "it is no .npy file" in refusal(source, tmp_path / "bad")
    file.unlink()
    report = run(source, tmp_path / "out")
    assert report.has_regressor  # from before
    assert "not found" not in report_text(report)


# --- what is refused ------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_the_cure(template: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = refusal(tmp_path / "empty", tmp_path / "out")
    assert "lacks MANO_RIGHT.pkl and MANO_LEFT.pkl; expected the download mano_v1_2.zip" in text
    one = zipped(tmp_path / "one.zip", {"MANO_LEFT.pkl": b"x"})
    assert "lacks MANO_RIGHT.pkl; expected" in refusal(one, tmp_path / "out")
    single = template / "mano_v1_2" / "models" / "MANO_LEFT.pkl"
    assert "name the folder with both hands" in refusal(single, tmp_path / "out")
    text = refusal(template / "mano_v1_2" / "LICENSE.txt", tmp_path / "out")
    assert "is no zip file" in text


def test_a_file_that_is_there_twice_is_named_twice(
    pickles: dict[str, bytes], tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        for name, content in pickles.items():
            (tmp_path / folder / name).write_bytes(content)
    text = refusal(tmp_path, tmp_path / "out")
    assert f"({tmp_path}/a/MANO_RIGHT.pkl and {tmp_path}/b/MANO_RIGHT.pkl)" in text
    members = {f"{folder}/{name}": b"x" for folder in "ab" for name in pickles}
    text = refusal(zipped(tmp_path / "two.zip", members), tmp_path / "out")
    assert "two.zip: a/MANO_RIGHT.pkl and" in text


def test_folders_are_searched_four_levels_deep(pickles: dict[str, bytes], tmp_path: Path) -> None:
    deep = tmp_path / "1" / "2" / "3" / "4"
    deep.mkdir(parents=True)
    for name, content in pickles.items():
        (deep / name).write_bytes(content)
    run(tmp_path, tmp_path / "out")
    (deep / "5").mkdir()
    for name in pickles:
        (deep / name).rename(deep / "5" / name)
    assert "lacks" in refusal(tmp_path, tmp_path / "out")  # what lies in out is no download


def test_all_problems_of_a_file_are_in_one_error(tmp_path: Path, hands: Hands) -> None:
    right = {**hands[0], "weights": hands[0]["weights"][:5], "f": hands[0]["f"] + np.uint32(700)}
    del right["posedirs"]
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(pickle.dumps(right, 2))
    (tmp_path / "MANO_LEFT.pkl").write_bytes(pickle.dumps(hands[1], 2))
    text = refusal(tmp_path, tmp_path / "out")
    assert text.startswith(
        f"{tmp_path}/MANO_RIGHT.pkl is not a MANO model: no posedirs; weights is "
    )
    assert "float64 (5, 16), expected floats (778, 16); f numbers vertices 7" in text


def test_a_hostile_pickle_or_npz_is_refused_before_anything_is_written(
    pickles: dict[str, bytes], tmp_path: Path, hands: Hands
) -> None:
    canary = tmp_path / "canary"
    call = b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."
    (tmp_path / "MANO_RIGHT.pkl").write_bytes(pickles["MANO_RIGHT.pkl"])
    (tmp_path / "MANO_LEFT.pkl").write_bytes(call)
    text = refusal(tmp_path, tmp_path / "out")
    assert "MANO_LEFT.pkl is refused at byte 0: it names 'os.system'" in text
    (tmp_path / "MANO_LEFT.pkl").unlink()
    objects = {**hands[1], "weights": np.array({"a": 1}, dtype=object)}
    np.savez(tmp_path / "MANO_LEFT.npz", allow_pickle=True, **objects)
    assert "weights is object (), expected floats" in refusal(tmp_path, tmp_path / "out")
    assert not canary.exists()
    assert not (tmp_path / "out").exists()


# --- zip files ------------------------------------------------------------------------------------


def _bomb(file: Path) -> None:
    zipped(file, {"MANO_RIGHT.pkl": bytes(65 * 2**20), "MANO_LEFT.pkl": b"x"})


def _patched(file: Path, offset: int, value: bytes) -> None:
    """Change a field of the first entry in the central directory."""
    zipped(file, {"MANO_RIGHT.pkl": bytes(10**6), "MANO_LEFT.pkl": b"x"})
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\x01\x02") + offset
    content[at : at + len(value)] = value
    file.write_bytes(content)


def _lying_bomb(file: Path) -> None:
    _patched(file, 24, struct.pack("<L", 1000))


def _larger_than_real(file: Path) -> None:
    _patched(file, 24, struct.pack("<L", 2 * 10**6))


def _encrypted(file: Path) -> None:
    _patched(file, 8, b"\x01")


def _damaged(file: Path) -> None:
    _patched(file, 16, b"\x00\x00\x00\x00")


def _lzma(file: Path) -> None:
    zipped(file, {"MANO_RIGHT.pkl": b"x", "MANO_LEFT.pkl": b"x"}, zipfile.ZIP_LZMA)


def _cut(file: Path) -> None:
    zipped(file, {"MANO_RIGHT.pkl": bytes(10**6), "MANO_LEFT.pkl": b"x"})
    file.write_bytes(file.read_bytes()[:-30])


def _no_directory(file: Path) -> None:
    _patched(file, 0, b"QK")


def _crowded(file: Path) -> None:
    zipped(file, {"MANO_RIGHT.pkl": b"x"})
    content = bytearray(file.read_bytes())
    content[-12:-10] = b"\xff\xff"
    file.write_bytes(content)


def _other(file: Path) -> None:
    file.write_bytes(b"\x80\x02N." * 100)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (_bomb, "MANO_RIGHT.pkl has 68157440 bytes, expected at most"),
        (_lying_bomb, "MANO_RIGHT.pkl"),
        (_larger_than_real, "MANO_RIGHT.pkl"),
        (_encrypted, "MANO_RIGHT.pkl is encrypted"),
        (_damaged, "MANO_RIGHT.pkl is damaged: Bad CRC"),
        (_lzma, "MANO_RIGHT.pkl is packed by method 14"),
        (_cut, "is no zip file, or is cut off"),
        (_no_directory, "broken zip file"),
        (_crowded, "more than 20000 members"),
        (_other, "is no zip file"),
    ],
)
def test_a_bad_zip_is_refused(tmp_path: Path, write: Callable[[Path], None], words: str) -> None:
    write(tmp_path / "mano_v1_2.zip")
    assert words in refusal(tmp_path / "mano_v1_2.zip", tmp_path / "out")


def test_members_never_reach_the_disk(tmp_path: Path, pickles: dict[str, bytes]) -> None:
    members = {f"../../{name}": content for name, content in pickles.items()}
    members |= {"/etc/handloom-canary": b"x", "..\\up": b"x"}
    inside = tmp_path / "a" / "b" / "c"
    inside.mkdir(parents=True)
    run(zipped(inside / "mano.zip", members), inside / "out")
    assert sorted(f.name for f in tmp_path.rglob("*") if f.is_file()) == [
        "MANO_LEFT.npz", "MANO_RIGHT.npz", "mano.zip",
    ]  # fmt: skip


# --- writing --------------------------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_another_model_is_not_replaced(
    template: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(template, out)
    times = {f: f.stat().st_mtime_ns for f in out.iterdir()}
    assert set(run(template, out).done.values()) == {"already there"}
    assert set(run(out, out).done.values()) == {"already there"}
    assert {f: f.stat().st_mtime_ns for f in out.iterdir()} == times
    good = snapshot(out)
    (out / "MANO_LEFT.npz").write_bytes(b"another")
    text = refusal(template, out)
    assert "holds another MANO_LEFT.npz; pass overwrite=true" in text
    report = run(template, out, overwrite=True)
    assert report.done == {"MANO_RIGHT.npz": "already there", "MANO_LEFT.npz": "replaced"}
    assert snapshot(out) == good


def test_out_must_be_a_folder(template: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refusal(template, tmp_path / "file")


def test_a_full_disk_leaves_the_old_file(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "MANO_RIGHT.npz").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run(template, out, overwrite=True)
    assert snapshot(out) == {str(out / "MANO_RIGHT.npz"): b"old"}
    assert [f.name for f in out.iterdir()] == ["MANO_RIGHT.npz"]
