"""The training benchmark at a size that takes seconds: both sides learn the same rows."""

import pytest
import torch
from rich.console import Console

from pipelines.bench.training import Clicks, Sizes, bench_training


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def test_every_side_is_timed_and_scored_on_the_same_rows(threads: int) -> None:
    sizes = Sizes(fields=4, dim=4, batch_size=256, layers=1, attention_dim=4)
    with Console().capture():
        measured = bench_training(rows=[80, 160], steps=200, sizes=sizes, threads=1, console=Console())
    assert [result["rows"] for result in measured["results"]] == [80, 160]
    assert (measured["fields"], measured["threads"], measured["steps"]) == (4, 1, 200)
    for result in measured["results"]:
        for side in ("plain", "fp32", "bf16"):
            assert result[side]["samples_per_s"] > 0
            assert result[side]["ratio"] == pytest.approx(result[side]["samples_per_s"] / result["plain"]["samples_per_s"])
            assert result[side]["auc"] > 0.6


def test_rows_are_repeatable_and_popular_ids_frequent() -> None:
    clicks = Clicks(ids=1000, fields=3, seed=1)
    ids, labels = clicks.batch(4096, 5)
    again, same = Clicks(ids=1000, fields=3, seed=1).batch(4096, 5)
    assert torch.equal(ids, again) and torch.equal(labels, same)
    assert not torch.equal(ids, clicks.batch(4096, 6)[0])
    assert ids.min() >= 1 and ids.max() < 1000
    assert (ids <= 100).float().mean() > 0.5
