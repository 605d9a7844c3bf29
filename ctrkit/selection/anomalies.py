"""What is wrong with a log's columns, or looks it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ctrkit.selection.coded import BATCHES, CodedLog, Column
from ctrkit.selection.information import joint_table
from ctrkit.selection.noise import FAR
from ctrkit.selection.scores import Score


class Fault(StrEnum):
    LEAKAGE = "leakage"
    CONSTANT = "constant"
    DUPLICATE = "duplicate"
    EXPLOSION = "cardinality explosion"
    RARE = "rare values"
    DRIFT = "drift"
    MISSING = "missing"
    LABEL_DRIFT = "label drift"


@dataclass(frozen=True)
class Anomaly:
    """One finding; ``measured`` is the figure that gave it away, ``feature`` is empty for the label."""

    feature: str
    fault: Fault
    text: str
    measured: float


LEAK = 0.9
"""Share of what is left of the label's entropy above chance that no honest feature tells."""
NEARLY_ALL = 0.999
MANY_VALUES = 0.5
MANY_ONCE = 0.1
DRIFTS = 0.05
MISSING_CHANGES = 0.2


def find_anomalies(log: CodedLog, scores: Sequence[Score], label_entropy: float) -> list[Anomaly]:
    """Of all features in the log's order, then the label's own.

    Args:
        scores: of all the log's features, in its order.
    """
    found: list[Anomaly] = []
    copies = _copies(log, scores)
    for place, score in enumerate(scores):
        found += _of_feature(score, log.columns[place], log.rows, label_entropy)
        if score.name in copies:
            text = f"tells the same rows apart as '{copies[score.name]}'"
            found.append(Anomaly(score.name, Fault.DUPLICATE, text, 1.0))
    return found + _of_label(log)


def _of_feature(score: Score, column: Column, rows: int, label_entropy: float) -> list[Anomaly]:
    if score.values == 1:
        what = "has no value in any row" if score.missing == 1 else "has the same value in all rows"
        if column.numbers is not None and score.missing < 1 and column.numbers.min() < column.numbers.max():
            what = "lies in the same bucket in all rows: give its transform more buckets, or another kind"
        return [Anomaly(score.name, Fault.CONSTANT, what, 1.0)]
    found = []

    def note(fault: Fault, measured: float, text: str) -> None:
        found.append(Anomaly(score.name, fault, text, float(measured)))

    told = (score.mi - score.chance.mean) / max(label_entropy - score.chance.mean, 1e-12)
    if told > LEAK and score.z > FAR:
        note(Fault.LEAKAGE, told, f"tells {told:.1%} of the label: was it there before the label was?")
    if score.top >= NEARLY_ALL:
        note(Fault.CONSTANT, score.top, f"has one value in {score.top:.2%} of the rows")
    if score.values > MANY_VALUES * rows:
        note(Fault.EXPLOSION, score.values / rows, f"has {score.values:,} values in {rows:,} rows: an identifier of rows?")
    elif score.once > MANY_ONCE:
        note(Fault.RARE, score.once, f"has a value that is there only once in {score.once:.1%} of the rows")
    if score.drift > DRIFTS:
        fresh = f"; {score.fresh:.1%} of the last tenth's rows have values never seen before" if score.fresh > 0.01 else ""
        note(Fault.DRIFT, score.drift, f"tells {score.drift:.1%} of which tenth of the log a row is in{fresh}")
    change = max(score.by_batch) - min(score.by_batch)
    if change > MISSING_CHANGES:
        note(
            Fault.MISSING, change, f"is missing in {min(score.by_batch):.1%} to {max(score.by_batch):.1%} of the rows of a tenth of the log"
        )
    return found


def _copies(log: CodedLog, scores: Sequence[Score]) -> dict[str, str]:
    """Features that are a one-to-one renaming of one before them by name: the same counts, and a partner for each value, always."""
    found: dict[str, str] = {}
    groups: dict[tuple[bytes, bytes], list[int]] = {}
    for place in sorted(range(len(scores)), key=lambda place: scores[place].name):
        score = scores[place]
        if score.values == 1:
            continue
        originals = groups.setdefault((score.column.counts.tobytes(), score.column.times.tobytes()), [])
        same = next((other for other in originals if _one_to_one(log, place, other)), None)
        if same is None:
            originals.append(place)
        else:
            found[score.name] = scores[same].name
    return found


def _one_to_one(log: CodedLog, place: int, other: int) -> bool:
    """Whether each value of the one goes with one value of the other, always."""
    column, original = log.columns[place], log.columns[other]
    codes, seen = column.codes, np.asarray(original.codes)
    partner = np.zeros(column.size, seen.dtype)
    partner[codes] = seen
    return bool((partner[codes] == seen).all())


def _of_label(log: CodedLog) -> list[Anomaly]:
    """Whether a tenth's rate is far from the mean rate: a two-sided test at 4 standard errors, and a third of it or more."""
    table = joint_table(log.batch, BATCHES, log.label, 2)
    rows = table.sum(1)
    kept = np.flatnonzero(rows)
    rates, mean = table[kept, 1] / rows[kept], log.label.mean()
    errors = np.sqrt(mean * (1 - mean) / rows[kept])
    far = (np.abs(rates - mean) > 4 * errors) & (np.abs(rates - mean) > mean / 3)
    if not far.any():
        return []
    worst = int(np.argmax(np.abs(rates - mean)))
    text = f"the label's rate is {rates[worst]:.2%} in tenth {worst + 1} of the log, {mean:.2%} in all of it"
    return [Anomaly("", Fault.LABEL_DRIFT, text, float(rates[worst] / mean))]
