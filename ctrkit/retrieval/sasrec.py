"""SASRec (Kang & McAuley, ICDM 2018): self-attention over the sequence of a user's items says which comes next::

    h      = blocks(item vectors + position vectors)         each block: x + dropout(attention(norm x)), x + dropout(ffn(norm x))
    s(t,i) = <h_t, v_i>                                      the same item vectors
    loss   = cross-entropy of the next item among all, at every place; or, as the paper has it, binary cross-entropy of it and of one that
             the user did not have

All items are the default: Klenitskiy & Vasilev ("Turning Dross Into Gold Loss", RecSys 2023) find it much the better, and RecBole has it.
It takes memory for a step's places times all items. A dropout of 0.5 is the paper's for sparse logs; for MovieLens-1M it has 0.2.

Items are known by the ids of their feature, histories are those of the user feature that is a sequence of them, at most as long. A place sees
itself and the places before it. Sequences are padded at their end, which no place of theirs sees. In training, items of the same moment are
in the order of the log; a query's history is of strictly earlier events as everywhere.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ctrkit import schema
from ctrkit.data.steps import even_steps
from ctrkit.errors import CtrkitError
from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.tower import linear
from ctrkit.models.settings import Dropout
from ctrkit.retrieval.baselines.epochs import fit_epochs
from ctrkit.retrieval.baselines.interactions import interactions
from ctrkit.retrieval.baselines.pairs import unseen_items
from ctrkit.retrieval.dataset import Catalogue, RetrievalDataset
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.rows import Bags, offsets_of, take_bags
from ctrkit.schema import IdField
from ctrkit.training.run import WEIGHTS_FILE, save_tensors

_ROWS_AT_ONCE = 128
_PARTS = 8


class SasRecSettings(schema.Settings):
    factors: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=1, ge=1)
    dropout: Dropout = 0.5
    loss: Literal["softmax", "binary"] = Field(default="softmax", description="over all items; binary: against one item for each place")
    users: int = Field(default=128, ge=1, description="sequences a step")

    @model_validator(mode="after")
    def _heads_divide(self) -> "SasRecSettings":
        if self.factors % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide factors, {self.factors}")
        return self


class Block(nn.Module):
    """``[sequences, places, width]`` -> the same; a place sees itself and the places before it."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.attention_norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attended, self.join = linear(width, 3 * width), linear(width, width)
        self.inner, self.outer = linear(width, width), linear(width, width)
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.attended(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        rate = self.rate if self.training else 0.0
        heads = functional.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=True)
        x = x + self.dropout(self.join(heads.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.outer(self.dropout(functional.relu(self.inner(self.inner_norm(x))))))


class SasRec(nn.Module):
    """Ids ``[sequences, places]``, padding behind the end -> ``[sequences, places, factors]``.

    Args:
        rows: of the items' table, padding included.
        length: places of the longest sequence.
    """

    def __init__(self, rows: int, length: int, settings: SasRecSettings) -> None:
        super().__init__()
        width = settings.factors
        self.items = nn.Embedding(rows, width, padding_idx=schema.PADDING_ID)
        self.positions = nn.Embedding(length, width)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=width**-0.5 / 4)
        with torch.no_grad():
            self.items.weight[schema.PADDING_ID] = 0
        self.dropout = FastDropout(settings.dropout)
        self.blocks = nn.ModuleList(Block(width, settings.heads, settings.dropout) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, sequences: Tensor) -> Tensor:
        x = self.items(sequences) * self.items.embedding_dim**0.5 + self.positions.weight[: sequences.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def users(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        """What sequences of so many items say of the next, ``[sequences, factors]``; zeros of an empty one."""
        last = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, self.items.embedding_dim)
        return self(sequences).gather(1, last).squeeze(1) * (lengths > 0).unsqueeze(1)


class SasRecRecommender:
    """The model in its present state."""

    def __init__(self, model: SasRec, dataset: RetrievalDataset) -> None:
        self._model, self._dataset = model, dataset
        self._history = history_of(dataset)
        self._ids = torch.tensor(dataset.encoded_items.ids[item_of(dataset).name])

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        """A user without a history gets zeros."""
        bags = self._dataset.encoded_queries(queries.event[which]).bags[self._history.name]
        with torch.no_grad():
            return (
                torch.from_numpy(user_vectors(self._model, bags, self._history.length)) @ self._model.items.weight[self._ids].t()
            ).numpy()


def item_of(catalogue: Catalogue) -> IdField:
    """The field of the items' ids.

    Raises:
        CtrkitError: none of the item features is the item column.
    """
    key = catalogue.item_key.name
    for field in catalogue.item_inputs.id_fields:
        if field.name == key and not field.multi_valued:
            return field
    raise CtrkitError(
        f"sasrec knows items by their ids, and '{key}' is none of the item features",
        f"Add {{name: {key}, kind: categorical}} to item_features",
    )


def history_of(catalogue: Catalogue) -> IdField:
    """The field of the users' histories, the longest of several.

    Raises:
        CtrkitError: none of the user features is one.
    """
    if not catalogue.query_inputs.sequences:
        raise CtrkitError(
            "sasrec reads the user's history, and there is none",
            f"Add {{name: recent, kind: sequence, of: {catalogue.item_key.name}}} to user_features",
        )
    return max(catalogue.query_inputs.sequences, key=lambda field: field.length)


def user_vectors(model: SasRec, histories: Bags, length: int) -> np.ndarray:
    """Of the last so many ids of each bag, float32 ``[bags, factors]``."""
    sequences, lengths = left_aligned(histories, length)
    found = np.empty((len(lengths), model.items.embedding_dim), np.float32)
    with torch.no_grad():
        for part in alike(lengths, len(lengths) // _ROWS_AT_ONCE + 1):
            rows = sequences[part, : max(1, lengths[part].max())]
            found[part] = model.users(torch.from_numpy(rows), torch.from_numpy(lengths[part])).numpy()
    return found


def alike(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """The rows in so many parts of like lengths: a short sequence is not padded to the longest of all."""
    return [part for part in np.array_split(np.argsort(lengths, kind="stable"), parts) if len(part)]


def left_aligned(bags: Bags, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The last ``length`` ids of each bag, padding behind them, int64 ``[rows, length]``; and how many they are."""
    values, offsets = bags
    lengths = np.minimum(np.diff(offsets), length)
    found = np.full((len(lengths), length), schema.PADDING_ID, np.int64)
    present = np.arange(length) < lengths[:, None]
    index = (offsets[1:] - lengths)[:, None] + np.arange(length)
    found[present] = values[index[present]]
    return found, lengths


def fit_sasrec(job: Job, settings: SasRecSettings) -> Fitted:
    """Trains and writes ``weights.pt``.

    Raises:
        CtrkitError: no ids of items, no history, no user of two training events, or a loss that is not finite.
    """
    dataset, training = job.dataset, job.experiment.training
    item, history = item_of(dataset), history_of(dataset)
    ids = dataset.encoded_items.ids[item.name]
    seen, everything = interactions(dataset), np.arange(len(ids))
    index = dataset.events.of_split("train")
    offsets = offsets_of(np.bincount(dataset.events.user[index], minlength=dataset.users.height))
    sequences = ids[dataset.events.item[index]], offsets
    able = np.flatnonzero(np.diff(offsets) > 1)
    if not len(able):
        raise CtrkitError(
            "no user has two training events, and SASRec learns the next from those before",
            "Choose two_tower, or keep more events for training",
        )
    model = SasRec(item.rows, history.length, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.98), fused=True)

    def next_item(hidden: Tensor, following: np.ndarray, owners: np.ndarray, random: np.random.Generator) -> Tensor:
        """The loss of places ``[places, factors]``, the ids of their next items and their users."""
        if settings.loss == "softmax":
            first = schema.PADDING_ID + 1
            return functional.cross_entropy(hidden @ model.items.weight[first:].t(), torch.from_numpy(following - first))
        other = ids[unseen_items(seen, owners, everything, random)]
        positive, negative = ((hidden * model.items(torch.from_numpy(items))).sum(1) for items in (following, other))
        return (functional.softplus(-positive) + functional.softplus(negative)).mean()

    def epoch(number: int) -> float:
        random = np.random.default_rng([training.seed, number])
        order, total, count = random.permutation(able), 0.0, 0
        for start, stop in even_steps(len(order), settings.users):
            users = order[start:stop]
            items, lengths = left_aligned(take_bags(sequences, users), history.length + 1)
            hidden, following, owners = [], [], []
            for part in alike(lengths, _PARTS):
                rows = items[part, : lengths[part].max()]
                present = rows[:, 1:] != schema.PADDING_ID
                hidden.append(model(torch.from_numpy(rows[:, :-1]))[torch.from_numpy(present)])
                following.append(rows[:, 1:][present])
                owners.append(np.repeat(users[part], lengths[part] - 1))
            loss = next_item(torch.cat(hidden), np.concatenate(following), np.concatenate(owners), random)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + float(loss.detach()), count + 1
        return total / count

    fitted = fit_epochs(job, model, epoch, lambda: SasRecRecommender(model, dataset), int(np.diff(offsets)[able].sum()))
    save_tensors(model.state_dict(), job.folder / WEIGHTS_FILE)
    return fitted
