"""Exported files as predictors: what the run predicts, without a network of torch."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from model.pretrained import load_pretrained
from tests.pipeline.hand_store import frame
from tests.train.predict.networks import Trained, a_box, predicted, write_image, write_json
from train.config import Decode, ExportConfig, PredictConfig
from train.export.export import main as export
from train.predict import exported
from train.predict.hands import Predictor

BOXES = [a_box("left"), a_box(xyxy=(10, 12, 60, 80))]
K = np.array([[150.0, 0, 63.5], [0, 150, 47.5], [0, 0, 1]])


@pytest.fixture(scope="module")
def outside(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that MANO decodes outside."""
    file = tmp_path_factory.mktemp("exported") / "hand.onnx"
    config = ExportConfig(
        run=str(trained.run), mano=str(trained.mano_folder), out=str(file), decode=Decode.outside
    )
    assert export(config) == 0
    return file


def test_a_file_predicts_what_its_run_does(
    trained: Trained, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a.png", frame(3))
    options: dict[str, Any] = {
        "boxes": write_json(tmp_path / "b.json", {"a.png": BOXES}),
        "intrinsics": "150,150,63.5,47.5",
        "mano": str(trained.mano_folder),
        "meshes": True,
    }
    expected = predicted(trained.run, tmp_path / "a.png", tmp_path / "run", **options)
    monkeypatch.setattr("train.predict.hands.load_pretrained", None)  # no network is built
    found = predicted(None, tmp_path / "a.png", tmp_path / "file", model=str(outside), **options)
    assert (found["step"], found["joint_set"]) == (7, "smplx")
    pairs = zip(*(r["images"]["a.png"]["hands"] for r in (found, expected)), strict=True)
    for mine, theirs in pairs:
        assert mine.keys() == theirs.keys()
        for name in ("joints_3d", "theta", "beta", "transl"):
            np.testing.assert_allclose(mine[name], theirs[name], atol=2e-5, err_msg=name)
    meshes = [sorted((tmp_path / n / "meshes").iterdir()) for n in ("run", "file")]
    assert len(meshes[0]) == len(meshes[1]) == 2
    predictor = Predictor.from_file(outside, mano=trained.mano_folder)
    hands = predictor(tmp_path / "a.png", BOXES, intrinsics=K)
    for hand, told in zip(hands, found["images"]["a.png"]["hands"], strict=True):
        np.testing.assert_allclose(hand.joints_3d, told["joints_3d"], atol=1e-6)


def test_a_file_that_mano_decodes_outside_holds_nothing_of_it(
    trained: Trained, outside: Path
) -> None:
    about = json.loads(outside.with_suffix(".json").read_text())
    assert "licence" not in about
    assert list(about["outputs"]) == ["hands.wrist", "hands.theta_rotmat", "hands.beta"]
    assert about["outputs"]["hands.wrist"]["shape"] == ["b", 1, 3]
    assert about["differences_mm"]["hands.wrist"]["max"] <= 1e-2
    data = outside.read_bytes()
    for name in ("v_template", "shapedirs"):
        values = np.asarray(getattr(trained.mano.right, name)).astype(np.float32).ravel()
        (some,) = np.flatnonzero(np.convolve(values != 0, np.ones(4), "valid") == 4)[:1]
        assert values[some : some + 4].tobytes() not in data, name
    with pytest.raises(ValueError, match="gives MANO parameters, which need the MANO files"):
        Predictor.from_file(outside)


def test_the_loop_of_the_docs_finds_the_same_wrist(trained: Trained, outside: Path) -> None:
    page = Path(__file__).parents[3] / "docs" / "predict.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    code = code.replace("runs/first/export/model", str(outside.with_suffix("")))
    code = code.replace("hands.joints_3d", "hands.wrist")
    assert code.count("\n") < 32
    names: dict[str, Any] = {}
    rgb = cv2.resize(frame(2), (256, 192), interpolation=cv2.INTER_CUBIC)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cv2, "imread", lambda _: rgb[..., ::-1])
        for side in ("left", "right"):
            exec(code.replace("is_right = False", f"is_right = {side == 'right'}"), names)
            predictor = Predictor.from_file(outside, mano=trained.mano_folder)
            box = a_box(side, names["box"])
            (hand,) = predictor(rgb, [box], intrinsics=names["K"].astype(np.float64))
            np.testing.assert_allclose(names["joints"], hand.joints_3d[0], rtol=0.02, atol=2e-3)


def test_a_file_with_everything_inside_is_taken_as_it_is(
    trained: Trained, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime stood in for by the network itself."""
    file = tmp_path / "hand.onnx"
    file.write_bytes(outside.read_bytes())
    about = json.loads(outside.with_suffix(".json").read_text())
    write_json(file.with_suffix(".json"), about | {"decode": "inside"})
    network = load_pretrained(trained.run / "weights", mano=trained.mano)
    run = Predictor.from_run(trained.run, device="cpu", precision="fp32")

    def session(*_: Any) -> Any:
        def outputs(batch: Any) -> dict[str, torch.Tensor]:
            found = run.network(batch).hands
            assert found is not None
            names = (field.name for field in dataclasses.fields(found))
            values = {f"hands.{name}": getattr(found, name) for name in names}
            return {name: value for name, value in values.items() if value is not None}

        return outputs

    monkeypatch.setattr(exported, "session_of", session)
    for mano, has_faces in ((None, False), (trained.mano_folder, True)):
        predictor = Predictor.from_file(file, mano=mano)
        assert (predictor.faces is not None) == has_faces
        hands = zip(predictor(frame(3), BOXES), run(frame(3), BOXES), strict=True)
        for mine, theirs in hands:
            np.testing.assert_allclose(mine.joints_3d, theirs.joints_3d, atol=1e-7)
            assert mine.vertices is not None
    assert network.training is False


def test_files_that_do_not_fit_are_one_sentence(
    trained: Trained, outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(file: Path, expected: str, **options: Any) -> None:
        options.setdefault("mano", str(trained.mano_folder))
        with pytest.raises((ValueError, OSError), match=expected):
            exported.load_exported(PredictConfig(model=str(file), images="x", **options))

    about = json.loads(outside.with_suffix(".json").read_text())
    copy = tmp_path / "hand.onnx"
    copy.write_bytes(outside.read_bytes())
    refused(copy, r"with hand\.json beside it")
    write_json(tmp_path / "hand.json", about | {"version": 2})
    refused(copy, "is of another version; export the run again")
    write_json(tmp_path / "hand.json", about | {"format": "pt2"})
    refused(copy, "has format 'pt2'; predict runs format=onnx")
    write_json(tmp_path / "hand.json", about | {"mano_sha256": "0" * 64})
    refused(copy, "is not the MANO of the training")
    write_json(tmp_path / "hand.json", [about])
    refused(copy, "does not describe an exported network")
    write_json(tmp_path / "hand.json", about)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(copy, r"pip install handloom\[export\]")
    monkeypatch.undo()
    copy.write_bytes(b"torn")
    refused(copy, r"describes another file than hand\.onnx")
    refused(tmp_path / "none.onnx", "does not exist")
    with pytest.raises(ValueError, match=r"give run=RUN or model=FILE\.onnx, one of them; got nei"):
        PredictConfig(images="x")
