"""The corpus, second part: steps, arrays and files that no plain data has, and bombs."""

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from tests.pipeline.pickles.pickle_words import (
    EMPTY,
    EMPTY_ARRAY,
    MARK,
    NONE,
    NOT_BUILT,
    RECONSTRUCT,
    array,
    call,
    data,
    dims,
    dtype,
    dtype_state,
    group,
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

CANARY: Final = "canary"
"""File that a payload leaves in the working folder if something runs it."""
RUN_TOUCH: Final = f"__import__('os').system('touch {CANARY}')"


@dataclass(frozen=True, slots=True)
class Case:
    """One file; ``make`` gives its content, ``read`` names the reader that must refuse it."""

    name: str
    make: Callable[[], bytes]
    read: str = "pickle"
    """``pickle``, ``mano`` or ``npy``."""
    refused: bool = True
    """Else the file may also be plain data after all; nothing may happen in either case."""


def of(label: str, content: bytes, read: str = "pickle") -> Case:
    return Case(label, lambda: content, read)


def step_cases() -> Iterator[Case]:
    """Steps that no plain data needs, and steps on the wrong thing."""
    ch, ndarray = name("chumpy.ch", "Ch"), name("numpy", "ndarray")
    state = mapping(text("x"), integer(1))
    for label, *steps in (
        ("persistent id text", b"Pos.system\n"),
        ("persistent id", text("os.system"), b"Q"),
        ("extension 1", b"\x82\x01"),
        ("extension 2", b"\x83\x01\x00"),
        ("extension 4", b"\x84\x01\x00\x00\x00"),
        ("next buffer", b"\x97"),
        ("readonly buffer", data(b"x"), b"\x98"),
        ("build on ndarray", ndarray, state, b"b"),
        ("build on set", name("builtins", "set"), state, b"b"),
        ("build on class", ch, state, b"b"),
        ("build on class with slots", ch, group(NONE, state), b"b"),
        ("build on list", b"]", state, b"b"),
        ("build on dict", b"}", state, b"b"),
        ("build on text", text("x"), state, b"b"),
        ("build on method", RECONSTRUCT, state, b"b"),
        ("build on method with slots", name("numpy", "dtype"), group(NONE, state), b"b"),
        ("build on type", dtype(), state, b"b"),
        ("object of method", RECONSTRUCT, EMPTY, b"\x81", state, b"b"),
        ("object of array", array(dims(1), data(bytes(8))), EMPTY, b"\x81"),
        ("append to method", RECONSTRUCT, NONE, b"a"),
        ("add to dict", b"}", MARK, text("ab"), b"\x90"),
        ("doubled list as item of array", array(dims(1), data(bytes(8))), integer(0), b"]",
            store(0), (b"0]" + MARK + recall(0) + recall(0) + b"e" + store(0)) * 60, b"s"),
        ("doubled list as array of objects", EMPTY_ARRAY, MARK, integer(1), dims(2), dtype("O"),
            b"\x89", b"]", store(0),
            (b"0]" + MARK + recall(0) + recall(0) + b"e" + store(0)) * 60, b"tb"),
        ("build on finished array", array(dims(1), data(bytes(8))), state, b"b"),
        ("build twice", instance("chumpy.ch", "Ch", x=NONE), state, b"b"),
        ("build with slots", ch, EMPTY, b"\x81", group(NONE, state), b"b"),
        ("build with list", ch, EMPTY, b"\x81", b"]", b"b"),
        ("build with text", ch, EMPTY, b"\x81", text("x"), b"b"),
        ("build with integer keys", ch, EMPTY, b"\x81", mapping(integer(1), NONE), b"b"),
        ("build without state", ch, EMPTY, b"\x81", b"b"),
        ("object without state", ch, EMPTY, b"\x81"),
        ("object with arguments", ch, group(integer(1)), b"\x81", state, b"b"),
        ("object of ndarray", ndarray, group(dims(10**13)), b"\x81"),
        ("object of set", name("builtins", "set"), EMPTY, b"\x81"),
        ("object of object", name("builtins", "object"), EMPTY, b"\x81"),
        ("object of text", text("os"), EMPTY, b"\x81"),
        ("call of class", call(ch)),
        ("call of text", text("os.system"), EMPTY, b"R"),
        ("call of array", array(dims(1), data(bytes(8))), EMPTY, b"R"),
        ("call of instance", instance("chumpy.ch", "Ch", x=NONE), EMPTY, b"R"),
        ("call with list", name("builtins", "set"), b"]", b"R"),
        ("call with dict", name("builtins", "set"), b"}", b"R"),
        ("call of set with dict", call(name("builtins", "set"), mapping(text("a"), NONE))),
        ("call of set with text", call(name("builtins", "set"), text("abc"))),
        ("call of set with number", call(name("builtins", "set"), integer(5))),
        ("call of set with two", call(name("builtins", "set"), b"]", b"]")),
        ("call of set with lists", call(name("builtins", "set"), listed(b"]"))),
        ("call of set with tuples", call(name("builtins", "set"), listed(group(NONE)))),
        ("call of bytes with text", call(name("builtins", "bytes"), text("x"))),
        ("call of bytes with size", call(name("builtins", "bytes"), integer(10**13))),
        ("call of bytearray with size", call(name("builtins", "bytearray"), integer(10**13))),
        ("call of object", call(name("builtins", "object"))),
        ("encode as rot13", call(name("_codecs", "encode"), text("x"), text("rot13"))),
        ("encode as zip", call(name("_codecs", "encode"), data(bytes(99)), text("zip"))),
        ("encode as utf-8", call(name("_codecs", "encode"), text("x"), text("utf-8"))),
        ("encode with errors", call(name("_codecs", "encode"), text("x"), text("latin1"), NONE)),
        ("encode of no latin-1", call(name("_codecs", "encode"), text("\u20ac"), text("latin1"))),
        ("encode of number", call(name("_codecs", "encode"), integer(1), text("latin1"))),
        ("append to tuple", EMPTY, NONE, b"a"),
        ("append to array", array(dims(1), data(bytes(8))), NONE, b"a"),
        ("append to instance", instance("chumpy.ch", "Ch", x=NONE), NONE, b"a"),
        ("appends to set", b"\x8f", MARK, NONE, b"e"),
        ("set item of list", listed(NONE), integer(0), NONE, b"s"),
        ("set item of array", array(dims(1), data(bytes(8))), integer(0), integer(1), b"s"),
        ("set item of name", ch, text("x"), NONE, b"s"),
        ("set items, odd", b"}", MARK, text("x"), b"u"),
        ("dict, odd", mapping(text("x"))),
        ("add to list", b"]", MARK, NONE, b"\x90"),
        ("add to name", name("builtins", "set"), MARK, NONE, b"\x90"),
        ("get of nothing", b"h\x07"),
        ("get by text", b"gos\n"),
        ("put by negative", NONE, b"p-1\n"),
        ("put by enormous", NONE, b"p" + b"9" * 70 + b"\n"),
        ("put of nothing", b"q\x00"),
        ("pop of nothing", b"0"),
        ("pop across a mark", NONE, MARK, b"0", b"1"),
        ("tuple across a mark", NONE, NONE, MARK, b"\x86"),
        ("tuple across a mark that is closed", NONE, NONE, MARK, b"\x86", b"1"),
        ("call across a mark", name("builtins", "set"), MARK, EMPTY, b"R"),
        ("mark without group", NONE, MARK),
        ("group without mark", NONE, b"t"),
        ("two values", NONE, NONE),
        ("no value", b""),
        ("protocol twice", b"\x80\x02", NONE),
        ("protocol inside", NONE, b"\x80\x05"),
        ("frame beyond the end", b"\x95" + (2**60).to_bytes(8, "little"), NONE),
        ("unknown step", b"\xff"),
        ("zero step", b"\x00"),
        ("reconstructor of set", call(
            name("copy_reg", "_reconstructor"), name("builtins", "set"), name("builtins", "object"),
            NONE)),
        ("reconstructor with base", call(
            name("copy_reg", "_reconstructor"), ch, name("builtins", "set"), listed(NONE))),
        ("reconstructor with state", call(
            name("copy_reg", "_reconstructor"), ch, name("builtins", "object"), integer(1))),
    ):  # fmt: skip
        yield of(label, whole(*steps))


def array_cases() -> Iterator[Case]:
    """Arrays whose type, shape or data do not fit."""
    good = data(bytes(16))
    reconstruct = name("numpy.core.multiarray", "_reconstruct")
    ndarray = name("numpy", "ndarray")
    rows: list[tuple[str, *tuple[bytes, ...]]] = [
        ("reconstruct of set", call(reconstruct, name("builtins", "set"), dims(0), data(b"b"))),
        ("reconstruct of class", call(reconstruct, name("chumpy.ch", "Ch"), dims(0), data(b"b"))),
        ("reconstruct of text", call(reconstruct, text("ndarray"), dims(0), data(b"b"))),
        ("reconstruct enormous", call(reconstruct, ndarray, dims(10**13), data(b"b"))),
        ("reconstruct two dims", call(reconstruct, ndarray, dims(0, 0), data(b"b"))),
        ("reconstruct of objects", call(reconstruct, ndarray, dims(0), data(b"O"))),
        ("reconstruct without type", call(reconstruct, ndarray, dims(0))),
        ("array without data", EMPTY_ARRAY),
        ("array without data, in a list", listed(EMPTY_ARRAY)),
        ("array of text state", EMPTY_ARRAY, text("x"), b"b"),
        ("array of short state", EMPTY_ARRAY, group(integer(1), dims(2)), b"b"),
        ("array of other version", EMPTY_ARRAY, group(
            integer(2), dims(2), dtype(), b"\x89", good), b"b"),
        ("array built twice", EMPTY_ARRAY, store(1), group(
            integer(1), dims(2), dtype(), b"\x89", good), b"b0", recall(1), group(
            integer(1), dims(2), dtype(), b"\x89", good), b"b"),
        ("array inside itself", EMPTY_ARRAY, store(1), group(
            integer(1), dims(1), dtype("O", dtype_state(integer(3), text("|"), NONE, NONE, NONE,
            integer(-1), integer(-1), integer(63))), b"\x89", listed(recall(1))), b"b"),
        ("shape enormous", array(dims(10**13), good)),
        ("shape enormous and empty", array(dims(0, 10**13), data(b""))),
        ("shape overflows", array(dims(2**32, 2**32), good)),
        ("shape overflows to fit", array(dims(2**61, 8, 2), good)),
        ("shape negative", array(dims(-2), good)),
        ("shape negative twice", array(dims(-1, -2), good)),
        ("shape of floats", array(group(b"G" + b"@" + bytes(7)), good)),
        ("shape of bools", array(group(b"\x88", integer(2)), good)),
        ("shape of texts", array(group(text("2")), good)),
        ("shape a list", array(listed(integer(2)), good)),
        ("shape a number", array(integer(2), good)),
        ("shape None", array(NONE, good)),
        ("shape of 33 axes", array(dims(*[1] * 32, 2), good)),
        ("data too short", array(dims(3), good)),
        ("data too long", array(dims(1), good)),
        ("data empty", array(dims(2), data(b""))),
        ("data None", array(dims(2), NONE)),
        ("data a list", array(dims(2), listed(integer(1), integer(2)))),
        ("data a number", array(dims(2), integer(16))),
        ("data not latin-1", array(dims(2), text("\u20ac" * 16))),
        ("data an array", array(dims(2), array(dims(2), good))),
        ("order 2", array(dims(2), good, fortran=integer(2))),
        ("order text", array(dims(2), good, fortran=text("F"))),
        ("type text", array(dims(2), good, text("f8"))),
        ("type None", array(dims(2), good, NONE)),
        ("type the class", array(dims(2), good, name("numpy", "dtype"))),
        ("type not built", array(dims(2), good, call(
            name("numpy", "dtype"), text("f8"), integer(0), integer(1)))),
        ("type as value", dtype()),
        ("type in a dict", mapping(text("a"), dtype())),
        *(
            (f"type {spec}", array(dims(1), data(bytes(16)), dtype(spec)))
            for spec in ("O", "O8", "V16", "V", "M8", "m8", "c16", "c8", "f16", "g", "U0", "S0",
                         "U999999999", "U", "S", "i3", "i16", "f8,f8", "(2,)f8", "2f8", "<f8",
                         "float64", "int", "object", "", "f8\n", "O\x00", "p", "datetime64[s]")
        ),
        ("type of list", array(dims(2), good, call(name("numpy", "dtype"), listed(
            group(text("a"), text("O"))), integer(0), integer(1)))),
        ("type of dict", array(dims(2), good, call(name("numpy", "dtype"), mapping(
            text("names"), b"]"), integer(0), integer(1)))),
        ("type of number", array(dims(2), good, call(
            name("numpy", "dtype"), integer(1), integer(0), integer(1)))),
        ("type of name", array(dims(2), good, call(
            name("numpy", "dtype"), name("builtins", "object"), integer(0), integer(1)))),
        ("type with copy 2", array(dims(2), good, call(
            name("numpy", "dtype"), text("f8"), integer(0), integer(2)))),
        *(
            (f"type state {label}", array(dims(2), good, dtype("f8", dtype_state(*state))))
            for label, state in {
                "with metadata": (integer(4), text("<"), NONE, NONE, NONE, integer(-1),
                                  integer(-1), integer(0), mapping(text("a"), NONE)),
                "version 4": (integer(4), text("<"), NONE, NONE, NONE, integer(-1), integer(-1),
                              integer(0)),
                "subarray": (integer(3), text("<"), group(dtype(), dims(10**13)), NONE, NONE,
                             integer(-1), integer(-1), integer(0)),
                "names": (integer(3), text("<"), NONE, group(text("a")), NONE, integer(-1),
                          integer(-1), integer(0)),
                "fields": (integer(3), text("<"), NONE, NONE, mapping(), integer(-1), integer(-1),
                           integer(0)),
                "size": (integer(3), text("<"), NONE, NONE, NONE, integer(1), integer(1),
                         integer(0)),
                "order": (integer(3), text("x"), NONE, NONE, NONE, integer(-1), integer(-1),
                          integer(0)),
                "order None": (integer(3), NONE, NONE, NONE, NONE, integer(-1), integer(-1),
                               integer(0)),
                "short": (integer(3), text("<")),
            }.items()
        ),
        ("type built twice", dtype() + dtype_state() + b"b"),
        ("characters that do not exist", array(dims(1), data(b"\xff" * 4), dtype("U1"))),
        ("scalar of objects", call(
            name("numpy.core.multiarray", "scalar"), dtype("O"), listed(NONE))),
        ("scalar too short", call(name("numpy.core.multiarray", "scalar"), dtype(), data(b"1"))),
        ("scalar too long", call(name("numpy.core.multiarray", "scalar"), dtype(), good)),
        ("scalar of None", call(name("numpy.core.multiarray", "scalar"), dtype(), NONE)),
        ("scalar of no type", call(name("numpy.core.multiarray", "scalar"), NONE, good)),
        *(
            (f"buffer {label}", call(name("numpy._core.numeric", "_frombuffer"), *args))
            for label, args in {
                "enormous": (good, dtype(), dims(10**13), text("C")),
                "a number": (integer(10**13), dtype(), dims(2), text("C")),
                "a name": (ndarray, dtype(), dims(2), text("C")),
                "order": (good, dtype(), dims(2), text("A")),
                "order None": (good, dtype(), dims(2), NONE),
                "type": (good, text("O"), dims(2), text("C")),
                "of objects": (good, dtype("O"), dims(2), text("C")),
                "axes missing": (good, dtype(), dims(2), text("K")),
                "axes too many": (good, dtype(), dims(2), text("K"), dims(0, 1)),
                "axes twice": (good, dtype(), dims(1, 2), text("K"), dims(0, 0)),
                "axes of texts": (good, dtype(), dims(2), text("K"), group(text("0"))),
            }.items()
        ),
    ]  # fmt: skip
    for label, *steps in rows:
        yield of(f"array: {label}", whole(*steps))


def bomb_cases() -> Iterator[Case]:
    """Small files that want much memory, time or stack."""

    def doubled(start: bytes, twice: bytes, times: int = 60) -> bytes:
        return whole(start, store(0), twice * times)

    pair = b"0" + recall(0) + recall(0) + b"\x86" + store(0)
    yield of("tuples doubled", doubled(EMPTY, pair))
    lists = b"0]" + MARK + recall(0) + recall(0) + b"e" + store(0)
    yield of("lists doubled", doubled(b"]", lists))
    dicts = b"0" + mapping(text("a"), recall(0), text("b"), recall(0)) + store(0)
    yield of("dicts doubled", doubled(b"}", dicts))
    yield of("long text repeated", whole(text("x" * 10**5), store(0), b"0]" + MARK,
                                          recall(0) * 10**4, b"e"))  # fmt: skip
    yield of("array repeated", whole(array(dims(10**4), data(bytes(8 * 10**4))), store(0), b"0]",
                                      MARK, recall(0) * 10**4, b"e"))  # fmt: skip
    again = EMPTY_ARRAY + MARK + integer(1) + dims(10**5) + recall(1) + b"\x89" + recall(0) + b"tb"
    yield of("arrays of one text", whole(data(bytes(8 * 10**5)), store(0), dtype(), store(1),
                                          b"00]" + MARK, again * 5000, b"e"))  # fmt: skip
    again = name("builtins", "set") + recall(0) + b"\x85R"
    yield of("sets of one list", whole(listed(*map(integer, range(20_000))), store(0),
                                        b"0]" + MARK, again * 20_000, b"e"))  # fmt: skip
    again = name("_codecs", "encode") + recall(0) + text("latin1") + b"\x86R"
    yield of("bytes of one text", whole(text("x" * 10**6), store(0), b"0]" + MARK, again * 10_000,
                                         b"e"))  # fmt: skip
    again = call(name("builtins", "bytearray"), recall(0))
    yield of("bytearrays of one text", whole(data(bytes(10**6)), store(0), b"0]" + MARK,
                                              again * 10_000, b"e"))  # fmt: skip
    deep = 60_000
    yield of("tuples deep", whole(EMPTY, b"\x85" * deep))
    yield of("lists deep", whole(b"]" * deep, b"a" * (deep - 1)))
    yield of("dicts deep", whole((b"}" + text("a")) * deep, b"}", b"s" * deep))
    chained = name("chumpy.ch", "Ch") + EMPTY + b"\x81}" + text("x")
    yield Case(
        "instances deep", lambda: whole(chained * 25_000, NONE, b"sb" * 25_000), "mano"
    )  # a chain of names is plain data, but no model
    crash = 190_000  # levels: at 200,000 the hash ends the process
    yield of("deep tuple as key", whole(b"}", EMPTY, b"\x85" * crash, NONE, b"s"))
    yield of("deep tuple in set", whole(call(name("builtins", "set"),
                                              listed(EMPTY + b"\x85" * crash))))  # fmt: skip
    yield of("deep tuple as shape", whole(array(EMPTY + b"\x85" * deep, data(b""))))
    yield of("deep tuple as state", whole(EMPTY_ARRAY, EMPTY, b"\x85" * deep, b"b"))
    yield of("deep tuple as argument", whole(name("numpy", "dtype"), EMPTY, b"\x85" * deep, b"R"))
    yield of("doubled tuple as key", whole(b"}", EMPTY, store(0), pair * 60, NONE, b"s"))
    yield of("list in itself", whole(b"]", store(0), recall(0), b"a"))
    yield of("dict in itself", whole(b"}", store(0), text("a"), recall(0), b"s"))
    yield of("list in its tuple", whole(b"]", store(0), recall(0), b"\x85a"))
    yield of("many steps", whole(b"\x8f" * 10**6))
    yield of("many marks", whole(MARK * 10**6))
    yield of("many lists", whole(b"]" * 10**6))
    prime = 2**61 - 1
    keys = b"".join(integer(i * prime) for i in range(50_000))
    yield of("colliding members", whole(b"\x8f", MARK, keys, b"\x90"))
    puts = b"".join(b"p%d\n" % (i * prime) for i in range(50_000))
    yield of("colliding puts", whole(NONE, puts))
    yield of("integer of many digits", b"I" + b"9" * 10**6 + b"\n.")
    yield of("long of many digits", b"L" + b"9" * 10**6 + b"L\n.")
    yield of("float of many digits", b"F" + b"9" * 10**6 + b"\n.")
    yield of("long of many bytes", b"\x8b" + (10**6).to_bytes(4, "little") + bytes(10**6) + b".")
    yield of("long of 255 bytes", whole(b"\x8a\xff" + b"\x7f" * 255))
    for label, code, size in (
        ("binbytes8", b"\x8e", 8), ("bytearray8", b"\x96", 8), ("binunicode8", b"\x8d", 8),
        ("binbytes", b"B", 4), ("binstring", b"T", 4), ("binunicode", b"X", 4),
        ("long4", b"\x8b", 4), ("frame", b"\x95", 8),
    ):  # fmt: skip
        for share in (2, 4, 256):
            length = 256**size // share - 1
            step = code + length.to_bytes(size, "little")
            yield of(f"{label} of {length} bytes", b"\x80\x05" + step + b"x.")


def argument_cases() -> Iterator[Case]:
    """Each argument of each call, and each part of each state, as something it never is."""
    pair = b"0" + recall(0) + recall(0) + b"\x86" + store(0)
    nasty = {
        "doubled tuple": EMPTY + store(0) + pair * 60,
        "dict of it": b"}" + text("a") + EMPTY + store(0) + pair * 60 + b"s",
        "list in itself": b"]" + store(0) + recall(0) + b"a",
        "array": array(dims(2), data(bytes(16))),
        "array without data": EMPTY_ARRAY,
        "instance": instance("chumpy.ch", "Ch", x=NONE),
        "class": name("chumpy.ch", "Ch"),
        "method": RECONSTRUCT,
        "type": dtype(),
        "None": NONE,
        "-1": integer(-1),
        "2**62": integer(2**62),
        "2**1000": integer(2**1000),
        "text": text("x"),
        "bytes": data(b"x"),
        "list": b"]",
        "dict": b"}",
    }
    core = "numpy._core"
    good, ndarray, payload = data(bytes(16)), name("numpy", "ndarray"), text("\0" * 16)
    calls: dict[str, tuple[bytes, list[bytes]]] = {
        "reconstruct": (RECONSTRUCT, [ndarray, dims(0), data(b"b")]),
        "dtype": (name("numpy", "dtype"), [text("f8"), integer(0), integer(1)]),
        "scalar": (name(f"{core}.multiarray", "scalar"), [dtype(), data(bytes(8))]),
        "frombuffer": (
            name(f"{core}.numeric", "_frombuffer"),
            [good, dtype(), dims(1, 2), text("K"), dims(1, 0)],
        ),
        "encode": (name("_codecs", "encode"), [payload, text("latin1")]),
        "set": (name("builtins", "set"), [listed(integer(1))]),
        "frozenset": (name("builtins", "frozenset"), [listed(integer(1))]),
        "bytes": (name("builtins", "bytes"), []),
        "bytearray": (name("builtins", "bytearray"), [data(b"x")]),
        "reconstructor": (
            name("copyreg", "_reconstructor"),
            [name("chumpy.ch", "Ch"), name("builtins", "object"), NONE],
        ),
    }
    states: dict[str, tuple[bytes, list[bytes]]] = {
        "array": (EMPTY_ARRAY, [integer(1), dims(2), dtype(), b"\x89", good]),
        "objects": (EMPTY_ARRAY, [integer(1), dims(1), dtype("O"), b"\x89", listed(NONE)]),
        "dtype": (dtype()[: -len(dtype_state()) - 1], [integer(3), text("<"), *NOT_BUILT]),
        "instance": (name("chumpy.ch", "Ch") + EMPTY + b"\x81", [NONE, mapping(text("x"), NONE)]),
    }
    for label, (start, parts) in (calls | states).items():
        end = b"R" if label in calls else b"b"
        for what, value in nasty.items():
            for i in range(len(parts) + 1):  # one more than it takes, too
                changed = [*parts[:i], value, *parts[i + 1 :]]
                yield _maybe(f"{label}: {i} is {what}", start, group(*changed), end)
            yield _maybe(f"{label}: all is {what}", start, value, end)
            if label in calls:
                yield _maybe(f"{label}: calls {what}", value, group(*parts), end)
            yield _maybe(f"{label}: {what} gets {what}", value, value, end)
        for i in range(len(parts)):
            changed = [*parts[:i], EMPTY + b"\x85" * 20_000, *parts[i + 1 :]]
            yield _maybe(f"{label}: {i} is a deep tuple", start, group(*changed), end)
    for what, value in nasty.items():
        for other, second in nasty.items():
            for step in (b"a", b"s", b"R", b"b", b"\x81", b"\x92", b"\x93", b"\x90", b"e", b"u"):
                mark = MARK if step in b"\x90eu" else b""
                steps = (value, mark, second, second, step)
                yield _maybe(f"{step!a} of {what} and {other}", *steps)


def _maybe(label: str, *steps: bytes) -> Case:
    return Case(label, lambda: whole(*steps), refused=False)


def npy_cases() -> Iterator[Case]:
    """Files of NumPy with a hostile header or content."""

    def npy(header: str, payload: bytes = b"", version: int = 1) -> bytes:
        length = len(header).to_bytes(2 if version == 1 else 4, "little")
        return b"\x93NUMPY" + bytes((version, 0)) + length + header.encode() + payload

    def fields(descr: str, shape: str) -> str:
        return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n"

    hostile = whole(call(name("os", "system"), text(f"touch {CANARY}")))
    for label, content in {
        "expression": npy(RUN_TOUCH + "\n"),
        "expression as type": npy(fields(RUN_TOUCH, "(2,)"), bytes(16)),
        "expression as shape": npy(fields("'<f8'", f"({RUN_TOUCH},)"), bytes(16)),
        "shape enormous": npy(fields("'<f8'", "(10000000000000,)"), bytes(16)),
        "shape of many digits": npy(fields("'<f8'", f"({'9' * 5000},)"), bytes(16)),
        "shape negative": npy(fields("'<f8'", "(-2,)"), bytes(16)),
        "shape nested": npy(fields("'<f8'", "(" * 3000), bytes(16)),
        "shape of powers": npy(fields("'<f8'", "(9**9**9,)"), bytes(16)),
        "structure": npy(fields("[('a', '<f8')]", "(2,)"), bytes(16)),
        "structure of objects": npy(fields("[('a', '|O')]", "(2,)"), bytes(16)),
        "void": npy(fields("'|V8'", "(2,)"), bytes(16)),
        "dates": npy(fields("'<M8[s]'", "(2,)"), bytes(16)),
        "too short": npy(fields("'<f8'", "(3,)"), bytes(16)),
        "too long": npy(fields("'<f8'", "(1,)"), bytes(16)),
        "header beyond the end": b"\x93NUMPY\x01\x00\xff\xff{}",
        "header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
        "version 9": npy(fields("'<f8'", "(2,)"), bytes(16), version=9),
        "cut in the magic": b"\x93NUM",
        "cut in the header": npy(fields("'<f8'", "(2,)"))[:20],
        "objects that call": npy(fields("'|O'", "()"), hostile),
        "objects that are none": npy(fields("'|O'", "()"), whole(mapping())),
        "objects cut off": npy(fields("'|O'", "()"), b"\x80\x02"),
        "objects of other shape": npy(fields("'|O'", "(2,)"), pickle.dumps(np.array(None), 2)),
        "objects as bytes": npy(fields("'|O'", "(2,)"), bytes(16)),
        "objects deep": npy(fields("'|O'", "()"), whole(EMPTY, b"\x85" * 60_000)),
    }.items():
        yield of(f"npy: {label}", content, "npy")
