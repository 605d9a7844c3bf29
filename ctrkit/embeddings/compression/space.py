"""The ids of all fields as one range."""

from collections.abc import Iterable
from itertools import accumulate

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from ctrkit.schema import Inputs


def table_of(ids: Tensor, starts: Tensor) -> Tensor:
    """Which range, by number, each id is in, of those that start at ``starts``, rising from 0. int64 of any shape -> likewise."""
    return (ids.unsqueeze(-1) >= starts[1:]).sum(dim=-1)


class IdSpace(nn.Module):
    """The ids of all tables, one table after the other: a field's id x is ``start of its table + x``; a sequence has its target's.

    Args:
        inputs: the fields.

    Attributes:
        names: of the tables, which are those of the fields that are no sequences.
        rows: of each, padding and unknown included.
        total: of all, the rows of the full table.
        starts: where each table's ids start, int64 ``[tables]``.
        start_of: of each id field, sequences too, by name.
    """

    starts: Tensor
    key_starts: Tensor

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.names = [field.name for field in inputs.tables]
        self.rows = [field.rows for field in inputs.tables]
        self.total = sum(self.rows)
        starts = dict(zip(self.names, accumulate(self.rows, initial=0), strict=False))
        self.start_of = {field.name: starts[field.table] for field in inputs.id_fields}
        self.register_buffer("starts", torch.tensor(list(starts.values()), dtype=torch.int64), persistent=False)
        self.register_buffer("key_starts", torch.tensor(list(self.start_of.values()), dtype=torch.int64), persistent=False)

    def ids(self, sparse: KeyedJaggedTensor) -> Tensor:
        """The ids of a batch in its order, field after field. int64 ``[values]``."""
        values = sparse.values()
        per_field = torch.tensor(sparse.length_per_key(), device=values.device)
        return values + self.key_starts.repeat_interleave(per_field, output_size=len(values))

    def table_of(self, ids: Tensor) -> Tensor:
        """Which table, by number, each id is of. Exports to ONNX. int64 ``[n]`` -> int64 ``[n]``."""
        return table_of(ids, self.starts)

    def count(self, batches: Iterable[KeyedJaggedTensor]) -> Tensor:
        """How often each id is in the batches. int64 ``[total]``."""
        counts = torch.zeros(self.total, dtype=torch.int64)
        for batch in batches:
            counts += torch.bincount(self.ids(batch), minlength=self.total)
        return counts
