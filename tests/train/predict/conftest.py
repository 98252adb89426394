"""Trained runs that the tests of predict share; they only read them."""

from pathlib import Path

import pytest

from model.mano.files import load_mano
from model.regressor.config import Head
from preprocess.sample.hand.mesh import write_mano
from tests.train.predict.networks import Trained, save_network, write_manifest


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    write_mano(folder / "mano")
    mano = load_mano(folder / "mano")
    save_network(folder / "run" / "weights", mano)
    write_manifest(folder / "run", folder / "mano", margin=1.25, cache_px=40)
    return Trained(run=folder / "run", mano_folder=folder / "mano", mano=mano)


@pytest.fixture(scope="session")
def joints_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("joints") / "run"
    save_network(run / "weights", None, head=Head.joints)
    return run


@pytest.fixture(autouse=True)
def no_mano_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HANDLOOM_MANO", raising=False)
