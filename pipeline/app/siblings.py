"""Makes this package usable by a trainer that has its own ``model`` package.

Our top-level names are plain words, and ``python train.py`` puts its folder first: there
``import model`` is the user's, and ``model.geometry``, which this package needs, is not in it. So
our folder is appended to that package's search path: the user's modules take precedence, ours are
found after them.
"""

import importlib
import importlib.util
from pathlib import Path

OURS = Path(__file__).parent.parent.parent / "model"


def join_model() -> None:
    """Make ``model.geometry`` and ``model.hand`` importable alongside another ``model`` package."""
    spec = importlib.util.find_spec("model")
    if spec is None or (spec.origin and Path(spec.origin).resolve().parent == OURS.resolve()):
        return
    theirs = importlib.import_module("model")
    theirs.__path__ = [*getattr(theirs, "__path__", []), str(OURS)]
