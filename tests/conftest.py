"""Switches that must be set before anything is imported, and datasets shared by many tests."""

import fcntl
import gc
import os
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from rich.console import Console

from tests import shapes

assert "triton" not in sys.modules
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is first imported

if not jaxtyping.config.jaxtyping_disable:  # the environment's JAXTYPING_DISABLE
    shapes.install({"pipeline", "model"})

REAL = Path(__file__).parent.parent.parent / "shared" / "real" / "InterHand2.6M"


def in_one_piece(test: Callable[..., object], **arguments: object) -> object:
    """Call a test on a stack of Python frames that lies in one piece.

    CPython takes that stack in pieces of 16 KB and gives each back when its first frame ends. A
    loop that calls across an edge maps and unmaps memory at every call: where it happens to stand
    there, a test in the Triton interpreter takes three times as long.
    """
    return test(**arguments)


# What CPython sets aside for a call, in words, and doubles 16 KB to reach: the rest is for tests.
in_one_piece.__code__ = in_one_piece.__code__.replace(co_stacksize=9000)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what is imported out of garbage collection, which costs a second and a half of it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    pyfuncitem.obj = partial(in_one_piece, pyfuncitem.obj)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # not a keyword: a folder is called gpu too
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStore:
    """A rendered stand-in dataset and the store built from it."""

    root: Path
    mano: Path
    store: Path


def scores_file(run_dir: Path, split: str = "evaluation") -> Path:
    """The only scores of a run on a split."""
    (found,) = run_dir.glob(f"evaluate-*-{split}/scores.json")
    return found


def _build(
    tmp_path_factory: pytest.TempPathFactory, dataset: str, num: int, *, flag: bool = False
) -> SampleStore:
    """Render and build a sample once, whichever of pytest-xdist's workers comes first."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / f"sample-{dataset}"
    folder.mkdir(exist_ok=True)
    root, store = folder / dataset, folder / f"{dataset}.zarr"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            _write(dataset, num, root, store, flag=flag)
            (folder / "done").touch()
    return SampleStore(root=root, mano=root / "mano", store=store)


def _write(dataset: str, num: int, root: Path, store: Path, *, flag: bool) -> None:
    from preprocess.builder.build import build
    from preprocess.config import BuildConfig, OnBadImage
    from preprocess.sample.generate import write_sample

    write_sample(dataset, root, num, 3, workers=1)
    build(
        BuildConfig(
            dataset=dataset,
            root=str(root),
            out=str(store),
            mano=str(root / "mano"),
            workers=1,
            on_bad_image=OnBadImage.flag if flag else OnBadImage.error,
        ),
        console=Console(quiet=True),
    )


@pytest.fixture(scope="session")
def freihand(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """16 hands in four versions each, 8 for evaluation."""
    return _build(tmp_path_factory, "freihand", 16)


@pytest.fixture(scope="session")
def interhand(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """8 frames: right, left and interacting hands."""
    return _build(tmp_path_factory, "interhand26m", 8)


@pytest.fixture(scope="session")
def arctic(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """Sequences of s01 and s05 of three frames in nine views; the last images are missing."""
    pytest.importorskip("igl", reason="an ARCTIC sample is made with libigl")
    return _build(tmp_path_factory, "arctic", 54, flag=True)
