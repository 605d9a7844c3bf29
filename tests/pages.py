"""Pages that need nothing else: read as a browser would, and what they would load."""

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """All that a page would load or run, and whether its elements are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def parsed(text: str) -> Page:
    """A page without script or link to anything outside, all of whose elements are closed."""
    page = Page(text)
    assert not page.open
    assert page.scripts == 0
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in page.loads)
    assert not re.findall(r"url\((?!#)", text) and "@import" not in text
    return page
