"""OptInter explained: the way chosen for each pair of fields, and which of a row's pairs of values have a vector of their own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

import ctrkit.quiet  # noqa: F401
from ctrkit.explain.decisions.summary import TITLE
from ctrkit.explain.explainer import Explainer, open_run

MIN_COUNT = 56
"""Near the number of rows for each of the 64 pairs of a colour and a city."""


@pytest.fixture(scope="module")
def explainer(train: Callable[..., Path]) -> Iterator[Explainer]:
    model = {"name": "optinter", "method": "memorised", "min_count": MIN_COUNT, "tail_buckets": 3, "hidden": [8]}
    with open_run(train(model, "fields", epochs=2)) as opened:
        yield opened


def test_the_choice_is_told_and_drawn(explainer: Explainer) -> None:
    explanation = explainer.explain_split("test", rows=300, repeats=1, seed=0)
    (section,) = (s for s in explanation.sections if s.to_json().get("title") == TITLE)
    told = section.to_json()
    (memorised,) = (pair for pair in told["pairs"] if pair["rows"])
    assert {"first": "colour", "second": "city", "method": "memorised"}.items() <= memorised.items()
    assert len(told["pairs"]) == len(told["fields"]) * (len(told["fields"]) - 1) / 2
    shown = section.show("decision")
    assert len(shown.pictures) == 1 and shown.pictures[0].png.startswith(b"\x89PNG")
    assert "memorised (1)" in shown.pictures[0].svg and "colour" in shown.html


def test_a_rows_frequent_pairs_of_values_have_vectors_of_their_own(explainer: Explainer) -> None:
    trained_on = pl.concat([pl.read_parquet(part) for part in explainer.dataset.parts("train")])
    counts = {(a, b): n for a, b, n in trained_on.group_by("colour", "city").len().iter_rows()}
    golden = explainer.transforms.encode(explainer.dataset.golden()).select("colour", "city").rows()
    owned = set()
    for row in range(20):
        (of_row,) = (s for s in explainer.explain_golden(row).sections if s.to_json().get("title") == TITLE)
        (pair,) = of_row.to_json()["pairs"]
        assert pair["own"] == (counts[golden[row]] >= MIN_COUNT)
        assert f"colour = {pair['first_value']}" in of_row.show("row").html
        owned.add(pair["own"])
    assert owned == {True, False}
