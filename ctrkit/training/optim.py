"""The dense arch's optimizer. The tables have their own, see ``ctrkit.training.distributed``."""

from typing import Any

import torch

from ctrkit.config import Training
from ctrkit.models.base import RankingModel
from ctrkit.models.search import Search


def dense_optimizer(model: RankingModel, settings: Training, search: Search | None = None) -> torch.optim.Optimizer:
    """``training.optimizer`` over the dense arch, with ``training.weight_decay`` on all of it but what decides in a search."""
    deciding = list(search.deciding) if search is not None else []
    chosen = {id(p) for p in deciding}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in chosen]}]
    if search is not None:
        groups.append({"params": deciding, "lr": search.learning_rate, "weight_decay": 0.0})
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=rate, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(groups, lr=rate, weight_decay=decay)
