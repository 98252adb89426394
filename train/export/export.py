"""``python -m train export``: a trained network as one file for programs without this package."""

import hashlib
import importlib
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from model.geometry.camera import lift_from_crop
from model.geometry.rotation import rot6d_to_rotmat
from model.hand import JOINT_NAMES, NUM_JOINTS, NUM_MANO_JOINTS, JointSet
from model.mano.layer import ManoLayer
from model.network import Inputs, Network
from model.parts.hand_decoder import HandDecoder
from model.prediction import HandPrediction, tensors_of
from model.pretrained import InputSpec, load_pretrained, read_pretrained_config
from pipeline.app.files import replace_file, require_ours
from pipeline.app.words import say
from train.config import Decode, ExportConfig, ExportFormat
from train.predict.exported import FORMAT, WRIST
from train.predict.hands import choose_joint_set, crops_of
from train.state.load import mano_of_weights
from train.state.weights import config_of_run, weights_folder, window_of

INPUTS: Final = ("image", "K", "is_right")
BATCHES: Final = (1, 4, 7)
"""Batch sizes at which the file is compared with the network."""
TRACED: Final = 3
"""Batch size of the example that it is made from; none of ``BATCHES`` is special to it."""
MEAN_MM: Final = 1e-3
MAX_MM: Final = 1e-2
"""Largest difference of joints and vertices from the network, millimetres."""
SUFFIXES: Final = {
    ExportFormat.onnx: ".onnx",
    ExportFormat.pt2: ".pt2",
    ExportFormat.torchscript: ".ts",
}
MANO_LICENCE: Final = (
    "contains MANO's arrays, under MANO's own, non-commercial licence: yours to use, not to pass on"
)

Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


class ExportedNetwork(nn.Module):
    """A network on plain tensors: image, camera and side in, its tensors out by ``names``."""

    def __init__(
        self, network: Network, joint_set: JointSet, *, mirrors_left: bool, num_frames: int
    ) -> None:
        """Wrap ``network``; left hands are decoded as right ones where ``mirrors_left``."""
        super().__init__()
        self.network = network
        self.joint_set = int(joint_set)
        self.mirrors_left = mirrors_left
        self.num_frames = num_frames
        self.names: tuple[str, ...] = ()

    def forward(
        self,
        image: Float[Tensor, "b 3 s s"],
        K: Float[Tensor, "b 3 3"],
        is_right: Bool[Tensor, "b h"],
    ) -> tuple[Tensor, ...]:
        """Return the tensors of the prediction in the order of ``names``."""
        num = image.shape[0]
        if self.num_frames > 1:
            # torch.export would make a case of its own of one window, and refuse it later.
            image, K, is_right = (
                torch.cat((value, value[: self.num_frames])) for value in (image, K, is_right)
            )
        joint_set = torch.full(
            (image.shape[0],), self.joint_set, dtype=torch.int64, device=image.device
        )
        inputs = Inputs(
            image=image,
            K=K,
            decode_right=torch.ones_like(is_right) if self.mirrors_left else is_right,
            joint_set=joint_set,
            is_right=is_right,
            num_frames=self.num_frames,
        )
        found = dict(tensors_of(self.network(inputs)))
        if isinstance(self.network.decoder, ParametersOnly):
            found = {WRIST: found.pop("hands.joints_3d")[:, :, 0]} | found
        self.names = tuple(found)
        return tuple(value[:num] for value in found.values())


class ParametersOnly(HandDecoder):
    """Decodes MANO's parameters without MANO: pose, shape, and the wrist in place of the joints."""

    def forward(
        self,
        numbers: Float[Tensor, "b h n"],
        K: Float[Tensor, "b 3 3"],
        decode_right: Bool[Tensor, "b h"],
        joint_set: Int64[Tensor, " b"],
        is_right: Bool[Tensor, "b h"],
    ) -> HandPrediction:
        """Return the hands; their only joint is the wrist."""
        rot6d, beta, place = numbers.split_with_sizes(self.sizes, -1)
        wrist = lift_from_crop(place, K, self.input_px)
        theta = rot6d.reshape(*wrist.shape[:2], NUM_MANO_JOINTS, 6)
        return HandPrediction(
            joints_3d=wrist[:, :, None].expand(-1, -1, NUM_JOINTS, -1),
            theta_rotmat=rot6d_to_rotmat(theta),
            beta=beta,
        )


def without_mano(network: Network, folder: Path) -> Network:
    """Return the network with MANO's arrays taken out of it.

    Raises:
        ValueError: If there is no such form of it.
    """
    decoder = network.decoder
    if decoder is None or decoder.mano is None:
        raise ValueError(
            f"decode=outside: the network in {folder} predicts no MANO parameters; leave it out"
        )
    outside = ParametersOnly(input_px=decoder.input_px, mano=None)
    outside.parts = decoder.parts
    network.decoder = outside
    if any(isinstance(module, ManoLayer) for module in network.modules()):
        raise ValueError(
            f"decode=outside: the network in {folder} needs MANO inside; use decode=inside"
        )
    return network


def main(config: ExportConfig) -> int:
    """Write a network as one file that runs without this package, and what must be known of it.

    Beside MODEL.onnx (or .pt2, .ts) lies MODEL.json: inputs, outputs, normalisation, units. The
    batch size is free. The file is compared with the network before it gets its name.

    Example:
        python -m train export run=runs/first
        python -m train export run=runs/first format=pt2 out=hand.pt2
    """
    folder = weights_folder(config.run)
    about = read_pretrained_config(folder)
    needs_mano = about.model.needs_mano
    mano = mano_of_weights(folder, about.model, config.mano) if needs_mano else None
    joint_set = choose_joint_set(config.joint_set, about, mano)
    network = load_pretrained(folder, mano=mano)
    crops = crops_of(folder, about.inputs)
    has_mano = needs_mano and config.decode is Decode.inside
    if config.decode is Decode.outside:
        network = without_mano(network, folder)
    module = ExportedNetwork(
        network,
        joint_set,
        mirrors_left=about.inputs.mirror_left,
        num_frames=window_of(config_of_run(folder)) if about.model.min_window > 1 else 1,
    ).eval()
    default = Path(config.run).expanduser() / f"export/model{SUFFIXES[config.format]}"
    out = default if config.out is None else Path(config.out).expanduser()
    if out.suffix != SUFFIXES[config.format]:
        raise ValueError(
            f"out={config.out!r} must end in {SUFFIXES[config.format]} for "
            f"format={config.format.name}"
        )
    description = out.with_suffix(".json")
    name = description.name
    require_ours(out.parent, "folder of out", [name], name, b'"frames_per_window"')
    out.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        module(*example(module, TRACED))  # tells its outputs' names
        # In memory: torch's own writer ends the process where the disk is full.
        content = WRITERS[config.format](module, example(module, TRACED))
        worst = differences(module, READERS[config.format](content))
    _require_parity(worst, config.format)
    replace_file(out, content)
    record = _described(module, about.inputs, joint_set, out, worst, step=about.step)
    record |= {
        "format": config.format.name,
        "decode": config.decode.name if needs_mano else None,
        "mano_sha256": about.mano_sha256,
        "view": crops.view.name,
        "cached_margin": crops.margin,
        "cached_px": crops.cache_px,
    }
    if has_mano:
        record |= {"licence": MANO_LICENCE}
    text = json.dumps(record, indent=2) + "\n"
    replace_file(description, text.encode())
    compared = ", ".join(f"{name} {error.max_mm:.1e} mm" for name, error in worst.items())
    say(
        f"{out}: {out.stat().st_size / 1e6:.1f} MB, {', '.join(INPUTS)} -> "
        f"{', '.join(module.names)}; largest difference at batch "
        f"{', '.join(map(str, BATCHES))}: {compared}"
    )
    if has_mano:
        say(f"{out.name} {MANO_LICENCE}; decode=outside writes a file without them")
    return 0


# --- formats --------------------------------------------------------------------------------------


def _exported(module: ExportedNetwork, inputs: tuple[Tensor, ...]) -> Any:
    batch: Any = torch.export.Dim("batch", min=1, max=65536)
    if module.num_frames > 1:
        batch = module.num_frames * torch.export.Dim("windows", min=1, max=65536)
    return torch.export.export(module, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def _write_pt2(module: ExportedNetwork, inputs: tuple[Tensor, ...]) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are not on the CPU; these are
        torch.export.save(_exported(module, inputs), content)
    return content.getvalue()


def _write_onnx(module: ExportedNetwork, inputs: tuple[Tensor, ...]) -> bytes:
    _require("onnxscript")
    program = _exported(module, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own imports and tracing
        found = torch.onnx.export(
            program,
            input_names=list(INPUTS),
            output_names=list(module.names),
            dynamo=True,
            verbose=False,
        )
    assert found is not None
    return bytes(found.model_proto.SerializeToString())


def _write_torchscript(module: ExportedNetwork, inputs: tuple[Tensor, ...]) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; some programs still need it
        traced = torch.jit.trace(module, inputs, strict=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, content)
    return content.getvalue()


def _read_pt2(content: bytes) -> Run:
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: tuple(module(*inputs))


def _read_torchscript(content: bytes) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(io.BytesIO(content))  # type: ignore[no-untyped-call]
    return lambda inputs: tuple(module(*inputs))


def _read_onnx(content: bytes) -> Run:
    session = _require("onnxruntime").InferenceSession(content)

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        given = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True)}
        return tuple(torch.from_numpy(np.asarray(value)) for value in session.run(None, given))

    return run


WRITERS: Final[dict[ExportFormat, Callable[[ExportedNetwork, tuple[Tensor, ...]], bytes]]] = {
    ExportFormat.onnx: _write_onnx,
    ExportFormat.pt2: _write_pt2,
    ExportFormat.torchscript: _write_torchscript,
}
READERS: Final[dict[ExportFormat, Callable[[bytes], Run]]] = {
    ExportFormat.onnx: _read_onnx,
    ExportFormat.pt2: _read_pt2,
    ExportFormat.torchscript: _read_torchscript,
}


def _require(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"format=onnx needs the package {package} ({error}); pip install handloom[export], or "
            "use format=pt2"
        ) from error


# --- parity ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How far an output of the file is from the network's, over all ``BATCHES``."""

    mean_mm: float
    max_mm: float


def example(module: ExportedNetwork, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Return inputs for ``batch`` windows: noise, cameras of 33 to 71 degrees, both sides."""
    random = torch.Generator().manual_seed(seed)
    num, side = batch * module.num_frames, module.network.input_px
    focal = side * (0.7 + torch.rand(num, generator=random))
    K = torch.zeros(num, 3, 3)
    K[:, 0, 0] = K[:, 1, 1] = focal
    K[:, :2, 2] = (side - 1) / 2
    K[:, 2, 2] = 1
    image = torch.randn(num, 3, side, side, generator=random)
    if module.network.num_hands == 1:
        is_right = torch.rand(num, 1, generator=random) < 0.5
    else:
        is_right = torch.tensor([[True, False]]).repeat(num, 1)
    return image, K, is_right


def differences(module: ExportedNetwork, run: Run) -> dict[str, Difference]:
    """Return the differences of all outputs that are positions in metres, by name."""
    found: dict[str, list[Tensor]] = {}
    for batch in BATCHES:
        inputs = example(module, batch, seed=batch)
        expected = module(*inputs)
        for name, mine, theirs in zip(module.names, expected, run(inputs), strict=True):
            if name.endswith(("joints_3d", "vertices", "transl", "wrist")):
                found.setdefault(name, []).append((mine - theirs).norm(dim=-1).flatten())
    errors = {name: torch.cat(parts) * 1e3 for name, parts in found.items()}
    return {
        name: Difference(mean_mm=float(error.mean()), max_mm=float(error.max()))
        for name, error in errors.items()
    }


def _require_parity(worst: dict[str, Difference], format_: ExportFormat) -> None:
    wrong = [
        f"{name}: mean {one.mean_mm:.2g} mm, max {one.max_mm:.2g} mm"
        for name, one in worst.items()
        if not (one.mean_mm <= MEAN_MM and one.max_mm <= MAX_MM)
    ]
    if wrong:
        raise ValueError(
            f"the exported file differs from the network ({'; '.join(wrong)}; allowed: mean "
            f"{MEAN_MM} mm, max {MAX_MM} mm) and was not kept; try another format than "
            f"format={format_.name}"
        )


# --- model.json -----------------------------------------------------------------------------------


def _described(
    module: ExportedNetwork,
    spec: InputSpec,
    joint_set: JointSet,
    file: Path,
    worst: dict[str, Difference],
    *,
    step: int,
) -> dict[str, Any]:
    """Return what a program that runs the file must know."""
    side, num_hands = spec.input_px, module.network.num_hands
    num = "b" if module.num_frames == 1 else f"{module.num_frames} w"
    outputs = module(*example(module, 1))
    return {
        "version": FORMAT,
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "step": step,
        "frames_per_window": module.num_frames,
        "inputs": {
            "image": {
                "shape": [num, 3, side, side],
                "dtype": "float32",
                "meaning": "RGB in 0..1, less mean, over std; the square crop of pad x the box "
                "around the joints",
            },
            "K": {
                "shape": [num, 3, 3],
                "dtype": "float32",
                "meaning": "intrinsics of the crop's pixels; pixel (0, 0) is the centre of the "
                "top-left pixel",
            },
            "is_right": {
                "shape": [num, num_hands],
                "dtype": "bool",
                "meaning": "side of the hand as recorded",
            },
        },
        "outputs": {
            name: {"shape": [num, *value.shape[1:]], "dtype": str(value.dtype).rpartition(".")[2]}
            for name, value in zip(module.names, outputs, strict=True)
        },
        "units": "metres in the camera of the crop, OpenCV axes",
        "mean": list(spec.mean),
        "std": list(spec.std),
        "pad": spec.pad,
        "mirror_left": spec.mirror_left,
        "mirror_left_meaning": "crops of left hands are mirrored before, and x of the outputs "
        "negated after",
        "joint_set": joint_set.name,
        "joints": list(JOINT_NAMES),
        "differences_mm": {
            name: {"mean": one.mean_mm, "max": one.max_mm} for name, one in worst.items()
        },
    }
