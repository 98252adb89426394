"""A Dask cluster makes the same store as this process; what goes wrong there is one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.store.errors import StoreError
from preprocess.builder.build import build
from preprocess.config import BuildConfig, ExecutorConfig, ExecutorKind
from preprocess.records import SourceError
from tests.preprocess.builder.test_build import config, file_hashes, image_of
from tests.preprocess.datasets import FreihandTruth, jpeg, write_freihand

QUIET = Console(quiet=True)


@contextmanager
def dask_cluster(num_workers: int) -> Iterator[str]:
    """Yield the address of a scheduler and its worker processes on the loopback interface."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=num_workers, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Return the address of two workers."""
    with dask_cluster(2) as address:
        yield address


@pytest.fixture
def truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FreihandTruth:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)
    return write_freihand(tmp_path)


def on_dask(truth: FreihandTruth, address: str, **changes: object) -> BuildConfig:
    executor = ExecutorConfig(kind=ExecutorKind.dask, address=address)
    return config(truth, shard_rows=2, executor=executor, **changes)


def test_two_workers_on_loopback_make_the_same_bytes(
    truth: FreihandTruth, address: str, tmp_path: Path
) -> None:
    path = build(config(truth, shard_rows=2), console=QUIET).path
    here = file_hashes(path)
    path.rename(tmp_path / "here.zarr")
    build(on_dask(truth, address), console=QUIET)
    assert file_hashes(path) == here


def test_an_error_of_a_worker_of_the_cluster_arrives(truth: FreihandTruth, address: str) -> None:
    image_of(truth, 4).write_bytes(jpeg(1)[:-200])
    with pytest.raises(SourceError, match=r"00000004.jpg is cut off"):
        build(on_dask(truth, address), console=QUIET)
    image_of(truth, 4).write_bytes(truth.images[4])
    report = build(on_dask(truth, address), console=QUIET)
    assert report.attributes.num_rows == 14


def test_no_cluster_at_the_address_is_one_sentence(
    truth: FreihandTruth, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocess.builder.executor._CONNECT_SECONDS", 1)
    with pytest.raises(StoreError, match=r"no Dask scheduler responds .* dask scheduler"):
        build(on_dask(truth, "tcp://127.0.0.1:9"), console=QUIET)


def test_a_cluster_without_workers_is_one_sentence(truth: FreihandTruth) -> None:
    with (
        dask_cluster(0) as empty,
        pytest.raises(StoreError, match=r"has no workers; start some with: dask worker tcp://"),
    ):
        build(on_dask(truth, empty), console=QUIET)


def test_the_executor_is_checked_at_the_start() -> None:
    with pytest.raises(ValueError, match=r"executor=dask needs executor.address=tcp://"):
        ExecutorConfig(kind=ExecutorKind.dask)
    with pytest.raises(ValueError, match=r"executor.address is for executor=dask"):
        ExecutorConfig(address="tcp://127.0.0.1:1")
