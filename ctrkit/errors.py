"""The one exception a user is meant to read."""


class CtrkitError(Exception):
    """Something the user can mend: says what was wrong, where, and what to do.

    The command line prints it on one line and exits with 2; the service answers 4xx.

    Args:
        problem: what is wrong and where (file, row, column, setting).
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(" ".join(_sentence(part) for part in (self.problem, self.remedy) if part))


def _sentence(text: str) -> str:
    return text if text.endswith("?") else f"{text}."


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`did you mean 'x'` for a misspelt word, whatever its case, or the list of what is known."""
    import difflib

    if not known:
        return "There are none"

    lower: dict[str, str] = {}
    for name in known:
        lower.setdefault(name.lower(), name)
    close = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.5)
    return f"Did you mean '{lower[close[0]]}'?" if close else f"Known: {', '.join(sorted(known))}"
