"""The state of a pickle being read, and the steps that touch more than one value of it.

Nothing here imports what a pickle names: a name becomes ``_Named`` with a role, and a role is a
few lines of this module. Values of the file are compared only after their type is known, because
comparing and hashing nested ones recurses as deep as the file says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, Final

import numpy as np

from pipeline.pickles.plain_arrays import check_shape, plain_array, plain_dtype

Name = tuple[str, str]
"""Module and name of a class or function."""


@dataclass(slots=True, eq=False, repr=False)
class Instance:
    """An object of an allowed class: its name and state, nothing of its behaviour."""

    module: str
    name: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """A name in the pickle; ``role`` says what is done here instead of importing it."""

    module: str
    name: str
    role: str


@dataclass(slots=True, eq=False)
class _Dtype:
    """A NumPy type under construction: ``numpy.dtype(spec)``, then its state."""

    spec: str
    built: np.dtype | None = None


@dataclass(slots=True, eq=False)
class _Array:
    """An array under construction: ``_reconstruct``, then its state."""

    built: np.ndarray | None = None


_ROLES: Final[dict[Name, str]] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # bytes of Python 3 in protocols 0 to 2
    ("copy_reg", "_reconstructor"): "reconstructor",  # instances in protocols 0 and 1
    ("copyreg", "_reconstructor"): "reconstructor",
    **{
        (f"numpy.{core}.{module}", name): name.strip("_")
        for core in ("core", "_core")  # before and since NumPy 2
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    },
    **{
        (module, name): name
        for module in ("__builtin__", "builtins")  # Python 2 and 3
        for name in ("set", "frozenset", "bytes", "bytearray", "object")
    },
}


class Machine:
    """Position, stack, marks and memo of one pickle. Every method refuses with ``ValueError``."""

    def __init__(
        self, data: bytes | mmap, allow: frozenset[Name], *, objects: bool, begin: int = 0
    ) -> None:
        """``objects`` allows arrays of objects; the pickle starts at byte ``begin``."""
        self.data = data
        self.begin = begin
        self.allow = allow
        self.objects = objects
        self.start = begin
        self.position = begin
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.without_state: dict[int, Instance] = {}
        # An array of Python 3 in protocol 2 is copied twice; many arrays of one text are a bomb.
        self.copies_left = 4 * len(data) + 4096

    def result(self) -> Any:
        """Return the last value at STOP."""
        if len(self.stack) != 1 or self.marks:
            raise ValueError(f"it ends with {len(self.stack)} values, expected one")
        if self.position != len(self.data):
            raise ValueError(f"{len(self.data) - self.position} bytes follow its end")
        if self.without_state:
            raise ValueError("it has an object without its state")
        return self.stack[0]

    # --- reading ----------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """Return the next bytes, if they are all there."""
        end = self.position + count
        if end > len(self.data):
            left = len(self.data) - self.position
            raise ValueError(f"it ends early: {count} bytes expected, {left} left")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, size: int, *, signed: bool = False) -> int:
        """Return a little-endian integer of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def counted(self, size: int) -> bytes:
        """Return bytes that follow their own number."""
        return self.take(self.number(size))

    def line(self, longest: int | None = None) -> bytes:
        """Return the bytes up to the next line feed, of which at most ``longest``."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise ValueError("it ends early, inside a line")
        if longest is not None and end - self.position > longest:
            raise ValueError(f"it has a line of more than {longest} bytes for a number or name")
        part = self.data[self.position : end]
        self.position = end + 1
        return part

    # --- stack and memo ---------------------------------------------------------------------------

    def top(self) -> Any:
        """Return the last value without taking it."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("it takes a value that is not there")
        return self.stack[-1]

    def pop(self) -> Any:
        """Take the last value."""
        value = self.top()
        self.stack.pop()
        return value

    def pop_mark(self) -> list[Any]:
        """Take all values since the last mark."""
        if not self.marks:
            raise ValueError("it closes a group that was not opened")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def put(self, index: int) -> None:
        """Store the last value."""
        if not 0 <= index < 2**32:
            raise ValueError(f"it stores a value at {index}")
        self.memo[index] = self.top()

    def get(self, index: int) -> Any:
        """Return a stored value."""
        if index not in self.memo:
            raise ValueError(f"it recalls value {index}, which was not stored")
        value = self.memo[index]
        return value if type(value) is not _Array or value.built is None else value.built

    # --- containers -------------------------------------------------------------------------------

    def append(self, items: list[Any]) -> None:
        """Append to the list on top."""
        target = self.top()
        if type(target) is not list:
            raise ValueError(f"it appends to {kind(target)}")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values to the dict on top."""
        target = self.top()
        if type(target) is not dict:
            raise ValueError(f"it sets an item of {kind(target)}")
        target.update(pairs(items))

    def add_items(self, items: list[Any]) -> None:
        """Add to the set on top."""
        target = self.top()
        if type(target) is not set:
            raise ValueError(f"it adds to {kind(target)}")
        target.update(map(hashable, items))

    # --- names and objects ------------------------------------------------------------------------

    def named(self, module: str, name: str) -> _Named:
        """Return a name that is on the list."""
        role = "class" if (module, name) in self.allow else _ROLES.get((module, name))
        if role is None:
            shown = ascii(f"{module}.{name}")[1:-1][:100]
            allowed = ", ".join(["NumPy arrays", "sets", *sorted(map(".".join, self.allow))])
            raise ValueError(f"it names '{shown}', which is not among what it may hold ({allowed})")
        return _Named(module, name, role)

    def named_on_stack(self) -> _Named:
        """Return the name whose parts are the last two values."""
        name, module = self.pop(), self.pop()
        if type(module) is not str or type(name) is not str:
            raise ValueError("it names something by a value that is no text")
        return self.named(module, name)

    def call(self) -> Any:
        """Return what the named function would make of its arguments."""
        args, function = self.pop(), self.pop()
        if type(function) is not _Named or type(args) is not tuple:
            raise ValueError(f"it calls {kind(function)} with {kind(args)}")
        match function.role, args:
            case "reconstruct", (_Named(role="ndarray"), (int(0),), str("b") | bytes(b"b")):
                return _Array()
            case "dtype", (str(spec), int(0 | 1), int(0 | 1)):
                return _Dtype(spec)
            case "scalar", (_Dtype(built=np.dtype(hasobject=False) as dtype), payload):
                return plain_array((), dtype, self.payload(payload), fortran=False)[()]
            case "frombuffer", (payload, _Dtype() as made, shape, str(order)):
                return self.array(shape, made, payload, order)
            case "frombuffer", (payload, _Dtype() as made, shape, str("K"), tuple(axes)):
                array = self.array(shape, made, payload, "C")
                if all(type(axis) is int for axis in axes) and sorted(axes) == [*range(array.ndim)]:
                    return array.transpose(axes)
            case "set" | "frozenset", () | (list(),):
                keys = args[0] if args else []
                self.spend(8 * len(keys))
                made_set = set(map(hashable, keys))
                return made_set if function.role == "set" else frozenset(made_set)
            case "bytes", ():
                return b""
            case "bytearray", () | (bytes(),):
                return bytearray(self.payload(args[0]) if args else b"")
            case "encode", (str(text), str("latin1")):
                return self.payload(text)
            case "reconstructor", (_Named(role="class") as cls, _Named(role="object"), None):
                return self.instance(cls)
        raise ValueError(f"it calls {kind(function)} with arguments that no array or set has")

    def new_object(self) -> Instance:
        """Return an object of the allowed class below the empty tuple on top."""
        args, cls = self.pop(), self.pop()
        if type(cls) is not _Named or cls.role != "class" or type(args) is not tuple or args:
            raise ValueError(f"it makes an object of {kind(cls)}")
        return self.instance(cls)

    def instance(self, cls: _Named) -> Instance:
        """Return an object whose state is still to come."""
        made = Instance(cls.module, cls.name)
        self.without_state[id(made)] = made
        return made

    def build(self) -> None:
        """Give the array, type or object below its state."""
        state, target = self.pop(), self.top()
        match target, state:
            case _Array(built=None), (int(1), shape, _Dtype() as made, int(0 | 1) as fortran, data):
                target.built = self.array(shape, made, data, "F" if fortran else "C")
                self.stack[-1] = target.built
            case _Dtype(built=None), (
                int(3),
                str(order),
                None,
                None,
                None,
                int(size),
                int(),
                int(),
            ):
                target.built = plain_dtype(target.spec, order, objects=self.objects)
                if size not in (-1, target.built.itemsize):
                    raise ValueError(f"it has a NumPy type {target.built} of {size} bytes")
            case Instance(), dict() if id(target) in self.without_state:
                if not all(type(key) is str for key in state):
                    raise ValueError("it has an object whose state has a key that is no text")
                del self.without_state[id(target)]
                target.state = state
            case _:
                raise ValueError(f"it sets the state of {kind(target)} to {kind(state)}")

    # --- arrays -----------------------------------------------------------------------------------

    def spend(self, count: int) -> None:
        """Count bytes that are copied out of the pickle."""
        self.copies_left -= count
        if self.copies_left < 0:
            raise ValueError("it copies the same bytes again and again")

    def payload(self, value: Any) -> bytes | bytearray:
        """Return the bytes of an array; text is a byte string of Python 2."""
        if type(value) not in (bytes, bytearray, str):
            raise ValueError(f"it has an array whose data is {kind(value)}")
        self.spend(len(value))
        return value.encode("latin-1") if type(value) is str else value

    def array(self, shape: Any, made: _Dtype, data: Any, order: str) -> np.ndarray:
        """Return an array of plain values, or of the objects in a list."""
        shape = check_shape(shape)
        if made.built is None or order not in ("C", "F"):
            raise ValueError("it has an array of an unfinished type or unknown order")
        if not made.built.hasobject:
            return plain_array(shape, made.built, self.payload(data), fortran=order == "F")
        size = math.prod(shape)
        if type(data) is not list or len(data) != size:
            raise ValueError(f"it has an array of {size} objects whose data is {kind(data)}")
        self.spend(8 * size)
        flat = np.empty(size, object)
        for i, value in enumerate(data):
            flat[i] = value
        return flat.reshape(shape)


def kind(value: Any) -> str:
    """Return what a value is, in words, without looking inside."""
    if type(value) in (_Named, Instance):
        return f"{value.module}.{value.name}"
    names = {_Array: "array without data", _Dtype: "NumPy type", type(None): "None"}
    return f"a value of type {names.get(type(value), type(value).__name__)}"


def hashable(value: Any) -> Any:
    """Refuse keys that hash in more than constant time, or to whatever their author likes."""
    if isinstance(value, np.integer):
        return int(value)
    if type(value) in (str, bytes, bool) or (type(value) is int and abs(value) < 2**64):
        return value
    raise ValueError(f"it has a key or set member that is {kind(value)}")


def pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Return keys and values that follow each other."""
    if len(items) % 2:
        raise ValueError("it has a key without a value")
    return zip(map(hashable, items[::2]), items[1::2], strict=True)
