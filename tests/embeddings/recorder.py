"""A dense arch that shows what tables gave it, and batches of ids written out by hand."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from ctrkit.data.batch import Batch
from ctrkit.embeddings.tables import Group
from ctrkit.models.base import RankingModel
from ctrkit.schema import Inputs, Settings


class Recorder(RankingModel):
    """Keeps what it was given in ``seen``; the logit is the sum of each group's tensor.

    Args:
        unpooled: whether the group ``embedding`` has sequences by place; the group ``linear`` never does.
    """

    def __init__(self, inputs: Inputs, dim: int, unpooled: bool = False) -> None:
        super().__init__(inputs, dim, Settings())
        self.unpooled = unpooled
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen: dict[str, Tensor] = {}

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim, unpooled=self.unpooled), Group("linear", 1))

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        self.seen = embeddings
        return self.weight * (embeddings["embedding"].sum((1, 2)) + embeddings["linear"].sum((1, 2)))


def keyed(keys: Sequence[str], rows: Sequence[Sequence[list[int]]]) -> KeyedJaggedTensor:
    """Rows of one bag of ids a key."""
    bags = [row[k] for k in range(len(keys)) for row in rows]
    values = torch.tensor([i for bag in bags for i in bag], dtype=torch.int64)
    lengths = torch.tensor([len(bag) for bag in bags], dtype=torch.int32)
    return KeyedJaggedTensor(keys=list(keys), values=values, lengths=lengths)


def batch_of(inputs: Inputs, rows: Sequence[Sequence[list[int]]]) -> Batch:
    """Rows of one bag of ids an id field: no numbers, no clicks."""
    return Batch(keyed([f.name for f in inputs.id_fields], rows), torch.zeros(len(rows), 0), torch.zeros(len(rows)))
