"""One HTML page that needs nothing else: style and pictures are inside, there is no script and no link."""

from collections.abc import Sequence
from html import escape

import numpy as np

from ctrkit.explain import pictures
from ctrkit.explain.drawing import Picture, words
from ctrkit.explain.explanation import About, FieldShare, RowExplanation, SplitExplanation
from ctrkit.explain.markup import Number, figure, folded, signed, slug, slugs, table

_STYLE = """
:root { --ink: #1f2937; --faint: #6b7280; --line: #e5e7eb; --card: #fff; --more: #e8590c; --less: #1c6fd4; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 15px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 2px 0 4px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 4px; }
h3 { font-size: 14px; margin: 22px 0 4px; }
p { margin: 4px 0 10px; max-width: 78ch; }
.eyebrow { color: var(--faint); font-size: 12px; letter-spacing: .08em; text-transform: uppercase; }
.faint, figcaption, footer { color: var(--faint); font-size: 13px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 22px 24px; margin: 18px 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 0; padding: 0; list-style: none; }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 16px; min-width: 118px; }
.tiles b { display: block; font-size: 21px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles span { color: var(--faint); font-size: 12.5px; }
figure { margin: 10px 0 4px; }
figure svg { max-width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
.chip { display: inline-block; background: #ecfdf5; border: 1px solid #a7f3d0; border-radius: 6px; padding: 0 7px; margin: 2px 1px;
  font-size: 13px; overflow-wrap: anywhere; }
.pruned { background: #f3f4f6; border-color: var(--line); color: var(--faint); text-decoration: line-through; }
.beside { display: flex; flex-wrap: wrap; gap: 6px 26px; align-items: center; } .beside > div { flex: 1 1 240px; }
figure svg text { font-family: inherit !important; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--faint); font-weight: 500; border-bottom: 1px solid var(--line); padding: 4px 10px 4px 0; }
td { border-bottom: 1px solid #f1f2f4; padding: 3px 10px 3px 0; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
.up { color: var(--more); } .down { color: var(--less); }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--faint); font-size: 13px; }
.badge { display: inline-block; border-radius: 20px; padding: 1px 10px; font-size: 12.5px; border: 1px solid var(--line); margin-left: 6px; }
"""

_METRICS = {"auc": "AUC", "gauc": "GAUC", "logloss": "logloss", "ne": "normalized entropy", "calibration": "calibration"}


_HOW_TO_READ = (
    '<p class="faint">From the average training row, on top, to this row, at the bottom, a field a step: orange raises the prediction, blue '
    "lowers it. Steps are in logits, where they add up; the axis above says the same in probabilities.</p>"
)


def split_page(about: About, explanation: SplitExplanation) -> tuple[str, list[Picture]]:
    """The page of a whole split, and the pictures on it."""
    e = explanation
    importance, agreement = pictures.importance(e.fields), pictures.agreement(e)
    drawn = [importance, agreement]
    parts = [
        _header(about, f"{e.rows:,} of the {e.of_rows:,} rows of the {e.split} split, drawn at random"),
        f"""<section><h2>Which fields matter</h2>
<p>{_leaders(e)}</p>{figure(importance)}
<p class="faint">Left: how much AUC the sample ({e.auc:.4f}) loses when the field's values are shuffled among the rows, mean and standard
deviation of {e.repeats} shuffles. Fields that say the same cover for one another and look less important than they are.
Right: how far the field moves the logit from the average row's, mean over {e.integrated_rows:,} rows.{_left_out(e)}</p>
{_score_table(e)}</section>""",
        f"""<section><h2>Do the two agree?</h2><div class="beside">{figure(agreement)}<div><p>{_agreement(e)}</p>
<p class="faint">A field at the top right both moves the predictions and makes them better.</p>
<p class="faint">A field at the top left moves predictions without making them better: it says what others say too, or the model has learned
its values by heart.</p></div></div></section>""",
    ]
    for section, name in zip(e.sections, slugs([section.title for section in e.sections]), strict=True):
        shown = section.show(name)
        drawn += shown.pictures
        parts.append(f"<section><h2>{escape(section.title)}</h2>{shown.html}</section>")
    if e.examples:
        parts.append(
            "<h2>Some rows, one by one</h2>"
            f"<p class='faint'>Out of the raw rows that the run kept, the first of its {e.raw_split} split.</p>"
        )
    for example in e.examples:
        body, more = _row(about, example, f"example-{slug(example.name.partition(',')[0])}")
        parts.append(body)
        drawn += more
    parts.append(_footer(e.largest_gap))
    return _page(f"{about.run} explained", parts), drawn


def row_page(about: About, row: RowExplanation, name: str) -> tuple[str, list[Picture]]:
    """The page of one row, and the pictures on it, whose names begin with ``name``."""
    body, drawn = _row(about, row, name)
    return _page(f"{about.run}: {row.name}", [_header(about, row.name), body, _footer(row.gap)]), drawn


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n{chr(10).join(parts)}\n</main></body></html>\n"
    )


def _header(about: About, what: str) -> str:
    split = "test" if about.metrics.get("test") else "valid"
    metrics = about.metrics.get(split, {})
    tiles = "".join(
        f"<li><b>{metrics[name]:.4f}</b><span>{label}, {split}</span></li>"
        for name, label in _METRICS.items()
        if name in metrics and not np.isnan(metrics[name])
    )
    of_several = f", one of the labels {escape(', '.join(about.tasks))}" if about.tasks else ""
    return (
        f'<header><div class="eyebrow">ctrkit explain</div><h1>{escape(about.run)}</h1>'
        f"<p>predicts <b>{escape(about.label)}</b>{of_several}</p>"
        f"<p><b>{escape(about.model)}</b> <span class='faint'>{escape(about.paper)}; {about.parameters:,} parameters</span><br>"
        f'{escape(what)}</p><ul class="tiles">{tiles}</ul></header>'
    )


def _leaders(e: SplitExplanation) -> str:
    best = [f"<b>{escape(score.field)}</b>" for score in e.fields[:3] if score.auc_drop.mean > 2 * score.auc_drop.std]
    idle = sum(score.auc_drop.mean <= 2 * score.auc_drop.std for score in e.fields)
    first = f"The model leans on {', '.join(best)} most. " if best else "No field's loss stands out from the noise of the shuffles. "
    return first + (f"Shuffling {idle} of the {len(e.fields)} fields costs no more than the noise of it." if best and idle else "")


def _left_out(e: SplitExplanation) -> str:
    more = len(e.fields) - pictures.SHOWN_FIELDS
    return f" {more} fields of less importance are in the table and in the JSON only." if more > 0 else ""


def _agreement(e: SplitExplanation) -> str:
    if np.isnan(e.agreement):
        return "There is nothing to compare: one of the two is the same for all fields."
    word = "agree" if e.agreement >= 0.7 else "agree in part" if e.agreement >= 0.3 else "hardly agree"
    return f"The two orders {word}: Spearman's rank correlation over {len(e.fields)} fields is <b>{e.agreement:.2f}</b>."


def _score_table(e: SplitExplanation) -> str:
    rows = [
        (
            str(place),
            s.field,
            s.kind.replace("_", "-"),
            Number(f"{s.auc_drop.mean:+.5f} ± {s.auc_drop.std:.5f}"),
            Number(f"{s.logloss_rise.mean:+.5f} ± {s.logloss_rise.std:.5f}"),
            Number(f"{s.attribution:.4f}"),
        )
        for place, s in enumerate(e.fields, 1)
    ]
    head = ("", "field", "kind", "drop of AUC", "rise of logloss", "mean |contribution|")
    return folded(f"All {len(e.fields)} fields in figures", table(head, rows))


def _row(about: About, row: RowExplanation, name: str) -> tuple[str, list[Picture]]:
    """The card of a row, and its pictures."""
    drawn = [pictures.waterfall(row, name)]
    label = "" if row.label is None else f'<span class="badge">{escape(about.label)}: {"yes" if row.label else "no"}</span>'
    parts = [
        f"<section><h2>{escape(row.name[0].upper() + row.name[1:])}: {row.probability:.2%}{label}</h2>",
        f"<p>{_pushes(row)}</p>{figure(drawn[0])}{_HOW_TO_READ}",
        _share_table(row),
    ]
    for section, own in zip(row.sections, slugs([section.title for section in row.sections]), strict=True):
        shown = section.show(f"{name}-{own}")
        drawn += shown.pictures
        parts.append(f"<h3>{escape(section.title)}</h3>{shown.html}")
    return "".join(parts) + "</section>", drawn


def _pushes(row: RowExplanation) -> str:
    up = [s for s in row.fields if s.contribution > 0][:2]
    down = [s for s in row.fields if s.contribution < 0][:2]
    said = [
        f"{' and '.join(f'<b class={way}>{escape(pictures.label_of(s))}</b>' for s in shares)} {verb}"
        for shares, way, verb in ((up, "up", "push it up"), (down, "down", "push it down"))
        if shares
    ]
    base = 1 / (1 + np.exp(-row.base_logit))
    return f"The average row gets {base:.2%}, this one {row.probability:.2%}" + (f": {'; '.join(said)}." if said else ".")


def _share_table(row: RowExplanation) -> str:
    rows = [(s.field, f"{words(s.value)}{_note(s)}", signed(s.contribution)) for s in row.fields]
    head = ("field", "raw value", "contribution to the logit")
    return folded(f"All {len(row.fields)} fields and their raw values", table(head, rows))


def _note(share: FieldShare) -> str:
    return " (unseen in training)" if share.unseen else " (pruned)" if share.pruned else ""


def _footer(gap: float) -> str:
    return (
        "<footer>Contributions are integrated gradients (Sundararajan et al., ICML 2017) along the straight line from the average training "
        "row, in the space of the fields' embeddings and numbers; with the average row's logit they add up to the prediction, here within "
        f"{gap:.1e}. They say what the model does, not what causes what it predicts.</footer>"
    )
