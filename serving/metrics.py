"""What Prometheus reads at ``/metrics``.

Of the values themselves only counts are kept: how many scores fell where, how many values of a feature were missing or unknown to
the model. Features are counted on a sample of rows, when somebody reads the metrics, and not while requests wait; so is their drift.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ctrkit.bundle import Bundle, output_names
from ctrkit.drift import present_codes
from ctrkit.feeds import input_names
from ctrkit.schema import Feature, Kind
from serving.answering import Answering
from serving.batcher import Feed
from serving.drift import Drift
from serving.model import Served
from serving.settings import ServingSettings

STAGES = ("read", "parse", "queue", "run", "answer", "total")
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SCORES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FOLD = 4096
"""Numbers that are kept before they are counted."""

SAMPLE_ROWS, SAMPLE_BYTES = 4096, 16 * 2**20
"""Rows of a model that are kept until the metrics are read; the first ones since they were read last, of requests that find room."""

TEXT_BYTES = 56
"""Of a text in memory, beside its letters."""


class Metrics:
    """All metrics of one service, in a registry of their own.

    Args:
        settings: rows of the window that drift is looked for in.
    """

    def __init__(self, settings: ServingSettings) -> None:
        self.registry = CollectorRegistry()
        self._refused = Counter("ctrkit_refused", "Requests that were refused, by the reason", ["reason"], registry=self.registry)
        self.in_flight = Gauge("ctrkit_in_flight", "Requests that are being answered", registry=self.registry)
        self.version = Gauge("ctrkit_model_version", "Version that answers unless one is named", ["model"], registry=self.registry)
        self.reloads = Counter("ctrkit_versions", "Versions loaded or refused", ["model", "outcome"], registry=self.registry)
        self._requests = _Requests()
        self._models = _Models(settings)
        self.registry.register(self._requests)
        self.registry.register(self._models)
        self.request = self._requests.add
        self.model = self._models.of

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def text(self, answering: Sequence[tuple[str, int | None, Sequence[Answering]]]) -> bytes:
        """All in Prometheus' text format.

        Args:
            answering: each model's name, default version and all its versions; others' series end.
        """
        self.version.clear()
        for name, default, _ in answering:
            if default is not None:
                self.version.labels(name).set(default)
        self._models.tell([served for _, _, versions in answering for served in versions])
        return generate_latest(self.registry)


class Distribution:
    """Counts by buckets. Adding is an append; the counting waits until somebody reads, or until much has been added.

    Args:
        ends: the buckets' upper ends.
        columns: how many numbers are counted, each in buckets of its own.
    """

    def __init__(self, ends: Sequence[float], columns: int = 1) -> None:
        self._ends = np.array(ends)
        self._counts = np.zeros((columns, len(ends) + 1), np.int64)
        self._sums = np.zeros(columns)
        self._added: list[tuple[float, ...]] = []

    def add(self, values: tuple[float, ...]) -> None:
        """One number for each column."""
        self._added.append(values)
        if len(self._added) >= FOLD:
            self._fold()

    def add_many(self, values: np.ndarray) -> None:
        """Numbers ``[columns, any]``."""
        for column, numbers in enumerate(values):
            self._counts[column] += np.bincount(self._ends.searchsorted(numbers), minlength=len(self._ends) + 1)
            self._sums[column] += numbers.sum(dtype=np.float64)

    def _fold(self) -> None:
        added, self._added = self._added, []
        if added:
            self.add_many(np.array(added).T)

    def read(self) -> list[tuple[list[tuple[str, float]], float]]:
        """Of each column the buckets as Prometheus has them, (upper end, how many up to it), and the sum."""
        self._fold()
        ends = [*(f"{end:g}" for end in self._ends), "+Inf"]
        return [(list(zip(ends, np.cumsum(c).tolist(), strict=True)), float(s)) for c, s in zip(self._counts, self._sums, strict=True)]


class _Requests(Collector):
    """All requests, by what was asked and the status."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, int], Distribution] = {}

    def add(self, path: str, status: int, seconds: float) -> None:
        key = route_of(path), status
        known = self._seconds.get(key)
        if known is None:
            known = self._seconds[key] = Distribution(SECONDS)
        known.add((seconds,))

    def collect(self) -> Iterator[Any]:
        about = "From a request's headers to the end of its answer, by what was asked and the status"
        family = HistogramMetricFamily("ctrkit_request_seconds", about, labels=["route", "status"])
        for (route, status), distribution in list(self._seconds.items()):
            ((buckets, total),) = distribution.read()
            family.add_metric([route, str(status)], buckets, total)
        yield family


class ModelMetrics:
    """What one version was asked and answered."""

    def __init__(self, bundle: Bundle, settings: ServingSettings) -> None:
        self.bundle = bundle
        self.tasks = output_names(bundle.tasks)
        self.seconds = Distribution(SECONDS, len(STAGES))
        self.rows = Distribution(ROWS, 2)
        self.scores = Distribution(SCORES, len(self.tasks))
        self.values = {feature.name: np.zeros(3, np.int64) for feature in bundle.features}
        self.drift = Drift(bundle, settings.drift_rows, settings.drift_min_rows)
        self._sample: list[tuple[Feed, int, np.ndarray]] = []
        self._sample_rows = self._sample_bytes = 0

    def predicted(self, seconds: tuple[float, ...] | None, rows: int, batch_rows: int, feed: Feed, probabilities: np.ndarray) -> None:
        """A prediction that was answered.

        Args:
            seconds: of each of ``STAGES``; None: it went through others.
            probabilities: ``[rows]`` or ``[rows, tasks]``.
        """
        if seconds is not None:
            self.seconds.add(seconds)
        self.rows.add((rows, batch_rows))
        if rows == 1:
            self.scores.add(tuple(probabilities.ravel().tolist()))
        else:
            self.scores.add_many(probabilities.reshape(-1, len(self.tasks)).T)
        if self._sample_rows < SAMPLE_ROWS and 0 < rows <= SAMPLE_ROWS and (size := bytes_of(feed)) <= SAMPLE_BYTES - self._sample_bytes:
            self._sample.append((feed, rows, probabilities))
            self._sample_rows += rows
            self._sample_bytes += size

    def count_values(self) -> None:
        """Counts the features' missing and unknown values, and what falls into which bin, in the sample and lets go of it."""
        sample, self._sample = self._sample, []
        self._sample_rows = self._sample_bytes = 0
        if not sample:
            return
        rows = sum(rows for _, rows, _ in sample)
        binned = {}
        for feature in self.bundle.features:
            columns = [np.concatenate([feed[name] for feed, _, _ in sample]) for name in input_names(feature)]
            missing, unknown, counts = self._counted(feature, *columns)
            self.values[feature.name] += (rows, missing, unknown)
            if counts is not None:
                binned[feature.name] = counts
        scores = np.concatenate([scores for _, _, scores in sample]).reshape(rows, -1).T
        bins = self.drift.scores
        told = {task: bins[task].count_numbers(column) for task, column in zip(self.tasks, scores, strict=True) if task in bins}
        self.drift.add(rows, binned, told)

    def _counted(self, feature: Feature, values: np.ndarray, lengths: np.ndarray | None = None) -> tuple[int, int, np.ndarray | None]:
        """Rows where the feature is missing, values unknown to the model, and values in each of the profile's bins if it has any."""
        bins = self.drift.features.get(feature.name)
        if feature.kind is Kind.NUMERIC:
            return int(np.isnan(values).sum()), 0, bins and bins.count_numbers(values)
        known = self.bundle.known_values
        codes, missing = present_codes(feature, values, lengths)
        vocabulary = feature.of or feature.name
        unknown = known.unknown_codes(vocabulary, codes) if known is not None and vocabulary in known else 0
        counts = bins and bins.count_codes(codes, missing, unknown)
        return missing if lengths is None else int((lengths == 0).sum()), unknown, counts


class _Models(Collector):
    """Every version's metrics, for as long as somebody has the version: a reader of metrics there need not be."""

    def __init__(self, settings: ServingSettings) -> None:
        self._settings = settings
        self._counting = threading.Lock()
        self._models: WeakKeyDictionary[Answering, ModelMetrics] = WeakKeyDictionary()
        self._told: WeakSet[Answering] = WeakSet()

    def of(self, served: Served) -> ModelMetrics:
        known = self._models.get(served)
        if known is None:
            known = self._models[served] = ModelMetrics(served.bundle, self._settings)
        return known

    def tell(self, answering: Sequence[Answering]) -> None:
        """From now on of these only."""
        self._told = WeakSet(answering)

    def collect(self) -> Iterator[Any]:
        labels = ["model", "version"]
        stages = HistogramMetricFamily("ctrkit_stage_seconds", "Stages of predictions", labels=[*labels, "stage"])
        rows = HistogramMetricFamily("ctrkit_request_rows", "Rows or candidates of a prediction", labels=labels)
        batches = HistogramMetricFamily("ctrkit_batch_rows", "Rows of the run that a prediction was part of", labels=labels)
        scores = HistogramMetricFamily("ctrkit_score", "Probabilities that were answered", labels=[*labels, "task"])
        sampled, missing, unknown = (
            CounterMetricFamily(f"ctrkit_{name}", about, labels=[*labels, "feature"])
            for name, about in (
                ("sampled_rows", "Rows of the sample that features are counted on"),
                ("missing", "Rows of the sample where the feature was missing"),
                ("out_of_vocabulary", "Values of the sample that the model does not know"),
            )
        )
        window = GaugeMetricFamily("ctrkit_drift_rows", "Rows of the window that drift is looked for in", labels=labels)
        index = "Population stability index of {} in the window against {}: below 0.1 no change, above 0.25 one that matters"
        drift = GaugeMetricFamily("ctrkit_feature_drift", index.format("a feature", "the training"), labels=[*labels, "feature"])
        score_drift = GaugeMetricFamily("ctrkit_score_drift", index.format("scores", "held-out rows"), labels=[*labels, "task"])
        for served in sorted(self._told, key=lambda served: (served.name, served.version)):
            model = self._models.get(served)
            if model is None:
                continue
            about = [served.name, str(served.version)]
            for stage, (buckets, total) in zip(STAGES, model.seconds.read(), strict=True):
                stages.add_metric([*about, stage], buckets, total)
            for family, (buckets, total) in zip((rows, batches), model.rows.read(), strict=True):
                family.add_metric(about, buckets, total)
            for task, (buckets, total) in zip(model.tasks, model.scores.read(), strict=True):
                scores.add_metric([*about, task], buckets, total)
            with self._counting:
                model.count_values()
                drifted = model.drift.of_features(), model.drift.of_scores()
            window.add_metric(about, model.drift.rows)
            for family, indices in zip((drift, score_drift), drifted, strict=True):
                for what, value in indices.items():
                    family.add_metric([*about, what], value)
            known = model.bundle.known_values or ()
            for feature in model.bundle.features:
                counted = model.values[feature.name].tolist()
                sampled.add_metric([*about, feature.name], counted[0])
                missing.add_metric([*about, feature.name], counted[1])
                if (feature.of or feature.name) in known:
                    unknown.add_metric([*about, feature.name], counted[2])
        yield from (stages, rows, batches, scores, sampled, missing, unknown, window, drift, score_drift)


def bytes_of(feed: Feed) -> int:
    """About what a graph's inputs take in memory; some nanoseconds a text."""
    return sum(TEXT_BYTES * column.size + len("".join(column)) if column.dtype == object else column.nbytes for column in feed.values())


def route_of(path: str) -> str:
    """What a path asks, in few words: paths hold names that anybody can make up."""
    if path.startswith("/v1/models"):
        verb = path.rpartition(":")[2]
        return verb if verb in ("score", "rank", "recommend", "upsert", "remove") else "models"
    if path.startswith("/v2"):
        return "infer" if path.endswith("/infer") else "v2"
    if path.startswith("/ui"):
        return "ui"
    known = {"/healthz": "health", "/readyz": "health", "/metrics": "metrics"}
    return known.get(path, "other")
