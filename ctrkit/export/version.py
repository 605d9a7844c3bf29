"""The next version of a model in a repository, written whole or not at all."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from ctrkit.errors import CtrkitError


@dataclass(frozen=True)
class NewVersion:
    """
    Attributes:
        number: of the version.
        scratch: hidden folder to write to.
        folder: the version's own.
    """

    number: int
    scratch: Path
    folder: Path

    def publish(self) -> None:
        """Gives the version its name: whoever watches the repository never sees half of it."""
        self.refuse_taken()
        self.scratch.rename(self.folder)

    def refuse_taken(self) -> None:
        if self.folder.exists():
            raise CtrkitError(f"another export wrote '{self.folder}' meanwhile", "Export again")


@contextmanager
def new_version(repo: Path, name: str) -> Iterator[NewVersion]:
    """The version after the last one of ``<repo>/<name>``, whatever that holds. Nothing is left behind if the block raises.

    Raises:
        CtrkitError: a name that cannot be used, or no room.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise CtrkitError(f"'{name}' cannot name a model", "Use letters, digits, '_', '.' and '-', starting with a letter or digit")
    model_folder = repo / name
    taken = (int(path.name) for path in model_folder.glob("*") if path.name.isascii() and path.name.isdigit())
    number = max(taken, default=0) + 1
    scratch = model_folder / f".{number}-{uuid4().hex[:8]}"
    try:
        scratch.mkdir(parents=True)
        yield NewVersion(number, scratch, model_folder / str(number))
    except BaseException as error:
        shutil.rmtree(scratch, ignore_errors=True)
        with suppress(OSError):  # it holds other versions
            model_folder.rmdir()
        if isinstance(error, OSError):
            raise CtrkitError(
                f"the bundle cannot be written to '{model_folder}': {error.strerror or error}", "Make room or mend the path"
            ) from error
        raise
