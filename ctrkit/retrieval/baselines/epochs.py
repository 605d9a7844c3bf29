"""Epochs of a baseline in torch: validation says which weights are kept and when to stop. It is not resumed in the middle."""

import math
import time
from collections.abc import Callable
from copy import deepcopy

from torch import nn

from ctrkit.errors import CtrkitError
from ctrkit.retrieval.evaluate import Recommender
from ctrkit.retrieval.job import Fitted, Job


def fit_epochs(job: Job, model: nn.Module, epoch: Callable[[int], float], recommender: Callable[[], Recommender], rows: int) -> Fitted:
    """
    Args:
        model: whose weights the epochs change.
        epoch: trains one of that number, from 0; gives the mean loss.
        recommender: of the model's present weights.
        rows: training events of an epoch.

    Raises:
        CtrkitError: a loss that is not finite.
    """
    training = job.experiment.training
    best, best_epoch, best_weights, seconds, done = -math.inf, 0, model.state_dict(), 0.0, 0
    while done < training.epochs and done - best_epoch < training.patience:
        started = time.perf_counter()
        model.train()
        loss = epoch(done)
        seconds += time.perf_counter() - started
        done += 1
        if not math.isfinite(loss):
            raise CtrkitError(
                f"the loss is not finite in epoch {done}", "Lower the learning rate, training.learning_rate or the model's own"
            )
        model.eval()
        value = job.validate(recommender())[training.monitor]
        if value > best:
            best, best_epoch, best_weights = value, done, deepcopy(model.state_dict())
        job.say(f"epoch {done}: loss {loss:.4f}, valid {training.monitor} {value:.4f}{'  best' if best_epoch == done else ''}")
    model.load_state_dict(best_weights)
    model.eval()
    params = sum(parameter.numel() for parameter in model.parameters())
    return Fitted(recommender(), params, epochs=done, best_epoch=best_epoch, samples_per_s=rows * done / seconds)
