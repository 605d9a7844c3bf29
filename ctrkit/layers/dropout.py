"""Dropout whose mask is cheap on a CPU."""

import torch
from torch import Tensor, nn
from torch.nn import functional

_SHARES = 2**16


class FastDropout(nn.Module):
    """``nn.Dropout``. On a CPU, where that draws a double for each element, this draws 64 bits for four of them.

    The share left out there is the multiple of 2^-16 that is nearest to ``p``; what stays is scaled by the inverse of just that share.

    Args:
        p: share of the elements left out in training, from 0 to less than 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        if values.device.type != "cpu":
            return functional.dropout(values, self.p)
        left_out = min(round(self.p * _SHARES), _SHARES - 1)
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[: values.numel()].view(values.shape) >= left_out - _SHARES // 2
        return values * kept.to(values.dtype).mul_(_SHARES / (_SHARES - left_out))

    def extra_repr(self) -> str:
        return f"p={self.p}"
