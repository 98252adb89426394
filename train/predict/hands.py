"""Hands in the camera of each image, predicted from images and boxes.

The crop equals that of ``train evaluate`` for the same image and box: resized to the cached crop
first, then resampled by the pipeline's own gather. Measured on 250 synthetic images of 224 px with
an 80 px network: joints differ by at most 0.2 mm, due to DALI's rounding. Without the first step
they differ by 3.5 mm on average.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float32, Float64, UInt8
from msgspec import Meta
from torch import Tensor

from model.geometry.camera import camera_after_affine, input_rotation, project
from model.geometry.crop import compose, invert, square_crop_affine
from model.geometry.rotation import mirror_rotmat, rotate, rotmat_to_axis_angle
from model.hand import JointSet
from model.mano.files import INTERHAND_REGRESSOR_FILE, ManoModels
from model.prediction import (
    HandPrediction,
    ObjectPrediction,
    Prediction,
    hands_of,
    prediction_at,
)
from model.pretrained import (
    InputSpec,
    PretrainedConfig,
    load_pretrained,
    read_pretrained_config,
)
from model.records import as_record
from pipeline.app.words import nearest
from pipeline.batch import Batch, blank_batch
from pipeline.config import PipelineConfig, ViewKind
from pipeline.decode.codec import Codec, Pixels
from pipeline.gather.augment import identity, input_affine
from pipeline.gather.params import InputFormat, gather_params
from pipeline.gather.select import gather
from train.config import Device, Precision, PredictConfig
from train.device.device import backbone_dtype, choose_device
from train.predict.boxes import HandBox, hand_boxes, square_of, whole_image
from train.predict.cameras import Cameras, checked_camera
from train.predict.crops import Crops
from train.predict.exported import load_exported
from train.predict.inputs import InputImage, Skipped, find_source, frames
from train.predict.outputs import FoundObject, Hand
from train.state.load import mano_of_weights
from train.state.weights import config_of_run, weights_folder, window_of
from train.step.step import predict

Box = HandBox | Mapping[str, Any] | Sequence[float] | np.ndarray
"""A hand's box as the caller gives it; four numbers are those of a right hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """A network, or an exported file, and its input format.

    predictor = Predictor.from_run("runs/first", device="cuda")
    for hand in predictor(image, [[120, 80, 310, 290]]):
        print(hand.side, hand.joints_3d)
    """

    network: Callable[[Batch], Prediction]
    """Predicts the frames of a batch."""
    weights: Path
    """Where the network comes from: a folder of weights, or an exported file."""
    step: int
    """Training step of the weights."""
    crops: Crops
    num_frames: int
    """Length of the windows that the network looks at; 1: single images."""
    joint_set: JointSet
    faces: np.ndarray | None
    """Faces of MANO's right hand, [1538, 3]; None for a joint head."""
    device: torch.device
    batch_size: int

    @staticmethod
    def from_run(
        run: str | Path,
        *,
        device: Device | str = Device.auto,
        mano: str | Path | None = None,
        joint_set: str | None = None,
        precision: Precision | str = Precision.auto,
        batch_size: int = 32,
    ) -> "Predictor":
        """Load the weights of a run, or a folder of weights; as ``python -m train predict`` does.

        Args:
            run: Folder made by ``python -m train run``, or a folder of weights.
            device: ``auto``, ``cpu`` or ``cuda``.
            mano: Folder of the MANO files; None takes the run's, else ``HANDLOOM_MANO``.
            joint_set: What the 21 joints mean; None as in training.
            precision: ``auto``, ``fp32`` or ``bf16``, of the backbone.
            batch_size: Hands per batch.

        Raises:
            FileNotFoundError: If there are no weights, or MANO is not here.
            ValueError: If weights and files do not fit.
        """
        config = PredictConfig(
            run=str(run),
            device=device,  # type: ignore[arg-type]  # enums are taken by name
            mano=None if mano is None else str(mano),
            joint_set=joint_set,
            precision=precision,  # type: ignore[arg-type]
            batch_size=batch_size,
        )
        return load_predictor(config)

    @staticmethod
    def from_file(
        model: str | Path, *, mano: str | Path | None = None, batch_size: int = 32
    ) -> "Predictor":
        """Load an ONNX file of ``python -m train export``.

        Args:
            model: The file; its description lies beside it.
            mano: Folder of the MANO files, for files that MANO decodes outside.
            batch_size: Hands per batch.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If it cannot be used; says why.
        """
        folder = None if mano is None else str(mano)
        return load_predictor(PredictConfig(model=str(model), mano=folder, batch_size=batch_size))

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w 3"] | str | Path,
        boxes: Iterable[Box] | None = None,
        *,
        intrinsics: Float64[np.ndarray, "3 3"] | None = None,
        fov_deg: float = 60.0,
    ) -> list[Hand]:
        """Return the hands of an image, one per box, in the image's camera; metres, OpenCV axes.

        Args:
            image: RGB, or a path.
            boxes: Tight around the 21 joints, pixels: ``[x0, y0, x1, y1]`` of a right hand, or
                ``{"box_xyxy": [x0, y0, x1, y1], "side": "left"}``, one of each side where it has
                none. None takes the whole image as the crop of one right hand.
            intrinsics: Of the image; None assumes ``fov_deg``.
            fov_deg: Field of view of the longer side of the image.

        Raises:
            ValueError: If the image cannot be read or a box does not fit it.
        """
        frame = _frame_of(image)
        cameras = Cameras(
            K=None if intrinsics is None else checked_camera(intrinsics), fov_deg=fov_deg
        )
        hands = whole_image(None)
        if boxes is not None:
            hands = tuple(hand for box in boxes for hand in _boxes_of(box))
        K = cameras.of(frame)
        crops = [crop_of(frame, box, K, self.crops) for box in boxes_of_view(hands, self.crops)]
        return [hand for found in predict_hands(self, crops) for hand in found.hands]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """One hand of one image, ready for the network; on the CPU."""

    number: int
    """Place of the image among the inputs."""
    box: HandBox
    is_right: tuple[bool, ...]
    """Side of each hand that it shows."""
    square_xyxy: tuple[float, float, float, float]
    mirrored: bool
    image: Float32[Tensor, "3 s s"]
    K_frame: Float64[Tensor, "3 3"]
    K_input: Float64[Tensor, "3 3"]
    """Intrinsics of the input pixels, for points mirrored with them."""


def load_predictor(config: PredictConfig) -> Predictor:
    """Load the network of a run, or an exported file.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the weights are damaged, MANO is missing or differs, the joint convention is
            unknown, or a mesh is requested that the network does not predict.
    """
    if config.run is None:
        return Predictor(**load_exported(config))
    folder = weights_folder(config.run)
    about = read_pretrained_config(folder)
    has_mesh = about.model.needs_mano
    if config.meshes and not has_mesh:
        raise ValueError(
            f"meshes=true needs a network with a mesh; the weights in {folder} predict joints only "
            "(model.head=joints)"
        )
    mano = mano_of_weights(folder, about.model, config.mano) if has_mesh else None
    joint_set = choose_joint_set(config.joint_set, about, mano)
    device = choose_device(config.device)
    crops = crops_of(folder, about.inputs)
    if "hand" not in about.model.views and not crops.is_known:
        raise ValueError(
            f"the weights in {folder} see two hands and an object, and lie in no run whose "
            "manifest.json says in which view; predict from the folder of the run"
        )
    spec = dataclasses.replace(crops.spec, pad=crops.spec.pad * config.box_scale)
    model = load_pretrained(folder, mano=mano).to(device)
    dtype = backbone_dtype(config.precision, device)
    return Predictor(
        network=lambda batch: predict(model, batch, dtype),
        weights=folder,
        step=about.step,
        crops=dataclasses.replace(crops, spec=spec),
        num_frames=window_of(config_of_run(folder)) if about.model.min_window > 1 else 1,
        joint_set=joint_set,
        faces=None if mano is None else mano.right.f,
        device=device,
        batch_size=config.batch_size,
    )


def _frame_of(image: UInt8[np.ndarray, "h w 3"] | str | Path) -> InputImage:
    """Return an image of the caller, decoded."""
    if isinstance(image, str | Path):
        (found,) = frames(find_source(str(image), 1))
        if isinstance(found, Skipped):
            raise ValueError(f"image={str(image)!r} {found.reason}")  # noqa: TRY004 - a file's
        return found
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"image must be RGB, uint8 [h, w, 3], got {image.dtype} {list(image.shape)}"
        )
    return InputImage(name="image", rgb=image)


def _boxes_of(box: Box) -> tuple[HandBox, ...]:
    if isinstance(box, HandBox):
        return (box,)
    if isinstance(box, Mapping):
        points = {"box_xyxy", "joints_2d"} & box.keys()
        return hand_boxes({**box, **{name: np.asarray(box[name]).tolist() for name in points}})
    return hand_boxes({"box_xyxy": np.asarray(box).tolist(), "side": "right"})


def boxes_of_view(hands: tuple[HandBox, ...], form: Crops) -> tuple[HandBox, ...]:
    """Return the boxes of an image's crops: each hand's own, or one around all of them."""
    if form.view is ViewKind.hand:
        return hands
    boxes = [hand.box_xyxy for hand in hands if hand.box_xyxy is not None]
    if form.view is ViewKind.frame or (hands and not boxes):
        return (HandBox(is_right=True, box_xyxy=None),)
    if not boxes:
        return ()
    left, top, right, bottom = zip(*boxes, strict=True)
    around = min(left), min(top), max(right), max(bottom)
    return (HandBox(is_right=True, box_xyxy=around),)


def crops_of(folder: Path, spec: InputSpec) -> Crops:
    """Return the crop format of the training.

    The size of its cached crops is recorded in the manifest of the run. Weights without their run
    get the pipeline's default margin and cached size.
    """
    try:
        pipeline = config_of_run(folder)["pipeline"]
        numbers = {"margin": pipeline["view"]["margin"], "cache_px": pipeline["cache"]["size_px"]}
        found = as_record(_Trained, numbers)
        view = ViewKind[pipeline["view"].get("kind", "hand")]
        margin = 1.0 if view is ViewKind.frame else found.margin
        return Crops(spec=spec, margin=margin, cache_px=found.cache_px, view=view, is_known=True)
    except (KeyError, TypeError, ValueError):
        default = PipelineConfig(store="")
        return Crops(
            spec=spec,
            margin=default.view.margin,
            cache_px=round(spec.input_px * default.cache.size_px / default.input_px),
            view=ViewKind.hand,
            is_known=False,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """Crops of a run's training, as its configuration states them."""

    margin: Annotated[float, Meta(ge=1, le=100)]
    cache_px: Annotated[int, Meta(ge=1, le=16_384)]


def choose_joint_set(
    wanted: str | None, about: PretrainedConfig, mano: ManoModels | None
) -> JointSet:
    """Return what the 21 joints of the predictions mean; None takes what was trained first.

    Raises:
        ValueError: If the network cannot predict it; lists the choices.
    """
    trained = about.inputs.joint_sets
    if wanted is None:
        return trained[0]
    names = [s.name for s in (trained if mano is None else JointSet)]
    if wanted not in names:
        what = "the weights know" if mano is None else "MANO's joints are"
        raise ValueError(
            f"joint_set={wanted!r} is not among what {what}: {', '.join(names)}; "
            f"{nearest(wanted, names)}"
        )
    joint_set = JointSet[wanted]
    if joint_set is JointSet.interhand26m and mano is not None and mano.interhand_regressor is None:
        raise ValueError(
            f"joint_set=interhand26m needs {INTERHAND_REGRESSOR_FILE} in the MANO folder"
        )
    return joint_set


def crop_of(frame: InputImage, box: HandBox, K: Float64[np.ndarray, "3 3"], form: Crops) -> Crop:
    """Return the network's input for one hand, as the pipeline does without augmentation.

    Raises:
        ValueError: If the box does not fit this image.
    """
    spec = form.spec
    (x, y), size = square_of(box, frame.size_wh, spec.pad)
    mirrored = torch.tensor([spec.mirror_left and not box.is_right])
    center_px = torch.tensor([[x, y]], dtype=torch.float64)
    size_px = torch.tensor([size], dtype=torch.float64)
    params = identity(1, torch.device("cpu"))
    A_input_from_frame = input_affine(params, center_px, size_px, mirrored, spec.input_px)
    A_cache_from_frame = square_crop_affine(center_px, size_px * form.margin, form.cache_px)
    how = gather_params(
        compose(A_cache_from_frame, invert(A_input_from_frame)), params, spec.input_px
    )
    cached = torch.from_numpy(resized(frame.rgb, x, y, size * form.margin, form.cache_px))
    image = gather(
        Pixels(codec=Codec.rgb, rgb=cached[None]),
        torch.zeros(1, dtype=torch.int64),
        how,
        InputFormat(size_px=spec.input_px, mean=spec.mean, std=spec.std, dtype=torch.float32),
    )
    K_frame = torch.from_numpy(K)
    R = input_rotation(params.rotation_rad, mirrored)
    half = size / 2
    own = tuple(box.is_right if side is None else side for side in form.sides)
    return Crop(
        number=frame.number,
        box=box,
        is_right=own,
        square_xyxy=(x - half, y - half, x + half, y + half),
        mirrored=bool(mirrored),
        image=image[0],
        K_frame=K_frame,
        K_input=camera_after_affine(A_input_from_frame, K_frame[None], R)[0],
    )


def resized(
    rgb: UInt8[np.ndarray, "h w 3"], x: float, y: float, side_px: float, out_px: int
) -> UInt8[np.ndarray, "c c 3"]:
    """Return the square of ``side_px`` around (x, y) as ``pipeline.decode.graph`` would cache it.

    Triangular filter scaled with the step when downsampling, bilinear when upsampling; the border
    pixel is repeated beyond the image. DALI rounds some pixels to the next grey level.
    """
    top, rows = _weights(rgb.shape[0], y + 0.5 - side_px / 2, side_px, out_px)
    left, columns = _weights(rgb.shape[1], x + 0.5 - side_px / 2, side_px, out_px)
    part = rgb[top : top + rows.shape[1], left : left + columns.shape[1]].astype(np.float32)
    shorter = (rows @ part.reshape(len(part), -1)).reshape(out_px, -1, 3)
    both = np.tensordot(shorter, columns, (1, 1)).transpose(0, 2, 1)
    return np.ascontiguousarray((both + 0.5).clip(0, 255).astype(np.uint8))


def _weights(
    num: int, start: float, side_px: float, out_px: int
) -> tuple[int, Float32[np.ndarray, "c k"]]:
    """Return the first of ``k`` source pixels and the filter weights of each of ``out_px`` outputs.

    Corner-origin: pixel i covers [i, i + 1].
    """
    step = side_px / out_px
    reach = max(step, 1.0)
    middle = start + (np.arange(out_px) + 0.5) * step
    pixel = np.arange(math.floor(start - reach), math.ceil(start + side_px + reach))
    weight = np.maximum(0, 1 - np.abs(pixel + 0.5 - middle[:, None]) / reach)
    weight /= weight.sum(-1, keepdims=True)
    there = pixel.clip(0, num - 1)  # ascending; weights beyond the border go to the border pixel
    first = int(there[0])
    begin = np.searchsorted(there, np.arange(first, there[-1] + 1))
    return first, np.add.reduceat(weight, begin, axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What is predicted for a crop."""

    hands: tuple[Hand, ...]
    object: FoundObject | None


def predict_hands(predictor: Predictor, crops: list[Crop]) -> Iterator[Found]:
    """Predict what every crop shows, in the camera of its image.

    Crops of windows are those of consecutive images, and of one hand each.
    """
    for begin in range(0, len(crops), predictor.batch_size):
        yield from _predicted(predictor, crops[begin : begin + predictor.batch_size])


@torch.inference_mode()
def _predicted(predictor: Predictor, crops: list[Crop]) -> list[Found]:
    batch = batch_of(crops, predictor.joint_set)
    if predictor.num_frames > 1:
        batch = in_windows(batch, crops, predictor.num_frames)
    prediction = predictor.network(batch.to(predictor.device))
    if predictor.num_frames > 1:
        real = batch.frames().is_real.nonzero()[:, 0]
        order = batch.frames().sample_id[real].argsort()
        prediction = prediction_at(prediction, real[order].to(predictor.device))
    objects = [None] * len(crops) if prediction.object is None else objects_of(prediction.object)
    hands = hands_in_image(crops, hands_of(prediction))
    return [Found(hands=own, object=obj) for own, obj in zip(hands, objects, strict=True)]


def in_windows(batch: Batch, crops: list[Crop], length: int) -> Batch:
    """Return single crops as windows [w, t]; ``sample_id`` is their place in ``crops``.

    Windows lie side by side in each run of consecutive images that show the same hand; the last one
    of a run repeats its last frame, which is not real.
    """
    runs: dict[tuple[bool, int], list[list[int]]] = {}
    nth: dict[tuple[int, bool], int] = {}
    for i, crop in enumerate(crops):
        number, side = crop.number, crop.box.is_right
        place = nth[number, side] = nth.get((number, side), -1) + 1
        run = runs.setdefault((side, place), [[]])
        if run[-1] and crops[run[-1][-1]].number != number - 1:
            run.append([])
        run[-1].append(i)
    rows, real = [], []
    for run in runs.values():
        for members in run:
            for begin in range(0, len(members), length):
                window = members[begin : begin + length]
                missing = length - len(window)
                rows.append(window + window[-1:] * missing)
                real.append([True] * len(window) + [False] * missing)
    index = torch.tensor(rows)
    windows = batch.mapped(lambda column: column[index])
    return dataclasses.replace(windows, sample_id=index, is_real=torch.tensor(real))


def batch_of(crops: list[Crop], joint_set: JointSet) -> Batch:
    """Return the crops as the evaluation loader's batch, without labels."""
    mirrored = torch.tensor([crop.mirrored for crop in crops])
    image = torch.stack([crop.image for crop in crops])
    return dataclasses.replace(
        blank_batch(image, num_hands=len(crops[0].is_right)),
        K=torch.stack([crop.K_input for crop in crops]).float(),
        is_right=torch.tensor([crop.is_right for crop in crops]),
        mirrored=mirrored,
        joint_set=torch.full((len(crops),), int(joint_set)),
    )


def hands_in_image(crops: list[Crop], prediction: HandPrediction) -> Iterator[tuple[Hand, ...]]:
    """Yield each crop's hands in the camera of the image; mirrored hands are mirrored back.

    With M = diag(-1, 1, 1) points and ``transl`` become ``M p``, rotations ``M R M``; ``beta`` is
    unchanged, as in ``model.geometry.mano_frame``.
    """
    mirrored = torch.tensor([crop.mirrored for crop in crops])
    K = torch.stack([crop.K_frame for crop in crops])[:, None]
    R = input_rotation(torch.zeros(len(crops), dtype=torch.float64), mirrored)[:, None]

    def back(points: Tensor) -> Tensor:  # [b, h, n, 3]
        return rotate(R.mT, points.cpu().double())

    def pixels(points: Tensor) -> Tensor:
        return project(points, K).where(points[..., 2:] > 0, float("nan"))

    joints = back(prediction.joints_3d)
    columns: dict[str, Tensor] = {"joints_3d": joints, "joints_2d": pixels(joints)}
    if prediction.vertices is not None:
        assert prediction.theta_rotmat is not None
        assert prediction.beta is not None
        assert prediction.transl is not None
        vertices = back(prediction.vertices)
        theta = prediction.theta_rotmat.cpu().double()
        turned = mirrored[:, None, None, None, None]
        theta = torch.where(turned, mirror_rotmat(theta), theta)
        columns |= {
            "vertices": vertices,
            "vertices_2d": pixels(vertices),
            "theta": rotmat_to_axis_angle(theta).flatten(2),
            "beta": prediction.beta.cpu().double(),
            "transl": back(prediction.transl[:, :, None])[:, :, 0],
        }
    for i, crop in enumerate(crops):
        yield tuple(
            Hand(
                box=dataclasses.replace(crop.box, is_right=is_right),
                square_xyxy=crop.square_xyxy,
                **{name: column[i, h].numpy() for name, column in columns.items()},
            )
            for h, is_right in enumerate(crop.is_right)
        )


def objects_of(prediction: ObjectPrediction) -> list[FoundObject | None]:
    """Return the object of every crop; crops of objects are never mirrored."""
    columns = prediction.rotmat, prediction.transl, prediction.arti_rad
    rotmat, transl, arti_rad = (column.cpu().double().numpy() for column in columns)
    return [
        FoundObject(rotmat=rotmat[i], transl=transl[i], arti_rad=float(arti_rad[i]))
        for i in range(len(transl))
    ]
