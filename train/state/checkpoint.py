"""Checkpoints of a run, ``RUN/checkpoints/step-<step>.pt``: saved, verified, restored.

A file is what ``torch.save`` writes, with the sha256 of everything before it as the comment of the
zip archive. The CRC32s that zip keeps do not suffice: they leave out the archive's directory, and
one flipped bit there makes ``torch.load`` return uninitialised memory without an error.

There is no index: each file knows its run, its step, and the best score so far.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import pickle
import secrets
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import torch
from msgspec import Meta
from torch import nn

from model.hand import NUM_HANDS
from model.mean_pose import MeanPose
from model.plain import from_plain
from model.records import Count, as_record, parse_json
from pipeline.app.files import open_regular, read_regular, sync
from train.config import CheckpointChoice, RunConfig
from train.step.ema import load_average
from train.step.step import TrainState

FOLDER: Final = "checkpoints"
FORMAT: Final = 2
TEMPORARY: Final = ".tmp"
"""Ends the name of a file that is still being written."""
_OLD_NAME: Final = "checkpoint.pt"
"""The only file of format 0."""
_OLD_INDEX: Final = "index.json"
"""The list of files that earlier releases kept: not read, removed by the next save."""
_MAY_LACK: Final = ("vertices_rel", "theta_rot6d", "beta", "object_state")
"""Parts of a mean pose that not every network has."""
_MOST_HEADER: Final = 1 << 28
_SEAL_BYTES: Final = 2 + 64
"""Length and text of the zip archive's comment, which end the file."""

Say = Callable[[str], None]
"""Shows people one line."""


class NotWrittenError(OSError):
    """A checkpoint or the weights could not be written; what was there before still is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What stays the same from the first step of a run to the last."""

    run_id: str
    """Random, made once: tells the run's files from those of others."""
    config: dict[str, Any]
    """The resolved configuration as JSON values."""
    mean_pose: MeanPose
    store_sha256: str
    """Content of the training store."""
    mano_sha256: str
    """Of the MANO files in the network; empty without."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """The value of a validation metric at a step; smaller is better."""

    metric: str
    value: Annotated[float, Meta(ge=-1e300, le=1e300)]
    step: Count


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What tells checkpoints apart without reading their tensors."""

    format: int
    run_id: str
    best: Score | None
    """The best score when the file was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Payload:
    """The plain values of a payload."""

    format: int
    run_id: str
    step: Count
    config: str
    store_sha256: str
    mano_sha256: str
    accumulate: Annotated[int, Meta(ge=1, le=2**20)] = 1
    best: Score | None = None


_PLAIN: Final = frozenset(field.name for field in fields(_Payload))


def new_run_id() -> str:
    """Return a name that no other run has."""
    return secrets.token_hex(8)


def payload_of(state: TrainState, loader_state: dict[str, Any], facts: RunFacts) -> dict[str, Any]:
    """Return what a checkpoint holds: all that ``restore`` puts back, and what made the run."""
    return {
        "format": FORMAT,
        "run_id": facts.run_id,
        "step": state.step,
        "model": state.model.state_dict(),
        "ema": state.ema.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "accumulate": state.accumulate,
        "log_variance": None if state.log_variance is None else state.log_variance.detach(),
        "loader": loader_state,
        "rng": rng_state(),
        "config": json.dumps(facts.config),
        "mean_pose": asdict(facts.mean_pose),
        "store_sha256": facts.store_sha256,
        "mano_sha256": facts.mano_sha256,
    }


def save_checkpoint(
    run_dir: Path, payload: dict[str, Any], *, keep: int, score: Score | None = None
) -> bool:
    """Write ``run_dir/checkpoints/step-<step>.pt``; the newest ``keep`` and the best one stay.

    Killed or failing at any moment, the folder still holds a checkpoint that loads. Files beyond
    this step are removed: the run was continued from before them. Files of other runs stay.

    Returns:
        Whether ``score`` makes it the best.

    Raises:
        NotWrittenError: If it could not be written.
    """
    folder, step, run_id = run_dir / FOLDER, payload["step"], payload["run_id"]
    path = _file_of(folder, step)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for unfinished in folder.glob(f"step-*.pt{TEMPORARY}"):
            with contextlib.suppress(OSError):
                unfinished.unlink()
        ours = _files_of(run_id, folder)
        best = _best(folder, [header for file, header in ours.items() if file <= path])
        is_best = score is not None and _is_better(score, best)
        best = score if is_best else best
        _write(path, payload | {"best": None if best is None else asdict(best)})
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise NotWrittenError(
            f"the checkpoint of step {step} was not written to {folder}: {reason}; the earlier "
            "ones are untouched"
        ) from error
    kept = {*sorted({path, *(file for file in ours if file < path)})[-keep:]}
    if best is not None:
        kept.add(_file_of(folder, best.step))
    for file in {*ours, folder / _OLD_INDEX} - kept:
        with contextlib.suppress(OSError):  # the new one is safe; tried again at the next save
            file.unlink(missing_ok=True)
    return is_best


def has_checkpoints(run_dir: Path) -> bool:
    """Return whether a run was saved here, be it readable or not."""
    return bool(_files(run_dir / FOLDER)) or (run_dir / _OLD_NAME).exists()


def best_step(run_dir: Path, run_id: str) -> int | None:
    """Return the step of a run's best checkpoint; None where none was scored.

    Raises:
        ValueError: If the folder belongs to another run.
    """
    folder = run_dir / FOLDER
    best = _best(folder, list(_files_of(run_id, folder).values()))
    return None if best is None else best.step


def read_checkpoint(
    run_dir: Path, choice: CheckpointChoice = CheckpointChoice.latest, *, say: Say
) -> dict[str, Any]:
    """Return the payload of a run's newest intact checkpoint, or of its best; tensors on the CPU.

    ``say`` is told every file that is refused on the way.

    Raises:
        FileNotFoundError: If there is none, or none was scored.
        ValueError: If none is intact. Nothing takes the place of a best one that is not.
    """
    folder, run_id = run_dir / FOLDER, _owner(run_dir)
    newest = _newest(run_dir, run_id, say)
    if choice is CheckpointChoice.latest:
        return newest
    if newest["best"] is None:
        raise FileNotFoundError(
            f"{folder} has no best checkpoint: none was scored; use checkpoint=latest"
        )
    path = _file_of(folder, newest["best"]["step"])
    try:
        return _read(path, run_id)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"the best checkpoint {path} is refused: {error}; use checkpoint=latest"
        ) from error


def require_same(
    payload: dict[str, Any], model: nn.Module, *, store_sha256: str, mano_sha256: str
) -> None:
    """Require that a payload is of this network and these data.

    Raises:
        ValueError: If store or MANO files are not those of the run, or the network's tensors are
            others; names which.
    """
    own, saved_tensors = model.state_dict(), payload["model"]
    other = sorted(
        key
        for key in own.keys() | saved_tensors.keys()
        if key not in own or key not in saved_tensors or own[key].shape != saved_tensors[key].shape
    )
    if other:
        shapes = [
            str(list(found[other[0]].shape)) if other[0] in found else "none"
            for found in (own, saved_tensors)
        ]
        raise ValueError(
            f"the checkpoint of step {payload['step']} is of another network: {len(other)} of its "
            f"tensors differ (first: {other[0]}, expected {shapes[0]}, got {shapes[1]}); was it "
            "written with other versions of this package or timm? start a new run in another "
            "run_dir"
        )
    present = {"store content": store_sha256, "MANO files": mano_sha256}
    saved = {"store content": payload["store_sha256"], "MANO files": payload["mano_sha256"]}
    changed = [
        f"{name} {saved[name][:12] or 'none'} -> {present[name][:12] or 'none'}"
        for name in present
        if saved[name] != present[name]
    ]
    if changed:
        raise ValueError(
            f"the run was trained on other data ({', '.join(changed)}; sha256); give the same "
            "ones with store=... and mano=..., or start a new run in another run_dir"
        )


def restore(state: TrainState, payload: dict[str, Any]) -> None:
    """Put a payload into a state of the same configuration; see ``require_same``.

    Raises:
        ValueError: If it does not hold the states of the network.
    """
    with refused_states(f"the checkpoint of step {payload['step']}"):
        _put_states(state, payload)


@contextlib.contextmanager
def refused_states(what: str) -> Iterator[None]:
    """Turn the errors of torch's ``load_state_dict`` into a sentence about ``what``.

    Raises:
        ValueError: If the states are not those of this network, optimizer or generator.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        shown = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(
            f"{what} does not hold the states of the network in its configuration ({shown}); take "
            "another checkpoint, or train again in another run_dir"
        ) from error


def _put_states(state: TrainState, payload: dict[str, Any]) -> None:
    state.model.load_state_dict(payload["model"])
    state.average = load_average(state.ema, state.model, payload["ema"])
    state.accumulate = max(state.accumulate, int(payload.get("accumulate", 1)))
    if state.log_variance is not None:
        with torch.no_grad():
            state.log_variance.copy_(payload["log_variance"])
    # The groups keep what belongs to this device, which need not be the checkpoint's.
    here = [{k: group[k] for k in ("lr", "capturable")} for group in state.optimizer.param_groups]
    state.optimizer.load_state_dict(payload["optimizer"])
    for group, kept in zip(state.optimizer.param_groups, here, strict=True):
        kept["lr"].copy_(group["lr"])
        group.update(kept)
    state.step = int(payload["step"])
    state.clock.fill_(state.step)
    set_rng_state(payload["rng"])


def rng_state() -> dict[str, Any]:
    """Return torch's generators: of the CPU, and of every CUDA device if CUDA is in use."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # asking starts no CUDA
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(rng: dict[str, Any]) -> None:
    """Put generators back; devices that are not there, or were not, are passed over."""
    torch.set_rng_state(rng["cpu"])
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    for device in range(min(len(rng["cuda"]), torch.cuda.device_count()) if in_use else 0):
        torch.cuda.set_rng_state(rng["cuda"][device], device)


def config_of(payload: dict[str, Any]) -> RunConfig:
    """Return the run's configuration from its checkpoint.

    Raises:
        ValueError: If a key or value is not of this version.
    """
    try:
        return from_plain(RunConfig, as_record(dict[str, Any], parse_json(payload["config"])))
    except ValueError as error:
        raise ValueError(f"the checkpoint's configuration cannot be used: {error}") from error


def mean_of(payload: dict[str, Any]) -> MeanPose:
    """Return the mean pose kept in a checkpoint.

    Raises:
        ValueError: If it is none.
    """
    found = payload["mean_pose"]
    joints = found.get("joints_rel")
    num = len(joints) if isinstance(joints, torch.Tensor) and joints.ndim else 0
    shapes = {
        "joints_rel": (num, 21, 3),
        "vertices_rel": (num, 778, 3),
        "theta_rot6d": (num, 96),
        "beta": (num, 10),
        "place": (num, 3),
        "object_state": (10,),
    }
    wrong = [
        name
        for name, shape in shapes.items()
        if not (name in _MAY_LACK and found.get(name) is None)
        and not (isinstance(found.get(name), torch.Tensor) and found[name].shape == shape)
    ]
    as_record(Count, found.get("num_hands"))
    if not 1 <= num <= NUM_HANDS or wrong or found.keys() != {*shapes, "num_hands"}:
        raise ValueError(f"the checkpoint's mean pose is damaged: {', '.join(wrong) or 'its keys'}")
    return MeanPose(**found)


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest last."""
    return sorted(folder.glob("step-*.pt"))


def _file_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.pt"


def _write(path: Path, payload: dict[str, Any]) -> None:
    """Write a file under another name, and rename it when it is on the disk.

    Raises:
        OSError: If that fails; what was at ``path`` before is still there.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with temporary.open("w+b") as file:
            torch.save(payload, file)
            end = file.seek(-2, os.SEEK_END)  # the length of the comment: none yet
            seal = _seal(file, end)
            file.seek(end)
            file.write(seal)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # a full disk needs the room
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from error  # torch's C++ writer hides the disk's own error
        raise
    sync(path.parent)
    sync(path.parent.parent)  # the first checkpoint comes with its folder


def _seal(file: BinaryIO, end: int) -> bytes:
    """Return the last bytes of a file whose first ``end`` are there, and stop after those."""
    digest = hashlib.sha256()
    file.seek(0)
    while end > 0 and (piece := file.read(min(end, 1 << 24))):
        digest.update(piece)
        end -= len(piece)
    return struct.pack("<H", 64) + digest.hexdigest().encode()


def _read(path: Path, run_id: str | None) -> dict[str, Any]:
    """Return the payload of an intact file of a run; None takes any run.

    Raises:
        ValueError: If it is damaged, of another format or of another run; the text goes behind
            the file's name.
        OSError: If it cannot be read.
    """
    if not path.is_file():
        raise ValueError("it is missing")
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size - _SEAL_BYTES
        if end <= 0 or _seal(file, end) != file.read():
            raise ValueError("its checksum does not fit: it is torn, damaged or foreign")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise ValueError(f"torch cannot load it ({' '.join(str(error).split())[:200]})") from error
    found = payload.get("format") if isinstance(payload, dict) else None
    if not isinstance(payload, dict) or type(found) is not int or found != FORMAT:
        raise ValueError(f"it has checkpoint format {found!r:.40}, this code reads {FORMAT}")
    facts = as_record(_Payload, {k: v for k, v in payload.items() if k in _PLAIN})
    states = ("model", "ema", "optimizer", "loader", "rng", "mean_pose")
    if run_id is not None and facts.run_id != run_id:
        raise ValueError(f"it is foreign: of run {facts.run_id!r:.40}, expected run {run_id}")
    if wrong := [name for name in states if not isinstance(payload.get(name), dict)]:
        raise ValueError(f"it lacks {', '.join(wrong)}")
    if path != _file_of(path.parent, facts.step):
        raise ValueError(f"it is of step {facts.step}, expected what its name says")
    return payload


def _newest(run_dir: Path, run_id: str | None, say: Say) -> dict[str, Any]:
    folder = run_dir / FOLDER
    for path in reversed(_files(folder)):
        try:
            return _read(path, run_id)
        except (ValueError, OSError) as error:
            say(f"checkpoint {path} is refused: {error}")
    if _files(folder):
        raise ValueError(
            f"no checkpoint in {folder} is whole; put back a copy of a file, or remove the folder "
            "to train from the start"
        )
    if (run_dir / _OLD_NAME).exists():
        raise ValueError(
            f"{run_dir / _OLD_NAME} has checkpoint format 0, this code reads {FORMAT}; train "
            "again in another run_dir"
        )
    raise FileNotFoundError(
        f"{run_dir} holds no checkpoint; expected a folder made by: python -m train run"
    )


def _files_of(run_id: str, folder: Path) -> dict[Path, _Header | None]:
    """Return the files of a run, the newest last; damaged ones, with None, are taken for its own.

    Raises:
        ValueError: If the folder belongs to another run.
    """
    headers = {path: _header(path) for path in _files(folder)}
    owners = {header.run_id for header in headers.values() if header is not None}
    if owners and run_id not in owners:
        raise ValueError(
            f"the folder belongs to run {owners.pop()}, this is run {run_id}; does another "
            "process train in the same run_dir?"
        )
    return {f: h for f, h in headers.items() if not h or (h.format, h.run_id) == (FORMAT, run_id)}


def _header(path: Path) -> _Header | None:
    with contextlib.suppress(Exception):  # damage makes zip and pickle raise many kinds
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            if archive.getinfo("archive/data.pkl").file_size > _MOST_HEADER:
                return None
            data = archive.read("archive/data.pkl")  # checks its CRC32
        payload = _Skeleton(io.BytesIO(data)).load()
        plain = {name: payload.get(name) for name in ("format", "run_id", "best")}
        return as_record(_Header, plain)
    return None


class _Skeleton(pickle.Unpickler):
    """Reads a payload without its tensors; no class or function that it names is looked up.

    Every save looks into every file: ``torch.load(mmap=True)`` takes ten times as long.
    """

    class Nothing(dict[Any, Any]):
        """In place of an object."""

        def __init__(self, *_: Any) -> None:
            super().__init__()

    def persistent_load(self, pid: Any) -> None:
        """Pass over a tensor's values."""

    def find_class(self, module: str, name: str) -> type:
        """Return the same for everything."""
        return self.Nothing


def _owner(run_dir: Path) -> str | None:
    """Return the run that a folder belongs to; None if it is empty.

    Raises:
        ValueError: If it holds files of several runs and the manifest is lost.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(parse_json(read_regular(run_dir / "manifest.json"))["run_id"])
    files = _files(run_dir / FOLDER)
    owners = {header.run_id: file.name for file in files if (header := _header(file))}
    if len(owners) > 1:
        shown = ", ".join(f"{name} of run {run_id}" for run_id, name in sorted(owners.items()))
        raise ValueError(
            f"{run_dir / FOLDER} holds files of {len(owners)} runs and no manifest.json tells "
            f"whose it is ({shown}); remove those that do not belong here"
        )
    return next(iter(owners), None)


def _best(folder: Path, headers: list[_Header | None]) -> Score | None:
    """Return the best score according to the newest of ``headers``, if its file is there."""
    known = [header.best for header in headers if header is not None]
    best = known[-1] if known else None
    return best if best is not None and _file_of(folder, best.step).is_file() else None


def _is_better(score: Score, best: Score | None) -> bool:
    if best is None or best.metric != score.metric or best.step == score.step:
        return math.isfinite(score.value)
    return score.value < best.value
