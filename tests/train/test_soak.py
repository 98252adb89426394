"""The long proof that training learns: ``make soak``. Rows go to benchmarks/results/soak.jsonl.

A 20-minute training on 2 CPU cores halves the error of the mean pose on held-out sample images; the
negative control, the same training with the hands' labels shuffled over the images, learns nothing.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import zarr

from benchmarks.harness import Measurement, append_rows, record
from pipeline.app.cli import compose
from pipeline.store.reader import open_store
from preprocess.builder.build import build
from preprocess.config import BuildConfig
from preprocess.sample.generate import write_sample
from tests.conftest import SampleStore, scores_file
from tests.pipeline.stores import relist
from train.config import EvaluateConfig, RunConfig
from train.evaluate.evaluate import main as evaluate
from train.run import main as run

pytestmark = pytest.mark.slow
RESULTS = Path(__file__).parent.parent.parent / "benchmarks" / "results" / "soak.jsonl"
NUM_POSES = 4000
SHUFFLED = ("joints_3d", "joint_valid", "theta", "beta", "transl", "root_rest")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SampleStore:
    folder = tmp_path_factory.mktemp("soak")
    root, store = folder / "freihand", folder / "freihand.zarr"
    summary = write_sample("freihand", root, NUM_POSES, 2, num_eval=400)
    build(BuildConfig(dataset="freihand", root=str(root), out=str(store), mano=str(summary.mano)))
    return SampleStore(root=root, mano=summary.mano, store=store)


def shuffled(store: Path, split: str = "train", names: Sequence[str] = SHUFFLED) -> Path:
    """Copy the store with the labels of a split dealt anew over its images."""
    copy = store.with_name("shuffled.zarr")
    shutil.copytree(store, copy)
    rows = np.sort(open_store(store).split(split))
    dealt = np.random.default_rng(0).permutation(rows)
    for name in names:
        array = zarr.open_array(copy / "labels" / name, mode="r+")
        values = np.asarray(array[...])
        values[rows] = values[dealt]
        array[...] = values
    relist(copy)
    return copy


def pa_mpjpe_ratio(data: SampleStore, store: Path, run_dir: Path, variant: str) -> float:
    """Train, score on the untouched evaluation split, keep a row; return model over mean pose."""
    begin = time.perf_counter()
    words = ["experiment=soak", f"store={store}", f"mano={data.mano}", f"run_dir={run_dir}"]
    words += [f"seed={os.environ['SOAK_SEED']}"] if "SOAK_SEED" in os.environ else []
    settings = compose(RunConfig, words)
    assert isinstance(settings, RunConfig)
    assert run(settings) == 0
    minutes = (time.perf_counter() - begin) / 60
    scored = EvaluateConfig(run=str(run_dir), store=str(data.store), mano=str(data.mano))
    assert evaluate(scored) == 0
    scores = json.loads(scores_file(run_dir).read_text())
    model, mean = scores["model"]["pa_mpjpe_mm"], scores["mean_pose"]["pa_mpjpe_mm"]
    params = {
        "minutes": round(minutes, 1),
        "seed": settings.pipeline.seed,
        "steps": settings.steps,
        "poses": NUM_POSES,
        "pa_mpjpe_mm": model,
        "mean_pose_pa_mpjpe_mm": mean,
    }
    ratio = float(model / mean)
    value = Measurement(p20=ratio, p50=ratio, p80=ratio, n=1)
    row = record("soak", variant, "PA-MPJPE over the mean pose's", "ratio", value, params=params)
    append_rows(RESULTS, [row])
    return ratio


def test_training_halves_the_error_of_the_mean_pose(data: SampleStore, tmp_path: Path) -> None:
    assert pa_mpjpe_ratio(data, data.store, tmp_path / "run", "experiment=soak") <= 0.5


def test_shuffled_labels_teach_nothing(data: SampleStore, tmp_path: Path) -> None:
    store = shuffled(data.store)
    assert pa_mpjpe_ratio(data, store, tmp_path / "run", "experiment=soak, shuffled labels") >= 0.95
