"""A run explained: over a split, or for one row."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ctrkit.data.batch import Batch
from ctrkit.data.loader import Loader
from ctrkit.errors import CtrkitError, nearest
from ctrkit.explain.decisions import decision_view
from ctrkit.explain.explanation import (
    About,
    FieldScore,
    FieldShare,
    RowExplanation,
    Section,
    SplitExplanation,
    Spread,
    rank_correlation,
)
from ctrkit.explain.gradients import average_row, contributions
from ctrkit.explain.lookups import Lookups, dense_arch_of, look_up
from ctrkit.explain.own import row_sections, sample_sections
from ctrkit.explain.permutation import permutation_importance, probabilities
from ctrkit.explain.raw import RawRow, raw_rows
from ctrkit.explain.subject import Subject
from ctrkit.export.selfcheck import to_batch
from ctrkit.feeds import check_finite, rows_to_columns
from ctrkit.models.registry import models
from ctrkit.schema import Feature, Inputs
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
    """A finished run with its model in memory. Made by ``open_run``.

    Attributes:
        task: the label of several that is explained; None if there is one.
    """

    def __init__(self, run_dir: Path, model: Any, device: torch.device, task: str | None) -> None:
        self.run_dir = run_dir
        self.dataset = dataset_of_run(run_dir)
        self.transforms: FittedTransforms = self.dataset.transforms()
        self.task = task
        self._model, self._device = model, device
        self._number = None if task is None else self.dataset.inputs.tasks.index(task)
        self._subject = Subject(dense_arch_of(model), self._number)
        self._decision = decision_view(read_experiment(run_dir).model.name, self._subject.arch)
        self._baseline = average_row(self._subject, self._look_up(self._sample("train", BASELINE_ROWS, seed=0)))

    def about(self) -> About:
        result = read_result(self.run_dir)
        name = read_experiment(self.run_dir).model.name
        (info,) = (m for m in models() if m.name == name)
        metrics = {"valid": result.valid, "test": result.test} if result else {}
        if self.task is not None:
            prefix = f"{self.task}/"
            metrics = {split: {k.removeprefix(prefix): v for k, v in of.items() if k.startswith(prefix)} for split, of in metrics.items()}
        parameters = sum(p.numel() for p in self._model.parameters())
        label = self.task if self.task is not None else str(self.dataset.label)
        tasks = self.dataset.inputs.tasks
        return About(self.run_dir.name, name, label, tasks, info.paper, result.params if result else parameters, metrics)

    def explain_split(self, split: str, rows: int, repeats: int, seed: int, progress: Progress = lambda *_: None) -> SplitExplanation:
        """Over ``rows`` rows of a split, drawn at random, with a few rows explained one by one.

        Raises:
            CtrkitError: no such split, or all of the rows have the same label.
        """
        require_split(self.dataset, split, self.run_dir)
        batch = self._sample(split, rows, seed)
        sample = self._look_up(batch)
        if len(sample.labels.unique()) < 2:
            raise CtrkitError(
                f"the {sample.rows} rows drawn of the {split} split are all of one class, so no importance can be measured",
                "Take more rows with --rows, or another split",
            )
        done = 0

        def step() -> None:
            nonlocal done
            done += 1
            progress("permute", done, repeats * len(self._subject.fields))

        importance = permutation_importance(self._subject, self._look_up, batch, repeats, seed, step)
        parts = []
        integrated = sample[slice(0, INTEGRATED_ROWS)]
        for part in integrated.split(64):
            parts.append(contributions(self._subject, part, self._baseline, STEPS))
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
            for i, name in enumerate(self._subject.fields)
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
            sections=[*([self._decision.whole()] if self._decision else []), *sample_sections(self._subject, sample)],
            raw_split=self._golden_split,
            examples=self._examples(),
        )

    def explain_golden(self, row: int) -> RowExplanation:
        """Row number ``row``, from 0, of those that ``prepare`` kept in raw form: the first of the test split, or of valid without one.

        Raises:
            CtrkitError: there are fewer.
        """
        golden = self.dataset.golden()
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
            CtrkitError: it does not fit the features, or the model makes no finite number of it.
        """
        columns = rows_to_columns([row], self.dataset.features)
        series = [_series(feature, columns[feature.name]) for feature in self.dataset.features]
        (explanation,) = self._explain(pl.DataFrame(series), ["given row"], [None])
        check_finite(np.array([explanation.logit]), columns, self.dataset.features)
        return explanation

    def _sample(self, split: str, rows: int, seed: int) -> Batch:
        return Loader(self.dataset, split, rows, seed=seed, shuffle=True).first(rows)

    def _look_up(self, batch: Batch) -> Lookups:
        return look_up(self._model, batch, self._device, self._number)

    def _examples(self) -> list[RowExplanation]:
        """Of the raw rows that were kept: the highest prediction, the lowest, and the one that was most wrong."""
        golden = self.dataset.golden()
        labels = self._golden_labels()
        rows = look_up(self._model, to_batch(self.transforms.encode(golden), self.dataset.inputs), self._device)
        p = probabilities(self._subject, rows)
        surprise = np.abs(np.array(labels) - p)
        chosen = {int(np.argmax(p)): "highest prediction", int(np.argmin(p)): "lowest prediction"}
        chosen = {int(np.argmax(surprise)): "greatest surprise", **chosen}
        index = list(reversed(chosen))
        return self._explain(golden[index], [f"row {i}, the {chosen[i]}" for i in index], [labels[i] for i in index])

    def _explain(self, raw: pl.DataFrame, names: Sequence[str], labels: Sequence[int | None]) -> list[RowExplanation]:
        """Canonical raw rows, one by one."""
        encoded = self.transforms.encode(raw)
        rows = look_up(self._model, to_batch(encoded, self.dataset.inputs), self._device)
        shares = contributions(self._subject, rows, self._baseline, STEPS_FOR_A_ROW)
        explained = []
        for i, (name, row) in enumerate(zip(names, raw_rows(self.transforms, raw, encoded), strict=True)):
            pruned = self._decision.pruned(row) if self._decision else set()
            fields = [
                FieldShare(field, row.values[field], self._unseen(field, row), field in pruned, float(shares.values[i, j]))
                for j, field in enumerate(self._subject.fields)
            ]
            fields.sort(key=lambda share: -abs(share.contribution))
            logit, gap = float(shares.logits[i]), float(shares.gap[i])
            decided = self._decision.of_row(row) if self._decision else None
            sections: list[Section] = [*([decided] if decided else []), *row_sections(self._subject, rows[slice(i, i + 1)], row)]
            explained.append(RowExplanation(name, labels[i], logit, self._baseline.logit, gap, fields, sections))
        return explained

    def _unseen(self, field: str, row: RawRow) -> bool:
        """Whether a single value is unseen; those of a bag are another matter."""
        return not self.transforms[field].feature.multi_valued and any(element.unseen for element in row.elements.get(field, ()))

    @property
    def _golden_split(self) -> str:
        return "test" if self.dataset.rows["test"] else "valid"

    def _golden_labels(self) -> list[int]:
        """Labels of the raw rows: they are the first of their split."""
        count = self.dataset.golden().height
        first = Loader(self.dataset, self._golden_split, count).first(count)
        return [int(label) for label in self._look_up(first).labels]


@contextmanager
def open_run(run_dir: Path, task: str | None = None) -> Iterator[Explainer]:
    """Loads a finished run to explain it.

    Args:
        task: which of several labels; the main one unless given.

    Raises:
        CtrkitError: no such run, an unfinished run, its dataset is gone, or it predicts no label of that name.
    """
    task = _task(run_dir, dataset_of_run(run_dir).inputs, task)
    with trained_model(run_dir) as (model, worker):
        yield Explainer(run_dir, model, worker.device, task)


def _task(run_dir: Path, inputs: Inputs, name: str | None) -> str | None:
    if name is None:
        return inputs.tasks[0] if inputs.tasks else None
    if not inputs.tasks:
        raise CtrkitError(f"the run '{run_dir}' predicts one label, so there is no task '{name}'", "Leave the task out")
    if name not in inputs.tasks:
        raise CtrkitError(f"the run '{run_dir}' predicts no label '{name}'", nearest(name, inputs.tasks))
    return name


def _series(feature: Feature, column: Any) -> pl.Series:
    """One row's column of ``feeds.rows_to_columns`` as a canonical Polars column."""
    values = [list(column[0])] if isinstance(column, tuple) else list(column)
    return pl.Series(feature.name, values, dtype=canonical_dtype(feature))
