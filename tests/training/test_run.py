"""The run folder: what is written is read back the same, and one that cannot be made is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.errors import CtrkitError
from ctrkit.training.run import check_same_training, create_run, dataset_of_run, read_experiment

Make = Callable[..., Experiment]


@pytest.mark.parametrize(
    "change",
    [
        {"name": "7e2"},
        {"output": "1e-3"},
        {"group": "3e7"},
        {"label": {"first": "1e3", "second": "on"}},
        {"features": [{"name": "1e5", "kind": "categorical"}, {"name": "tags", "kind": "multi_valued", "separator": "1e1"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_texts_that_look_like_numbers_are_read_back_as_texts(
    experiment: Make, dataset: Dataset, tmp_path: Path, change: dict[str, object]
) -> None:
    settings = Experiment.model_validate(experiment().model_dump() | change)
    assert read_experiment(create_run(settings, dataset, tmp_path / "run")) == settings


def test_a_run_is_not_resumed_with_another_measure_of_what_is_best(experiment: Make, dataset: Dataset, tmp_path: Path) -> None:
    folder = create_run(experiment(monitor="logloss"), dataset, tmp_path / "run")
    check_same_training(folder, experiment(monitor="logloss", learning_rate=0.5), dataset)
    with pytest.raises(CtrkitError, match="cannot be resumed with another training.monitor .*logloss before, auc now"):
        check_same_training(folder, experiment(monitor="auc"), dataset)


def test_run_folders_are_numbered(experiment: Make, dataset: Dataset) -> None:
    settings = experiment()
    assert [create_run(settings, dataset).name for _ in range(3)] == ["tiny-dnn-1", "tiny-dnn-2", "tiny-dnn-3"]


@pytest.mark.parametrize("there", ["a file", "a link to nowhere"])
def test_a_folder_of_runs_that_cannot_be_made(experiment: Make, dataset: Dataset, there: str) -> None:
    settings = experiment()
    output = Path(settings.output)
    output.mkdir()
    if there == "a file":
        (output / "runs").touch()
    else:
        (output / "runs").symlink_to("/nonexistent/x")
    with pytest.raises(CtrkitError, match="the run folder '.*runs' cannot be made: .* Name a folder that can be written"):
        create_run(settings, dataset)


@pytest.mark.parametrize("file", ["origin.json", "dataset/golden.parquet"])
def test_a_run_that_was_not_copied_whole(experiment: Make, dataset: Dataset, file: str) -> None:
    folder = create_run(experiment(), dataset)
    dataset_of_run(folder)
    (folder / file).unlink()
    with pytest.raises(CtrkitError, match=f"{Path(file).name}.* cannot be read.*Copy the whole"):
        (dataset_of_run(folder) if file == "origin.json" else Dataset.open(folder / "dataset").golden())
