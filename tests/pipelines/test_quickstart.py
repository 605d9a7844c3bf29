import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from ctrkit.config_file import load_config
from ctrkit.errors import CtrkitError
from pipelines.quickstart import service

ROOT = Path(__file__).parents[2]


def test_the_whole_path(tmp_path: Path) -> None:
    """As a user runs it: in a process of its own, in a folder of their own."""
    small = ["--rows", "4000", "--set", "training.epochs=2", "--set", "training.threads=1", "--set", "model={name: fm}"]
    command = [sys.executable, "-m", "pipelines.cli", "quickstart", *small, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=None, check=False)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout.splitlines()[-1])
    assert {"auc", "logloss", "best_auc", "best_logloss", "http_max_abs_diff", "run", "bundle", "seconds"} <= set(said)
    assert said["http_max_abs_diff"] < 1e-6
    assert 0.3 < said["auc"] < said["best_auc"] < 1
    assert said["best_logloss"] < said["logloss"]
    assert (tmp_path / said["run"] / "result.json").is_file()
    assert (tmp_path / said["bundle"] / "model.onnx").is_file()
    assert pl.read_parquet(tmp_path / "out/quickstart/predictions.parquet").height == 4000
    ending = result.stderr.splitlines()[-8:]
    assert any("reachable" in line and "HTTP score = offline score" in line for line in ending)
    assert sum(line.strip().startswith("ctrkit ") for line in ending) == 3


def test_it_trains_what_configs_simulated_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two differ in where the log lies and how long they train, not in what they read."""
    text = (ROOT / "pipelines/quickstart.yaml").read_text()
    config = tmp_path / "quickstart.yaml"
    config.write_text(text.replace("$parts", "log.parquet").replace("$output", "out"))
    ours, shipped = load_config(config), load_config(ROOT / "configs/simulated.yaml")
    assert (ours.features, ours.label, ours.group, ours.split) == (shipped.features, shipped.label, shipped.group, shipped.split)


def test_a_service_that_does_not_start_is_named(tmp_path: Path) -> None:
    with pytest.raises(CtrkitError, match="the service did not start"), service(tmp_path):
        pytest.fail("there is nothing to serve")
