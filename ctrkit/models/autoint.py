"""AutoInt: fields attend to one another::

    e_j   = v_j x_j                                  every field, categorical or numeric, in one space
    e     = InteractingLayer(e)                      several times, see ctrkit/layers/attention.py
    logit = <w, concat(e_1, .., e_n)> + b

With ``hidden`` a perceptron on the same embeddings is added to the logit (AutoInt+, section 5.5 of the paper); with ``wide`` a first-order term.
"""

from collections.abc import Iterable
from typing import cast

from pydantic import Field, model_validator
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.embeddings.tables import Group
from ctrkit.layers.attention import InteractingLayer
from ctrkit.layers.fields import FieldVectors, FirstOrder
from ctrkit.layers.rows import by_rows
from ctrkit.layers.tower import Tower, linear
from ctrkit.models.base import FieldMaps, RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import Dropout, Hidden
from ctrkit.schema import Inputs


@register("autoint", kind="ranking", paper="Song et al., AutoInt, CIKM 2019")
class AutoInt(RankingModel):
    class Settings(schema.Settings):
        layers: int = Field(3, ge=1, description="interacting layers")
        heads: int = Field(2, ge=1, description="attention heads a layer")
        attention_dim: int = Field(64, ge=1, description="width of a layer's output, all heads together")
        use_scale: bool = Field(False, description="divide attention scores by the square root of a head's width; the paper does not")
        attention_dropout: Dropout = 0.0
        hidden: Hidden = ()
        dropout: Dropout = 0.0
        wide: bool = Field(False, description="add a first-order term")

        @model_validator(mode="after")
        def _heads_divide(self) -> "AutoInt.Settings":
            if self.attention_dim % self.heads:
                raise ValueError(f"heads ({self.heads}) must divide attention_dim ({self.attention_dim})")
            return self

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        widths = [dim] + [s.attention_dim] * s.layers
        self.attention = nn.Sequential(
            *(InteractingLayer(w, s.attention_dim, s.heads, s.use_scale, s.attention_dropout) for w in widths[:-1])
        )
        self.output = linear(inputs.count * s.attention_dim, 1)
        self.tower = Tower(inputs.count * dim, s.hidden, outputs=1, dropout=s.dropout) if s.hidden else None
        self.first_order = FirstOrder(len(inputs.numeric_fields)) if s.wide else None

    def groups(self, dim: int) -> tuple[Group, ...]:
        wide = (Group("linear", 1),) if self.first_order is not None else ()
        return (Group("embedding", dim), *wide)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        logit = by_rows(self._attend, vectors)
        if self.tower is not None:
            logit = logit + self.tower(vectors.flatten(1))
        logit = logit.squeeze(1)
        if self.first_order is not None:
            logit = logit + self.first_order(embeddings["linear"], dense)
        return logit

    def _attend(self, vectors: Tensor) -> Tensor:
        return self.output(self.attention(vectors).flatten(1))

    def explanations(self, embeddings: dict[str, Tensor], dense: Tensor) -> tuple[FieldMaps, ...]:
        """The attention weights of every layer and head (section 5.4 of the paper)."""
        x = self.vectors(embeddings["embedding"], dense)
        maps: dict[str, Tensor] = {}
        for number, layer in enumerate(cast(Iterable[InteractingLayer], self.attention), 1):
            weights = layer.weights(x)
            maps |= {f"layer {number}, head {head + 1}": weights[:, head] for head in range(layer.heads)}
            x = layer(x)
        about = "How much a field (row) attends to each field (column); a row sums to 1. Fields of later layers are already mixtures."
        return (FieldMaps("Attention", about, maps, neutral=1 / self.inputs.count),)
