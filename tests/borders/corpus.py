"""A corpus of over a thousand inputs that are damaged, hostile or lie, and a run of all of them.

    python -m tests.borders.corpus FOLDER [--every N]

writes good files below FOLDER, damages a copy of them for each case, and reads it in a process of
its own, under limits on time and memory. It prints one JSON line for each case: what it was refused
with, or whether what was read is what the good files say. A case is believed if it was read as
something else; ``ON_PURPOSE`` names what has no second copy to be held against.
"""

import contextlib
import dataclasses
import gc
import hashlib
import itertools
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import torch

from model.mano.files import load_mano
from model.pretrained import load_pretrained, save_pretrained
from pipeline.app.cli import USER_ERRORS
from pipeline.app.words import sentence
from pipeline.pickles import load_npy
from pipeline.store.reader import open_store
from preprocess.images.check import check_jpeg
from preprocess.images.header import ImageProblem, JpegHeader, SizeLimit, read_header
from preprocess.images.images import read_image_file
from preprocess.images.recode import decode
from preprocess.sources.registry import open_source
from tests.borders.mutations import NO_FILES, damaged_bytes, json_texts
from tests.model.test_pretrained import CONFIG, about, network
from tests.pipeline.hand_store import hand_store
from tests.preprocess.datasets import jpeg, jpeg_of_claimed_size, png_of_claimed_size, write_mano
from tests.preprocess.sources.folder.dataset import write_folder
from tests.train.state.test_checkpoint_faults import payload
from train.evaluate.protocols.files import read_npz, read_two_lists
from train.predict.boxes import read_boxes
from train.predict.cameras import read_cameras
from train.predict.inputs import InputImage, find_source, frames
from train.state.checkpoint import config_of, mean_of, read_checkpoint, save_checkpoint

LIMIT_BYTES: Final = 2**30
"""Address space of a case beyond that of the idle process."""
LIMIT_S: Final = 20
ON_PURPOSE: Final[dict[str, str]] = {
    r"store attributes: (licence|citation|command|dataset|plan_sha256|mano_sha256|tables\..*"
    r"|tables|extra.*|official_counts.*|found_counts.*|flag_counts.*|flags.*|content_sha256"
    r"|image_encoding|joint_set)( .*)?": "text and counts that only the build knows; "
    "verify-cache holds what it can against the dataset",
    r"(store .*|annotations: .*): whole text only": "the same values in another layout",
    r"boxes: .*": "boxes are the user's own statement, within the bounds of pixels",
    r"intrinsics: .*": "as are cameras, within the bounds of an image",
    r"annotations: .*": "and annotations, within the format; check draws them",
    r"weights config: (inputs\.|step |model\.).*": "how a network is built and fed is known only "
    "here; its tensors must fit",
    r"weights: (flipped|hole) .*": "safetensors has no checksum; what is not finite is refused",
    r"image: .*": "a damaged picture decodes, is flagged where libjpeg warns, and hurts nothing",
    r"picture: .*": "the same for the pictures of predict",
    r"predictions: .*": "numbers to be scored are the user's own",
    r"npy: .*": "numbers without a checksum",
    r"mano: .*": "numbers without a checksum of their own; stores and weights hold its hash",
    r"pickle: .*": "numbers without a checksum",
    r"checkpoint payload: .*": "a sealed file holds what was sealed; restore compares it",
}
"""Patterns of cases that may be read as something else, with the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One damaged input."""

    name: str
    kind: str
    """Key of ``GOOD``."""
    write: Callable[[Path], None]
    """Damages a copy of the good files, in place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Good:
    """Good files, and what is read from them."""

    make: Callable[[Path], None]
    read: Callable[[Path], Any]


# --- good files -----------------------------------------------------------------------------------


def _read_store(folder: Path) -> Any:
    with contextlib.closing(open_store(folder / "s.zarr")) as store:
        images = [store.jpeg_checked(row).tobytes() for row in range(store.num_rows)]
        names = [path.name for path in (folder / "s.zarr/labels").iterdir() if path.is_dir()]
        labels = {name: store.label(name) for name in sorted(names)}
        splits = {name: store.split(name) for name in store.split_counts()}
        return dataclasses.asdict(store.attributes), images, labels, splits


def _make_run(folder: Path) -> None:
    (folder / "run").mkdir()
    joints = torch.zeros(1, 21, 3)
    mean = {"joints_rel": joints, "place": torch.zeros(1, 3), "num_hands": 4}
    mean |= dict.fromkeys(("vertices_rel", "theta_rot6d", "beta", "object_state"))
    save_checkpoint(folder / "run", payload(10) | {"mean_pose": mean}, keep=2)


def _read_run(folder: Path) -> Any:
    said: list[str] = []
    found = read_checkpoint(folder / "run", say=said.append)
    with contextlib.suppress(ValueError):  # its configuration is empty
        config_of(found)
    return found, mean_of(found)


def _make_weights(folder: Path) -> None:
    write_mano(folder / "mano")
    mano = load_mano(folder / "mano")
    save_pretrained(network(CONFIG, mano), folder / "weights", about(CONFIG, mano))


def _read_weights(folder: Path) -> Any:
    return load_pretrained(folder / "weights", mano=load_mano(folder / "mano")).state_dict()


def _make_predict(folder: Path) -> None:
    hand = {"box_xyxy": [3.0, 4.0, 40.0, 42.5], "side": "right"}
    boxes = {"a.jpg": [hand, hand | {"side": "left"}], "b.jpg": []}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    K = [[60.0, 0.0, 31.5], [0.0, 60.0, 23.5], [0.0, 0.0, 1.0]]
    (folder / "K.json").write_text(json.dumps({"a.jpg": K, "b.jpg": K}))
    (folder / "photos").mkdir()
    (folder / "photos/a.jpg").write_bytes(jpeg(0))
    png = cv2.imencode(".png", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    (folder / "photos/b.png").write_bytes(png)


def _read_cameras(folder: Path) -> Any:
    found = read_cameras(str(folder / "K.json"), 60.0)
    pixels = np.zeros((48, 64, 3), np.uint8)
    names = {n: found.of(InputImage(name=n, rgb=pixels)) for n in found.by_name or {}}
    return names, found.K


def _read_photos(folder: Path) -> Any:
    source = find_source(str(folder / "photos"), 1)
    return [repr(one)[:200] for one in frames(source)]


def _make_scores(folder: Path) -> None:
    rng = np.random.default_rng(0)
    joints, vertices = rng.normal(size=(2, 21, 3)), rng.normal(size=(2, 778, 3))
    (folder / "pred.json").write_text(json.dumps([joints.tolist(), vertices.tolist()]))
    with zipfile.ZipFile(folder / "pred.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "pred.json", "pred.json")
    np.savez(folder / "pred.npz", joints=joints, valid=np.ones((2, 21), bool))
    np.save(folder / "array.npy", joints)
    np.save(folder / "pickled.npy", np.array({"rot": joints[0]}, object), allow_pickle=True)


def _read_npz(folder: Path) -> Any:
    return read_npz(folder / "pred.npz", {"joints": ("n", 21, 3), "valid": ("n", 21)})


def _read_folder(folder: Path) -> Any:
    source = open_source("folder", folder / "own", None)
    stack = source.label_job(range(len(source.rows)))()
    return dataclasses.asdict(stack), source.rows, source.splits


def _make_image(folder: Path) -> None:
    (folder / "a.jpg").write_bytes(jpeg(0))
    (folder / "b.png").write_bytes(
        cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))[1].tobytes()
    )


def _read_image(folder: Path) -> Any:
    found = []
    for name in ("a.jpg", "b.png"):
        data = read_image_file(folder / name)
        header = data if isinstance(data, ImageProblem) else read_header(data)
        if isinstance(header, ImageProblem) or SizeLimit().problem(header):
            found.append(repr(header))
            continue
        assert isinstance(data, bytes)
        if isinstance(header, JpegHeader):
            found.append(repr(check_jpeg(data, header, decode=True)))
        found.append(repr(decode(data, header, np.empty(1 << 20, np.uint8)))[:200])
    return found


GOOD: Final[dict[str, Good]] = {
    "store": Good(make=lambda f: void(hand_store(f / "s.zarr")), read=_read_store),
    "run": Good(make=_make_run, read=_read_run),
    "weights": Good(make=_make_weights, read=_read_weights),
    "boxes": Good(make=_make_predict, read=lambda f: read_boxes(str(f / "boxes.json"))),
    "intrinsics": Good(make=_make_predict, read=_read_cameras),
    "photos": Good(make=_make_predict, read=_read_photos),
    "json": Good(make=_make_scores, read=lambda f: read_two_lists(f / "pred.json")),
    "zip": Good(make=_make_scores, read=lambda f: read_two_lists(f / "pred.zip")),
    "npz": Good(make=_make_scores, read=_read_npz),
    "npy": Good(make=_make_scores, read=lambda f: load_npy(f / "array.npy", name="array")),
    "pickled": Good(
        make=_make_scores, read=lambda f: load_npy(f / "pickled.npy", name="pickled").tolist()
    ),
    "mano": Good(
        make=lambda f: void(write_mano(f / "mano")),
        read=lambda f: dataclasses.asdict(load_mano(f / "mano").right),
    ),
    "folder": Good(make=lambda f: void(write_folder(f / "own")), read=_read_folder),
    "image": Good(make=_make_image, read=_read_image),
}


def void(_: object) -> None:
    """Return nothing."""


# --- damage ---------------------------------------------------------------------------------------


def _text(path: str, text: str) -> Callable[[Path], None]:
    return lambda folder: void((folder / path).write_text(text))


def _bytes(path: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / path).write_bytes(data))


def _instead(path: str, put: Callable[[Path], None]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        place = folder / path
        shutil.rmtree(place) if place.is_dir() else place.unlink()
        put(place)

    return write


def _group(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "s.zarr/zarr.json"
    group = json.loads(path.read_text())
    path.write_text(change(group))


def _json_cases(kind: str, name: str, path: str, value: Any) -> Iterator[Case]:
    for label, text in json_texts(value):
        yield Case(name=f"{name}: {label}", kind=kind, write=_text(path, text))


def _byte_cases(
    kind: str, name: str, path: str, data: bytes, count: int, draw: random.Random
) -> Iterator[Case]:
    for label, changed in damaged_bytes(data, draw, count):
        yield Case(name=f"{name}: {label}", kind=kind, write=_bytes(path, changed))


def _store_cases(good: Path, draw: random.Random) -> Iterator[Case]:
    store = good / "s.zarr"
    group = json.loads((store / "zarr.json").read_text())
    attributes = group["attributes"]["handloom"]
    attributes["tables"] = {k: v[:1] for k, v in attributes["tables"].items()}
    attributes["flags"] = dict(list(attributes["flags"].items())[:1])
    whole = json.loads((store / "zarr.json").read_text())
    for label, text in json_texts(whole["attributes"]["handloom"]):
        if re.match(r"(flags|flag_counts)\.(?!image_missing)", label):
            continue  # all of one kind
        outer = json.dumps(whole | {"attributes": {"handloom": "@@"}})
        write = _text("s.zarr/zarr.json", outer.replace('"@@"', text))
        yield Case(name=f"store attributes: {label}", kind="store", write=write)
    for array in ("image/bytes", "image/offset", "labels/joints_3d", "splits/train"):
        value = json.loads((store / array / "zarr.json").read_text())
        value["attributes"] = {}
        yield from _json_cases("store", f"store {array}", f"s.zarr/{array}/zarr.json", value)
    files = ("image/bytes/files.json", "image/offset/c.0", "image/length/c.1", "image/bytes/c/0")
    for name in (*files, "labels/K/c.0.0.0", "splits/val/c/0"):
        data = (store / name).read_bytes()
        yield from _byte_cases("store", f"store {name}", f"s.zarr/{name}", data, 24, draw)
        for label, put in NO_FILES.items():
            write = _instead(f"s.zarr/{name}", put)
            yield Case(name=f"store {name}: {label}", kind="store", write=write)


def _payload_cases() -> Iterator[Case]:
    """Sealed checkpoints of another content."""
    joints = torch.zeros(1, 21, 3)
    mean: dict[str, Any] = {"joints_rel": joints, "place": torch.zeros(1, 3), "num_hands": 4}
    mean |= dict.fromkeys(("vertices_rel", "theta_rot6d", "beta", "object_state"))
    good = payload(10) | {"mean_pose": mean}
    values: dict[str, Any] = {
        "null": None, "true": True, "minus one": -1, "2^70": 2**70, "text": "x", "list": [1],
        "NaN": float("nan"), "tensor": torch.zeros(2), "dict": {},
    }  # fmt: skip
    for key in good:
        for label, value in values.items():
            changed = {k: value if k == key else v for k, v in good.items()}
            yield Case(
                name=f"checkpoint payload: {key} = {label}", kind="run", write=_sealed(changed)
            )
        rest = {k: v for k, v in good.items() if k != key}
        yield Case(name=f"checkpoint payload: {key} left out", kind="run", write=_sealed(rest))
    for key in mean:
        for label, value in values.items():
            changed = good | {"mean_pose": {**mean, key: value}}
            name = f"checkpoint payload: mean_pose.{key} = {label}"
            yield Case(name=name, kind="run", write=_sealed(changed))


def _sealed(content: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from train.state.checkpoint import _write

        _write(folder / CHECKPOINT, content)

    return write


CHECKPOINT: Final = "run/checkpoints/step-00000010.pt"


def _predict_cases(good: Path, draw: random.Random) -> Iterator[Case]:
    for kind, path in (("boxes", "boxes.json"), ("intrinsics", "K.json")):
        value = json.loads((good / path).read_text())
        yield from _json_cases(kind, kind, path, value)
        for label, put in NO_FILES.items():
            yield Case(name=f"{kind}: {label}", kind=kind, write=_instead(path, put))
    for path in ("photos/a.jpg", "photos/b.png"):
        data = (good / path).read_bytes()
        yield from _byte_cases("photos", "picture", path, data, 24, draw)
        for label, put in NO_FILES.items():
            yield Case(name=f"picture: {label} {path}", kind="photos", write=_instead(path, put))
    for label, data in _claims().items():
        yield Case(name=f"picture: {label}", kind="photos", write=_bytes("photos/a.jpg", data))


def _claims() -> dict[str, bytes]:
    return {
        "JPEG of 65500 a side": jpeg_of_claimed_size(65_500, 65_500),
        "JPEG of no width": jpeg_of_claimed_size(0, 100),
        "PNG of 2^31 a side": png_of_claimed_size(2**31 - 1, 2**31 - 1),
        "PNG of 60000 a side": png_of_claimed_size(60_000, 60_000),
        "PNG of no height": png_of_claimed_size(9, 0),
        "GIF": b"GIF89a" + bytes(50),
        "text": b"no image",
        "markers only": b"\xff\xd8" + b"\xff" * 500,
    }


def _score_cases(good: Path, draw: random.Random) -> Iterator[Case]:
    value = json.loads((good / "pred.json").read_text())
    small = [[sample[:1] for sample in part[:1]] for part in value]
    yield from _json_cases("json", "predictions", "pred.json", small)
    for kind, path, name, count in (
        ("zip", "pred.zip", "predictions", 40),
        ("npz", "pred.npz", "predictions", 60),
        ("npy", "array.npy", "npy", 60),
        ("pickled", "pickled.npy", "pickle", 60),
    ):
        yield from _byte_cases(kind, name, path, (good / path).read_bytes(), count, draw)
        for label, put in NO_FILES.items():
            yield Case(name=f"{name}: {label} {path}", kind=kind, write=_instead(path, put))
    for label, header in _npy_headers().items():
        data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)
        yield Case(name=f"npy: header {label}", kind="npy", write=_bytes("array.npy", data))
        write = partial(_npz_of, data=data)
        yield Case(name=f"predictions: npz header {label}", kind="npz", write=write)
    bomb = partial(_zip_bomb, name="pred.json")
    yield Case(name="predictions: bomb", kind="zip", write=bomb)
    many = partial(_many_members, count=50_000)
    yield Case(name="predictions: 50,000 members", kind="zip", write=many)


def _npy_headers() -> dict[str, bytes]:
    def header(descr: str, order: str, shape: str) -> bytes:
        return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()

    return {
        "of 2^60 numbers": header("'<f8'", "False", f"({2**60},)"),
        "of 10^9 numbers": header("'<f8'", "False", "(1000000000,)"),
        "of minus one": header("'<f8'", "False", "(-1, 8)"),
        "that wraps": header("'<f8'", "False", f"({2**33}, {2**33}, 3)"),
        "of 40 axes": header("'<f8'", "False", "(1,) * 40"),
        "of objects": header("'|O'", "False", "(8,)"),
        "of a record": header("[('a', '<f8')]", "False", "(8,)"),
        "of text": header("'<U1000000'", "False", "(8,)"),
        "of dates": header("'<M8[s]'", "False", "(8,)"),
        "that calls": header("__import__('os').system('false')", "False", "(8,)"),
        "of true": header("'<f8'", "1", "(8,)"),
        "of a float": header("'<f8'", "False", "(8.0,)"),
        "that is deep": b"(" * 3000 + b")" * 3000 + b"\n",
        "that is long": b"{'descr': '" + b"A" * 60_000 + b"'}\n",
        "that is empty": b"",
        "that is binary": bytes(range(200)),
    }


def _npz_of(folder: Path, data: bytes) -> None:
    with zipfile.ZipFile(folder / "pred.npz", "w") as archive:
        archive.writestr("joints.npy", data)
        archive.writestr("valid.npy", data)


def _zip_bomb(folder: Path, name: str) -> None:
    with (
        zipfile.ZipFile(folder / "pred.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        for _ in range(3 << 6):
            member.write(bytes(1 << 24))


def _many_members(folder: Path, count: int) -> None:
    with zipfile.ZipFile(folder / "pred.zip", "w") as archive:
        for i in range(count):
            archive.writestr(f"{i}.json", b"")


def _folder_cases(good: Path, draw: random.Random) -> Iterator[Case]:
    lines = (good / "own/annotations.jsonl").read_text().splitlines()
    header, record = json.loads(lines[0]), json.loads(lines[1])
    record["hands"][0]["joints_3d"][1:-1] = [None] * 19
    record["hands"][0]["joints_2d"][1:-1] = [None] * 19
    for at, value in ((0, header), (1, record)):
        for label, text in json_texts(value):
            changed = "\n".join([*lines[:at], text, *lines[at + 1 :]])
            yield Case(
                name=f"annotations: {label}",
                kind="folder",
                write=_text("own/annotations.jsonl", changed),
            )
    data = (good / "own/annotations.jsonl").read_bytes()
    yield from _byte_cases("folder", "annotations", "own/annotations.jsonl", data, 40, draw)
    for label, put in NO_FILES.items():
        write = _instead("own/annotations.jsonl", put)
        yield Case(name=f"annotations: {label}", kind="folder", write=write)


def _network_cases(good: Path, draw: random.Random) -> Iterator[Case]:
    config = json.loads((good / "weights/config.json").read_text())
    yield from _json_cases("weights", "weights config", "weights/config.json", config)
    tensors = (good / "weights/model.safetensors").read_bytes()
    yield from _byte_cases("weights", "weights", "weights/model.safetensors", tensors, 60, draw)
    size = int.from_bytes(tensors[:8], "little")
    for label, changed in damaged_bytes(tensors[8 : 8 + size], draw, 60):
        made = len(changed).to_bytes(8, "little") + changed + tensors[8 + size :]
        write = _bytes("weights/model.safetensors", made)
        yield Case(name=f"weights: header {label}", kind="weights", write=write)
    for path in ("weights/config.json", "weights/model.safetensors"):
        for label, put in NO_FILES.items():
            yield Case(name=f"weights: {label} {path}", kind="weights", write=_instead(path, put))


def cases(good: dict[str, Path]) -> Iterator[Case]:
    """Yield the whole corpus, from the folders of good files by kind."""
    draw = random.Random(17)
    yield from _store_cases(good["store"], draw)
    yield from _payload_cases()
    checkpoint = (good["run"] / CHECKPOINT).read_bytes()
    yield from _byte_cases("run", "checkpoint", CHECKPOINT, checkpoint, 60, draw)
    for label, put in NO_FILES.items():
        yield Case(name=f"checkpoint: {label}", kind="run", write=_instead(CHECKPOINT, put))
    yield from _network_cases(good["weights"], draw)
    yield from _predict_cases(good["boxes"], draw)
    yield from _score_cases(good["json"], draw)
    mano = (good["mano"] / "mano/MANO_RIGHT.npz").read_bytes()
    yield from _byte_cases("mano", "mano", "mano/MANO_RIGHT.npz", mano, 60, draw)
    for label, put in NO_FILES.items():
        yield Case(name=f"mano: {label}", kind="mano", write=_instead("mano/MANO_RIGHT.npz", put))
    yield from _folder_cases(good["folder"], draw)
    for path in ("a.jpg", "b.png"):
        data = (good["image"] / path).read_bytes()
        yield from _byte_cases("image", "image", path, data, 60, draw)
        for label, put in NO_FILES.items():
            yield Case(name=f"image: {label} {path}", kind="image", write=_instead(path, put))
        for label, data in _claims().items():
            yield Case(name=f"image: {label} {path}", kind="image", write=_bytes(path, data))


# --- running --------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """Return a hash of nested values, arrays and tensors."""
    made = hashlib.sha256()

    def add(one: Any) -> None:
        if isinstance(one, dict):
            for key in sorted(one, key=str):
                made.update(f"{key}=".encode("utf-8", "surrogatepass"))
                add(one[key])
        elif isinstance(one, list | tuple):
            made.update(f"[{len(one)}".encode())
            for inner in one:
                add(inner)
        elif dataclasses.is_dataclass(one) and not isinstance(one, type):
            add({f.name: getattr(one, f.name) for f in dataclasses.fields(one)})
        elif isinstance(one, torch.Tensor):
            add(one.detach().numpy())
        elif isinstance(one, np.ndarray) and not one.dtype.hasobject:
            made.update(f"{one.dtype} {one.shape}".encode() + np.ascontiguousarray(one).tobytes())
        else:
            made.update(repr(one).encode("utf-8", "surrogatepass"))

    add(value)
    return made.hexdigest()


def outcome_of(read: Callable[[Path], Any], folder: Path) -> dict[str, str]:
    """Read files in a process of its own; return what came of it."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES,) * 2)
            try:
                found = {"value": digest(read(folder))}
            except USER_ERRORS as error:
                found = {"refused": sentence(error)}
            except BaseException:
                found = {"crashed": traceback.format_exc(limit=-4)}
            with os.fdopen(send, "w") as pipe:
                json.dump(found, pipe)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        begin = time.monotonic()
        text = ""
        while time.monotonic() - begin < LIMIT_S:
            ready, _, _ = select.select([pipe], [], [], LIMIT_S)
            if not ready:
                break
            text = pipe.read()
            break
        else:
            text = ""
    if not text:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if text:
        answer: dict[str, str] = json.loads(text)
        return answer
    ended = os.waitstatus_to_exitcode(status)
    hung = time.monotonic() - begin >= LIMIT_S - 1
    return {"hung" if hung else "crashed": f"ended with {ended}"}


def verdict(case: Case, found: dict[str, str], truth: str) -> str:
    """Return what is wrong with an outcome, "" if nothing."""
    if "refused" in found:
        text = found["refused"]
        if "\n" in text or len(text) > 1500 or not text.strip():
            return f"no sentence: {text[:300]!r}"
        if "MemoryError" in text or "Cannot allocate" in text:
            return f"too much memory: {text[:300]}"
        return ""
    if "value" not in found:
        return next(f"{how}: {what}" for how, what in found.items())
    if found["value"] == truth or any(re.match(pattern, case.name) for pattern in ON_PURPOSE):
        return ""
    return "believed"


def make_good(folder: Path) -> dict[str, Path]:
    """Write the good files of every kind, each in a folder of its own."""
    made: dict[Callable[[Path], None], Path] = {}
    for kind, good in GOOD.items():
        if good.make not in made:
            made[good.make] = folder / kind
            made[good.make].mkdir()
            good.make(made[good.make])
    return {kind: made[good.make] for kind, good in GOOD.items()}


def main(folder: Path, every: int = 1) -> None:
    """Run every ``every``-th case and print a JSON line for it, after one with their number."""
    torch.set_num_threads(1)  # threads do not outlive a fork: the child would wait for them
    good = make_good(folder)
    truth = {kind: outcome_of(GOOD[kind].read, path)["value"] for kind, path in good.items()}
    gc.freeze()
    _say(total=sum(1 for _ in cases(good)))
    for case in itertools.islice(cases(good), 0, None, every):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            place = Path(name) / "files"
            shutil.copytree(good[case.kind], place)
            case.write(place)
            begin = time.monotonic()
            found = outcome_of(GOOD[case.kind].read, place)
            wrong = verdict(case, found, truth[case.kind])
            seconds = round(time.monotonic() - begin, 3)
            _say(case=case.name, how=next(iter(found)), wrong=wrong, seconds=seconds)


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
