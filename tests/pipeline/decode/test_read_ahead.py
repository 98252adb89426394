import threading
from collections.abc import Iterator

import pytest

from pipeline.decode.read_ahead import read_ahead


def counted(num: int, seen: list[int]) -> Iterator[int]:
    for i in range(num):
        seen.append(i)
        yield i


@pytest.mark.parametrize("num", [0, 1, 3, 20])
@pytest.mark.parametrize("depth", [1, 4])
def test_items_come_once_and_in_order(num: int, depth: int) -> None:
    assert list(read_ahead(counted(num, []), depth)) == list(range(num))


def test_it_is_as_far_ahead_as_asked_and_no_further() -> None:
    seen: list[int] = []
    items = read_ahead(counted(50, seen), 3)
    for _ in range(10):
        next(items)
    items.close()  # waits for the thread
    assert 10 <= len(seen) <= 10 + 3


def test_none_and_empty_items_do_not_end_it() -> None:
    assert list(read_ahead(iter([None, 0, [], None]), 2)) == [None, 0, [], None]


def test_an_error_comes_in_its_place() -> None:
    def failing() -> Iterator[int]:
        yield 0
        yield 1
        raise OSError("the disk is gone")

    items = read_ahead(failing(), 4)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_the_thread_ends_with_it() -> None:
    before = threading.active_count()
    items = read_ahead(counted(9, []), 4)
    next(items)
    assert threading.active_count() == before + 1
    items.close()
    assert threading.active_count() == before
    list(read_ahead(counted(9, []), 4))
    assert threading.active_count() == before
