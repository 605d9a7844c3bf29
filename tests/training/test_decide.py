"""What a search is told of the forms that it compares: the validation metric of the model as it is."""

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from rich.console import Console
from torch import Tensor

from ctrkit.config import Experiment
from ctrkit.data.dataset import Dataset
from ctrkit.data.loader import Loader
from ctrkit.embeddings.compression.optembed import OptEmbed, Supernet
from ctrkit.training.decide import spread
from ctrkit.training.tracking import read_records
from ctrkit.training.trainer import train

EVERYTHING = 1_000_000


@pytest.mark.parametrize("monitor", ["auc", "logloss", "gauc"])
def test_a_score_is_the_validation_metric_of_the_model_as_it_is(
    monitor: str, experiment: Callable[..., Experiment], dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores: list[float] = []

    def decide(
        self: OptEmbed, supernet: Supernet, parts: Mapping[str, Tensor], counts: Tensor, evaluate: Callable[[int], float]
    ) -> dict[str, Tensor]:
        scores.extend(evaluate(rows) for rows in (EVERYTHING, EVERYTHING, 1))
        supernet.show([1] * len(self.space.rows), torch.inf)
        scores.append(evaluate(EVERYTHING))
        assert supernet.training, "left as it was"
        return {"kept": counts > 2, "widths": torch.full((len(self.space.rows),), 2)}

    monkeypatch.setattr(OptEmbed, "decide", decide)
    compression = {"method": "optembed", "budget": 0.5, "search_epochs": 2}
    settings = experiment(epochs=1, monitor=monitor, embedding={"dim": 16, "compression": compression})
    run = train(settings, dataset, console=Console(quiet=True)).run
    sign = -1 if monitor == "logloss" else 1
    best = max(sign * record[monitor] for record in read_records(run / "search") if record["event"] == "valid")
    first, again, of_a_batch, of_nothing = scores
    assert first == again == pytest.approx(best, abs=1e-6)
    assert of_a_batch != pytest.approx(best, abs=1e-6) and of_nothing != pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(("rows", "batches"), [(1, 1), (100, 1), (101, 2), (350, 4), (600, 6), (EVERYTHING, 6)])
def test_a_sample_is_spread_over_the_split(rows: int, batches: int, dataset: Dataset) -> None:
    loader = Loader(dataset, "valid", 100)
    assert loader.rows == 600
    every = [batch.sparse.values().tolist() for batch in loader.iter()]
    found = [every.index(batch.sparse.values().tolist()) for batch in spread(loader, rows)]
    assert len(found) == batches and found[0] == 0 and found == sorted(set(found))
    assert all(second - first in (6 // batches, -(-6 // batches)) for first, second in pairwise(found))
