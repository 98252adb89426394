"""Safe reader of pickles of body models and datasets: no code in them is executed.

A pickle is a program that can import and call anything. The standard library's unpickler runs it
here, but all it can import or call are a few methods of this module, which create NumPy arrays and
types, sets and bytes. An object of a class in ``allow`` becomes an ``Instance``: name and state.

It is the pure Python unpickler, ``pickle._Unpickler``. With the C one, ``BUILD`` sets attributes of
whatever ``find_class`` returned, hashing a tuple nested 200,000 deep crashes the process, and a
file of 18 GB cannot be read part by part. NumPy's own functions crash on invalid array states, so
they get only validated ones.

Bounded: file size, steps, nesting, integers, keys (their hashes neither recurse nor collide), bytes
copied into arrays, and the size of shared values when expanded. Memory is then at most 200 bytes
per step plus a small multiple of the file, time a few microseconds per step; both are limited by
the caller. Text of Python 2 is read as latin-1, as the datasets require.
"""

import io
import itertools
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from mmap import ACCESS_READ, mmap
from pathlib import Path
from struct import unpack
from types import MethodType
from typing import Any, Final, Literal

import numpy as np

from pipeline.app.files import open_regular
from pipeline.npy import flat_array, parse_npy, plain_dtype

MAX_BYTES: Final = 64 * 2**20
MAX_STEPS: Final = 200_000
"""Default limit of steps; a MANO file takes 430."""
MAX_DEPTH: Final = 64
"""Maximum nesting of containers."""
_UNFOLD: Final = 64
"""Maximum memory of the values over the file size (plus 1 MiB), counting shared values once per
reference."""
_MAX_INTEGER_BITS: Final = 256
_NOT_PICKLES: Final = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"\x93NUMPY": "a .npy file",
    b"version https://git-lfs": "a Git LFS pointer",
}

Name = tuple[str, str]
"""Module and name of a class or function."""
Part = dict[str, Any]


class PickleError(ValueError):
    """A pickle is broken, or contains more than plain data; one sentence."""


@dataclass(slots=True, eq=False, repr=False)
class Instance:
    """An object of an allowed class: its name and state, without behaviour."""

    module: str
    name: str
    state: dict[str, Any] = field(default_factory=dict)


# --- reading --------------------------------------------------------------------------------------


def load_pickle(
    source: Path | bytes,
    *,
    name: str,
    allow: frozenset[Name] = frozenset(),
    max_bytes: int = MAX_BYTES,
    max_steps: int = MAX_STEPS,
) -> Any:
    """Return the value in a pickle: None, numbers, text, bytes, containers, arrays, instances.

    Args:
        source: File or its content.
        name: Name in error messages.
        allow: Classes that may appear; they become ``Instance``.
        max_bytes: Maximum file size.
        max_steps: Maximum number of steps, about two for each value.

    Raises:
        PickleError: If the file is too large, broken, or contains anything else.
        OSError: If it cannot be read.
    """
    data = _read(source, name, max_bytes)
    return _value(_Unpickler(io.BytesIO(data), len(data), allow, max_steps), name)


def load_npy(source: Path | bytes, *, name: str, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """Return the array of a ``.npy`` file; the pickle in an object array is read as above.

    Raises:
        PickleError: If the file is too large, broken, or contains anything but plain data.
        OSError: If it cannot be read.
    """
    data = _read(source, name, max_bytes)
    try:
        shape, dtype, order, payload = parse_npy(data)
        if not dtype.hasobject:
            return flat_array(payload, dtype).reshape(shape, order=order)
    except ValueError as error:
        raise PickleError(f"{name} is refused: {error}") from error
    unpickler = _Unpickler(io.BytesIO(payload), len(payload), frozenset(), MAX_STEPS)
    return _objects(unpickler, shape, name)


def read_npy_parts(
    path: Path,
    *,
    name: str,
    keys: frozenset[str],
    take: Callable[[str, Part], None],
    max_steps: int,
) -> np.ndarray:
    """Read the object array of a ``.npy`` file, passing its parts to ``take`` as they complete.

    For files that do not fit into memory. A part is passed on when it is complete, then emptied,
    and its entries in the pickle's memo are dropped. The rest is returned.

    Args:
        path: The file.
        name: Name in error messages.
        keys: A dictionary that has all of them is a part. A pickle sets a thousand items at once
            (protocol 0, which NumPy does not write, one); items set later stay in the rest.
        take: Called with the key of the part in its parent dictionary (empty: none) and the part.
            It must keep no reference.
        max_steps: Maximum number of steps of the pickle.

    Raises:
        PickleError: If the file is broken, or contains anything but plain data.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(1 << 14)
        try:
            shape, dtype, _, payload = parse_npy(head)
        except ValueError as error:
            raise PickleError(f"{name} is refused: {error}") from error
        if not dtype.hasobject:
            raise PickleError(f"{name} is refused: it has numbers, expected dictionaries")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
            data.seek(len(head) - len(payload))
            return _objects(_Parts(data, len(data), keys, take, max_steps), shape, name)


def _read(source: Path | bytes, name: str, max_bytes: int) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        with open_regular(source) as file:
            data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise PickleError(f"{name} is refused: it is larger than {max_bytes} bytes")
    return data


def _objects(unpickler: "_Unpickler", shape: tuple[int, ...], name: str) -> np.ndarray:
    array = _value(unpickler, name)
    if not isinstance(array, np.ndarray) or array.shape != shape or not array.dtype.hasobject:
        raise PickleError(f"{name} is refused: its pickle is no object array of shape {shape}")
    return array


def _value(unpickler: "_Unpickler", name: str) -> Any:
    file, begin = unpickler.file, unpickler.file.tell()
    head = file.read(32)
    file.seek(begin)
    if not head:
        raise PickleError(f"{name} is refused: it is empty")
    for start, what in _NOT_PICKLES.items():
        if head.startswith(start):
            raise PickleError(f"{name} is refused: it is {what}, not a pickle")
    try:
        value = unpickler.load_all()
    except Exception as error:  # a step on a wrong value raises whatever Python does
        if unpickler.taking:
            raise  # not the file's fault
        words = f"it ends early or is damaged ({type(error).__name__} {error}"[:200] + ")"
        if isinstance(error, (ValueError, pickle.UnpicklingError)):
            words = str(error)[:300]
        words = " ".join(words.split())
        raise PickleError(
            f"{name} is refused at byte {unpickler.start}: {words}; nothing in it was run"
        ) from error
    return value


# --- the unpickler --------------------------------------------------------------------------------

_CALLS: Final[dict[Name, str]] = {
    ("numpy", "dtype"): "make_dtype",
    ("_codecs", "encode"): "make_bytes",  # bytes of Python 3 in protocols 0 to 2
    ("copy_reg", "_reconstructor"): "make_instance",  # instances in protocols 0 and 1
    ("copyreg", "_reconstructor"): "make_instance",
    **{
        (f"numpy.{core}.{module}", name): method
        for core in ("core", "_core")  # before and since NumPy 2
        for module, name, method in (
            ("multiarray", "_reconstruct", "make_empty"),
            ("multiarray", "scalar", "make_scalar"),
            ("numeric", "_frombuffer", "make_array"),
        )
    },
    **{
        (module, name): f"make_{name}"
        for module in ("__builtin__", "builtins")  # Python 2 and 3
        for name in ("set", "frozenset", "bytes", "bytearray")
    },
}
"""Functions that a pickle may call, and the method that replaces each."""
_ARGUMENTS: Final = {("numpy", "ndarray"), ("__builtin__", "object"), ("builtins", "object")}
"""Classes that are accepted only as arguments of those calls."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Class:
    """The name of a class, used instead of the class."""

    module: str
    name: str


@dataclass(slots=True, eq=False, repr=False)
class _Dtype:
    """The ``str`` of a NumPy type; the pickle sets its byte order in a later step."""

    text: str


class _Unpickler(pickle._Unpickler):  # noqa: SLF001  # why not the public one: see above
    """Standard unpickling steps, with every name, call and object mutation checked here."""

    # Attributes of the base class that its type stubs omit.
    stack: list[Any]
    memo: dict[int, Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self, file: io.BytesIO | mmap, size: int, allow: frozenset[Name], max_steps: int
    ) -> None:
        super().__init__(file, encoding="latin-1")
        self.file, self.size, self.allow, self.max_steps = file, size, allow, max_steps
        self.start = self.num_steps = 0
        self.taking = False
        # An array of Python 3 in protocol 2 is copied twice; many arrays of one text are a bomb.
        self.copies_left = 4 * size + 4096

    def load_all(self) -> Any:
        """Return the value, if nothing follows it and it can be traversed safely."""
        value = self.load()
        if left := self.size - self.file.tell():
            raise ValueError(f"{left} bytes follow its end")
        _check(value, _UNFOLD * self.size + 2**20)
        return value

    # --- names, calls, state

    def find_class(self, module: str, name: str) -> Any:
        """Resolve a name: to one of our methods, or to the name itself."""
        if call := _CALLS.get((module, name)):
            return getattr(self, call)
        if (module, name) in self.allow or (module, name) in _ARGUMENTS:
            return _Class(module, name)
        shown = ascii(f"{module}.{name}")[1:-1][:100]
        allowed = ", ".join(["NumPy arrays", "sets", *sorted(map(".".join, self.allow))])
        raise ValueError(f"it names '{shown}', which is not among what it may hold ({allowed})")

    def load_reduce(self) -> None:
        args, call = self.stack.pop(), self.stack.pop()
        if type(call) is not MethodType or type(args) is not tuple:
            raise ValueError(f"it calls {kind(call)} with {kind(args)}")
        self.append(call(*args))

    def load_newobj(self) -> None:
        self.stack.pop()  # arguments, which no class here has
        self.append(self.make_instance(self.stack.pop()))

    def make_instance(self, cls: object, *_: object) -> Instance:
        if type(cls) is not _Class or (cls.module, cls.name) not in self.allow:
            raise ValueError(f"it makes an object of {kind(cls)}")
        return Instance(cls.module, cls.name)

    def load_build(self) -> None:
        """Set the state of the object on top; only these three types have one."""
        state, target = self.stack.pop(), self.stack[-1]
        match target, state:
            case Instance(), dict() if all(type(key) is str for key in state):
                target.state = state
            case _Dtype(), (3, str(order), None, None, None, int(), int(), int()):
                target.text = order + target.text[1:]
            case np.ndarray(size=0), (1, shape, _Dtype() as dtype, fortran, payload):
                array = self.make_array(payload, dtype, shape, "F" if fortran else "C")
                filled: Any = array.__reduce__()[2]
                target.__setstate__(filled)  # in place, the memo has it already
            case _:
                raise ValueError(f"it sets the state of {kind(target)} to {kind(state)}")

    def load_refused(self) -> None:
        raise ValueError(
            "it asks for an extension, an old-style class, keywords or a buffer outside it"
        )

    load_inst = load_obj = load_newobj_ex = load_refused
    load_ext1 = load_ext2 = load_ext4 = load_readonly_buffer = load_refused

    # --- keys: Python would hash arbitrary objects

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self.set_items(items)

    def load_setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self.set_items(items)

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values in turn to the dictionary on top."""
        target = self.stack[-1]
        if type(target) is not dict:
            raise ValueError(f"it sets an item of {kind(target)}")
        target.update(zip(map(_hashable, items[::2]), items[1::2], strict=True))

    def load_additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is not set:
            raise ValueError(f"it adds to {kind(target)}")
        target.update(map(_hashable, items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(map(_hashable, items)))

    def load_put(self) -> None:
        self.memo[_hashable(int(self.readline()))] = self.stack[-1]

    def make_set(self, members: Any = ()) -> set[Any]:
        self.spend(8 * len(members))
        return set(map(_hashable, members))

    def make_frozenset(self, members: Any = ()) -> frozenset[Any]:
        return frozenset(self.make_set(members))

    # --- bytes and arrays

    def load_frame(self) -> None:
        self.read(8)  # only how much to read ahead

    def load_bytearray8(self) -> None:
        self.append(bytearray(self.read(*unpack("<Q", self.read(8)))))  # not: allocate, then read

    def spend(self, num_bytes: int) -> None:
        self.copies_left -= num_bytes
        if self.copies_left < 0:
            raise ValueError("it copies the same bytes again and again")

    def make_bytes(self, value: Any = b"", codec: str = "latin1") -> bytes:
        """Return the data of an array; text is a Python 2 byte string."""
        if type(value) not in (bytes, bytearray, str) or codec != "latin1":
            raise ValueError(f"it has bytes that are {kind(value)} or in another code")
        self.spend(len(value))
        return value.encode("latin-1") if type(value) is str else bytes(value)

    def make_bytearray(self, value: Any = b"") -> bytearray:
        return bytearray(self.make_bytes(value))

    def make_dtype(self, spec: str, *_: object) -> _Dtype:
        return _Dtype("|" + spec[:20])

    def make_scalar(self, dtype: _Dtype, payload: Any) -> Any:
        return self.make_array(payload, dtype, ())[()]

    def make_empty(self, *_: object) -> np.ndarray:
        return np.empty(0, np.int8)

    def make_array(
        self,
        payload: Any,
        dtype: _Dtype,
        shape: Any,
        order: Literal["C", "F"] = "C",
        axes: Any = None,
    ) -> np.ndarray:
        """Return an array of a payload in ``order``, or, with K, in C order of other axes."""
        for sizes in (shape, axes or ()):
            if type(sizes) is not tuple or not all(type(n) is int and n >= 0 for n in sizes):
                raise ValueError("it has an array whose shape is no tuple of sizes")
        plain = plain_dtype(dtype.text)
        if plain.hasobject:
            self.spend(8 * len(payload))
            flat, order = np.fromiter(payload, object), "C"
        else:
            flat = flat_array(self.make_bytes(payload), plain)
        if axes is None:
            return flat.reshape(shape, order=order)
        return flat.reshape(shape).transpose(axes)  # order is K


def _counted(step: Callable[[Any], None]) -> Callable[[Any], None]:
    def take(unpickler: _Unpickler) -> None:
        unpickler.start = unpickler.file.tell() - 1
        unpickler.num_steps += 1
        if unpickler.num_steps > unpickler.max_steps:
            raise ValueError(f"it takes more than {unpickler.max_steps} steps")
        step(unpickler)

    return take


# The base class's dispatch table has its own functions; replace them with ours of the same name.
_Unpickler.dispatch = {
    code: _counted(getattr(_Unpickler, step.__name__))
    for code, step in pickle._Unpickler.dispatch.items()  # noqa: SLF001
}


class _Parts(_Unpickler):
    """An unpickler that passes on completed parts."""

    def __init__(
        self,
        file: mmap,
        size: int,
        keys: frozenset[str],
        take: Callable[[str, Part], None],
        max_steps: int,
    ) -> None:
        super().__init__(file, size, frozenset(), max_steps)
        self.keys, self.take, self.num_kept = keys, take, 0

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values; pass the dictionary on if that made it a part."""
        super().set_items(items)
        part = self.stack[-1]
        if not self.keys <= part.keys():
            return
        _check(part, _UNFOLD * self.size + 2**20)
        key = self.stack[-2] if len(self.stack) > 1 else ""
        self.taking = True
        self.take(key if type(key) is str else "", part)
        self.taking = False
        part.clear()
        for index in list(itertools.islice(self.memo, self.num_kept, None)):
            value = self.memo[index]
            # Short bytes are NumPy's own words, not the data of an array.
            if isinstance(value, (np.ndarray, bytearray, tuple, list, dict)) or (
                type(value) is bytes and len(value) > 64
            ):
                self.memo[index] = _ForgottenValue()
        self.num_kept = len(self.memo)


class _ForgottenValue:
    """Placeholder in the memo for a value of an earlier part."""


# --- values ---------------------------------------------------------------------------------------


def kind(value: Any) -> str:
    """Describe the type of a value, without inspecting its content."""
    if type(value) in (_Class, Instance):
        return f"{value.module}.{value.name}"
    return "a value of type " + ("None" if value is None else type(value).__name__.lstrip("_"))


def _hashable(value: Any) -> Any:
    """Reject keys whose hash is not constant-time, or can be chosen by the file's author."""
    if isinstance(value, np.integer):
        return int(value)
    if type(value) in (str, bytes, bool) or (type(value) is int and abs(value) < 2**64):
        return value
    raise ValueError(f"it has a key or set member that is {kind(value)}")


def _check(value: Any, left: int, depth: int = 0) -> int:
    """Return ``left`` bytes minus the size of a value, counting every reference as a copy.

    Raises:
        ValueError: For a name or type among the values, more than ``MAX_DEPTH`` levels (as for a
            container inside itself), a large integer, or more than ``left`` bytes.
    """
    left -= sys.getsizeof(value)
    children: Iterable[Any] = ()
    match value:
        case dict():
            children = itertools.chain(value, value.values())
        case list() | tuple() | set() | frozenset():
            children = value
        case Instance():
            children = value.state.values()
        case np.ndarray():
            left -= value.nbytes
            children = value.ravel().tolist() if value.dtype.hasobject else ()
        case str():
            value.encode()  # half a surrogate pair would fail where it is printed
        case int() if value.bit_length() > _MAX_INTEGER_BITS:
            raise ValueError(f"it has an integer of {value.bit_length()} bits")
        case None | int() | float() | bytes() | bytearray() | np.generic():
            pass
        case _:
            raise ValueError(f"it has {kind(value)} among its values")
    if left < 0:
        raise ValueError("its shared values unfold to far more than the file")
    if depth > MAX_DEPTH:
        raise ValueError(f"it has more than {MAX_DEPTH} containers in each other")
    for child in children:
        left = _check(child, left, depth + 1)
    return left
