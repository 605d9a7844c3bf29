"""Self-attention among the fields of a row."""

import torch
from torch import Tensor, nn

from ctrkit.layers.tower import linear


class InteractingLayer(nn.Module):
    """AutoInt's interacting layer (Song et al. 2019, eq. 5-8).

    For head h, with ``e_m`` the vector of field m::

        alpha_mk = softmax_k(<W_q e_m, W_k e_k>)          (/ sqrt(dim of a head) with use_scale)
        e~_m     = concat over h of sum_k alpha_mk W_v e_k
        out_m    = ReLU(e~_m + W_res e_m)

    ``[batch, fields, inputs]`` -> ``[batch, fields, attention_dim]``; a head has ``attention_dim / heads`` dims.
    """

    def __init__(self, inputs: int, attention_dim: int, heads: int, use_scale: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (attention_dim // heads) ** -0.5 if use_scale else 1.0
        self.query, self.key, self.value, self.residual = (linear(inputs, attention_dim, bias=False) for _ in range(4))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        weights = torch.softmax(query @ key.transpose(-1, -2) * self.scale, dim=-1)
        attended = (self.dropout(weights) @ value).transpose(1, 2).flatten(-2)
        return torch.relu(attended + self.residual(x))
