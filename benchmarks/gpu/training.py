"""Training sections of the GPU suite: the real loop, its upper bound, and a DataLoader baseline."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.gpu.suite import Suite

RECIPES: Final = {
    "freihand_resnet50": ("freihand", "train"),
    "freihand_vits": ("freihand", "train"),
    "arctic_baseline": ("arctic", "p1_train"),
}
"""Dataset and split of each experiment config."""
KINDS: Final = {
    "loop": (),
    "probe": ("probe=true",),
    "graph": ("graph=true", "compile=false"),
}
"""Options of the kinds of run: the real loop, one cached batch again and again, a CUDA graph."""
SAMPLE_IMAGES: Final = {"freihand": (8, 600), "arctic": (54, 2400)}
"""Values on a CPU and on a GPU."""
METERS: Final = {
    "samples_per_s": "samples/s",
    "step_p50_ms": "ms",
    "step_p99_ms": "ms",
    "data_share": "share",
    "tflops": "TFLOP/s",
    "mfu": "share",
    "gpu_util": "share",
    "sm_active": "share",
    "memory_gb": "GB",
    "power_w": "W",
    "j_per_sample": "J",
}


def training_run(suite: Suite, recipe: str, kind: str) -> None:
    """Train a published experiment on sample data and note the meters of its last log line."""
    from pipeline.app.cli import compose
    from pipeline.app.files import emptied
    from train.config import RunConfig
    from train.run import main as run

    dataset, split = RECIPES[recipe]
    store, mano = sample_store(suite, dataset)
    steps, log_every = (120, 20) if suite.on_gpu else (4, 2)
    folder = suite.out / f"run-{recipe}-{kind}"
    emptied(folder, "run_dir")
    words = [
        *(f"experiment={recipe}", f"store={store}", f"mano={mano}", f"run_dir={folder}"),
        *("stages.head.epochs=0", f"stages.head.steps={log_every}"),
        *("stages.all.epochs=0", f"stages.all.steps={steps}"),
        *(f"log_every={log_every}", f"split={split}"),
        *("model.pretrained=false", "validation.split=null", "pictures_every=100000"),
        *("checkpoint_every=100000", *KINDS[kind], *([] if suite.on_gpu else SMALL)),
    ]
    said = (suite.out / f"{folder.name}.txt").open("w")
    with said, contextlib.redirect_stdout(said):
        run(compose(RunConfig, words))
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
    for name, unit in METERS.items():
        if (value := last.get(f"meter/{name}")) is not None:
            suite.note(f"{recipe}, {kind}", name, unit, float(value))
    rates = {row.variant: row.p50 for row in suite.rows if row.metric == "samples_per_s"}
    loop, ceiling = (rates.get(f"{recipe}, {other}") for other in ("loop", "probe"))
    if loop and ceiling and kind in ("loop", "probe"):
        share = 100 * loop / ceiling
        suite.note(f"{recipe}, loop", "of the cached batch's ceiling", "%", share)


def sample_stores(suite: Suite) -> None:
    """Build the stores of the sample datasets, unless they are there."""
    for dataset in SAMPLE_IMAGES:
        sample_store(suite, dataset)


def training_by_dataloader(suite: Suite) -> None:
    """Train the same network on batches of a 16-worker DataLoader: files, OpenCV, floats."""
    from benchmarks.config import LoaderBenchConfig
    from benchmarks.gpu.loader import optimizer_of, train_on, wait
    from benchmarks.loader.contenders import CONTRACTS, source_of
    from benchmarks.loader.run import make_images
    from model.regressor.config import Head, RegressorConfig
    from model.regressor.net import HandRegressor
    from pipeline.batch import blank_batch

    num, workers = (2000, min(16, len(os.sched_getaffinity(0)))) if suite.on_gpu else (192, 1)
    settings = LoaderBenchConfig(num=num, out=str(suite.out / "images"))
    source = source_of(make_images(settings), num, settings.seed, workers)
    epoch = CONTRACTS["train"]["DataLoader, cv2"].make(source)
    name = "resnet50" if suite.on_gpu else "test_resnet"
    config = RegressorConfig(backbone=name, pretrained=False, head=Head.joints, hidden=64)
    model = HandRegressor(config, input_px=224, mano=None).to(suite.device)
    optimizer = optimizer_of(model)
    seen, begin = 0, time.perf_counter()
    for turn in range(5 if suite.on_gpu else 1):
        for image in epoch():
            batch: Any = blank_batch(image.to(suite.device, non_blocking=True), num_hands=1)
            train_on(suite, model, optimizer, batch)
            seen += len(image) * (turn > 0 or not suite.on_gpu)
        if turn == 0 and suite.on_gpu:
            wait(suite)
            begin = time.perf_counter()
    wait(suite)
    rate = seen / (time.perf_counter() - begin)
    suite.note(f"DataLoader, cv2, {workers} workers, {name}", "training", "samples/s", rate)


SMALL: Final = (
    "model.backbone=test_resnet",
    "model.hidden=16",
    "pipeline.input_px=32",
    "pipeline.cache.size_px=40",
    "batch_size=8",
    "precision=fp32",
)


def sample_store(suite: Suite, dataset: str) -> tuple[Path, Path]:
    """Return a store of a synthetic dataset and its synthetic MANO files."""
    from preprocess.builder.build import build
    from preprocess.config import BuildConfig, OnBadImage
    from preprocess.sample.generate import write_sample

    full = suite.on_gpu or suite.config.stores is not None
    folder = Path(suite.config.stores or suite.out)
    root, store = folder / dataset, folder / f"{dataset}.zarr"
    if not (root / "built").exists():
        summary = write_sample(dataset, root, SAMPLE_IMAGES[dataset][full], 5)
        build(
            BuildConfig(
                dataset=dataset,
                root=str(root),
                out=str(store),
                mano=str(summary.mano),
                on_bad_image=OnBadImage.flag,
            )
        )
        (root / "built").touch()
    return store, root / "mano"
