"""Towers learn the shop's tastes, of training events alone, and a killed training goes on as if it had not been."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import Evaluation, RetrievalExperiment
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.events import TRAIN
from ctrkit.retrieval.negatives import Negatives
from ctrkit.retrieval.run import create_run, read_weights
from ctrkit.retrieval.trainer import train
from ctrkit.retrieval.training import TowerTraining

QUIET = Console(quiet=True)
SMALL = {"hidden": [16], "width": 8, "temperature": 0.2}


def changed(experiment: RetrievalExperiment, output: Path, model: dict[str, Any], **training: object) -> RetrievalExperiment:
    settings = {**experiment.training.model_dump(), **training}
    tree = experiment.model_dump(mode="json")
    return RetrievalExperiment.model_validate({**tree, "output": str(output), "model": model, "training": settings})


@pytest.mark.parametrize(
    "model",
    [
        {"auxiliary": {"kind": "ssl"}},
        {"auxiliary": {"kind": "ssl", "masking": "random", "items": 16}, "negatives": {"uniform": 16}},
        {"auxiliary": {"kind": "spread_out"}, "loss": "infonce", "negatives": {"in_batch": False, "popularity": 30}},
        {"auxiliary": {"kind": "feature_dropout"}, "loss": "bpr"},
        {"negatives": {"memory": 2, "memory_warmup": 3}, "dropout": 0.1},
        {"negatives": {"uniform": 16, "hard": 8}},
    ],
    ids=["ssl", "random-masking-mixed", "spread-out-popularity", "feature-dropout-bpr", "memory", "hard"],
)
def test_every_kind_beats_chance(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path, model: dict[str, Any]) -> None:
    """18 of 40 items are of the wrong parity and 7 of the right one seen: chance is 5 of 33 and knowing the taste 5 of 13."""
    result = train(
        changed(experiment, tmp_path, {"name": "two_tower", **SMALL, **model}, epochs=6, patience=6, learning_rate=0.01),
        dataset,
        console=QUIET,
    )
    assert result.test["recall@5"] > 0.25
    assert json.loads((result.run / "result.json").read_text())["test"] == result.test
    assert result.slices["warm_items"]["queries"] == 120


def test_validation_may_ask_fewer(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path) -> None:
    """The same queries whenever it asks, and the test asks all."""
    few = experiment.model_copy(update={"evaluation": Evaluation(at=(5,), valid_queries=7)})
    result = train(changed(few, tmp_path, {"name": "popularity"}, monitor="ndcg@5"), dataset, console=QUIET)
    asked, whole = dataset.queries("valid", 7), dataset.queries("valid")
    assert len(asked) == 7 and np.array_equal(asked.event, dataset.queries("valid", 7).event)
    found = np.searchsorted(whole.event, asked.event)
    np.testing.assert_array_equal(whole.targets[0][found], asked.targets[0])
    for mine, all_of_them in ((asked.seen, whole.seen), (asked.history, whole.history)):
        for place, query in enumerate(found):
            own, other = (bags[0][slice(*bags[1][row : row + 2])] for bags, row in ((mine, place), (all_of_them, query)))
            np.testing.assert_array_equal(own, other)
    assert result.valid["recall@5"] * 7 == pytest.approx(round(result.valid["recall@5"] * 7)), "a mean of seven"
    assert result.slices["warm_items"]["queries"] == 120


def test_another_validation_is_not_resumed(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path) -> None:
    """Its best value would be one of other queries, or of another metric."""
    model = {"name": "two_tower", **SMALL}
    begun = changed(experiment, tmp_path, model)
    create_run(begun, dataset, None)
    for other, named in (
        (begun.model_copy(update={"evaluation": begun.evaluation.model_copy(update={"valid_queries": 7})}), "evaluation.valid_queries"),
        (changed(begun, tmp_path, model, monitor="mrr"), "training.monitor"),
    ):
        with pytest.raises(CtrkitError, match=f"cannot be resumed with another {named}"):
            train(other, dataset, console=QUIET, resume=True)


def test_training_sees_training_events_alone(
    experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a positive, nor a negative, nor a frequency is of an event of validation or test."""
    told: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    steps: list[np.ndarray] = []
    draw, step = Negatives.draw, TowerTraining.step

    def watched(self: Negatives, positives: np.ndarray, random: np.random.Generator) -> np.ndarray:
        found = draw(self, positives, random)
        told.append(positives)
        drawn.append(found)
        return found

    def noted(self: TowerTraining, events: np.ndarray, random: np.random.Generator) -> torch.Tensor:
        steps.append(events)
        return step(self, events, random)

    monkeypatch.setattr(Negatives, "draw", watched)
    monkeypatch.setattr(TowerTraining, "step", noted)
    model = {"name": "two_tower", **SMALL, "negatives": {"uniform": 8, "popularity": 8}}
    train(changed(experiment, tmp_path, model, epochs=1), dataset, console=QUIET)
    used = np.concatenate(steps)
    assert (dataset.events.split[used] == TRAIN).all() and len(used) == dataset.rows["train"]
    np.testing.assert_array_equal(np.concatenate(told), dataset.events.item[used])
    assert (dataset.counts[np.concatenate(drawn)] > 0).all()


@pytest.mark.parametrize("left", [1, 3])
def test_the_events_left_over_are_spread_over_the_steps(
    experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    """In a step of their own each would weigh many times what it weighs elsewhere."""
    steps: list[np.ndarray] = []
    monkeypatch.setattr(TowerTraining, "step", lambda self, events, random: steps.append(events) or torch.zeros(()))
    size = dataset.rows["train"] - left
    train(changed(experiment, tmp_path, {"name": "two_tower", **SMALL}, epochs=1, batch_size=size), dataset, console=QUIET)
    first, second = steps
    assert abs(len(first) - len(second)) <= 1
    assert np.array_equal(np.sort(np.concatenate(steps)), np.sort(dataset.events.of_split("train")))


@pytest.mark.parametrize("kind", [{"negatives": {"memory": 1, "memory_warmup": 0}, "dropout": 0.2}, {"auxiliary": {"kind": "ssl"}}])
def test_a_killed_training_goes_on(
    experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, Any]
) -> None:
    settings = changed(experiment, tmp_path / "a", {"name": "two_tower", **SMALL, **kind}, epochs=3, patience=3)
    whole = train(settings, dataset, console=QUIET)
    evaluate = TowerTraining._evaluate

    def killed(self: TowerTraining, *arguments: Any) -> None:
        evaluate(self, *arguments)
        if self.progress.epoch == 2:
            raise KeyboardInterrupt

    other = settings.model_copy(update={"output": str(tmp_path / "b")})
    monkeypatch.setattr(TowerTraining, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        train(other, dataset, console=QUIET)
    monkeypatch.setattr(TowerTraining, "_evaluate", evaluate)
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    resumed = train(other, dataset, console=QUIET, resume=True)
    assert resumed.test == whole.test and resumed.valid == whole.valid
    for name, tensor in read_weights(whole.run)["towers"].items():
        torch.testing.assert_close(tensor, read_weights(resumed.run)["towers"][name], rtol=0, atol=0)
    assert train(other, dataset, console=QUIET, run_dir=resumed.run, resume=True).test == whole.test, "a finished run is left as it is"
    with pytest.raises(CtrkitError, match="no unfinished run"):
        train(other, dataset, console=QUIET, resume=True)
    still = {"training": settings.training.model_copy(update={"learning_rate": 1e-30}), "output": str(tmp_path / "c")}
    rates: list[float] = []
    step = TowerTraining.step

    def noted(self: TowerTraining, *arguments: Any) -> torch.Tensor:
        rates.extend(group["lr"] for group in self.optimizer.param_groups)
        return step(self, *arguments)

    monkeypatch.setattr(TowerTraining, "step", noted)
    train(settings.model_copy(update=still), dataset, console=QUIET, resume=True)
    assert set(rates) == {1e-30}, "a new learning rate is heeded"


def test_what_a_method_does_not_read_is_said(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path) -> None:
    said = io.StringIO()
    train(changed(experiment, tmp_path, {"name": "popularity"}, learning_rate=0.5), dataset, console=Console(file=said, width=300))
    assert "model 'popularity' does not read " in said.getvalue() and "training.learning_rate" in said.getvalue()
    train(experiment.model_copy(update={"output": str(tmp_path / "towers")}), dataset, console=Console(file=said, width=300))
    assert said.getvalue().count("does not read") == 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"name": "two_towers"}, "unknown retrieval model 'two_towers'. Did you mean 'two_tower'"),
        ({"name": "two_tower", "widht": 3}, "unknown key 'widht'. Did you mean 'width'"),
        ({"name": "two_tower", "auxiliary": {"kind": "sl"}}, "unknown kind 'sl'. Did you mean 'ssl'"),
    ],
)
def test_models_that_there_are_not(
    experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path, model: dict[str, Any], said: str
) -> None:
    with pytest.raises(CtrkitError) as error:
        train(changed(experiment, tmp_path, model), dataset, console=QUIET)
    assert said in str(error.value)
    assert not any(tmp_path.iterdir())


def test_settings_without_a_name_are_the_towers(experiment: RetrievalExperiment, tmp_path: Path) -> None:
    assert changed(experiment, tmp_path, {"dropout": 0.5}).model.name == "two_tower"


def test_a_loss_that_is_no_number_is_an_error(experiment: RetrievalExperiment, dataset: RetrievalDataset, tmp_path: Path) -> None:
    wild = changed(experiment, tmp_path, {"name": "two_tower", **SMALL, "normalise": False, "temperature": 1e-38}, clip_norm=0)
    with pytest.raises(CtrkitError, match="the loss is not finite in epoch 1, step"):
        train(wild, dataset, console=QUIET)
    assert not any((tmp_path / "runs").iterdir()), "there is nothing in it to resume"
