"""DeepLight (Deng et al., DeepLight: Deep Lightweight Feature Interactions for Accelerating CTR Predictions in Ad Serving, WSDM 2021): after
a warm-up, every few steps the smallest numbers of the whole table become zero, ever more of them; they are trained on and may grow back::

    share that is zero after k epochs of pruning = S (1 - D^(k / U))        S: that at which the table fits the budget

D^(1/U) is such that S is reached but for a hundredth after ``ramp`` epochs, and kept from then on: counted in steps, as in the paper, a small
log would be trained before it is pruned. Every evaluation, of the warm-up too, leaves out the numbers below the threshold at which the
table fitted the budget when it was last looked at (every ``every`` steps), so whatever weights early stopping picks were judged about as
they are kept: what is stored has the threshold of those very weights.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from ctrkit.embeddings.compression.codec import Codec, Shard
from ctrkit.embeddings.compression.full import FullTable
from ctrkit.embeddings.compression.method import Method, MethodSettings
from ctrkit.embeddings.compression.registry import register
from ctrkit.embeddings.compression.space import IdSpace
from ctrkit.embeddings.compression.sparse import StoredSparse, largest_that_fit, require_room, sparse_bytes

LEFT_AT_THE_RAMPS_END = 0.01
HALVINGS = 30


class DeepLightSettings(MethodSettings):
    warmup: float = Field(default=1.0, ge=0, description="epochs before the first number is pruned")
    ramp: float = Field(default=1.0, gt=0, description="epochs of pruning until the budget is met")
    every: int = Field(default=10, ge=1, description="steps from pruning to pruning")


class DeepLightCodec(FullTable):
    """The full table; in evaluation without the numbers below ``threshold``, at which it fits the budget."""

    threshold: Tensor

    def __init__(self, space: IdSpace, dim: int, settings: DeepLightSettings, allowed_bytes: int) -> None:
        super().__init__(space, dim)
        self.settings, self.allowed_bytes = settings, allowed_bytes
        self.epoch, self.step = 0.0, 0
        self.register_buffer("threshold", torch.zeros(()))

    def advance(self, epoch: float, step: int) -> None:
        self.epoch, self.step = epoch, step

    def combine(self, ids: Tensor, vectors: Sequence[Tensor]) -> Tensor:
        return vectors[0] if self.training else vectors[0] * (vectors[0].abs() >= self.threshold)

    @property
    def progress(self) -> float:
        """The share of S that is to be zero by now."""
        pruned_for = self.epoch - self.settings.warmup
        if pruned_for >= self.settings.ramp:
            return 1.0
        return 1 - LEFT_AT_THE_RAMPS_END ** (max(pruned_for, 0.0) / self.settings.ramp)

    @torch.no_grad()
    def after_step(self, shards: Mapping[str, Sequence[Shard]], add_up: Callable[[Tensor], Tensor]) -> None:
        if (self.step + 1) % self.settings.every:
            return
        tables = [shard.weights.abs() for shard in shards["rows"]]

        def left(threshold: float) -> tuple[int, int]:
            counts = torch.zeros(2, dtype=torch.int64, device=self.threshold.device)
            for table in tables:
                kept = table >= threshold
                counts += torch.stack([kept.any(1).sum(), kept.sum()])
            rows, numbers = add_up(counts).tolist()
            return rows, numbers

        def fits(threshold: float) -> bool:
            return sparse_bytes(self.space.total, self.dim, *left(threshold)) <= self.allowed_bytes

        self.threshold.fill_(least_threshold(fits))
        numbers = self.space.total * self.dim
        at_most = numbers - self.progress * (numbers - left(float(self.threshold))[1])
        pruned_below = float(self.threshold) if self.progress == 1 else least_threshold(lambda threshold: left(threshold)[1] <= at_most)
        for shard in shards["rows"]:
            shard.weights.mul_(shard.weights.abs() >= pruned_below)

    def stored(self, parts: Mapping[str, Tensor]) -> nn.Module:
        table = parts["rows"]
        return StoredSparse(table * largest_that_fit(table.abs(), self.allowed_bytes))


def least_threshold(enough: Callable[[float], bool]) -> float:
    """The least number from 0 on that is enough, where all larger ones are too, but for one part in 2^30; by bisection, the same in every
    process that is told the same."""
    if enough(0.0):
        return 0.0
    high = 1.0
    while not enough(high):
        high *= 2
    while high > 1e-30 and enough(high / 2):
        high /= 2
    low = high / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


@register(
    "deeplight",
    kind="intra-feature: pruning, in training",
    paper="Deng et al., DeepLight: Deep Lightweight Feature Interactions for Accelerating CTR Predictions in Ad Serving, WSDM 2021",
    sharded="the full table in training; what is served is sparse",
    benchmarked=True,
)
class DeepLight(Method):
    Settings = DeepLightSettings

    def __init__(self, settings: DeepLightSettings, space: IdSpace, dim: int) -> None:
        super().__init__(settings, space, dim)
        require_room(self)

    def codec(self, decision: Mapping[str, Tensor], counts: Tensor) -> Codec:
        return DeepLightCodec(self.space, self.dim, self.settings, self.allowed_bytes)
