"""``python -m train predict``: inference on the user's own images, without a store."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, UInt8
from rich.console import Console

from pipeline.app.pictures import write_picture
from pipeline.app.progress import show_progress
from pipeline.app.words import printable, say
from pipeline.config import ViewKind
from pipeline.decode.read_ahead import read_ahead
from train.config import NO_BOXES, PredictConfig, Side
from train.predict.boxes import (
    Boxes,
    HandBox,
    by_frame,
    is_crop,
    read_boxes,
    some,
    whole_image,
)
from train.predict.cameras import Cameras, read_cameras
from train.predict.hands import (
    Crop,
    Found,
    Predictor,
    boxes_of_view,
    crop_of,
    load_predictor,
    predict_hands,
)
from train.predict.inputs import (
    InputImage,
    InputMedia,
    Skipped,
    check_names,
    find_source,
    frames,
    unanswered,
)
from train.predict.lines import CSV, FINAL, VIDEO, Lines, open_lines, what_of, write_final
from train.predict.outputs import (
    Hand,
    hand_record,
    head_of,
    object_record,
    picture_name,
    picture_of,
    write_mesh,
)
from train.predict.tables import write_csv, write_video

READ_AHEAD: Final = 2
"""Images decoded ahead of the network."""
MOST_HELD_BYTES: Final = 1 << 29
"""Memory of images that wait until their batch is full."""
MOST_SAID: Final = 20
"""Skipped inputs that are printed; all are in predictions.json."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Begin:
    """An image, before its hands."""

    frame: InputImage
    K: Float64[np.ndarray, "3 3"]
    camera: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """An input is answered: an image after its hands, or one that was skipped."""

    name: str


Event = Begin | Crop | Skipped | Done


def main(config: PredictConfig) -> int:
    """Predict the hands of your own images or video.

    boxes= says where the hands are. A box is tight around the 21 joints, as in training; without
    boxes a square image is taken as the crop of one hand, and another one is skipped. Networks of
    two hands and an object see one crop around all hands of an image; those of windows see
    consecutive images. If the network was trained with mirrored left hands, left crops are
    mirrored and the results mirrored back.

    Writes predictions.json (joints and MANO parameters in the camera of each image), pictures/ and,
    with meshes=true, meshes/*; csv=true and video=true write joints.csv and predictions.mp4. An
    EXIF orientation is applied: boxes, intrinsics and results refer to the upright image. Pixel
    (0, 0) is the centre of the top-left pixel. Results are kept
    as they come, in predictions.jsonl: after a kill, the same command goes on.

    Exit code 1: an input (an image, a hand, a folder or video among the images, a box of an absent
    image) was skipped and named; all others were processed.

    Example:
        python -m train predict run=runs/first images=photos boxes=boxes.json meshes=true
        python -m train predict run=runs/first images=hand.jpg boxes=none intrinsics=900,900,640,360
        python -m train predict run=runs/first images=clip.mp4 boxes=boxes.json every=5
        python -m train predict model=hand.onnx images=photos boxes=boxes.json
    """
    console = Console()
    source = find_source(config.images, config.every)
    if config.video and source.names is not None:
        raise ValueError(f"video=true needs a video, and images={config.images!r} is none")
    out = _out_folder(config, source)
    found = None
    if config.boxes is not None and config.boxes != NO_BOXES:
        found = read_boxes(config.boxes, config.side, source.names)
    boxes = None if found is None else found.by_name
    cameras = read_cameras(config.intrinsics, config.fov_deg)
    if source.names is None:
        boxes = None if boxes is None else by_frame(boxes, f"boxes={config.boxes!r}")
        cameras = cameras.by_frame(f"intrinsics={config.intrinsics!r}")
    predictor = load_predictor(config)
    folder, crops = predictor.weights, predictor.crops
    remarks = _remarks(config, source, found, boxes, cameras, crops.view)
    if config.joint_set is None and len(crops.spec.joint_sets) > 1:
        names = ", ".join(s.name for s in crops.spec.joint_sets)
        remarks.append(
            f"trained on several joint sets ({names}): joints are given as "
            f"{predictor.joint_set.name}; joint_set= chooses"
        )
    if not crops.is_known:
        remarks.append(
            f"{folder} lies in no run whose manifest.json says how its crops were cached: taken as "
            f"{crops.cache_px} px, margin {crops.margin:g}; joints may differ by millimetres"
        )
    for remark in remarks:
        say(remark, console)

    begin = time.perf_counter()
    what = what_of(config, source, folder)
    together = predictor.num_frames
    with open_lines(out, what, lambda text: say(text, console), together) as lines:
        skipped = _Skips(source, console)
        results = _Results(out, lines, config, predictor, is_video=source.names is None)
        already = lines.num_done
        with show_progress("predict", console, unit="images", already=already) as report:
            for part in _batched(
                _events(source, already, boxes, cameras, config, predictor),
                config.batch_size,
                together,
            ):
                hands = predict_hands(predictor, [one for one in part if isinstance(one, Crop)])
                for event in part:
                    if isinstance(event, Skipped):
                        skipped.say(event)
                    results.take(event, hands)
                report(lines.num_done, source.total, f"{lines.num_hands} hands")
        left_out = _left_out(source, out, boxes, config, cameras, lines, console)
        for one in left_out:
            skipped.say(one)
        skipped.end()
        assumed = f"assumed: {config.fov_deg:g} degrees over the longer side"
        about = {
            "images_from": config.images,
            "weights": str(folder),
            "step": predictor.step,
            "joint_set": predictor.joint_set.name,
            "cached_crop": f"{crops.cache_px} px, margin {crops.margin:g}",
            "crop": "whole image" if boxes is None else f"boxes={config.boxes}",
            "box_scale": config.box_scale,
            "camera": f"EXIF, else {assumed}"
            if config.intrinsics is None
            else f"intrinsics={config.intrinsics}",
        }
        path = out / FINAL
        num_skipped = write_final(path, lines, head_of(about), [asdict(one) for one in left_out])
        if config.csv:
            write_csv(out / CSV, lines)
        if config.video:
            write_video(out / VIDEO, lines, source.fps)
        lines.path.unlink()
    say(
        f"hands: {lines.num_hands}, images: {lines.num_images}, skipped: {num_skipped}; "
        f"{time.perf_counter() - begin:.1f} s on {predictor.device}; written: {path}",
        console,
    )
    return 1 if num_skipped else 0


class _Skips:
    """Prints what is skipped, up to a number of lines."""

    def __init__(self, source: InputMedia, console: Console) -> None:
        self._source, self._console = source, console
        self._count = 0

    def say(self, one: Skipped) -> None:
        """Print one, if not too many were."""
        self._count += 1
        if self._count <= MOST_SAID:
            where = printable(_named(self._source, one.name))
            say(f"skipped: {where}: {one.reason}", self._console)

    def end(self) -> None:
        """Say how many were not printed."""
        if self._count > MOST_SAID:
            say(f"skipped: {self._count - MOST_SAID} more, see predictions.json", self._console)


class _Results:
    """Writes what comes of the events, one image after another."""

    def __init__(
        self,
        out: Path,
        lines: Lines,
        config: PredictConfig,
        predictor: Predictor,
        *,
        is_video: bool,
    ) -> None:
        self._out, self._lines, self._config = out, lines, config
        self._predictor, self._is_video = predictor, is_video
        self._rgb: UInt8[np.ndarray, "h w 3"] | None = None
        self._picture = ""
        self._hands: list[Hand] = []

    def take(self, event: Event, found: Iterator[Found]) -> None:
        """Write what an event says; what is in a crop is the next of ``found``."""
        if isinstance(event, Begin):
            self._begin(event)
        elif isinstance(event, Crop):
            one = next(found)
            for hand in one.hands:
                self._add(hand)
            if one.object is not None:
                self._lines.add("object", object_record(one.object))
        elif isinstance(event, Skipped):
            self._lines.add("skipped", asdict(event))
        else:
            if self._rgb is not None:
                drawn = picture_of(self._rgb, self._hands, self._predictor.faces)
                write_picture(self._out / "pictures" / self._picture, drawn)
            self._rgb = None
            self._lines.add("done", event.name)

    def _begin(self, event: Begin) -> None:
        width, height = event.frame.size_wh
        self._hands = []
        self._picture = picture_name(event.frame.name, is_video=self._is_video)
        self._rgb = event.frame.rgb if self._config.pictures else None
        record = {
            "name": event.frame.name,
            "width": width,
            "height": height,
            "K": event.K.tolist(),
            "camera": event.camera,
            "picture": f"pictures/{self._picture}" if self._config.pictures else None,
        }
        self._lines.add("image", record)

    def _add(self, hand: Hand) -> None:
        record, faces = hand_record(hand), self._predictor.faces
        if self._config.meshes:
            assert faces is not None
            stem, kind = self._picture.removesuffix(".jpg"), self._config.mesh_format
            record["mesh"] = f"meshes/{stem}-{len(self._hands)}-{hand.side}.{kind.name}"
            write_mesh(self._out / record["mesh"], hand, faces, kind)
        self._lines.add("hand", record)
        self._hands.append(hand)


def _left_out(
    source: InputMedia,
    out: Path,
    boxes: Mapping[str, Any] | None,
    config: PredictConfig,
    cameras: Cameras,
    lines: Lines,
    console: Console,
) -> list[Skipped]:
    """Return what was asked for and is no image: entries of the folder, boxes, intrinsics."""
    resolved = out.resolve()
    found = [
        one
        for one in source.left_out
        if not resolved.is_relative_to((source.path / one.name).resolve())  # our own results
    ]
    for key, given in (("boxes", boxes), ("intrinsics", cameras.by_name)):
        if given is not None:
            name = f"{key}={getattr(config, key)!r}"
            absent, remark = unanswered(source, given, lines.num_done, name)
            found += absent
            if absent:
                names = some(one.name for one in absent)
                say(f"{name} names {len(absent)} inputs that do not exist ({names})", console)
            if remark is not None:
                say(remark, console)
    return found


def _remarks(
    config: PredictConfig,
    source: InputMedia,
    found: Boxes | None,
    boxes: Mapping[str, Any] | None,
    cameras: Cameras,
    view: ViewKind,
) -> list[str]:
    """Return warnings about the input, a line each; reject inputs that do not fit."""
    remarks: list[str | None] = []
    if source.others:
        remarks.append(
            f"{len(source.others)} other files of images={config.images!r} are no images "
            f"({some(source.others)})"
        )
    if view is ViewKind.frame:
        if found is not None or config.side is not None:
            remarks.append("the network sees whole frames: boxes= and side= change nothing")
    elif boxes is None:
        if config.boxes is None and source.size_wh is not None and not is_crop(source.size_wh):
            raise ValueError(f"images={config.images!r}: {_no_crop(source.size_wh)}")
        side = (config.side or Side.right).name
        hands = "a right and a left hand" if config.side is Side.both else f"one {side} hand"
        shown = "all hands and their object" if view is ViewKind.hand_object else hands
        remarks.append(
            f"each whole image is taken as the crop of {shown}, which is right only if that fills "
            "it; boxes=FILE says where hands are, side= which"
        )
    else:
        assert found is not None
        if found.num_without_side and config.side is None and view is ViewKind.hand:
            remarks.append(
                f"{found.num_without_side} boxes say no side: each is predicted as a right and as "
                "a left hand; side= says which"
            )
        remarks.append(check_names(source, boxes, f"boxes={config.boxes!r}", each=False))
    if config.intrinsics is None:
        remarks.append(
            "no intrinsics: where an image's EXIF tells no focal length, a field of view of "
            f"{config.fov_deg:g} degrees over the longer side is assumed (fov_deg=); absolute "
            "depth scales with the true focal length over the assumed"
        )
    elif cameras.by_name is not None:
        key = f"intrinsics={config.intrinsics!r}"
        remarks.append(check_names(source, cameras.by_name, key, each=True))
    return [remark for remark in remarks if remark is not None]


def _out_folder(config: PredictConfig, source: InputMedia) -> Path:
    images = Path(config.images).expanduser().resolve()
    name = images.name if images.is_dir() else images.stem
    given = Path(config.run or config.model or "").expanduser()
    default = (given if config.model is None else given.parent) / f"predict-{name}"
    out = default if config.out is None else Path(config.out).expanduser()
    if out.is_file():
        raise ValueError(f"out={config.out!r} is a file, expected a folder")
    if config.pictures and source.path.resolve() == (out / "pictures").resolve():
        raise ValueError(
            f"images={config.images!r} is where pictures would be written over them; give another "
            "out=FOLDER or pictures=false"
        )
    return out


def _events(
    source: InputMedia,
    already: int,
    boxes: Mapping[str, tuple[HandBox, ...]] | None,
    cameras: Cameras,
    config: PredictConfig,
    predictor: Predictor,
) -> Iterator[Event]:
    """Yield what is to be done, in order, after the first ``already`` inputs."""
    everywhere = whole_image(config.side)
    form = predictor.crops
    needs_crop = config.boxes is None and form.view is not ViewKind.frame
    with contextlib.closing(read_ahead(frames(source, already), READ_AHEAD)) as images:
        for frame in images:
            if isinstance(frame, Skipped):
                yield frame
                yield Done(name=frame.name)
                continue
            try:
                K = cameras.of(frame)
                if needs_crop and not is_crop(frame.size_wh):
                    raise ValueError(_no_crop(frame.size_wh))  # noqa: TRY301 - said as all others
            except ValueError as error:
                yield Skipped(name=frame.name, reason=str(error))
                yield Done(name=frame.name)
                continue
            yield Begin(frame=frame, K=K, camera=cameras.origin(frame))
            hands = everywhere if boxes is None else boxes.get(frame.name, ())
            for i, box in enumerate(boxes_of_view(hands, form)):
                try:
                    yield crop_of(frame, box, K, form)
                except ValueError as error:
                    yield Skipped(name=frame.name, reason=f"hand {i}: {error}")
            yield Done(name=frame.name)


def _batched(events: Iterator[Event], batch_size: int, together: int) -> Iterator[list[Event]]:
    """Yield lists of events whose hands fill a batch, or whose images reach the memory budget.

    Of inputs that are answered ``together``, all are in one list.
    """
    part: list[Event] = []
    num_hands = held = num_done = 0
    for event in events:
        part.append(event)
        num_hands += isinstance(event, Crop)
        num_done += isinstance(event, Done)
        held += event.frame.rgb.nbytes if isinstance(event, Begin) else 0
        is_whole = together == 1 or (isinstance(event, Done) and not num_done % together)
        if is_whole and (num_hands >= batch_size or held > MOST_HELD_BYTES):
            yield part
            part, num_hands, held = [], 0, 0
    if part:
        yield part


def _no_crop(size_wh: tuple[int, int]) -> str:
    return (
        f"{size_wh[0]} x {size_wh[1]} pixels are no square crop of a hand: boxes=FILE says where "
        "the hands are, boxes=none takes whole images as crops"
    )


def _named(source: InputMedia, name: str) -> str:
    return f"{source.path} frame {name}" if source.names is None else str(source.path / name)
