"""BST: a transformer over the user's history with the target at its end::

    E     = [e_1 ; p_H], .., [e_H ; p_1], [v ; p_0]          [a ; b]: one vector after the other
    T     = TransformerLayer(E)                              several times, ctrkit/layers/transformer.py
    logit = MLP(concat(v_1 x_1, .., v_n x_n, T_1, .., T_H, T_{H+1}))

v is the vector of the target, the field ``of`` that the sequence is a history of; e_1 .. e_H, the most recent last, are vectors of the
same table. p_k belongs to the k-th behaviour before the target: the paper's positions are the time since then, which a sequence does
not hold. Where a history is shorter, nothing is attended to and T is 0. Each sequence has a transformer of its own.
"""

from collections.abc import Iterable
from typing import cast

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.errors import CtrkitError
from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import linear
from ctrkit.layers.transformer import TransformerLayer
from ctrkit.models.base import PlaceWeights, RankingModel, histories, with_sequences
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
        others, self.target_places = with_sequences("bst", inputs)
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        self.transformers = nn.ModuleList(Transformer(q.length, dim, s.layers, s.heads, s.dropout) for q in inputs.sequences)
        width = others.count * dim + sum((q.length + 1) * 2 * dim for q in inputs.sequences)
        layers: list[nn.Module] = []
        for units in s.hidden:
            layers += [linear(width, units), nn.LeakyReLU(), FastDropout(s.dropout)]
            width = units
        self.tower = nn.Sequential(*layers, linear(width, 1))

    def groups(self, dim: int) -> tuple[Group, ...]:
        return (Group("embedding", dim, unpooled=True),)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        fields = embeddings["embedding"]
        seen = histories(self.inputs, self.target_places, embeddings)
        attended = [transformer(*history) for transformer, history in zip(self.transformers, seen, strict=True)]
        return self.tower(torch.cat([self.vectors(fields, dense).flatten(1), *attended], dim=1)).squeeze(1)

    def explanations(self, embeddings: dict[str, Tensor], dense: Tensor) -> tuple[PlaceWeights, ...]:
        """What the target attends to, of every layer and head."""
        about = (
            "How much the target attends to each past value; with what it attends to itself, a row's weights sum to 1. In layers after "
            "the first, places are already mixtures."
        )
        seen = histories(self.inputs, self.target_places, embeddings)
        return tuple(
            PlaceWeights(sequence.name, about, cast(Transformer, transformer).target_weights(*history), normalised=True)
            for sequence, transformer, history in zip(self.inputs.sequences, self.transformers, seen, strict=True)
        )


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
        x, mask = self._places(target, history, mask)
        for layer in self.layers:
            x = layer(x, mask)
        return (x * mask.unsqueeze(2)).flatten(1)

    def target_weights(self, target: Tensor, history: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What the target attends to in the history, ``layer 1, head 1`` -> ``[batch, length]``; the rest up to 1 goes to itself."""
        x, mask = self._places(target, history, mask)
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(cast(Iterable[TransformerLayer], self.layers), 1):
            weights = layer.weights(x, mask)[:, :, -1, :-1]
            found |= {f"layer {number}, head {head + 1}": weights[:, head] for head in range(layer.heads)}
            x = layer(x, mask)
        return found

    def _places(self, target: Tensor, history: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """E and the mask of history and target."""
        vectors = torch.cat([history, target.unsqueeze(1)], dim=1)
        x = torch.cat([vectors, self.position.to(vectors.dtype).expand_as(vectors)], dim=2)
        return x, nn.functional.pad(mask, (0, 1), value=True)
