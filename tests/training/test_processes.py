"""Training in processes of its own: killed for real, and several of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.errors import CtrkitError
from ctrkit.training.run import load_run, read_result, write_config
from ctrkit.training.trainer import train

SCRIPT = Path(__file__).with_name("train_process.py")
TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def start(experiment: Experiment, dataset: Dataset, *kill: int, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    folder = Path(experiment.output)
    folder.mkdir(exist_ok=True)
    write_config(folder, experiment)
    command = [sys.executable, *launcher, SCRIPT, folder / "config.yaml", dataset.path, *kill]
    return subprocess.run(
        [str(part) for part in command], check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_a_process_that_is_killed_resumes_bit_for_bit(experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path) -> None:
    settings = experiment(checkpoint_every=4)
    assert start(settings, dataset, 20, 0).returncode == -9
    resumed = train(settings, dataset, resume=True)
    whole = train(settings, dataset, run_dir=tmp_path / "whole")
    assert (resumed.valid, resumed.test) == (whole.valid, whole.test)
    ours, theirs = load_run(resumed.run)[2]["tables"], load_run(whole.run)[2]["tables"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_two_processes_killed_and_resumed_learn_what_one_learns(
    experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path
) -> None:
    settings = experiment(checkpoint_every=4, model={"name": "dnn", "hidden": [16]})
    assert start(settings, dataset, 20, 1, launcher=TWO).returncode != 0
    run_dir = Path(settings.output) / "runs" / "tiny-dnn-1"
    with pytest.raises(CtrkitError, match="saved by 2 processes and cannot be resumed by 1.*nproc-per-node 2"):
        train(settings, dataset, run_dir=run_dir, resume=True)
    finished = start(settings, dataset, launcher=TWO)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr.count("epoch 3/3") == 1
    two, one = read_result(run_dir), train(settings, dataset, run_dir=tmp_path / "one")
    assert two is not None
    for metric in ("auc", "logloss"):  # ece jumps where a last bit moves a row to another bin
        assert (two.test[metric], two.valid[metric]) == pytest.approx((one.test[metric], one.valid[metric]), abs=2e-3)
    assert (two.epochs, two.params) == (one.epochs, one.params)
