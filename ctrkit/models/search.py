"""A training that decides on the form of the model to be trained after it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from ctrkit.models.base import Decision, RankingModel

END = "end"


class Search(ABC):
    """What the trainer asks of a search. It trains ``model``, then takes the decision.

    Args:
        model: what is trained.
        epochs: of the search, at most; 0 if there is nothing to train.
        stops_early: whether it stops as a training does, once the validation is no better, and decides from the best weights.
        rewind_epoch: the other model starts from the weights after so many epochs of the search, or from those that the decision is taken
            from (``END``); None: it starts anew.
        learning_rate: of what decides.
        deciding: the parameters of ``model`` that decide. No weight decay pulls at them, nor at gates.

    Attributes:
        alternates_from: epoch from which on each step on training rows, of all but what decides, follows one on validation rows, of that
            alone; before that epoch what decides stays as it is. None: all is trained in the same steps.
    """

    def __init__(
        self,
        model: RankingModel,
        epochs: int,
        stops_early: bool,
        rewind_epoch: int | str | None,
        learning_rate: float,
        deciding: Sequence[nn.Parameter],
    ) -> None:
        self.model = model
        self.epochs = epochs
        self.stops_early = stops_early
        self.rewind_epoch = rewind_epoch
        self.learning_rate = learning_rate
        self.deciding = deciding
        self.alternates_from: int | None = None

    def observe(self, batches: Iterable[KeyedJaggedTensor]) -> None:  # noqa: B027  most searches need nothing of it
        """Told the ids of all training rows once, before ``model`` gets its tables."""

    @abstractmethod
    def advance(self, epoch: int, step: int, steps: int) -> None:
        """Told before each step its epoch and which of the search's ``steps`` it is, all from 0."""

    def penalty(self, gates: Sequence[Tensor]) -> Tensor:
        """What is added to the loss of a step.

        Args:
            gates: all gates' numbers that this process holds, each tensor ``[any]``.
        """
        return torch.zeros(())

    @abstractmethod
    def decide(self, weights: Mapping[str, Any]) -> Decision:
        """The decision after the search, from its weights as ``ctrkit.training.run.load_run`` has them."""

    def rewound(self, weights: Mapping[str, Any], decision: Decision) -> dict[str, Any]:
        """The other model's ``dense_arch`` and ``tables`` to start from, out of the search's weights at ``rewind_epoch``: all of them.

        What is missing in either starts as it does in a new model.
        """
        return {part: weights[part] for part in ("dense_arch", "tables")}
