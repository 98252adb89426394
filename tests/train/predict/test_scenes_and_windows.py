"""Networks of two hands and an object, and of windows, on one's own images."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model.regressor.config import Head, Scene
from pipeline.batch import blank_batch
from tests.pipeline.hand_store import frame
from tests.train.predict.networks import (
    Trained,
    a_box,
    config,
    predicted,
    save_network,
    write_image,
    write_json,
    write_manifest,
)
from train.predict import predict
from train.predict.boxes import HandBox
from train.predict.hands import Predictor, boxes_of_view, crop_of, in_windows, predict_hands
from train.predict.inputs import InputImage
from train.predict.outputs import hand_record

K = np.array([[150.0, 0, 63.5], [0, 150, 47.5], [0, 0, 1]])
LENGTH = 3


@pytest.fixture(scope="module")
def scene_run(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("scene") / "run"
    save_network(run / "weights", trained.mano, mirror_left=False, scene=Scene.hand_object)
    write_manifest(run, trained.mano_folder, margin=1.25, cache_px=40, kind="hand_object")
    return run


def windows_run(folder: Path, scene: Scene, kind: str) -> Path:
    save_network(
        folder / "run" / "weights", None, head=Head.joints, scene=scene, temporal_layers=1,
        mirror_left=scene is Scene.hand,
    )  # fmt: skip
    write_manifest(folder / "run", None, margin=1.25, cache_px=40, kind=kind, length=LENGTH)
    return folder / "run"


def test_both_hands_and_the_object_of_one_crop(scene_run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", frame(1))
    given = {"a.png": [a_box("left", (30, 20, 60, 70)), a_box("right", (50, 25, 90, 66))]}
    boxes = write_json(tmp_path / "b.json", given)
    options: dict[str, Any] = {"boxes": boxes, "intrinsics": "150,150,63.5,47.5", "meshes": True}
    record = predicted(scene_run, tmp_path / "a.png", tmp_path / "out", **options)
    image = record["images"]["a.png"]
    assert [hand["side"] for hand in image["hands"]] == ["right", "left"]
    squares = [hand["square_xyxy"] for hand in image["hands"]]
    assert squares == [[15.0, 0.0, 105.0, 90.0]] * 2  # 1.5 x the 60 px around both boxes
    assert sorted(image["object"]) == ["arti_rad", "rotmat", "transl"]
    assert np.linalg.det(image["object"]["rotmat"]) == pytest.approx(1, abs=1e-4)
    assert len(list((tmp_path / "out" / "meshes").iterdir())) == 2

    predictor = Predictor.from_run(scene_run, device="cpu", precision="fp32")
    hands = predictor(frame(1), [(30, 20, 90, 70)], intrinsics=K)
    for hand, told in zip(hands, image["hands"], strict=True):
        np.testing.assert_allclose(hand.joints_3d, told["joints_3d"], atol=1e-5)
    box = HandBox(is_right=True, box_xyxy=(30, 20, 90, 70))
    crop = crop_of(InputImage(name="", rgb=frame(1)), box, K, predictor.crops)
    (found,) = predict_hands(predictor, [crop])
    assert found.object is not None
    np.testing.assert_allclose(found.object.transl, image["object"]["transl"], atol=1e-5)


def test_a_network_of_whole_frames_needs_no_boxes(trained: Trained, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_network(run / "weights", trained.mano, mirror_left=False, scene=Scene.hand_object)
    write_manifest(run, trained.mano_folder, margin=1.25, cache_px=40, kind="frame")
    write_image(tmp_path / "a.png", frame(1))
    record = predicted(run, tmp_path / "a.png", tmp_path / "out", boxes=None)
    (right, left) = record["images"]["a.png"]["hands"]
    assert right["square_xyxy"] == left["square_xyxy"] == [-0.5, -16.5, 127.5, 111.5]


def test_scenes_without_their_run_are_refused(
    trained: Trained, scene_run: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "weights"
    alone.mkdir()
    for file in (scene_run / "weights").iterdir():
        (alone / file.name).write_bytes(file.read_bytes())
    write_image(tmp_path / "a.png", frame(1))
    with pytest.raises(ValueError, match=r"lie in no run whose manifest.json says in which view"):
        predict.main(config(alone, tmp_path / "a.png", mano=str(trained.mano_folder)))


# --- windows --------------------------------------------------------------------------------------


def test_windows_are_runs_of_one_hand() -> None:
    """Two hands in images 0 to 3, the right one alone in 5 and 6."""
    shown = [(n, right) for n in range(4) for right in (True, False)] + [(5, True), (6, True)]
    crops: Any = [
        SimpleNamespace(number=n, box=HandBox(is_right=right, box_xyxy=None)) for n, right in shown
    ]
    batch = in_windows(blank_batch(torch.zeros(10, 3, 8, 8), 1), crops, LENGTH)
    assert batch.sample_id.tolist() == [
        [0, 2, 4], [6, 6, 6], [8, 9, 9],  # the right hand: 0 to 3, then 5 and 6
        [1, 3, 5], [7, 7, 7],
    ]  # fmt: skip
    assert batch.is_real.sum(1).tolist() == [3, 1, 2, 3, 1]
    assert batch.image.shape == (5, 3, 3, 8, 8)


@pytest.mark.parametrize(("scene", "kind"), [(Scene.hand, "hand"), (Scene.hand_object, "frame")])
def test_frames_are_predicted_in_their_windows(tmp_path: Path, scene: Scene, kind: str) -> None:
    run = windows_run(tmp_path, scene, kind)
    predictor = Predictor.from_run(run, device="cpu", precision="fp32")
    assert predictor.num_frames == LENGTH
    box = HandBox(is_right=True, box_xyxy=(20, 10, 100, 90))
    crops = [
        crop_of(InputImage(name="", rgb=frame(i), number=i), own, K, predictor.crops)
        for i in range(4)
        for own in boxes_of_view((box,), predictor.crops)
    ]
    together = [found.hands[0].joints_3d for found in predict_hands(predictor, crops)]
    alone = [next(predict_hands(predictor, [crop])).hands[0].joints_3d for crop in crops]
    windows = [*predict_hands(predictor, crops[:3]), *predict_hands(predictor, crops[3:])]
    for mine, window in zip(together, windows, strict=True):
        np.testing.assert_allclose(mine, window.hands[0].joints_3d, atol=1e-5)
    assert np.abs(together[1] - alone[1]).max() > 1e-4, "its neighbours matter"
    np.testing.assert_allclose(together[3], alone[3], atol=1e-5)


def test_windows_are_the_same_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = windows_run(tmp_path, Scene.hand, "hand")
    for i in range(8):
        write_image(tmp_path / "images" / f"{i}.png", frame(i))
    options: dict[str, Any] = {"boxes": "none", "batch_size": 2}
    whole = predicted(run, tmp_path / "images", tmp_path / "whole", **options)
    left = [5]

    def stopping(hand: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return hand_record(hand)

    monkeypatch.setattr(predict, "hand_record", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict.main(config(run, tmp_path / "images", out=tmp_path / "out", **options))
    again = predicted(run, tmp_path / "images", tmp_path / "out", **options)
    assert "goes on after 3 inputs" in capsys.readouterr().out
    assert json.dumps(again["images"]) == json.dumps(whole["images"])
