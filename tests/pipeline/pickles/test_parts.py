"""Large dictionaries out of a pickle, one at a time: the same values, little memory, no tricks."""

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.pickles import PickleError, read_npy_parts

KEYS = frozenset({"a", "b"})


def part_of(seed: int, num: int = 1000) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "a": {"x": rng.normal(size=(num, 3)).astype(np.float32), "n": np.arange(num)},
        "b": rng.normal(size=num),
        "c": f"text {seed}",
    }


def write(path: Path, value: Any, protocol: int = 4) -> Path:
    """Write an object array as ``numpy.save`` does, in a chosen protocol."""
    array = np.array(value, dtype=object)
    np.save(path, array, allow_pickle=True)
    head = path.read_bytes()[:128]
    end = 10 + int.from_bytes(head[8:10], "little")
    path.write_bytes(head[:end] + pickle.dumps(array, protocol))
    return path


def read(path: Path) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    found: dict[str, dict[str, Any]] = {}
    rest = read_npy_parts(
        path,
        name="it",
        keys=KEYS,
        take=lambda key, part: found.update({key: dict(part)}),
        max_steps=10_000,
    )
    return found, rest


@pytest.mark.parametrize("protocol", range(1, 6))
def test_parts_are_handed_over_and_the_rest_is_left(tmp_path: Path, protocol: int) -> None:
    value = {"parts": {f"p{i}": part_of(i, 40) for i in range(5)}, "names": ["u", "v"]}
    found, rest = read(write(tmp_path / "a.npy", value, protocol))
    assert rest.item() == {"parts": {f"p{i}": {} for i in range(5)}, "names": ["u", "v"]}
    assert list(found) == [f"p{i}" for i in range(5)]
    for i, part in enumerate(found.values()):
        expected = part_of(i, 40)
        assert part.keys() == expected.keys()
        np.testing.assert_array_equal(part["a"]["x"], expected["a"]["x"])
        np.testing.assert_array_equal(part["a"]["n"], expected["a"]["n"])
        np.testing.assert_array_equal(part["b"], expected["b"])
        assert part["c"] == f"text {i}"


def test_a_part_that_is_the_whole_has_no_key(tmp_path: Path) -> None:
    found, rest = read(write(tmp_path / "a.npy", part_of(0)))
    assert list(found) == [""]
    assert rest.item() == {}


def test_memory_holds_one_part(tmp_path: Path) -> None:
    value = {"parts": {f"p{i}": part_of(i, 50_000) for i in range(20)}, "names": []}
    path = write(tmp_path / "a.npy", value)
    del value
    size = path.stat().st_size
    count = 0

    def take(_: str, __: dict[str, Any]) -> None:
        nonlocal count
        count += 1

    tracemalloc.start()
    read_npy_parts(path, name="it", keys=KEYS, take=take, max_steps=10_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20
    assert peak < size / 6  # a part and its bytes are size / 10


def test_a_value_of_an_earlier_part_cannot_be_recalled(tmp_path: Path) -> None:
    shared = np.arange(100)
    value = {"p0": {"a": shared, "b": 1}, "p1": {"a": shared, "b": 2}}
    with pytest.raises(PickleError, match=r"it is refused at byte \d+: it has .* ForgottenValue"):
        read(write(tmp_path / "a.npy", value))


class _Call:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_nothing_is_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npy", {"p0": {"a": 1, "b": _Call()}})
    with pytest.raises(PickleError, match=r"it names '\w+.system'.*nothing in it was run"):
        read(path)


def test_a_part_in_itself_is_refused(tmp_path: Path) -> None:
    part: dict[str, Any] = {"a": [], "b": 1}
    part["a"].append(part["a"])
    with pytest.raises(PickleError, match="it has more than 64 containers in each other"):
        read(write(tmp_path / "a.npy", {"p0": part}))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is refused: it is no .npy file"),
        (b"PK\x03\x04" + bytes(100), "it is refused: it is no .npy file"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(PickleError, match=sentence):
        read(path)


def test_numbers_and_cut_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(PickleError, match="it has numbers, expected dictionaries"):
        read(path)
    write(path, part_of(0))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(PickleError, match="it ends early"):
        read(path)


def test_an_error_of_the_taker_is_not_the_files(tmp_path: Path) -> None:
    def take(_: str, __: dict[str, Any]) -> None:
        raise KeyError("ours")

    path = write(tmp_path / "a.npy", part_of(0))
    with pytest.raises(KeyError, match="ours"):
        read_npy_parts(path, name="it", keys=KEYS, take=take, max_steps=10_000)
