"""Adaptive low-precision training: each row is integers times a step of its own, which is learned (Li et al., Adaptive Low-Precision Training
for Embeddings in Click-Through Rate Prediction, AAAI 2023)::

    v(x) = step[x] * code[x]

After each update of the rows they are rounded stochastically to multiples of their steps, so that nothing finer is left of them: training is
low-precision, though the multiples are held as float32 until the end. The gradient of a step is that of rounding, the rounding error at
each number (at a number out of reach, the last code), times ``1 / sqrt(batch * dim * largest code)``.

Two departures from the paper. It asks for the steps' gradient with a second pass through the batch, after the update; here it is taken when
a row is looked up next, for which the row's last rounding errors are held beside it: one pass suffices. And what is learned is the
logarithm of a step over its start, so that the rows' optimizer and decay, which know nothing of a step's size, suit it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Part, Shard, seeded
from ctrkit.embeddings.compression.codes import WIDTHS, StoredCodes, code_bytes, largest_code, stochastically
from ctrkit.embeddings.compression.method import FLOAT_BYTES, Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.tables import all_rows

_SPREAD = 0.01
_SAME = 2.0**-20
"""Of the largest code: a row nearer to its multiples than this was not updated, but for what float32 cannot tell."""


class AlptCodec(Codec):
    """Part ``rows``: the multiples ``[dim]``, the errors of their last rounding in steps ``[dim]``, and ``log(step / start)``.

    Args:
        reach: the largest number that the codes reach with the steps at the start.
    """

    def __init__(self, space: IdSpace, dim: int, bits: int, reach: float) -> None:
        super().__init__(space, dim)
        self.bits, self.largest, self.start = bits, largest_code(bits), reach / largest_code(bits)
        self.step = 0
        self.parts = (Part("rows", space.total, 2 * dim + 1, init_std=_SPREAD),)

    def places(self, ids: Tensor) -> list[Tensor]:
        return [ids]

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        numbers, errors, logarithm = self.columns(vectors[0])
        step = self.steps(logarithm)
        rounded = self.codes(numbers.detach(), step.detach()) * step.detach()
        batch = (all_rows(len(ids), ids.device) if self.training else len(ids)) / len(self.space.rows)
        scale = (max(batch, 1 / len(self.space.rows)) * self.dim * self.largest) ** -0.5  # a batch may have no id at all
        through = (numbers - numbers.detach()) + scale * errors.detach() * (step - step.detach())
        return rounded + through

    def columns(self, rows: Tensor) -> Sequence[Tensor]:
        return rows.split([self.dim, self.dim, 1], dim=1)

    def steps(self, logarithm: Tensor) -> Tensor:
        return self.start * logarithm.exp()

    def codes(self, numbers: Tensor, step: Tensor) -> Tensor:
        return (numbers / step).round().clamp(-self.largest, self.largest)

    def advance(self, epoch: float, step: int) -> None:
        self.step = step

    @torch.no_grad()
    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        for shard in shards["rows"]:
            numbers, errors, logarithm = self.columns(shard.weights)
            step = self.steps(logarithm)
            exact = numbers / step
            draws = torch.rand(exact.shape, generator=seeded("alpt", self.step, shard.first)).to(exact.device)
            moved = (exact - exact.round()).abs() > self.largest * _SAME
            code = torch.where(moved, stochastically(exact, draws), exact.round()).clamp(-self.largest, self.largest)
            beyond = exact.abs() > self.largest
            errors.copy_(torch.where(moved | beyond, torch.where(beyond, code, code - exact), errors))
            numbers.copy_(code * step)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        numbers, _, logarithm = self.columns(parts["rows"].detach())
        steps = self.steps(logarithm)
        return StoredAlpt(StoredCodes(self.codes(numbers, steps), self.bits), steps)


class StoredAlpt(nn.Module):
    steps: Tensor

    def __init__(self, codes: StoredCodes, steps: Tensor) -> None:
        super().__init__()
        self.codes = codes
        self.register_buffer("steps", steps.clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.codes(ids) * self.steps[ids]


class AlptSettings(MethodSettings):
    bits: Literal[16, 8, 4] | None = Field(default=None, description="of a number; default 8, or 4 where the budget has no room for 8")
    reach: float = Field(
        default=0.5, gt=0, description="the largest number that can be kept at the start; the steps are learned from there"
    )


@register(
    "alpt",
    kind="intra-feature: quantisation, while training",
    paper="Li et al., Adaptive Low-Precision Training for Embeddings in Click-Through Rate Prediction, AAAI 2023",
    sharded="its table of numbers and steps",
    benchmarked=True,
)
class Alpt(Method):
    Settings = AlptSettings

    def __init__(self, settings: AlptSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        widths = [settings.bits] if settings.bits else [bits for bits in WIDTHS if bits <= 8]
        takes = {bits: code_bytes(space.total, dim, bits) + space.total * FLOAT_BYTES for bits in widths}
        fitting = [bits for bits in widths if takes[bits] <= self.allowed_bytes]
        if not fitting:
            fewer = "" if settings.bits in (None, 4) else ", or set fewer bits"
            raise self.refuse(min(takes.values()), f"Raise the budget{fewer}; a step is four bytes a row, which wider vectors share")
        self.bits = fitting[0]

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> AlptCodec:
        return AlptCodec(self.space, self.dim, self.bits, self.settings.reach)
