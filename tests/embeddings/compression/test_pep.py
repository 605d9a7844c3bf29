"""PEP: soft thresholds by hand, learned; the mask is of the largest margins, and what it leaves starts from the first weights."""

from typing import Any

import pytest
import torch

from ctrkit.embeddings.compression.codec import Codec, stored_bytes
from ctrkit.embeddings.compression.method import Method
from tests.embeddings.compression.made import counts_of, looked_up, made, method_of, space_of, tables_of

GRANULARITIES = ["global", "dimension", "feature"]


def supernet_of(**settings: Any) -> tuple[Method, Codec]:
    method = method_of("pep", 0.3, **settings)
    supernet = method.supernet(counts_of(method.space))
    assert supernet is not None
    return method, supernet


def test_thresholds_by_hand() -> None:
    _, supernet = supernet_of(granularity="global", threshold=0.0)  # sigmoid(0) = 1/2
    rows = torch.tensor([[2.0, -2.0, 0.4, -0.4, 0.5, 0.75, 0.0, -0.75]])
    expected = torch.tensor([[1.5, -1.5, 0.0, 0.0, 0.0, 0.25, 0.0, -0.25]])
    torch.testing.assert_close(supernet.combine(torch.tensor([0]), [rows]), expected)


def tables_with(supernet: Codec) -> dict[str, torch.Tensor]:
    """Rows of any numbers, thresholds where they start."""
    of_parts = tables_of(supernet.parts)
    return {
        p.name: (of_parts[p.name] if p.start is None else torch.full((p.rows, p.width), p.start)).requires_grad_() for p in supernet.parts
    }


@pytest.mark.parametrize(("granularity", "count"), [("global", 1), ("dimension", 8), ("feature", 600)])
def test_the_thresholds_learn(granularity: str, count: int) -> None:
    _, supernet = supernet_of(granularity=granularity, threshold=-5.0)
    tables = tables_with(supernet)
    looked_up(supernet, tables, torch.arange(600)).square().sum().backward()
    (thresholds,) = supernet.deciding() or [tables["thresholds"]]
    assert thresholds.numel() == count and thresholds.grad is not None and (thresholds.grad != 0).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_where_the_loss_needs_nothing_the_thresholds_rise_until_all_is_pruned(granularity: str) -> None:
    """Within an epoch of a small log, from where they take nothing off: numbers of 0.1, as an epoch of Adagrad leaves them."""
    method, supernet = supernet_of(granularity=granularity)
    tables = tables_with(supernet)
    tables["rows"].data.fill_(0.1)
    deciding = supernet.deciding()
    optimizer = (
        torch.optim.Adam(deciding, lr=method.deciding_learning_rate) if deciding else torch.optim.Adagrad([tables["thresholds"]], lr=0.02)
    )
    taken = []
    for _ in range(120):
        vectors = looked_up(supernet, tables, torch.arange(600))
        taken.append(1 - float(vectors.detach().mean()) / 0.1)
        penalty = supernet.penalty()
        assert penalty is not None
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
    assert taken[0] < 1e-4 and taken[-1] == 1 and taken == sorted(taken)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("budget", [0.05, 0.3, 1.0])
def test_the_mask_fills_the_budget(granularity: str, budget: float) -> None:
    method = method_of("pep", budget, 6, granularity=granularity)
    codec, tables = made(method)
    assert method.allowed_bytes - 12 < stored_bytes(codec.stored(tables)) <= method.allowed_bytes, "not one row more fits"


def test_ids_with_high_thresholds_are_pruned_first() -> None:
    method, supernet = supernet_of(granularity="feature")
    parts = {"rows": torch.ones(600, 8), "thresholds": torch.linspace(0, 0.5, 600).unsqueeze(1)}
    mask = method.decide(supernet, parts, counts_of(space_of()), lambda rows: 0.0)["mask"]
    kept = int(mask.any(1).sum())
    assert 0 < kept < 600 and mask[: kept - 1].all() and not mask[kept:].any()


def test_the_training_starts_from_the_first_weights_without_those_pruned() -> None:
    method = method_of("pep", 0.3, granularity="feature")
    assert (method.starts_from, method.search_epochs, method.search_stops_early) == (0, 10, True)
    codec, tables = made(method)
    assert tables.keys() == {"rows"}
    ids = torch.arange(600)
    vectors = looked_up(codec, tables, ids)
    kept = vectors != 0
    assert torch.equal(vectors[kept], tables["rows"][kept]) and 0 < kept.sum() < kept.numel()
    assert torch.equal(codec.stored(tables)(ids), vectors)
