"""An experiment with the best features of a ranking only."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from ctrkit.config import Experiment, UnifiedEmbedding
from ctrkit.errors import CtrkitError, nearest

FILE = "ranking"
"""``ctrkit rank`` writes ``ranking.parquet``, ``ranking.csv`` and ``ranking.json``: a row a feature, the best first."""


def select_features(experiment: Experiment, ranking_path: str | Path, top: int) -> Experiment:
    """Keeps the ``top`` best features, in the config's order; a sequence that is kept brings the feature it is a history of.

    Args:
        ranking_path: of ``ctrkit rank``: its folder, or one of its files (Parquet, CSV or JSON).

    Raises:
        CtrkitError: no ranking there, or one of other features than the experiment's.
    """
    if top < 1:
        raise CtrkitError(f"the top {top} features are none", "Give --top 1 or more")
    kept = best_features(experiment, ranking_of(experiment, ranking_path), top)
    changes: dict[str, object] = {"features": tuple(feature for feature in experiment.features if feature.name in kept)}
    if isinstance(experiment.embedding, UnifiedEmbedding):
        lookups = {name: count for name, count in experiment.embedding.feature_lookups.items() if name in kept}
        changes["embedding"] = experiment.embedding.model_copy(update={"feature_lookups": lookups})
    return experiment.model_copy(update=changes)


def best_features(experiment: Experiment, ranked: Sequence[str], top: int) -> tuple[str, ...]:
    """Names of the ``top`` best of ``ranked``, in the config's order; a sequence brings the feature it is a history of."""
    kept = set(ranked[:top])
    kept |= {feature.of for feature in experiment.features if feature.name in kept and feature.of is not None}
    return tuple(feature.name for feature in experiment.features if feature.name in kept)


def ranking_of(experiment: Experiment, path: str | Path) -> list[str]:
    """The experiment's features as a ranking has them, the best first.

    Raises:
        CtrkitError: no ranking there, or one of other features than the experiment's.
    """
    ranked = read_ranking(path)
    known = [feature.name for feature in experiment.features]
    for name in ranked:
        if name not in known:
            raise CtrkitError(f"the ranking '{path}' names '{name}', which is no feature of '{experiment.name}'", nearest(name, known))
    unranked = [name for name in known if name not in ranked]
    if unranked:
        raise CtrkitError(f"the ranking '{path}' does not name the feature '{unranked[0]}'", "Run ctrkit rank with this config again")
    return ranked


def read_ranking(path: str | Path) -> list[str]:
    """The features of a ranking, the best first.

    Raises:
        CtrkitError: no such file, or no ranking in it.
    """
    file = Path(path)
    if file.is_dir():
        file = file / f"{FILE}.parquet"
    if not file.exists():
        raise CtrkitError(f"no ranking at '{file}'", "Run ctrkit rank CONFIG; it says where it wrote it")
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        ".csv": partial(pl.read_csv, infer_schema=False),
        ".json": pl.read_json,
    }
    if file.suffix not in readers:
        raise CtrkitError(f"'{file}' is no ranking", "Give the folder that ctrkit rank wrote, or its ranking.parquet, .csv or .json")
    try:
        ranking = readers[file.suffix](file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CtrkitError(f"the ranking '{file}' cannot be read: {str(error).splitlines()[0]}", "Run ctrkit rank CONFIG again") from error
    if "feature" not in ranking.columns or ranking.is_empty():
        raise CtrkitError(f"'{file}' holds no ranking: it needs a column 'feature' with a row a feature", "Run ctrkit rank CONFIG")
    names = ranking["feature"].cast(pl.String).to_list()
    if len(set(names)) < len(names):
        raise CtrkitError(f"the ranking '{file}' names a feature twice", "Run ctrkit rank CONFIG again")
    return names
