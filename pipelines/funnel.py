"""``ctrkit funnel``: two trainings, two exports and an index, from one config with ``task: funnel`` into one repository."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctrkit.retrieval.funnel import load_funnel
from pipelines.export import export_run_to
from pipelines.retrieval import export_retrieval, index_run, train_loaded, validate_loaded
from pipelines.terminal import Terminal
from pipelines.train import train_experiment
from pipelines.validate import validate_experiment


def validate_funnel(config: Path, overrides: Sequence[str], screen: Terminal) -> dict[str, Any]:
    """Checks both halves as ``ctrkit validate`` checks each. Returns ``{ok, name, retrieval, ranking}``."""
    funnel = load_funnel(config, overrides)
    halves = {"retrieval": validate_loaded(funnel.retrieval, screen), "ranking": validate_experiment(funnel.ranking, screen)}
    return {"ok": True, "name": funnel.name, **halves}


def run_funnel(config: Path, overrides: Sequence[str], repo: Path, screen: Terminal) -> dict[str, Any]:
    """Trains and exports both models, and indexes the items. Both halves are checked before anything long is started.

    Returns:
        ``{repo, retrieval: {model, run, bundle, test}, ranking: {..}}``.
    """
    validate_funnel(config, overrides, screen)
    funnel = load_funnel(config, overrides)
    towers = train_loaded(funnel.retrieval, None, False, screen)
    ranker = train_experiment(funnel.ranking, None, False, screen)
    ranking_bundle = export_run_to(Path(ranker["run"]), repo, funnel.ranker, screen)
    retrieval_bundle = export_retrieval(Path(towers["run"]), repo, funnel.towers, screen)
    index_run(Path(towers["run"]), repo, funnel.towers, screen)
    screen.console.print(
        f"Serve both: ctrkit serve {repo}\nand ask POST /v1/models/{funnel.towers}:recommend "
        f'{{"user": {{..}}, "k": 10, "rank_by": {{"model": "{funnel.ranker}"}}}}',
        style="green",
        markup=False,
        highlight=False,
    )

    def told(model: str, trained: dict[str, Any], exported: dict[str, Any]) -> dict[str, Any]:
        return {"model": model, "run": trained["run"], "bundle": exported["bundle"], "test": trained["test"]}

    return {
        "repo": str(repo),
        "retrieval": told(funnel.towers, towers, retrieval_bundle),
        "ranking": told(funnel.ranker, ranker, ranking_bundle),
    }
