"""Sequences in the tables: looked up by place, or pooled, in the one table of their target."""

import pytest
import torch
from torch import Tensor

from ctrkit.config import Embedding
from ctrkit.models.base import CTRModel
from ctrkit.schema import IdField, Inputs
from ctrkit.training.distributed import Distributed, Worker, distribute, gather_full_weights, load_full_weights
from tests.embeddings.recorder import Recorder, batch_of

INPUTS = Inputs(
    id_fields=(
        IdField(name="seen", rows=6, multi_valued=True, of="item", length=3),
        IdField(name="tags", rows=4, multi_valued=True, pooling="sum"),
        IdField(name="item", rows=6),
        IdField(name="bought", rows=6, multi_valued=True, of="item", length=2),
        IdField(name="user", rows=3),
    ),
    numeric_fields=(),
)
ROWS = [([1, 2], [1, 1], [2], [5], [1]), ([], [], [1], [], [2]), ([3, 2, 3], [3], [3], [2, 4], [1])]
"""Ids of each field; item 5 is bought and never a target, item 1 is looked up in both ways."""
DIM = 3


def make(settings: Embedding, worker: Worker, seed: int = 0) -> tuple[Distributed, Recorder]:
    recorder = Recorder(INPUTS, DIM, unpooled=True)
    return distribute(CTRModel(recorder, settings), settings, worker, seed), recorder


def looked_up(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By hand: what the tables must give, differentiable in ``weights``."""

    def places(field: int, length: int) -> Tensor:
        padded = torch.tensor([[0] * (length - len(row[field])) + row[field] for row in ROWS])
        return weights["embedding/item"][padded] * (padded != 0).unsqueeze(2)

    def pooled(group: str, field: int, mean: bool) -> Tensor:
        table = weights[f"{group}/{INPUTS.id_fields[field].table}"]
        bags = [table[torch.tensor(row[field], dtype=torch.int64)].sum(0) / (max(len(row[field]), 1) if mean else 1) for row in ROWS]
        return torch.stack(bags)

    return {
        "embedding": torch.stack([pooled("embedding", f, mean=False) for f in (1, 2, 4)], dim=1),
        "embedding/seen": places(0, 3),
        "embedding/bought": places(3, 2),
        "linear": torch.stack([pooled("linear", f, mean=f != 1) for f in range(5)], dim=1),
    }


def test_by_place_the_most_recent_last_or_the_mean(worker: Worker) -> None:
    distributed, recorder = make(Embedding(dim=DIM, init_std=1.0), worker)
    distributed.model(batch_of(INPUTS, ROWS))
    weights = gather_full_weights(distributed.model)
    assert sorted(weights) == [f"{g}/{f}" for g in ("embedding", "linear") for f in ("item", "tags", "user")], "one table, no copies"
    expected = looked_up(weights)
    for name, given in expected.items():
        torch.testing.assert_close(recorder.seen[name], given, msg=name)
    assert recorder.seen["mask/seen"].tolist() == [[False, True, True], [False] * 3, [True] * 3]
    assert recorder.seen["mask/bought"].tolist() == [[False, True], [False, False], [True, True]]
    assert recorder.seen.keys() == {*expected, "mask/seen", "mask/bought"}


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_one_row_is_updated_by_the_sum_of_all_its_uses(worker: Worker, optimizer: str) -> None:
    rate, l2 = 0.1, 0.5
    settings = Embedding.model_validate({"dim": DIM, "optimizer": optimizer, "learning_rate": rate, "init_std": 1.0, "l2": l2})
    distributed, recorder = make(settings, worker)
    expected = {name: weight.clone().requires_grad_() for name, weight in gather_full_weights(distributed.model).items()}
    by_hand = {
        "sgd": lambda: torch.optim.SGD(expected.values(), lr=rate),
        "adagrad": lambda: torch.optim.Adagrad(expected.values(), lr=rate, eps=1e-8),
        "adam": lambda: torch.optim.Adam(expected.values(), lr=rate),
    }[optimizer]()
    draw = torch.Generator().manual_seed(0)
    for _ in range(2):
        distributed.table_optimizer.zero_grad()
        logits = distributed.model(batch_of(INPUTS, ROWS))
        hand = looked_up(expected)
        gradients = {name: torch.randn(e.shape, generator=draw) for name, e in hand.items()}
        (sum((recorder.seen[name] * g).sum() for name, g in gradients.items()) + 0 * logits.sum()).backward()
        distributed.table_optimizer.step()
        by_hand.zero_grad()
        penalty = sum(e.square().sum() for e in hand.values()) * l2 / 2 / len(ROWS)
        (sum((hand[name] * g).sum() for name, g in gradients.items()) + penalty).backward()
        by_hand.step()
    for name, weight in gather_full_weights(distributed.model).items():
        torch.testing.assert_close(weight, expected[name].detach(), atol=1e-5, rtol=1e-5, msg=name)
        assert not weight[0].any(), "padding"


def test_weights_load_into_another_model(worker: Worker) -> None:
    first, recorder = make(Embedding(dim=DIM, init_std=1.0), worker)
    other, other_recorder = make(Embedding(dim=DIM, init_std=1.0), worker, seed=9)
    load_full_weights(other.model, gather_full_weights(first.model))
    first.model(batch_of(INPUTS, ROWS)), other.model(batch_of(INPUTS, ROWS))
    assert all(torch.equal(seen, other_recorder.seen[name]) for name, seen in recorder.seen.items())
