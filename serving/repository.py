"""The models of a repository, loaded and ready to score."""

import threading
from pathlib import Path

from ctrkit.bundle import Bundle, model_names, open_bundle, versions
from ctrkit.errors import CtrkitError, nearest


class UnknownModel(CtrkitError):
    """No such model, or no such version of it: 404."""


class NotReady(CtrkitError):
    """Models are still being loaded, or could not be: 503."""


class Repository:
    """Every version of every model in ``<repo>/<name>/<version>/``.

    Args:
        path: the repository.
        threads: CPU threads of one request.
    """

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        self.path = Path(path)
        self._threads = threads
        self._models: dict[str, dict[int, Bundle]] = {}
        self._state = NotReady("the models are being loaded", "Ask again in a moment")
        self._ready = threading.Event()

    def load(self) -> None:
        """Checks every file and loads every model; what fails is kept as the reason of ``require_ready``.

        Raises:
            CtrkitError: no repository, or a bundle that is damaged.
        """
        try:
            models = {name: self._load_model(name) for name in model_names(self.path)}
        except CtrkitError as error:
            self._state = NotReady(error.problem, error.remedy)
            raise
        self._models = models
        self._ready.set()

    def _load_model(self, name: str) -> dict[int, Bundle]:
        bundles = {version: open_bundle(self.path / name / str(version), threads=self._threads) for version in versions(self.path / name)}
        for bundle in bundles.values():
            bundle.session  # noqa: B018  loads it
        return bundles

    def require_ready(self) -> None:
        """Raises NotReady until ``load`` is done, with the reason if it failed."""
        if not self._ready.is_set():
            raise self._state

    def names(self) -> list[str]:
        self.require_ready()
        return sorted(self._models)

    def versions(self, name: str) -> list[int]:
        return sorted(self._model(name))

    def bundle(self, name: str, version: str | None = None) -> Bundle:
        """A version of a model, the latest unless named.

        Raises:
            UnknownModel: there is none.
        """
        model = self._model(name)
        if version is None:
            return model[max(model)]
        if not version.isdecimal() or int(version) not in model:
            raise UnknownModel(f"no version '{version}' of the model '{name}'", f"Known: {', '.join(str(v) for v in sorted(model))}")
        return model[int(version)]

    def _model(self, name: str) -> dict[int, Bundle]:
        self.require_ready()
        if name not in self._models:
            known = f"Known: {', '.join(sorted(self._models))}"
            close = nearest(name, list(self._models))
            raise UnknownModel(f"no model '{name}'", known if close == known else f"{close} {known}")
        return self._models[name]
