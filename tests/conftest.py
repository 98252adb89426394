"""Switches that must be set before anything is imported, and datasets shared by many tests."""

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

# The first call imports 500 modules; without this the first test to compare tensors pays for it.
torch.testing.assert_close(torch.zeros(1), torch.zeros(1))

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
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    pyfuncitem.obj = partial(in_one_piece, pyfuncitem.obj)
    return (yield)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStore:
    """A rendered stand-in dataset and the store built from it."""

    root: Path
    mano: Path
    store: Path


def _build(folder: Path, dataset: str, num: int, *, flag: bool = False) -> SampleStore:
    from preprocess.builder.build import build
    from preprocess.config import BuildConfig, OnBadImage
    from preprocess.sample.generate import write_sample

    root, store = folder / dataset, folder / f"{dataset}.zarr"
    summary = write_sample(dataset, root, num, 3, workers=1)
    build(
        BuildConfig(
            dataset=dataset,
            root=str(root),
            out=str(store),
            mano=str(summary.mano),
            workers=1,
            on_bad_image=OnBadImage.flag if flag else OnBadImage.error,
        ),
        console=Console(quiet=True),
    )
    return SampleStore(root=root, mano=summary.mano, store=store)


@pytest.fixture(scope="session")
def freihand(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """16 hands in four versions each, 8 for evaluation."""
    return _build(tmp_path_factory.mktemp("freihand"), "freihand", 16)


@pytest.fixture(scope="session")
def interhand(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """8 frames: right, left and interacting hands."""
    return _build(tmp_path_factory.mktemp("interhand"), "interhand26m", 8)


@pytest.fixture(scope="session")
def arctic(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """Sequences of s01 and s05 of three frames in nine views; the last images are missing."""
    return _build(tmp_path_factory.mktemp("arctic"), "arctic", 54, flag=True)
