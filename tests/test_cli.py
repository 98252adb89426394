"""The front door: good words become a config, bad words one sentence and exit code 2."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from omegaconf import MISSING

from model.plain import from_plain, to_plain
from pipeline.app import cli
from pipeline.app.cli import UsageError, compose, field_docs, front_door
from pipeline.config import MixPart, PlanConfig, ViewKind
from preprocess.__main__ import COMMANDS
from preprocess.config import BuildConfig
from train.__main__ import COMMANDS as TRAIN
from train.config import RunConfig

ROOT = Path(__file__).parent.parent


class Kind(Enum):
    small = "small"
    large = "large"


@dataclass(kw_only=True, slots=True)
class Inner:
    twice: int = 1
    size: int = 3
    """Size in pixels."""
    name: str = "x"

    def __post_init__(self) -> None:
        if self.size <= 0:
            raise ValueError(f"inner.size must be positive, got {self.size}")


@dataclass(kw_only=True, slots=True)
class Other:
    twice: int = 1
    once: int = 1


@dataclass(kw_only=True, slots=True)
class Schema:
    ALIASES: ClassVar[dict[str, str]] = {"size": "inner.size"}
    SPELLINGS: ClassVar[dict[str, str]] = {"inner.size=auto": "finds_size=true"}
    HABITS: ClassVar[dict[str, str]] = {"workers": "this has no workers"}

    root: str = MISSING
    """Folder of the data."""
    note: str | None = None
    share: float = 0.5
    kind: Kind = Kind.small
    inner: Inner = field(default_factory=Inner)
    finds_size: bool = False
    shares: dict[str, float] = field(default_factory=dict)
    other: Other = field(default_factory=Other)


def test_the_end_of_a_key_is_enough_on_every_command() -> None:
    assert compose(Schema, ["root=x", "once=2"]).other.once == 2
    words = ["store=a", "kind=frame", "window.length=3", "cache.reader=mmap", "lr=1e-4"]
    found = compose(RunConfig, [*words, "--every", "7"])
    assert found.pipeline.view.kind is ViewKind.frame
    assert found.pipeline.window.length == 3
    assert (found.optim.lr, found.validation.every) == (1e-4, 7)
    assert compose(PlanConfig, ["store=a", "rotation_deg=3"]).pipeline.augment.rotation_deg == 3
    assert compose(BuildConfig, ["dataset=a", "root=b", "out=c", "quality=7"]).image.quality == 7


def test_every_key_of_every_command_is_reached_by_its_shortest_end() -> None:
    """What the last parts of a key reach is that key, or a sentence."""
    for schema in (RunConfig, PlanConfig, BuildConfig):
        options = {option.key: option for option in cli._options(schema)}
        aliases = getattr(schema, "ALIASES", {})
        for key in options:
            if cli.PLACEHOLDER in key:
                continue
            parts = key.split(".")
            for i in range(len(parts)):
                end = ".".join(parts[i:])
                try:
                    full = cli._full_key(end, options, aliases)
                except UsageError as error:
                    full = key if key in str(error) else str(error)
                assert full == key or end in {*options, *aliases} or parts[i] in aliases


def test_a_typo_shows_at_most_five_keys() -> None:
    for word in ("zzz", "view.kid", "stages.x.step", "scal", "augment.scales", "a.b.c"):
        with pytest.raises(UsageError) as caught:
            compose(RunConfig, ["store=a", f"{word}=1"])
        assert str(caught.value).count(" or ") <= 4
        assert len(str(caught.value)) < 250
    with pytest.raises(UsageError, match=r"did you mean 'pipeline.augment.scale'"):
        compose(RunConfig, ["store=a", "augment.scales=1"])
    for habit, hint in RunConfig.HABITS.items():
        with pytest.raises(UsageError) as caught:
            compose(RunConfig, ["store=a", f"{habit}=1"])
        assert hint in str(caught.value)


def test_an_experiment_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "# @package _global_\ndefaults: [override /model: regressor]\nsteps: 7\n"
        "pipeline: {view: {pad: 2.5}}\noptim: {lr: 1.0e-3}\n"
    )
    found = compose(RunConfig, ["store=a", f"experiment={path}", "lr=2e-3"])
    assert (found.steps, found.pipeline.view.pad, found.optim.lr) == (7, 2.5, 2e-3)
    with pytest.raises(UsageError, match=r"experiment='.*none.yaml' is no file"):
        compose(RunConfig, ["store=a", f"experiment={tmp_path}/none.yaml"])


def test_variables_of_an_experiment_are_expanded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has what they stood for, and stays as it is wherever it is read."""
    monkeypatch.setenv("DATA", "/a/${b}")
    path = tmp_path / "mine.yaml"
    path.write_text("pipeline: {store: '${oc.env:DATA}/s.zarr'}\n")
    found = compose(RunConfig, [f"experiment={path}"])
    assert found.pipeline.store == "/a/${b}/s.zarr"
    monkeypatch.delenv("DATA")
    assert from_plain(RunConfig, to_plain(found)) == found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"stepps: 7\n", "stepps"),
        (b"optim:\n  lr: [1\n", "is no YAML: while parsing a flow sequence .* line 2"),
        (b"steps: \xff\n", "is no YAML"),
        (b"- steps\n", "must hold keys and values"),
        (b"just words\n", "just words: .*mine.yaml.*"),
        (b"steps: " + 5000 * b"[" + b"\n", "is no YAML"),
        (b"!!python/object:os.system {}\n", "is no YAML"),
        (b"steps: seven\n", "steps: .*mine.yaml.* 'seven' .* could not be converted to Integer"),
        (b"optim: {lr: '${nothing}'}\n", "Interpolation key 'nothing' not found"),
        (b"defaults: 7\n", "defaults must be a list, got 7"),
        (b"defaults: [override /model: nothing]\n", "nothing"),
        (b"optim: 3\n", "mine.yaml.* ValidationError"),
    ],
)
def test_a_broken_experiment_is_one_sentence(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=expected):
        compose(RunConfig, ["store=a", f"experiment={path}"])


def test_the_configuration_is_printed_and_nothing_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "store=/a${b}", "experiment=overfit", "--cfg", "job", "lr=3e-3"]
    assert front_door("python -m train", TRAIN, words) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["optim"]["lr"] == 3e-3
    assert shown["pipeline"]["store"] == "/a${b}"
    assert shown["pipeline"]["view"]["kind"] == "hand"
    assert front_door("python -m train", TRAIN, ["--version"]) == 0
    assert capsys.readouterr().out.startswith("Handloom ")
    assert front_door("python -m train", TRAIN, ["run", "--cfg", "hydra"]) == 2
    assert "--cfg job" in capsys.readouterr().err


@pytest.mark.parametrize("store", ["/a/${b}", "/a/\\${b}", "${", "a\\\\${b}", "${oc.env:HOME}"])
def test_text_stays_as_typed_through_manifest_and_resume(store: str) -> None:
    config = compose(RunConfig, [f"store={store}", f"run_dir={store}"])
    assert config.pipeline.store == config.run_dir == store
    assert from_plain(RunConfig, json.loads(json.dumps(to_plain(config)))) == config


def test_a_word_that_is_not_of_the_type_stands_for_another_option() -> None:
    for word in ("size=auto", "inner.size=auto", "--size=auto"):
        found = compose(Schema, ["root=x", word])
        assert (found.finds_size, found.inner.size) == (True, 3)
    with pytest.raises(UsageError, match="could not be converted to Integer"):
        compose(Schema, ["root=x", "size=automatic"])


def test_a_table_takes_names_of_the_users_own() -> None:
    found = compose(Schema, ["root=x", "shares={a: 0.5, b.c: 1}"])
    assert found.shares == {"a": 0.5, "b.c": 1.0}
    with pytest.raises(UsageError, match=r"shares.a: .* could not be converted to Float"):
        compose(Schema, ["root=x", "shares={a: many}"])


@pytest.mark.parametrize(
    "path",
    [
        "/data/a=b",
        "/data/with space",
        "/data/quo'te",
        '/data/dou"ble',
        "a,b",
        "[x]",
        "{y}",
        "${z}",
        "tail\\",
        "back\\'slash",
        "C:\\x",
        "null",
        "",
        "#1",
        "ü",
    ],
)
def test_text_arrives_as_typed(path: str) -> None:
    assert compose(Schema, [f"root={path}"]).root == path


def test_home_is_expanded_in_front_only() -> None:
    assert compose(Schema, ["root=~/data"]).root == str(Path.home() / "data")
    assert compose(Schema, ["root=/data/~x"]).root == "/data/~x"


def test_values_reach_their_types() -> None:
    config = compose(
        Schema, ["root=r", "share=0.25", "kind=large", "inner.size=7", "note=null", "inner.name=7"]
    )
    assert config.share == 0.25
    assert config.kind is Kind.large
    assert config.inner == Inner(size=7, name="7")
    assert config.note is None


def test_gnu_spelling_is_understood() -> None:
    config = compose(Schema, ["--root", "/a=b", "--inner.size=4", "--kind", "large"])
    assert (config.root, config.inner.size, config.kind) == ("/a=b", 4, Kind.large)


def test_short_spelling_sets_the_nested_key() -> None:
    assert compose(Schema, ["root=r", "size=9"]).inner.size == 9


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "needs root=... (Folder of the data.)"),
        (["rot=x"], "did you mean 'root'"),
        (["root=x", "+share=1"], "write share=..."),
        (["root=x", "+shar=1"], "did you mean 'share'"),
        (["root=x", "~share"], "not key=value"),
        (["root=x", "inner.sixe=1"], "unknown option 'inner.sixe'; did you mean 'size'?"),
        (["root=x", "zzz=1"], "unknown option 'zzz'; --help lists the options"),
        (["root=x", "twice=1"], "'twice' may be any of inner.twice, other.twice: write more"),
        (["root=x", "workers=1"], "unknown option 'workers'; this has no workers"),
        (["root=x", "kind=middle"], "kind must be one of small, large, got 'middle'"),
        (["root=x", "kind=tiny_small"], "got 'tiny_small'; did you mean 'small'"),
        (["root=x", "share=abc"], "share: "),
        (["root=x", "inner.size=1.5"], "inner.size: "),
        (["root=x", "inner=null"], "unknown option 'inner'; it is a group of options: inner.twice"),
        (["root=x", "size=[1,"], "inner.size='[1,' cannot be read: a list is [1,2]"),
        (["root=x", "size={"], "inner.size='{' cannot be read"),
        (["root=x", "size=1,2"], "Ambiguous value for argument 'inner.size=1,2'"),
        (["--rot", "x"], "did you mean 'root'"),
        (["--root"], "not key=value"),
    ],
)
def test_bad_words_are_one_sentence(words: list[str], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        compose(Schema, words)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_schemas_own_check_speaks() -> None:
    with pytest.raises(ValueError, match=r"inner.size must be positive, got -1"):
        compose(Schema, ["root=r", "inner.size=-1"])


def test_entries_of_a_dict_come_to_be_by_their_keys() -> None:
    words = ["store=a", "device_gib=3", "mix.fh.store=~/x y=z", "mix.fh.weight=2"]
    more = ["pipeline.mix.ih.subset=0.5", "--mix.ih.store", "q", "mix.ih.split=val"]
    mix = compose(PlanConfig, [*words, *more]).pipeline.mix
    assert mix == {
        "fh": MixPart(store=str(Path.home() / "x y=z"), weight=2.0),
        "ih": MixPart(store="q", split="val", subset=0.5),
    }
    assert list(mix) == ["fh", "ih"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("mix.fh.weight=2", r"needs mix\.fh\.store=\.\.\. \(Store directory"),
        ("mix.fh.weights=2", r"unknown option 'mix.fh.weights'; did you mean '.*mix.NAME.weight'"),
        ("mix.fh=2", r"unknown option 'mix.fh'; choose from: mix.NAME.store, mix.NAME.split"),
        ("mix=2", "unknown option 'mix'; it is a group of options: mix.NAME.store"),
        ("mix.fh.store.x=2", "unknown option 'mix.fh.store.x'"),
        ("mix.fh.subset=2", r"subset must lie in \(0, 1\], got 2"),
    ],
)
def test_bad_entries_of_a_dict_are_named(word: str, expected: str) -> None:
    words = ["store=a", "device_gib=3", word]
    words += ["mix.fh.store=b"] if "subset" in word else []
    with pytest.raises(ValueError, match=expected):
        compose(PlanConfig, words)


def test_field_docs_come_from_the_source() -> None:
    assert field_docs(Inner) == {"size": "Size in pixels."}


def test_unknown_command_answers_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door("python -m preprocess", COMMANDS, ["bild-cache"]) == 2
    assert "did you mean 'build-cache'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [c.name for c in COMMANDS])
def test_help_teaches_every_key(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front_door("python -m preprocess", COMMANDS, [command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "keys:" in text
    for line, below in zip(text.splitlines(), text.splitlines()[1:], strict=False):
        if line.startswith("  ") and "=" in line and not line.startswith("      "):
            assert below.startswith("      "), f"{line!r} has no explanation"


def test_a_foreign_train_py_does_not_disturb_preprocess(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('foreign train.py ran')\n")
    done = _run(tmp_path, "-m", "preprocess", "build-cache", "root=x")
    assert done.returncode == 2
    assert "hides Handloom's own package 'train'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_console_script_works_beside_a_foreign_train_py(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('foreign train.py ran')\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("raise SystemExit('foreign model ran')\n")
    script = Path(sys.executable).parent / "handloom-train"
    if not script.exists():
        pytest.skip("the project is not installed in this environment")
    done = subprocess.run(
        [script, "run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "needs store=..." in done.stderr


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- config groups: the class of a field chosen by name -------------------------------------------


@dataclass(kw_only=True)
class Shape:
    family: str = "???"


@dataclass(kw_only=True)
class Round(Shape):
    """A circle."""

    family: str = "round"
    radius: float = 1.0
    """Metres."""


@dataclass(kw_only=True)
class Square(Shape):
    """A square."""

    family: str = "square"
    side: float = 2.0
    """Metres."""


@dataclass(kw_only=True)
class Grouped:
    GROUPS: ClassVar[dict[str, Any]] = {
        "shape": lambda: dict[str, type[Shape]](round=Round, square=Square)
    }
    EXPERIMENTS: ClassVar[Path]
    shape: Shape = field(default_factory=Round)
    colour: str = "red"
    """Its colour."""


@pytest.fixture
def grouped(tmp_path: Path) -> type[Grouped]:
    folder = tmp_path / "experiment"
    folder.mkdir()
    head = "# @package _global_\n"
    text = f"{head}defaults:\n  - override /shape: square\ncolour: blue\nshape: {{side: 5}}\n"
    (folder / "big.yaml").write_text(text)
    (folder / "wrong.yaml").write_text(f"{head}shape: {{family: square}}\n")
    Grouped.EXPERIMENTS = folder
    return Grouped


def test_a_group_is_chosen_by_word_experiment_or_default(grouped: type[Grouped]) -> None:
    assert compose(grouped, []).shape == Round()
    assert compose(grouped, ["shape.radius=3"]).shape == Round(radius=3)
    assert compose(grouped, ["shape=square", "shape.side=3"]).shape == Square(side=3)
    assert compose(grouped, ["experiment=big"]) == grouped(shape=Square(side=5), colour="blue")
    assert compose(grouped, ["experiment=big", "shape.side=6"]).shape == Square(side=6)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shape=rond"], "shape='rond' is not known; did you mean 'round'?"),
        (["shape=square", "shape.radius=3"], "unknown option 'shape.radius'"),
        (["shape.family=square"], "shape.family is chosen with shape=NAME"),
        (["experiment=wrong"], r"choose with shape=NAME, in an experiment with defaults: \["),
    ],
)
def test_a_wrong_group_is_one_sentence(
    grouped: type[Grouped], words: list[str], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        compose(grouped, words)
