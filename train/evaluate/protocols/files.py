"""Readers and writers of the protocols' files; every error names its file.

Shape legend: n = samples, k = points.
"""

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline.app.files import read_regular, replace_file, replacing
from pipeline.app.words import nearest
from pipeline.pickles import load_npy
from pipeline.zips import open_zip, read_member

PREDICTION_FILE: Final = "pred.json"
_MAX_BYTES: Final = 8 * 2**30
_MOST_PACKED: Final = 200
"""Bytes of JSON over those packed; numbers with many digits have two or three."""


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or of the only one in a zip.

    Raises:
        ValueError: If it is not JSON.
    """
    data = read_regular(path, max_bytes=_MAX_BYTES)
    if data.startswith(b"PK"):
        with open_zip(data, name=str(path)) as archive:
            found = [m for m in archive.infolist() if Path(m.filename).name == PREDICTION_FILE]
            if len(found) != 1:
                names = [member.filename for member in found] or "none"
                raise ValueError(f"{path}: expected one {PREDICTION_FILE} in it, got {names}")
            name = f"{found[0].filename} in {path}"
            size, packed = found[0].file_size, found[0].compress_size
            if size > _MOST_PACKED * packed + 2**20:
                raise ValueError(
                    f"{name} has {size} bytes packed into {packed}, which numbers cannot be"
                )
            data = read_member(archive, found[0], name=name, max_bytes=_MAX_BYTES)
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys differ: Python takes the last of equal ones in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"it has the key {twice[:80]!r} twice")
    return found


def prediction_file(path: Path) -> Path:
    """Return ``path``, or in a folder its pred.json, else its only .json or .zip.

    Raises:
        FileNotFoundError: If a folder contains none, or several.
    """
    if path.is_file():
        return path
    if (path / PREDICTION_FILE).is_file():
        return path / PREDICTION_FILE
    found = sorted([*path.glob("*.json"), *path.glob("*.zip")])
    if len(found) != 1:
        names = [p.name for p in found] or "none"
        raise FileNotFoundError(
            f"{path} holds no {PREDICTION_FILE} and not one single .json or .zip: {names}"
        )
    return found[0]


def read_two_lists(
    path: Path,
) -> tuple[Float64[np.ndarray, "n 21 3"], Float64[np.ndarray, "n k 3"]]:
    """Read ``[joints, vertices]``, the prediction format of FreiHAND and HO-3D.

    Raises:
        ValueError: If the file has another content.
    """
    content = read_json(path)
    if not isinstance(content, list) or len(content) != 2:
        raise ValueError(
            f"{path}: expected a list [joints, vertices] of two lists, got "
            f"{type(content).__name__} of {_length(content)}"
        )
    joints = as_points(content[0], f"{path}, joints", num_points=21)
    vertices = as_points(content[1], f"{path}, vertices")
    if len(joints) != len(vertices):
        raise ValueError(f"{path}: {len(joints)} samples of joints, {len(vertices)} of vertices")
    return joints, vertices


def as_points(
    value: Any, name: str, *, num_points: int | None = None
) -> Float64[np.ndarray, "n k 3"]:
    """Return nested lists (or an array) as ``[n, k, 3]``.

    Raises:
        ValueError: If the shape is another one, or not the same for all samples.
    """
    expected = f"(n, {num_points or 'k'}, 3)"
    try:
        points = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{name}: expected numbers of shape {expected}, got lists of uneven length or other "
            "values"
        ) from error
    if points.ndim != 3 or points.shape[2] != 3 or (num_points and points.shape[1] != num_points):
        raise ValueError(f"{name}: expected shape {expected}, got {points.shape}")
    return points


def read_npz(
    path: Path, shapes: dict[str, tuple[int | str, ...]], *, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Read named arrays and check their shapes; equal letters must have equal lengths.

    Args:
        path: The .npz file; objects (pickles) in it are rejected.
        shapes: Shape by key, numbers or letters.
        optional: Keys that may be absent.

    Raises:
        ValueError: With every problem of the file.
    """
    problems, found, letters = [], {}, dict[str, int]()
    arrays = _plain_arrays(path)
    for name, shape in shapes.items():
        if name not in arrays:
            if name not in optional:
                problems.append(f"no {name!r}")
            continue
        array = arrays.pop(name)
        if array.dtype.kind not in "fiub":
            problems.append(f"{name!r} holds {array.dtype}, expected numbers")
            continue
        if array.ndim != len(shape) and tuple(shape)[-1:] == (1,):
            array = array[..., None]  # a column may come as a vector
        elif shape == () and array.size == 1:
            array = array.reshape(())
        fits = array.ndim == len(shape) and all(
            (letters.setdefault(want, got) if isinstance(want, str) else want) == got
            for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits:
            sizes = [letters.get(s, s) if isinstance(s, str) else s for s in shape]
            wanted = ", ".join(map(str, sizes))
            problems.append(f"{name!r} has shape {array.shape}, expected ({wanted})")
        found[name] = array
    problems += [f"unknown key {name!r}; {nearest(name, shapes)}" for name in arrays]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return found


def keys_of(path: Path) -> list[str]:
    """Return the names of the arrays in an .npz.

    Raises:
        ValueError: If it is not a zip file.
    """
    with open_zip(path, name=str(path)) as archive:
        return [member.filename.removesuffix(".npy") for member in archive.infolist()]


def _plain_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read every array; NumPy's own reader would trust a header's size, or load pickles.

    Raises:
        ValueError: If the file is not an .npz, is truncated, damaged, or contains anything else.
    """
    try:
        with open_zip(path, name=str(path)) as archive:
            arrays = {}
            for member in archive.infolist():
                name = f"{member.filename} in {path}"
                data = read_member(archive, member, name=name, max_bytes=_MAX_BYTES)
                arrays[member.filename.removesuffix(".npy")] = load_npy(
                    data, name=name, max_bytes=_MAX_BYTES
                )
            return arrays
    except ValueError as error:
        raise ValueError(f"{error}; expected an .npz of plain arrays (numpy.savez)") from error


def batches(*arrays: np.ndarray, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield the arrays as tensors, ``size`` samples at a time."""
    for begin in range(0, len(arrays[0]), size):
        yield tuple(torch.from_numpy(array[begin : begin + size]) for array in arrays)


def write_two_lists(
    path: Path, joints: Float64[np.ndarray, "n 21 3"], vertices: Float64[np.ndarray, "n k 3"]
) -> None:
    """Write ``[joints, vertices]`` in the format of FreiHAND's and HO-3D's servers, atomically.

    A path that ends in .zip becomes a zip of pred.json, as they are uploaded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as write:
        if path.suffix.lower() != ".zip":
            _write_lists(write, joints, vertices)
            return
        stream: Any = SimpleNamespace(write=_counted(write), flush=lambda: None)
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            member = zipfile.ZipInfo(PREDICTION_FILE)
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as file:
                _write_lists(file.write, joints, vertices)


def _write_lists(write: Callable[[bytes], Any], *lists: np.ndarray) -> None:
    """Write the JSON that ``json.dump`` would, a sample at a time."""
    before = b"["
    for points in lists:
        write(before + b"[")
        for i, sample in enumerate(points):
            write((b", " if i else b"") + json.dumps(sample.tolist()).encode())
        write(b"]")
        before = b", "
    write(b"]")


def _counted(write: Callable[[Any], None]) -> Callable[[Any], int]:
    """Return a stream's ``write``, which says how many bytes it wrote."""

    def counted(data: Any) -> int:
        write(data)
        return len(data)

    return counted


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as an uncompressed .npz, atomically; create the folder if needed."""
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getbuffer())


def _length(value: Any) -> str:
    return str(len(value)) if isinstance(value, (list, dict)) else "no length"
