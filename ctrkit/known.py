"""Which values a model knows, small enough to lie in its bundle: it tells how many of a request's values are unknown, not what they are.

Of a text its CRC-32 is kept, four bytes: of a million words about one unknown value in 4,000 passes for known. Integers are kept as
they are.
"""

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ctrkit.errors import CtrkitError
from ctrkit.schema import MISSING_INT

_NAMES = "names"


class KnownValues:
    """Vocabularies by feature.

    Args:
        codes: a feature's known values: sorted CRC-32s as uint32, or integers as int64.
    """

    def __init__(self, codes: Mapping[str, np.ndarray]) -> None:
        self._codes = dict(codes)

    @classmethod
    def of(cls, vocabularies: Mapping[str, Iterable[str] | Iterable[int]]) -> "KnownValues":
        """From the values themselves."""
        return cls({name: np.unique(codes_of(list(values))) for name, values in vocabularies.items()})

    def __contains__(self, feature: str) -> bool:
        return feature in self._codes

    def unknown(self, feature: str, values: np.ndarray) -> int:
        """How many of a feature's canonical values (strings as objects, or int64) are neither known nor missing."""
        present = values[values != ("" if values.dtype == object else MISSING_INT)]
        return self.unknown_codes(feature, codes_of(present.tolist()))

    def unknown_codes(self, feature: str, codes: np.ndarray) -> int:
        """The same of codes of values that are not missing."""
        known = self._codes[feature]
        if not len(codes) or not len(known):
            return len(codes)
        places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return int((known[places] != codes).sum())

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {str(place): codes for place, codes in enumerate(self._codes.values())}
        arrays[_NAMES] = np.array(list(self._codes), np.str_)
        np.savez(path, **arrays)

    @classmethod
    def load(cls, path: Path) -> "KnownValues":
        """Reads what ``save`` wrote.

        Raises:
            CtrkitError: the file is damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls({str(name): file[str(place)] for place, name in enumerate(file[_NAMES])})
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise CtrkitError(f"the bundle's file '{path}' is damaged: {error}", "Export the run again") from error


def codes_of(values: list[Any]) -> np.ndarray:
    """CRC-32s of texts as uint32, integers as int64."""
    if values and isinstance(values[0], str):
        return np.fromiter((zlib.crc32(value.encode()) for value in values), np.uint32, len(values))
    return np.array(values, np.int64)
