"""Who holds decoded memory until when: DALI and CUDA's events by fakes, DALI's CPU backend itself.

On a GPU, DALI writes into a buffer as soon as no tensor holds it, whatever is queued that reads it.
"""

import gc
import logging
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import CacheConfig, OnBadImage, ViewConfig
from pipeline.decode import errors, graph
from pipeline.decode.buffers import KEPT_DECODED
from pipeline.decode.codec import Codec
from pipeline.decode.graph import decode_crops
from pipeline.decode.resident import fill
from pipeline.decode.source import EncodedBatch
from pipeline.decode.stream import frames_of, stream_crops
from pipeline.store.reader import Store, open_store
from pipeline.view import ViewTable, build_view
from tests.pipeline.hand_store import hand_store

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
SMALL = CacheConfig(size_px=32, decode_threads=1, decode_batch=4)
Log = list[tuple[str, int]]


class Crop:
    """One output of the fake decoder."""

    def __init__(self, number: int) -> None:
        self.number = number

    def as_tensor(self) -> "Crop":
        return self


class Event:
    def __init__(self, log: Log, number: int) -> None:
        self._log, self._number = log, number

    def synchronize(self) -> None:
        self._log.append(("waited", self._number))


class Stream:
    """Numbers its events like the batches that they follow."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def record_event(self) -> Event:
        number = max(number for what, number in self.log if what == "decoded")
        return Event(self.log, number)


class Pipe:
    def __init__(self, log: Log, num: int, *, fails: bool) -> None:
        self.log, self._left, self._num, self._fails = log, num, num, fails

    def build(self) -> None:
        pass

    def run(self, stream: Stream) -> tuple[Crop]:
        assert stream.log is self.log
        if not self._left:
            if self._fails:
                raise RuntimeError("cannot decode")
            raise StopIteration
        self._left -= 1
        number = self._num - self._left - 1
        self.log.append(("decoded", number))
        return (Crop(number),)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What a fake GPU's decoder did: decoded, waited for the reader, freed, released its pool."""
    found: Log = []

    def tensor(crop: Crop) -> torch.Tensor:
        made = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
        weakref.finalize(made, found.append, ("freed", crop.number))
        return made

    monkeypatch.setattr(torch, "from_dlpack", tensor)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Stream(found))
    monkeypatch.setattr(graph, "ReleaseUnusedMemory", lambda: found.append(("released", -1)))
    return found


def decoder(log: Log, num: int, monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> Any:
    pipe = Pipe(log, num, fails=fails)
    monkeypatch.setattr(graph, "_graph", lambda *_, **__: pipe)
    nothing: Iterator[EncodedBatch] = iter(())
    return decode_crops(nothing, SMALL, num_crops=1, batch_size=1, device=CUDA)


def assert_waited_then_freed_then_released(log: Log, num: int) -> None:
    for number in range(num):
        assert log.index(("waited", number)) < log.index(("freed", number)), log
    assert log[-1] == ("released", -1), log


def test_a_batch_is_freed_after_what_was_queued_with_it(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    for crops in decoder(log, 6, monkeypatch):
        del crops
    assert_waited_then_freed_then_released(log, 6)
    for number in range(KEPT_DECODED, 6):  # and no earlier than it must: the host runs ahead
        assert ("waited", number - KEPT_DECODED) not in log[: log.index(("decoded", number))]


def test_a_decoder_that_is_closed_waits_for_its_last_batch(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = decoder(log, 6, monkeypatch)
    for _ in range(4):
        next(crops)
    crops.close()
    assert_waited_then_freed_then_released(log, 4)


def test_a_consumer_that_fails_does_too(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    def read() -> None:
        with closing(decoder(log, 6, monkeypatch)) as crops:
            for number, batch in enumerate(crops):
                del batch
                if number == 2:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        read()
    assert_waited_then_freed_then_released(log, 3)


def test_a_decoder_that_fails_releases_all(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="cannot decode"):
        deque(decoder(log, 5, monkeypatch, fails=True), maxlen=0)
    assert_waited_then_freed_then_released(log, 5)


# --- who takes the batches: DALI itself, on the CPU -----------------------------------------------


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tensors of decoded batches that were alive whenever a decoder's pool was released."""
    alive: list[weakref.ref[torch.Tensor]] = []
    counts: list[int] = []
    real = torch.utils.dlpack.from_dlpack

    def tensor(crop: Any) -> torch.Tensor:
        made = real(crop)
        alive.append(weakref.ref(made))
        return made

    def release() -> None:
        counts.append(sum(one() is not None for one in alive))

    monkeypatch.setattr(torch, "from_dlpack", tensor)
    monkeypatch.setattr(graph, "ReleaseUnusedMemory", release)
    gc.collect()
    return counts


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hand_store(tmp_path_factory.mktemp("lifetime") / "s.zarr")


def view_of(path: Path) -> tuple[Store, ViewTable]:
    store = open_store(path)
    rows = store.split("train").astype(np.int64)
    return store, build_view(store, rows, ViewConfig(pad=4.0), 32, training=True)


def test_a_fill_holds_nothing_when_the_pool_is_released(path: Path, held: list[int]) -> None:
    fill([view_of(path)], SMALL, Codec.rgb, CPU)
    assert held == [0]


def test_a_stream_holds_nothing_when_the_pool_is_released(path: Path, held: list[int]) -> None:
    view = view_of(path)
    batches = iter(torch.split(torch.arange(6), 2))
    deque(stream_crops(frames_of([view], SMALL), batches, SMALL, 2, CPU, set()), maxlen=0)
    assert held == [0]


def test_bad_images_are_found_by_halves(
    tmp_path: Path,
    held: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A GPU's decoder takes a second to build: one per suspect would be minutes."""
    path = hand_store(tmp_path / "bad.zarr", images={5: b"\xff\xd8 none"})
    config = CacheConfig(
        size_px=32, decode_threads=1, decode_batch=16, on_bad_image=OnBadImage.skip
    )
    built: list[int] = []

    def counted(*args: Any, **more: Any) -> Any:
        built.append(1)
        return decode_crops(*args, **more)

    monkeypatch.setattr(errors, "decode_crops", counted)
    with caplog.at_level(logging.WARNING):
        found = fill([view_of(path)], config, Codec.rgb, CPU)
    assert len(found.skipped)
    assert "row 5" in caplog.text
    assert len(built) <= 6
    assert held == [0] * len(held)
