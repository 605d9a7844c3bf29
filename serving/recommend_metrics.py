"""What Prometheus reads of recommendations: latency by stage, how items were searched, how many there are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.metrics import SECONDS, Distribution
from serving.towers import ServedTowers

STAGES = ("read", "queue", "parse", "tower", "filter", "index", "rank", "answer", "total")


class _Counted:
    """Of one version."""

    def __init__(self) -> None:
        self.seconds = Distribution(SECONDS, len(STAGES))
        self.searches = {"exact": 0, "approximate": 0}


class TowerMetrics(Collector):
    """Every version's; those of a version that is gone end.

    Args:
        answering: the towers that answer now.
    """

    def __init__(self, answering: Callable[[], Sequence[ServedTowers]]) -> None:
        self._answering = answering
        self._counted: WeakKeyDictionary[ServedTowers, _Counted] = WeakKeyDictionary()

    def recommended(self, towers: ServedTowers, seconds: Mapping[str, float], exact: Sequence[bool]) -> None:
        """A request that was answered.

        Args:
            seconds: of each of ``STAGES``.
            exact: of each user whether all allowed items were compared.
        """
        counted = self._counted.get(towers)
        if counted is None:
            counted = self._counted[towers] = _Counted()
        counted.seconds.add(tuple(seconds.get(stage, 0.0) for stage in STAGES))
        counted.searches["exact"] += sum(exact)
        counted.searches["approximate"] += len(exact) - sum(exact)

    def collect(self) -> Iterator[Any]:
        labels = ["model", "version"]
        stages = HistogramMetricFamily("ctrkit_recommend_seconds", "Stages of recommendations", labels=[*labels, "stage"])
        searches = CounterMetricFamily("ctrkit_searches", "Users whose items were searched, by the index", labels=[*labels, "index"])
        items = GaugeMetricFamily("ctrkit_items", "Items: indexed, of these hidden by changes, and added", labels=[*labels, "state"])
        for towers in self._answering():
            about = [towers.name, str(towers.version)]
            view = towers.view
            for state, count in (("indexed", len(view.base)), ("hidden", view.hidden), ("added", len(view.added))):
                items.add_metric([*about, state], count)
            counted = self._counted.get(towers)
            if counted is None:
                continue
            for stage, (buckets, total) in zip(STAGES, counted.seconds.read(), strict=True):
                stages.add_metric([*about, stage], buckets, total)
            for index, count in counted.searches.items():
                searches.add_metric([*about, index], count)
        yield from (stages, searches, items)
