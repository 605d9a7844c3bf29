"""Means and spreads over seeds, and how they are written down."""

from pipelines.bench.report import averages, cells


def run(auc: float) -> dict:
    return {"test": {"auc": auc, "logloss": 0.5}, "params": 1200, "samples_per_s": 2500.4}


def test_a_spread_is_that_over_seeds_and_one_seed_has_none() -> None:
    assert cells(averages(("a=1", "b=2"), [run(0.7), run(0.8)])) == ["0.7500 ± 0.0500", "0.5000 ± 0.0000", "2", "1,200", "2,500", "a=1 b=2"]
    assert cells(averages((), [run(0.7)])) == ["0.7000", "0.5000", "1", "1,200", "2,500", ""]
