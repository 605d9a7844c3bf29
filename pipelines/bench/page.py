"""A report as Markdown and as one HTML file with its pictures inside."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from pipelines.bench.report import markdown_table

STYLE = """body{font:14px sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}table{border-collapse:collapse;display:block;overflow-x:auto}
td,th{padding:4px 10px;border-bottom:1px solid #ddd;text-align:left}th{background:#f4f4f4}img{max-width:100%}"""


@dataclass(frozen=True)
class Heading:
    text: str


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Table:
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report."""

    file: str
    caption: str


Block = Heading | Paragraph | Table | Picture


def write_page(title: str, blocks: Sequence[Block], folder: Path) -> None:
    """Writes ``report.md`` and ``report.html``."""
    text = "\n".join([f"# {title}\n", *map(_markdown, blocks)])
    (folder / "report.md").write_text(text, encoding="utf8")
    body = "\n".join(_html(block, folder) for block in blocks)
    page = f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}\n"
    (folder / "report.html").write_text(page, encoding="utf8")


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}\n"
        case Paragraph(text):
            return f"{text}\n"
        case Table(header, rows):
            return markdown_table(header, rows)
        case Picture(file, caption):
            return f"![{caption}]({file})\n"


def _html(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"<h2>{escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Table(header, rows):
            head = "".join(f"<th>{escape(name)}</th>" for name in header)
            body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        case Picture(file, caption):
            picture = b64encode((folder / file).read_bytes()).decode()
            return f'<p><img alt="{escape(caption)}" src="data:image/png;base64,{picture}"></p>'
