"""Options mean the same however they are typed: the whole key, its end, its last part, dashes.

Every command of README.md and docs/ is composed in each of these dialects; ``make soak`` runs them
all to the end as well, on small stand-ins of what a reader has on the disk.
"""

import json
import shlex
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import pytest

from model.mano.files import INTERHAND_REGRESSOR_FILE
from pipeline.app.cli import Command, compose, front_door, grid
from preprocess.mano.import_mano import PUBLISHED_MD5
from preprocess.sample.generate import write_sample
from tests.pipeline.pickles.pickle_words import mano_pickle
from tests.preprocess.builder.test_executor import dask_cluster
from tests.preprocess.sources.folder.dataset import write_folder
from tests.test_docs import PACKAGES, PAGES, fences, schema_of
from tests.train.state.test_checkpoint import TINY
from train.config import RunConfig

MORE: Final = """
preprocess build-cache dataset=freihand root=/data/FreiHAND_pub_v2 out=build/f.zarr \
    mano=/data/mano workers=1 executor.kind=local image.encoding=recode image.region=hands \
    image.quality=90 image.max_px=64 image.limit_side_px=4096
pipeline plan pipeline.store=/fast/freihand.zarr device_gib=1 pipeline.view.kind=frame \
    pipeline.cache.size_px=64 pipeline.window.boundary=repeat pipeline.input_px=32
pipeline bench pipeline.store=/fast/freihand.zarr seconds=0.01 pipeline.view.pad=1.4 \
    pipeline.cache.codec=rgb pipeline.cache.size_px=40 pipeline.input_px=32 pipeline.batch_size=8 \
    pipeline.augment.rotation_deg=10 pipeline.image_dtype=float32
train run pipeline.store=/fast/freihand.zarr mano=/data/mano run_dir=runs/more steps=2 \
    pipeline.view.kind=hand pipeline.augment.erase_probability=0.5 optim.lr=1e-4 \
    model.head=joints validation.split=evaluation validation.every=1
benchmarks store out=build/bench num=64 results=store.jsonl min_time_s=0.01 repeats=5
"""
"""Commands with keys that the pages do not show."""
NOT_HERE: Final = {
    "gpu": "needs a GPU",
}
"""Commands that cannot run to the end on every machine."""
NAMED: Final = ("stages.", "mix.", "pipeline.mix.")
"""Keys below a name of the user's own are typed whole."""


# --- dialects -------------------------------------------------------------------------------------


def whole(word: str) -> list[str]:
    return [word]


def below_the_group(word: str) -> list[str]:
    return [word.split(".", 1)[1] if "." in word.partition("=")[0] else word]


def last_part(word: str) -> list[str]:
    key, equals, value = word.partition("=")
    return [key.rpartition(".")[2] + equals + value]


def with_dashes(word: str) -> list[str]:
    key, _, value = word.partition("=")
    return [f"--{key.replace('_', '-')}", value]


DIALECTS: Final = (below_the_group, last_part, with_dashes)


def meaning(command: Command, words: list[str]) -> Any:
    schema = schema_of(command)
    if "--multirun" in words:
        rest = [word for word in words if word != "--multirun"]
        return [point.config for point in grid(schema, rest)]
    return compose(schema, words)


def typed(command: Command, words: list[str], dialect: Callable[[str], list[str]]) -> list[str]:
    """Return the words in a dialect; a key stays whole where its end may be any of several."""
    schema = schema_of(command)
    aliases = getattr(schema, "ALIASES", {})
    taken = {*aliases, *(field.name for field in fields(schema))}
    result = []
    for word in words:
        short = dialect(word) if "=" in word and not word.startswith(NAMED) else [word]
        full, key = word.partition("=")[0], short[0].partition("=")[0]
        if len(short) == 1 and key != full and aliases.get(key) != full:
            short = [word] if key in taken or is_ambiguous(command, key) else short
        result += short
    return result


@cache
def is_ambiguous(command: Command, key: str) -> bool:
    try:
        compose(schema_of(command), [f"{key}={{}}"])
    except ValueError as error:  # also that the rest of the command is missing
        return "write more of the key" in str(error)
    return False


def commands() -> Iterator[tuple[str, Command, list[str]]]:
    """Every command of the pages and of ``MORE``: package, command, options."""
    blocks = [b for page in PAGES for b in fences(page.read_text(encoding="utf-8"), "bash")]
    text = "\n".join(blocks).replace("\\\n", " ")
    lines = dict.fromkeys(line.partition("#")[0].strip() for line in text.splitlines())
    more = MORE.replace("\\\n", " ").strip().splitlines()
    for line in [*lines, *(f"python -m {line}" for line in more)]:
        words = shlex.split(line)
        if "-m" not in words or any(word in ("--help", "COMMAND") for word in words):
            continue
        package, name, *options = words[words.index("-m") + 1 :]
        (command,) = (command for command in PACKAGES[package] if command.name == name)
        yield package, command, options


COMMANDS: Final = list(commands())


@pytest.mark.parametrize("name", sorted({command.name for _, command, _ in COMMANDS}))
def test_every_dialect_means_the_same(name: str) -> None:
    mine = [(command, words) for _, command, words in COMMANDS if command.name == name]
    for i, (command, words) in enumerate(mine):
        seen, expected = [words], None
        for dialect in DIALECTS[: 2 if i else 3]:  # one with dashes
            if (short := typed(command, words, dialect)) not in seen:
                expected = expected or meaning(command, words)
                assert meaning(command, short) == expected, short
                seen.append(short)


def test_the_pages_have_keys_that_can_be_shorter() -> None:
    dotted = [word for _, _, words in COMMANDS for word in words if "." in word.partition("=")[0]]
    assert len(dotted) > 30
    assert len(COMMANDS) > 40


def test_every_command_of_the_pages_has_its_turn() -> None:
    assert {command.name for _, command, _ in COMMANDS} <= {*ORDER, *NOT_HERE}


# --- running --------------------------------------------------------------------------------------

ORDER: Final = (
    "make-sample", "import-mano", "check", "build-cache", "verify-cache", "show-cache", "plan",
    "bench", "run", "evaluate", "predict", "export", "doctor", "store", "losses", "picture",
    "readme",
)  # fmt: skip
"""What a command needs is made by those before it."""
SMALLER: Final = {
    "device": "cpu",
    "batch_size": "8",
    "stages.head.epochs": "0.3",
    "stages.all.steps": "1",
    "stages.all.epochs": "0.3",
    "model.hidden,": "16,24",
    "executor.address": "DASK",
}
"""Values in the place of those on the pages."""


def extra(name: str, words: list[str]) -> list[str]:
    """Options that make a command small, and its results mine."""
    text = " ".join(words)
    if name == "run" and "resume=" in text:
        return []
    if name == "run":
        recipes = [word[len("experiment=") :] for word in words if word.startswith("experiment=")]
        texts = [(RunConfig.EXPERIMENTS / f"{name}.yaml").read_text() for name in recipes]
        has_stages = "stages." in text or any("stages:" in text for text in texts)
        lengths = ["stages.head.epochs=0.3"] + (
            [] if "stages.all.steps=" in text else ["stages.all.epochs=0.3"]
        )
        return [*TINY, "validation.every=1", *(lengths if has_stages else ["steps=2"])]
    return {
        "build-cache": ["overwrite=true", "workers=1", "shard_rows=16", "on_bad_image=flag"],
        "bench": ["seconds=0.01", "pipeline.cache.size_px=40", "device=cpu"],
        "evaluate": ["device=cpu", "batch_size=8"],
        "predict": ["device=cpu"],
        "losses": ["results=losses.jsonl", "compiled=false", "min_time_s=0.01", "batches=[2]"],
        "picture": ["out=sample.jpg"],
        "readme": ["root=copy", "results=copy/benchmarks/results"],
    }.get(name, [])


def placed(words: list[str], disk: Path, address: str) -> list[str]:
    """Return options with the reader's paths below ``disk``, small, each once."""
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        many = "," if "," in value else ""
        value = SMALLER.get(f"{key}{many}", value) if equals else value
        if value.startswith(("/data/", "/fast/")):
            value = f"{disk}{value}"
        if value == "boxes.json" and "images=clip.mp4" in words:
            value = "frames.json"
        found.setdefault(key, f"{key}{equals}{value.replace('DASK', address)}")
    return list(found.values())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: downloads below data/, photos, boxes."""
    disk = tmp_path_factory.mktemp("reader")
    roots = {
        "freihand": "FreiHAND_pub_v2",
        "dexycb": "dexycb",
        "ho3d": "HO3D_v2",
        "arctic": "arctic_data/data",
        "interhand26m": "InterHand2.6M",
    }
    write_folder(disk / "data" / "my-photos", num=16)
    for dataset, root in roots.items():
        (disk / "data" / root).parent.mkdir(parents=True, exist_ok=True)
        write_sample(dataset, disk / "data" / root, 54 if dataset == "arctic" else 16, 3)
    freihand = disk / "data" / "FreiHAND_pub_v2"
    (disk / "data" / "FreiHAND_pub_v2_eval").symlink_to(freihand.name)
    (disk / "data" / "HO3D_v3").symlink_to("HO3D_v2")
    (disk / "Downloads").mkdir()
    with zipfile.ZipFile(disk / "Downloads" / "mano_v1_2.zip", "w") as archive:
        for name, side in zip(PUBLISHED_MD5, ("RIGHT", "LEFT"), strict=True):
            with np.load(freihand / "mano_shipped" / f"MANO_{side}.npz") as arrays:
                archive.writestr(f"mano_v1_2/models/{name}", mano_pickle(dict(arrays)))
    regressor = disk / "data" / "InterHand2.6M" / "mano" / INTERHAND_REGRESSOR_FILE
    (disk / "data" / "mano").mkdir()
    shutil.copy(regressor, disk / "data" / "mano")
    photos = sorted((freihand / "training" / "rgb").iterdir())[:3]
    (disk / "photos").mkdir()
    for photo in photos:
        shutil.copy(photo, disk / "photos")
    shutil.copytree(disk / "photos", disk / "data" / "new-photos")
    shutil.copy(photos[0], disk / "hand.jpg")
    hand = [{"box_xyxy": [60, 60, 160, 160], "side": "left"}]
    (disk / "boxes.json").write_text(json.dumps({photo.name: hand for photo in photos}))
    (disk / "frames.json").write_text(json.dumps({str(i): hand for i in range(0, 10, 5)}))
    clip = cv2.VideoWriter(str(disk / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (224, 224))
    pixels = cv2.imread(str(photos[0]))
    assert pixels is not None
    for _ in range(10):
        clip.write(pixels)
    clip.release()
    return disk


BEFORE: Final = (
    "preprocess build-cache dataset=interhand26m root=/data/InterHand2.6M out=/fast/interhand.zarr",
    "train run store=/fast/freihand.zarr run_dir=runs/freihand",
    "train run store=/fast/ho3d.zarr split=train_holdin run_dir=runs/ho3d",
)
"""Made before by a reader whom the pages do not show how."""


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.__name__)
def test_every_command_of_the_pages_runs_to_the_end(
    base: Path,
    tmp_path: Path,
    dialect: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    disk = tmp_path / "disk"
    shutil.copytree(base, disk, symlinks=True)
    root = Path(__file__).parent.parent
    for part in ("README.md", "docs", "benchmarks/results"):
        copy = disk / "copy" / part
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (root / part).is_dir() else shutil.copy)(root / part, copy)
    monkeypatch.chdir(disk)
    monkeypatch.setenv("HOME", str(disk))
    monkeypatch.setenv("HANDLOOM_MANO", str(disk / "data" / "mano"))
    before = []
    for line in BEFORE:
        package, name, *options = line.split()
        (command,) = (command for command in PACKAGES[package] if command.name == name)
        before.append((package, command, options))
    todo = sorted(
        [one for one in [*before, *COMMANDS] if one[1].name not in NOT_HERE],
        key=lambda one: ORDER.index(one[1].name),
    )
    failed = []
    with dask_cluster(1) as address:
        for package, command, options in todo:
            words = placed([*options, *extra(command.name, options)], disk, address)
            short = typed(command, words, dialect)
            code = front_door(f"python -m {package}", PACKAGES[package], [command.name, *short])
            said = capfd.readouterr()
            if code:
                failed.append(
                    f"{command.name} {' '.join(short)}: {code}\n{said.out[-500:]}{said.err}"
                )
    assert not failed, "\n".join(failed)
