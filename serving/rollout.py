"""Which version answers a request that names none, and which one scores it in the shadow."""

from hashlib import blake2b

from serving.http import Scope, header
from serving.model import Served
from serving.repository import Repository
from serving.settings import ServingSettings

KEY_HEADER = b"x-split-key"
"""Requests with the same key get the same version: a user's, say. Without it the request's id decides."""


def place(name: str, key: bytes) -> float:
    """Where a key falls in [0, 1), for each model anew: evenly, and always in the same place."""
    digest = blake2b(key, digest_size=7, person=blake2b(name.encode(), digest_size=16).digest()).digest()
    return int.from_bytes(digest) / 2**56


class Rollout:
    """The settings ``split`` and ``shadow`` over the versions that are loaded now."""

    def __init__(self, repository: Repository, settings: ServingSettings) -> None:
        self._repository = repository
        self._split = {name: sorted(shares.items()) for name, shares in settings.split.items()}
        self._shadow = settings.shadow

    def asked(self, name: str, version: str | None, scope: Scope) -> Served:
        """The version that a request is for: the one that it names, else the one whose share it falls into.

        Raises:
            UnknownModel: there is none.
            WrongKind: it recommends.
        """
        if version is None and name in self._split:
            return self._answering(name, header(scope, KEY_HEADER).encode("latin-1") or scope["ctrkit.id"])
        return self._repository.served(name, version)

    def _answering(self, name: str, key: bytes) -> Served:
        """The version whose share the key falls into, the default one for the rest and when that version is not loaded.

        A share that grows keeps the keys it has.
        """
        at = place(name, key)
        for version, share in self._split[name]:
            at -= share
            if at < 0:
                return self._repository.live(name, version) or self._repository.served(name)
        return self._repository.served(name)

    def shadow(self, name: str) -> int | None:
        """The version that scores what others answer."""
        return self._shadow.get(name)

    def live(self, name: str, version: int) -> Served | None:
        return self._repository.live(name, version)

    def about(self, name: str) -> dict[str, object]:
        """The settings for a model, for those who look at it."""
        split = {"split": {str(version): share for version, share in self._split[name]}} if name in self._split else {}
        return {**split, **({"shadow": self._shadow[name]} if name in self._shadow else {})}
