"""Registry of model families: a family is a folder, a file of loss groups and one row here.

A row is data: dotted names that are imported only when a run needs them. To add a family, write

- ``model/<family>/config.py``: a subclass of ``model.config.ModelConfig``,
- ``model/<family>/net.py``: a subclass of ``model.network.Network``,
- ``train/losses/families/<family>.py``: ``GROUPS``, the loss terms it is trained with,

and its row. A family of another package is an entry point of the group ``handloom.families``,
``my_family = "my_package.family:ROW"`` with a ``Family``.

Label groups beyond the core batch (``pipeline.batch.LabelGroup``) are named in the
row as well; every batch then contains them.
"""

import functools
import importlib
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from model.config import ModelConfig

if TYPE_CHECKING:
    from model.network import Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One model family: how to configure, build, feed and train it. ``module:name`` each."""

    config: str
    """Subclass of ``ModelConfig``; its module imports nothing heavy."""
    network: str
    """Subclass of ``Network``."""
    losses: str
    """Tuple of ``train.losses.plan.Group``."""
    labels: tuple[str, ...] = ()
    """Subclasses of ``pipeline.batch.LabelGroup`` to load in addition to the core labels; optional
    ones are loaded where a store has them."""


FAMILIES: Final[dict[str, Family]] = {
    "regressor": Family(
        config="model.regressor.config:RegressorConfig",
        network="model.regressor.net:HandRegressor",
        losses="train.losses.families.regressor:GROUPS",
        labels=("pipeline.labels.joints_2d:Joints2DLabels",),
    ),
}
"""Families by the name given as ``model=NAME``."""
DEFAULT_FAMILY: Final = "regressor"
_SCENES: Final = ("hand", "hand_object")
"""Values of ``model.family`` before there were families; they are the regressor's scenes now."""


GROUP: Final = "handloom.families"


@functools.cache
def _installed() -> dict[str, Family]:
    """Return the rows that installed packages declare."""
    return {entry.name: entry.load() for entry in entry_points(group=GROUP)}


def row_of(family: str) -> Family:
    """Return the row of a family.

    Raises:
        ValueError: If there is no such family; lists the choices.
    """
    row = FAMILIES.get(family) or _installed().get(family)
    if row is None:
        names = ", ".join([*FAMILIES, *_installed()])
        raise ValueError(f"model={family!r:.80} is no model family; there are {names}")
    return row


def imported(name: str) -> Any:
    """Return the object behind ``module:name``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def config_class(family: str) -> type[ModelConfig]:
    """Return the configuration class of a family.

    Raises:
        ValueError: If there is no such family; lists the choices.
    """
    found: type[ModelConfig] = imported(row_of(family).config)
    own = found().family
    if own != family:
        raise ValueError(
            f"{found.__name__} must have family: str = {family!r}, the name of its row in "
            f"model.families; it has {own!r}"
        )
    return found


def config_classes() -> dict[str, type[ModelConfig]]:
    """Return the configuration class of every family by name."""
    return {name: config_class(name) for name in [*FAMILIES, *_installed()]}


def build_network(config: ModelConfig, **options: Any) -> "Network":
    """Build the network of a configuration; ``options`` as in ``model.network.Network``."""
    network: Network = imported(row_of(config.family).network)(config, **options)
    return network


def upgraded(model: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a model configuration in the current format.

    Until release 0.2, ``family`` was what is now the regressor's ``scene``.
    """
    if model.get("family") in _SCENES:
        return model | {"family": "regressor", "scene": model["family"]}
    return model
