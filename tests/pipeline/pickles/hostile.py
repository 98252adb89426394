"""Pickles that attack or are broken, by name, and a run of all of them in a small process.

Every payload that would do something leaves the file ``canary`` in the working folder, or removes
``precious``. ``python -m tests.pipeline.pickles.hostile`` reads all of them under a limit on memory
and prints one JSON line for each; with ``control`` the live ones go to Python's own unpickler.
"""

import codecs
import gzip
import json
import pickle
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.pipeline.pickles.hostile_models import model_cases
from tests.pipeline.pickles.hostile_steps import (
    CANARY,
    RUN_TOUCH,
    Case,
    argument_cases,
    array_cases,
    bomb_cases,
    npy_cases,
    of,
    step_cases,
)
from tests.pipeline.pickles.pickle_words import (
    EMPTY,
    MARK,
    NONE,
    array,
    call,
    data,
    dims,
    group,
    instance,
    integer,
    listed,
    mapping,
    name,
    name_on_stack,
    text,
    whole,
)

LIMIT_BYTES: Final = 2 * 2**30
"""Address space beyond what the imports take."""


def trip(*_: object) -> None:
    """Say that a pickle called a function."""
    Path(CANARY).touch()


_OPEN = f"open({CANARY!r}, 'w').close()"
CALLS: Final[list[tuple[str, str, list[bytes]]]] = [
    ("os", "system", [text(f"touch {CANARY}")]),
    ("posix", "system", [text(f"touch {CANARY}")]),
    ("nt", "system", [text(f"touch {CANARY}")]),
    ("os", "popen", [text(f"touch {CANARY}")]),
    ("os", "mkdir", [text(CANARY)]),
    ("os", "remove", [text("precious")]),
    ("os", "execvp", [text("touch"), listed(text("touch"), text(CANARY))]),
    ("os", "spawnlp", [integer(0), text("touch"), text("touch"), text(CANARY)]),
    ("os", "kill", [integer(1), integer(0)]),
    ("os", "_exit", [integer(7)]),
    ("os", "fork", []),
    ("posix", "open", [text(CANARY), integer(66)]),
    ("sys", "exit", [integer(7)]),
    ("sys", "setrecursionlimit", [integer(10**6)]),
    ("subprocess", "Popen", [listed(text("touch"), text(CANARY))]),
    ("subprocess", "call", [listed(text("touch"), text(CANARY))]),
    ("subprocess", "run", [listed(text("touch"), text(CANARY))]),
    ("subprocess", "check_output", [listed(text("touch"), text(CANARY))]),
    ("subprocess", "getoutput", [text(f"touch {CANARY}")]),
    ("commands", "getoutput", [text(f"touch {CANARY}")]),
    ("builtins", "eval", [text(_OPEN)]),
    ("builtins", "exec", [text(RUN_TOUCH)]),
    ("builtins", "compile", [text(_OPEN), text("x"), text("eval")]),
    ("builtins", "open", [text(CANARY), text("w")]),
    ("builtins", "__import__", [text("os")]),
    ("builtins", "getattr", [name("builtins", "set"), text("__class__")]),
    ("builtins", "setattr", [name("builtins", "set"), text("x"), integer(1)]),
    ("builtins", "map", [name("builtins", "eval"), listed(text(_OPEN))]),
    ("builtins", "filter", [name("builtins", "eval"), listed(text(_OPEN))]),
    ("builtins", "type", [text("x"), EMPTY, mapping()]),
    ("builtins", "vars", []),
    ("builtins", "globals", []),
    ("builtins", "input", []),
    ("builtins", "breakpoint", []),
    ("builtins", "list", [text("abc")]),
    ("builtins", "dict", []),
    ("builtins", "super", []),
    ("builtins", "memoryview", [data(b"x")]),
    ("__builtin__", "apply", [name("os", "system"), group(text(f"touch {CANARY}"))]),
    ("__builtin__", "eval", [text(_OPEN)]),
    ("__builtin__", "execfile", [text(CANARY)]),
    ("__builtin__", "file", [text(CANARY), text("w")]),
    ("__builtin__", "reduce", [name("os", "system"), listed(text(f"touch {CANARY}"))]),
    ("io", "open", [text(CANARY), text("w")]),
    ("io", "FileIO", [text(CANARY), text("w")]),
    ("_io", "open", [text(CANARY), text("w")]),
    ("codecs", "open", [text(CANARY), text("w")]),
    ("codecs", "encode", [text("x"), text("latin1")]),
    ("_codecs", "decode", [data(b"x"), text("latin1")]),
    ("_codecs", "register", [name("tests.pipeline.pickles.hostile", "trip")]),
    ("pathlib", "Path", [text(CANARY)]),
    ("pathlib", "PosixPath", [text(CANARY)]),
    ("tempfile", "mkdtemp", []),
    ("shutil", "rmtree", [text("precious")]),
    ("shutil", "copyfile", [text("/etc/hostname"), text(CANARY)]),
    ("socket", "create_connection", [group(text("127.0.0.1"), integer(9))]),
    ("socket", "socket", []),
    ("urllib.request", "urlopen", [text("http://127.0.0.1:9/")]),
    ("http.client", "HTTPSConnection", [text("127.0.0.1")]),
    ("webbrowser", "open", [text("http://127.0.0.1:9/")]),
    ("antigravity", "geohash", [integer(1)]),
    ("operator", "attrgetter", [text("system")]),
    ("operator", "methodcaller", [text("system"), text(f"touch {CANARY}")]),
    ("operator", "itemgetter", [integer(0)]),
    ("_operator", "attrgetter", [text("system")]),
    ("functools", "partial", [name("os", "system"), text(f"touch {CANARY}")]),
    ("functools", "reduce", [name("os", "system"), listed(text(f"touch {CANARY}"))]),
    ("itertools", "count", []),
    ("itertools", "repeat", [integer(1)]),
    ("collections", "OrderedDict", []),
    ("collections", "defaultdict", [name("os", "getcwd")]),
    ("copy_reg", "__newobj__", [name("builtins", "object")]),
    ("copyreg", "add_extension", [text("os"), text("system"), integer(1)]),
    ("importlib", "import_module", [text("canary_module")]),
    ("importlib._bootstrap", "_gcd_import", [text("canary_module")]),
    ("canary_module", "x", []),
    ("tests.pipeline.pickles.hostile", "trip", []),
    ("__main__", "trip", []),
    ("runpy", "run_path", [text("canary_module.py")]),
    ("runpy", "_run_code", [text(_OPEN), mapping()]),
    ("pty", "spawn", [text(f"touch {CANARY}")]),
    ("pip", "main", [listed(text("install"), text("x"))]),
    ("pip._internal", "main", [listed(text("--version"))]),
    ("site", "addsitedir", [text(".")]),
    ("code", "interact", []),
    ("pdb", "run", [text(_OPEN)]),
    ("bdb", "Bdb", []),
    ("profile", "run", [text(_OPEN)]),
    ("cProfile", "run", [text(_OPEN)]),
    ("timeit", "timeit", [text(_OPEN)]),
    ("doctest", "debug_script", [text(_OPEN)]),
    ("ctypes", "CDLL", [text("libc.so.6")]),
    ("ctypes", "string_at", [integer(0)]),
    ("_ctypes", "dlopen", [text("libc.so.6"), integer(0)]),
    ("types", "CodeType", []),
    ("types", "FunctionType", []),
    ("marshal", "loads", [data(b"N")]),
    ("pickle", "loads", [data(b"N.")]),
    ("_pickle", "loads", [data(b"N.")]),
    ("cPickle", "loads", [data(b"N.")]),
    ("joblib", "load", [text(CANARY)]),
    ("dill", "loads", [data(b"N.")]),
    ("cloudpickle", "loads", [data(b"N.")]),
    ("logging.config", "listen", []),
    ("multiprocessing", "Process", []),
    ("threading", "Thread", []),
    ("asyncio", "run", [NONE]),
    ("signal", "raise_signal", [integer(9)]),
    ("resource", "setrlimit", [integer(0), dims(1, 1)]),
    ("time", "sleep", [integer(10**6)]),
    ("linecache", "getlines", [text("/etc/passwd")]),
    ("glob", "glob", [text("/*")]),
    ("numpy", "load", [text(CANARY)]),
    ("numpy", "fromfile", [text(CANARY)]),
    ("numpy", "memmap", [text(CANARY), text("u1"), text("w+"), integer(0), dims(8)]),
    ("numpy", "save", [text(CANARY), integer(1)]),
    ("numpy", "zeros", [integer(10**13)]),
    ("numpy", "ndarray", [dims(10**13)]),
    ("numpy", "matrix", [listed(integer(1))]),
    ("numpy.core.multiarray", "fromfile", [text(CANARY)]),
    ("numpy.core.multiarray", "empty", [integer(10**13)]),
    ("numpy.lib.format", "open_memmap", [text(CANARY), text("w+"), text("u1"), dims(8)]),
    ("numpy.lib.npyio", "load", [text(CANARY)]),
    ("numpy.testing", "runstring", [text(_OPEN), mapping()]),
    ("numpy.testing._private.utils", "runstring", [text(_OPEN), mapping()]),
    ("numpy.f2py.crackfortran", "myeval", [text(_OPEN)]),
    ("numpy.f2py.capi_maps", "getinit", [text(_OPEN), mapping()]),
    ("numpy.distutils.exec_command", "exec_command", [text(f"touch {CANARY}")]),
    ("numpy.ma.core", "_mareconstruct", []),
    ("scipy.sparse", "load_npz", [text(CANARY)]),
    ("scipy.sparse.csr", "csr_matrix", []),
    ("scipy.io", "loadmat", [text(CANARY)]),
    ("torch", "load", [text(CANARY)]),
    ("torch.utils._config_module", "load_config", [data(b"N.")]),
    ("torch.jit.unsupported_tensor_ops", "execWrapper", [text(_OPEN), mapping(), mapping()]),
    ("pandas", "read_pickle", [text(CANARY)]),
    ("pandas.io.common", "get_handle", [text(CANARY), text("w")]),
    ("chumpy.ch", "exec", [text(_OPEN)]),
    ("chumpy", "Ch", []),
    ("chumpy.utils", "timer", []),
    ("smplx.utils", "Struct", []),
    ("", "", []),
]
"""Module, name, arguments."""
LIVE: Final = (
    "os.system",
    "posix.system",
    "os.mkdir",
    "posix.open",
    "subprocess.call",
    "subprocess.getoutput",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "io.FileIO",
    "shutil.copyfile",
    "importlib.import_module",
    "numpy.memmap",
)
"""Calls that do leave a canary when Python's own unpickler reads them."""

SPELLINGS: Final[list[tuple[str, Callable[[str, str, list[bytes]], bytes]]]] = [
    ("reduce", lambda m, n, args: whole(call(name(m, n), *args))),
    ("stack-global", lambda m, n, args: b"\x80\x04" + call(name_on_stack(m, n), *args) + b"."),
    ("inst", lambda m, n, args: MARK + b"".join(args) + b"i" + name(m, n)[1:] + b"."),
    ("obj", lambda m, n, args: MARK + name(m, n) + b"".join(args) + b"o."),
    ("newobj", lambda m, n, args: whole(name(m, n), group(*args), b"\x81")),
    ("newobj-ex", lambda m, n, args: whole(name(m, n), group(*args), mapping(), b"\x92")),
    ("build", lambda m, n, args: whole(name(m, n), mapping(text("x"), group(*args)), b"b")),
    ("in-mano", lambda m, n, args: whole(mapping(text("f"), call(name(m, n), *args)))),
    ("in-state", lambda m, n, args: whole(instance("chumpy.ch", "Ch", x=call(name(m, n), *args)))),
]


def call_cases() -> Iterator[Case]:
    """Every name as a call, the first ones in every spelling."""
    for i, (module, attribute, args) in enumerate(CALLS):
        for label, spell in SPELLINGS if i < 24 else SPELLINGS[:2]:
            make = partial(spell, module, attribute, args)
            yield Case(f"{module}.{attribute}-{label}", make)


def name_cases() -> Iterator[Case]:
    """Names that look like allowed ones, or reach something through them."""
    for module, attribute in (
        ("builtins", "set.__class__"),
        ("builtins", "__import__('os').system"),
        ("builtins", "set.__subclasses__"),
        ("builtins", "SET"),
        ("builtins ", "set"),
        ("builtins", "set "),
        ("builtins\x00", "set"),
        ("bui1tins", "set"),
        ("numpy", "ndarray.__reduce__"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "dtype.__class__"),
        ("numpy", "core.multiarray._reconstruct"),
        ("numpy.core.multiarray", "_reconstruct.__self__"),
        ("numpy.core.multiarray", "_reconstruct.__globals__"),
        ("numpy.core", "multiarray._reconstruct"),
        ("numpy.core.numeric", "_reconstruct"),
        ("numpy._core._multiarray_umath", "_reconstruct"),
        ("num\u0440y", "ndarray"),
        ("chumpy.ch", "Ch.__init__"),
        ("chumpy.ch", "np.load"),
        ("chumpy.reordering", "ch.np"),
        ("scipy.sparse.csc", "csc_matrix.__init__"),
        ("scipy.sparse.csc", "sys.modules"),
        ("_codecs", "encode.__self__"),
        ("copyreg", "_reconstructor.__globals__"),
        ("x" * 900, "y"),
    ):
        shown = ascii(f"{module[:30]} {attribute}")[1:-1]
        yield of(f"name {shown}", whole(call(name_on_stack(module, attribute))))
    yield of("name without end", b"cos\nsystem")
    yield of("name not text", whole(integer(1), integer(2), b"\x93"))
    yield of("name longer than a name", b"c" + b"x" * 5000 + b"\ny\n.")
    yield of("name as value", whole(name("numpy", "ndarray")))
    yield of("name in a list", whole(listed(name("builtins", "set"))))
    yield of("name in a dict", whole(mapping(text("a"), name("numpy", "dtype"))))
    yield of("name as key", whole(mapping(name("builtins", "set"), text("a"))))
    yield of("name in a state", whole(instance("chumpy.ch", "Ch", x=name("builtins", "set"))))
    chain = call(name("builtins", "getattr"), name("os", "path"), text("os"))
    yield of("getattr chain", whole(call(name("builtins", "getattr"), chain, text("system"))))
    nested = call(name("os", "system"), text(f"touch {CANARY}"))
    for depth in (1, 5, 50):
        for _ in range(depth):
            nested = call(name("builtins", "set"), listed(nested))
        yield of(f"call inside {depth} calls", whole(nested))


def file_cases() -> Iterator[Case]:
    """What is no pickle, or not all of one."""
    good = whole(mapping(text("a"), array(dims(2), data(bytes(16)))))
    for label, content in (
        ("empty", b""),
        ("stop only", b"."),
        ("protocol only", b"\x80\x02"),
        ("protocol cut", b"\x80"),
        ("protocol 6", b"\x80\x06N."),
        ("protocol 255", b"\x80\xffN."),
        ("text", b"hello world\n"),
        ("html", b"<html><body>404</body></html>\n"),
        ("json", b'{"v_template": []}\n'),
        ("python", b"import os\n"),
        ("zip", b"PK\x03\x04" + bytes(60)),
        ("gzip", gzip.compress(good)),
        ("zlib", zlib.compress(good)),
        ("npy", b"\x93NUMPY\x01\x00" + bytes(60)),
        ("lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("zeros", bytes(4096)),
        ("pickle twice", good + good),
        ("byte after the end", good + b"\n"),
        ("stop twice", good + b"."),
        ("stop first", b"." + good),
        ("byte order mark", b"\xef\xbb\xbf" + good),
        ("crlf", b"(dp0\r\nS'a'\r\np1\r\nI1\r\ns."),
        ("bad utf-8", whole(b"X\x02\x00\x00\x00\xff\xff")),
        ("surrogate", whole(text("\ud800"))),
        ("no quotes", b"Sabc\n."),
        ("other quotes", b"S'abc\"\n."),
        ("one quote", b"S'\n."),
        ("octal escape", b"S'\\101'\n."),
        ("unknown escape", b"S'\\q'\n."),
        ("half escape", b"S'\\x4'\n."),
        ("lone backslash", b"S'a\\'\n."),
        ("bad unicode escape", b"V\\u12\n."),
        ("integer with letters", b"I12a\n."),
        ("integer empty", b"I\n."),
        ("integer spaced", b"I 1\n."),
        ("integer underscored", b"I1_000\n."),
        ("integer hexadecimal", b"I0x10\n."),
        ("float words", b"Fone\n."),
        ("float infinity", b"Finfinity\n."),
        ("line without end", b"I12"),
    ):
        yield of(f"file: {label}", content)
    old = pickle.dumps({"a": [1, (2.5, "x")], "b": np.arange(3.0)}, 0)
    new = pickle.dumps({"a": [1, (2.5, "x")], "b": np.arange(3.0)}, 5)
    for label, content in (("protocol 0", old), ("protocol 2", good), ("protocol 5", new)):
        for end in range(1, len(content), 7):
            yield of(f"{label} cut at {end}", content[:end])
        for i in range(len(content)):
            flipped = bytearray(content)
            flipped[i] ^= 1 << (i * 5 % 8)
            yield Case(f"{label} flipped at {i}", partial(bytes, flipped), refused=False)


def cases() -> Iterator[Case]:
    """Yield the whole corpus."""
    yield from call_cases()
    yield from name_cases()
    yield from step_cases()
    yield from array_cases()
    yield from bomb_cases()
    yield from argument_cases()
    yield from file_cases()
    yield from npy_cases()
    yield from model_cases()


# --- running --------------------------------------------------------------------------------------

HARMLESS: Final = frozenset(
    {
        "build twice",
        "object without state",
        "object with arguments",
        "call of set with dict",
        "call of set with text",
        "call of bytes with text",
        "put by negative",
        "two values",
        "protocol twice",
        "protocol inside",
        "frame beyond the end",
        "reconstructor with base",
        "reconstructor with state",
        "array: reconstruct of set",
        "array: reconstruct of class",
        "array: reconstruct of text",
        "array: reconstruct enormous",
        "array: reconstruct two dims",
        "array: reconstruct of objects",
        "array: reconstruct without type",
        "array: array without data",
        "array: array without data, in a list",
        "array: shape enormous and empty",
        "array: shape of 33 axes",
        "array: order 2",
        "array: order text",
        "array: type not built",
        "array: type with copy 2",
        "array: type state size",
        "array: scalar of objects",
        "array: buffer order",
        "array: buffer order None",
        "float of many digits",
        "long of many bytes",
        "file: octal escape",
        "file: unknown escape",
        "file: integer spaced",
        "file: integer underscored",
        "file: integer hexadecimal",
        "file: float infinity",
        "npy: version 9",
    }
)
"""Odd files that may be read, as plain data."""
_PLAIN: Final = {type(None), bool, int, float, str, bytes, bytearray}
_events: list[str] | None = None
"""What Python reported since the last case began, None before the first."""


def _watch(event: str, args: tuple[Any, ...]) -> None:
    """Note every event that a hook can see: imports, calls of exec, files, processes, sockets."""
    if _events is not None:
        _events.append(f"{event} {args!r:.80}")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _traces() -> list[str]:
    """Return what has happened in the working folder since the last call, and undo it."""
    found = [CANARY] if Path(CANARY).exists() else []
    if found:
        path = Path(CANARY)
        path.rmdir() if path.is_dir() else path.unlink()
    if not Path("precious").exists():
        found.append("precious")
        Path("precious").mkdir()
    return found


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()  # the last line names the case before the one that ends the process


def _strange(root: Any) -> list[str]:
    """Return the types in a value that are no plain data."""
    found, waiting, seen = set(), [root], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) in (list, tuple, set, frozenset):
            waiting += value
        elif type(value) is dict:
            waiting += [*value, *value.values()]
        elif type(value) is np.ndarray:
            waiting += value.ravel().tolist() if value.dtype.hasobject else []
            found |= set() if value.dtype.kind in "biufSUO" else {str(value.dtype)}
        elif type(value).__module__ == "pipeline.pickles" and type(value).__name__ == "Instance":
            waiting.append(value.state)
        elif type(value) not in _PLAIN and type(value).__module__ != "numpy":
            found.add(str(type(value)))
    return sorted(found)


def _state_of(*owners: object) -> list[dict[str, int]]:
    """Return what could be changed of modules and classes."""
    return [{key: id(value) for key, value in vars(owner).items()} for owner in owners]


def read_all() -> None:
    """Read every case with its reader; what is imported by then may take 2 GiB more."""
    global _events  # noqa: PLW0603  # a hook cannot be removed
    import pipeline.pickles
    from pipeline.pickles import load_npy, load_pickle
    from preprocess.mano.arrays import MANO_CLASSES, mano_from_pickle

    readers: dict[str, Callable[[bytes], object]] = {
        "pickle": lambda content: load_pickle(content, name="F", allow=MANO_CLASSES),
        "mano": lambda content: mano_from_pickle(content, name="F"),
        "npy": lambda content: load_npy(content, name="F"),
    }
    for code in ("latin-1", "utf-8", "raw-unicode-escape"):
        codecs.lookup(code)  # imports it
    ours = (pipeline.pickles, pipeline.pickles._Unpickler, pipeline.pickles.Instance, np.ndarray)
    before = _state_of(*ours)
    modules = set(sys.modules)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit = _address_space() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.addaudithook(_watch)
    for case in cases():
        content = case.make()
        start = time.process_time()
        value, outcome, message, is_value_error = None, "read", "", False
        _events = []
        try:
            value = readers[case.read](content)
        except BaseException as error:
            outcome, message = type(error).__name__, str(error)
            is_value_error = isinstance(error, ValueError)
        events, _events = _events, None
        _say(
            name=case.name,
            read=case.read,
            must_refuse=case.refused and case.name not in HARMLESS,
            outcome=outcome,
            is_value_error=is_value_error,
            message=message,
            seconds=time.process_time() - start,
            traces=_traces(),
            events=events,
            strange=_strange(value),
        )
    _say(
        imported=sorted(set(sys.modules) - modules),
        unchanged=before == _state_of(*ours),
        peak_kib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak,
    )


def control() -> None:
    """Give the live calls to Python's unpickler, to see that the canary and the hook work."""
    global _events  # noqa: PLW0603
    sys.addaudithook(_watch)
    for module, attribute, args in CALLS:
        if f"{module}.{attribute}" in LIVE:
            _events = []
            kept = pickle.loads(SPELLINGS[0][1](module, attribute, args))  # noqa: S301  # the point
            events, _events = _events, None
            _say(
                name=f"{module}.{attribute}",
                traces=_traces(),
                events=events,
                value=type(kept).__name__,
            )


if __name__ == "__main__":
    Path("canary_module.py").write_text(f"open({CANARY!r}, 'w').close()\n")
    Path("precious").mkdir()
    sys.path.insert(0, str(Path.cwd()))
    control() if sys.argv[1:] == ["control"] else read_all()
