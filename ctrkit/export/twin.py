"""The serving twin: the trained model in plain tensors, ids in, probability out, or one for each of several tasks.

Tables become one buffer a group with an offset a field, so that all single-valued fields are one Gather; ragged bags
are a Gather and a segment sum. TorchRec's collections and ``nn.EmbeddingBag`` would each export as a Loop over bags.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.schema import PADDING_ID, IdField, Inputs


class Twin(nn.Module):
    """Same result as the trained model, without TorchRec.

    Args:
        inputs: the model's fields.
        tables: full weights, ``"<group>/<field>" -> [rows, dim]``.
        dense_arch: the trained dense arch, reused unchanged: ``(embeddings, dense) -> logits [batch]`` or ``[batch, tasks]``.
    """

    order: Tensor
    offsets: Tensor

    def __init__(self, inputs: Inputs, tables: Mapping[str, Tensor], dense_arch: nn.Module) -> None:
        super().__init__()
        self.inputs = inputs
        self.dense_arch = dense_arch
        self.single = [field for field in inputs.id_fields if not field.multi_valued]
        self.multi = [field for field in inputs.id_fields if field.multi_valued]
        stored = self.single + self.multi
        self.starts: dict[str, int] = {}
        for field, start in zip(stored, _starts(stored), strict=True):
            self.starts[field.name] = start
        self.register_buffer("offsets", torch.tensor([self.starts[f.name] for f in self.single], dtype=torch.int64))
        self.register_buffer("order", torch.tensor([stored.index(f) for f in inputs.id_fields], dtype=torch.int64))
        self.groups = list(dict.fromkeys(key.partition("/")[0] for key in tables))
        for group in self.groups:
            table = torch.cat([tables[f"{group}/{f.name}"] for f in stored])
            table[[self.starts[f.name] + PADDING_ID for f in self.multi]] = 0
            self.register_buffer(f"table_{group}", table)

    @property
    def input_names(self) -> list[str]:
        """Keys of ``forward``'s argument, in their order."""
        names = [f"{f.name}@id" for f in self.single]
        for field in self.multi:
            names += [f"{field.name}@ids", f"{field.name}.lengths"]
        return names + [f"{name}@dense" for name in self.inputs.numeric_fields]

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded features -> probability ``[rows]``; ``[rows, tasks]`` of several labels.

        Args:
            encoded: ``name@id`` int64 ``[rows]`` of a single-valued field; ``name@ids`` int64 ``[total]``, 0 for a dropped
                value, with ``name.lengths`` int64 ``[rows]`` of a multi-valued one; ``name@dense`` float32 ``[rows]``
                of a number.
        """
        ids = [encoded[f"{f.name}@id"] for f in self.single]
        bags = [(f, encoded[f"{f.name}@ids"], encoded[f"{f.name}.lengths"]) for f in self.multi]
        numbers = [encoded[f"{name}@dense"] for name in self.inputs.numeric_fields]
        rows = (ids or numbers or [lengths for _, _, lengths in bags])[0].shape[0]

        flat = torch.stack(ids, dim=1) + self.offsets if ids else None
        ragged = [_Bag(f, values, lengths, self.starts[f.name]) for f, values, lengths in bags]
        embeddings = {group: self._embed(getattr(self, f"table_{group}"), flat, ragged) for group in self.groups}
        dense = torch.stack(numbers, dim=1) if numbers else torch.zeros(rows, 0)
        return torch.sigmoid(self.dense_arch(embeddings, dense))

    def _embed(self, table: Tensor, ids: Tensor | None, bags: list["_Bag"]) -> Tensor:
        """``[rows, id fields, dim]`` in the order of ``inputs.id_fields``."""
        parts = [functional.embedding(ids, table)] if ids is not None else []
        parts += [bag.pool(table).unsqueeze(1) for bag in bags]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1).index_select(1, self.order)


class _Bag:
    """The ids of a multi-valued field and the row each belongs to."""

    def __init__(self, field: IdField, ids: Tensor, lengths: Tensor, start: int) -> None:
        self.field = field
        self.ids = ids
        self.start = start
        self.rows = lengths.shape[0]
        self.row_of = _row_of_value(lengths, ids.shape[0])

    def pool(self, table: Tensor) -> Tensor:
        """Sum or mean over each row's ids but padding, ``[rows, dim]``; zero for an empty bag."""
        vectors = functional.embedding(self.ids + self.start, table)
        total = vectors.new_zeros(self.rows, table.shape[1]).index_add(0, self.row_of, vectors)
        if self.field.pooling == "sum":
            return total
        kept = (self.ids != PADDING_ID).to(vectors.dtype)
        count = kept.new_zeros(self.rows).index_add(0, self.row_of, kept)
        return total / count.clamp(min=1).unsqueeze(1)


def _row_of_value(lengths: Tensor, total: int) -> Tensor:
    """The row of each of a bag's values: [2, 0, 1] -> [0, 0, 2].

    Counts the rows that start at or before a value; rows of no values start where the next one does.
    """
    starts = lengths.cumsum(0) - lengths
    started = lengths.new_zeros(total + 1).index_add(0, starts, torch.ones_like(starts))
    return started.cumsum(0)[:total] - 1


def _starts(fields: list[IdField]) -> list[int]:
    starts, total = [], 0
    for field in fields:
        starts.append(total)
        total += field.rows
    return starts
