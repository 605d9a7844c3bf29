"""``ctrkit serve``: a model repository over HTTP."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.settings import ServingSettings


def serving_settings(
    key_file: Path | None,
    pin: Sequence[str],
    control: bool,
    cors: Sequence[str],
    others: Sequence[str],
    split: Sequence[str] = (),
    shadow: Sequence[str] = (),
    workers: int = 1,
    tls: tuple[Path | None, Path | None] = (None, None),
) -> "ServingSettings":
    """The command's options as settings.

    Args:
        pin: ``model=version``.
        others: ``key=value`` of any setting, the value in YAML.
        split: ``model=version:share``.
        shadow: ``model=version``.
        tls: certificate and key.

    Raises:
        CtrkitError: an option that says nothing, an unknown setting, a value that it cannot have.
    """
    import yaml
    from pydantic import ValidationError

    from ctrkit.errors import CtrkitError, nearest
    from serving.settings import ServingSettings

    chosen: dict[str, Any] = {"key_file": key_file, "control": control, "cors_origins": tuple(cors)}
    chosen |= {"workers": workers, "tls_cert": tls[0], "tls_key": tls[1]}
    chosen["pin"] = dict(_pair(text, "--pin", "MODEL=VERSION") for text in pin)
    chosen["split"] = {}
    for text in split:
        name, rest = _pair(text, "--split", "MODEL=VERSION:SHARE")
        version, share = _pair(rest, f"--split {name}=", "MODEL=VERSION:SHARE", ":")
        chosen["split"].setdefault(name, {})[version] = share
    chosen["shadow"] = dict(_pair(text, "--shadow", "MODEL=VERSION") for text in shadow)
    for text in others:
        key, value = _pair(text, "--set", "KEY=VALUE")
        if key not in ServingSettings.model_fields:
            raise CtrkitError(f"unknown setting '{key}'", nearest(key, list(ServingSettings.model_fields)))
        try:
            chosen[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise CtrkitError(f"--set {text}: the value is no YAML") from error
    try:
        return ServingSettings.model_validate(chosen)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # of several settings together
            raise CtrkitError(first["msg"].removeprefix("Value error, ")) from error
        raise CtrkitError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}, got {first['input']!r}") from error


def _pair(text: str, option: str, form: str, between: str = "=") -> tuple[str, str]:
    from ctrkit.errors import CtrkitError

    key, separator, value = text.partition(between)
    if not separator or not key:
        raise CtrkitError(f"{option} {text} is not {form}")
    return key, value


def serve_repository(repo: str | Path, host: str = "127.0.0.1", port: int = 8000, settings: "ServingSettings | None" = None) -> None:
    """Serves until it is interrupted. All that is logged goes to stderr.

    Raises:
        CtrkitError: no repository, a damaged bundle, a certificate that cannot be used, or a port that cannot be had.
    """
    from ctrkit.bundle import model_names
    from ctrkit.errors import CtrkitError
    from serving.app import create_app
    from serving.repository import KINDS
    from serving.server import make_server
    from serving.settings import ServingSettings
    from serving.tls import check_certificate
    from serving.workers import serve_with_workers

    failures: list[CtrkitError] = []

    def stop(error: CtrkitError) -> None:
        failures.append(error)
        server.should_exit = True

    model_names(repo, KINDS)
    settings = settings or ServingSettings()
    check_certificate(settings)
    if settings.workers > 1:
        return serve_with_workers(Path(repo), host, port, settings)
    server = make_server(create_app(repo, settings, on_failure=stop), host, port, settings)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way to say that it could not start
        raise CtrkitError(f"the service could not start on {host}:{port}", "See the line above; another --port may be free") from error
    if failures:
        raise failures[0]
