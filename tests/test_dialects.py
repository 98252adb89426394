"""Options run as they may be typed: the whole key, the key below its group, its last part."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS as BENCHMARKS
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.app.cli import Command, UsageError, compose, front_door
from preprocess.__main__ import COMMANDS as PREPROCESS
from tests.conftest import SampleStore
from tests.test_docs import schema_of
from tests.train.state.test_checkpoint import TINY
from train.__main__ import COMMANDS as TRAIN

COMMANDS = {
    "preprocess": PREPROCESS,
    "pipeline": PIPELINE,
    "train": TRAIN,
    "benchmarks": BENCHMARKS,
}
LINES = {
    "build-cache": (
        "preprocess build-cache dataset=freihand root={root} out={out}.zarr mano={mano} workers=1 "
        "executor.kind=local image.encoding=recode image.region=hands image.quality=90 "
        "image.max_px=64 image.limit_side_px=4096"
    ),
    "show-cache": "preprocess show-cache store={store} out={out}.png num=2",
    "plan": (
        "pipeline plan pipeline.store={store} device_gib=1 pipeline.view.kind=frame "
        "pipeline.cache.size_px=64 pipeline.window.boundary=clamp pipeline.input_px=32"
    ),
    "bench": (
        "pipeline bench pipeline.store={store} seconds=0.01 pipeline.view.pad=1.4 "
        "pipeline.cache.codec=rgb pipeline.cache.size_px=40 pipeline.input_px=32 "
        "pipeline.batch_size=8 pipeline.augment.rotation_deg=10 pipeline.image_dtype=float32"
    ),
    "run": (
        "train run pipeline.store={store} mano={mano} run_dir={out} steps=2 pipeline.view.kind=hand "
        "pipeline.augment.erase_probability=0.5 optim.lr=1e-4 model.head=joints "
        "validation.split=evaluation validation.every=1 " + " ".join(TINY)
    ),
    "benchmarks store": (
        "benchmarks store out={out} num=64 results={out}.jsonl min_time_s=0.01 repeats=3"
    ),
}


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


def typed(line: str, dialect: Callable[[str], list[str]], schema: type) -> list[str]:
    """Return the words of a line in a dialect; a key that is ambiguous in it stays whole."""
    words = []
    for word in line.split():
        short = dialect(word)
        try:
            compose(schema, short)
        except UsageError as error:
            if "write more of the key" in str(error) or "unknown option" in str(error):
                short = [word]
        except ValueError:
            pass  # the rest of the command is missing
        words += short
    return words


def command_of(line: str) -> tuple[str, Command, str]:
    package, name, options = line.split(" ", 2)
    (command,) = (command for command in COMMANDS[package] if command.name == name)
    return package, command, options


@pytest.mark.parametrize("name", LINES)
def test_a_command_runs_as_it_is_typed(
    freihand: SampleStore, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    package, command, options = command_of(LINES[name])
    schema = schema_of(command)
    seen = []
    for number, dialect in enumerate((whole, below_the_group, last_part, with_dashes)):
        places = {"root": freihand.root, "store": freihand.store, "mano": freihand.mano}
        words = typed(options.format(**places, out=tmp_path / str(number)), dialect, schema)
        assert front_door(f"python -m {package}", COMMANDS[package], [command.name, *words]) == 0, (
            capsys.readouterr().err
        )
        seen.append(words)
    dotted = any("." in word.partition("=")[0] for word in seen[0])
    assert len({tuple(map(keys, words)) for words in map(tuple, seen)}) == (4 if dotted else 2)
