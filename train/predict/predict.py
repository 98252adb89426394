"""``python -m train predict``: inference on the user's own images, without a store."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from rich.console import Console

from pipeline.app.pictures import write_picture
from pipeline.app.progress import show_progress
from pipeline.app.words import say
from pipeline.decode.read_ahead import read_ahead
from train.config import PredictConfig, Side
from train.predict.hands import (
    Crop,
    Predictor,
    crop_of,
    load_predictor,
    predict_hands,
)
from train.predict.inputs import (
    Cameras,
    HandBox,
    InputImage,
    InputMedia,
    Skipped,
    check_names,
    find_source,
    frames,
    read_boxes,
    read_cameras,
    whole_image,
)
from train.predict.outputs import (
    Hand,
    draw_hands,
    hand_record,
    picture_name,
    write_obj,
    write_predictions,
)
from train.state.weights import weights_folder

READ_AHEAD: Final = 2
"""Images decoded ahead of the network."""
MOST_HELD_BYTES: Final = 1 << 29
"""Memory of images that wait until their batch is full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One image and its hand crops."""

    frame: InputImage
    K: Float64[np.ndarray, "3 3"]
    crops: list[Crop]


def main(config: PredictConfig) -> int:
    """Predict the hands of your own images or video.

    There is no hand detector: boxes= gives the hand boxes. A box is tight around the 21 joints, as
    in training; without boxes the whole image is taken as the crop of one hand. If the network was
    trained with mirrored left hands, left crops are mirrored and the results mirrored back.

    Writes predictions.json (joints and MANO parameters in the camera of each image), pictures/ and,
    with meshes=true, meshes/*.obj. An EXIF orientation is applied: boxes, intrinsics and results
    refer to the upright image. Pixel (0, 0) is the centre of the top-left pixel.

    Exit code 1: an image or a hand was skipped and reported; all others were processed.

    Example:
        python -m train predict run=runs/first images=photos boxes=boxes.json meshes=true
        python -m train predict run=runs/first images=hand.jpg side=left intrinsics=900,900,640,360
        python -m train predict run=runs/first images=clip.mp4 boxes=boxes.json every=5
    """
    console = Console()
    source = find_source(config.images, config.every)
    boxes = None if config.boxes is None else read_boxes(config.boxes)
    cameras = read_cameras(config.intrinsics, config.fov_deg)
    remarks = _remarks(config, source, boxes, cameras)
    folder = weights_folder(config.run)
    out = _out_folder(config, source)
    predictor = load_predictor(config, folder)
    if config.joint_set is None and len(predictor.crops.spec.joint_sets) > 1:
        names = ", ".join(s.name for s in predictor.crops.spec.joint_sets)
        remarks.append(
            f"trained on several joint sets ({names}): joints are given as "
            f"{predictor.joint_set.name}; joint_set= chooses"
        )
    crops = predictor.crops
    if not crops.is_known:
        remarks.append(
            f"{folder} lies in no run whose manifest.json says how its crops were cached: taken as "
            f"{crops.cache_px} px, margin {crops.margin:g}; joints may differ by millimetres"
        )
    for remark in remarks:
        say(remark, console)

    images: dict[str, dict[str, Any]] = {}
    skipped: list[Skipped] = []
    begin = time.perf_counter()
    with show_progress("predict", console, unit="images") as report:
        done = 0

        def advance(num: int) -> None:
            nonlocal done
            done += num
            report(done, source.total)

        def skip(what: Skipped) -> None:
            skipped.append(what)
            say(f"skipped: {_named(source, what.name)}: {what.reason}", console)

        for chunk in _chunks(source, boxes, cameras, config, predictor, skip, advance):
            hands = predict_hands(predictor, [crop for work in chunk for crop in work.crops])
            for work in chunk:
                found = [next(hands) for _ in work.crops]
                images[work.frame.name] = _write_image(
                    out, work, found, config, predictor, is_video=source.names is None
                )
    seconds = time.perf_counter() - begin
    assumed = f"assumed: {config.fov_deg:g} degrees over the longer side"
    about = {
        "images_from": config.images,
        "weights": str(folder),
        "step": predictor.step,
        "joint_set": predictor.joint_set.name,
        "cached_crop": f"{crops.cache_px} px, margin {crops.margin:g}",
        "crop": "whole image" if boxes is None else f"boxes={config.boxes}",
        "camera": assumed if config.intrinsics is None else f"intrinsics={config.intrinsics}",
    }
    path = out / "predictions.json"
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(path, about, images, [asdict(one) for one in skipped])
    num_hands = sum(len(record["hands"]) for record in images.values())
    say(
        f"hands: {num_hands}, images: {len(images)}, skipped: {len(skipped)}; {seconds:.1f} s on "
        f"{predictor.device}; written: {path}",
    )
    return 1 if skipped else 0


def _remarks(
    config: PredictConfig,
    source: InputMedia,
    boxes: Mapping[str, Any] | None,
    cameras: Cameras,
) -> list[str]:
    """Return warnings about the input, a line each; reject inputs that do not fit."""
    remarks: list[str | None] = []
    if boxes is None:
        side = (config.side or Side.right).name
        hands = "a right and a left hand" if config.side is Side.both else f"one {side} hand"
        remarks.append(
            f"there is no hand detector: each whole image is taken as the crop of {hands}, which "
            "is right only if the hand fills it; boxes=FILE says where hands are, side= which"
        )
    else:
        remarks.append(check_names(source, boxes, f"boxes={config.boxes!r}", each=False))
    if config.intrinsics is None:
        remarks.append(
            f"no intrinsics: a field of view of {config.fov_deg:g} degrees over the longer side is "
            "assumed (fov_deg=); absolute depth scales with the true focal length over the assumed"
        )
    elif cameras.by_name is not None:
        key = f"intrinsics={config.intrinsics!r}"
        remarks.append(check_names(source, cameras.by_name, key, each=True))
    return [remark for remark in remarks if remark is not None]


def _out_folder(config: PredictConfig, source: InputMedia) -> Path:
    images = Path(config.images).expanduser().resolve()
    name = images.name if images.is_dir() else images.stem
    default = Path(config.run).expanduser() / f"predict-{name}"
    out = default if config.out is None else Path(config.out).expanduser()
    if out.is_file():
        raise ValueError(f"out={config.out!r} is a file, expected a folder")
    if config.pictures and source.path.resolve() == (out / "pictures").resolve():
        raise ValueError(
            f"images={config.images!r} is where pictures would be written over them; give another "
            "out=FOLDER or pictures=false"
        )
    return out


def _chunks(
    source: InputMedia,
    boxes: Mapping[str, tuple[HandBox, ...]] | None,
    cameras: Cameras,
    config: PredictConfig,
    predictor: Predictor,
    skip: Callable[[Skipped], None],
    advance: Callable[[int], None],
) -> Iterator[list[Work]]:
    """Yield lists of images whose hands fill a batch, or that reach the memory budget."""
    everywhere = whole_image(config.side)
    chunk: list[Work] = []
    with contextlib.closing(read_ahead(frames(source), READ_AHEAD)) as images:
        for frame in images:
            if isinstance(frame, Skipped):
                skip(frame)
                advance(1)
                continue
            hands = everywhere if boxes is None else boxes.get(frame.name, ())
            try:
                K = cameras.of(frame.name, frame.size_wh)
            except ValueError as error:
                skip(Skipped(name=frame.name, reason=str(error)))
                advance(1)
                continue
            crops = []
            for i, box in enumerate(hands):
                try:
                    crops.append(crop_of(frame, box, K, predictor.crops))
                except ValueError as error:
                    skip(Skipped(name=frame.name, reason=f"hand {i}: {error}"))
            chunk.append(Work(frame=frame, K=K, crops=crops))
            held = sum(work.frame.rgb.nbytes for work in chunk)
            if sum(len(w.crops) for w in chunk) >= config.batch_size or held > MOST_HELD_BYTES:
                yield chunk
                advance(len(chunk))
                chunk = []
    if chunk:
        yield chunk
        advance(len(chunk))


def _write_image(
    out: Path,
    work: Work,
    hands: list[Hand],
    config: PredictConfig,
    predictor: Predictor,
    *,
    is_video: bool,
) -> dict[str, Any]:
    """Write the picture and meshes of one image; return its JSON record."""
    name = picture_name(work.frame.name, is_video=is_video)
    width, height = work.frame.size_wh
    records = [hand_record(hand) for hand in hands]
    if config.meshes:
        assert predictor.faces is not None
        for i, (hand, record) in enumerate(zip(hands, records, strict=True)):
            record["mesh"] = f"meshes/{name.removesuffix('.jpg')}-{i}-{hand.side}.obj"
            write_obj(out / record["mesh"], hand, predictor.faces)
    picture = None
    if config.pictures:
        picture = f"pictures/{name}"
        write_picture(out / picture, draw_hands(work.frame, hands, predictor.faces))
    return {
        "width": width,
        "height": height,
        "K": work.K.tolist(),
        "picture": picture,
        "hands": records,
    }


def _named(source: InputMedia, name: str) -> str:
    return f"{source.path} frame {name}" if source.names is None else str(source.path / name)
