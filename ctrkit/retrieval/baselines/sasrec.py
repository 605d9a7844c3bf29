"""SASRec (Kang & McAuley, ICDM 2018): self-attention over the sequence of a user's items says which comes next::

    h      = blocks(item vectors + position vectors)         each block: x + dropout(attention(norm x)), x + dropout(ffn(norm x))
    s(t,i) = <h_t, v_i>                                      the same item vectors
    loss   = cross-entropy of the next item among all, at every place; or, as the paper has it, binary cross-entropy of it and of one that
             the user did not have

All items are the default: Klenitskiy & Vasilev ("Turning Dross Into Gold Loss", RecSys 2023) find it much the better, and RecBole has it.
It takes memory for a step's places times all items.

A place sees itself and the places before it. Sequences are padded at their end, which no place of theirs sees. In training, items of the
same moment are in the order of the log; a query's history is of strictly earlier events as everywhere.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from ctrkit import schema
from ctrkit.layers.dropout import FastDropout
from ctrkit.models.settings import Dropout
from ctrkit.retrieval.baselines.epochs import fit_epochs
from ctrkit.retrieval.baselines.interactions import interactions
from ctrkit.retrieval.baselines.pairs import unseen_items
from ctrkit.retrieval.events import Queries
from ctrkit.retrieval.job import Fitted, Job
from ctrkit.retrieval.rows import Bags, offsets_of, take_bags

_ROWS_AT_ONCE = 128
_PARTS = 8


class SasRecSettings(schema.Settings):
    factors: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=1)
    heads: int = Field(default=1, ge=1)
    length: int = Field(default=100, ge=1, description="the last so many items are seen")
    dropout: Dropout = 0.2
    loss: Literal["softmax", "binary"] = Field(default="softmax", description="over all items; binary: against one item for each place")
    users: int = Field(default=128, ge=1, description="sequences a step")

    @model_validator(mode="after")
    def _heads_divide(self) -> "SasRecSettings":
        if self.factors % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide factors, {self.factors}")
        return self


class SasRec(nn.Module):
    """``[sequences, places]`` of item numbers from 1, 0 behind the end -> ``[sequences, places, factors]``."""

    def __init__(self, items: int, settings: SasRecSettings) -> None:
        super().__init__()
        width = settings.factors
        self.items = nn.Embedding(items + 1, width, padding_idx=0)
        self.positions = nn.Embedding(settings.length, width)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=width**-0.5 / 4)
        with torch.no_grad():
            self.items.weight[0] = 0
        self.dropout = FastDropout(settings.dropout)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, settings.heads, width, settings.dropout, batch_first=True, norm_first=True)
            for _ in range(settings.blocks)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, sequences: Tensor) -> Tensor:
        places = sequences.shape[1]
        x = self.items(sequences) * self.items.embedding_dim**0.5 + self.positions.weight[:places]
        x = self.dropout(x)
        later = torch.ones(places, places, dtype=torch.bool).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=later)
        return self.norm(x)


class SasRecRecommender:
    def __init__(self, model: SasRec, length: int) -> None:
        self._model, self._length = model, length

    def scores(self, queries: Queries, which: np.ndarray) -> np.ndarray:
        """A user without a history gets zeros."""
        sequences, lengths = left_aligned(take_bags(queries.history, which), self._length)
        found = np.zeros((len(which), self._model.items.num_embeddings - 1), np.float32)
        vectors = self._model.items.weight[1:].t()
        with torch.no_grad():
            for part in alike(lengths, len(which) // _ROWS_AT_ONCE + 1):
                longest = int(lengths[part].max())
                if longest:
                    hidden = self._model(torch.from_numpy(sequences[part, :longest]))
                    last = hidden[torch.arange(len(part)), torch.from_numpy(np.maximum(lengths[part] - 1, 0))]
                    found[part] = (last * torch.from_numpy(lengths[part, None] > 0) @ vectors).numpy()
        return found


def alike(lengths: np.ndarray, parts: int) -> list[np.ndarray]:
    """The rows in so many parts of like lengths: a short sequence is not padded to the longest of all."""
    return [part for part in np.array_split(np.argsort(lengths, kind="stable"), parts) if len(part)]


def left_aligned(bags: Bags, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The last ``length`` items of each bag as numbers from 1, zeros behind them, int64 ``[rows, length]``; and how many they are."""
    values, offsets = bags
    lengths = np.minimum(np.diff(offsets), length)
    found = np.zeros((len(lengths), length), np.int64)
    present = np.arange(length) < lengths[:, None]
    index = (offsets[1:] - lengths)[:, None] + np.arange(length)
    found[present] = values[index[present]] + 1
    return found, lengths


def fit_sasrec(job: Job, settings: SasRecSettings) -> Fitted:
    dataset, training = job.dataset, job.experiment.training
    seen = interactions(dataset)
    index = dataset.events.of_split("train")
    offsets = offsets_of(np.bincount(dataset.events.user[index], minlength=dataset.users.height))
    sequences = dataset.events.item[index], offsets
    able = np.flatnonzero(np.diff(offsets) > 1)
    trained = np.flatnonzero(dataset.counts)
    model = SasRec(dataset.items.height, settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, betas=(0.9, 0.98))

    def next_item(hidden: Tensor, following: np.ndarray, owners: np.ndarray, random: np.random.Generator) -> Tensor:
        """The loss of places ``[places, factors]``, the numbers of their next items and their users."""
        if settings.loss == "softmax":
            return functional.cross_entropy(hidden @ model.items.weight[1:].t(), torch.from_numpy(following - 1))
        other = unseen_items(seen, owners, trained, random) + 1
        positive, negative = ((hidden * model.items(torch.from_numpy(items))).sum(1) for items in (following, other))
        return (functional.softplus(-positive) + functional.softplus(negative)).mean()

    def epoch(number: int) -> float:
        random = np.random.default_rng([training.seed, number])
        order, total, count = random.permutation(able), 0.0, 0
        for start in range(0, len(order), settings.users):
            users = order[start : start + settings.users]
            items, lengths = left_aligned(take_bags(sequences, users), settings.length + 1)
            hidden, following, owners = [], [], []
            for part in alike(lengths, _PARTS):
                rows = items[part, : lengths[part].max()]
                present = rows[:, 1:] > 0
                hidden.append(model(torch.from_numpy(rows[:, :-1]))[torch.from_numpy(present)])
                following.append(rows[:, 1:][present])
                owners.append(np.repeat(users[part], lengths[part] - 1))
            loss = next_item(torch.cat(hidden), np.concatenate(following), np.concatenate(owners), random)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total, count = total + float(loss.detach()), count + 1
        return total / count

    return fit_epochs(job, model, epoch, lambda: SasRecRecommender(model, settings.length), int(np.diff(offsets)[able].sum()))
