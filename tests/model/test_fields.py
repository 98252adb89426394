"""Configurations built in Python are held to the types and bounds of the command line."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.config import LoaderBenchConfig
from model.regressor.config import Head, RegressorConfig, Scene
from pipeline.config import (
    CacheCodec,
    CacheConfig,
    ImageDtype,
    MixPart,
    PipelineConfig,
    ViewConfig,
    ViewKind,
    WindowConfig,
)
from preprocess.config import BuildConfig, ExecutorConfig, ImageConfig
from train.config import OptimConfig, PredictConfig, RunConfig, StageConfig
from train.losses.config import LossConfig


def test_enums_and_paths_may_be_given_as_on_the_command_line() -> None:
    config = PipelineConfig(
        store=Path("a.zarr"),  # type: ignore[arg-type]
        image_dtype="uint8",  # type: ignore[arg-type]
        view=ViewConfig(kind="hand_object"),  # type: ignore[arg-type]
        cache=CacheConfig(codec="yuv420"),  # type: ignore[arg-type]
        mean=(0.5, 0.5, 0.5),  # type: ignore[arg-type]
    )
    assert config.store == "a.zarr"
    assert config.image_dtype is ImageDtype.uint8
    assert config.view.kind is ViewKind.hand_object
    assert config.cache.codec is CacheCodec.yuv420
    assert config.mean == [0.5, 0.5, 0.5]
    model = RegressorConfig(head="joints", scene="hand_object")  # type: ignore[arg-type]
    assert (model.head, model.scene) == (Head.joints, Scene.hand_object)
    assert model.views == {"hand_object", "frame"}


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (ViewConfig, {"kind": "hands"}, ValueError, "view.kind must be one of hand, hand_object"),
        (
            CacheConfig,
            {"size_px": 256.5},
            TypeError,
            "cache.size_px must be of type int, got 256.5",
        ),
        (
            PipelineConfig,
            {"view": {"kind": "hand"}},
            TypeError,
            "view must be of type ViewConfig, got",
        ),
        (PipelineConfig, {"mix": {"b": 1}}, TypeError, "mix.b must be of type MixPart, got 1"),
        (
            PipelineConfig,
            {"batch_size": "64"},
            TypeError,
            "batch_size must be of type int, got '64'",
        ),
        (
            PipelineConfig,
            {"batch_size": True},
            TypeError,
            "batch_size must be of type int, got True",
        ),
        (PipelineConfig, {"std": [math.inf, 1, 1]}, ValueError, r"std\[0\] must be a finite"),
        (PipelineConfig, {"std": [255.0, 1, 1]}, ValueError, "std must lie in 0.001..1"),
        (PipelineConfig, {"mean": [0, 0, 1e30]}, ValueError, r"mean must lie in 0\.\.1"),
        (PipelineConfig, {"weight": math.nan}, ValueError, "weight must be a finite number"),
        (MixPart, {"weight": 0.0}, ValueError, "mix.NAME.weight must be a positive number"),
        (WindowConfig, {"length": 0}, ValueError, "window.length must be at least 1, got 0"),
        (OptimConfig, {"weight_decay": -0.1}, ValueError, "optim.weight_decay must be at least 0"),
        (OptimConfig, {"final_lr_share": math.nan}, ValueError, "optim.final_lr_share must be a f"),
        (OptimConfig, {"lr": math.inf}, ValueError, "optim.lr must be a finite number"),
        (OptimConfig, {"shares": {"a": math.nan}}, ValueError, "optim.shares.a must be a finite"),
        (StageConfig, {"lr": math.nan}, ValueError, "stages.NAME.lr must be a finite number"),
        (LossConfig, {"extra": {"a": math.inf}}, ValueError, "loss.extra.a must be a finite"),
        (LossConfig, {"joint_weights": [math.nan] * 21}, ValueError, r"loss.joint_weights\[0\]"),
        (RunConfig, {"ema_decay": math.nan}, ValueError, "ema_decay must be a finite number"),
        (RunConfig, {"threads": -1}, ValueError, "threads must be at least 0"),
        (
            RegressorConfig,
            {"hidden": None},
            TypeError,
            "model.hidden must be of type int, got None",
        ),
        (PredictConfig, {"fov_deg": math.nan}, ValueError, "fov_deg must be a finite number"),
        (ImageConfig, {"quality": 101}, ValueError, "image.quality must be at least 1 and at most"),
        (BuildConfig, {"executor": ExecutorConfig(), "workers": -1}, ValueError, "workers must be"),
        (LoaderBenchConfig, {"repeats": 0}, ValueError, "repeats must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(
    kind: Any, values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        kind(**values)


def test_every_configuration_checks_its_fields() -> None:
    """A text where a number belongs is refused by each dataclass that has a number."""
    import benchmarks.config
    import model.config
    import model.regressor.config
    import pipeline.config
    import preprocess.config
    import train.config
    import train.losses.config

    for module in (
        benchmarks.config,
        model.config,
        model.regressor.config,
        pipeline.config,
        preprocess.config,
        train.config,
        train.losses.config,
    ):
        for kind in vars(module).values():
            if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
                continue
            for field in dataclasses.fields(kind):
                if field.type in (int, float):
                    with pytest.raises(TypeError, match=field.name):
                        kind(**{field.name: "much"})
                    break
