"""The kinds of networks: a family is a folder, a file of loss groups and one row here.

A row is data: dotted names that are imported only when a run needs them. To add a family, write

- ``model/<family>/config.py``: a subclass of ``model.config.ModelConfig``,
- ``model/<family>/net.py``: a subclass of ``model.network.Network``,
- ``train/losses/families/<family>.py``: ``GROUPS``, the loss terms it is trained with,

and its row. Label groups that the core batch does not have (``pipeline.batch.LabelGroup``) are
named in the row as well, and then are in every batch.
"""

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from model.config import ModelConfig

if TYPE_CHECKING:
    from model.network import Network


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One kind of network: how it is configured, built, fed and trained. ``module:name`` each."""

    config: str
    """Subclass of ``ModelConfig``; its module imports nothing heavy."""
    network: str
    """Subclass of ``Network``."""
    losses: str
    """Tuple of ``train.losses.plan.Group``."""
    labels: tuple[str, ...] = ()
    """Subclasses of ``pipeline.batch.LabelGroup`` beside the core labels."""


FAMILIES: Final[dict[str, Family]] = {
    "regressor": Family(
        config="model.regressor.config:RegressorConfig",
        network="model.regressor.net:HandRegressor",
        losses="train.losses.families.regressor:GROUPS",
    ),
}
"""By the name that ``model=NAME`` takes."""
DEFAULT_FAMILY: Final = "regressor"
_SCENES: Final = ("hand", "hand_object")
"""Values of ``model.family`` before there were families; they are the regressor's scenes now."""


def imported(name: str) -> Any:
    """Return the object behind ``module:name``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def config_class(family: str) -> type[ModelConfig]:
    """Return the configuration class of a family.

    Raises:
        ValueError: If there is no such family; lists what there is.
    """
    if family not in FAMILIES:
        raise ValueError(f"model={family!r} is no model family; there are {', '.join(FAMILIES)}")
    found: type[ModelConfig] = imported(FAMILIES[family].config)
    own = found().family
    if own != family:
        raise ValueError(
            f"{found.__name__} must have family: str = {family!r}, the name of its row in "
            f"model.families; it has {own!r}"
        )
    return found


def config_classes() -> dict[str, type[ModelConfig]]:
    """Return the configuration class of every family by name."""
    return {name: config_class(name) for name in FAMILIES}


def build_network(config: ModelConfig, **options: Any) -> "Network":
    """Return the network of a configuration; ``options`` as ``model.network.Network`` has them."""
    network: Network = imported(FAMILIES[config.family].network)(config, **options)
    return network


def upgraded(model: dict[str, Any]) -> dict[str, Any]:
    """Return the plain values of a model configuration in today's form.

    Until release 0.2, ``family`` was what is now the regressor's ``scene``.
    """
    if model.get("family") in _SCENES:
        return model | {"family": "regressor", "scene": model["family"]}
    return model
