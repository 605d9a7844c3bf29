"""``ctrkit explain``: why a run predicts what it predicts, as a page, pictures and JSON."""

import json
import time
from pathlib import Path
from typing import Any

from ctrkit.errors import CtrkitError
from ctrkit.explain.drawing import Picture
from ctrkit.explain.explainer import Explainer, open_run
from ctrkit.explain.page import row_page, split_page
from pipelines.terminal import Terminal, to_json


def explain_run(
    run: Path,
    screen: Terminal,
    *,
    split: str = "test",
    rows: int = 2000,
    repeats: int = 5,
    seed: int = 0,
    row: int | None = None,
    row_json: str | None = None,
    task: str | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Explains a split, or one row if one is named; {html, json, pictures, seconds} and the gist of it.

    Args:
        rows: sampled of the split.
        repeats: shuffles of each field's values.
        row: number of a raw row that the run kept.
        row_json: a row as a client would send it, instead.
        task: which of several labels; the main one unless given.
        out: folder; default ``<run>/explain``, of several labels ``<run>/explain/<task>``.

    Raises:
        CtrkitError: no finished run, no such split, row or task, or a row that does not fit the features.
    """
    if row is not None and row_json is not None:
        raise CtrkitError("--row and --row-json each name a row", "Give one of them")
    started = time.perf_counter()
    given = _parse(row_json) if row_json is not None else None
    with open_run(run, task) as explainer:
        default = run / "explain" / (explainer.task or "")
        if row is None and row_json is None:
            said, name, page, drawn, content = _split(explainer, split, rows, repeats, seed, screen)
        else:
            said, name, page, drawn, content = _row(explainer, row, given, screen)
    written = _write(Path(out) if out is not None else default, name, page, drawn, content)
    screen.console.print(f"wrote {written['html']}")
    return {**written, **said, "seconds": time.perf_counter() - started}


def _split(explainer: Explainer, split: str, rows: int, repeats: int, seed: int, screen: Terminal) -> tuple:
    from rich.progress import Progress

    with Progress(console=screen.console, transient=True, disable=not screen.console.is_terminal) as bar:
        tasks = {
            stage: bar.add_task(what, total=None) for stage, what in (("permute", "permute fields"), ("integrate", "integrate gradients"))
        }
        explanation = explainer.explain_split(
            split, rows, repeats, seed, lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total)
        )
    about = explainer.about()
    page, drawn = split_page(about, explanation)
    table = [
        (score.field, f"{score.auc_drop.mean:+.4f} ± {score.auc_drop.std:.4f}", f"{score.attribution:.4f}")
        for score in explanation.fields[:10]
    ]
    screen.table(("field", "drop of AUC", "mean |contribution|"), table, title=f"{explanation.rows:,} rows of {split}, the first 10 fields")
    said = {
        "rows": explanation.rows,
        "fields": {score.field: {"auc_drop": score.auc_drop.mean, "attribution": score.attribution} for score in explanation.fields},
        "agreement": explanation.agreement,
    }
    return said, "explain", page, drawn, {"about": about.to_json(), **explanation.to_json()}


def _row(explainer: Explainer, row: int | None, given: Any, screen: Terminal) -> tuple:
    explanation = explainer.explain_golden(row) if row is not None else explainer.explain_json(given)
    about = explainer.about()
    name = f"row-{row}" if row is not None else "row-given"
    page, drawn = row_page(about, explanation, name)
    table = [(s.field, "missing" if s.value is None else str(s.value), f"{s.contribution:+.4f}") for s in explanation.fields[:10]]
    screen.table(("field", "value", "contribution"), table, title=f"{explanation.name}: {explanation.probability:.2%}")
    said = {
        "probability": explanation.probability,
        "logit": explanation.logit,
        "base_logit": explanation.base_logit,
        "contributions": {share.field: share.contribution for share in explanation.fields},
    }
    return said, name, page, drawn, {"about": about.to_json(), **explanation.to_json()}


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CtrkitError(f"--row-json is not JSON: {error}", """Write it as in --row-json '{"user_id": "u1"}'""") from error


def _write(folder: Path, name: str, page: str, drawn: list[Picture], content: dict[str, Any]) -> dict[str, Any]:
    """Each file under a temporary name, then renamed; the page last."""
    files = {f"{picture.name}.png": picture.png for picture in drawn}
    files |= {f"{name}.json": to_json(content).encode() + b"\n", f"{name}.html": page.encode()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in files.items():
            temporary = folder / f".{file}.tmp"
            temporary.write_bytes(data)
            temporary.replace(folder / file)
    except OSError as error:
        raise CtrkitError(
            f"the explanation cannot be written to '{folder}': {error.strerror or error}", "Name a folder with --out"
        ) from error
    pictures = [str(folder / f"{picture.name}.png") for picture in drawn]
    return {"html": str(folder / f"{name}.html"), "json": str(folder / f"{name}.json"), "pictures": pictures}
