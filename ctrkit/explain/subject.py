"""What is explained: one logit of a model, whose looked-up tensors are taken apart by field."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ctrkit.models.base import RankingModel


class Subject(nn.Module):
    """A dense arch with one logit a row: its only one, or that of one of its tasks. ``(embeddings, dense)`` -> ``[batch]``.

    Args:
        arch: in evaluation mode.
        task: place of the logit among a multi-task model's; None for a model of one label.

    Attributes:
        fields: names, id fields first, then numeric ones.
        owners: of each looked-up tensor, how much of each of its columns is each field's, ``[columns, fields]``: all of it, or of a cross
            one half. All places of a sequence are that sequence's, its mask too.
    """

    def __init__(self, arch: RankingModel, task: int | None = None) -> None:
        super().__init__()
        self.arch, self.task = arch, task
        self.id_fields = [field.name for field in arch.inputs.id_fields]
        self.fields = [*self.id_fields, *arch.inputs.numeric_fields]
        crossed = dict(zip(arch.crosses.names, arch.crosses.pairs, strict=True)) if arch.crosses is not None else {}
        looked_up = (arch.crosses or arch).inputs
        self.owners: dict[str, Tensor] = {}
        for group in arch.groups(arch.dim):
            columns = [field.name for field in looked_up.id_fields if group.has(field) and not (group.unpooled and field.of)]
            self.owners[group.name] = self._owners(crossed.get(name, (name,)) for name in columns)
            for sequence in looked_up.sequences if group.unpooled else ():
                of_sequence = self._owners([(sequence.name,)] * sequence.length)
                self.owners |= {f"{group.name}/{sequence.name}": of_sequence, f"mask/{sequence.name}": of_sequence}

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        logits = self.arch(embeddings, dense)
        return logits if self.task is None else logits[:, self.task]

    def _owners(self, columns: Iterable[Sequence[str]]) -> Tensor:
        rows = [[1 / len(names) if field in names else 0.0 for field in self.fields] for names in columns]
        return torch.tensor(rows).reshape(len(rows), len(self.fields))
