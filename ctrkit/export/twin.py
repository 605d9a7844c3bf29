"""The serving twin: the trained model in plain tensors, ids in, probability out, or one for each of several tasks."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ctrkit.embeddings.crosses import Crosses
from ctrkit.embeddings.tables import Group
from ctrkit.embeddings.unified import JoinLookups
from ctrkit.export.cross import CROSSED
from ctrkit.export.lookup import Bag, CrossLookup, SharedLookup, StoredLookup, by_kind, own_lookups
from ctrkit.schema import Inputs


class Twin(nn.Module):
    """Same result as the trained model, without TorchRec.

    Args:
        inputs: the model's fields.
        tables: full weights, ``"<group>/<field>" -> [rows, dim]``, a sequence's being those of the field it is a history of; of a
            unified embedding ``"<group>/shared"``.
        dense_arch: the trained dense arch, reused unchanged: ``(embeddings, dense) -> logits [batch]`` or ``[batch, tasks]``.
        groups: that the dense arch reads: of those named here, the unpooled are not pooled, and those without a table are empty.
        new_ids: field -> int64 ``[field's rows]``, where an id's row is in tables that hold some ids only, see ``OwnLookup``; None:
            tables hold all ids.
        crosses: of the fields, which have tables too.
        stored: each group's stored form, of compressed embeddings: in place of the tables.
        last: of what the dense arch gives; default a sigmoid.
    """

    def __init__(
        self,
        inputs: Inputs,
        tables: Mapping[str, Tensor],
        dense_arch: nn.Module,
        groups: Sequence[Group] = (),
        new_ids: Mapping[str, Tensor] | None = None,
        crosses: Crosses | None = None,
        stored: nn.ModuleDict | None = None,
        last: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.last = last or nn.Sigmoid()
        self.dense_arch = dense_arch
        self.single, self.multi = by_kind(inputs)
        join = self._join
        unpooled = [group.name for group in groups if group.unpooled]
        self.empty: dict[str, int] = {}
        if stored is not None:
            self.lookups = nn.ModuleList([StoredLookup(inputs, groups, stored)])
        else:
            self.empty = {group.name: group.dim for group in groups if not any(key.startswith(f"{group.name}/") for key in tables)}
            shared = isinstance(join, JoinLookups)
            lookups = [SharedLookup(inputs, join.plan, tables)] if shared else own_lookups(inputs, tables, unpooled, new_ids)
            self.lookups = nn.ModuleList(lookups)
        self.crosses = CrossLookup(crosses, tables) if crosses is not None else None
        self.crossed = len(crosses.pairs) if crosses is not None else 0

    @property
    def _join(self) -> nn.Module:
        """From looked-up vectors to the dense arch's."""
        return getattr(self.dense_arch, "join", nn.Identity())

    @property
    def input_names(self) -> list[str]:
        """Keys of ``forward``'s argument, in their order."""
        names = [f"{f.name}@id" for f in self.single]
        for field in self.multi:
            names += [f"{field.name}@ids", f"{field.name}.lengths"]
        names += [f"{name}@dense" for name in self.inputs.numeric_fields]
        return names if self.crosses is None else [*names, CROSSED]

    def forward(self, encoded: dict[str, Tensor]) -> Tensor:
        """Encoded features -> probability ``[rows]``; ``[rows, tasks]`` of several labels.

        Args:
            encoded: ``name@id`` int64 ``[rows]`` of a single-valued field; ``name@ids`` int64 ``[total]``, 0 for a dropped
                value, with ``name.lengths`` int64 ``[rows]`` of a multi-valued one; ``name@dense`` float32 ``[rows]``
                of a number; ``@crosses`` int64 ``[rows, crosses]``.
        """
        ids = {f.name: encoded[f"{f.name}@id"] for f in self.single}
        bags = {f.name: Bag(f, encoded[f"{f.name}@ids"], encoded[f"{f.name}.lengths"]) for f in self.multi}
        numbers = [encoded[f"{name}@dense"] for name in self.inputs.numeric_fields]
        rows = numbers[0].shape[0] if numbers else next(iter(ids.values())).shape[0] if ids else next(iter(bags.values())).rows

        embeddings = {name: torch.zeros(rows, 0, dim) for name, dim in self.empty.items()}
        for lookup in self.lookups:
            embeddings |= lookup(ids, bags)
        if self.crosses is not None:
            embeddings |= self.crosses(encoded[CROSSED])
        embeddings = self._join(embeddings)
        dense = torch.stack(numbers, dim=1) if numbers else torch.zeros(rows, 0)
        return self.last(self.dense_arch(embeddings, dense))
