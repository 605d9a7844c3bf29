"""Instance-guided masks."""

from typing import cast

import torch
from torch import Tensor, nn

from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.tower import Tower, linear


class MaskBlock(nn.Module):
    """MaskNet's block (Wang et al. 2021): hidden units masked by what the row's embeddings say::

        mask = W_2 relu(W_1 e + b_1) + b_2             e: the row's embeddings, through reduction * inputs units
        out  = relu(layer norm(W (mask * x)))

    b_2 starts at 1, so that a mask changes nothing at first. At 0 it would all but blank out x, since e starts near 0, and the layer
    norm would blow up what is left: rounding then decides how training goes.

    ``(e [batch, embeddings], x [batch, inputs])`` -> ``[batch, outputs]``.
    """

    def __init__(self, embeddings: int, inputs: int, outputs: int, reduction: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.mask = Tower(embeddings, (max(1, round(inputs * reduction)),), outputs=inputs)
        nn.init.ones_(cast(nn.Linear, self.mask.layers[-1]).bias)
        self.hidden = linear(inputs, outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)
        self.dropout = FastDropout(dropout)

    def forward(self, embeddings: Tensor, x: Tensor) -> Tensor:
        return self.dropout(torch.relu(self.norm(self.hidden(self.mask(embeddings) * x))))


class FieldNorm(nn.Module):
    """Layer norm of each field's vector, with a scale and shift a field. ``[batch, fields, dim]`` -> the same shape."""

    def __init__(self, fields: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(fields, dim))
        self.shift = nn.Parameter(torch.zeros(fields, dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return nn.functional.layer_norm(vectors, vectors.shape[-1:]) * self.scale + self.shift
