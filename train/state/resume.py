"""Which run a configuration continues, and what may change on the way."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from model.config import BackboneConfig
from model.fields import MISSING
from model.mano.files import find_mano
from model.plain import from_plain, to_plain
from pipeline.config import MixPart
from train.config import RunConfig
from train.state.checkpoint import (
    Say,
    config_of,
    has_checkpoints,
    read_checkpoint,
)

FREE_KEYS: Final = frozenset(
    {
        "steps",
        "log_every",
        "pictures_every",
        "checkpoint_every",
        "keep_checkpoints",
        "threads",
        "accumulate",
        "debug",
        "device",
        "mano",
        "pipeline.store",
    }
)
"""Keys that may differ from the checkpoint's. Files may have moved: their hashes are compared."""
_FREE_STORES: Final = re.compile(r"pipeline\.mix\.\w+\.store|validation\.store")
_PLACE: Final = frozenset({"run_dir", "resume"})


def continue_from(config: RunConfig, say: Say) -> tuple[RunConfig, dict[str, Any] | None]:
    """Return the configuration to run with and the checkpoint to continue from, if there is one.

    ``resume=RUN`` takes the configuration from the run's checkpoint; without it, a ``run_dir`` that
    holds a checkpoint is continued with the configuration as given.

    Raises:
        FileNotFoundError: If ``resume`` names a folder without checkpoint.
        ValueError: If a key that cannot change differs, or no checkpoint can be used.
    """
    if config.resume is not None:
        payload = read_checkpoint(Path(config.resume), say=say)
        return _merged(config, payload, config.resume), payload
    if config.run_dir is None or not has_checkpoints(Path(config.run_dir)):
        return config, None
    payload = read_checkpoint(Path(config.run_dir), say=say)
    found = config_of(payload)  # refuses the keys of another version with a sentence
    if config.auto_batch_size and found.auto_batch_size:
        size = found.pipeline.batch_size
        config = replace(config, pipeline=replace(config.pipeline, batch_size=size))
    old, new = flat(to_plain(found)), flat(to_plain(config))
    shown = _changed(old, new, old.keys() | new.keys())
    if shown:
        raise ValueError(
            f"{config.run_dir} holds a run with another configuration ({shown}); use another "
            "run_dir or the same values"
        )
    return config, payload


def _merged(config: RunConfig, payload: dict[str, Any], run_dir: str) -> RunConfig:
    """Return the checkpoint's configuration with the free keys that were given.

    In Python, without ``compose``, given is what differs from the default.
    """
    plain = to_plain(config_of(payload))
    old, new, default = flat(plain), flat(to_plain(config)), flat(to_plain(RunConfig(resume="")))
    for name in config.pipeline.mix:
        default |= flat(to_plain(MixPart()), f"pipeline.mix.{name}.")
    given = {key for key in new if key in config.given or new[key] != default.get(key)}
    shown = _changed(old, new, given)
    if shown:
        raise ValueError(
            f"resume={run_dir} takes the configuration of the run, which cannot change ({shown}); "
            f"leave out all keys but {', '.join(sorted(FREE_KEYS))}"
        )
    for key in filter(_is_free, given):
        *groups, name = key.split(".")
        holder = plain
        for group in groups:
            holder = holder[group]
        holder[name] = new[key]
    rest = {"run_dir": run_dir, "resume": None, "debug": config.debug}
    return from_plain(RunConfig, plain | rest)


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return a configuration whose files are found from any folder, MANO's also without the key."""
    pipeline, held_out, model = config.pipeline, config.validation, config.model
    mix = {name: replace(part, store=_absolute(part.store)) for name, part in pipeline.mix.items()}
    if isinstance(model, BackboneConfig) and model.weights is not None:
        model = replace(model, weights=_absolute(model.weights))
    asks = config.mano is not None or config.resume is None  # a run that goes on has its own
    mano = find_mano(config.mano) if asks else None
    return replace(
        config,
        mano=None if mano is None else _absolute(str(mano)),
        init=None if config.init is None else _absolute(config.init),
        model=model,
        pipeline=replace(pipeline, store=_absolute(pipeline.store), mix=mix),
        validation=replace(
            held_out, store=None if held_out.store is None else _absolute(held_out.store)
        ),
    )


def _absolute(path: str) -> str:
    return path if path in ("", MISSING) else str(Path(path).expanduser().absolute())


def require_here(config: RunConfig, run_dir: str) -> None:
    """Reject the configuration of a run whose stores are not here.

    Raises:
        FileNotFoundError: Names the key and says what to pass.
    """
    stores = {"store": config.pipeline.store}
    stores |= {f"mix.{name}.store": part.store for name, part in config.pipeline.mix.items()}
    if config.validation.store is not None:
        stores["validation.store"] = config.validation.store
    for key, path in stores.items():
        if not Path(path).exists():
            raise FileNotFoundError(
                f"the run {run_dir} was trained with {key}={path}, which is not here; pass "
                f"{key}=PATH: the same store anywhere else will do"
            )


def flat(plain: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _changed(old: dict[str, Any], new: dict[str, Any], keys: set[str]) -> str:
    changed = sorted(
        k for k in keys if not _is_free(k) and k not in _PLACE and not _same(old.get(k), new.get(k))
    )
    more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
    return ", ".join(f"{k}: {old.get(k)!r} -> {new.get(k)!r}" for k in changed[:4]) + more


def _is_free(key: str) -> bool:
    return key in FREE_KEYS or _FREE_STORES.fullmatch(key) is not None


def _same(old: Any, new: Any) -> bool:
    """Return whether two values are equal; earlier releases kept paths as they were typed."""
    if old == new:
        return True
    is_typed = isinstance(old, str) and isinstance(new, str) and new.startswith(os.sep)
    return is_typed and old not in ("", os.sep) and _absolute(old) == new
