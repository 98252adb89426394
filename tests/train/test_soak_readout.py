"""The readouts of the regressor at the size of the quickstart, three seeds each: ``make soak``.

Rows go to benchmarks/results/soak.jsonl. The control is the transformer without positions: its
tokens know neither their place in the image nor the ray of their camera.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.harness import Measurement, append_rows, record
from model.parts.token_readout import TokenReadout
from pipeline.app.cli import compose
from preprocess.builder.build import build
from preprocess.config import BuildConfig
from preprocess.sample.generate import write_sample
from tests.conftest import SampleStore, scores_file
from tests.train.test_soak import RESULTS
from train.config import EvaluateConfig, RunConfig
from train.evaluate.evaluate import main as evaluate
from train.run import main as run

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
TRANSFORMER = ["readout=transformer", "model.readout_width=256", "model.readout_layers=4"]
READOUTS = {
    "pooled": ["readout=pooled"],
    "grid": ["readout=grid"],
    "transformer": [*TRANSFORMER, "optim.shares={readout: 0.25}"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    """The quickstart's data."""
    folder = tmp_path_factory.mktemp("readout")
    root, store = folder / "freihand", folder / "freihand.zarr"
    summary = write_sample("freihand", root, 1800, 1, num_eval=300)
    build(BuildConfig(dataset="freihand", root=str(root), out=str(store), mano=str(summary.mano)))
    return SampleStore(root=root, mano=summary.mano, store=store)


def score(data: SampleStore, words: list[str], run_dir: Path) -> float:
    """Train as the quickstart does; return PA-MPJPE on the evaluation split, mm."""
    words = [*words, f"store={data.store}", f"mano={data.mano}", f"run_dir={run_dir}"]
    assert run(compose(RunConfig, ["experiment=quickstart", *words])) == 0
    scored = EvaluateConfig(run=str(run_dir), store=str(data.store), mano=str(data.mano))
    assert evaluate(scored) == 0
    return float(json.loads(scores_file(run_dir).read_text())["model"]["pa_mpjpe_mm"])


def keep(variant: str, scores: list[float]) -> None:
    """Keep a row: the lowest, the middle and the highest of the seeds."""
    low, middle, high = sorted(scores)
    value = Measurement(p20=low, p50=middle, p80=high, n=len(scores))
    params = {"seeds": list(SEEDS), "pa_mpjpe_mm": scores}
    append_rows(RESULTS, [record("soak", variant, "PA-MPJPE", "mm", value, params=params)])


def test_every_readout_beats_the_mean_and_the_best_is_said(
    data: SampleStore, tmp_path: Path
) -> None:
    found = {}
    for name, words in READOUTS.items():
        runs = [score(data, [*words, f"seed={s}"], tmp_path / f"{name}-{s}") for s in SEEDS]
        keep(f"experiment=quickstart, readout {name}", runs)
        found[name] = float(np.median(runs))
    assert found["transformer"] < found["pooled"], found


def test_without_positions_the_transformer_loses(
    data: SampleStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = READOUTS["transformer"]
    whole = [score(data, [*words, f"seed={s}"], tmp_path / f"whole-{s}") for s in SEEDS]

    def nowhere(
        self: TokenReadout, center: Float[Tensor, "t 2"], K: Float[Tensor, "b 3 3"]
    ) -> Float[Tensor, "b t e"]:
        return torch.zeros(K.shape[0], len(center), self.ray.out_features, device=K.device)

    monkeypatch.setattr(TokenReadout, "_places", nowhere)
    blind = [score(data, [*words, f"seed={s}"], tmp_path / f"blind-{s}") for s in SEEDS]
    keep("experiment=quickstart, readout transformer without positions", blind)
    assert np.median(blind) > np.median(whole), (whole, blind)
