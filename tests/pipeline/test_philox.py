import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tests.strategies  # noqa: F401  (loads the hypothesis profile)
from pipeline.philox import Stream, philox4x32, random_words, uniforms

WORD = st.integers(0, 2**32 - 1)
Four = tuple[int, int, int, int]

# Random123, kat_vectors, philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS: list[tuple[Four, tuple[int, int], Four]] = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox_of_ints(counter: Four, key: tuple[int, int]) -> Four:
    """The paper's round function with Python's unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = divmod(a * 0xD2511F53, 2**32), divmod(c * 0xCD9E8D57, 2**32)
        a, b, c, d = right[0] ^ b ^ k, right[1], left[0] ^ d ^ m, left[1]
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return a, b, c, d


def run(counter: Four, key: tuple[int, int]) -> Four:
    a, b, c, d = (int(w) for w in philox4x32(tuple(torch.tensor(c) for c in counter), key))  # type: ignore[arg-type]
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_known_answers(counter: Four, key: tuple[int, int], expected: Four) -> None:
    assert run(counter, key) == expected
    assert philox_of_ints(counter, key) == expected


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_matches_the_scalar_formula(counter: Four, key: tuple[int, int]) -> None:
    assert run(counter, key) == philox_of_ints(counter, key)


@given(st.integers(0, 2**63 - 1), WORD, st.integers(0, 2**62), st.integers(1, 9))
def test_words_come_from_the_documented_counter(seed: int, epoch: int, id_: int, num: int) -> None:
    words = random_words(seed, Stream.augment, epoch, torch.tensor([id_, 7]), num)
    assert words.shape == (2, num)
    for draw in range(num):
        counter = (id_ % 2**32, id_ >> 32, epoch, Stream.augment * 2**16 + draw // 4)
        block = philox_of_ints(counter, (seed % 2**32, seed >> 32))
        assert int(words[0, draw]) == block[draw % 4]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    ids = torch.tensor([5, 900, 3, 2**40])
    together = random_words(1, Stream.augment, 2, ids, 6)
    alone = torch.cat([random_words(1, Stream.augment, 2, ids[i : i + 1], 6) for i in range(4)])
    assert torch.equal(together, alone)


def test_uniforms_are_exact_and_inside_the_open_interval() -> None:
    words = random_words(3, Stream.augment, 0, torch.arange(2000), 8)
    u = uniforms(3, Stream.augment, 0, torch.arange(2000), 8)
    assert u.dtype == torch.float64
    assert u[17, 5].item() == (int(words[17, 5]) + 0.5) / 2**32
    assert 0 < u.min() < 0.001 < 0.999 < u.max() < 1
    # 16000 draws: the mean's deviation is 1 / sqrt(12 * 16000) = 0.0023; five of them
    assert u.mean().item() == pytest.approx(0.5, abs=0.0115)
