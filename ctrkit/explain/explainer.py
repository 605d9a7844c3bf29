"""A run explained: over a split, or for one row."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ctrkit.data.loader import Loader
from ctrkit.errors import CtrkitError
from ctrkit.explain.explanation import (
    About,
    FieldMap,
    FieldScore,
    FieldShare,
    MapSection,
    RowExplanation,
    SplitExplanation,
    Spread,
    rank_correlation,
)
from ctrkit.explain.gradients import average_row, contributions
from ctrkit.explain.lookups import Lookups, dense_arch_of, field_names, look_up
from ctrkit.explain.permutation import permutation_importance
from ctrkit.export.selfcheck import to_batch
from ctrkit.export.writer import json_rows
from ctrkit.feeds import rows_to_columns
from ctrkit.models.registry import models
from ctrkit.schema import Feature, Vocabulary
from ctrkit.training.evaluate import require_split, trained_model
from ctrkit.training.run import dataset_of_run, read_experiment, read_result
from ctrkit.transforms import FittedTransforms, canonical_dtype

BASELINE_ROWS = 8192
"""Training rows that the average row is made of."""

INTEGRATED_ROWS = 512
"""At most so many rows of the sample are integrated: a step of the integral costs a training step, and a mean needs no more."""

STEPS, STEPS_FOR_A_ROW = 32, 512
"""Points of the integral over the path from the average row to a row."""

Progress = Callable[[str, int, int], None]
"""Called with the stage, the part of it that is done and the whole."""


class Explainer:
    """A finished run with its model in memory. Made by ``open_run``."""

    def __init__(self, run_dir: Path, model: Any, device: torch.device) -> None:
        self.run_dir = run_dir
        self.dataset = dataset_of_run(run_dir)
        self.transforms: FittedTransforms = self.dataset.transforms()
        self.fields = field_names(self.dataset.inputs)
        self._model, self._device = model, device
        self._arch = dense_arch_of(model)
        if any(group.unpooled for group in self._arch.groups(self._arch.dim)):
            raise CtrkitError(
                f"the model of '{run_dir}' attends to the places of a sequence, which no field's contribution accounts for",
                "Explain a model that takes the sequence's mean, such as autoint",
            )
        self._baseline = average_row(self._arch, self._sample("train", BASELINE_ROWS, seed=0))

    def about(self) -> About:
        result = read_result(self.run_dir)
        name = read_experiment(self.run_dir).model.name
        (info,) = (m for m in models() if m.name == name)
        metrics = {"valid": result.valid, "test": result.test} if result else {}
        parameters = sum(p.numel() for p in self._model.parameters())
        return About(self.run_dir.name, name, info.paper, result.params if result else parameters, metrics)

    def explain_split(self, split: str, rows: int, repeats: int, seed: int, progress: Progress = lambda *_: None) -> SplitExplanation:
        """Over ``rows`` rows of a split, drawn at random, with a few rows explained one by one.

        Raises:
            CtrkitError: no such split, or all of the rows are clicks or none is.
        """
        require_split(self.dataset, split, self.run_dir)
        sample = self._sample(split, rows, seed)
        if len(sample.labels.unique()) < 2:
            raise CtrkitError(
                f"the {sample.rows} rows drawn of the {split} split are all of one class, so no importance can be measured",
                "Take more rows with --rows, or another split",
            )
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            progress("permute", done, repeats * len(self.fields))

        importance = permutation_importance(self._arch, sample, repeats, seed, step)
        parts = []
        integrated = sample[slice(0, INTEGRATED_ROWS)]
        for part in integrated.split(64):
            parts.append(contributions(self._arch, part, self._baseline, STEPS))
            progress("integrate", sum(len(p.gap) for p in parts), integrated.rows)
        attribution = torch.cat([p.values for p in parts]).abs().mean(0).cpu().numpy()
        kinds = {feature.name: feature.kind.value for feature in self.dataset.features}
        scores = [
            FieldScore(
                name,
                kinds[name],
                Spread.of(importance.auc_drop[:, i]),
                Spread.of(importance.logloss_rise[:, i]),
                float(attribution[i]),
            )
            for i, name in enumerate(self.fields)
        ]
        return SplitExplanation(
            split=split,
            rows=sample.rows,
            integrated_rows=integrated.rows,
            of_rows=self.dataset.rows[split],
            repeats=repeats,
            auc=importance.auc,
            logloss=importance.logloss,
            base_logit=self._baseline.logit,
            largest_gap=max(float(p.gap.max()) for p in parts),
            fields=sorted(scores, key=lambda score: -score.auc_drop.mean),
            agreement=rank_correlation(importance.auc_drop.mean(0), attribution),
            sections=self._sections(sample),
            examples=self._examples(),
        )

    def explain_golden(self, row: int) -> RowExplanation:
        """Row number ``row``, from 0, of those that ``prepare`` kept in raw form: the first of the test split.

        Raises:
            CtrkitError: there are fewer.
        """
        golden = pl.read_parquet(self.dataset.golden)
        if not 0 <= row < golden.height:
            raise CtrkitError(
                f"no row {row}: raw values are kept of the first {golden.height} rows of the {self._golden_split} split only",
                f"Name one from 0 to {golden.height - 1}, give the row with --row-json, or prepare with a larger export.golden_rows",
            )
        (explanation,) = self._explain(golden[row], [f"row {row}"], self._golden_labels()[row : row + 1])
        return explanation

    def explain_json(self, row: Any) -> RowExplanation:
        """A row as a client would send it.

        Raises:
            CtrkitError: it does not fit the features.
        """
        columns = rows_to_columns([row], self.dataset.features)
        series = [_series(feature, columns[feature.name]) for feature in self.dataset.features]
        (explanation,) = self._explain(pl.DataFrame(series), ["given row"], [None])
        return explanation

    def _sample(self, split: str, rows: int, seed: int) -> Lookups:
        first = next(Loader(self.dataset, split, rows, seed=seed, shuffle=True).iter())
        return look_up(self._model, first, self._device)

    def _examples(self) -> list[RowExplanation]:
        """Of the raw rows that were kept: the surest click, the surest other row, and the one that surprised the model most."""
        golden = pl.read_parquet(self.dataset.golden)
        labels = self._golden_labels()
        rows = look_up(self._model, to_batch(self.transforms.encode(golden), self.dataset.inputs), self._device)
        with torch.no_grad():
            p = self._arch(rows.embeddings, rows.dense).float().sigmoid().cpu().numpy()
        surprise = np.abs(np.array(labels) - p)
        chosen = {int(np.argmax(p)): "likeliest click", int(np.argmin(p)): "least likely click"}
        chosen = {int(np.argmax(surprise)): "greatest surprise", **chosen}
        index = list(reversed(chosen))
        return self._explain(golden[index], [f"row {i}, the {chosen[i]}" for i in index], [labels[i] for i in index])

    def _explain(self, raw: pl.DataFrame, names: Sequence[str], labels: Sequence[int | None]) -> list[RowExplanation]:
        """Canonical raw rows, one by one."""
        encoded = self.transforms.encode(raw)
        rows = look_up(self._model, to_batch(encoded, self.dataset.inputs), self._device)
        shares = contributions(self._arch, rows, self._baseline, STEPS_FOR_A_ROW)
        values = json_rows(raw)
        explained = []
        for i, name in enumerate(names):
            fields = [
                FieldShare(
                    field,
                    values[i][field],
                    self._unseen(self.transforms[field].feature, values[i][field], encoded[field][i]),
                    float(shares.values[i, j]),
                )
                for j, field in enumerate(self.fields)
            ]
            fields.sort(key=lambda share: -abs(share.contribution))
            logit, gap = float(shares.logits[i]), float(shares.gap[i])
            sections = self._sections(rows[slice(i, i + 1)])
            explained.append(RowExplanation(name, labels[i], logit, self._baseline.logit, gap, fields, sections))
        return explained

    def _unseen(self, feature: Feature, value: Any, encoded: Any) -> bool:
        """Whether a vocabulary lacks a single value that is there."""
        settings = feature.transform
        return isinstance(settings, Vocabulary) and isinstance(encoded, int) and value not in (None, "") and encoded <= settings.oov_buckets

    def _sections(self, rows: Lookups) -> list[MapSection]:
        """The model's own pictures, means over the rows."""
        sums: dict[str, dict[str, np.ndarray]] = {}
        shown = {}
        with torch.no_grad():
            for part in rows.split(512):
                for maps in self._arch.explanations(part.embeddings, part.dense):
                    shown[maps.title] = maps
                    of = sums.setdefault(maps.title, {})
                    for name, values in maps.maps.items():
                        of[name] = of.get(name, 0) + values.double().sum(0).cpu().numpy()
        return [
            MapSection(title, m.about, m.neutral, self.fields, [FieldMap(name, total / rows.rows) for name, total in sums[title].items()])
            for title, m in shown.items()
        ]

    @property
    def _golden_split(self) -> str:
        return "test" if self.dataset.rows["test"] else "valid"

    def _golden_labels(self) -> list[int]:
        """Labels of the raw rows: they are the first of their split."""
        count = pl.scan_parquet(self.dataset.golden).select(pl.len()).collect().item()
        return [int(label) for label in next(Loader(self.dataset, self._golden_split, count).iter()).labels]


@contextmanager
def open_run(run_dir: Path) -> Iterator[Explainer]:
    """Loads a finished run to explain it.

    Raises:
        CtrkitError: no such run, an unfinished run, its dataset is gone, or a model that attends to sequences.
    """
    with trained_model(run_dir) as (model, worker):
        yield Explainer(run_dir, model, worker.device)


def _series(feature: Feature, column: Any) -> pl.Series:
    """One row's column of ``feeds.rows_to_columns`` as a canonical Polars column."""
    values = [list(column[0])] if isinstance(column, tuple) else list(column)
    return pl.Series(feature.name, values, dtype=canonical_dtype(feature))
