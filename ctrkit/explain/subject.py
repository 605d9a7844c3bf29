"""What is explained: one logit of a model, whose looked-up tensors are taken apart by field."""

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
        columns: of each looked-up tensor, the place in ``fields`` that each of its columns belongs to; all places of a sequence belong to
            that sequence, its mask too.
    """

    def __init__(self, arch: RankingModel, task: int | None = None) -> None:
        super().__init__()
        self.arch, self.task = arch, task
        self.id_fields = [field.name for field in arch.inputs.id_fields]
        self.fields = [*self.id_fields, *arch.inputs.numeric_fields]
        self.columns: dict[str, Tensor] = {}
        for group in arch.groups(arch.dim):
            alone = arch.inputs.sequences if group.unpooled else ()
            self.columns[group.name] = self._places(name for name in self.id_fields if name not in {s.name for s in alone})
            for sequence in alone:
                of_sequence = self._places([sequence.name] * sequence.length)
                self.columns |= {f"{group.name}/{sequence.name}": of_sequence, f"mask/{sequence.name}": of_sequence}

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        logits = self.arch(embeddings, dense)
        return logits if self.task is None else logits[:, self.task]

    def _places(self, names) -> Tensor:
        return torch.tensor([self.fields.index(name) for name in names], dtype=torch.int64)
