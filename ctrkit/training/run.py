"""The run folder: what ``train`` writes and what ``evaluate`` and ``export`` read."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ctrkit
from ctrkit.config import Experiment
from ctrkit.config_file import load_config, to_yaml
from ctrkit.data.dataset import FILE, GOLDEN_FILE, Dataset
from ctrkit.drift import Bins, bins_of_numbers
from ctrkit.errors import CtrkitError
from ctrkit.schema import Inputs
from ctrkit.training.monitor import check_monitor
from ctrkit.training.tracking import with_nan, without_nan

CONFIG_FILE = "config.yaml"
ORIGIN_FILE = "origin.json"
DATASET_FOLDER = "dataset"
WEIGHTS_FILE = "weights.pt"
RESULT_FILE = "result.json"
SCORES_FILE = "scores.json"


@dataclass(frozen=True)
class RunResult:
    """What a finished run reports; ``result.json``.

    Attributes:
        run: the run's folder.
        valid: metrics of the best weights on the valid split; of several labels the main one's, and ``<task>/<metric>`` for each.
        test: the same on the test split; empty without test rows.
        best_epoch: epochs trained when the kept weights were evaluated; a fraction with ``evaluate_every``.
        epochs: epochs trained, started ones included.
        params: parameters of dense arch and tables.
        samples_per_s: training rows a second of training, evaluation and checkpoints excluded.
        seconds: wall time, resumed sessions and a search included.
        embedding_bytes: of the tables, or of the stored form of compressed embeddings; codes, scales and indices included.
        decision: what the search decided, of a model that has one.
    """

    run: Path
    model: str
    seed: int
    valid: dict[str, float]
    test: dict[str, float]
    best_epoch: float
    epochs: int
    params: int
    samples_per_s: float
    seconds: float
    embedding_bytes: int
    decision: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values; an undefined metric is None, and without a search there is no ``decision``."""
        values = {**asdict(self), "run": str(self.run), "valid": without_nan(self.valid), "test": without_nan(self.test)}
        if self.decision is None:
            del values["decision"]
        return values


def create_run(experiment: Experiment, dataset: Dataset, run_dir: Path | None = None) -> Path:
    """A new run folder holding config and dataset description; ``<output>/runs/<name>-<model>-<n>`` unless given.

    Raises:
        CtrkitError: ``run_dir`` exists and is not empty, or cannot be made, or what the training watches is undefined on the valid split.
    """
    check_monitor(experiment.training.monitor, dataset)
    if run_dir is not None and run_dir.is_dir() and any(run_dir.iterdir()):
        raise CtrkitError(f"the run folder '{run_dir}' is not empty", "Give a new folder, or resume the run in it")
    try:
        if run_dir is None:
            run_dir = _next_folder(experiment)
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        place = run_dir or _runs(experiment)
        raise CtrkitError(f"the run folder '{place}' cannot be made: {error.strerror}", "Name a folder that can be written") from error
    target = run_dir / DATASET_FOLDER
    target.mkdir()
    shutil.copytree(dataset.path / "transforms", target / "transforms")
    for name in (GOLDEN_FILE, FILE):
        shutil.copy2(dataset.path / name, target / name)
    write_json(run_dir / ORIGIN_FILE, {"dataset": str(dataset.path.resolve()), "ctrkit": ctrkit.__version__, "torch": torch.__version__})
    write_config(run_dir, experiment)
    return run_dir


def write_score_bins(run_dir: Path, probabilities: np.ndarray) -> None:
    """Keeps how the probabilities of the validation rows, ``[rows]`` or ``[rows, tasks]``, are distributed: ``scores.json``."""
    columns = probabilities.reshape(len(probabilities), -1).T
    write_json(run_dir / SCORES_FILE, {"bins": [bins_of_numbers(column).to_json() for column in columns]})


def read_score_bins(run_dir: Path) -> list[Bins]:
    """What ``write_score_bins`` kept, one for each task; none of a run that was trained before there was such a file."""
    path = run_dir / SCORES_FILE
    content = json.loads(path.read_text(encoding="utf8")) if path.is_file() else {"bins": []}
    return [Bins.model_validate(bins) for bins in content["bins"]]


def write_config(run_dir: Path, experiment: Experiment) -> None:
    """The experiment with every setting spelt out. The last file of a new run: a folder that has it is whole."""
    _write(run_dir / CONFIG_FILE, to_yaml(experiment))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write(path, json.dumps(content, indent=2) + "\n")


def save_tensors(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` under a temporary name, renamed when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_experiment(run_dir: Path) -> Experiment:
    """The experiment of a run.

    Raises:
        CtrkitError: no such folder, or not a run.
    """
    if not run_dir.is_dir():
        raise CtrkitError(f"no run folder at '{run_dir}'", "Give the folder that 'ctrkit train' printed")
    if not (run_dir / CONFIG_FILE).is_file():
        raise CtrkitError(f"'{run_dir}' is not a run: it has no {CONFIG_FILE}", "Give the folder that 'ctrkit train' printed")
    return load_config(run_dir / CONFIG_FILE)


def load_run(run_dir: Path) -> tuple[Experiment, Inputs, dict[str, Any]]:
    """A finished run: its experiment, the model's inputs and the best weights (on CPU).

    The weights are ``{"dense_arch": state_dict, "tables": {"<group>/<field>": Tensor [rows, dim]}, "model": name, "settings": {...},
    "embedding": {...}, "decision": that of a search or None}``; the table that a unified embedding shares is ``<group>/shared``.

    Raises:
        CtrkitError: no such run, or it has not finished.
    """
    experiment = read_experiment(run_dir)
    if not (run_dir / WEIGHTS_FILE).is_file():
        raise CtrkitError(f"the run '{run_dir}' has no {WEIGHTS_FILE}: it did not finish", "Finish it with 'ctrkit train CONFIG --resume'")
    try:
        weights = torch.load(run_dir / WEIGHTS_FILE, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch.load raises many types on a damaged file
        raise CtrkitError(f"'{run_dir / WEIGHTS_FILE}' cannot be read: {error}", "Train the run again") from error
    return experiment, Dataset.open(run_dir / DATASET_FOLDER).inputs, weights


def read_result(run_dir: Path) -> RunResult | None:
    """The result of a finished run, None for an unfinished one."""
    path = run_dir / RESULT_FILE
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf8"))
    splits = {split: with_nan(content[split]) for split in ("valid", "test")}
    return RunResult(**{**content, **splits, "run": run_dir})


def dataset_of_run(run_dir: Path) -> Dataset:
    """The prepared dataset, shards included, that a run was trained on.

    Raises:
        CtrkitError: no such run or not all of it, or its dataset was moved or deleted, or prepared anew from other data.
    """
    read_experiment(run_dir)
    try:
        path = Path(json.loads((run_dir / ORIGIN_FILE).read_text(encoding="utf8"))["dataset"])
    except (OSError, ValueError, KeyError) as error:
        raise CtrkitError(
            f"'{run_dir / ORIGIN_FILE}', which says where the run's dataset is, cannot be read", "Copy the whole run again"
        ) from error
    remedy = f"Prepare it again: ctrkit prepare {run_dir / CONFIG_FILE}"
    if not path.is_dir():
        raise CtrkitError(f"the dataset of the run '{run_dir}' is gone from '{path}'", remedy)
    dataset = Dataset.open(path)
    if dataset.fingerprint != Dataset.open(run_dir / DATASET_FOLDER).fingerprint:
        raise CtrkitError(f"the dataset at '{path}' is not the one that the run '{run_dir}' was trained on", remedy)
    return dataset


def find_unfinished(experiment: Experiment) -> Path:
    """The newest run of this experiment and model without a result.

    Raises:
        CtrkitError: there is none.
    """
    for run_dir in reversed(_folders(experiment)):
        if (run_dir / CONFIG_FILE).is_file() and not (run_dir / RESULT_FILE).is_file():
            return run_dir
    raise CtrkitError(f"no unfinished run of '{_prefix(experiment)}' below '{_runs(experiment)}' to resume", "Train without --resume")


def check_same_training(run_dir: Path, experiment: Experiment, dataset: Dataset) -> None:
    """Whether a run may be resumed with these settings: rates and limits may change, the model, its batches and what
    is best may not.

    Raises:
        CtrkitError: naming the settings that differ.
    """
    before = _fixed(read_experiment(run_dir))
    now = _fixed(experiment)
    changed = [key for key in before if before[key] != now.get(key)]
    if changed:
        raise CtrkitError(
            f"the run '{run_dir}' cannot be resumed with another {', '.join(changed)} "
            + "; ".join(f"({key}: {before[key]} before, {now.get(key)} now)" for key in changed),
            "Set it back, or train anew without --resume",
        )
    if Dataset.open(run_dir / DATASET_FOLDER).fingerprint != dataset.fingerprint:
        raise CtrkitError(f"the run '{run_dir}' was trained on another dataset than '{dataset.path}'", "Train anew without --resume")


def _fixed(experiment: Experiment) -> dict[str, Any]:
    training = experiment.training
    embedding = experiment.embedding.model_dump(exclude={"learning_rate", "init_std"})
    return {
        "model": {"name": experiment.model.name, **experiment.model.settings},
        **{f"embedding.{key}": value for key, value in embedding.items()},
        "training.optimizer": training.optimizer,
        "training.weight_decay": training.weight_decay,
        "training.batch_size": training.batch_size,
        "training.seed": training.seed,
        "training.task_weights": training.task_weights,
        "training.monitor": training.monitor,
    }


def _runs(experiment: Experiment) -> Path:
    return Path(experiment.output) / "runs"


def _prefix(experiment: Experiment) -> str:
    return f"{experiment.name}-{experiment.model.name}"


def _folders(experiment: Experiment) -> list[Path]:
    """Folders of this experiment and model, the newest last."""
    pattern = re.compile(re.escape(_prefix(experiment)) + r"-(\d+)")
    numbered = [(int(match[1]), path) for path in _runs(experiment).glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _next_folder(experiment: Experiment) -> Path:
    _runs(experiment).mkdir(parents=True, exist_ok=True)
    taken = _folders(experiment)
    number = int(taken[-1].name.rpartition("-")[2]) + 1 if taken else 1
    while True:
        path = _runs(experiment) / f"{_prefix(experiment)}-{number}"
        try:
            path.mkdir()
        except FileExistsError:  # another run started at the same moment
            number += 1
        else:
            return path


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf8")
    temporary.replace(path)
