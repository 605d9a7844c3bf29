"""All there is to say of a log's features, the best first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from ctrkit.schema import Feature
from ctrkit.selection.anomalies import Anomaly, Fault, find_anomalies
from ctrkit.selection.coded import CodedLog
from ctrkit.selection.crosses import Cross, search_crosses
from ctrkit.selection.information import cells
from ctrkit.selection.mr3 import rank_3mr
from ctrkit.selection.noise import Noise
from ctrkit.selection.pairs import Pair, all_pairs
from ctrkit.selection.redundancy import SAME, Clusters, cluster
from ctrkit.selection.scores import DriftNoise, Score, score_features
from ctrkit.selection.transformations import Transformation, score_transformations

By = Literal["information", "3mr", "mi", "nmi", "ami", "correlation", "logistic", "trees"]
MEASURES: tuple[str, ...] = get_args(By)
UNFIT = (Fault.LEAKAGE, Fault.CONSTANT)
"""Faults of features that a model should not be given."""


@dataclass(frozen=True)
class Ranking:
    """Of a coded log.

    Attributes:
        by: the measure that ``order`` and ``values`` go by.
        scores: of the log's features, in its order; ``order`` holds places in it, the best first, ``values`` the measure in that order.
        label_entropy: nats.
        pairs: empty if they were not asked for; ``mr3`` and ``clusters`` then say nothing.
        paired: how many of the best features the pairs are among.
    """

    by: By
    features: tuple[Feature, ...]
    scores: tuple[Score, ...]
    order: tuple[int, ...]
    values: tuple[float, ...]
    label_entropy: float
    rate: float
    rows: int
    of_rows: int
    pairs: tuple[Pair, ...]
    paired: int
    mr3: tuple[tuple[int, float], ...]
    clusters: Clusters
    crosses: tuple[Cross, ...]
    transformations: tuple[Transformation, ...]
    anomalies: tuple[Anomaly, ...]

    def redundant_with(self) -> dict[int, int]:
        """For each feature that is at least ``SAME`` similar to a better one: the best such one."""
        return self._better(lambda pair, worse: pair.similarity)

    def told_by(self) -> dict[int, int]:
        """For each feature that a better one tells at least ``SAME`` of: the best such one, such as the city of a country."""
        return self._better(lambda pair, worse: pair.first_told if worse == pair.first else pair.second_told)

    def _better(self, share: Callable[[Pair, int], float]) -> dict[int, int]:
        rank = {place: rank for rank, place in enumerate(self.order)}
        found: dict[int, int] = {}
        for pair in self.pairs:
            better, worse = sorted((pair.first, pair.second), key=lambda place: rank[place])
            if share(pair, worse) >= SAME and (worse not in found or rank[better] < rank[found[worse]]):
                found[worse] = better
        return found

    def recommended(self) -> list[int]:
        """Places of the features that stand out from chance, are not redundant and not unfit, the best first."""
        redundant = self.redundant_with()  # of copies that are paired, all but the best one
        paired = {self.scores[place].name for pair in self.pairs for place in (pair.first, pair.second)}
        unfit = {a.feature for a in self.anomalies if a.fault in UNFIT or (a.fault is Fault.DUPLICATE and a.feature not in paired)}
        return [p for p in self.order if self.scores[p].stands_out and p not in redundant and self.scores[p].name not in unfit]

    def table(self) -> pl.DataFrame:
        """A row a feature, the best first: ``feature``, ``score`` (falling, of the measure asked for), then all that was measured."""
        redundant, told = self.redundant_with(), self.told_by()
        mr3_rank = {place: rank for rank, (place, _) in enumerate(self.mr3, 1)}
        rows = []
        for rank, (place, value) in enumerate(zip(self.order, self.values, strict=True), 1):
            s = self.scores[place]
            row: dict[str, Any] = {
                "feature": s.name,
                "score": value,
                "rank": rank,
                "kind": self.features[place].kind.value,
                "information": s.score,
                "z": s.z,
                "mi": s.mi,
                "chance": s.chance.mean,
                "chance_spread": s.chance.spread,
                "nmi": s.nmi,
                "ami": s.ami,
                "correlation": s.correlation,
                "rank_3mr": mr3_rank.get(place),
                "cluster": self.clusters.of[place],
                "redundant_with": self.scores[redundant[place]].name if place in redundant else None,
                "told_by": self.scores[told[place]].name if place in told else None,
                "values": s.values,
                "missing": s.missing,
                "top_value": s.top,
                "once": s.once,
                "values_of_50_percent": s.covering[0],
                "values_of_90_percent": s.covering[1],
                "values_of_99_percent": s.covering[2],
                "drift": s.drift,
                "fresh": s.fresh,
                "faults": ", ".join(a.fault.value for a in self.anomalies if a.feature == s.name),
            }
            rows.append(row)
        empty = {"rank_3mr": pl.Int64, "redundant_with": pl.String, "told_by": pl.String}
        return pl.DataFrame(rows, infer_schema_length=None, schema_overrides=empty)


Progress = Callable[[str, int, int | None], None]
"""Called with the stage (score, pairs), how much of it is done and of how much."""


def rank_log(
    log: CodedLog,
    *,
    by: By = "information",
    pairs: bool = True,
    most_pairs: int | None = None,
    order: int = 2,
    crosses: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ranking:
    """Ranks the features of a coded log.

    Args:
        by: the measure. ``information`` is ``Score.score`` of features that stand out from chance, and 0 of others, which follow by their
            z: a wide column of noise may by luck score more than a narrow one that surely says a little. ``3mr`` needs pairs.
        most_pairs: pairs of the best features only, no more than so many.
        order: crosses have up to so many features; ``crosses`` are tried of each order above 2.
        seed: of the rows that surrogate models are trained on.
    """
    say = progress or (lambda stage, done, total: None)
    noise = Noise(log.rows, int(log.label.sum()))
    scores = score_features(log, noise, DriftNoise(log, noise))
    say("score", len(scores), len(scores))
    label_entropy = cells(np.bincount(log.label)).entropy
    found = all_pairs(log, scores, noise, most=most_pairs, progress=lambda done, total: say("pairs", done, total)) if pairs else []
    mr3 = rank_3mr(scores, found) if pairs else []
    if by == "3mr":
        chosen = _falling(mr3)
    else:
        measured = _measured(log, scores, by, seed)
        chosen = [
            (place, measured[place]) for place in sorted(range(len(scores)), key=lambda p: (-measured[p], -scores[p].z, scores[p].name))
        ]
    return Ranking(
        by=by,
        features=tuple(column.feature for column in log.columns),
        scores=tuple(scores),
        order=tuple(place for place, _ in chosen),
        values=tuple(value for _, value in chosen),
        label_entropy=label_entropy,
        rate=float(log.label.mean()),
        rows=log.rows,
        of_rows=log.of_rows,
        pairs=tuple(found),
        paired=len({place for pair in found for place in (pair.first, pair.second)}),
        mr3=tuple(mr3),
        clusters=cluster(scores, found),
        crosses=tuple(search_crosses(log, scores, found, noise, order, crosses) if found and order > 2 else []),
        transformations=tuple(score_transformations(log, noise)),
        anomalies=tuple(find_anomalies(log, scores, label_entropy)),
    )


def _measured(log: CodedLog, scores: list[Score], by: By, seed: int) -> list[float]:
    match by:
        case "information":
            return [s.score if s.stands_out else 0.0 for s in scores]
        case "logistic" | "trees":
            from ctrkit.selection.surrogates import surrogate_scores

            return surrogate_scores(log, by, seed)
        case _:
            return [float(getattr(s, by)) for s in scores]


def _falling(chosen: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """A feature chosen late may add more than one before it, by its relation to it; it counts no more than that one."""
    least = np.minimum.accumulate([value for _, value in chosen]).tolist()
    return [(place, value) for (place, _), value in zip(chosen, least, strict=True)]
