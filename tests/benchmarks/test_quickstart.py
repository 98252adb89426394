"""The quickstart's rows: a run per seed, its time and its scores; nothing is run here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import quickstart
from benchmarks.config import QuickstartBenchConfig


def test_every_seed_is_run_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def make(words: list[str], **_: Any) -> SimpleNamespace:
        asked.append(words)
        folder = Path(words[2].removeprefix("DIR=")) / "run" / "evaluate-freihand-ab-evaluation"
        folder.mkdir(parents=True)
        scores = {"model": 10 + len(asked), "untrained": 18, "mean_pose": 19}
        record = {name: {"pa_mpjpe_mm": float(value)} for name, value in scores.items()}
        (folder / "scores.json").write_text(json.dumps(record))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(quickstart, "subprocess", SimpleNamespace(run=make))
    results = tmp_path / "rows.jsonl"
    config = QuickstartBenchConfig(out=str(tmp_path / "out"), results=str(results))
    assert quickstart.main(config) == 0
    assert [words[3] for words in asked] == ["SEED=0", "SEED=1", "SEED=2"]
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["variant"], row["p50"], row["n"]) for row in rows[1:]] == [
        ("model", 12, 3),
        ("untrained", 18, 3),
        ("mean_pose", 19, 3),
    ]
    assert rows[0]["metric"] == "time"
    failed = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=2))
    monkeypatch.setattr(quickstart, "subprocess", failed)
    with pytest.raises(ValueError, match=r"make quickstart .* ended with exit code 2"):
        quickstart.main(config)
