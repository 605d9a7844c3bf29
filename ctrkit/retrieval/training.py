"""Epochs of steps over the training events; each epoch ends with an evaluation over the full catalogue and a resume point.

The valid split alone decides what is best and when to stop. One process: negatives are shared within a batch.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ctrkit.data.steps import even_steps
from ctrkit.errors import CtrkitError
from ctrkit.retrieval import losses
from ctrkit.retrieval.auxiliary import Auxiliary, Encoded
from ctrkit.retrieval.batch import tower_batch
from ctrkit.retrieval.dataset import Catalogue
from ctrkit.retrieval.encode import Encoder, TowerRecommender
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.negatives import Candidates, Negatives
from ctrkit.retrieval.rows import Rows, stack
from ctrkit.retrieval.towers import RetrievalModel, TowerSettings, TwoTowers, reload
from ctrkit.training.checkpoint import Checkpoints
from ctrkit.training.distributed import Worker, distribute, gather_full_weights, load_full_weights, process_group
from ctrkit.training.run import WEIGHTS_FILE, save_tensors
from ctrkit.training.tracking import Tracker


@dataclass
class _Progress:
    """Where training stands; part of every resume point."""

    epoch: int = 0
    best_epoch: int = 0
    best_value: float = -math.inf
    rows: int = 0
    seconds: float = 0.0


class TowerTraining:
    """Trains two towers and writes ``weights.pt``.

    Args:
        towers: with fresh weights.
        settings: of the towers, their loss and negatives.
        auxiliary: what else the item tower is trained for; None: nothing.
        worker: the only process.
    """

    def __init__(self, job: Job, towers: TwoTowers, settings: TowerSettings, auxiliary: Auxiliary | None, worker: Worker) -> None:
        dataset, experiment = job.dataset, job.experiment
        self.job, self.settings, self.training, self.auxiliary = job, settings, experiment.training, auxiliary
        self.worker, self.towers = worker, towers
        model = RetrievalModel(towers, dataset.query_inputs, dataset.item_inputs, experiment.embedding)
        distributed = distribute(model, experiment.embedding, worker, self.training.seed, self.training.batch_size)
        self.model, self.tables, self.plan = distributed.model, distributed.table_optimizer, distributed.plan
        self.parameters = list(towers.parameters())
        self.optimizer = torch.optim.Adam(
            self.parameters, lr=self.training.learning_rate, weight_decay=self.training.weight_decay, fused=True
        )
        self.negatives = Negatives(settings.negatives, dataset.counts, self.training.batch_size)
        self.events = dataset.events.of_split("train")
        self.encoder = Encoder(self.model, dataset.query_inputs, dataset.item_inputs, worker.device)
        self.progress = _Progress()
        self.checkpoints = Checkpoints(job.folder / "checkpoints")
        torch.manual_seed(self.training.seed)

    def run(self) -> Fitted:
        """Raises CtrkitError where the loss is no finite number."""
        self._restore()
        tracker = Tracker(self.job.folder, self.progress.epoch)
        try:
            while not self._done():
                loss = self._epoch()
                self._evaluate(loss, tracker)
        finally:
            tracker.close()
        best = self.checkpoints.load_best(self.progress.best_epoch)
        save_tensors(best, self.job.folder / WEIGHTS_FILE)
        dataset = self.job.dataset
        reloaded = reload(self.towers, best, dataset.query_inputs, dataset.item_inputs, self.job.experiment.embedding)
        encoder = Encoder(reloaded, dataset.query_inputs, dataset.item_inputs, torch.device("cpu"))
        numbers = sum(table.rows * table.dim for table in self.plan)
        return Fitted(
            recommender=TowerRecommender(encoder, dataset),
            params=numbers + sum(p.numel() for p in self.parameters),
            embedding_bytes=4 * numbers,
            epochs=self.progress.epoch,
            best_epoch=self.progress.best_epoch,
            samples_per_s=self.progress.rows / self.progress.seconds,
        )

    def _done(self) -> bool:
        waited = self.progress.epoch - self.progress.best_epoch
        return self.progress.epoch >= self.training.epochs or waited >= self.training.patience

    def _epoch(self) -> float:
        """The mean loss."""
        self.model.train()
        started = time.perf_counter()
        random = np.random.default_rng([self.training.seed, self.progress.epoch])
        total, count = 0.0, 0
        for events in self._batches(random):
            loss = float(self.step(events, random))
            if not math.isfinite(loss):
                raise CtrkitError(
                    f"the loss is not finite in epoch {self.progress.epoch + 1}, step {count + 1}",
                    "Lower training.learning_rate and embedding.learning_rate, or raise model.temperature",
                )
            total, count = total + loss, count + 1
            self.progress.rows += len(events)
        self.progress.epoch += 1
        self.progress.seconds += time.perf_counter() - started
        return total / count

    def _batches(self, random: np.random.Generator) -> Iterator[np.ndarray]:
        """The training events in a random order; two at the least, each other's negatives."""
        order = random.permutation(self.events)
        for start, stop in even_steps(len(order), self.training.batch_size, least=2):
            yield order[start:stop]

    def step(self, events: np.ndarray, random: np.random.Generator) -> Tensor:
        """One step on a batch of training events; the loss before it."""
        self.optimizer.zero_grad()
        self.tables.zero_grad()
        loss = self.loss(events, random)
        loss.backward()
        clip_grad_norm_(self.parameters, self.training.clip_norm or math.inf)
        self.optimizer.step()
        self.tables.step()
        return loss.detach()

    def loss(self, events: np.ndarray, random: np.random.Generator) -> Tensor:
        """The main loss and the auxiliary one; all users are encoded in one pass, and all items."""
        dataset, auxiliary = self.job.dataset, self.auxiliary
        positives = dataset.events.item[events]
        drawn = self.negatives.draw(positives, random)
        queries = dataset.encoded_queries(events)
        main = dataset.encoded_items.take(np.concatenate([positives, drawn]))
        extra = auxiliary.draw(queries, dataset.encoded_items.take(positives), random) if auxiliary is not None else None
        own = auxiliary.main_mask(main.count, random) if auxiliary is not None else None
        items = _beside(main, own, extra.items, extra.item_mask) if extra else (main, own)
        asked = _beside(queries, None, extra.queries, extra.query_mask) if extra and extra.queries else (queries, None)
        batch = tower_batch(asked[0], items[0], dataset.query_inputs, dataset.item_inputs, items[1], asked[1])
        users, vectors = self.model(batch.to(self.worker.device))
        positive, negative, rest = vectors.split([len(positives), len(drawn), items[0].count - main.count])
        users, others = users.split([len(events), asked[0].count - len(events)])
        loss = self._main(users, positive, positives, self.negatives.candidates(positives, positive, drawn, negative))
        self.negatives.remember(positives, positive)
        if extra is None or auxiliary is None:
            return loss
        numbers = (torch.from_numpy(who).to(users.device) for who in (dataset.events.user[events], positives))
        return loss + auxiliary.loss(Encoded(users, positive, others, rest, *numbers))

    def _main(self, users: Tensor, positive: Tensor, positives: np.ndarray, candidates: Candidates) -> Tensor:
        temperature = self.settings.temperature
        own = (users * positive).sum(1) / temperature
        scores = users @ candidates.vectors.t() / temperature
        same = torch.from_numpy(positives[:, None] == candidates.items[None, :]).to(scores.device)
        if self.settings.negatives.hard is not None:
            same = losses.besides_the_hardest(scores, same, self.settings.negatives.hard)
        match self.settings.loss:
            case "bpr":
                return losses.bpr(own, scores, same)
            case "infonce":
                return losses.sampled_softmax(own, scores, same)
            case "softmax":
                expected = [self.negatives.log_expected(items).to(scores.device) for items in (candidates.items, positives)]
                return losses.sampled_softmax(own, scores, same, *expected)

    def _give_untrained_ids_the_default(self) -> None:
        """Ids of single-valued fields that training has no row of get the vector that masked fields have, where there is one."""
        dataset = self.job.dataset
        tables = gather_full_weights(self.model)
        sides = (
            (self.towers.user, dataset.query_inputs, dataset.encoded_users(self.events)),
            (self.towers.item, dataset.item_inputs, dataset.encoded_items.take(np.flatnonzero(dataset.counts))),
        )
        for tower, inputs, rows in sides:
            default = getattr(tower, "default", None)
            for number, field in enumerate(inputs.id_fields):
                if default is not None and not field.multi_valued:
                    table = tables[f"embedding/{field.name}"]
                    untrained = np.setdiff1d(np.arange(len(table)), rows.ids[field.name])
                    table[torch.from_numpy(untrained)] = default[number].detach().to(table)
        load_full_weights(self.model, tables)

    def _evaluate(self, loss: float, tracker: Tracker) -> None:
        progress, monitor = self.progress, self.training.monitor
        if self.auxiliary is not None and self.auxiliary.masks:
            self._give_untrained_ids_the_default()
        metrics = self.job.validate(TowerRecommender(self.encoder, self.job.dataset))
        if metrics[monitor] > progress.best_value:
            progress.best_value, progress.best_epoch = metrics[monitor], progress.epoch
            self.checkpoints.save_best(progress.epoch, self._weights())
        tracker.record("train", progress.epoch, progress.epoch, {"loss": loss, "samples_per_s": progress.rows / progress.seconds})
        tracker.record("valid", progress.epoch, progress.epoch, metrics)
        best = "  best" if progress.best_epoch == progress.epoch else ""
        self.job.say(
            f"epoch {progress.epoch}: loss {loss:.4f}, valid {monitor} {metrics[monitor]:.4f}, "
            f"{progress.rows / progress.seconds:,.0f} events/s{best}"
        )
        state = {
            "progress": asdict(progress),
            "optimizer": self.optimizer.state_dict(),
            "table_optimizer": self.tables.state_dict(),
            "negatives": self.negatives.state(),
            "random": torch.get_rng_state(),
        }
        self.checkpoints.save(progress.epoch, self._weights(), state, progress.best_epoch)

    def _weights(self) -> dict[str, Any]:
        dense = {name: tensor.detach().cpu().clone() for name, tensor in self.towers.state_dict().items()}
        return {"towers": dense, "tables": gather_full_weights(self.model)}

    def _load(self, weights: dict[str, Any]) -> None:
        self.towers.load_state_dict(weights["towers"])
        load_full_weights(self.model, weights["tables"])

    def _restore(self) -> None:
        epoch = self.checkpoints.latest()
        if epoch is None:
            return
        weights, state = self.checkpoints.load(epoch)
        self._load(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate
        self.tables.load_state_dict(state["table_optimizer"])
        self.negatives.load(state["negatives"])
        torch.set_rng_state(state["random"])
        self.progress = _Progress(**state["progress"])
        self.job.say(f"Resumed after epoch {epoch} of {self.training.epochs}")


def fit_towers(job: Job, build: Callable[[Catalogue, int, Any], TwoTowers], settings: Any, auxiliary: Auxiliary | None) -> Fitted:
    """Builds the towers of a method and trains them.

    Raises:
        CtrkitError: several processes, or a loss that is not finite.
    """
    with process_group() as worker:
        if worker.world > 1:
            raise CtrkitError("a retrieval model trains in one process", "Start ctrkit train without torchrun")
        towers = build(job.dataset, job.experiment.embedding.dim, settings)
        return TowerTraining(job, towers, settings, auxiliary, worker).run()


def _beside(main: Rows, mask: np.ndarray | None, extra: Rows, extra_mask: np.ndarray | None) -> tuple[Rows, np.ndarray | None]:
    """Both kinds of rows, and what is masked in them; the main rows see all if nothing else is said."""
    if extra_mask is None:
        return stack([main, extra]), mask
    own = np.zeros((main.count, extra_mask.shape[1]), bool) if mask is None else mask
    return stack([main, extra]), np.concatenate([own, extra_mask])
