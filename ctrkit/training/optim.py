"""The dense arch's optimizer. The tables have their own, see ``ctrkit.training.distributed``."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from ctrkit.config import Training


def dense_optimizer(parameters: Iterable[Parameter], settings: Training) -> torch.optim.Optimizer:
    """``training.optimizer`` over the dense arch, with ``training.weight_decay`` on all of it."""
    rate, decay = settings.learning_rate, settings.weight_decay
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(parameters, lr=rate, weight_decay=decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
        case "adagrad":
            return torch.optim.Adagrad(parameters, lr=rate, weight_decay=decay)
