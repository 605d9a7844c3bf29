"""The pictures of a ranking: what each feature tells beside chance, information against the number of values, and who says the same."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import dendrogram

from ctrkit.selection.noise import FAR
from ctrkit.selection.ranking import Ranking
from ctrkit.selection.redundancy import SAME, tree_of

SHOWN = 60
"""Features in a picture, the best ones."""
BLUE, ORANGE, GREY, PALE = "#2563eb", "#ea580c", "#9ca3af", "#e5e7eb"


def draw(ranking: Ranking, folder: Path) -> list[tuple[str, str]]:
    """Writes the PNGs; (file, caption) of each."""
    drawn = [
        _bars(ranking, folder / "ranking.png"),
        _against_chance(ranking, folder / "chance.png"),
    ]
    if ranking.pairs:
        shown = sorted(ranking.order[:SHOWN])
        names = [_short(ranking.scores[place].name) for place in shown]
        similarity = ranking.clusters.similarity[np.ix_(shown, shown)]
        drawn += [_similarity(names, similarity, folder / "similarity.png"), _tree(names, similarity, folder / "dendrogram.png")]
    return drawn


def _bars(ranking: Ranking, path: Path) -> tuple[str, str]:
    """Information beyond chance, best at the top, with the band that chance stays in."""
    order = ranking.order[:SHOWN]
    scores = [ranking.scores[place] for place in order]
    y = np.arange(len(order))
    bands = [FAR * score.chance.spread / ranking.label_entropy for score in scores]
    figure = Figure(figsize=(8, 1.4 + 0.22 * len(order)), layout="constrained")
    axes = figure.subplots()
    colors = [BLUE if score.stands_out else GREY for score in scores]
    axes.barh(y, [score.score for score in scores], color=colors, height=0.7)
    axes.barh(
        y, np.multiply(bands, 2), left=np.negative(bands), color=ORANGE, alpha=0.35, height=0.85, label=f"chance, ± {FAR:g} deviations"
    )
    axes.set_yticks(y, [_short(score.name) for score in scores], fontsize=8)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.use_sticky_edges = False
    axes.set_xlabel("information on the label beyond chance, share of its entropy")
    axes.set_title(_title(f"{len(order)} of {len(ranking.order)} features by {ranking.by}"), loc="left", fontsize=11)
    _finish(axes)
    _save(figure, path)
    return path.name, "Information on the label beyond chance; grey features do not stand out from it"


def _against_chance(ranking: Ranking, path: Path) -> tuple[str, str]:
    """Information as counted over the number of values, beside what a shuffled column of the same values shows."""
    scores = [ranking.scores[place] for place in ranking.order]
    values = [score.values for score in scores]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    floor = min((s.chance.mean for s in scores if s.chance.mean > 0), default=1e-9) / 2
    counted = np.maximum([score.mi for score in scores], floor)
    axes.plot(values, np.maximum([s.chance.mean for s in scores], floor), "_", color=ORANGE, markersize=9, label="the same column shuffled")
    for told, color, label in ((True, BLUE, "stands out"), (False, GREY, "does not")):
        places = [i for i, score in enumerate(scores) if score.stands_out is told]
        axes.plot([values[i] for i in places], [counted[i] for i in places], "o", color=color, markersize=4, label=label)
    for i, score in enumerate(scores[:12]):
        axes.annotate(_short(score.name), (values[i], counted[i]), xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set(xscale="log", yscale="log", xlabel="values", ylabel="mutual information with the label, nats")
    axes.set_title("Information as counted, and by chance", loc="left", fontsize=11)
    _finish(axes)
    _save(figure, path)
    return path.name, "Information as counted against the number of values: chance grows with it"


def _similarity(names: Sequence[str], similarity: np.ndarray, path: Path) -> tuple[str, str]:
    """Heat map, features that say the same beside one another."""
    leaves = [int(leaf) for leaf in dendrogram(tree_of(similarity), no_plot=True)["leaves"]]
    side = min(13.0, 3 + 0.2 * len(names))
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("similarity", ["white", BLUE, "#1e1b4b"])
    image = axes.imshow(similarity[np.ix_(leaves, leaves)], cmap=colors, vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), [names[leaf] for leaf in leaves], rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), [names[leaf] for leaf in leaves], fontsize=7)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, shrink=0.6, label="similarity")
    axes.set_title("What features say of one another, beyond chance", loc="left", fontsize=11)
    _save(figure, path)
    return path.name, "Similarity of features: 1 for copies, 0 for independent ones"


def _tree(names: Sequence[str], similarity: np.ndarray, path: Path) -> tuple[str, str]:
    figure = Figure(figsize=(8, 1.4 + 0.18 * len(names)), layout="constrained")
    axes = figure.subplots()
    style = {"orientation": "left", "color_threshold": 1 - SAME, "above_threshold_color": GREY, "leaf_font_size": 7}
    dendrogram(tree_of(similarity), labels=list(names), ax=axes, **style)
    axes.axvline(1 - SAME, color=ORANGE, linestyle="--", linewidth=1, label=f"one cluster below it: similarity {SAME:g}")
    axes.set_xlabel("1 - similarity, mean over the clusters joined")
    axes.set_title("Which features say the same", loc="left", fontsize=11)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right")
    _save(figure, path)
    return path.name, "Clusters of features that say the same"


def _short(name: str) -> str:
    name = name.replace("$", r"\$")
    return name if len(name) <= 28 else f"{name[:27]}…"


def _title(text: str) -> str:
    return text[0].upper() + text[1:]


def _finish(axes) -> None:
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=120, format="png")
