import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.config import ManoBenchConfig
from benchmarks.mano import (
    OURS,
    SMPLX,
    Hands,
    check_same,
    draw_hands,
    forward_backward,
    main,
    models_of,
)
from model.mano.files import MANO_ENV, MANO_FILES, load_mano
from tests.model.conftest import random_mano


def test_the_benchmark_runs_and_keeps_a_row_of_every_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, arrays in zip(MANO_FILES, random_mano(0), strict=True):
        np.savez(tmp_path / name, allow_pickle=False, **arrays)
    results = tmp_path / "mano.jsonl"
    config = ManoBenchConfig(
        num=4,
        mano=str(tmp_path),
        compiled=False,
        results=str(results),
        min_time_s=0.05,
        repeats=5,
    )
    assert main(config) in {0, 1}
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["metric"], row["variant"]) for row in rows] == [
        ("right hands, eager", OURS),
        ("right hands, eager", SMPLX),
        ("both sides, eager", OURS),
        ("both sides, eager", SMPLX),
    ]
    assert all(0 < row["p20"] <= row["p50"] <= row["p80"] for row in rows)
    assert {row["params"]["hands"] for row in rows} == {4}
    assert {row["params"]["model"] for row in rows} == {load_mano(tmp_path).sha256[:12]}
    assert "of smplx's rate" in capsys.readouterr().out


def test_without_mano_the_stand_in_is_measured_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MANO_ENV, raising=False)
    _, name = models_of(ManoBenchConfig())
    assert name == "stand-in"


def test_layers_that_disagree_are_not_compared() -> None:
    hands = draw_hands(3, 0, right_only=False, device=torch.device("cpu"))

    def still(theta: Tensor, beta: Tensor, transl: Tensor, is_right: Tensor) -> tuple[Tensor, ...]:
        return transl, beta

    def moved(theta: Tensor, beta: Tensor, transl: Tensor, is_right: Tensor) -> tuple[Tensor, ...]:
        return transl + 1e-4, beta

    check_same({OURS: still, SMPLX: still}, hands)
    with pytest.raises(RuntimeError, match=r"differ by 0\.0001"):
        check_same({OURS: still, SMPLX: moved}, hands)


def test_hands_are_drawn_from_the_seed_and_every_input_gets_a_gradient() -> None:
    device = torch.device("cpu")
    hands: Hands = draw_hands(4, 0, right_only=False, device=device)
    again = draw_hands(4, 0, right_only=False, device=device)
    other = draw_hands(4, 1, right_only=True, device=device)
    assert all(torch.equal(a, b) for a, b in zip(hands, again, strict=True))
    assert not torch.equal(hands[0], other[0])
    assert hands[3].tolist() == [True, False, True, False]
    assert other[3].all()

    def decode(theta: Tensor, beta: Tensor, transl: Tensor, is_right: Tensor) -> tuple[Tensor, ...]:
        return theta.sum() + transl, beta

    gradients = forward_backward(decode)(*hands)
    assert isinstance(gradients, tuple)
    assert [g.shape for g in gradients] == [h.shape for h in hands[:3]]


def test_a_single_hand_is_refused() -> None:
    with pytest.raises(ValueError, match="num must be at least 2, got 1"):
        ManoBenchConfig(num=1)
