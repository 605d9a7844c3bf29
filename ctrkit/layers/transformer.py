"""A transformer layer over the places of a sequence."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.tower import linear


class TransformerLayer(nn.Module):
    """BST's layer (Chen et al. 2019, eq. 2-5), a head h having ``width / heads`` dims::

        head_h = softmax(E W_Q E W_K' / sqrt(width / heads)) E W_V          over the places that are not masked
        S      = LayerNorm(E + dropout(concat(head_1 .. head_n) W_H))
        out    = LayerNorm(S + dropout(W_2 LeakyReLU(S W_1 + b_1) + b_2))

    ``(E [batch, places, width], mask [batch, places])`` -> ``[batch, places, width]``. Each row needs a place that is not masked. A mask
    of shares between 0 and 1 multiplies the softmax's exponentials.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.join = (linear(width, width, bias=False) for _ in range(4))
        self.inner, self.outer = linear(width, 4 * width), linear(4 * width, width)
        self.attention_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = FastDropout(dropout)

    def forward(self, e: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (self._by_head(f(e)) for f in (self.query, self.key, self.value))
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=_attention_mask(mask))
        s = self.attention_norm(e + self.dropout(self.join(heads.transpose(1, 2).flatten(2))))
        return self.output_norm(s + self.dropout(self.outer(functional.leaky_relu(self.inner(s)))))

    def weights(self, e: Tensor, mask: Tensor) -> Tensor:
        """What each place attends to, ``[batch, heads, places, places]`` whose last axis sums to 1. For explanations only."""
        query, key = (self._by_head(f(e)) for f in (self.query, self.key))
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        return torch.softmax(scores.masked_fill(~mask.unsqueeze(1).unsqueeze(1), -torch.inf), dim=-1)

    def _by_head(self, x: Tensor) -> Tensor:
        """``[batch, places, width]`` -> ``[batch, heads, places, width / heads]``."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _attention_mask(mask: Tensor) -> Tensor:
    """Of ``scaled_dot_product_attention``: what is added to the scores, or whether they count. ``[batch, 1, 1, places]``."""
    if mask.is_floating_point():
        mask = mask.clamp_min(torch.finfo(mask.dtype).tiny).log()
    return mask.unsqueeze(1).unsqueeze(1)
