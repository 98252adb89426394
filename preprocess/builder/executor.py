"""Shard executors: this process, local worker processes or a Dask cluster.

Every executor consumes tasks lazily (a task may carry the labels of its shard), keeps at most two
per worker in flight, and yields results as they complete.
"""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final, TypeVar

from pipeline.store.errors import StoreError
from preprocess.builder.shard import ShardResult, ShardTask, run_shard
from preprocess.config import ExecutorConfig, ExecutorKind

Item = TypeVar("Item")
Result = TypeVar("Result")
_PER_WORKER: Final = 2
_CONNECT_SECONDS: Final = 10
_PR_SET_PDEATHSIG: Final = 1
"""linux/prctl.h"""


def run_shards(
    tasks: Iterable[ShardTask], num_tasks: int, config: ExecutorConfig, *, workers: int
) -> Iterator[tuple[ShardTask, ShardResult]]:
    """Run the tasks and yield each with its result, in order of completion.

    Args:
        tasks: The shards to build.
        num_tasks: Number of tasks.
        config: Executor settings.
        workers: Processes of the local executor; 0: one per core.

    Raises:
        SourceError: As ``run_shard``.
        StoreError: As ``run_shard``; if a worker dies; if no cluster responds at the address.
    """
    if config.kind is ExecutorKind.dask:
        assert config.address is not None
        return _run_dask(tasks, config.address)
    return _run_local(tasks, min(workers or len(os.sched_getaffinity(0)), num_tasks))


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, workers: int
) -> Iterator[Result]:
    """Yield ``function(item)`` for every item in order, computed in local worker processes.

    Args:
        function: Picklable function of one item.
        items: Its arguments.
        workers: Processes; 0: one per core, 1: run in this process.
    """
    num_workers = min(workers or len(os.sched_getaffinity(0)), len(items))
    if num_workers <= 1:
        yield from map(function, items)
        return
    with _pool(num_workers) as pool:
        yield from pool.map(function, items)


def _pool(num_workers: int) -> ProcessPoolExecutor:
    # spawn: the parent runs torch's and zarr's threads, which a fork would not copy.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_end_with, initargs=(os.getpid(),)
    )


def _run_local(
    tasks: Iterable[ShardTask], num_workers: int
) -> Iterator[tuple[ShardTask, ShardResult]]:
    if num_workers <= 1:
        for task in tasks:
            yield task, run_shard(task)
        return
    with _pool(num_workers) as pool:
        pending: dict[Future[ShardResult], ShardTask] = {}
        failed: list[Future[ShardResult]] = []
        try:
            for task in tasks:
                pending[pool.submit(run_shard, task)] = task
                if len(pending) >= _PER_WORKER * num_workers:
                    yield from _ended(pending, failed)
                if failed:
                    break
            # Tasks in flight are completed, so that no finished shard is lost.
            for future in [f for f in pending if failed and f.cancel()]:
                del pending[future]
            while pending:
                yield from _ended(pending, failed)
            for future in failed:
                future.result()
        except BrokenProcessPool as error:
            raise StoreError(
                f"a worker died while {num_workers} wrote shards (often out of memory); run the "
                f"same command again with fewer workers, workers={max(1, num_workers // 2)}: "
                "finished shards are kept"
            ) from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _end_with(parent: int) -> None:
    """Ask the kernel to kill this worker when its parent dies, even if the parent is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def _ended(
    pending: dict[Future[ShardResult], ShardTask], failed: list[Future[ShardResult]]
) -> Iterator[tuple[ShardTask, ShardResult]]:
    """Wait for at least one task; pop finished ones from ``pending``, yield the successful ones."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        task = pending.pop(future)
        if future.exception() is None:
            yield task, future.result()
        else:
            failed.append(future)


def _run_dask(tasks: Iterable[ShardTask], address: str) -> Iterator[tuple[ShardTask, ShardResult]]:
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise StoreError(
            f"executor=dask needs the package distributed ({error}); pip install distributed"
        ) from error
    try:
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise StoreError(
            f"no Dask scheduler responds at executor.address={address!r} ({error}); start one "
            "with: dask scheduler, and workers with: dask worker ADDRESS"
        ) from error
    with client:
        num_workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if num_workers == 0:
            raise StoreError(
                f"the Dask scheduler {address} has no workers; start some with: dask worker "
                f"{address}"
            )
        pending: dict[Any, ShardTask] = {}
        try:
            for task in tasks:
                pending[client.submit(run_shard, task, pure=False)] = task
                if len(pending) >= _PER_WORKER * num_workers:
                    yield from _ended_on_dask(client, pending)
            while pending:
                yield from _ended_on_dask(client, pending)
        except KilledWorker as error:
            raise StoreError(
                f"a worker of {address} died several times at one shard ({error.last_worker}; "
                "often out of memory); give the workers more memory or take a smaller shard_rows"
            ) from error
        finally:
            client.cancel(list(pending))


def _ended_on_dask(
    client: Any, pending: dict[Any, ShardTask]
) -> Iterator[tuple[ShardTask, ShardResult]]:
    """Wait for at least one task; pop finished ones from ``pending``, yield them, failures last."""
    from distributed import wait as wait_for

    with client.as_current():
        done = wait_for(list(pending), return_when="FIRST_COMPLETED").done
    for future in sorted(done, key=lambda f: bool(f.status != "finished")):
        task = pending.pop(future)
        yield task, future.result()
