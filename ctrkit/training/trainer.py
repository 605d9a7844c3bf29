"""Trains one experiment.

A model that a search decides on is trained twice: first the search, in a folder of its own inside the run's, then the model it found.
"""

import errno
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from rich.console import Console

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.loader import Loader
from ctrkit.errors import CtrkitError
from ctrkit.models.registry import build_search_for
from ctrkit.models.search import Search
from ctrkit.training.check import check_training
from ctrkit.training.distributed import (
    Worker,
    process_group,
)
from ctrkit.training.loop import Loop, Watch
from ctrkit.training.run import (
    RunResult,
    check_same_training,
    create_run,
    find_unfinished,
    read_result,
    write_config,
)
from ctrkit.training.search import SEARCH_FOLDER, Found, read_found, save_found

OBSERVED_ROWS = 65_536
"""Of a batch that a search is shown before it starts."""


def train(
    experiment: Experiment,
    dataset: Dataset,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
    watch: Watch | None = None,
    pictures: bool = True,
) -> RunResult:
    """Trains a model and writes its run folder. Under ``torchrun`` every process calls it with the same arguments.

    Args:
        experiment: model, embedding and training settings.
        dataset: prepared from the same experiment.
        run_dir: folder of the run; default ``<output>/runs/<name>-<model>-<n>``.
        resume: go on from the last resume point of ``run_dir``, or of the experiment's newest unfinished run. A finished run is
            left as it is and its result returned.
        console: default standard error.
        watch: told of each evaluation, those of a search apart; what it raises ends the training.
        pictures: whether the run folder gets the learning curve and the calibration.

    Raises:
        CtrkitError: unknown model or setting, nothing to resume, loss not finite, a valid split of one class, a full disk.
    """
    if experiment.training.threads:
        torch.set_num_threads(experiment.training.threads)
    check_training(experiment, dataset.inputs, dataset.group)
    with process_group() as worker, _full_disk_explained(experiment.output):
        console = Console(quiet=True) if worker.rank else console or Console(stderr=True)
        chosen = [_choose_run(experiment, dataset, run_dir, resume) if worker.rank == 0 else None]
        dist.broadcast_object_list(chosen)
        folder = cast(Path, chosen[0])
        if (finished := read_result(folder)) is not None:
            return finished
        try:
            found = _search(experiment, dataset, folder / SEARCH_FOLDER, worker, console)
            return Loop(experiment, dataset, folder, worker, console, found=found, watch=watch, pictures=pictures).run()
        except KeyboardInterrupt:
            console.print(f"Interrupted. Go on with: --resume (run folder {folder})", highlight=False, markup=False)
            raise


def _search(experiment: Experiment, dataset: Dataset, folder: Path, worker: Worker, console: Console) -> Found | None:
    """The outcome of the model's search, made now if that has not been done; None for a model that has none."""
    torch.manual_seed(experiment.training.seed)
    search = _build_search(experiment, dataset)
    if search is None:
        return None
    if read_found(folder, search) is None:
        folder.mkdir(exist_ok=True)
        search.observe(batch.sparse for batch in Loader(dataset, "train", OBSERVED_ROWS).iter())
        if search.epochs:
            console.print(f"Search: {search.epochs} epochs", highlight=False)
            Loop(experiment, dataset, folder, worker, console, search=search).run_search()
        elif worker.rank == 0:
            save_found(folder, search.decide({}, lambda rows: math.nan), 0.0)
        dist.barrier()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return read_found(folder, search)


def _build_search(experiment: Experiment, dataset: Dataset) -> Search | None:
    return build_search_for(experiment.embedding, experiment.model.name, dataset.inputs, experiment.model.settings)


@contextmanager
def _full_disk_explained(output: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # torch.save hides the OSError behind a RuntimeError
        causes = (error, error.__context__)
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
            raise CtrkitError(
                f"the disk is full: the run below '{output}' could not be written", "Free some space and train with --resume"
            ) from error
        raise


def _choose_run(experiment: Experiment, dataset: Dataset, run_dir: Path | None, resume: bool) -> Path:
    if not resume:
        return create_run(experiment, dataset, run_dir)
    folder = run_dir or find_unfinished(experiment)
    check_same_training(folder, experiment, dataset)
    if read_result(folder) is None:
        write_config(folder, experiment)
    return folder
