"""What the item tower is trained for beside finding items: self-supervision (Yao et al., CIKM 2021) and what it is compared with.

The loss is ``main + weight * auxiliary``. Items for the auxiliary task are drawn uniformly from those trained on, not from the log: so the tail
counts as much as the head.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field
from torch import Tensor

from ctrkit import schema
from ctrkit.retrieval.augment import masking, two_views
from ctrkit.retrieval.losses import contrastive
from ctrkit.retrieval.rows import Rows, stack
from ctrkit.schema import Inputs

Weight = Annotated[float, Field(ge=0, description="alpha, of the auxiliary loss")]
Share = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(gt=0, description="of the auxiliary softmax")]
Items = Annotated[int | None, Field(ge=2, description="items a step; default as many as the batch has events")]


class SelfSupervision(schema.Settings):
    """Two views of an item, with complementary features, find one another in a batch of items."""

    kind: Literal["ssl"] = "ssl"
    masking: Literal["correlated", "random"] = Field(default="correlated", description="the paper's CFM, or its baseline RFM")
    dropout: Share = Field(default=0.1, description="share of the values of a multi-valued feature that a view lacks")
    weight: Weight = 0.1
    temperature: Temperature = 0.1
    items: Items = None


class SpreadOut(schema.Settings):
    """Items as they are are pushed apart: the paper's baseline SO, after Zhang et al., ICCV 2017."""

    kind: Literal["spread_out"] = "spread_out"
    weight: Weight = 0.1
    temperature: Temperature = 0.1
    items: Items = None


class FeatureDropout(schema.Settings):
    """The main task's items lack features at random: the paper's baseline FD, after Volkovs et al., NeurIPS 2017. No auxiliary loss."""

    kind: Literal["feature_dropout"] = "feature_dropout"
    share: Share = Field(default=0.2, description="of the features of an item that are masked in a step")


AuxiliarySettings = Annotated[SelfSupervision | SpreadOut | FeatureDropout, Field(discriminator="kind")]


@dataclass(frozen=True)
class Extra:
    """Rows that a step encodes for the auxiliary task, and what is masked in them, bool ``[rows, fields]``."""

    items: Rows
    item_mask: np.ndarray
    queries: Rows | None = None
    query_mask: np.ndarray | None = None


@dataclass(frozen=True)
class Encoded:
    """Vectors of a step.

    Attributes:
        users, positives: the main task's, ``[batch, width]``.
        extra_users, extra_items: of ``Extra``'s rows.
        user_numbers, item_numbers: who the main task's rows are of, int64 ``[batch]``.
    """

    users: Tensor
    positives: Tensor
    extra_users: Tensor
    extra_items: Tensor
    user_numbers: Tensor
    item_numbers: Tensor


class Auxiliary(Protocol):
    """One kind of auxiliary training.

    Attributes:
        masks: whether it masks features, so that the towers must have vectors for those.
    """

    @property
    def masks(self) -> bool: ...

    def main_mask(self, items: int, random: np.random.Generator) -> np.ndarray | None:
        """What the items of the main task may not see, bool ``[items, fields]``; None: nothing is hidden."""
        ...

    def draw(self, queries: Rows, positives: Rows, random: np.random.Generator) -> Extra | None:
        """What is to be encoded for it in this step, the main task's rows being these; None: nothing."""
        ...

    def loss(self, encoded: Encoded) -> Tensor:
        """Weighted."""
        ...


class _SelfSupervision:
    masks = True

    def __init__(self, settings: SelfSupervision, catalogue: Rows, inputs: Inputs, trained: np.ndarray) -> None:
        self._settings, self._catalogue, self._trained = settings, catalogue, trained
        self._masking = masking(settings.masking, catalogue.take(trained), inputs)

    def main_mask(self, items: int, random: np.random.Generator) -> None:
        return None

    def draw(self, queries: Rows, positives: Rows, random: np.random.Generator) -> Extra:
        rows = self._catalogue.take(_uniform(self._trained, self._settings.items or positives.count, random))
        first, second, masked = two_views(rows, self._masking.draw(random), self._settings.dropout, random)
        return Extra(stack([first, second]), masked)

    def loss(self, encoded: Encoded) -> Tensor:
        first, second = encoded.extra_items.chunk(2)
        return self._settings.weight * contrastive(first, second, self._settings.temperature)


class _SpreadOut:
    masks = False

    def __init__(self, settings: SpreadOut, catalogue: Rows, inputs: Inputs, trained: np.ndarray) -> None:
        self._settings, self._catalogue, self._trained, self._fields = settings, catalogue, trained, inputs.count

    def main_mask(self, items: int, random: np.random.Generator) -> None:
        return None

    def draw(self, queries: Rows, positives: Rows, random: np.random.Generator) -> Extra:
        rows = self._catalogue.take(_uniform(self._trained, self._settings.items or positives.count, random))
        return Extra(rows, np.zeros((rows.count, self._fields), bool))

    def loss(self, encoded: Encoded) -> Tensor:
        return self._settings.weight * contrastive(encoded.extra_items, encoded.extra_items, self._settings.temperature)


class _FeatureDropout:
    masks = True

    def __init__(self, settings: FeatureDropout, catalogue: Rows, inputs: Inputs, trained: np.ndarray) -> None:
        self._share, self._fields = settings.share, inputs.count

    def main_mask(self, items: int, random: np.random.Generator) -> np.ndarray:
        return random.random((items, self._fields)) < self._share

    def draw(self, queries: Rows, positives: Rows, random: np.random.Generator) -> None:
        return None

    def loss(self, encoded: Encoded) -> Tensor:
        raise AssertionError("feature dropout draws nothing")


def make_auxiliary(settings: AuxiliarySettings, catalogue: Rows, inputs: Inputs, trained: np.ndarray) -> Auxiliary:
    """
    Args:
        catalogue: encoded features of all items.
        inputs: fields of the item tower.
        trained: items with training events, the only ones that are drawn and whose features are correlated.

    Raises:
        CtrkitError: too few features.
    """
    match settings:
        case SelfSupervision():
            return _SelfSupervision(settings, catalogue, inputs, trained)
        case SpreadOut():
            return _SpreadOut(settings, catalogue, inputs, trained)
        case FeatureDropout():
            return _FeatureDropout(settings, catalogue, inputs, trained)


def _uniform(trained: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Different items: an item drawn twice would be its own negative."""
    return random.choice(trained, min(count, len(trained)), replace=False)
