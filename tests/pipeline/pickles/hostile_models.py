"""The corpus, third part: sound pickles that are no MANO model."""

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np

from tests.model.conftest import random_mano
from tests.pipeline.pickles.hostile_steps import Case
from tests.pipeline.pickles.pickle_words import (
    NONE,
    array,
    csc_state,
    data,
    dims,
    dtype,
    instance,
    integer,
    listed,
    mapping,
    name,
    recall,
    store,
    text,
    whole,
)

INTEGERS = ("f", "kintree_table")


def plain(values: np.ndarray) -> bytes:
    return array(
        dims(*values.shape), data(values.tobytes()), dtype(f"{values.dtype.kind}{values.itemsize}")
    )


def number(value: int | float) -> bytes:
    return plain(np.array(value))


@lru_cache(maxsize=1)
def _arrays() -> dict[str, np.ndarray]:
    return random_mano(0)[0]


@lru_cache(maxsize=1)
def _pieces() -> dict[str, bytes]:
    return {key: plain(values) for key, values in _arrays().items()}


def model(changed: dict[str, bytes | None]) -> bytes:
    """A MANO pickle with some keys changed, or left out where the value is None."""
    pieces = {**_pieces(), **changed}
    return whole(
        mapping(*(part for k, piece in pieces.items() if piece for part in (text(k), piece)))
    )


def _wrong(key: str, values: np.ndarray) -> Iterator[tuple[str, bytes | None]]:
    other = np.zeros(values.shape, np.float64 if key in INTEGERS else np.int64)
    yield "missing", None
    yield "None", NONE
    yield "a text", text("0")
    yield "a list", listed(integer(1))
    yield "a dict", mapping()
    yield "a number", integer(0)
    yield "a scalar", number(1.5)
    yield "in a table", plain(values[None])
    yield "turned", plain(np.moveaxis(values, 0, -1)[None])
    yield "short", plain(values[:-1])
    yield "of the other kind", plain(other)
    yield "of bools", plain(values > 0)
    yield "of texts", plain(np.zeros(values.shape, "S1"))
    if key not in INTEGERS:
        for bad in (np.nan, np.inf):
            spoilt = values.copy()
            spoilt.flat[-1] = bad
            yield f"with {bad}", plain(spoilt)


def _ch(**state: bytes) -> bytes:
    return instance("chumpy.ch", "Ch", **state)


def _select(**state: bytes) -> bytes:
    return instance("chumpy.reordering", "Select", **state)


def _chumpy() -> Iterator[tuple[str, bytes]]:
    source = plain(_arrays()["shapedirs"])
    idxs = np.arange(23340)
    shape = dims(778, 3, 10)
    a, good = _ch(x=source), plain(idxs)
    yield "Ch without x", _ch(y=source)
    yield "Ch of None", _ch(x=NONE)
    yield "Ch of a list", _ch(x=listed(integer(1)))
    yield "Ch of a class", _ch(x=instance("scipy.sparse.csc", "csc_matrix", x=NONE))
    yield "Ch of integers", _ch(x=plain(idxs.reshape(778, 3, 10)))
    nested = a
    for _ in range(30):
        nested = _ch(x=nested)
    yield "Ch 30 deep", nested
    inside = name("chumpy.ch", "Ch") + b")\x81" + store(9) + mapping(text("x"), recall(9)) + b"b"
    yield "Ch in itself", inside
    yield "Select without a", _select(idxs=good, preferred_shape=shape)
    yield "Select without idxs", _select(a=a, preferred_shape=shape)
    yield "Select without shape", _select(a=a, idxs=good)
    yield "Select of a text", _select(a=text("a"), idxs=good, preferred_shape=shape)
    yield "Select by floats", _select(a=a, idxs=plain(idxs * 1.0), preferred_shape=shape)
    yield "Select by a list", _select(a=a, idxs=listed(integer(0)), preferred_shape=shape)
    yield "Select by a table", _select(a=a, idxs=plain(idxs[None]), preferred_shape=shape)
    yield "Select beyond", _select(a=a, idxs=plain(idxs + 1), preferred_shape=shape)
    yield "Select below", _select(a=a, idxs=plain(idxs - 1), preferred_shape=shape)
    yield "Select of nothing", _select(a=a, idxs=plain(idxs[:0]), preferred_shape=dims(0))
    for label, bad in {
        "other": dims(778, 3, 11), "enormous": dims(10**15, 10**15), "negative": dims(-778, -3, 10),
        "of 40 axes": dims(*[1] * 40), "text": text("x"), "None": NONE, "number": integer(23340),
        "of texts": listed(text("778")), "of floats": plain(np.array([778.0, 3, 10])),
        "swapped": dims(3, 778, 10),
    }.items():  # fmt: skip
        yield f"Select of shape {label}", _select(a=a, idxs=good, preferred_shape=bad)


def _csc(**changed: bytes | None) -> bytes:
    state = csc_state(_arrays()["J_regressor"])
    pieces: dict[str, bytes | None] = {
        key: plain(state[key]) for key in ("data", "indices", "indptr")
    }
    pieces |= {"_shape": dims(16, 778), **changed}
    kept = {key: piece for key, piece in pieces.items() if piece}
    return instance("scipy.sparse.csc", "csc_matrix", **kept)


def _sparse() -> Iterator[tuple[str, bytes]]:
    state = csc_state(_arrays()["J_regressor"])
    rows, starts = state["indices"], state["indptr"]
    last, wild = starts.copy(), starts.copy()
    last[-1] += 1
    wild[5] = 10**6
    for key in ("data", "indices", "indptr", "_shape"):
        yield f"csc without {key}", _csc(**{key: None})
        yield f"csc with text as {key}", _csc(**{key: text("x")})
        yield f"csc with None as {key}", _csc(**{key: NONE})
        yield f"csc with scalar as {key}", _csc(**{key: number(3)})
    yield "csc of integers", _csc(data=plain(np.ones(len(rows), int)))
    yield "csc with NaN", _csc(data=plain(state["data"] * np.nan))
    yield "csc with floats as rows", _csc(indices=plain(rows * 1.0))
    yield "csc with rows beyond", _csc(indices=plain(rows + 1))
    yield "csc with rows below", _csc(indices=plain(rows - 1))
    yield "csc with few rows", _csc(indices=plain(rows[:-1]))
    yield "csc with few starts", _csc(indptr=plain(starts[:-1]))
    yield "csc with last start beyond", _csc(indptr=plain(last))
    yield "csc with wild start", _csc(indptr=plain(wild))
    yield "csc with reversed starts", _csc(indptr=plain(starts[::-1].copy()))
    yield "csc with negative starts", _csc(indptr=plain(starts - 1))
    yield "csc of shape enormous", _csc(_shape=dims(10**7, 778))
    yield "csc of shape negative", _csc(_shape=dims(-16, 778))
    yield "csc of shape flat", _csc(_shape=dims(16 * 778))
    yield "csc of shape of texts", _csc(_shape=listed(text("16"), text("778")))


def _contents() -> Iterator[tuple[str, str, np.ndarray]]:
    arrays = _arrays()
    yield "weights", "halved", arrays["weights"] / 2
    yield "weights", "zero", arrays["weights"] * 0
    yield "J_regressor", "doubled", arrays["J_regressor"] * 2
    for label, value in (("778", 778), ("2**32 - 1", 2**32 - 1)):
        faces = arrays["f"].copy()
        faces[3, 1] = value
        yield "f", f"with {label}", faces
    yield "f", "with -1", arrays["f"].astype(np.int64) - 1
    for label, at, value in (
        ("other parent", (0, 5), 0), ("other joint", (1, 5), 6), ("other root", (0, 0), 7),
    ):  # fmt: skip
        tree = arrays["kintree_table"].copy()
        tree[at] = value
        yield "kintree_table", f"with {label}", tree


def model_cases() -> Iterator[Case]:
    """Yield pickles of plain data that are refused as models."""
    for key, values in _arrays().items():
        for label, piece in _wrong(key, values):
            yield Case(f"model: {key} {label}", partial(model, {key: piece}), "mano")
    for label, piece in _chumpy():
        yield Case(f"model: {label}", partial(model, {"shapedirs": piece}), "mano")
    for label, piece in _sparse():
        yield Case(f"model: {label}", partial(model, {"J_regressor": piece}), "mano")
    for key, label, values in _contents():
        yield Case(f"model: {key} {label}", partial(model, {key: plain(values)}), "mano")
    for label, content in {
        "None": NONE, "a list": listed(mapping()), "empty": mapping(), "a text": text("v_template"),
        "an array": plain(np.zeros(3)), "a class": _ch(x=NONE), "other keys": mapping(
            text("v"), NONE), "integer keys": mapping(integer(1), NONE),
    }.items():  # fmt: skip
        yield Case(f"model: {label}", partial(whole, content), "mano")
