"""What a trial is, which settings a grid has, and what becomes of a trial that fails."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ctrkit.errors import CtrkitError
from pipelines.bench.process import Ended, run_command
from pipelines.bench.trials import Trial, Trials, grid_points


def write_config(folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(
        "name: tiny\ndata: {path: log.csv}\nlabel: click\nfeatures: [{name: user, kind: categorical}]\nmodel: {name: deepfm, hidden: [8]}\n"
    )
    return path


def test_a_grid_is_every_combination_of_its_axes() -> None:
    grid = ["model.dropout=0,0.2", "model.hidden=[64],[64,32]", "embedding.l2=0"]
    assert grid_points(grid, {"dropout", "hidden"}) == [
        ("model.dropout=0", "model.hidden=[64]", "embedding.l2=0"),
        ("model.dropout=0", "model.hidden=[64,32]", "embedding.l2=0"),
        ("model.dropout=0.2", "model.hidden=[64]", "embedding.l2=0"),
        ("model.dropout=0.2", "model.hidden=[64,32]", "embedding.l2=0"),
    ]
    nested = ["model.settings={hidden: [8, 8], dropout: 0.1},{}"]
    assert grid_points(nested, {"settings"}) == [("model.settings={hidden: [8, 8], dropout: 0.1}",), ("model.settings={}",)]
    assert grid_points(grid, set()) == [("embedding.l2=0",)], "a model without such settings has none to try"
    with pytest.raises(CtrkitError, match="has no values"):
        grid_points(["embedding.l2"], set())


def test_only_the_configs_own_model_keeps_its_settings(tmp_path: Path) -> None:
    config = str(write_config(tmp_path))
    own, other = (Trial(config, name, ("embedding.dim=4",), 2).arguments() for name in ("deepfm", "lr"))
    assert [part for part in own if "=" in part] == ["training.seed=2", "embedding.dim=4"]
    assert [part for part in other if "=" in part] == ["model={name: lr}", "training.seed=2", "embedding.dim=4"]


def test_a_failed_trial_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(arguments: list[str], threads: int | None) -> Ended:
        ran.append(arguments)
        return Ended(2, "", "error: no such log")

    monkeypatch.setattr("pipelines.bench.trials.run_command", run)
    said: list[str] = []
    for _ in range(2):
        trials = Trials(tmp_path / "out", said.append)
        assert trials.measure(str(write_config(tmp_path)), "deepfm", [("embedding.dim=4",), ("embedding.dim=8",)], 3, "auc") is None
    assert len(ran) == 4, "each of the grid's points, both times; no other seed"
    assert "error: no such log" in said[0] and said[2].startswith("tiny deepfm: every trial failed")


def test_a_command_runs_in_a_process_of_its_own() -> None:
    listed, wrong = run_command(["models", "--json"], threads=1), run_command(["train", "nowhere.yaml"])
    assert listed.status == 0 and {"deepfm", "lr"} <= {model["name"] for model in json.loads(listed.stdout.splitlines()[-1])}
    assert wrong.status == 2 and "nowhere.yaml" in wrong.stderr
    assert run_command(["models", "--json"]) == listed


def test_a_benchmark_that_is_killed_takes_its_command_along(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    os.mkfifo(log)
    config = write_config(tmp_path)
    config.write_text(config.read_text().replace("log.csv", str(log)))
    code = f"from pipelines.bench.process import run_command; run_command(['train', {str(config)!r}])"
    benchmark = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        with log.open("wb"):  # open once the command reads it; nothing is written: it waits
            benchmark.kill()
            assert any(not living(benchmark.pid) or time.sleep(0.05) for _ in range(400))
    finally:
        benchmark.kill()
        benchmark.wait()


def living(group: int) -> list[str]:
    """Processes of the group that have not ended."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of, *_ = process.read_text().rpartition(")")[2].split()
            found += [process.parent.name] if int(of) == group and state != "Z" else []
    return found
