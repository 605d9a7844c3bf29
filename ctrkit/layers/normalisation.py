"""Batch normalisation over all processes of a training step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm(nn.Module):
    """Each channel (dim 1) to mean 0 and variance 1 over the rows of ALL processes, then scaled and shifted (Ioffe and Szegedy 2015).

    torch's own, which does the work where there is one process, would take each process' rows alone, so that two processes would train
    another model than one does, and fails on a batch of one row; ``SyncBatchNorm`` needs a GPU. Outside training the running statistics
    are used: a row's result is its own.

    ``[batch, channels, ...]`` -> the same shape, float32.

    Args:
        momentum: weight of a new batch in the running statistics, once there have been ``1 / momentum`` batches; until then they are
            the plain average. Otherwise the mean of 0 and variance of 1 they start at would stay in them for dozens of steps: far
            too large a variance where embeddings are small, and evaluation would see another model than training.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.scale = nn.Parameter(torch.ones(channels)) if affine else None
        self.shift = nn.Parameter(torch.zeros(channels)) if affine else None
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """
        Args:
            times: how many equal rows each row of ``x`` stands for, ``[batch]``; None: one.
        """
        if not self.training:
            return nn.functional.batch_norm(x, self.mean, self.variance, self.scale, self.shift, eps=self.eps)
        x = x.float()
        fused = times is None and not _several_processes() and not torch.compiler.is_compiling()  # whose graph has no counter to read
        if fused and x.numel() > x.shape[1]:
            self.batches += 1
            weight = max(1 / self.batches.item(), self.momentum)
            return nn.functional.batch_norm(x, self.mean, self.variance, self.scale, self.shift, True, weight, self.eps)
        others = [d for d in range(x.dim()) if d != 1]
        broadcast = [-1] + [1] * (x.dim() - 2)
        each = (x.new_ones(len(x)) if times is None else times.to(x.dtype)).view([-1] + [1] * (x.dim() - 1))
        count = _sum_over_processes(each.sum() * math.prod(x.shape[2:]))
        mean = _sum_over_processes((x * each).sum(others)) / count.clamp(min=1)
        centred = x - mean.view(broadcast)
        variance = _sum_over_processes((centred.square() * each).sum(others)) / count.clamp(min=1)
        with torch.no_grad():
            some = (count > 1).float()  # one row has no variance, and none nothing at all
            self.batches += some
            weight = some * (1 / self.batches.clamp(min=1)).clamp(min=self.momentum)
            self.mean.lerp_(mean, weight)
            self.variance.lerp_(variance * count / (count - 1).clamp(min=1), weight)
        factor = torch.rsqrt(variance + self.eps)
        if self.scale is None or self.shift is None:
            return centred * factor.view(broadcast)
        return centred * (self.scale * factor).view(broadcast) + self.shift.view(broadcast)


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Whatever rows the model sees in training meanwhile, its running statistics are those of before."""
    buffers = [buffer for norm in model.modules() if isinstance(norm, BatchNorm) for buffer in norm.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)


def _sum_over_processes(x: Tensor) -> Tensor:
    """Differentiable; ``x`` itself in a world of one."""
    return all_reduce(x) if _several_processes() else x


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
