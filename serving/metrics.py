"""What Prometheus reads at ``/metrics``.

Of the values themselves only counts are kept: how many scores fell where, how many values of a feature were missing or unknown to
the model. Features are counted on a sample of rows, when somebody reads the metrics, and not while requests wait.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from ctrkit.bundle import output_names
from ctrkit.feeds import input_names
from ctrkit.schema import MISSING_INT, Kind
from serving.batcher import Feed
from serving.model import Served

STAGES = ("read", "parse", "queue", "run", "answer", "total")
SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
SCORES = np.array([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
SAMPLE_ROWS = 4096
"""Rows of a model that are kept until the metrics are read; the first ones since they were read last."""


class Metrics:
    """All metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("ctrkit_requests", "Requests, by what was asked and the status", ["route", "status"], registry=registry)
        self._request_seconds = Histogram(
            "ctrkit_request_seconds", "From a request's headers to the end of its answer", ["route"], registry=registry, buckets=SECONDS
        )
        self._refused = Counter("ctrkit_refused", "Requests that were refused, by the reason", ["reason"], registry=registry)
        self.in_flight = Gauge("ctrkit_in_flight", "Requests that are being answered", registry=registry)
        labels = ["model", "version"]
        self._stages = Histogram("ctrkit_stage_seconds", "Stages of predictions", [*labels, "stage"], registry=registry, buckets=SECONDS)
        self._rows = Histogram("ctrkit_request_rows", "Rows or candidates of a prediction", labels, registry=registry, buckets=ROWS)
        self._batch_rows = Histogram(
            "ctrkit_batch_rows", "Rows that ran together with a request's", labels, registry=registry, buckets=ROWS
        )
        self.version = Gauge("ctrkit_model_version", "Version that answers unless one is named", ["model"], registry=registry)
        self.reloads = Counter(
            "ctrkit_reloads", "Versions loaded or refused while the service runs", ["model", "outcome"], registry=registry
        )
        self._contents = _Contents()
        registry.register(self._contents)
        self._models: dict[tuple[str, int], ModelMetrics] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        route = route_of(path)
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def refused(self, reason: str) -> None:
        self._refused.labels(reason).inc()

    def model(self, served: Served) -> "ModelMetrics":
        """A version's own metrics."""
        key = served.name, served.version
        known = self._models.get(key)
        if known is None or known.served is not served:
            labels = served.name, str(served.version)
            stages = {stage: self._stages.labels(*labels, stage) for stage in STAGES}
            known = ModelMetrics(served, stages, self._rows.labels(*labels), self._batch_rows.labels(*labels), self._contents.of(served))
            self._models[key] = known
        return known

    def text(self, answering: Sequence[tuple[str, int | None, Sequence[Served]]]) -> bytes:
        """All in Prometheus' text format.

        Args:
            answering: each model's name, default version and all its versions; others' series end.
        """
        self.version.clear()
        for name, default, _ in answering:
            if default is not None:
                self.version.labels(name).set(default)
        self._forget([served for _, _, versions in answering for served in versions])
        return generate_latest(self.registry)

    def _forget(self, answering: Sequence[Served]) -> None:
        for key, known in list(self._models.items()):
            if known.served not in answering:
                del self._models[key]
                self._contents.forget(*key)
                for family in (self._rows, self._batch_rows):
                    family.remove(key[0], str(key[1]))
                for stage in STAGES:
                    self._stages.remove(key[0], str(key[1]), stage)


class ModelMetrics:
    """One version's, with its labels looked up once."""

    def __init__(self, served: Served, stages: Mapping[str, Any], rows: Any, batch_rows: Any, contents: "_ModelContents") -> None:
        self.served = served
        self._stages = stages
        self._rows = rows
        self._batch_rows = batch_rows
        self._contents = contents

    def predicted(self, seconds: Mapping[str, float], rows: int, batch_rows: int, feed: Feed, probabilities: np.ndarray) -> None:
        """A prediction that was answered.

        Args:
            seconds: of each of ``STAGES``.
            probabilities: ``[rows]`` or ``[rows, tasks]``.
        """
        for stage, spent in seconds.items():
            self._stages[stage].observe(spent)
        self._rows.observe(rows)
        self._batch_rows.observe(batch_rows)
        self._contents.add(feed, rows, probabilities)


class _ModelContents:
    """Counts of a version's scores and of its features' missing and unknown values."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.tasks = output_names(served.bundle.tasks)
        self.scores = np.zeros((len(self.tasks), len(SCORES) + 1), np.int64)
        self.sums = np.zeros(len(self.tasks))
        self.values = {feature.name: np.zeros(3, np.int64) for feature in served.bundle.features}
        self._sample: list[tuple[Feed, int]] = []
        self._sample_rows = 0

    def add(self, feed: Feed, rows: int, probabilities: np.ndarray) -> None:
        columns = probabilities.reshape(-1, len(self.tasks)).T
        if rows == 1:  # numpy's call costs more than the count
            for task, (score,) in enumerate(columns):
                self.scores[task, SCORES.searchsorted(score)] += 1
                self.sums[task] += score
        else:
            for task, scores in enumerate(columns):
                self.scores[task] += np.bincount(SCORES.searchsorted(scores), minlength=len(SCORES) + 1)
                self.sums[task] += scores.sum(dtype=np.float64)
        if self._sample_rows < SAMPLE_ROWS and rows <= SAMPLE_ROWS:
            self._sample.append((feed, rows))
            self._sample_rows += rows

    def count(self) -> None:
        """Counts what the sample holds and lets go of it."""
        sample, self._sample, self._sample_rows = self._sample, [], 0
        known = self.served.bundle.known_values
        for feed, rows in sample:
            for feature in self.served.bundle.features:
                names = input_names(feature)
                values = feed[names[0]]
                if feature.multi_valued:
                    missing = int((feed[names[1]] == 0).sum())
                elif feature.kind is Kind.NUMERIC:
                    missing = int(np.isnan(values).sum())
                else:
                    missing = int((values == ("" if feature.dtype == "string" else MISSING_INT)).sum())
                vocabulary = feature.of or feature.name
                unknown = known.unknown(vocabulary, values) if known is not None and vocabulary in known else 0
                self.values[feature.name] += (rows, missing, unknown)


class _Contents(Collector):
    """Writes what ``_ModelContents`` counted."""

    def __init__(self) -> None:
        self._models: dict[tuple[str, int], _ModelContents] = {}

    def of(self, served: Served) -> _ModelContents:
        key = served.name, served.version
        if key not in self._models or self._models[key].served is not served:
            self._models[key] = _ModelContents(served)
        return self._models[key]

    def forget(self, name: str, version: int) -> None:
        self._models.pop((name, version), None)

    def collect(self) -> Iterator[Any]:
        labels = ["model", "version"]
        scores = HistogramMetricFamily("ctrkit_score", "Probabilities that were answered", labels=[*labels, "task"])
        rows = CounterMetricFamily("ctrkit_sampled_rows", "Rows of the sample that features are counted on", labels=[*labels, "feature"])
        missing = CounterMetricFamily("ctrkit_missing", "Rows of the sample where the feature was missing", labels=[*labels, "feature"])
        unknown = CounterMetricFamily(
            "ctrkit_out_of_vocabulary", "Values of the sample that the model never saw in training", labels=[*labels, "feature"]
        )
        for (name, version), model in list(self._models.items()):
            model.count()
            about = [name, str(version)]
            for task, counts, total in zip(model.tasks, model.scores, model.sums, strict=True):
                ends = [*(f"{end:g}" for end in SCORES), "+Inf"]
                scores.add_metric([*about, task], list(zip(ends, np.cumsum(counts).tolist(), strict=True)), sum_value=float(total))
            known = model.served.bundle.known_values or ()
            for feature in model.served.bundle.features:
                counted = model.values[feature.name].tolist()
                rows.add_metric([*about, feature.name], counted[0])
                missing.add_metric([*about, feature.name], counted[1])
                if (feature.of or feature.name) in known:
                    unknown.add_metric([*about, feature.name], counted[2])
        yield from (scores, rows, missing, unknown)


def route_of(path: str) -> str:
    """What a path asks, in few words: paths hold names that anybody can make up."""
    if path.startswith("/v1/models"):
        verb = path.rpartition(":")[2]
        return verb if verb in ("score", "rank") else "models"
    if path.startswith("/v2"):
        return "infer" if path.endswith("/infer") else "v2"
    known = {"/healthz": "health", "/readyz": "health", "/metrics": "metrics", "/ui": "ui"}
    return known.get(path, "other")
