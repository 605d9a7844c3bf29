"""Fixtures of the tests that ask towers."""

from pathlib import Path

import pytest

from pipelines.bench.synthetic_towers import write_towers
from tests.serving.shop import VECTORS


@pytest.fixture(params=["exact", "graph"])
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the rule that few items are compared one by one, which holds for the whole catalogue of a test."""
    if request.param == "graph":
        monkeypatch.setattr("serving.search.EXACT_ROWS", 5)
    return request.param


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A repository for a test alone."""
    write_towers(tmp_path, "shop", 1, VECTORS)
    return tmp_path
