"""One's own images: the same hands as ``train evaluate`` finds, left hands left, problems named."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.hand import JOINT_NAMES, JointSet
from model.mano.files import mano_forward
from model.prediction import HandPrediction, hands_of
from model.pretrained import InputSpec, load_pretrained
from pipeline.app.cli import compose, front_door
from pipeline.batch import Batch
from pipeline.config import CacheConfig, PipelineConfig, ViewConfig
from pipeline.loader import Loader
from pipeline.store.reader import open_store
from preprocess.sample.hand.mesh import write_mano
from tests.pipeline.hand_store import frame, hand_store, jpeg
from tests.train.predict.networks import (
    MEAN,
    PX,
    STD,
    Trained,
    a_box,
    blank,
    config,
    predicted,
    save_network,
    write_image,
    write_json,
    write_manifest,
)
from train.__main__ import COMMANDS
from train.config import PredictConfig, Side
from train.predict.boxes import HandBox, read_boxes, square_of
from train.predict.cameras import Cameras, read_cameras
from train.predict.hands import Predictor, crop_of, crops_of, hands_in_image, resized
from train.predict.inputs import InputImage, find_source, frames
from train.predict.predict import main
from train.step.step import predict

MIRROR = np.array([-1.0, 1.0, 1.0])


def only_hand(record: Any) -> Any:
    ((image,), *_) = (list(record["images"].values()),)
    (hand,) = image["hands"]
    return hand


def written_store(store_path: Path, split: str, folder: Path) -> tuple[list[str], str, str]:
    """Write a store's images, boxes and cameras as a person's files; return names and options."""
    boxes: dict[str, Any] = {}
    cameras, names = {}, []
    folder.mkdir()
    store = open_store(str(store_path))
    for row in store.split(split).tolist():
        name = f"{row:03d}.jpg"
        (folder / name).write_bytes(store.jpeg(row).tobytes())
        boxes[name] = []
        for slot, side in enumerate(("right", "left")):
            box = store.label("bbox_xyxy")[row, slot].astype(float)
            if np.isfinite(box).all():
                boxes[name].append(a_box(side, tuple(box.tolist())))
                names.append(name)
        cameras[name] = store.label("K")[row].astype(float).tolist()
    store.close()
    return (
        names,
        write_json(folder.parent / "boxes.json", boxes),
        write_json(folder.parent / "K.json", cameras),
    )


def loaded(pipeline: PipelineConfig) -> Batch:
    (batch,) = Loader(pipeline, device=torch.device("cpu"), training=False)
    return batch


def pipeline_of(store: Path, *, pad: float, margin: float, cache_px: int) -> PipelineConfig:
    return PipelineConfig(
        store=str(store), batch_size=64, input_px=PX, mean=list(MEAN), std=list(STD),
        view=ViewConfig(pad=pad, margin=margin), cache=CacheConfig(size_px=cache_px),
    )  # fmt: skip


# --- the same as train evaluate -------------------------------------------------------------------


@pytest.mark.parametrize("cache_px", [40, 160], ids=["shrunk", "enlarged"])
def test_predictions_are_those_of_the_evaluation(
    trained: Trained, tmp_path: Path, cache_px: int
) -> None:
    store = hand_store(tmp_path / "s.zarr", 6)
    save_network(tmp_path / "run" / "weights", trained.mano, pad=1.3)
    write_manifest(tmp_path / "run", trained.mano_folder, margin=1.2, cache_px=cache_px)
    _, boxes, cameras = written_store(store, "train", tmp_path / "images")

    model = load_pretrained(tmp_path / "run" / "weights", mano=trained.mano)
    batch = loaded(pipeline_of(store, pad=1.3, margin=1.2, cache_px=cache_px))
    with torch.inference_mode():
        expected = hands_of(predict(model, batch, torch.float32)).joints_3d[:, 0].double()
    expected = torch.einsum("bij,bnj->bni", batch.R_input_from_cam.double().mT, expected)

    record = predicted(
        tmp_path / "run", tmp_path / "images", tmp_path / "out", boxes=boxes, intrinsics=cameras
    )
    hands = [hand for image in record["images"].values() for hand in image["hands"]]
    found = torch.tensor([hand["joints_3d"] for hand in hands], dtype=torch.float64)
    assert {hand["side"] for hand in hands} == {"right", "left"}
    assert found.std(0).mean() > 0.01, "the prediction does not depend on the image"
    # measured 1.7e-6; with another size of the cached crop it is 7e-5 and more
    assert (found - expected).norm(dim=-1).max() < 2e-5


def test_where_the_cache_is_the_frame_the_input_is_equal_to_the_bit(
    trained: Trained, tmp_path: Path
) -> None:
    """Frames of 64 px whose box is the frame: nothing is resized on the way to the cache."""
    images = {row: jpeg(frame(row)[:64, :64]) for row in range(4)}
    whole = np.tile(np.array([-0.5, -0.5, 63.5, 63.5]), (2, 1))
    store = hand_store(tmp_path / "s.zarr", 4, images=images, size_hw=(64, 64), bbox_xyxy=whole)
    save_network(tmp_path / "run" / "weights", trained.mano, pad=1.0)
    write_manifest(tmp_path / "run", trained.mano_folder, margin=1.0, cache_px=64)
    written_store(store, "train", tmp_path / "images")
    batch = loaded(pipeline_of(store, pad=1.0, margin=1.0, cache_px=64))

    about = json.loads((tmp_path / "run" / "weights" / "config.json").read_text())
    assert about["inputs"]["pad"] == 1.0
    spec = InputSpec(
        input_px=PX, mean=MEAN, std=STD, mirror_left=True, pad=1.0, joint_sets=(JointSet.smplx,)
    )
    form = crops_of(tmp_path / "run" / "weights", spec)
    source = find_source(str(tmp_path / "images"), 1)
    rows = dict(enumerate(image for image in frames(source) if isinstance(image, InputImage)))
    store_open = open_store(str(store))
    for k in range(len(batch)):
        row, slot = divmod(int(batch.sample_id[k]), 2)
        box = HandBox(is_right=slot == 0, box_xyxy=(-0.5, -0.5, 63.5, 63.5))
        K = store_open.label("K")[row].astype(np.float64)
        crop = crop_of(rows[row], box, K, form)
        assert torch.equal(crop.image, batch.image[k])
        assert torch.equal(crop.K_input.float(), batch.K[k])
        assert crop.mirrored == bool(batch.mirrored[k])
    store_open.close()


@pytest.mark.parametrize(
    ("x", "y", "side"), [(20.0, 25.5, 30.0), (31.3, 22.8, 41.7), (33.0, 24.0, 17.3)]
)
def test_the_cached_square_is_pillows(x: float, y: float, side: float) -> None:
    rgb = frame(1)[:60, :70]
    left, top = x + 0.5 - side / 2 + 50, y + 0.5 - side / 2 + 50
    padded = np.pad(rgb, ((50, 50), (50, 50), (0, 0)), mode="edge")
    box = (left, top, left + side, top + side)
    expected = Image.fromarray(padded).resize((24, 24), Image.Resampling.BILINEAR, box)
    found = resized(rgb, x, y, side, 24).astype(int)
    assert np.abs(found - np.asarray(expected)).max() <= 1


def test_the_cached_square_repeats_the_border(tmp_path: Path) -> None:
    rgb = frame(1)[:60, :70]
    padded = np.pad(rgb, ((80, 80), (80, 80), (0, 0)), mode="edge")
    for x, y, side in ((5.0, 55.0, 90.0), (69.0, -40.0, 20.0), (35.0, 30.0, 150.5)):
        expected = resized(padded, x + 80, y + 80, side, 24)
        assert np.array_equal(resized(rgb, x, y, side, 24), expected)


# --- left hands -----------------------------------------------------------------------------------


def test_mirrored_labels_come_back_as_recorded(tmp_path: Path) -> None:
    """A network that predicted the mirrored labels exactly would give the store's own."""
    path = hand_store(tmp_path / "s.zarr", 6)
    batch = loaded(pipeline_of(path, pad=1.5, margin=1.25, cache_px=40))
    assert batch.mirrored.any()
    perfect = HandPrediction(
        joints_3d=batch.joints_3d,
        vertices=batch.joints_3d.repeat(1, 1, 38, 1)[:, :, :778],
        theta_rotmat=batch.theta_rotmat,
        beta=batch.beta,
        transl=batch.transl,
    )
    store = open_store(str(path))
    spec = InputSpec(
        input_px=PX, mean=MEAN, std=STD, mirror_left=True, pad=1.5, joint_sets=(JointSet.smplx,)
    )
    form = crops_of(tmp_path, spec)
    places = [divmod(sample, 2) for sample in batch.sample_id.tolist()]
    crops = []
    for row, slot in places:
        x0, y0, x1, y1 = map(float, store.label("bbox_xyxy")[row, slot])
        box = HandBox(is_right=slot == 0, box_xyxy=(x0, y0, x1, y1))
        K = store.label("K")[row].astype(np.float64)
        crops.append(crop_of(InputImage(name="", rgb=frame(row)), box, K, form))
    for (row, slot), (hand,) in zip(places, hands_in_image(crops, perfect), strict=True):
        for name in ("joints_3d", "beta", "transl"):
            np.testing.assert_allclose(getattr(hand, name), store.label(name)[row, slot], atol=1e-6)
        if store.label("has_mano")[row, slot]:
            theta = store.label("theta")[row, slot].reshape(16, 3)
            turns = [cv2.Rodrigues(v.astype(np.float64))[0] for v in theta]
            assert hand.theta is not None
            found = [cv2.Rodrigues(v)[0] for v in hand.theta.reshape(16, 3)]
            np.testing.assert_allclose(found, turns, atol=1e-5)
        x0, y0, x1, y1 = store.label("bbox_xyxy")[row, slot]
        seen = hand.joints_2d[np.isfinite(hand.joints_2d).all(-1)]
        assert len(seen) == 20, "one joint of the stand-in is not labelled"
        assert (seen >= [x0 - 0.01, y0 - 0.01]).all()
        assert (seen <= [x1 + 0.01, y1 + 0.01]).all()
    store.close()


def test_a_mirrored_image_of_the_other_hand_is_the_mirrored_prediction(
    trained: Trained, tmp_path: Path
) -> None:
    image, (x0, y0, x1, y1) = frame(3), (20.0, 22.0, 71.0, 66.0)
    width = image.shape[1]
    write_image(tmp_path / "right" / "a.png", image)
    write_image(tmp_path / "left" / "a.png", image[:, ::-1])
    there = write_json(tmp_path / "r.json", {"a.png": [a_box("right", (x0, y0, x1, y1))]})
    turned = (width - 1 - x1, y0, width - 1 - x0, y1)
    here = write_json(tmp_path / "l.json", {"a.png": [a_box("left", turned)]})
    right, left = (
        only_hand(
            predicted(
                trained.run, tmp_path / side, tmp_path / f"out-{side}", boxes=boxes,
                intrinsics=f"140,150,{cx},50",
            )
        )
        for side, boxes, cx in (("right", there, 60), ("left", here, width - 1 - 60))
    )  # fmt: skip
    assert (right["side"], left["side"]) == ("right", "left")
    np.testing.assert_allclose(left["joints_3d"], np.array(right["joints_3d"]) * MIRROR, atol=2e-4)
    np.testing.assert_allclose(left["transl"], np.array(right["transl"]) * MIRROR, atol=2e-4)
    np.testing.assert_allclose(left["beta"], right["beta"], atol=1e-2)
    shown = np.array(right["joints_2d"]) * [-1, 1] + [width - 1, 0]
    np.testing.assert_allclose(left["joints_2d"], shown, atol=0.1)
    # The parameters of a left hand are those of MANO's left model.
    parameters = [np.array(left[name])[None] for name in ("theta", "beta", "transl")]
    _, skeleton = mano_forward(trained.mano.left, *parameters)
    np.testing.assert_allclose(skeleton[0, 0], left["joints_3d"][0], atol=1e-4)
    np.testing.assert_allclose(skeleton[0, 1], left["joints_3d"][5], atol=1e-4)


def test_a_network_of_both_sides_mirrors_nothing(trained: Trained, tmp_path: Path) -> None:
    save_network(tmp_path / "weights", trained.mano, mirror_left=False)
    write_image(tmp_path / "a.png", frame(2))
    options: dict[str, Any] = {"mano": str(trained.mano_folder), "side": Side.both}
    record = predicted(tmp_path / "weights", tmp_path / "a.png", tmp_path / "out", **options)
    right, left = record["images"]["a.png"]["hands"]
    assert (right["side"], left["side"]) == ("right", "left")
    parameters = [np.array(left[name])[None] for name in ("theta", "beta", "transl")]
    _, skeleton = mano_forward(trained.mano.left, *parameters)
    np.testing.assert_allclose(skeleton[0, 0], left["joints_3d"][0], atol=1e-4)
    # Not mirrored: the wrist is the same pixel of the same crop.
    np.testing.assert_allclose(left["joints_2d"][0], right["joints_2d"][0], atol=0.05)


# --- what is read ---------------------------------------------------------------------------------


def test_a_folder_is_done_but_for_what_is_broken(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    for name in ("b.png", "a.jpg", "none.jpg"):
        write_image(images / name, frame(1))
    data = (images / "a.jpg").read_bytes()
    (images / "torn.jpg").write_bytes(data[: len(data) // 2])
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.png").write_text("no image")
    (images / "notes.txt").write_text("not an image at all")
    far = a_box("left", (400, 10, 450, 60))
    hands = {"a.jpg": [a_box("right"), far, a_box("left")], "b.png": [a_box("left")]}
    hands |= {name: [a_box()] for name in ("torn.jpg", "empty.jpg", "text.png")}
    boxes = write_json(tmp_path / "boxes.json", hands)
    record = predicted(
        trained.run, images, tmp_path / "out", code=1, boxes=boxes, intrinsics="150,150,63,47"
    )
    assert list(record["images"]) == ["a.jpg", "b.png", "none.jpg"]
    sides = {k: [h["side"] for h in v["hands"]] for k, v in record["images"].items()}
    assert sides == {"a.jpg": ["right", "left"], "b.png": ["left"], "none.jpg": []}
    assert [one["name"] for one in record["skipped"]] == [
        "a.jpg",
        "empty.jpg",
        "text.png",
        "torn.jpg",
    ]
    said = " ".join(capsys.readouterr().out.split())
    assert f"skipped: {images}/a.jpg: hand 1: box_xyxy [400, 10, 450, 60] lies outside" in said
    assert f"skipped: {images}/torn.jpg: cannot be decoded" in said
    assert "1 of 6 images have no entry in boxes=" in said
    assert "('none.jpg')" in said
    assert "detector" not in said
    drawn = sorted(path.name for path in (tmp_path / "out" / "pictures").iterdir())
    assert drawn == ["a.jpg", "b.png.jpg", "none.jpg"]
    picture = cv2.imread(str(tmp_path / "out" / "pictures" / "b.png.jpg"))
    assert picture is not None
    skeleton, mesh = np.split(picture[..., ::-1].astype(int), 2, 1)
    assert np.abs(skeleton - frame(1)).max() > 60, "nothing was drawn"
    assert np.abs(mesh - frame(1)).max() > 40, "no mesh was drawn"


def test_python_gives_what_the_command_does(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "photos" / "a.png"
    write_image(path, frame(3))
    boxes = [a_box("left"), a_box(xyxy=(10, 12, 60, 80))]
    options: dict[str, Any] = {
        "boxes": write_json(tmp_path / "b.json", {"a.png": boxes}),
        "pictures": False,
    }
    expected = predicted(trained.run, path.parent, tmp_path / "out", **options)
    predictor = Predictor.from_run(trained.run, device="cpu", precision="fp32")
    ours = [predictor(path, boxes), predictor(frame(3), [boxes[0], np.array([10, 12, 60, 80])])]
    record = expected["images"]["a.png"]["hands"]
    for hands in ours:
        assert [hand.side for hand in hands] == ["left", "right"]
        for hand, told in zip(hands, record, strict=True):
            np.testing.assert_allclose(hand.joints_3d, told["joints_3d"], atol=1e-6)
            assert hand.theta == pytest.approx(told["theta"], abs=1e-6)
    K = np.array([[400.0, 0, 60], [0, 400, 50], [0, 0, 1]])
    (near,), (far,) = (predictor(path, boxes[:1], intrinsics=K * (f, f, 1)) for f in (1, 2))
    assert far.joints_3d[0, 2] == pytest.approx(2 * near.joints_3d[0, 2], rel=1e-3)
    (whole,) = predictor(path)
    assert whole.box == HandBox(is_right=True, box_xyxy=None)
    for image, wrong, message in (
        (frame(3) / 255, None, r"image must be RGB, uint8 \[h, w, 3\], got float64"),
        (frame(3)[..., 0], None, r"image must be RGB"),
        (path, [[1, 2, 3]], "box_xyxy must be four finite numbers"),
        (path, [{"side": "left"}], "box_xyxy"),
        (path, [[900, 900, 990, 990]], "outside the image"),
        (tmp_path / "b.json", None, "must be a folder, an image"),
    ):
        with pytest.raises(ValueError, match=message):
            predictor(image, wrong)
    with pytest.raises(ValueError, match="device must be one of auto, cpu, cuda, got 'gpu'"):
        Predictor.from_run(trained.run, device="gpu")


def test_the_record_has_this_form(trained: Trained, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    record = predicted(trained.run, tmp_path / "a.png", tmp_path / "out")
    head = {
        "format",
        "images_from",
        "weights",
        "step",
        "joint_set",
        "cached_crop",
        "crop",
        "box_scale",
        "camera",
    }
    assert set(record) == head | {"joint_names", "units", "skipped", "images"}
    assert record["format"] == "handloom-predict-1"
    assert (record["joint_set"], record["step"]) == ("smplx", 7)
    assert record["cached_crop"] == "40 px, margin 1.25"
    assert record["joint_names"] == list(JOINT_NAMES)
    image = record["images"]["a.png"]
    assert set(image) == {"width", "height", "K", "camera", "picture", "hands"}
    assert (image["width"], image["height"], np.shape(image["K"])) == (128, 96, (3, 3))
    (hand,) = image["hands"]
    shapes = {name: np.shape(hand[name]) for name in hand if name not in ("side", "box_xyxy")}
    assert shapes == {
        "square_xyxy": (4,), "joints_3d": (21, 3), "joints_2d": (21, 2), "theta": (48,),
        "beta": (10,), "transl": (3,),
    }  # fmt: skip
    assert hand["square_xyxy"] == [-0.5, -16.5, 127.5, 111.5]
    K, joints = np.array(image["K"]), np.array(hand["joints_3d"])
    shown = (joints @ K.T)[:, :2] / joints[:, 2:]
    np.testing.assert_allclose(hand["joints_2d"], shown, atol=0.01)


def test_joints_need_no_mano(
    joints_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", frame(0))
    record = predicted(joints_run, tmp_path / "a.png", tmp_path / "out", side=Side.left)
    assert "in no run whose manifest.json says how its crops were cached" in capsys.readouterr().out
    hand = only_hand(record)
    assert hand["side"] == "left"
    assert "theta" not in hand
    with pytest.raises(ValueError, match=r"meshes=true needs a network with a mesh"):
        main(config(joints_run, tmp_path / "a.png", meshes=True))


def test_frames_of_a_video(joints_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
    for row in range(7):
        writer.write(np.ascontiguousarray(frame(row)[..., ::-1]))
    writer.release()
    boxes = write_json(tmp_path / "b.json", {"0": [a_box()], "6": [a_box("left"), a_box()]})
    record = predicted(joints_run, path, tmp_path / "out", every=3, boxes=boxes)
    assert {k: len(v["hands"]) for k, v in record["images"].items()} == {"0": 1, "3": 0, "6": 2}
    assert record["images"]["6"]["picture"] == "pictures/000006.jpg"
    read = [item for item in frames(find_source(str(path), 3)) if isinstance(item, InputImage)]
    for item in read:
        assert np.abs(item.rgb.astype(int) - frame(int(item.name))).mean() < 12, "another frame"

    named = write_json(tmp_path / "n.json", {"000.jpg": [a_box()]})
    with pytest.raises(ValueError, match=r"frames are named by their numbers.* got '000.jpg'"):
        main(config(joints_run, path, boxes=named))


def test_every_second_image_of_a_folder(joints_run: Path, tmp_path: Path) -> None:
    for row in range(5):
        write_image(tmp_path / "images" / f"{row}.png", frame(row))
    record = predicted(joints_run, tmp_path / "images", tmp_path / "out", every=2, batch_size=2)
    assert list(record["images"]) == ["0.png", "2.png", "4.png"]


def test_an_exif_orientation_is_applied(joints_run: Path, tmp_path: Path) -> None:
    data = jpeg(frame(1))
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    upright = cv2.rotate(decoded, cv2.ROTATE_90_CLOCKWISE)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHHI", 0x112, 3, 1, 6, 0, 0)
    for folder in ("tagged", "upright"):
        (tmp_path / folder).mkdir()
    app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "tagged" / "a.jpg").write_bytes(data[:2] + app1 + data[2:])
    assert cv2.imwrite(str(tmp_path / "upright" / "a.png"), upright)
    tagged, plain = (
        predicted(joints_run, tmp_path / name, tmp_path / f"out-{name}")["images"]
        for name in ("tagged", "upright")
    )
    assert (tagged["a.jpg"]["width"], tagged["a.jpg"]["height"]) == (96, 128)
    assert tagged["a.jpg"]["hands"] == plain["a.png"]["hands"]


def test_both_sides_of_a_whole_image(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "a.png", frame(0))
    record = predicted(trained.run, tmp_path / "a.png", tmp_path / "out", side=Side.both)
    assert [h["side"] for h in record["images"]["a.png"]["hands"]] == ["right", "left"]
    said = capsys.readouterr().out
    assert "each whole image is taken as the crop of a right and a left hand" in said
    assert "a field of view of 60 degrees over the longer side is assumed (fov_deg=)" in said
    assert "absolute depth scales with" in said


# --- cameras --------------------------------------------------------------------------------------


def test_the_assumed_camera_sees_the_field_of_view() -> None:
    K = Cameras(fov_deg=60).of(blank("a", (640, 480)))
    edges = (np.array([-0.5, 639.5]) - K[0, 2]) / K[0, 0]
    np.testing.assert_allclose(np.degrees(np.arctan(edges)), [-30, 30])
    assert K[0, 0] == K[1, 1]
    assert K[1, 2] == 239.5
    assert Cameras(fov_deg=60).of(blank("a", (480, 640)))[0, 0] == K[0, 0]


def test_depth_scales_with_the_focal_length(trained: Trained, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    near, far = (
        only_hand(predicted(trained.run, tmp_path / "a.png", tmp_path / "out", intrinsics=K))
        for K in ("100,100,63.5,47.5", "200,200,63.5,47.5")
    )
    assert far["joints_3d"][0][2] == pytest.approx(2 * near["joints_3d"][0][2], rel=1e-4)
    np.testing.assert_allclose(far["joints_2d"][0], near["joints_2d"][0], atol=0.01)


def test_forms_of_intrinsics(tmp_path: Path) -> None:
    K = [[500.0, 0.0, 320.0], [0.0, 510.0, 240.0], [0.0, 0.0, 1.0]]
    one = write_json(tmp_path / "one.json", K)
    many = write_json(tmp_path / "many.json", {"a.jpg": K})
    for text in ("500,510,320,240", one, many):
        np.testing.assert_array_equal(read_cameras(text, 60).of(blank("a.jpg", (640, 480))), K)
    with pytest.raises(ValueError, match=r"has no matrix for 'b.jpg'"):
        read_cameras(many, 60).of(blank("b.jpg", (640, 480)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("1,2,3", r"must be four numbers fx,fy,cx,cy or a JSON file; there is no such file"),
        ("-5,5,3,3", r"positive focal lengths in pixels, got \[\[-5.0"),
        ([[[1, 0, 0], [0, 1, 0], [0, 0, 1]]] * 2, r"expected one 3x3 matrix.* got \[\[\[1, 0"),
        ({"a.jpg": [1, 2]}, r"a.jpg: expected one 3x3 matrix"),
        ("{", r"is no JSON"),
        ([[1, 0, 0], [0, 1, 0], [0, 1, 1]], r"expected \[\[fx, s, cx\]"),
    ],
)
def test_wrong_intrinsics_are_one_sentence(tmp_path: Path, content: Any, expected: str) -> None:
    text = content
    if not isinstance(content, str) or content == "{":
        path = tmp_path / "K.json"
        path.write_text(content if content == "{" else json.dumps(content))
        text = str(path)
    with pytest.raises((ValueError, OSError), match=expected):
        read_cameras(text, 60)


# --- boxes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ("{", r"is no JSON"),
        ([1], r'must hold \{"a.jpg": \[\{"box_xyxy".*, got \[1\]'),
        ({"a.jpg": {"box_xyxy": [1, 2, 3, 4]}}, r"a.jpg: expected a list of hands"),
        ({"a.jpg": [{"box": 1}]}, r"a.jpg, hand 0: needs box_xyxy or joints_2d"),
        ({"a.jpg": [a_box("Right")]}, r'side must be right or left, got "Right"'),
        ({"a.jpg": [a_box(xyxy=(1, 2, 3))]}, r"four finite numbers, got \[1, 2, 3\]"),
        ({"a.jpg": [a_box(xyxy=(10, 10, 5, 5))]}, r"x1 > x0 and y1 > y0"),
        ({"a.jpg": [a_box(xyxy=(0.1, 0.1, 0.9, 0.9))]}, r"in pixels, got \[0.1"),
        ({"a.jpg": [a_box(xyxy=(1, 1, float("nan"), 9))]}, r"four finite numbers"),
    ],
)
def test_wrong_boxes_are_one_sentence(tmp_path: Path, record: Any, expected: str) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(record if record == "{" else json.dumps(record))
    with pytest.raises(ValueError, match=expected):
        read_boxes(str(path))


def test_boxes_of_other_images_are_refused(joints_run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.png", frame(0))
    boxes = write_json(tmp_path / "b.json", {"images/a.png": [a_box()]})
    expected = r"has no entry for 1 of 1 images \('a.png'\); its names are 'images/a.png'"
    with pytest.raises(ValueError, match=expected):
        main(config(joints_run, tmp_path / "images", boxes=boxes))


def test_a_box_must_be_one_of_its_image() -> None:
    def square(*xyxy: float) -> Any:
        x0, y0, x1, y1 = xyxy
        return square_of(HandBox(is_right=True, box_xyxy=(x0, y0, x1, y1)), (100, 80), 1.5)

    assert square(10, 20, 50, 40) == ((30, 30), 60)
    assert square(-30, 20, 50, 40) == ((10, 30), 120), "a part outside is fine"
    for outside in ((99.5, 0, 120, 9), (0, -9, 9, -0.5), (-9, 0, -1, 9), (0, 80, 9, 90)):
        with pytest.raises(ValueError, match="lies outside the image of 100 x 80 pixels"):
            square(*outside)
    with pytest.raises(ValueError, match="too large for the image"):
        square(0, 0, 500, 80)


# --- meshes ---------------------------------------------------------------------------------------


def read_obj(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rows = [line.split() for line in path.read_text().splitlines()]
    vertices = np.array([row[1:] for row in rows if row[0] == "v"], float)
    return vertices, np.array([row[1:] for row in rows if row[0] == "f"], int) - 1


def test_meshes_face_outwards_on_both_sides(trained: Trained, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    record = predicted(
        trained.run, tmp_path / "a.png", tmp_path / "out", side=Side.both, meshes=True
    )
    for hand in record["images"]["a.png"]["hands"]:
        assert hand["mesh"].endswith(f"-{hand['side']}.obj")
        vertices, faces = read_obj(tmp_path / "out" / hand["mesh"])
        assert (vertices.shape, faces.shape) == ((778, 3), (1538, 3))
        assert np.array_equal(np.unique(faces), np.arange(778))
        a, b, c = (vertices - vertices.mean(0))[faces].transpose(1, 0, 2)
        volume = (np.cross(a, b) * c).sum() / 6
        assert 2e-5 < volume < 2e-3, "cubic metres of a hand, seen from outside"
        # It is the hand of the record: smplx's fingertips are vertices.
        tips = [744, 320, 443, 554, 671]
        np.testing.assert_allclose(
            vertices[tips], np.array(hand["joints_3d"])[[4, 8, 12, 16, 20]], atol=2e-6
        )


# --- problems -------------------------------------------------------------------------------------


def folder_without_images(path: Path) -> Path:
    (path / "sub").mkdir(parents=True)
    (path / "notes.txt").write_text("")
    return path


def text_file(path: Path) -> Path:
    path = path.with_suffix(".txt")
    path.write_text("")
    return path


def broken_video(path: Path) -> Path:
    path = path.with_suffix(".mp4")
    path.write_bytes(b"no video" * 100)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (folder_without_images, r"holds no image \(.avif .* folders in it are not"),
        (text_file, r"must be a folder, an image .* or a video .* got '.txt'"),
        (broken_video, r"cannot be read as a video"),
        (lambda path: path / "nowhere", r"images='.*nowhere' does not exist"),
    ],
)
def test_images_that_are_none(
    joints_run: Path, tmp_path: Path, make: Callable[[Path], Path], expected: str
) -> None:
    with pytest.raises((ValueError, OSError), match=expected):
        main(config(joints_run, make(tmp_path / "images")))


def test_a_run_without_weights_says_where_they_come_from(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    with pytest.raises(FileNotFoundError, match=r"holds no weights.*python -m train run resume="):
        main(config(tmp_path, tmp_path / "a.png"))


def test_missing_and_other_mano_files_are_named(trained: Trained, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    bare = tmp_path / "bare"
    save_network(bare, trained.mano)
    with pytest.raises(ValueError, match=r"need the MANO files: pass mano=FOLDER"):
        main(config(bare, tmp_path / "a.png"))
    write_mano(tmp_path / "other", shapedirs_bug=False)
    arrays = dict(np.load(tmp_path / "other" / "MANO_RIGHT.npz"))
    arrays["v_template"] = arrays["v_template"] * 1.01
    np.savez(tmp_path / "other" / "MANO_RIGHT.npz", allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match=r"were trained with other MANO files"):
        main(config(bare, tmp_path / "a.png", mano=str(tmp_path / "other")))


def test_the_joint_set_can_be_chosen(trained: Trained, joints_run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(0))
    record = predicted(trained.run, tmp_path / "a.png", tmp_path / "out", joint_set="manopth")
    assert record["joint_set"] == "manopth"
    with pytest.raises(ValueError, match=r"joint_set='smlpx' is not among .*did you mean 'smplx'"):
        main(config(trained.run, tmp_path / "a.png", joint_set="smlpx"))
    with pytest.raises(ValueError, match=r"what the weights know: smplx"):
        main(config(joints_run, tmp_path / "a.png", joint_set="freihand"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fov_deg=200"], r"fov_deg must lie in \[1, 180\), got 200"),
        (["every=0"], r"every must be at least 1, got 0"),
        (["box_scale=0"], r"box_scale must lie in \[0.1, 10\], got 0"),
        (["video=true", "pictures=false"], "video=true is made of the pictures"),
        (["side=up"], r"side must be one of right, left, both, got 'up'"),
    ],
)
def test_wrong_options_are_one_sentence(words: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        compose(PredictConfig, ["run=r", "images=i", *words])


def test_pictures_never_overwrite_the_images(joints_run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "a.png", frame(0))
    with pytest.raises(ValueError, match=r"is where pictures would be written"):
        main(config(joints_run, tmp_path / "pictures", out=tmp_path))


def test_the_command_line_reaches_it(
    joints_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "hand.png", frame(0))
    words = [f"run={joints_run}", f"images={tmp_path / 'hand.png'}", "intrinsics=90,90,64,48"]
    words.append("boxes=none")
    assert front_door("python -m train", COMMANDS, ["predict", *words, "device=cpu"]) == 0
    record = json.loads((joints_run / "predict-hand" / "predictions.json").read_text())
    assert record["images"]["hand.png"]["K"] == [[90, 0, 64], [0, 90, 48], [0, 0, 1]]
    assert "hands: 1, images: 1, skipped: 0" in capsys.readouterr().out
