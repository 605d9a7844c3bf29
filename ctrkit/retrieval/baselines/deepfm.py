"""DeepFM (Guo et al., IJCAI 2017) as a recommender: a click model of the zoo, asked of every user and every item of the catalogue.

Trained to tell events from pairs of their users with items they never had, by binary cross-entropy. Its fields are those of both towers:
the user's, the history's (as the mean of its items' vectors) and the context's, and the item's.

All pairs at once cost little more than all sides, by what DeepFM is made of::

    FM(u + i)  = FM(u) + FM(i) + <sum of u's vectors, sum of i's vectors>
    W_1 (u, i) = W_1u u + W_1i i                                             the first layer of the tower

and so only the layers above the first see every pair.

The learning rate is 0.003: with the usual 0.001 it often stops where it has learned popularity alone (docs/benchmarks/retrieval.md).
"""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ctrkit import schema
from ctrkit.data.steps import even_steps
from ctrkit.embeddings.tables import Tables, own_outputs, own_tables
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.interaction import sum_of_products
from ctrkit.models.deepfm import DeepFM
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.retrieval.baselines.epochs import fit_epochs
from ctrkit.retrieval.baselines.interactions import interactions
from ctrkit.retrieval.baselines.pairs import unseen_items
from ctrkit.retrieval.batch import TowerBatch, tower_batch
from ctrkit.retrieval.dataset import RetrievalDataset
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.towers import both

_PAIRS_AT_ONCE, _ROWS_AT_ONCE = 1 << 11, 4096  # the pairs' first layer stays in the cache of a core


class DeepFmSettings(schema.Settings):
    hidden: Hidden = (128, 64)
    dropout: Dropout = 0.0
    learning_rate: float = Field(default=3e-3, gt=0)
    negatives: int = Field(default=4, ge=1, description="items that the user never had, for each event")
    l2: float = Field(default=1e-6, ge=0, description="weight decay of the tables")


@dataclass(frozen=True)
class Side:
    """Users or items as pairs need them.

    Attributes:
        logit: what they add by themselves, ``[rows]``.
        total: the sum of their vectors, ``[rows, dim]``.
        layer: their share of the tower's first layer, ``[rows, units]``.
    """

    logit: Tensor
    total: Tensor
    layer: Tensor

    def part(self, rows: slice) -> "Side":
        return Side(self.logit[rows], self.total[rows], self.layer[rows])


class PairModel(nn.Module):
    """Tables and DeepFM over the fields of a user and an item."""

    def __init__(self, dataset: RetrievalDataset, job: Job, settings: DeepFmSettings) -> None:
        super().__init__()
        embedding = job.experiment.embedding
        self.query_inputs, self.item_inputs = dataset.query_inputs, dataset.item_inputs
        inputs = both(self.query_inputs, self.item_inputs)
        self.deepfm = DeepFM(inputs, embedding.dim, DeepFM.Settings(hidden=settings.hidden, dropout=settings.dropout))
        groups = self.deepfm.groups(embedding.dim)
        self.tables = Tables(own_tables(inputs, groups), own_outputs(inputs, groups), embedding, device="cpu")
        with torch.no_grad():
            for name, bag in self.tables.collection.embedding_bags.items():
                weight = bag.weight
                assert isinstance(weight, Tensor)
                weight.normal_(std=self.tables.stds[name])
                if name in self.tables.padded:
                    weight[0] = 0

    def forward(self, batch: TowerBatch, user: Tensor) -> Tensor:
        """Logits ``[items]`` of each item of a batch with one of its users.

        Args:
            user: number of the user's row, int64 ``[items]``.
        """
        users, items = self._looked_up(batch)
        pairs = {group: torch.cat([users[group][user], items[group]], dim=1) for group in users}
        return self.deepfm(pairs, torch.cat([batch.query_dense[user], batch.item_dense], dim=1))

    def users(self, batch: TowerBatch) -> Side:
        fields = len(self.query_inputs.id_fields), len(self.query_inputs.numeric_fields)
        return self._side(self._looked_up(batch)[0], batch.query_dense, (0, 0), fields)

    def items(self, batch: TowerBatch) -> Side:
        before = len(self.query_inputs.id_fields), len(self.query_inputs.numeric_fields)
        fields = len(self.item_inputs.id_fields), len(self.item_inputs.numeric_fields)
        return self._side(self._looked_up(batch)[1], batch.item_dense, before, fields)

    def pairs(self, users: Side, items: Side) -> Tensor:
        """Logits of every user with every item, ``[users, items]``."""
        first = self.deepfm.tower.layers[0]
        assert isinstance(first, nn.Linear)
        layer = (users.layer + first.bias)[:, None] + items.layer
        deep = self.deepfm.tower.layers[1:](layer).squeeze(2)
        fm = users.logit[:, None] + items.logit[None] + self.deepfm.first_order.bias + users.total @ items.total.t()
        return fm + deep

    def _looked_up(self, batch: TowerBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Vectors of the users' id fields and of the items', by group."""
        vectors, fields = self.tables(batch.sparse), len(self.query_inputs.id_fields)
        users = {group: rows[: batch.queries, :fields] for group, rows in vectors.items()}
        return users, {group: rows[: batch.items, fields:] for group, rows in vectors.items()}

    def _side(self, vectors: dict[str, Tensor], dense: Tensor, before: tuple[int, int], fields: tuple[int, int]) -> Side:
        """
        Args:
            before, fields: how many id and numeric fields come before the side's among those of both, and how many it has.
        """
        (ids, numbers), (own_ids, own_numbers) = before, fields
        all_ids, all_numbers = len(self.deepfm.inputs.id_fields), len(self.deepfm.inputs.numeric_fields)
        places = [*range(ids, ids + own_ids), *range(all_ids + numbers, all_ids + numbers + own_numbers)]
        wide = dense.new_zeros(len(dense), all_numbers)
        wide[:, numbers : numbers + own_numbers] = dense

        def of(group: str, layer: FieldVectors) -> Tensor:
            numeric = layer.numeric
            own = vectors[group]
            return own if numeric is None else torch.cat([own, numeric(wide)[:, numbers : numbers + own_numbers]], dim=1)

        embedded = of("embedding", self.deepfm.vectors)
        linear = of("linear", self.deepfm.first_order.vectors).sum((1, 2))
        first = self.deepfm.tower.layers[0]
        assert isinstance(first, nn.Linear)
        weight = first.weight.unflatten(1, (-1, self.deepfm.dim))[:, places]
        return Side(linear + sum_of_products(embedded), embedded.sum(1), embedded.flatten(1) @ weight.flatten(1).t())


class DeepFmRecommender:
    """The model in its present state."""

    def __init__(self, model: PairModel, dataset: RetrievalDataset) -> None:
        self._model, self._dataset = model, dataset
        everything = np.arange(dataset.items.height)
        with torch.no_grad():
            sides = [model.items(self._batch(None, everything[part])) for part in _slices(len(everything), _ROWS_AT_ONCE)]
        self._items = Side(*(torch.cat([getattr(side, name) for side in sides]) for name in ("logit", "total", "layer")))

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        items = self._dataset.items.height
        found = torch.empty(len(which), items)
        with torch.no_grad():
            users = self._model.users(self._batch(queries.event[which], None))
            for rows in _slices(len(which), max(1, _PAIRS_AT_ONCE // items)):
                for part in _slices(items, _PAIRS_AT_ONCE):
                    found[rows, part] = self._model.pairs(users.part(rows), self._items.part(part))
        return found.numpy()

    def _batch(self, events: np.ndarray | None, items: np.ndarray | None) -> TowerBatch:
        dataset = self._dataset
        queries = None if events is None else dataset.encoded_queries(events)
        rows = None if items is None else dataset.encoded_items.take(items)
        return tower_batch(queries, rows, dataset.query_inputs, dataset.item_inputs)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def fit_deepfm(job: Job, settings: DeepFmSettings) -> Fitted:
    """Raises CtrkitError as ``fit_epochs``."""
    dataset, training = job.dataset, job.experiment.training
    torch.manual_seed(training.seed)
    model = PairModel(dataset, job, settings)
    optimizer = torch.optim.Adam(
        [
            {"params": list(model.deepfm.parameters()), "weight_decay": training.weight_decay},
            {"params": list(model.tables.parameters()), "weight_decay": settings.l2},
        ],
        lr=settings.learning_rate,
        fused=True,
    )
    seen, trained = interactions(dataset), np.flatnonzero(dataset.counts)
    index = dataset.events.of_split("train")
    labels = np.repeat([1.0, 0.0], [1, settings.negatives]).astype(np.float32)

    def epoch(number: int) -> float:
        random = np.random.default_rng([training.seed, number])
        order, total = random.permutation(index), 0.0
        for start, stop in even_steps(len(order), training.batch_size):
            events = order[start:stop]
            row = np.repeat(np.arange(len(events)), 1 + settings.negatives)
            items = np.repeat(dataset.events.item[events], 1 + settings.negatives)
            others = np.tile(labels, len(events)) == 0
            items[others] = unseen_items(seen, dataset.events.user[events][row[others]], trained, random)
            batch = tower_batch(
                dataset.encoded_queries(events), dataset.encoded_items.take(items), dataset.query_inputs, dataset.item_inputs
            )
            logits = model(batch, torch.from_numpy(row))
            loss = functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(np.tile(labels, len(events))))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(events)
        return total / len(order)

    return fit_epochs(job, model, epoch, lambda: DeepFmRecommender(model, dataset), len(index))
