"""The steps of a pickle by their code, for all protocols, and the loop that takes them."""

import re
import struct
from codecs import escape_decode
from collections.abc import Callable
from typing import Any, Final

from pipeline.pickles.machine import Machine, hashable, pairs

_LINE: Final = 100
"""Longest line of a number, bytes."""


def run(machine: Machine, max_steps: int) -> Any:
    """Take the steps up to STOP and return the one value that is left.

    Raises:
        ValueError: At the first step that is broken or not one for plain data.
    """
    for _ in range(max_steps):
        machine.start = machine.position
        code = machine.take(1)
        if value := _VALUES.get(code):
            machine.stack.append(value(machine))
        elif step := _STEPS.get(code):
            step(machine)
        elif code == b".":
            return machine.result()
        elif code in _REFUSED:
            raise ValueError(f"it asks for {_REFUSED[code]}")
        else:
            raise ValueError(f"no pickle has the code {code!r}")
    raise ValueError(f"it takes more than {max_steps} steps")


# --- single values --------------------------------------------------------------------------------


def _integer(text: bytes) -> int:
    if not re.fullmatch(rb"-?[0-9]{1,80}L?", text):
        raise ValueError(f"{text[:20]!r} is no integer")
    return int(text.rstrip(b"L"))


def _integer_or_bool(text: bytes) -> int | bool:
    return text == b"01" if text in (b"00", b"01") else _integer(text)


def _long(data: bytes) -> int:
    if len(data) > 32:
        raise ValueError(f"it has an integer of {len(data)} bytes")
    return int.from_bytes(data, "little", signed=True)


def _float(text: bytes) -> float:
    if not re.fullmatch(rb"[-+]?([0-9]+\.?[0-9]*(e[-+]?[0-9]+)?|inf|nan)", text):
        raise ValueError(f"{text[:20]!r} is no number")
    return float(text)


def _quoted(text: bytes) -> str:
    """Return a byte string of Python 2 from its ``repr``."""
    if len(text) < 2 or text[:1] not in (b"'", b'"') or text[-1:] != text[:1]:
        raise ValueError("it has a text without quotes")
    inner = text[1:-1]
    if not set(re.findall(rb"\\(.)", inner, re.DOTALL)) <= _ESCAPES:
        raise ValueError("it has a text with an escape that Python 2 never writes")
    decoded, _ = escape_decode(inner)
    return decoded.decode("latin-1")


_ESCAPES: Final = {b"\\", b"'", b'"', b"n", b"t", b"r", b"x"}

_VALUES: Final[dict[bytes, Callable[[Machine], Any]]] = {
    b"N": lambda m: None,  # NONE
    b"\x88": lambda m: True,  # NEWTRUE
    b"\x89": lambda m: False,  # NEWFALSE
    b"I": lambda m: _integer_or_bool(m.line(_LINE)),  # INT
    b"L": lambda m: _integer(m.line(_LINE)),  # LONG
    b"J": lambda m: m.number(4, signed=True),  # BININT
    b"K": lambda m: m.number(1),  # BININT1
    b"M": lambda m: m.number(2),  # BININT2
    b"\x8a": lambda m: _long(m.counted(1)),  # LONG1
    b"\x8b": lambda m: _long(m.counted(4)),  # LONG4
    b"F": lambda m: _float(m.line(_LINE)),  # FLOAT
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],  # BINFLOAT
    b"S": lambda m: _quoted(m.line()),  # STRING
    b"U": lambda m: m.counted(1).decode("latin-1"),  # SHORT_BINSTRING
    b"T": lambda m: m.counted(4).decode("latin-1"),  # BINSTRING
    b"V": lambda m: m.line().decode("raw-unicode-escape"),  # UNICODE
    b"\x8c": lambda m: m.counted(1).decode(),  # SHORT_BINUNICODE
    b"X": lambda m: m.counted(4).decode(),  # BINUNICODE
    b"\x8d": lambda m: m.counted(8).decode(),  # BINUNICODE8
    b"C": lambda m: m.counted(1),  # SHORT_BINBYTES
    b"B": lambda m: m.counted(4),  # BINBYTES
    b"\x8e": lambda m: m.counted(8),  # BINBYTES8
    b"\x96": lambda m: bytearray(m.counted(8)),  # BYTEARRAY8
    b"]": lambda m: [],  # EMPTY_LIST
    b"l": lambda m: m.pop_mark(),  # LIST
    b")": lambda m: (),  # EMPTY_TUPLE
    b"t": lambda m: tuple(m.pop_mark()),  # TUPLE
    b"\x85": lambda m: (m.pop(),),  # TUPLE1
    b"\x86": lambda m: (m.pop(), m.pop())[::-1],  # TUPLE2
    b"\x87": lambda m: (m.pop(), m.pop(), m.pop())[::-1],  # TUPLE3
    b"}": lambda m: {},  # EMPTY_DICT
    b"d": lambda m: dict(pairs(m.pop_mark())),  # DICT
    b"\x8f": lambda m: set(),  # EMPTY_SET
    b"\x91": lambda m: frozenset(map(hashable, m.pop_mark())),  # FROZENSET
    b"2": lambda m: m.top(),  # DUP
    b"g": lambda m: m.get(_integer(m.line(_LINE))),  # GET
    b"h": lambda m: m.get(m.number(1)),  # BINGET
    b"j": lambda m: m.get(m.number(4)),  # LONG_BINGET
    b"c": lambda m: m.named(m.line(1000).decode(), m.line(1000).decode()),  # GLOBAL
    b"\x93": lambda m: m.named_on_stack(),  # STACK_GLOBAL
    b"R": lambda m: m.call(),  # REDUCE
    b"\x81": lambda m: m.new_object(),  # NEWOBJ
}
"""Steps that push one value."""


def _protocol(machine: Machine) -> None:
    protocol = machine.number(1)
    if machine.start != machine.begin or protocol > 5:
        raise ValueError(f"it changes to protocol {protocol}")


def _frame(machine: Machine) -> None:
    length = machine.number(8)
    if length > len(machine.data) - machine.position:
        raise ValueError(f"it ends early: a frame of {length} bytes is not all there")


_STEPS: Final[dict[bytes, Callable[[Machine], Any]]] = {
    b"\x80": _protocol,  # PROTO
    b"\x95": _frame,  # FRAME
    b"(": lambda m: m.marks.append(len(m.stack)),  # MARK
    b"0": lambda m: m.pop(),  # POP
    b"1": lambda m: m.pop_mark(),  # POP_MARK
    b"p": lambda m: m.put(_integer(m.line(_LINE))),  # PUT
    b"q": lambda m: m.put(m.number(1)),  # BINPUT
    b"r": lambda m: m.put(m.number(4)),  # LONG_BINPUT
    b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    b"a": lambda m: m.append([m.pop()]),  # APPEND
    b"e": lambda m: m.append(m.pop_mark()),  # APPENDS
    b"s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),  # SETITEM
    b"u": lambda m: m.set_items(m.pop_mark()),  # SETITEMS
    b"\x90": lambda m: m.add_items(m.pop_mark()),  # ADDITEMS
    b"b": lambda m: m.build(),  # BUILD
}
"""Steps that push nothing."""

_REFUSED: Final = {
    b"P": "an object by persistent id",
    b"Q": "an object by persistent id",
    b"i": "an object of an old-style class (INST)",
    b"o": "an object of an old-style class (OBJ)",
    b"\x92": "an object made with keyword arguments (NEWOBJ_EX)",
    b"\x82": "a name from the extension registry",
    b"\x83": "a name from the extension registry",
    b"\x84": "a name from the extension registry",
    b"\x97": "a buffer that is not in the file",
    b"\x98": "a buffer that is not in the file",
}
