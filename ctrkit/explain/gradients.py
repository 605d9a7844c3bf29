"""Integrated gradients (Sundararajan et al., Axiomatic Attribution for Deep Networks, ICML 2017) over a model's fields::

    contribution_i = (x_i - b_i) * integral over t in [0, 1] of  d logit(b + t (x - b)) / d x_i

x holds the row's looked-up vectors, every group's, and its numbers; b is the baseline. A field's contribution is the sum over all that
belongs to it, and the contributions of all fields add up to logit(x) - logit(b).

The baseline is the average row: each field's mean vector over a sample of the training rows. The zero vector would do as well, but it
is a row of no values, which the model never saw; from the average row, a contribution says what this value changes against a typical
one. A number has two shares: its value (averaged over the rows that have one) and whether it is missing, for which a number layer
has a learned stand-in e_missing: along the path its output is ``(1 - m) e(x) + m e_missing``, with m in [0, 1] and the share of missing
values as the baseline's m. So a missing number gets its due, and no NaN is ever differentiated.

A cross, a vector for two fields' values together, is half of each's.

A place of a history has two shares as well: its vector (averaged over the rows with a value there) and whether there is one, the mask,
which along the path is a share in [0, 1]. All of a history's places together are the sequence's contribution, its length included.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from ctrkit.explain.lookups import Lookups
from ctrkit.explain.subject import Subject
from ctrkit.layers.numeric import AutoDis, FillMissing, NumericEmbedding

_POINTS_AT_A_TIME = 4096
"""Rows x steps of one pass."""


@dataclass(frozen=True)
class Baseline:
    """The average row.

    Attributes:
        embeddings: as of ``Lookups``, with one row; masks are shares of rows with something at a place.
        dense: ``[1, numeric fields]``, means of the values that are there.
        missing: ``[1, numeric fields]``, shares of rows without one.
        logit: what the model gives it.
    """

    embeddings: dict[str, Tensor]
    dense: Tensor
    missing: Tensor
    logit: float


@dataclass(frozen=True)
class Contributions:
    """``values`` ``[rows, fields]`` that add up to ``logits - baseline.logit``, up to the integration's error ``gap`` ``[rows]``."""

    values: Tensor
    logits: Tensor
    gap: Tensor


def average_row(subject: Subject, rows: Lookups) -> Baseline:
    """The baseline that these rows make."""
    embeddings = {name: _average(rows, name) for name in rows.embeddings}
    dense = rows.dense.nanmean(0, keepdim=True).nan_to_num()
    missing = rows.dense.isnan().float().mean(0, keepdim=True)
    with torch.no_grad(), _missing(subject, missing):
        return Baseline(embeddings, dense, missing, float(subject(embeddings, dense)))


def contributions(subject: Subject, rows: Lookups, baseline: Baseline, steps: int) -> Contributions:
    """Every field's contribution to every row's logit.

    Args:
        steps: points of the integral (Gauss-Legendre) a row. The gap shrinks slowly where the logit turns sharply (ReLU, layer norm).
    """
    parts = [_contributions(subject, part, baseline, steps) for part in rows.split(max(1, _POINTS_AT_A_TIME // steps))]
    values, logits = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Contributions(values, logits, (logits - baseline.logit - values.sum(1)).abs())


def _contributions(subject: Subject, rows: Lookups, baseline: Baseline, steps: int) -> tuple[Tensor, Tensor]:
    names = [name for name, e in rows.embeddings.items() if e.shape[1]]
    empty = {name: e for name, e in rows.embeddings.items() if name not in names}
    missing = rows.dense.isnan()
    numbers = (torch.where(missing, baseline.dense, rows.dense), missing.float()) if rows.dense.shape[1] else ()
    average = (baseline.dense, baseline.missing) if numbers else ()

    def logit(*point: Tensor) -> Tensor:
        embeddings = dict(zip(names, point, strict=False)) | {name: e.new_empty(len(point[0]), *e.shape[1:]) for name, e in empty.items()}
        if not numbers:
            return subject(embeddings, rows.dense[:1].expand(len(point[0]), -1))
        with _missing(subject, point[-1]):
            return subject(embeddings, point[-2])

    x = (*(_end(rows, baseline, name) for name in names), *numbers)
    b = (*(baseline.embeddings[name] for name in names), *average)
    shares = IntegratedGradients(logit, multiply_by_inputs=True).attribute(x, b, n_steps=steps)
    values = rows.dense.new_zeros(rows.rows, len(subject.fields))
    for name, share in zip(names, shares, strict=False):
        values += (share.sum(2) if share.dim() == 3 else share).to(values.dtype) @ subject.owners[name].to(values.device)
    if numbers:
        values[:, len(subject.id_fields) :] += (shares[-2] + shares[-1]).to(values.dtype)
    with torch.no_grad():
        return values, subject(rows.embeddings, rows.dense).float()


def _average(rows: Lookups, name: str) -> Tensor:
    mean, mask = rows.embeddings[name].float().mean(0, keepdim=True), rows.mask_of(name)
    return mean if mask is None else (mean / mask.float().mean(0, keepdim=True).unsqueeze(2)).nan_to_num()


def _end(rows: Lookups, baseline: Baseline, name: str) -> Tensor:
    """Where the path ends: a place without a value keeps the average vector, of which the mask takes all away."""
    mask = rows.mask_of(name)
    return (
        rows.embeddings[name].float() if mask is None else torch.where(mask.unsqueeze(2), rows.embeddings[name], baseline.embeddings[name])
    )


@contextmanager
def _missing(model: nn.Module, share: Tensor) -> Iterator[None]:
    """Number layers give ``(1 - share) e(x) + share e_missing`` instead of ``e(x)``. ``share`` ``[batch, numeric fields]``."""

    def blend(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        stand_in = layer.forward(torch.full_like(inputs[0], torch.nan))
        return torch.lerp(output, stand_in, share.reshape(share.shape + (1,) * (output.dim() - 2)).expand_as(output))

    hooks = [m.register_forward_hook(blend) for m in model.modules() if isinstance(m, AutoDis | FillMissing | NumericEmbedding)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
