"""The ways of ranking features that ``ctrkit bench selection`` compares: each gives every feature a score, higher is better.

All see the training split; those that train a model see the validation split too, as every training does. The surrogates from scikit-learn
are fitted to ``SAMPLE_ROWS`` training rows.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from scipy.sparse import csr_matrix, hstack
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from ctrkit.config import Experiment, ModelChoice
from ctrkit.data.dataset import Dataset
from ctrkit.data.labels import label_columns
from ctrkit.explain.explainer import open_run
from ctrkit.selection.coded import code_log
from ctrkit.selection.ranking import By, rank_log
from ctrkit.training.check import check_experiment
from ctrkit.training.run import RunResult
from ctrkit.training.trainer import train

SAMPLE_ROWS = 20_000
PENALTIES = (0.03, 0.1, 0.3, 1.0)
"""Of which logistic regression's C is chosen, by its loss on a fifth of the sample."""
OPTFS = {"l1": 3e-7, "gate_learning_rate": 0.01, "search_epochs": 4, "rewind_epoch": 0}
"""As suits short logs, see docs/benchmarks/models.md."""
PERMUTED_ROWS, REPEATS = 4000, 3

Scores = dict[str, float]


@dataclass(frozen=True)
class Material:
    """What a ranking is made of.

    Attributes:
        folder: for what it writes on the way; removed after.
    """

    experiment: Experiment
    dataset: Dataset
    folder: Path
    seed: int

    def train(self, model: ModelChoice | None = None) -> RunResult:
        """Trains the config's model, or another, on all features."""
        training = self.experiment.training.model_copy(update={"seed": self.seed})
        experiment = self.experiment.model_copy(update={"training": training, "model": model or self.experiment.model})
        check_experiment(experiment)
        shutil.rmtree(self.folder, ignore_errors=True)
        return train(experiment, self.dataset, run_dir=self.folder / "run", console=Console(quiet=True), pictures=False)


def by_outrank(material: Material) -> Scores:
    """Information about the label beyond that of chance, feature by feature: ``ctrkit rank --by information``."""
    return _counted(material, "information")


def by_3mr(material: Material) -> Scores:
    """OutRank's relevance less redundancy and plus relation, feature after feature: ``ctrkit rank --by 3mr``."""
    return _counted(material, "3mr")


def by_permutation(material: Material) -> Scores:
    """Drop of AUC on validation when the feature's values are shuffled, for the config's model trained on all features."""
    result = material.train()
    with open_run(result.run, material.dataset.inputs.tasks[0] if material.dataset.inputs.tasks else None) as explainer:
        rows = min(PERMUTED_ROWS, material.dataset.rows["valid"])
        explanation = explainer.explain_split("valid", rows, REPEATS, material.seed)
    return {field.field: field.auc_drop.mean for field in explanation.fields}


def by_optfs(material: Material) -> Scores:
    """Share of the feature's values that OptFS keeps (Lyu et al., WWW 2023), the config's model under it."""
    model = material.experiment.model
    choice = ModelChoice.model_validate({"name": "optfs", "base": model.name, "base_settings": model.settings, **OPTFS})
    decision = material.train(choice).decision
    assert decision is not None
    return {name: field["ratio"] for name, field in decision["fields"].items()}


def by_lasso(material: Material) -> Scores:
    """Logistic regression with an L1 penalty on one-hot values: the standard deviation over rows of what the feature adds to the logit."""
    rows, labels = _sample(material)
    blocks = {feature.name: _one_hot(rows[feature.name]) for feature in material.dataset.features}
    matrix = csr_matrix(hstack(list(blocks.values())))
    held = len(labels) // 5

    def fit(penalty: float, x: object, y: np.ndarray) -> LogisticRegression:
        return LogisticRegression(l1_ratio=1.0, C=penalty, solver="liblinear", random_state=material.seed).fit(x, y)

    def loss(penalty: float) -> float:
        return log_loss(labels[:held], fit(penalty, matrix[held:], labels[held:]).predict_proba(matrix[:held])[:, 1])

    weights = np.ravel(fit(min(PENALTIES, key=loss), matrix, labels).coef_)
    widths = np.cumsum([block.shape[1] for block in blocks.values()])
    parts = np.split(weights, widths[:-1])
    return {name: float((block @ part).std()) for (name, block), part in zip(blocks.items(), parts, strict=True)}


def by_forest(material: Material) -> Scores:
    """Mean decrease of impurity in a random forest (Breiman, 2001) of 100 trees; ids are numbers, the most frequent value's the lowest."""
    rows, labels = _sample(material)
    forest = RandomForestClassifier(100, min_samples_leaf=10, random_state=material.seed).fit(_numbers(material, rows), labels)
    return dict(zip(rows.columns, np.asarray(forest.feature_importances_).tolist(), strict=True))


def by_boosting(material: Material) -> Scores:
    """Gain in 100 gradient-boosted trees of depth 3 (Friedman, 2001); ids are numbers as for the forest."""
    rows, labels = _sample(material)
    trees = GradientBoostingClassifier(subsample=0.5, random_state=material.seed).fit(_numbers(material, rows), labels)
    return dict(zip(rows.columns, np.asarray(trees.feature_importances_).tolist(), strict=True))


def by_chance(material: Material) -> Scores:
    """A random order: what a ranking has to beat."""
    draw = np.random.default_rng(material.seed)
    return {feature.name: float(draw.random()) for feature in material.dataset.features}


RANKINGS: dict[str, Callable[[Material], Scores]] = {
    "outrank": by_outrank,
    "3mr": by_3mr,
    "optfs": by_optfs,
    "permutation": by_permutation,
    "lasso": by_lasso,
    "forest": by_forest,
    "boosting": by_boosting,
    "random": by_chance,
}


def rank(name: str, material: Material) -> Scores:
    """The scores of all features by one of ``RANKINGS``.

    Raises:
        CtrkitError: the experiment is none for it.
    """
    try:
        return RANKINGS[name](material)
    finally:
        shutil.rmtree(material.folder, ignore_errors=True)


def _counted(material: Material, by: By) -> Scores:
    ranking = rank_log(code_log(material.experiment, material.folder, seed=material.seed), by=by, pairs=by == "3mr", seed=material.seed)
    return {ranking.scores[place].name: value for place, value in zip(ranking.order, ranking.values, strict=True)}


def _sample(material: Material) -> tuple[pl.DataFrame, np.ndarray]:
    """Training rows drawn at random: the encoded features, and the main label ``[rows]``."""
    label = label_columns(material.dataset.inputs.tasks)[0]
    names = [feature.name for feature in material.dataset.features]
    rows = pl.read_parquet(material.dataset.parts("train"), columns=[*names, label])
    rows = rows.sample(min(SAMPLE_ROWS, rows.height), seed=material.seed, shuffle=True)
    return rows.select(names), rows[label].to_numpy().astype(int)


def _one_hot(column: pl.Series) -> Any:
    """A sparse matrix ``[rows, values]``: a row's values add up to 1; a number is one column, a missing one 0."""
    if column.dtype.is_float():
        return csr_matrix(np.nan_to_num(column.to_numpy()).reshape(-1, 1))
    if not isinstance(column.dtype, pl.List):
        ids = column.to_numpy()
        return csr_matrix((np.ones(len(ids)), (np.arange(len(ids)), ids)))
    lengths = column.list.len().fill_null(0).to_numpy()
    ids = column.list.explode(empty_as_null=False).drop_nulls().to_numpy()
    places = np.repeat(np.arange(len(lengths)), lengths)
    return csr_matrix((1 / np.repeat(lengths, lengths), (places, ids)), shape=(len(lengths), int(ids.max(initial=0)) + 1))


def _numbers(material: Material, rows: pl.DataFrame) -> np.ndarray:
    """``[rows, features]``: ids and numbers; of a bag or a sequence its first value, 0 if it has none, and so for a missing number."""
    lists = [name for name, dtype in rows.schema.items() if isinstance(dtype, pl.List)]
    flat = rows.with_columns(pl.col(name).list.first() for name in lists)
    return np.nan_to_num(flat.fill_null(0).to_numpy().astype(float))
