"""Rows are independent of one another: a layer may see them a few at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

CACHED_ROWS = 512
"""As many as keep what an interaction layer makes on the way in a CPU's cache."""


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, on the CPU computed ``CACHED_ROWS`` rows at a time. ``[batch, ..]`` -> ``[batch, ..]``.

    For functions that make tensors many times the size of ``x``: written to memory and read back, those cost more time than the arithmetic.
    A compiled or exported graph takes all rows at once.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return function(x)
    return torch.cat([function(rows) for rows in x.split(CACHED_ROWS)])
