"""Lets a trainer with a ``model`` of its own use this package.

The names of the top level are plain words, and ``python train.py`` puts its folder first: there
``import model`` is the user's, and ``model.geometry``, which this package needs, is not in it. So
our folder is added to the end of that package's search path: the user's modules keep their names
and win, ours are found behind them.
"""

import importlib
import importlib.util
from pathlib import Path

OURS = Path(__file__).parent.parent.parent / "model"


def join_model() -> None:
    """Make ``model.geometry`` and ``model.hand`` importable beside another package ``model``."""
    spec = importlib.util.find_spec("model")
    if spec is None or (spec.origin and Path(spec.origin).resolve().parent == OURS.resolve()):
        return
    theirs = importlib.import_module("model")
    theirs.__path__ = [*getattr(theirs, "__path__", []), str(OURS)]
