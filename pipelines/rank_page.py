"""What ``ctrkit rank`` found, as a page."""

from collections.abc import Sequence

from ctrkit.config import Experiment
from ctrkit.selection.ranking import Ranking
from ctrkit.selection.scores import FAR
from pipelines.bench.page import Block, Heading, Paragraph, Picture, Table

MOST = 25
"""Rows of the lists of pairs and crosses."""

HOW = (
    f"Information is the mutual information of feature and label, less what the same column shows by chance when its rows are shuffled, as a "
    f"share of the label's entropy: about 0 for a random column, however many values it has. z is how far above chance it is, in standard "
    f"deviations; features above {FAR:g} stand out."
)


def page(experiment: Experiment, ranking: Ranking, drawn: Sequence[tuple[str, str]]) -> list[Block]:
    pictures = {file: Picture(file, caption) for file, caption in drawn}
    parts: list[Block] = [
        Paragraph(_about(experiment, ranking)),
        *_anomalies(ranking),
        Heading("Ranking"),
        Paragraph(HOW),
        pictures["ranking.png"],
        _table(ranking),
        pictures["chance.png"],
        Heading("Coverage"),
        _coverage(ranking),
    ]
    if ranking.pairs:
        parts += [Heading("Features that say the same"), pictures["similarity.png"], pictures["dendrogram.png"], *_same(ranking)]
        parts += [Heading("Pairs that say more together"), _together(ranking)]
    if ranking.crosses:
        parts += [Heading("Crosses of three and more"), _crosses(ranking)]
    if ranking.transformations:
        parts += [Heading("Numbers as values"), _transformations(ranking)]
    return parts


def _about(experiment: Experiment, ranking: Ranking) -> str:
    sampled = f", a uniform sample of {ranking.of_rows:,}" if ranking.rows < ranking.of_rows else ""
    stand_out = sum(score.stands_out for score in ranking.scores)
    return (
        f"{len(ranking.scores)} features of '{experiment.name}' on {ranking.rows:,} training rows{sampled}, ordered by {ranking.by}; the label is 1 in "
        f"{ranking.rate:.2%} of them. {stand_out} features stand out from chance; {len(ranking.recommended())} do, and are not redundant or faulty."
    )


def _anomalies(ranking: Ranking) -> list[Block]:
    if not ranking.anomalies:
        return []
    rows = [(anomaly.feature or "label", anomaly.fault.value, anomaly.text) for anomaly in ranking.anomalies]
    return [Heading("Look at these first"), Table(("feature", "fault", "it"), rows)]


def _table(ranking: Ranking) -> Table:
    redundant, told = ranking.redundant_with(), ranking.told_by()
    rows = []
    for rank, (place, value) in enumerate(zip(ranking.order, ranking.values, strict=True), 1):
        s = ranking.scores[place]
        rows.append(
            (
                str(rank),
                s.name,
                ranking.features[place].kind.value,
                f"{value:.5f}",
                f"{s.score:.5f}",
                f"{s.z:.1f}",
                f"{s.mi:.5f}",
                f"{s.chance.mean:.5f} ± {s.chance.spread:.5f}",
                f"{s.values:,}",
                str(ranking.clusters.of[place]) if ranking.pairs else "",
                ranking.scores[redundant[place]].name if place in redundant else "",
                ranking.scores[told[place]].name if place in told else "",
            )
        )
    head = (
        "",
        "feature",
        "kind",
        ranking.by,
        "information",
        "z",
        "MI, nats",
        "by chance",
        "values",
        "cluster",
        "redundant with",
        "told by",
    )
    return Table(head, rows)


def _coverage(ranking: Ranking) -> Table:
    head = (
        "feature",
        "missing",
        "most frequent value",
        "values there once",
        "values of 50 %",
        "90 %",
        "99 % of rows",
        "drift",
        "new in the last tenth",
    )
    rows = []
    for place in ranking.order:
        s = ranking.scores[place]
        covering = [f"{count:,}" for count in s.covering]
        rows.append((s.name, f"{s.missing:.2%}", f"{s.top:.2%}", f"{s.once:.2%}", *covering, f"{s.drift:.4f}", f"{s.fresh:.2%}"))
    return Table(head, rows)


def _names(ranking: Ranking, places: Sequence[int]) -> str:
    return " x ".join(ranking.scores[place].name for place in places)


def _same(ranking: Ranking) -> list[Block]:
    told = [(pair.first_told, pair.second, pair.first, pair.similarity) for pair in ranking.pairs]
    told += [(pair.second_told, pair.first, pair.second, pair.similarity) for pair in ranking.pairs]
    most = sorted((t for t in told if t[0] > 0.5), key=lambda t: (-t[0], t[1], t[2]))[:MOST]
    if not most:
        return [Paragraph("No feature tells more than half of another.")]
    rows = [(ranking.scores[b].name, ranking.scores[a].name, f"{share:.1%}", f"{similarity:.3f}") for share, b, a, similarity in most]
    return [Table(("feature", "tells of", "this share of its entropy", "similarity"), rows)]


def _together(ranking: Ranking) -> Block:
    best = sorted((p for p in ranking.pairs if p.z > FAR and p.synergy > 0), key=lambda p: (-p.synergy, p.first, p.second))[:MOST]
    if not best:
        return Paragraph("No pair says more of the label than its two features do.")
    rows = [(_names(ranking, (p.first, p.second)), f"{p.synergy:.5f}", f"{p.score:.5f}", f"{p.z:.1f}", f"{p.values:,}") for p in best]
    return Table(("pair", "more than both added", "information of the pair", "z", "values"), rows)


def _crosses(ranking: Ranking) -> Table:
    best = sorted(ranking.crosses, key=lambda c: (-c.gain, c.places))[:MOST]
    rows = [(_names(ranking, c.places), f"{c.gain:+.5f}", f"{c.score:.5f}", f"{c.z:.1f}", f"{c.values:,}") for c in best]
    return Table(("cross", "more than its best part", "information", "z", "values"), rows)


def _transformations(ranking: Ranking) -> Table:
    rows = [(t.feature, t.name, f"{t.score:.5f}", f"{t.z:.1f}", f"{t.values:,}") for t in ranking.transformations]
    return Table(("feature", "made into values by", "information", "z", "values"), rows)
