"""The models of a repository: loaded, looked after, exchanged while they answer."""

import logging
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from ctrkit.bundle import MANIFEST_FILE, TOWERS_FILE, Bundle, model_names, versions
from ctrkit.errors import CtrkitError, nearest
from ctrkit.retrieval.bundle import RetrievalBundle
from serving.compatible import check_features
from serving.items import Changes
from serving.journal import Journal
from serving.model import Served, State, open_version
from serving.problems import NotReady, UnknownModel, WrongKind
from serving.settings import ServingSettings
from serving.towers import ServedTowers, check_compatible, open_towers

log = logging.getLogger("ctrkit.serving")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
KINDS = (MANIFEST_FILE, TOWERS_FILE)
"""A version has one of these files: it scores, or it recommends."""

Version = Served | ServedTowers
Signature = tuple[tuple[str, int, int, int], ...]
"""Name, size, time of change and inode of a version's files: another one means other files."""


@dataclass(frozen=True)
class _Refusal:
    """A version that was not taken. It is tried again when its files have changed."""

    signature: Signature
    reason: str


@dataclass(frozen=True)
class _Model:
    """A model's versions; never changed, only replaced as a whole."""

    served: Mapping[int, Version] = field(default_factory=dict)
    signatures: Mapping[int, Signature] = field(default_factory=dict)
    refused: Mapping[int, _Refusal] = field(default_factory=dict)
    default: int | None = None


class Repository:
    """The newest versions of every model in ``<repo>/<name>/<version>/``.

    ``refresh`` runs in any thread; what it finds is put in place in one assignment, so that a request sees the old versions or the new
    ones. A version that is no longer served answers the requests that it has begun.

    Args:
        path: the repository.
        pool: where long runs of the models happen.
        tried: told of every version that is loaded or refused: the model's name and which of both.
    """

    def __init__(
        self, path: str | Path, pool: Executor, settings: ServingSettings, tried: Callable[[str, str], None] = lambda name, outcome: None
    ) -> None:
        self.path = Path(path)
        self._pool = pool
        self._settings = settings
        self._tried = tried
        self._models: dict[str, _Model] = {}
        self._changes: dict[str, Changes] = {}
        self._opening = threading.Lock()
        self._unloaded: set[str] = set()
        self._refreshing = threading.Lock()
        self._closing = threading.Event()
        self._state: NotReady | None = NotReady("the models are being loaded", "Ask again in a moment")

    def load(self) -> None:
        """The first ``refresh``.

        Raises:
            CtrkitError: no repository, or a model without a version that can be served.
        """
        try:
            self.refresh()
            if self._closing.is_set():
                return
            for what, to_be, name, version in self._settings.named_versions:
                if name not in self._models:
                    raise CtrkitError(f"no model '{name}' to {what}", nearest(name, list(self._models)))
                if version not in self._models[name].served:
                    why = _reasons(self._models[name]) or "the repository has none"
                    raise CtrkitError(f"the model '{name}' has no version {version} {to_be}: {why}")
                if what != "pin" and isinstance(self._models[name].served[version], ServedTowers):
                    raise CtrkitError(f"the model '{name}' recommends items: no version of it is there {to_be}", f"Take it out of {what}")
            for name, model in self._models.items():
                if model.default is None:
                    raise CtrkitError(f"the model '{name}' cannot be served: {_reasons(model)}")
        except CtrkitError as error:
            self._state = NotReady(error.problem, error.remedy)
            raise
        self._state = None

    def refresh(self) -> None:
        """Takes what has come, lets go of what has gone. A version that cannot be taken is logged once, the others stay.

        Raises:
            CtrkitError: no repository, or nothing in it.
        """
        with self._refreshing:
            names = [name for name in model_names(self.path, KINDS) if name not in self._unloaded]
            for name in names:
                self._put(name, self._examined(name, self._models.get(name, _Model())))
            for name in self._models.keys() - set(names):
                log.info("model gone", extra={"model": name})
                self._put(name, None)

    def load_model(self, name: str) -> None:
        """Looks at one model now, also if it was unloaded, and tries again what was refused.

        Raises:
            UnknownModel: the repository has no such model.
            CtrkitError: no version of it can be served.
        """
        with self._refreshing:
            if not NAME.fullmatch(name) or not versions(self.path / name, KINDS):
                raise UnknownModel(f"the repository has no model '{name[:100]}'")
            before = self._models.get(name, _Model())
            after = self._examined(name, _Model(before.served, before.signatures, {}, before.default))
            if after.default is None:
                raise CtrkitError(f"the model '{name}' cannot be loaded: {_reasons(after)}")
            self._unloaded.discard(name)
            self._put(name, after)

    def unload_model(self, name: str) -> None:
        """The model answers no more, until it is loaded again.

        Raises:
            UnknownModel: it does not answer now.
        """
        with self._refreshing:
            self._model(name)
            self._unloaded.add(name)
            self._put(name, None)
        log.info("model unloaded", extra={"model": name})

    def _put(self, name: str, model: _Model | None) -> None:
        others = {key: value for key, value in self._models.items() if key != name}
        self._models = others if model is None else {**others, name: model}

    def _examined(self, name: str, before: _Model) -> _Model:
        """The model as its folder has it now: versions that are new or have changed are loaded, the rest is kept."""
        there = versions(self.path / name, KINDS)
        pinned = self._settings.pin.get(name)
        wanted = {version for _, _, model, version in self._settings.named_versions if model == name}
        served: dict[int, Version] = {}
        signatures: dict[int, Signature] = {}
        refused: dict[int, _Refusal] = {}
        for version in reversed(there):
            if self._closing.is_set():
                return before
            if len(served) >= self._settings.live_versions and version not in wanted:
                continue
            signature = _signature(self.path / name / str(version))
            if before.signatures.get(version) == signature:
                served[version], signatures[version] = before.served[version], signature
            elif (known := before.refused.get(version)) is not None and known.signature == signature:
                refused[version] = known
                _keep(version, before, served, signatures)
            else:
                self._try(name, version, signature, before, served, signatures, refused)
        if pinned is not None and pinned not in there:
            refused[pinned] = _Refusal((), f"the repository has no version {pinned}, which the model is pinned to")
        default = pinned if pinned in served else max(served, default=None)
        if pinned is not None and default != pinned:
            default = before.default if before.default in served else None
        if default != before.default and default is not None:
            log.info("model serves", extra={"model": name, "version": default, "before": before.default})
        after = _Model(served, signatures, refused, default)
        if default is None and before.default is not None:
            log.error("model has no version to answer with", extra={"model": name, "before": before.default, "reason": _reasons(after)})
        return after

    def _try(
        self,
        name: str,
        version: int,
        signature: Signature,
        before: _Model,
        served: dict[int, Version],
        signatures: dict[int, Signature],
        refused: dict[int, _Refusal],
    ) -> None:
        """Loads one version into ``served``; or says in ``refused`` why not, and keeps what answered under this number."""
        try:
            now = before.served[before.default] if before.default is not None and version > before.default else None
            served[version] = self._opened(self.path / name / str(version), now)
            signatures[version] = signature
            self._tried(name, "loaded")
        except Exception as error:  # noqa: BLE001  whatever a file can do to a loader: the others must go on
            reason = str(error) if isinstance(error, CtrkitError) else f"{type(error).__name__}: {error}"
            log.error("version refused", extra={"model": name, "version": version, "reason": reason})
            refused[version] = _Refusal(signature, reason)
            self._tried(name, "refused")
            _keep(version, before, served, signatures)

    def _opened(self, folder: Path, now: Version | None) -> Version:
        """A version of either kind, ready to answer.

        Args:
            now: the version that it would follow.
        """
        threads = self._settings.threads
        bundle = open_towers(folder, threads) if (folder / TOWERS_FILE).is_file() else open_version(folder, threads)
        if now is not None:
            _check_follows(bundle, now)
        if isinstance(bundle, Bundle):
            return Served(bundle, self._pool, self._settings)
        towers = ServedTowers(bundle, self._settings)
        self.changes(towers.name).attach(towers)
        return towers

    def changes(self, name: str) -> Changes:
        """What clients changed of a model's items."""
        with self._opening:
            if name not in self._changes:
                journal = self._settings.journal
                kept = None if journal is None else Journal(journal / f"{name}.jsonl")
                self._changes[name] = Changes(self._settings.max_changed_items, kept)
            return self._changes[name]

    def require_ready(self) -> None:
        """Raises NotReady until ``load`` is done, with the reason if it failed, and after ``close``."""
        if self._state is not None:
            raise self._state

    def close(self) -> None:
        """Nothing is ready from now on, and no other version is loaded: the service ends."""
        self._closing.set()
        self._state = NotReady("the service is about to end", "Ask another one")

    def names(self) -> list[str]:
        self.require_ready()
        return sorted(self._models)

    def versions(self, name: str) -> list[int]:
        return sorted(self._model(name).served)

    def states(self, name: str | None = None) -> dict[str, list[State]]:
        """What the repository knows of each version, of all models or one; those that are refused with the reason."""
        models = self._models if name is None else {name: self._model(name)}
        known = {}
        for key, model in sorted(models.items()):
            answers = [State(version, "READY") for version in model.served if version not in model.refused]
            refused = [
                State(version, "READY" if version in model.served else "UNAVAILABLE", refusal.reason)
                for version, refusal in model.refused.items()
            ]
            known[key] = sorted([*answers, *refused], key=lambda state: state.version)
        return known

    def answering(self) -> list[tuple[str, int | None, list[Version]]]:
        """Each model's name, default version and all versions."""
        return [(name, model.default, list(model.served.values())) for name, model in self._models.items()]

    def served(self, name: str, version: str | None = None) -> Served:
        """A version of a model that scores, the default one unless named.

        Raises:
            UnknownModel: there is none.
            WrongKind: it recommends.
        """
        found = self.version(name, version)
        if isinstance(found, ServedTowers):
            raise WrongKind(f"the model '{name}' recommends items and scores no rows", f"Ask /v1/models/{name}:recommend")
        return found

    def towers(self, name: str, version: str | None = None) -> ServedTowers:
        """The same of a model that recommends."""
        found = self.version(name, version)
        if isinstance(found, Served):
            raise WrongKind(f"the model '{name}' scores rows and recommends no items", f"Ask /v1/models/{name}:score or :rank")
        return found

    def version(self, name: str, version: str | None = None) -> Version:
        """A version of a model of either kind, the default one unless named.

        Raises:
            UnknownModel: there is none.
        """
        model = self._model(name)
        if version is None:
            if model.default is None:
                raise UnknownModel(f"the model '{name}' has no version to answer with: {_reasons(model)}")
            return model.served[model.default]
        if not (version.isascii() and version.isdecimal()) or len(version) > 18 or int(version) not in model.served:
            known = ", ".join(str(number) for number in sorted(model.served))
            raise UnknownModel(f"no version '{version[:100]}' of the model '{name}'", f"Known: {known}")
        return model.served[int(version)]

    def default(self, name: str) -> Version | None:
        """The version that answers unless one is named; None while none of the model's can.

        Raises:
            UnknownModel: no such model.
        """
        model = self._model(name)
        return None if model.default is None else model.served[model.default]

    def live(self, name: str, version: int) -> Served | None:
        """A version that scores and answers now."""
        model = self._models.get(name)
        found = None if model is None else model.served.get(version)
        return found if isinstance(found, Served) else None

    def _model(self, name: str) -> _Model:
        self.require_ready()
        if name not in self._models:
            known = f"Known: {', '.join(sorted(self._models))}"
            close = nearest(name[:100], list(self._models))
            raise UnknownModel(f"no model '{name[:100]}'", known if close == known else f"{close} {known}")
        return self._models[name]


def _keep(version: int, before: _Model, served: dict[int, Version], signatures: dict[int, Signature]) -> None:
    """What answered under the number of a version that is refused goes on doing so."""
    if version in before.served:
        served[version], signatures[version] = before.served[version], before.signatures[version]


def _reasons(model: _Model) -> str:
    return "; ".join(refusal.reason for refusal in model.refused.values())


def _signature(folder: Path) -> Signature:
    try:
        files = [(entry.name, entry.stat()) for entry in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in files))


def _check_follows(bundle: Bundle | RetrievalBundle, now: Version) -> None:
    """Raises CtrkitError when requests that the model answers now would fail with the new version."""
    if isinstance(bundle, Bundle) and isinstance(now, Served):
        _check_compatible(bundle, now)
    elif isinstance(bundle, RetrievalBundle) and isinstance(now, ServedTowers):
        check_compatible(bundle, now.bundle)
    else:
        does = ("scores rows", "recommends items")
        new = does[isinstance(bundle, RetrievalBundle)]
        raise CtrkitError(
            f"version {bundle.manifest.version} {new}, and version {now.version} {does[isinstance(now, ServedTowers)]}",
            "Export it under another name",
        )


def _check_compatible(bundle: Bundle, now: Served) -> None:
    """Raises CtrkitError when requests that the model answers now would fail with the new version."""
    check_features(bundle.manifest.version, bundle.features, now.version, now.bundle.features)
    if bundle.tasks != now.bundle.tasks:
        raise CtrkitError(f"version {bundle.manifest.version} predicts other labels than version {now.version}", "Give it another name")


class Watcher:
    """Refreshes a repository again and again."""

    def __init__(self, repository: Repository, seconds: float) -> None:
        self._repository = repository
        self._seconds = seconds
        self._stop = threading.Event()

    def watch(self) -> None:
        """Until ``stop``, in the thread that calls."""
        while not self._stop.wait(self._seconds):
            try:
                self._repository.refresh()
            except (CtrkitError, OSError) as error:
                log.error("repository cannot be read", extra={"reason": str(error)})

    def stop(self) -> None:
        self._stop.set()
