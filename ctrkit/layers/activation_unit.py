"""DIN's local activation unit: how much each past behaviour matters for this target."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctrkit.layers.dice import Activation, DiceTower


class ActivationUnit(nn.Module):
    """Zhou et al. 2018, section 4.3, for target v and history e_1 .. e_H::

        a(e, v) = MLP([e, v, v - e, v * e])
        out     = sum_j a(e_j, v) e_j

    The weights are not normalised: their sum tells how strong the interest is. The paper draws an outer product between e and v, d^2
    wide; like its authors' code, this takes difference and product by element. An empty history gives zeros.

    In training the unit sees the behaviours there are, packed, so that padding is in no batch statistic.

    ``(target [batch, dim], history [batch, length, dim], mask [batch, length])`` -> ``[batch, dim]``. In evaluation the mask may hold
    shares between 0 and 1: a weight counts by that much.
    """

    def __init__(self, dim: int, hidden: Sequence[int], activation: Activation) -> None:
        super().__init__()
        self.score = DiceTower(4 * dim, hidden, activation)

    def forward(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        return (self.weights(target, history, mask).unsqueeze(1) @ history).squeeze(1)

    def weights(self, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
        """``a(e_j, v)``, 0 where there is no behaviour: ``[batch, length]``."""
        rows, length, _ = history.shape
        if self.training:
            row, _ = present = mask.nonzero(as_tuple=True)
            scores = self.score(_pair(target[row], history[present]))
            return scores.new_zeros(rows, length).index_put(present, scores)
        pairs = _pair(target.unsqueeze(1).expand_as(history), history)
        return self.score(pairs.flatten(0, 1)).view(rows, length) * mask


def _pair(target: Tensor, behaviour: Tensor) -> Tensor:
    return torch.cat([behaviour, target, target - behaviour, target * behaviour], dim=-1)
