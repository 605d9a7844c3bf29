"""Every model of the registry over rows of public logs: its bundle gives what the trained model gives.

Slow: trains and exports each a few times. The logs are below CTRKIT_DATA, as for the experiments in ``configs/``.
"""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import ctrkit.quiet  # noqa: F401
from ctrkit.bundle import open_bundle
from ctrkit.config import Experiment
from ctrkit.config_file import load_config
from ctrkit.data.dataset import Dataset
from ctrkit.data.prepare import prepare
from ctrkit.models.registry import models
from ctrkit.training.trainer import train
from pipelines.export import export_run
from tests.zoo import has_search

CONFIGS = Path(__file__).parents[1] / "configs"
LOG_OF = {"ranking": "criteo", "sequence": "kuairand-history", "multi-task": "kuairand-multitask"}
LOG_ROWS, VALID_ROWS, TEST_ROWS = 20_000, 1000, 2000
EMBEDDINGS: dict[str, tuple[str, ...]] = {
    "tables": (),
    "autodis": ("embedding.numeric=autodis",),
    "unified": ("embedding.kind=unified", "embedding.rows=50000", "embedding.lookups=2"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "optfs": {"search_epochs": 2, "l1": 1e-4, "gate_learning_rate": 0.05},
    "optinter": {"search_epochs": 1, "min_count": 5, "choice_learning_rate": 0.2},
}
"""Where a model's defaults take long, or would decide nothing in so few steps."""


@dataclass(frozen=True)
class Case:
    """A model of the registry with one of ``EMBEDDINGS`` and some of its settings."""

    model: str
    kind: str
    embedding: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.model, self.embedding, *map(str, self.settings.values())])


ZOO = models()
BASES = [m.name for m in ZOO if m.kind == "ranking" and not has_search(m.name) and m.name != "deepfm"]
"""Of OptFS; deepfm is what it takes without being told."""
CASES = [
    *(Case(m.name, m.kind, embedding) for m in ZOO for embedding in ("tables", "autodis")),
    *(Case(m.name, m.kind, "unified") for m in ZOO if not has_search(m.name)),
    *(Case("fgcnn", "ranking", "tables", {"classifier": classifier}) for classifier in ("autoint", "deepfm", "dcnv2")),
    Case("optinter", "ranking", "tables", {"method": "memorised"}),
    *(Case("optfs", "ranking", "tables", {"base": base}) for base in BASES),
]


def experiment(case: Case, log: Path, output: Path) -> Experiment:
    """Large steps from large rows, so that probabilities come out far from one another; no more than that is learned here."""
    numbers = [f"features.I{k}.transform=log1p" for k in range(1, 8)] if case.kind == "ranking" else []
    return load_config(
        CONFIGS / f"{LOG_OF[case.kind]}.yaml",
        [
            f"data.path={log}",
            f"split.valid={VALID_ROWS}",
            f"split.test={TEST_ROWS}",
            *numbers,
            *EMBEDDINGS[case.embedding],
            f"model={ {'name': case.model, **SETTINGS.get(case.model, {}), **case.settings} }",
            "embedding.dim=8",
            "embedding.init_std=0.05",
            "embedding.learning_rate=0.1",
            "training.batch_size=1024",
            "training.steps=12",
            "training.threads=1",
            f"export.golden_rows={TEST_ROWS}",
            f"output={output}",
        ],
    )


def first_rows(log: str, folder: Path) -> Path:
    """The beginning of a log, header and all."""
    with gzip.open(log, "rt", encoding="utf8") as lines:
        text = "".join(islice(lines, LOG_ROWS))
    path = folder / Path(log).name.removesuffix(".gz")
    path.write_text(text, encoding="utf8")
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], tuple[Path, Dataset]]:
    """The log of a case and its dataset, made once for all cases that can use it."""
    folder = tmp_path_factory.mktemp("datasets")

    @cache
    def make(kind: str, unified: bool) -> tuple[Path, Dataset]:
        path = load_config(CONFIGS / f"{LOG_OF[kind]}.yaml").data.path
        assert isinstance(path, str)
        log = first_rows(path, folder)
        case = Case("any", kind, "unified" if unified else "tables")
        return log, prepare(experiment(case, log, folder), folder / f"{kind}-{unified}")

    return lambda case: make(case.kind, case.embedding == "unified")


@pytest.mark.slow
@pytest.mark.skipif("CTRKIT_DATA" not in os.environ, reason="the public logs are not here: CTRKIT_DATA is not set")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_bundle_of_every_model_gives_what_the_trained_model_gives(
    case: Case, prepared: Callable[[Case], tuple[Path, Dataset]], tmp_path: Path
) -> None:
    """The export compares them on the golden rows, which are rows of the test split, and on rows of nothing and of unknown values."""
    log, dataset = prepared(case)
    result = train(experiment(case, log, tmp_path), dataset, run_dir=tmp_path / "run", console=Console(quiet=True))
    exported = export_run(result.run, tmp_path / "repo")
    print(f"{case}: largest difference {exported['max_abs_diff']:.1e}")  # shown by pytest -rP
    assert exported["max_abs_diff"] <= 1e-5
    golden = open_bundle(exported["bundle"]).golden()
    assert len(golden.rows) == TEST_ROWS
    probabilities = golden.probabilities if isinstance(golden.probabilities, dict) else {"click": golden.probabilities}
    assert all(np.ptp(values) > 0.05 for values in probabilities.values()), "rows that are told apart"
