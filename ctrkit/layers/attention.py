"""Self-attention among the fields of a row."""

from typing import Any

import torch
from torch import Tensor, nn

from ctrkit.layers.dropout import FastDropout
from ctrkit.layers.tower import linear


class InteractingLayer(nn.Module):
    """AutoInt's interacting layer (Song et al. 2019, eq. 5-8).

    For head h, with ``e_m`` the vector of field m::

        alpha_mk = softmax_k(<W_q e_m, W_k e_k>)          (/ sqrt(dim of a head) with use_scale)
        e~_m     = concat over h of sum_k alpha_mk W_v e_k
        out_m    = ReLU(e~_m + W_res e_m)

    Computed as ``<e_m W_q' W_k, e_k>`` and ``W_v sum_k alpha_mk e_k``, the same numbers: fields attend to their inputs, so that heads
    lie side by side in memory and nothing is transposed. Cheaper than the formula as printed for a few heads, dearer for many.

    ``[batch, fields, inputs]`` -> ``[batch, fields, attention_dim]``; a head has ``attention_dim / heads`` dims.
    """

    def __init__(self, inputs: int, attention_dim: int, heads: int, use_scale: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (attention_dim // heads) ** -0.5 if use_scale else 1.0
        self.query, self.key, self.value, self.residual = (linear(inputs, attention_dim, bias=False) for _ in range(4))
        self.dropout = FastDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        with torch.autocast(device, enabled=False):
            query_key, value, residual = self._fold()
        if torch.is_autocast_enabled(device):
            x, query_key, value, residual = (t.to(torch.get_autocast_dtype(device)) for t in (x, query_key, value, residual))
        if device == "cpu" and not torch.compiler.is_compiling() and not (self.training and self.dropout.p):
            return _Interaction.apply(x, query_key, value, residual)
        _, fields, inputs = x.shape
        queries = (x @ query_key).view(-1, fields * self.heads, inputs)
        weights = self.dropout(torch.softmax(queries @ x.transpose(1, 2), dim=-1))
        attended = (weights @ x).view(-1, fields, self.heads * inputs)
        return torch.relu(attended @ value + x @ residual)

    def weights(self, x: Tensor) -> Tensor:
        """``alpha``: what each field attends to, ``[batch, heads, fields, fields]`` whose last axis sums to 1. For explanations only."""
        query_key, _, _ = self._fold()
        rows, fields, inputs = x.shape
        queries = (x @ query_key).view(rows, fields, self.heads, inputs).transpose(1, 2)
        return torch.softmax(queries @ x.unsqueeze(1).transpose(2, 3), dim=-1)

    def _fold(self) -> tuple[Tensor, Tensor, Tensor]:
        """``W_q' W_k`` of all heads ``[inputs, heads * inputs]``, ``W_v'`` ``[heads * inputs, attention_dim]`` with a block a head,
        and ``W_res'`` ``[inputs, attention_dim]``."""
        inputs = self.query.in_features
        query, key, value = (f.weight.view(self.heads, -1, inputs) for f in (self.query, self.key, self.value))
        query_key = torch.bmm(query.transpose(1, 2), key).transpose(0, 1).reshape(inputs, -1) * self.scale
        return query_key, torch.block_diag(*value.transpose(1, 2)), self.residual.weight.t()


class _Interaction(torch.autograd.Function):
    """``InteractingLayer``'s formula and its gradient on a CPU, without the tensors that autograd would keep and write between operators.

    The weights' softmax is ``exp(s) / sum exp(s)`` where that neither overflows nor vanishes: without the maximum it takes half the time.
    ``x`` ``[rows, fields, inputs]``, weights as ``InteractingLayer._fold`` gives them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, query_key: Tensor, value: Tensor, residual: Tensor) -> Tensor:
        rows, fields, inputs = x.shape
        heads = value.shape[0] // inputs
        flat = x.reshape(rows * fields, inputs)
        queries = (flat @ query_key).view(rows, fields * heads, inputs)
        weights = torch.bmm(queries, x.transpose(1, 2)).exp_()
        sums = weights.sum(-1, keepdim=True)
        smallest, largest = torch.aminmax(sums)
        if smallest > 1e-10 and largest < 1e10:
            weights.mul_(sums.reciprocal_())
        else:
            weights = torch.softmax(torch.bmm(queries, x.transpose(1, 2)), dim=-1)
        attended = torch.bmm(weights, x, out=queries).view(rows * fields, heads * inputs)
        out = (flat @ residual).addmm_(attended, value).relu_().view(rows, fields, -1)
        ctx.save_for_backward(x, query_key, value, residual, weights, out)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, query_key, value, residual, weights, out = ctx.saved_tensors
        rows, fields, inputs = x.shape
        heads = value.shape[0] // inputs
        flat = x.reshape(rows * fields, inputs)
        d_sum = torch.ops.aten.threshold_backward(gradients[0], out, 0).view(rows * fields, -1)

        attended = torch.bmm(weights, x)
        d_value = attended.view(rows * fields, heads * inputs).t() @ d_sum
        d_residual = flat.t() @ d_sum
        d_attended = (d_sum @ value.t()).view(rows, fields * heads, inputs)
        d_weights = torch.bmm(d_attended, x.transpose(1, 2))
        d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
        d_queries = torch.bmm(d_scores, x).view(rows * fields, heads * inputs)
        queries = torch.mm(flat, query_key, out=attended.view(rows * fields, heads * inputs)).view(rows, fields * heads, inputs)

        d_x = (d_sum @ residual.t()).addmm_(d_queries, query_key.t()).view(rows, fields, inputs)
        d_x.baddbmm_(weights.transpose(1, 2), d_attended).baddbmm_(d_scores.transpose(1, 2), queries)
        return d_x, flat.t() @ d_queries, d_value, d_residual
