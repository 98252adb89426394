"""ARCTIC's labels against processed files written without our code, with and without a fault."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from model.mano.files import ManoModels, load_mano
from preprocess.builder.build import build
from preprocess.builder.verify import verify, verify_text
from preprocess.config import BuildConfig, OnBadImage, VerifyConfig
from preprocess.records import CrossCheck
from preprocess.sources.arctic.compare import compare_sequence
from preprocess.sources.arctic.files import read_lens, read_rigs
from preprocess.sources.arctic.source import open_source
from tests.preprocess.datasets import write_mano
from tests.preprocess.sources.arctic.processed import processed, save
from tests.preprocess.sources.arctic.tree import (
    EGO_HW,
    RowTruth,
    Spec,
    write_arctic,
    write_meta,
    write_sequence,
)

SPECS = (Spec(name="s01/box_use_01", num_frames=23), Spec(name="s05/box_grab_01", num_frames=22))
OFFSETS = {"s01": 3, "s05": 1}
QUIET = Console(quiet=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    root: Path
    mano: ManoModels
    theirs: dict[str, dict[str, Any]]
    """By sequence."""
    truth: dict[str, Callable[[int], list[RowTruth]]]
    """By sequence; from the number of a file."""


def numbers_of(spec: Spec) -> range:
    first = OFFSETS[spec.name[:3]]
    return range(first, first + spec.num_frames)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    folder = tmp_path_factory.mktemp("arctic")
    sides = write_mano(folder / "mano")
    write_arctic(folder / "data", sides, SPECS, OFFSETS)
    misc = write_meta(folder / "again", OFFSETS)
    theirs, truth = {}, {}
    for number, spec in enumerate(SPECS):
        own = write_sequence(folder / "again", sides, spec, misc[spec.name[:3]], seed=number)
        truth[spec.name] = own
        theirs[spec.name] = processed(own, numbers_of(spec))
    mano = load_mano(folder / "mano")
    return Tree(root=folder / "data", mano=mano, theirs=theirs, truth=truth)


def copy_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copy_of(inner) for key, inner in value.items()}
    return value.copy()


def names_of(spec: Spec, views: range) -> list[str]:
    return [
        f"./data/arctic_data/data/images/{spec.name}/{view}/{i:05d}.jpg"
        for i in range(10, spec.num_frames - 10)
        for view in views
    ]


def write_files(root: Path, theirs: dict[str, dict[str, Any]]) -> None:
    """Write a processed file of each sequence, and the splits of both protocols."""
    for spec, split in zip(SPECS, ("train", "val"), strict=True):
        save(root / "processed_seqs" / f"{spec.name}.npy", theirs[spec.name])
        for protocol, views in (("p1", range(1, 9)), ("p2", range(1))):
            content = {key: v for key, v in theirs[spec.name].items() if key != "world_coord"}
            unknown = {"s09/box_use_01": copy_of(content)}  # a sequence that is not here
            split_file = {
                "data_dict": {**unknown, spec.name: content},
                "imgnames": [
                    *names_of(Spec(name="s09/box_use_01", num_frames=22), views),
                    *names_of(spec, views),
                ],
            }
            save(root / "splits" / f"{protocol}_{split}.npy", split_file)


def linked(tree: Tree, root: Path) -> Path:
    for entry in tree.root.iterdir():
        (root / entry.name).symlink_to(entry)
    return root


def check(tree: Tree, root: Path) -> CrossCheck:
    source = open_source(root, tree.mano)
    assert source.cross_check is not None
    return source.cross_check()


def test_without_files_there_is_nothing_to_compare(tree: Tree) -> None:
    assert open_source(tree.root, None).cross_check is None


def test_files_of_the_same_capture_agree(tree: Tree, tmp_path: Path) -> None:
    root = linked(tree, tmp_path)
    write_files(root, tree.theirs)
    found = check(tree, root)
    assert not found.problems
    assert "6 sequences in 6 files of processed_seqs and splits compared, 6 agree" in found.summary
    for quantity in ("joints", "joint pixels", "squares around the object", "object positions"):
        assert f"{quantity} " in found.summary
    assert "who is in view 0 (" in found.summary


def test_without_mano_the_object_is_compared(tree: Tree, tmp_path: Path) -> None:
    root = linked(tree, tmp_path)
    write_files(root, tree.theirs)
    source = open_source(root, None)
    assert source.cross_check is not None
    found = source.cross_check()
    assert not found.problems
    assert "without mano=: not the hands" in found.summary
    assert "joints" not in found.summary


# Group, key, place, what is added; what the sentence says.
FAULTS: list[tuple[str, str, tuple[int, ...], float, str]] = [
    ("cam_coord", "joints.left", (7, 3, 4, 2), 3e-4, r"joints 0.0003 m (@, view 3, file 00010)"),
    ("cam_coord", "joints.right", (2, 0, 20, 0), -2e-3, r"joints 0.002 m (@, view 0, file 00005)"),
    ("2d", "joints.right", (8, 5, 0, 1), 0.3, r"joint pixels 0.3 px (@, view 5, file 00011)"),
    ("cam_coord", "left_valid", (9, 2), 0, r"who is in view 1 (@, view 2, file 00012)"),
    ("cam_coord", "is_valid", (3, 0), 0, r"who is in view 1 (@, view 0, file 00006)"),
    ("", "bbox", (4, 8, 0), 0.2, r"squares around the object 0.2 px (@, view 8, file 00007)"),
    ("", "bbox", (4, 1, 2), 0.01, r"squares around the object 2 px (@, view 1, file 00007)"),
    ("params", "obj_trans", (1, 1), 5, r"object positions 0.005 m (@, view 0, file 00004)"),
    ("params", "obj_arti", (0,), 0.01, r"object angles 0.01 rad (@, view 0, file 00003)"),
    ("params", "obj_rot", (6, 2), 0.01, r"object angles 0.0"),
]


@pytest.mark.parametrize(("group", "key", "place", "added", "sentence"), FAULTS)
def test_a_difference_is_found_and_named(
    tree: Tree,
    tmp_path: Path,
    group: str,
    key: str,
    place: tuple[int, ...],
    added: float,
    sentence: str,
) -> None:
    root = linked(tree, tmp_path)
    theirs = copy_of(tree.theirs)
    own = theirs["s01/box_use_01"]
    values = own[group][key] if group else own[key]
    values[place] = values[place] + added if added else 1 - values[place]
    path = root / "processed_seqs" / "s01" / "box_use_01.npy"
    save(path, own)
    save(root / "processed_seqs" / "s05" / "box_grab_01.npy", theirs["s05/box_grab_01"])
    found = check(tree, root)
    assert len(found.problems) == 1
    expected = sentence.replace("@", "s01/box_use_01")
    assert found.problems[0].startswith(f"{path} differs from our labels in ")
    assert expected in found.problems[0]
    assert found.problems[0].endswith("download raw_seqs, meta and that file again")
    assert "2 sequences in 2 files" in found.summary
    assert "1 agree" in found.summary
    assert expected in found.summary


def test_the_distorted_view_is_compared(tree: Tree, tmp_path: Path) -> None:
    root = linked(tree, tmp_path)
    theirs = copy_of(tree.theirs["s01/box_use_01"])
    undistorted = theirs["cam_coord"]["joints.right"][:, 0]
    theirs["cam_coord"]["joints.right"][:, 9] = undistorted
    save(root / "processed_seqs" / "s01" / "box_use_01.npy", theirs)
    (problem,) = check(tree, root).problems
    assert "s01/box_use_01, view 9, file" in problem


@pytest.mark.parametrize(("beyond_px", "value"), [(0.03, 0.0), (0.2, 1.0)])
def test_a_flag_that_hangs_on_a_hair_is_no_difference(
    tree: Tree, beyond_px: float, value: float
) -> None:
    """Our image of the head ends just before a wrist, theirs just behind it."""
    sequence = "s01/box_use_01"
    rig, lens = read_rigs(tree.root)["s01"], read_lens(tree.root, sequence)
    for frame in range(SPECS[0].num_frames):
        wrist_x = float(tree.theirs[sequence]["2d"]["joints.right"][frame, 9, 0, 0])
        size = (wrist_x + 1e-3, float(EGO_HW[0]))
        theirs = processed(tree.truth[sequence], numbers_of(SPECS[0]), ego_wh=size)
        if theirs["cam_coord"]["right_valid"][frame, 0] == 1:
            break
    else:
        raise AssertionError("no hand is in view")
    size_wh = rig.image_size_wh.copy()
    size_wh[0, 0] = wrist_x - beyond_px
    rig = replace(rig, image_size_wh=size_wh)
    found = compare_sequence(tree.root, sequence, theirs, rig, lens, tree.mano)
    (flags,) = (apart for apart in found if apart.quantity == "who is in view")
    assert flags.value == value


def test_what_is_not_a_number_differs(tree: Tree) -> None:
    sequence = "s01/box_use_01"
    rig, lens = read_rigs(tree.root)["s01"], read_lens(tree.root, sequence)
    K = rig.K.copy()
    K[1] = np.nan
    found = compare_sequence(
        tree.root, sequence, tree.theirs[sequence], replace(rig, K=K), lens, tree.mano
    )
    (squares,) = (apart for apart in found if apart.quantity == "squares around the object")
    assert squares.value == np.inf
    assert squares.is_over
    assert "view 2" in squares.where


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda names: [*names[:3], names[4], names[3], *names[5:]], "difference is at 3"),
        (lambda names: names[:-1], "difference is at 23: the end, ours s01/"),
        (lambda names: [*names, names[0]], "difference is at 24: s01/box_use_01/1/"),
    ],
)  # fmt: skip
def test_other_images_in_a_split_are_one_sentence(
    tree: Tree, tmp_path: Path, edit: Any, sentence: str
) -> None:
    root = linked(tree, tmp_path)
    names = names_of(SPECS[0], range(1, 9))
    assert len(names) == 24
    content = {"data_dict": {}, "imgnames": edit(names)}
    save(root / "splits" / "p1_train.npy", content)
    (problem,) = check(tree, root).problems
    assert problem.startswith(f"{root / 'splits' / 'p1_train.npy'}: imgnames lists ")
    assert sentence in problem
    assert "download splits_json or that file again" in problem


def test_a_broken_file_is_one_sentence(tree: Tree, tmp_path: Path) -> None:
    root = linked(tree, tmp_path)
    write_files(root, tree.theirs)
    cut = root / "splits" / "p2_val.npy"
    cut.write_bytes(cut.read_bytes()[:-100])
    short = root / "processed_seqs" / "s05" / "box_grab_01.npy"
    theirs = copy_of(tree.theirs["s05/box_grab_01"])
    theirs["bbox"] = theirs["bbox"][:-1]
    save(short, theirs)
    problems = check(tree, root).problems
    assert len(problems) == 2
    assert f"{short}: s05/box_grab_01 cannot be compared" in problems[0]
    assert (
        "bbox must hold finite numbers of shape (22, 9, 3), found shape (21, 9, 3)" in problems[0]
    )
    assert f"{cut} is refused at byte" in problems[1]
    assert problems[1].endswith("download the file again or remove it")


def test_verify_reports_the_comparison(tree: Tree, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    linked(tree, root)
    out, mano = str(tmp_path / "a.zarr"), str(tree.root.parent / "mano")
    config = BuildConfig(
        dataset="arctic",
        root=str(root),
        out=out,
        mano=mano,
        workers=1,
        on_bad_image=OnBadImage.flag,
    )
    build(config, console=QUIET)
    write_files(root, tree.theirs)
    wanted = VerifyConfig(store=out, root=str(root), mano=mano)
    report = verify(wanted, console=QUIET)
    assert not report.problems
    assert "6 agree; largest differences: joints " in verify_text(report)
    theirs = copy_of(tree.theirs)
    theirs["s05/box_grab_01"]["cam_coord"]["joints.left"][5, 4, 9] += 0.01
    write_files(root, theirs)
    report = verify(wanted, console=QUIET)
    assert len(report.problems) == 3  # the sequence is in three files
    assert "s05/box_grab_01, view 4, file 00006" in verify_text(report)
