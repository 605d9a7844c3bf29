"""The serving twin: the trained model in plain tensors, ids in, probability out.

Tables become one buffer a group with an offset a field, so that all single-valued fields are one Gather; ragged bags
are a Gather and a segment sum. TorchRec's collections and ``nn.EmbeddingBag`` would each export as a Loop over bags.

Where only some ids have rows, an int32 array says which: id -> row, and padding's row of its field, all zeros, for an id without.
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
        dense_arch: the trained dense arch, reused unchanged: ``(embeddings, dense) -> logits [batch]``.
        new_ids: field -> int64 ``[field's rows]``, where an id's row is in tables that hold some ids only, padding's for one without;
            None: tables hold all ids.
    """

    order: Tensor
    offsets: Tensor
    row_of_id: Tensor

    def __init__(
        self, inputs: Inputs, tables: Mapping[str, Tensor], dense_arch: nn.Module, new_ids: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.dense_arch = dense_arch
        self.single = [field for field in inputs.id_fields if not field.multi_valued]
        self.multi = [field for field in inputs.id_fields if field.multi_valued]
        stored = self.single + self.multi
        self.groups = list(dict.fromkeys(key.partition("/")[0] for key in tables))
        self.starts = _starts({f.name: f.rows for f in stored})
        self.first_rows = _starts({f.name: len(tables[f"{self.groups[0]}/{f.name}"]) for f in stored}) if self.groups else self.starts
        self.renumbers = new_ids is not None and bool(stored)
        if new_ids is not None and stored:
            rows = torch.cat([new_ids[f.name] + self.first_rows[f.name] for f in stored])
            self.register_buffer("row_of_id", rows.to(torch.int32))
        self.register_buffer("offsets", torch.tensor([self.starts[f.name] for f in self.single], dtype=torch.int64))
        self.register_buffer("order", torch.tensor([stored.index(f) for f in inputs.id_fields], dtype=torch.int64))
        for group in self.groups:
            table = torch.cat([tables[f"{group}/{f.name}"] for f in stored])
            table[[self.first_rows[f.name] + PADDING_ID for f in self.multi]] = 0
            self.register_buffer(f"table_{group}", table)

    @property
    def input_names(self) -> list[str]:
        """Keys of ``forward``'s argument, in their order."""
        names = [f"{f.name}@id" for f in self.single]
        for field in self.multi:
            names += [f"{field.name}@ids", f"{field.name}.lengths"]
        return names + [f"{name}@dense" for name in self.inputs.numeric_fields]

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded features -> probability ``[rows]``.

        Args:
            encoded: ``name@id`` int64 ``[rows]`` of a single-valued field; ``name@ids`` int64 ``[total]``, 0 for a dropped
                value, with ``name.lengths`` int64 ``[rows]`` of a multi-valued one; ``name@dense`` float32 ``[rows]``
                of a number.
        """
        ids = [encoded[f"{f.name}@id"] for f in self.single]
        bags = [(f, encoded[f"{f.name}@ids"], encoded[f"{f.name}.lengths"]) for f in self.multi]
        numbers = [encoded[f"{name}@dense"] for name in self.inputs.numeric_fields]
        rows = (ids or numbers or [lengths for _, _, lengths in bags])[0].shape[0]

        flat = self._rows(torch.stack(ids, dim=1) + self.offsets) if ids else None
        ragged = [
            _Bag(f, self._rows(values + self.starts[f.name]), lengths, self.first_rows[f.name] + PADDING_ID) for f, values, lengths in bags
        ]
        embeddings = {group: self._embed(getattr(self, f"table_{group}"), flat, ragged) for group in self.groups}
        dense = torch.stack(numbers, dim=1) if numbers else torch.zeros(rows, 0)
        return torch.sigmoid(self.dense_arch(embeddings, dense))

    def _rows(self, ids: Tensor) -> Tensor:
        """Ids, each field's after those of the fields before it -> rows of the tables, likewise."""
        return self.row_of_id[ids].to(torch.int64) if self.renumbers else ids

    def _embed(self, table: Tensor, ids: Tensor | None, bags: list["_Bag"]) -> Tensor:
        """``[rows, id fields, dim]`` in the order of ``inputs.id_fields``."""
        parts = [functional.embedding(ids, table)] if ids is not None else []
        parts += [bag.pool(table).unsqueeze(1) for bag in bags]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1).index_select(1, self.order)


class _Bag:
    """The table rows of a multi-valued field's values and the row of the batch that each belongs to."""

    def __init__(self, field: IdField, ids: Tensor, lengths: Tensor, padding: int) -> None:
        self.field = field
        self.ids = ids
        self.padding = padding
        self.rows = lengths.shape[0]
        self.row_of = _row_of_value(lengths, ids.shape[0])

    def pool(self, table: Tensor) -> Tensor:
        """Sum or mean over each row's ids but padding, ``[rows, dim]``; zero for an empty bag."""
        vectors = functional.embedding(self.ids, table)
        total = vectors.new_zeros(self.rows, table.shape[1]).index_add(0, self.row_of, vectors)
        if self.field.pooling == "sum":
            return total
        kept = (self.ids != self.padding).to(vectors.dtype)
        count = kept.new_zeros(self.rows).index_add(0, self.row_of, kept)
        return total / count.clamp(min=1).unsqueeze(1)


def _row_of_value(lengths: Tensor, total: int) -> Tensor:
    """The row of each of a bag's values: [2, 0, 1] -> [0, 0, 2].

    Counts the rows that start at or before a value; rows of no values start where the next one does.
    """
    starts = lengths.cumsum(0) - lengths
    started = lengths.new_zeros(total + 1).index_add(0, starts, torch.ones_like(starts))
    return started.cumsum(0)[:total] - 1


def _starts(rows: Mapping[str, int]) -> dict[str, int]:
    """Where each field's rows start when they lie one after the other."""
    starts, total = {}, 0
    for name, count in rows.items():
        starts[name] = total
        total += count
    return starts
