"""The run folder of a retrieval experiment: what ``train`` writes and what ``evaluate``, ``export`` and ``index`` read."""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import ctrkit
from ctrkit.config_file import to_yaml
from ctrkit.errors import CtrkitError
from ctrkit.retrieval.config import RetrievalExperiment, load_retrieval
from ctrkit.retrieval.dataset import Catalogue, RetrievalDataset
from ctrkit.training.run import CONFIG_FILE, DATASET_FOLDER, ORIGIN_FILE, RESULT_FILE, WEIGHTS_FILE, write_json
from ctrkit.training.tracking import without_nan


@dataclass(frozen=True)
class RetrievalResult:
    """What a finished run reports; ``result.json``.

    Attributes:
        run: the run's folder.
        valid, test: metrics over the full catalogue.
        slices: of the test split, see ``ctrkit.retrieval.evaluate.measure_slices``.
        params: numbers that were learned.
        samples_per_s: training events a second; None for a method that has no steps.
        seconds: wall time of training and evaluation, that of resumed sessions not included.
    """

    run: Path
    model: str
    seed: int
    valid: dict[str, float]
    test: dict[str, float]
    slices: dict[str, dict[str, Any]]
    best_epoch: int
    epochs: int
    params: int
    embedding_bytes: int
    samples_per_s: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """JSON values; an undefined metric is None."""
        return {**asdict(self), "run": str(self.run), "valid": without_nan(self.valid), "test": without_nan(self.test)}


def create_run(experiment: RetrievalExperiment, dataset: RetrievalDataset, run_dir: Path | None) -> Path:
    """A new run folder with the config and what an export needs of the dataset; ``<output>/runs/<name>-<model>-<n>`` unless given.

    Raises:
        CtrkitError: ``run_dir`` exists and is not empty, or cannot be made.
    """
    if run_dir is not None and run_dir.is_dir() and any(run_dir.iterdir()):
        raise CtrkitError(f"the run folder '{run_dir}' is not empty", "Give a new folder, or resume the run in it")
    folder = run_dir or _next(experiment)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CtrkitError(f"the run folder '{folder}' cannot be made: {error.strerror}", "Name a folder that can be written") from error
    dataset.copy_to(folder / DATASET_FOLDER)
    write_json(folder / ORIGIN_FILE, {"dataset": str(dataset.path.resolve()), "ctrkit": ctrkit.__version__, "torch": torch.__version__})
    temporary = folder / f".{CONFIG_FILE}.tmp"
    temporary.write_text(to_yaml(experiment), encoding="utf8")
    temporary.replace(folder / CONFIG_FILE)
    return folder


def find_unfinished(experiment: RetrievalExperiment, dataset: RetrievalDataset, run_dir: Path | None) -> Path:
    """The run to resume: ``run_dir``, or the newest without a result.

    Raises:
        CtrkitError: there is none, or it was trained with another model, on another dataset, in other batches or with another validation.
    """
    if run_dir is not None:
        folder = run_dir
    else:
        waiting = [path for path in _folders(experiment) if (path / CONFIG_FILE).is_file() and not (path / RESULT_FILE).is_file()]
        if not waiting:
            raise CtrkitError(
                f"no unfinished run of '{experiment.name}-{experiment.model.name}' below '{experiment.output}/runs' to resume",
                "Train without --resume",
            )
        folder = waiting[-1]
    before = read_run(folder)
    changed = [key for key in ("model", "embedding") if getattr(before, key) != getattr(experiment, key)]
    fixed = ("batch_size", "seed", "weight_decay", "monitor")
    changed += [f"training.{key}" for key in fixed if getattr(before.training, key) != getattr(experiment.training, key)]
    changed += ["evaluation.valid_queries"] * (before.evaluation.valid_queries != experiment.evaluation.valid_queries)
    if changed:
        raise CtrkitError(
            f"the run '{folder}' cannot be resumed with another {', '.join(changed)}", "Set it back, or train anew without --resume"
        )
    if catalogue_of(folder).fingerprint != dataset.fingerprint:
        raise CtrkitError(f"the run '{folder}' was trained on another dataset than '{dataset.path}'", "Train anew without --resume")
    return folder


def read_run(folder: Path) -> RetrievalExperiment:
    """The experiment of a run.

    Raises:
        CtrkitError: no run there.
    """
    if not (folder / CONFIG_FILE).is_file():
        raise CtrkitError(f"'{folder}' is not a run: it has no {CONFIG_FILE}", "Give the folder that 'ctrkit train' printed")
    return load_retrieval(folder / CONFIG_FILE)


def catalogue_of(folder: Path) -> Catalogue:
    """What the run kept of its dataset."""
    return Catalogue(folder / DATASET_FOLDER)


def dataset_of(folder: Path) -> RetrievalDataset:
    """The whole dataset that a run was trained on.

    Raises:
        CtrkitError: it was moved, deleted or prepared anew from other data.
    """
    path = Path(json.loads((folder / ORIGIN_FILE).read_text(encoding="utf8"))["dataset"])
    remedy = f"Prepare it again: ctrkit prepare {folder / CONFIG_FILE}"
    if not path.is_dir():
        raise CtrkitError(f"the dataset of the run '{folder}' is gone from '{path}'", remedy)
    dataset = RetrievalDataset(path)
    if dataset.fingerprint != catalogue_of(folder).fingerprint:
        raise CtrkitError(f"the dataset at '{path}' is not the one that the run '{folder}' was trained on", remedy)
    return dataset


def read_weights(folder: Path) -> dict[str, Any]:
    """The best weights on the CPU: ``{"towers": state_dict, "tables": {"embedding/<field>": [rows, dim]}}``.

    Raises:
        CtrkitError: the run did not finish, or has no towers.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        remedy = (
            "Train a model of towers, such as two_tower" if (folder / RESULT_FILE).is_file() else "Finish it with 'ctrkit train --resume'"
        )
        raise CtrkitError(f"the run '{folder}' has no {WEIGHTS_FILE}", remedy)
    try:
        return torch.load(folder / WEIGHTS_FILE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on a damaged file
        raise CtrkitError(f"'{folder / WEIGHTS_FILE}' cannot be read: {error}", "Train the run again") from error


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of ``result.json``, None for an unfinished run."""
    path = folder / RESULT_FILE
    return json.loads(path.read_text(encoding="utf8")) if path.is_file() else None


def _folders(experiment: RetrievalExperiment) -> list[Path]:
    """Folders of this experiment and model, the newest last."""
    pattern = re.compile(re.escape(f"{experiment.name}-{experiment.model.name}") + r"-(\d+)")
    found = [(int(match[1]), path) for path in (Path(experiment.output) / "runs").glob("*") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def _next(experiment: RetrievalExperiment) -> Path:
    taken = _folders(experiment)
    number = int(taken[-1].name.rpartition("-")[2]) + 1 if taken else 1
    return Path(experiment.output) / "runs" / f"{experiment.name}-{experiment.model.name}-{number}"
