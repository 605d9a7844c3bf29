"""Tables whose rows are gated: every group's row of an id is multiplied by that id's gate before bags are pooled."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor, PoolingType

from ctrkit.config import Embedding
from ctrkit.embeddings.bags import one_value_a_row, pool
from ctrkit.embeddings.tables import Group, Tables, own_outputs, own_tables
from ctrkit.schema import Inputs


class GatedTables(Tables):
    """Looks ids up, value by value where there are bags: ``KeyedJaggedTensor -> {group: [batch, id fields, dim]}`` without the gates'.

    A gated table never pools by itself: that leaves the pooling type free to tell gates from the rest, which TorchRec then keeps in a
    kernel of their own.

    Args:
        inputs: fields without sequences.
        groups: one or more of them of gates.
    """

    def __init__(self, inputs: Inputs, groups: Sequence[Group], settings: Embedding, device: torch.device | str = "meta") -> None:
        tables = [replace(t, pooling=PoolingType.MEAN if t.group.gates else PoolingType.SUM) for t in own_tables(inputs, groups)]
        super().__init__(tables, own_outputs(inputs, groups), settings, device=device)
        self.inputs = inputs
        self.gates = [group.name for group in groups if group.gates]
        self.has_bags = any(field.multi_valued for field in inputs.id_fields)

    def forward(self, sparse: KeyedJaggedTensor, gate: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """
        Args:
            gate: what a gate's number does to a row: c -> the factor.
        """
        if not self.configs:
            embeddings = super().forward(sparse)
            return {name: e for name, e in embeddings.items() if name not in self.gates}
        embeddings = self.look_up(one_value_a_row(sparse) if self.has_bags else sparse)
        gates = [embeddings.pop(name) for name in self.gates]
        embeddings = self.decayed(embeddings, sparse)
        for c in gates:
            factor = gate(c)
            embeddings = {name: e * factor for name, e in embeddings.items()}
        return {name: pool(e, sparse, self.inputs) for name, e in embeddings.items()} if self.has_bags else embeddings
