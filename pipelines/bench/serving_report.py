"""The page of ``ctrkit bench serving``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ctrkit.bundle import Bundle
from pipelines.bench.page import Heading, Paragraph, Table, write_page
from pipelines.bench.services import STAGES

HEADS = ["workers", "candidates", "connections"]


def write_report(measured: Sequence[dict[str, Any]], bundle: Bundle, seconds: float, out: Path) -> None:
    """Writes ``report.md`` and ``report.html``: a line for each number of workers, candidates and connections, a column a service."""
    cells: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for row in measured:
        cells.setdefault((row["workers"], row["rows"], row["concurrency"]), {})[row["side"]] = row
    sides = sorted({row["side"] for row in measured}, key=lambda side: (side != "ctrkit", side))
    lines = [([*map(str, cell)], of) for cell, of in cells.items()]
    about = (
        f"Model {bundle.manifest.name}, {bundle.manifest.model}, {len(bundle.features)} features; {seconds:g} s a load. "
        "Services and load generator share the machine's cores. Plain: FastAPI, a pydantic model a row, uvicorn. "
        "Every service runs the same ONNX file, one thread a run."
    )
    closed = [
        [*cell, f"{of['ctrkit']['graph_ms']:.2f}", *(f"{of[side]['per_s']:,.0f} ({_times(of[side], '')})" for side in sides), _ratio(of)]
        for cell, of in lines
    ]
    processor = [[*cell, *(f"{of[side]['cpu_ms']:,.2f}" for side in sides)] for cell, of in lines]
    opened = [
        [*cell, f"{of['ctrkit']['open_rate']:,.0f}", *(f"{_times(of[side], 'open_')}{_dropped(of[side])}" for side in sides)]
        for cell, of in lines
    ]
    stages = [[*cell, *(f"{of['ctrkit'][f'{stage}_ms']:.3f}" for stage in STAGES)] for cell, of in lines]
    write_page(
        "Serving",
        [
            Paragraph(about),
            Heading("Closed loop: requests/s (p50 / p99, ms); each connection sends its next request when the last is answered"),
            Table([*HEADS, "graph alone, ms", *sides, "ratio to the best other"], closed),
            Heading("Processor time of the service, ms a request"),
            Table([*HEADS, *sides], processor),
            Heading("Open loop: p50 / p99, ms, from when a request was due; at random times, at half the rate that plain reached"),
            Table([*HEADS, "rate/s", *sides], opened),
            Heading("Where ctrkit's time goes: mean milliseconds of a request inside the service, closed loop"),
            Table([*HEADS, *STAGES], stages),
        ],
        out,
    )


def _times(row: dict[str, Any], loop: str) -> str:
    return f"{row[f'{loop}p50_ms']:,.2f} / {row[f'{loop}p99_ms']:,.2f}"


def _dropped(row: dict[str, Any]) -> str:
    return f", {row['open_dropped']:,} dropped" if row["open_dropped"] else ""


def _ratio(of: dict[str, dict[str, Any]]) -> str:
    return f"{of['ctrkit']['per_s'] / max(row['per_s'] for side, row in of.items() if side != 'ctrkit'):.1f}"
