"""Networks with random weights, and what predicts with them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.hand import JointSet
from model.mano.files import ManoModels
from model.pretrained import InputSpec, PretrainedConfig, save_pretrained
from model.regressor.config import Head, RegressorConfig
from model.regressor.net import HandRegressor
from train.config import Device, Precision, PredictConfig
from train.predict.inputs import InputImage
from train.predict.predict import main

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PX = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    run: Path
    mano_folder: Path
    mano: ManoModels


def save_network(
    folder: Path,
    mano: ManoModels | None,
    *,
    pad: float = 1.5,
    mirror_left: bool = True,
    head: Head = Head.mano,
    **options: Any,
) -> None:
    """A network with random weights whose prediction depends on the image by centimetres."""
    torch.manual_seed(0)
    config = RegressorConfig(
        backbone="test_resnet", pretrained=False, hidden=16, head=head, **options
    )
    model = HandRegressor(
        config, input_px=PX, mano=mano, right_only=mirror_left, load_weights=False
    )
    last = model.mlp[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, std=0.05)
    values = model.base
    if head is Head.mano:
        for hand in range(model.num_hands):
            values[109 * hand : 109 * hand + 96] = torch.tensor([1.0, 0, 0, 0, 1, 0]).repeat(16)
    if model.has_object:
        values[-10:-4] = torch.tensor([1.0, 0, 0, 0, 1, 0])
    if model.temporal is not None:
        nn.init.normal_(model.temporal.leave.weight, std=0.2)
    spec = InputSpec(
        input_px=PX, mean=MEAN, std=STD, mirror_left=mirror_left, pad=pad,
        joint_sets=(JointSet.smplx,),
    )  # fmt: skip
    sha256 = "" if mano is None else mano.sha256
    about = PretrainedConfig(model=config, inputs=spec, mano_sha256=sha256, step=7)
    save_pretrained(model, folder, about)


def write_manifest(
    run: Path,
    mano: Path | None,
    *,
    margin: float,
    cache_px: int,
    kind: str = "hand",
    length: int = 1,
) -> None:
    view = {"margin": margin, "kind": kind}
    pipeline = {"view": view, "cache": {"size_px": cache_px}, "window": {"length": length}}
    record = {"config": {"mano": None if mano is None else str(mano), "pipeline": pipeline}}
    (run / "manifest.json").write_text(json.dumps(record))


def config(run: Path | None, images: Path, **options: Any) -> PredictConfig:
    fixed: dict[str, Any] = {"device": Device.cpu, "precision": Precision.fp32}
    out = options.pop("out", images.parent / "out" if run is None else run.parent / "out")
    options.setdefault("boxes", "none")
    return PredictConfig(
        run=None if run is None else str(run), images=str(images), out=str(out), **fixed, **options
    )


def predicted(run: Path | None, images: Path, out: Path, *, code: int = 0, **options: Any) -> Any:
    """Run the command; return predictions.json."""
    assert main(config(run, images, out=out, **options)) == code
    return json.loads((out / "predictions.json").read_text())


def write_image(path: Path, rgb: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])


def blank(name: str, size_wh: tuple[int, int]) -> InputImage:
    return InputImage(name=name, rgb=np.zeros((size_wh[1], size_wh[0], 3), np.uint8))


def write_json(path: Path, record: Any) -> str:
    path.write_text(json.dumps(record))
    return str(path)


def a_box(side: str = "right", xyxy: tuple[float, ...] = (30, 20, 90, 70)) -> dict[str, Any]:
    return {"box_xyxy": list(xyxy), "side": side}
