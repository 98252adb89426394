import pytest
import torch

from pipeline.app.machine import Commit
from train.watch import manifest as manifest_module
from train.watch.manifest import manifest

SHA = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        (Commit(sha=SHA, dirty=False), "0123456789ab"),
        (Commit(sha=SHA, dirty=True), "0123456789ab-dirty"),
        (Commit(sha=None, dirty=None), None),
    ],
)
def test_a_manifest_names_code_data_and_versions(
    monkeypatch: pytest.MonkeyPatch, commit: Commit, expected: str | None
) -> None:
    monkeypatch.setattr(manifest_module, "git_state", lambda: commit)
    found = manifest({"steps": 3}, "store", "mano")
    assert found["git"] == expected
    assert (found["config"], found["store_sha256"], found["mano_sha256"]) == (
        {"steps": 3},
        "store",
        "mano",
    )
    assert found["versions"]["torch"] in torch.__version__
