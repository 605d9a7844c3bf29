"""BST: a transformer over the user's history with the target at its end::

    E     = [e_1 ; p_H], .., [e_H ; p_1], [v ; p_0]          [a ; b]: one vector after the other
    T     = TransformerLayer(E)                              several times, ctrkit/layers/transformer.py
    logit = MLP(concat(v_1 x_1, .., v_n x_n, T_1, .., T_H, T_{H+1}))

v is the vector of the target, the field ``of`` that the sequence is a history of; e_1 .. e_H, the most recent last, are vectors of the
same table. p_k belongs to the k-th behaviour before the target: the paper's positions are the time since then, which a sequence does
not hold. Where a history is shorter, nothing is attended to and T is 0. Each sequence has a transformer of its own.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.errors import CtrkitError
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import linear
from ctrkit.layers.transformer import TransformerLayer
from ctrkit.models.base import RankingModel, with_sequences
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("bst", kind="sequence", paper="Chen et al., Behavior Sequence Transformer for E-commerce Recommendation in Alibaba, DLP-KDD 2019")
class BST(RankingModel):
    class Settings(schema.Settings):
        layers: int = Field(1, ge=1, description="transformer layers")
        heads: int = Field(2, ge=1, description="attention heads a layer; the paper's 8 suit wider vectors")
        hidden: Hidden = (1024, 512, 256)
        dropout: Dropout = 0.0

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        if 2 * dim % s.heads:
            raise CtrkitError(
                f"model 'bst': heads ({s.heads}) must divide {2 * dim}, the width of a vector ({dim}) and its position's",
                "Change model.heads or embedding.dim",
            )
        others, self.targets = with_sequences("bst", inputs)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.transformers = nn.ModuleList(Transformer(q.length, dim, s.layers, s.heads, s.dropout) for q in inputs.sequences)
        width = others.count * dim + sum((q.length + 1) * 2 * dim for q in inputs.sequences)
        layers: list[nn.Module] = []
        for units in s.hidden:
            layers += [linear(width, units), nn.LeakyReLU(), nn.Dropout(s.dropout)]
            width = units
        self.tower = nn.Sequential(*layers, linear(width, 1))

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim, unpooled=True),)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        fields = embeddings["embedding"]
        parts = [self.vectors(fields, dense).flatten(1)]
        for transformer, sequence, target in zip(self.transformers, self.inputs.sequences, self.targets, strict=True):
            history, mask = embeddings[f"embedding/{sequence.name}"], embeddings[f"mask/{sequence.name}"]
            parts.append(transformer(fields[:, target], history, mask))
        return self.tower(torch.cat(parts, dim=1)).squeeze(1)


class Transformer(nn.Module):
    """``(target [batch, dim], history [batch, length, dim], mask [batch, length])`` -> ``[batch, (length + 1) 2 dim]``.

    Positions start as vectors of about length 1: as small as the tables' rows, it takes attention several times as many steps to find
    that it can tell a behaviour like the target from the target itself by them.
    """

    def __init__(self, length: int, dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(length + 1, dim) * dim**-0.5)
        self.layers = nn.ModuleList(TransformerLayer(2 * dim, heads, dropout) for _ in range(layers))

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        vectors = torch.cat([history, target.unsqueeze(1)], dim=1)
        mask = nn.functional.pad(mask, (0, 1), value=True)
        x = torch.cat([vectors, self.position.to(vectors.dtype).expand_as(vectors)], dim=2)
        for layer in self.layers:
            x = layer(x, mask)
        return (x * mask.unsqueeze(2)).flatten(1)
