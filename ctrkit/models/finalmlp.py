"""FinalMLP: two perceptrons, each on its own selection of the features, fused by a bilinear form::

    g_s   = 2 sigmoid(MLP(context_s))                        feature gate of stream s = 1, 2; one number for each dim of each field
    h_s   = MLP_s(g_s * concat(v_1 x_1, .., v_n x_n))
    logit = b + <w_1, h_1> + <w_2, h_2> + sum_heads h_1^T W h_2

A stream's context is the vectors of the fields named for it, or a learned vector, the same for every row. The authors' code looks
context fields up in tables of their own; here they are the vectors the streams read, so that a context costs no second table.
"""

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ctrkit import schema
from ctrkit.errors import CtrkitError, nearest
from ctrkit.layers.bilinear import BilinearFusion
from ctrkit.layers.fields import FieldVectors
from ctrkit.layers.tower import Tower
from ctrkit.models.base import RankingModel
from ctrkit.models.registry import register
from ctrkit.models.settings import BatchNorm, Dropout, Hidden
from ctrkit.schema import Inputs


@register("finalmlp", kind="ranking", paper="Mao et al., FinalMLP, AAAI 2023")
class FinalMLP(RankingModel):
    class Settings(schema.Settings):
        hidden1: Hidden = Field((400, 400, 400), min_length=1, description="units of each hidden layer of the first stream")
        hidden2: Hidden = Field((800,), min_length=1, description="units of each hidden layer of the second stream")
        gating: bool = Field(True, description="feature gates before the streams")
        context1: tuple[str, ...] = Field((), description="fields that drive the first stream's gate; none: a learned vector")
        context2: tuple[str, ...] = Field((), description="fields that drive the second stream's gate; none: a learned vector")
        gate_hidden: Hidden = Field((64,), description="units of each hidden layer of a gate")
        heads: int = Field(1, ge=1, description="slices of the streams that are fused pairwise; more heads, fewer weights")
        dropout: Dropout = 0.0
        batch_norm: BatchNorm = False

        @model_validator(mode="after")
        def _fits(self) -> "FinalMLP.Settings":
            if self.hidden1[-1] % self.heads or self.hidden2[-1] % self.heads:
                raise ValueError(
                    f"heads ({self.heads}) must divide the last of hidden1 ({self.hidden1[-1]}) and of hidden2 ({self.hidden2[-1]})"
                )
            if not self.gating and (self.context1 or self.context2):
                raise ValueError("context1 and context2 drive the gates, and gating is false")
            return self

    def __init__(self, inputs: Inputs, dim: int, settings: Settings) -> None:
        super().__init__(inputs, dim, settings)
        s = settings
        width = inputs.count * dim
        self.vectors = FieldVectors(len(inputs.numeric_fields), dim)
        contexts = (s.context1, s.context2) if s.gating else ()
        self.gates = nn.ModuleList(FeatureGate(inputs, dim, context, s.gate_hidden) for context in contexts)
        self.streams = nn.ModuleList(Tower(width, h, dropout=s.dropout, batch_norm=s.batch_norm) for h in (s.hidden1, s.hidden2))
        self.fusion = BilinearFusion(s.hidden1[-1], s.hidden2[-1], s.heads)

    def forward(self, embeddings: dict[str, Tensor], dense: Tensor) -> Tensor:
        vectors = self.vectors(embeddings["embedding"], dense)
        selected = [gate(vectors) for gate in self.gates] or [vectors.flatten(1)] * 2
        first, second = (stream(x) for stream, x in zip(self.streams, selected, strict=True))
        return self.fusion(first, second)


class FeatureGate(nn.Module):
    """``2 sigmoid(MLP(context)) * concat(v_1 .. v_n)``. ``[batch, fields, dim]`` -> ``[batch, fields * dim]``.

    Args:
        context: names of the fields that drive it.
    """

    positions: Tensor

    def __init__(self, inputs: Inputs, dim: int, context: tuple[str, ...], hidden: tuple[int, ...]) -> None:
        super().__init__()
        names = [field.name for field in inputs.id_fields] + list(inputs.numeric_fields)
        for name in context:
            if name not in names:
                raise CtrkitError(f"model 'finalmlp': no field '{name}' to be a gate's context", nearest(name, names))
        self.register_buffer("positions", torch.tensor([names.index(name) for name in context], dtype=torch.int64), persistent=False)
        self.learned = nn.Parameter(torch.randn(1, dim)) if not context else None
        self.gate = Tower(dim * max(1, len(context)), hidden, outputs=inputs.count * dim)

    def forward(self, vectors: Tensor) -> Tensor:
        context = self.learned if self.learned is not None else vectors.index_select(1, self.positions).flatten(1)
        return 2 * torch.sigmoid(self.gate(context)) * vectors.flatten(1)
