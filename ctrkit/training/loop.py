"""Epochs of steps: evaluations, resume points, the best weights kept and scored at the end.

The valid split alone decides what is best and when to stop; the test split is scored once, at the end, with the best weights.
"""

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils import clip_grad_norm_

from ctrkit.config import Experiment
from ctrkit.data.batch import Batch
from ctrkit.data.dataset import Dataset
from ctrkit.data.loader import Loader
from ctrkit.embeddings.compression.codec import stored_bytes
from ctrkit.errors import CtrkitError
from ctrkit.models.base import CTRModel, RankingModel
from ctrkit.models.registry import build_for, stored_form
from ctrkit.models.search import END, Search
from ctrkit.training import schedule
from ctrkit.training.checkpoint import Checkpoints
from ctrkit.training.decide import decide
from ctrkit.training.distributed import (
    Worker,
    add_up,
    distribute,
    gather_full_weights,
    load_full_weights,
    local_shards,
    mean_loss,
)
from ctrkit.training.diverged import diverged
from ctrkit.training.evaluate import Predictions, model_without_optimizer, predict
from ctrkit.training.monitor import monitored
from ctrkit.training.optim import dense_optimizer
from ctrkit.training.plots import calibration_plot, learning_curve, pair_map
from ctrkit.training.report import Report, print_plan
from ctrkit.training.run import (
    RESULT_FILE,
    WEIGHTS_FILE,
    RunResult,
    write_json,
    write_score_bins,
)
from ctrkit.training.search import DECISION_FILE, SEARCH_FOLDER, Found, forget_rewind, save_found, save_rewind
from ctrkit.training.tracking import Tracker, read_records

RECORD_EVERY = 50
"""Steps between training records in metrics.jsonl."""
RELOADED_TOLERANCE = 1e-5
"""On the monitored metric."""
CHANCE = 0.005
"""A valid AUC this close to 0.5 has learned nothing."""
Watch = Callable[[float, dict[str, float]], object]
"""Called after each evaluation with the epochs done and the valid split's metrics."""


@dataclass
class _Progress:
    """Where training stands; part of every resume point."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    """Global batches done in this epoch."""
    best_step: int | None = None
    best_value: float = -math.inf
    waited: int = 0
    """Evaluations since the best."""
    plateaus: int = 0
    informative_step: int = 0
    """Last step at which the valid AUC was not that of chance."""
    rows: int = 0
    training_seconds: float = 0.0
    seconds: float = 0.0
    loss_sum: float = 0.0
    """Since the last training record."""
    loss_rows: int = 0


class Loop:
    """One run, or the search before it, in one process; the others do the same in step with it.

    Args:
        search: it, if this is the search.
        found: what the search found, if this is the training after it.
        watch: told of each evaluation; what it raises ends the training.
        pictures: whether to draw the learning curve and the calibration.
    """

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        run_dir: Path,
        worker: Worker,
        console: Console,
        *,
        search: Search | None = None,
        found: Found | None = None,
        watch: Watch | None = None,
        pictures: bool = True,
    ) -> None:
        self.search, self.found, self.watch, self.pictures = search, found, watch, pictures
        self.stops_early = search is None or search.stops_early
        self.experiment, self.dataset, self.run_dir, self.worker, self.console = experiment, dataset, run_dir, worker, console
        self.settings = settings = experiment.training
        self.started = time.perf_counter()
        self.loader = self._loader("train", shuffle=True)
        self.valid = self._loader("valid")
        self.epochs = search.epochs if search is not None else settings.epochs
        limit = sys.maxsize if search is not None else settings.steps or sys.maxsize
        self.total_steps = min(self.epochs * len(self.loader), limit)

        torch.manual_seed(settings.seed)
        self.dense_arch = search.model if search is not None else _build(experiment, dataset, found)
        if settings.compile:
            self.dense_arch.compile()
        model = CTRModel(self.dense_arch, experiment.embedding, settings.precision)
        gate_rate = search.learning_rate if search is not None else None
        distributed = distribute(model, experiment.embedding, worker, settings.seed, settings.batch_size, gate_learning_rate=gate_rate)
        self.model, self.table_optimizer, self.plan = distributed.model, distributed.table_optimizer, distributed.plan
        self.shards = local_shards(self.model)
        self.dense_parameters = list(self.dense_arch.parameters())
        self.optimizer = dense_optimizer(self.dense_arch, settings, search)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        weights = [settings.task_weights.get(task, 1.0) for task in dataset.inputs.tasks]
        self.task_weights = torch.tensor(weights, device=worker.device) if weights else None
        if found is not None and found.start is not None:
            fresh = self.dense_arch.state_dict()
            self._load_weights({**found.start, "dense_arch": fresh | found.start["dense_arch"]})
        torch.manual_seed(settings.seed + worker.rank)

        self.progress = _Progress()
        self.checkpoints = Checkpoints(run_dir / "checkpoints")
        self.pending: list[tuple[Tensor, Tensor, int]] = []
        self.deciding_batches: Iterator[Batch] | None = None
        self.check_every = 1 if worker.device.type == "cpu" and worker.world == 1 else RECORD_EVERY
        self._restore()
        self.tracker = Tracker(run_dir, self.progress.step) if worker.rank == 0 else None
        self.clock = time.perf_counter()

    def run(self) -> RunResult:
        dense = sum(p.numel() for p in self.dense_parameters)
        print_plan(self.console, self.plan, dense, self.worker.world)
        self._describe_found()
        try:
            with Report(self.console, self.epochs, len(self.loader)) as self.report:
                self._fit()
            return self._finish(dense + sum(t.rows * t.dim for t in self.plan))
        finally:
            if self.tracker is not None:
                self.tracker.close()

    def run_search(self) -> None:
        """Trains the search and writes what it found."""
        search = cast(Search, self.search)
        with Report(self.console, self.epochs, len(self.loader)) as self.report:
            self._keep_rewind()
            self._fit()
        if self.progress.best_step is not None:
            self._load_weights(self._best_weights())
        weights = self._weights()
        decision = decide(search, weights, self.model, self.valid, self.settings.monitor, self.worker)
        if self.tracker is not None and decision is not None:
            if search.rewind_epoch == END:
                save_rewind(self.run_dir, weights)
            save_found(self.run_dir, decision, self.progress.seconds + time.perf_counter() - self.started)
            self.tracker.close()

    def _describe_found(self) -> None:
        described = self.dense_arch.describe()
        if described is not None and self.tracker is not None:
            write_json(self.run_dir / DECISION_FILE, described)
            if "pairs" in described:
                pair_map(described["fields"], described["pairs"], list(described["counts"]), self.run_dir / "decision.png")
            self.console.print(f"Search: {described['summary']}", highlight=False)

    def _keep_rewind(self) -> None:
        """Keeps the weights that the training after the search is to start from, at the epoch it names."""
        search = self.search
        if search is not None and search.rewind_epoch == self.progress.epoch and self.progress.batch == 0:
            weights = self._weights()
            if self.worker.rank == 0:
                save_rewind(self.run_dir, weights)

    def _loader(self, split: str, shuffle: bool = False) -> Loader:
        size = self.settings.batch_size
        return Loader(self.dataset, split, size, self.settings.seed, shuffle, self.worker.rank, self.worker.world)

    def _fit(self) -> None:
        progress = self.progress
        if self.found is not None and self.found.trained and not progress.step:
            self._evaluate(math.nan)
        while not self._done():
            for batch in self.loader.iter(progress.epoch, skip=progress.batch):
                self._step(batch)
                self._look_around()
                if self._done():
                    break
        if progress.best_step is None and self.stops_early:  # resumed with fewer steps than were done, before the first evaluation
            self._evaluate(math.nan)
        if progress.step < self.total_steps:
            self.report.stopped_early(progress.waited, self.settings.monitor)

    def _done(self) -> bool:
        stopped = self.stops_early and self.progress.waited >= self.settings.patience
        return self.progress.step >= self.total_steps or stopped

    def _look_around(self) -> None:
        """Records, evaluates and saves when it is time to; none of it counts as training time."""
        step = self.progress.step
        evaluate = self._evaluation_due()
        record = evaluate or step % RECORD_EVERY == 0
        save = evaluate or self.progress.batch == 0 or step % self.settings.checkpoint_every == 0
        if record or save:
            self._check_losses()
            loss = self._record_training() if record else math.nan
            if evaluate:
                self._evaluate(loss)
            if save:
                self._keep_rewind()
                self._save()
            self.clock = time.perf_counter()

    def _evaluation_due(self) -> bool:
        """After ``evaluate_every`` steps or at an epoch's end, and after the last step."""
        step = self.progress.step
        every = self.settings.evaluate_every
        return step == self.total_steps or (step % every == 0 if every else self.progress.batch == 0)

    def _step(self, batch: Batch) -> None:
        progress, settings = self.progress, self.settings
        factor = schedule.factor(settings, progress.step, self.total_steps, progress.plateaus)
        self.table_optimizer.set_learning_rate(factor)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        search, codecs = self.search, self.dense_arch.codecs
        apart: Sequence[nn.Parameter] = ()
        if search is not None:
            search.advance(progress.epoch, progress.step, self.total_steps)
        if codecs is not None:
            codecs.advance(self._epochs_done(), progress.step)
        if search is not None and search.alternates_from is not None:
            apart, done = search.deciding, progress.step - search.alternates_from * len(self.loader)
            if done >= 0:
                self._decide(apart, done)
        self.optimizer.zero_grad()
        self.table_optimizer.zero_grad()
        loss, losses = self._loss(self.model, batch)
        loss.backward()
        for parameter in apart:
            parameter.grad = None
        norm = clip_grad_norm_(self.dense_parameters, settings.clip_norm or math.inf)
        self.optimizer.step()
        self.table_optimizer.step()
        if codecs is not None:
            codecs.after_step(self.shards, add_up)

        rows = self.loader.batch_rows(progress.batch)
        self.pending.append((losses.detach().sum(), norm, rows))
        progress.step += 1
        progress.rows += rows
        progress.batch += 1
        if progress.batch == len(self.loader):
            progress.epoch, progress.batch = progress.epoch + 1, 0
        if len(self.pending) >= self.check_every:
            self._check_losses()

    def _loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """A batch's loss with all that is added to it, and each row's, ``[rows]``."""
        batch = batch.to(self.worker.device)
        losses = binary_cross_entropy_with_logits(model(batch), self.dense_arch.targets(batch.labels), reduction="none")
        if self.task_weights is not None:
            losses = losses @ self.task_weights
        loss = mean_loss(losses)
        if self.search is not None:
            loss = loss + self.search.penalty(self.table_optimizer.gate_numbers())
        codecs = self.dense_arch.codecs
        if codecs is not None and (penalty := codecs.penalty()) is not None:
            loss = loss + penalty
        return loss, losses

    def _decide(self, deciding: Sequence[nn.Parameter], done: int) -> None:
        """A step on validation rows of what decides alone.

        Gradients are taken of nothing else, past DDP: a fused table optimizer, which steps as gradients come in, gets none.

        Args:
            done: such steps.
        """
        if self.deciding_batches is None:
            self.deciding_batches = _endless(self._loader("valid", shuffle=True), done)
        with self.dense_arch.statistics_kept():
            loss, _ = self._loss(self.model.module, next(self.deciding_batches))
            gradients = torch.autograd.grad(loss, deciding)
        self.optimizer.zero_grad()
        for parameter, gradient in zip(deciding, gradients, strict=True):
            parameter.grad = add_up(gradient) / self.worker.world
        self.optimizer.step()

    def _check_losses(self) -> None:
        """Looks at the losses since the last look, and at the clock: rarely on a GPU, where each look waits for it.

        Raises:
            CtrkitError: a loss or gradient is not finite.
        """
        if not self.pending:
            return
        losses = torch.stack([loss for loss, _, _ in self.pending]).double()
        if self.worker.world > 1:
            dist.all_reduce(losses)
        norms = torch.stack([norm for _, norm, _ in self.pending]).cpu()
        for i, (loss, norm) in enumerate(zip(losses.tolist(), norms.tolist(), strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                step = self.progress.step - len(self.pending) + i
                raise diverged(step, loss, self.loader, self.dataset.inputs.numeric_fields, self.checkpoints.latest())
            self.progress.loss_sum += loss
            self.progress.loss_rows += self.pending[i][2]
        self.pending.clear()
        now = time.perf_counter()
        self.progress.training_seconds += now - self.clock
        self.clock = now
        mean = self.progress.loss_sum / self.progress.loss_rows
        self.report.step(self.progress.step, mean, self._samples_per_s())

    def _samples_per_s(self) -> float:
        return self.progress.rows / self.progress.training_seconds if self.progress.rows else 0.0

    def _epochs_done(self) -> float:
        return self.progress.step / len(self.loader)

    def _record_training(self) -> float:
        """Writes the mean loss since the last record, and returns it."""
        progress = self.progress
        loss = progress.loss_sum / progress.loss_rows
        if self.tracker is not None:
            rate = self.optimizer.param_groups[0]["lr"]
            values = {"loss": loss, "samples_per_s": self._samples_per_s(), "learning_rate": rate}
            self.tracker.record("train", progress.step, self._epochs_done(), values)
        progress.loss_sum, progress.loss_rows = 0.0, 0
        return loss

    def _evaluate(self, train_loss: float) -> None:
        progress = self.progress
        metrics = predict(self.model, self.valid, self.worker.device).metrics()
        value = monitored(metrics, self.settings.monitor)
        best = value > progress.best_value
        if best:
            progress.best_value, progress.waited = value, 0
            if self.stops_early:
                progress.best_step = progress.step
                weights = self._weights()
                if self.worker.rank == 0:
                    self.checkpoints.save_best(progress.step, weights)
        else:
            progress.waited += 1
            progress.plateaus += 1
        if self.tracker is not None:
            self.tracker.record("valid", progress.step, self._epochs_done(), metrics)
        self.report.evaluated(round(self._epochs_done(), 2), progress.step, train_loss, metrics, self._samples_per_s(), best)
        self._warn_of_chance(metrics["auc"])
        if self.watch is not None:
            self.watch(self._epochs_done(), metrics)

    def _warn_of_chance(self, auc: float) -> None:
        progress = self.progress
        if not abs(auc - 0.5) < CHANCE:
            progress.informative_step = progress.step
        elif progress.step - progress.informative_step >= min(len(self.loader), self.total_steps):
            progress.informative_step = progress.step
            self.report.warn(
                f"the valid AUC has been about 0.5 for a whole epoch (now {auc:.4f}): the model has learned nothing. Try higher "
                "learning rates (training.learning_rate, embedding.learning_rate) or less regularisation (embedding.l2, dropout); "
                "check the label and that the features' values are not all missing or unknown (profile in dataset.json)"
            )

    def _weights(self) -> dict[str, Any]:
        """All weights on process 0; every process calls it."""
        return {
            "dense_arch": {name: tensor.cpu() for name, tensor in self.dense_arch.state_dict().items()},
            "tables": gather_full_weights(self.model),
            "model": self.experiment.model.name,
            "settings": self.experiment.model.settings,
            "embedding": self.experiment.embedding.model_dump(mode="json"),
            "decision": self.found.decision if self.found is not None else None,
        }

    def _best_weights(self) -> dict[str, Any]:
        """Every process calls it."""
        dist.barrier()
        return self.checkpoints.load_best(cast(int, self.progress.best_step))

    def _load_weights(self, weights: dict[str, Any]) -> None:
        self.dense_arch.load_state_dict(weights["dense_arch"])
        load_full_weights(self.model, weights["tables"])

    def _save(self) -> None:
        progress = asdict(self.progress)
        progress["seconds"] += time.perf_counter() - self.started
        state = {
            "progress": progress,
            "optimizer": self.optimizer.state_dict(),
            "table_optimizer": self.table_optimizer.state_dict(),
            "random": list(_random_states()),
        }
        self.checkpoints.save(self.progress.step, self._weights(), state, self.progress.best_step)

    def _restore(self) -> None:
        step = self.checkpoints.latest()
        if step is None:
            return
        weights, state = self.checkpoints.load(step)
        self._load_weights(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.table_optimizer.load_state_dict(state["table_optimizer"])
        torch.set_rng_state(state["random"][0])
        if len(state["random"]) > 1:
            torch.cuda.set_rng_state(state["random"][1])
        self.progress = _Progress(**state["progress"])
        self.console.print(f"Resumed after step {step:,} of {self.total_steps:,}", highlight=False)

    def _finish(self, params: int) -> RunResult:
        """Puts the best weights back, scores valid and test with them, and writes what a run is read for."""
        progress = self.progress
        best_step = cast(int, progress.best_step)
        best = self._best_weights()
        self._load_weights(best)
        scored = {"valid": predict(self.model, self.valid, self.worker.device)}
        self._check_reloaded(scored["valid"].metrics())
        described, model = self.dense_arch.describe(), self.model
        embedding_bytes = sum(4 * table.rows * table.dim for table in self.plan)
        stored = stored_form(self.dense_arch, best["tables"])
        if stored is not None:  # what is measured is what is exported
            embedding_bytes = stored_bytes(stored)
            model = model_without_optimizer(self.dense_arch, self.experiment, self.worker, stored, self.settings.batch_size)
            scored["valid"] = predict(model, self.valid, self.worker.device)
        if self.dataset.rows["test"]:
            scored["test"] = predict(model, self._loader("test"), self.worker.device)
        metrics = {split: predictions.metrics() for split, predictions in scored.items()}
        result = RunResult(
            run=self.run_dir,
            model=self.experiment.model.name,
            seed=self.settings.seed,
            valid=metrics["valid"],
            test=metrics.get("test", {}),
            best_epoch=round(best_step / len(self.loader), 2),
            epochs=math.ceil(self._epochs_done()),
            params=params,
            samples_per_s=self._samples_per_s(),
            seconds=progress.seconds + time.perf_counter() - self.started + (self.found.seconds if self.found is not None else 0.0),
            embedding_bytes=embedding_bytes,
            decision=described,
        )
        if self.tracker is not None:
            if "test" in metrics:
                self.tracker.record("test", progress.step, self._epochs_done(), metrics["test"])
            temporary = self.run_dir / f".{WEIGHTS_FILE}.tmp"
            shutil.copyfile(self.checkpoints.best_path(best_step), temporary)
            temporary.replace(self.run_dir / WEIGHTS_FILE)
            if self.pictures:
                self._draw(best_step, scored)
            write_score_bins(self.run_dir, scored["valid"].probabilities)
            write_json(self.run_dir / RESULT_FILE, result.to_json())
            forget_rewind(self.run_dir / SEARCH_FOLDER)
        dist.barrier()
        self.checkpoints.delete()
        return result

    def _draw(self, best_step: int, scored: dict[str, Predictions]) -> None:
        tasks = self.dataset.inputs.tasks
        learning_curve(read_records(self.run_dir), best_step, self.run_dir / "learning_curve.png", tasks)
        split = "test" if "test" in scored else "valid"
        calibration_plot(scored[split].labels, scored[split].probabilities, split, self.run_dir / "calibration.png", tasks)

    def _check_reloaded(self, valid: dict[str, float]) -> None:
        """The weights read back from disk must score as the model in training did."""
        reloaded, trained = monitored(valid, self.settings.monitor), self.progress.best_value
        if not abs(reloaded - trained) <= RELOADED_TOLERANCE:
            raise CtrkitError(
                f"the saved weights do not predict what the trained model did: valid {self.settings.monitor} {reloaded:.7g}, "
                f"{trained:.7g} in training",
                f"Delete '{self.run_dir}' and train again; if it happens again, please report it with the run's config.yaml",
            )


def _endless(loader: Loader, done: int) -> Iterator[Batch]:
    """Epoch after epoch, ``done`` batches later than from the start."""
    for epoch in count(done // len(loader)):
        yield from loader.iter(epoch, skip=done % len(loader))
        done = 0


def _random_states() -> Iterator[Tensor]:
    """Of dropout, on the CPU and on this process' GPU."""
    yield torch.get_rng_state()
    if torch.cuda.is_available():
        yield torch.cuda.get_rng_state()


def _build(experiment: Experiment, dataset: Dataset, found: Found | None = None) -> RankingModel:
    decision = found.decision if found is not None else None
    return build_for(experiment.embedding, experiment.model.name, dataset.inputs, experiment.model.settings, decision)
