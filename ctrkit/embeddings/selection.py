"""Ids of which only some are kept: the kept ones move together in smaller tables, the others have no row at all."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from ctrkit.schema import PADDING_ID, IdField, Inputs


class Selection(nn.Module):
    """Renumbers ids: padding stays 0, the kept ids become 1, 2, .. in their order, and the others are taken out of the batch.

    A field whose value is taken out has an empty bag, so its embedding is the zero vector; a bag keeps the values that are left. A
    table has two rows at least, so a field without a kept id has one row that nobody reads.

    Args:
        inputs: the fields before the selection.
        kept: field -> bool ``[rows]``; what it says of the padding id does not matter.

    Attributes:
        inputs: the fields after it.
        new_ids: field -> the new id of each of its ids, padding's for those not kept; int64 ``[rows]``.
    """

    all_new_ids: Tensor
    starts: Tensor

    def __init__(self, inputs: Inputs, kept: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.kept = {field.name: kept[field.name].clone() for field in inputs.id_fields}
        self.sources: dict[str, Tensor] = {}
        self.new_ids: dict[str, Tensor] = {}
        for name, mask in self.kept.items():
            mask[PADDING_ID] = True
            self.new_ids[name] = (mask.cumsum(0) - 1).where(mask, torch.tensor(PADDING_ID))
            ids = mask.nonzero().squeeze(1)
            self.sources[name] = ids if len(ids) > 1 else torch.tensor([PADDING_ID, PADDING_ID])
        rows = torch.tensor([len(mask) for mask in self.kept.values()], dtype=torch.int64)
        self.register_buffer("all_new_ids", torch.cat([*self.new_ids.values(), rows[:0]]), persistent=False)
        self.register_buffer("starts", rows.cumsum(0) - rows, persistent=False)
        fields = [IdField(**{**f.model_dump(), "rows": len(self.sources[f.name])}) for f in inputs.id_fields]
        self.inputs = Inputs(id_fields=tuple(fields), numeric_fields=inputs.numeric_fields)

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        if not self.kept:
            return sparse
        lengths, values = sparse.lengths(), sparse.values()
        per_field = torch.tensor(sparse.length_per_key(), device=values.device)
        renumbered = self.all_new_ids[values + self.starts.repeat_interleave(per_field, output_size=len(values))]
        stays = renumbered != PADDING_ID
        bag = torch.arange(len(lengths), device=values.device).repeat_interleave(lengths, output_size=len(values))
        left = torch.zeros_like(lengths).index_add(0, bag, stays.to(lengths.dtype))
        return KeyedJaggedTensor(keys=sparse.keys(), values=renumbered[stays], lengths=left)

    def shrink(self, field: str, table: Tensor) -> Tensor:
        """The rows of a field's table that are left, in their new order. ``[rows, dim]`` -> ``[rows left, dim]``."""
        return table[self.sources[field]]
