"""Check the shapes and dtypes that annotations state, at every call the tests make.

jaxtyping's own hook (``--jaxtyping-packages``) wraps all 2,100 functions when they are imported:
ten CPU seconds a process, and neither Triton's kernels nor torch.compile can read what it leaves.
Here only functions and dataclasses with an array in their annotations are wrapped, each checker is
made at the first call, and a compiler sees the bare function.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any, get_args

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

LIKE_MYPY = BeartypeConf(is_pep484_tower=True)
"""An int is a float."""


_is_off = False


@contextmanager
def unchecked() -> Iterator[None]:
    """Check nothing, where a test gives wrong arrays on purpose."""
    global _is_off  # noqa: PLW0603 - one switch for the process
    _is_off = True
    try:
        yield
    finally:
        _is_off = False


def install(packages: set[str]) -> None:
    """Check every module of ``packages`` that is imported from now on."""
    early = sorted(packages & set(sys.modules))
    assert not early, f"imported before their shapes could be checked: {early}"
    sys.meta_path.insert(0, _Finder(packages))


class _Finder(MetaPathFinder):
    def __init__(self, packages: set[str]) -> None:
        self.packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            _check_after(spec.loader)
        return spec


def _check_after(loader: Loader) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        owners: list[ModuleType | type] = [v for v in vars(module).values() if isinstance(v, type)]
        for owner in [module, *owners]:
            if getattr(owner, "__module__", module.__name__) == module.__name__:
                _check(owner)

    loader.exec_module = exec_module  # type: ignore[method-assign]


def _check(owner: ModuleType | type) -> None:
    """Wrap the functions of a module or class that were written there."""
    home = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
    for name, value in list(vars(owner).items()):
        match value:
            case FunctionType(__module__=module) if module == home and _has_arrays(value):
                setattr(owner, name, checked(value))
            case staticmethod(__func__=FunctionType() as function) if _has_arrays(function):
                setattr(owner, name, staticmethod(checked(function)))
            case classmethod(__func__=FunctionType() as function) if _has_arrays(function):
                setattr(owner, name, classmethod(checked(function)))
            case property(fget=FunctionType() as function) if _has_arrays(function):
                setattr(owner, name, property(checked(function), value.fset, value.fdel))


def _has_arrays(function: FunctionType) -> bool:
    return any(_is_array(annotation) for annotation in function.__annotations__.values())


def _is_array(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(_is_array(part) for part in get_args(annotation))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` as one that raises if an array is not as it is annotated."""
    made: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _is_off or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not made:
            made.append(beartype(conf=LIKE_MYPY)(function))
        with jaxtyped("context"):
            return made[0](*args, **kwargs)

    return call
