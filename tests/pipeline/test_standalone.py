"""The loader in somebody else's trainer, from a folder that holds a ``model`` and ``train.py``."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import SampleStore

TRAIN = """
import sys

import torch

from model.net import build
from pipeline.config import CacheConfig, PipelineConfig
from pipeline.loader import Loader

config = PipelineConfig(
    store=sys.argv[1], batch_size=8, input_px=32, cache=CacheConfig(size_px=40)
)
loader = Loader(config, device=torch.device("cpu"), training=True)
net = build()
optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
for step, batch in enumerate(loader):
    loss = (net(batch.image) - batch.joints_3d.flatten(1)).square().mean()
    loss.backward()
    optimizer.step()
    if step == 2:
        break
import model
import model.geometry.camera
print("trained", round(float(loss), 3) > 0, model.MINE, loader.state_dict()["step"])
"""
NET = """
import torch


def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 63))
"""


def run(folder: Path, store: Path, script: str = TRAIN) -> str:
    (folder / "train.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "train.py", str(store)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_loader_works_beside_a_package_named_model(
    freihand: SampleStore, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "__init__.py").write_text("MINE = 'my package'\n")
    (tmp_path / "model" / "net.py").write_text(NET)
    assert run(tmp_path, freihand.store).splitlines()[-1] == "trained True my package 3"


def test_the_loader_works_beside_a_module_named_model(
    freihand: SampleStore, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text("MINE = 'my module'\n" + NET)
    # Imported after the pipeline here, before it in the other test.
    script = TRAIN.replace("from model.net import build\n", "")
    script = script.replace("config = ", "from model import build\n\nconfig = ", 1)
    assert run(tmp_path, freihand.store, script).splitlines()[-1] == "trained True my module 3"
