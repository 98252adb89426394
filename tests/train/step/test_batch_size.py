"""batch_size=auto: the largest that fits, on a CPU whose memory is said to be small."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from model.families import build_network
from model.mano.files import load_mano
from model.network import Network
from model.plain import to_plain
from model.regressor.config import Head, RegressorConfig
from pipeline import memory
from pipeline.app.cli import compose, front_door
from tests.conftest import SampleStore
from tests.train.state.test_checkpoint import TINY, config, resumed
from train.__main__ import COMMANDS
from train.config import RunConfig
from train.device.distributed import ALONE, Ranks
from train.run import main as run
from train.state.checkpoint import read_checkpoint
from train.step import batch_size as module
from train.step.batch_size import SHARE, Found, largest_fitting, resolve_batch_size
from train.step.live_bytes import LiveBytes
from train.step.peak import peak_of

AUTO = ["batch_size=auto", "model.backbone=test_vit"]


def limited(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: int(num_bytes))


def built(settings: RunConfig, data: SampleStore) -> Network:
    torch.manual_seed(0)
    return build_network(settings.model, input_px=32, mano=load_mano(data.mano))


def peak_bytes(settings: RunConfig, data: SampleStore, size: int) -> int:
    import dataclasses

    pipeline = dataclasses.replace(settings.pipeline, batch_size=size)
    tried = dataclasses.replace(settings, pipeline=pipeline)
    return peak_of(built(settings, data), tried).bytes


# --- the search -----------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", [1, 8])
@pytest.mark.parametrize("limit", [110, 119, 700, 701, 5000, 10**6])
@pytest.mark.parametrize("shape", ["line", "steps", "bent"])
def test_the_search_finds_the_largest(unit: int, limit: int, shape: str) -> None:
    """Against trying every size; beyond the limit it is never by more than what was foreseen."""

    def peak(size: int) -> int | None:
        tried.append(size)
        taken = {"line": 100 + 2 * size, "steps": 100 + 64 * (size // 24), "bent": 100 + size**2}
        return taken[shape] if taken[shape] < 20_000 else None

    tried: list[int] = []
    sizes = [size for size in range(unit, 2001, unit) if (peak(size) or 10**9) <= limit]
    tried.clear()
    found = largest_fitting(peak, limit=limit, unit=unit, most=2000)
    assert found == (Found(size=sizes[-1], bytes=peak(sizes[-1]) or 0) if sizes else None)
    assert len(tried) <= 30
    if shape == "line" and found is not None:
        assert len(tried) <= 6
        assert max(tried) <= found.size + 2 * unit


# --- memory on a CPU ------------------------------------------------------------------------------


def test_live_bytes_count_what_is_held() -> None:
    with LiveBytes() as live:
        one = torch.zeros(1000)
        for _ in range(10):
            two = one + 1
            two.add_(1)
            view = two[:10]
        del view
        three = torch.cat((one, two))
    # one, two and, for a moment, the next two; then the result of twice the size
    assert live.peak == 4 * (1000 + 1000 + 2000)
    assert len(three) == 2000


def test_activations_are_seen_until_the_backward_pass_has_used_them() -> None:
    net = torch.nn.Sequential(*[torch.nn.Linear(64, 64, bias=False) for _ in range(8)])
    peaks = []
    for size in (100, 200):
        with LiveBytes() as live:
            net(torch.zeros(size, 64)).sum().backward()
        peaks.append(live.peak)
    assert 8 * 100 * 64 * 4 <= peaks[1] - peaks[0] <= 12 * 100 * 64 * 4


# --- runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [8, 24, 40])
def test_the_largest_that_fits_is_taken(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: int
) -> None:
    settings = config(freihand, tmp_path, *AUTO)
    needed, more = (peak_bytes(settings, freihand, size) for size in (expected, expected + 8))
    assert needed < more
    model = built(settings, freihand)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    for limit in (needed, more - 3):
        limited(monkeypatch, limit / SHARE + 2)
        found, line = resolve_batch_size(settings, model, ALONE)
        assert found.pipeline.batch_size == expected
        assert line.startswith(f"batch_size=auto: {expected}, whose step takes ")
        assert "90% of what is free on cpu" in line
    assert settings.pipeline.batch_size == 8  # TINY's, which auto replaces
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_the_store_and_the_ranks_bound_it(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(freihand, tmp_path, *AUTO)
    model = built(settings, freihand)
    limited(monkeypatch, 2**40)
    assert resolve_batch_size(settings, model, ALONE)[0].pipeline.batch_size == 64
    # Of four ranks each has found what fits into it; the smallest counts, and is theirs together.
    needed = peak_bytes(settings, freihand, 16)
    limited(monkeypatch, needed / SHARE + 2)
    of_ranks = [Found(size=size, bytes=1) for size in (16, 8, 16, 16)]
    monkeypatch.setattr(module, "all_gather", lambda *_: of_ranks)
    found, line = resolve_batch_size(settings, model, Ranks(world=4))
    assert found.pipeline.batch_size == 32
    assert "batch_size=auto: 32" in line
    of_ranks[1:2] = [None]  # type: ignore[list-item]
    with pytest.raises(ValueError, match="the step of 32 samples does not fit into"):
        resolve_batch_size(settings, model, Ranks(world=4))


def test_frozen_stages_leave_room_for_more(
    freihand: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each stage is rehearsed as it is: without a backward pass through what is frozen."""
    stages = ["stages.a.steps=1", "stages.a.freeze=[backbone]"]
    whole, frozen = (config(freihand, tmp_path, *AUTO, *words) for words in ([], stages))
    assert peak_bytes(frozen, freihand, 32) < 0.8 * peak_bytes(whole, freihand, 32)
    thawed = config(freihand, tmp_path, *AUTO, *stages, "stages.b.steps=1")
    both, alone = (peak_bytes(settings, freihand, 32) for settings in (thawed, whole))
    assert both == pytest.approx(alone, rel=0.02)


def test_a_run_keeps_the_number_that_it_found(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir, words = tmp_path / "run", [*AUTO, "pipeline.cache.codec=auto"]
    settings = config(freihand, run_dir, *words, "steps=1")
    limited(monkeypatch, peak_bytes(settings, freihand, 24) / SHARE + 2)
    assert run(settings) == 0
    assert "batch_size=auto: 24, whose step takes" in capsys.readouterr().out
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["config"]["pipeline"]["batch_size"] == 24
    kept = json.loads(read_checkpoint(run_dir, say=pytest.fail)["config"])
    assert (kept["pipeline"]["batch_size"], kept["auto_batch_size"]) == (24, True)

    limited(monkeypatch, 2**40)  # another machine: the run stays what it is
    assert run(config(freihand, run_dir, *words, "steps=2")) == 0
    assert run(resumed(run_dir, f"mano={freihand.mano}", "steps=3")) == 0
    assert run(resumed(run_dir, f"mano={freihand.mano}", "steps=4", "batch_size=auto")) == 0
    payload = read_checkpoint(run_dir, say=pytest.fail)
    assert payload["step"] == 4
    assert payload["loader"]["batch_size"] == 24
    assert "batch_size=auto: 24" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"another configuration .*auto_batch_size: True -> False"):
        run(config(freihand, run_dir, "model.backbone=test_vit", "steps=5"))


def test_where_nothing_fits_it_says_so_before_the_store_is_read(
    freihand: SampleStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def opened(*_: Any, **__: Any) -> None:
        pytest.fail("the cache was filled first")

    monkeypatch.setattr("train.run.Loader", opened)
    limited(monkeypatch, 10_000)
    words = [f"store={freihand.store}", f"mano={freihand.mano}", f"run_dir={tmp_path}"]
    assert front_door("python -m train", COMMANDS, ["run", *words, *TINY, *AUTO]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "batch_size=auto: the step of 8 samples does not fit into 0.00 GiB, 90% of what" in line
    assert "raise accumulate or model.checkpoint_activations" in line


def test_old_runs_without_the_new_keys_go_on(freihand: SampleStore, tmp_path: Path) -> None:
    """Their configurations know neither debug nor auto_batch_size, and say true and false."""
    with pytest.MonkeyPatch.context() as patch:

        def as_before(settings: RunConfig) -> dict[str, Any]:
            found = to_plain(settings)
            for key in ("debug", "auto_batch_size"):
                del found[key]
            del found["optim"]["shares"]
            for stage in found["stages"].values():
                del stage["ramp"], stage["train"]
            found["model"]["checkpoint_activations"] = False
            return found

        patch.setattr("train.run.to_plain", as_before)
        words = ["stages.a.steps=2", "stages.b.steps=2", "stages.b.freeze=[backbone]"]
        run_dir = tmp_path / "run"
        assert run(config(freihand, run_dir, *words)) == 0
    assert run(config(freihand, run_dir, *words)) == 0
    assert run(resumed(run_dir, f"mano={freihand.mano}")) == 0


def test_a_model_that_is_read_alone_takes_the_old_words() -> None:
    for word, share in (("true", 1.0), ("false", 0.0), ("0.5", 0.5), ("1", 1.0)):
        words = ["store=x", f"model.checkpoint_activations={word}"]
        assert compose(RunConfig, words).model.checkpoint_activations == share
    assert (
        RegressorConfig(head=Head.joints, checkpoint_activations=True).checkpoint_activations == 1.0
    )
    with pytest.raises(ValueError, match=r"checkpoint_activations must lie in \[0, 1\], got 1.5"):
        RegressorConfig(checkpoint_activations=1.5)
