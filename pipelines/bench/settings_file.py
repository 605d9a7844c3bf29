"""What a benchmark's folder was measured with, so that its figures are not taken for those of other settings."""

from pathlib import Path

from ctrkit.errors import CtrkitError


def keep(text: str, path: Path) -> None:
    """Writes settings that trials are of.

    Raises:
        CtrkitError: others are there: the folder's trials are of those.
    """
    if path.exists() and path.read_text(encoding="utf8") != text:
        raise CtrkitError(
            f"'{path.parent}' holds a benchmark of other settings: '{path}' differs", "Give another --out, or delete that folder"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")
