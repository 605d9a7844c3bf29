"""A search in turns: what decides learns from validation rows, all else from training rows, each alone."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from torch import Tensor

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.embeddings.compression.autosrh import AutoSrh
from ctrkit.training import loop
from ctrkit.training.run import RunResult, load_run
from ctrkit.training.trainer import train

TRAIN, VALID, BATCH, RATE = 2000, 400, 100, 0.004
STEPS = TRAIN // BATCH
"""Of an epoch."""


def autosrh(**settings: Any) -> dict[str, Any]:
    return {"dim": 8, "compression": {"method": "autosrh", "budget": 0.5, "groups": 2, **settings}}


def selection_after(folder: Path, *, turned: bool, **settings: Any) -> Tensor:
    """Of a search on a log whose clicks may be turned round in validation rows."""
    rng = np.random.default_rng(0)
    rows = TRAIN + 2 * VALID
    user, item = rng.integers(0, 30, rows), rng.integers(0, 30, rows)
    click = rng.random(rows) < np.where((user % 2) == (item % 2), 0.9, 0.1)
    valid = (np.arange(rows) // VALID) == TRAIN // VALID
    folder.mkdir()
    pl.DataFrame({"user": user, "item": item, "click": (click ^ (turned & valid)).astype(int)}).write_csv(folder / "log.csv")
    experiment = Experiment.model_validate(
        {
            "name": "turned",
            "data": {"path": str(folder / "log.csv")},
            "label": "click",
            "split": {"by": "order", "valid": VALID, "test": VALID},
            "features": [{"name": ["user", "item"], "kind": "categorical", "dtype": "int"}],
            "model": {"name": "fm"},
            "embedding": {"learning_rate": 0.05, **autosrh(selection_learning_rate=RATE, selection_l1=0, **settings)},
            "training": {"batch_size": BATCH, "epochs": 1, "threads": 1},
            "output": str(folder / "out"),
        }
    )
    result = train(experiment, prepare(experiment, folder / "dataset"), console=Console(quiet=True))
    return load_run(result.run)[2]["decision"]["embedding/selection"]


@pytest.fixture
def to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search goes on where validation rows teach what training rows do not, and decides from its last weights."""
    monkeypatch.setattr(AutoSrh, "search_stops_early", False)


@pytest.mark.usefixtures("to_the_end")
def test_what_decides_learns_from_validation_rows_alone(tmp_path: Path) -> None:
    settings = {"warmup_epochs": 2, "search_epochs": 2}
    same = selection_after(tmp_path / "same", turned=False, **settings)
    turned = selection_after(tmp_path / "turned", turned=True, **settings)
    assert same.mean() > 0.99, "what training rows teach is right in validation rows too"
    assert turned.mean() < 1 - RATE * STEPS, "what training rows teach is wrong in validation rows"


@pytest.mark.usefixtures("to_the_end")
def test_what_decides_stays_as_it_is_until_its_turns_begin(tmp_path: Path) -> None:
    """Adam takes steps of no more than its rate where all gradients have the same sign."""
    turned = selection_after(tmp_path / "turned", turned=True, warmup_epochs=3, search_epochs=1)
    assert 1 - 1.01 * RATE * STEPS < turned.min() < 1 - 0.5 * RATE * STEPS


def records(folder: Path) -> list[tuple[int, float, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["auc"], line["logloss"]) for line in lines if line["event"] == "valid"]


@pytest.mark.parametrize(
    ("optimizer", "model"),
    [("adagrad", {"name": "dnn", "hidden": [16]}), ("adam", {"name": "dcn", "hidden": [16], "batch_norm": True})],
    ids=["adagrad", "adam, batch norm"],
)
def test_steps_of_what_decides_move_nothing_else(
    optimizer: str, model: dict[str, Any], experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path
) -> None:
    """A search that decides with a rate of nearly nothing is the training of a full table: the state of its optimizer and of its
    normalisation is the same too."""
    common: dict[str, Any] = {"model": model, "precision": "fp32", "epochs": 3}
    still = autosrh(warmup_epochs=1, search_epochs=2, selection_learning_rate=1e-12, selection_l1=0)
    full = {"dim": 8, "compression": {"method": "magnitude", "budget": 1.0}}
    runs = [
        train(experiment(**common, embedding={**e, "optimizer": optimizer, "l2": 1e-3}), dataset, console=Console(quiet=True)).run
        for e in (still, full)
    ]
    searched, trained = records(runs[0] / "search"), records(runs[1])
    assert len(searched) == 3 and np.array(searched) == pytest.approx(np.array(trained), abs=1e-6)


class Killed(BaseException):
    """Stands for a kill: nothing in the code under test catches it."""


@contextmanager
def killed_at(call: int) -> Iterator[None]:
    """Killed at a call of the clipping of gradients, which a step on training rows has one of."""
    original, calls = loop.clip_grad_norm_, 0

    def count_and_call(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "clip_grad_norm_", count_and_call)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("method", ["autodim", pytest.param("autosrh", marks=pytest.mark.slow)])
def test_resumed_after_a_kill_between_turns_it_is_the_same_search(
    method: str, experiment: Callable[..., Experiment], dataset: Dataset, tmp_path: Path
) -> None:
    """15 steps an epoch, 5 batches of validation rows: the kill is in their second pass or later."""
    embedding = {"dim": 8, "compression": {"method": method, "budget": 0.5, "search_epochs": 2}}
    settings = experiment(epochs=1, checkpoint_every=7, embedding=embedding)

    def run(name: str, **options: Any) -> RunResult:
        return train(settings, dataset, run_dir=tmp_path / name, console=Console(quiet=True), **options)

    whole = run("whole")
    with killed_at(26):
        run("killed")
    resumed = run("killed", resume=True)
    assert (resumed.valid, resumed.test, resumed.embedding_bytes) == (whole.valid, whole.test, whole.embedding_bytes)
    assert records(resumed.run / "search") == records(whole.run / "search")
