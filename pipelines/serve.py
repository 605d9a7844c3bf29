"""``ctrkit serve``: a model repository over HTTP."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.settings import ServingSettings


def serve(repo: str | Path, host: str = "127.0.0.1", port: int = 8000, settings: "ServingSettings | None" = None) -> None:
    """Serves until it is interrupted. All that is logged goes to stderr.

    Raises:
        CtrkitError: no repository, a damaged bundle, or a port that cannot be had.
    """
    from ctrkit.bundle import model_names
    from ctrkit.errors import CtrkitError
    from serving.app import create_app
    from serving.server import make_server
    from serving.settings import ServingSettings

    failures: list[CtrkitError] = []

    def stop(error: CtrkitError) -> None:
        failures.append(error)
        server.should_exit = True

    model_names(repo)
    settings = settings or ServingSettings()
    server = make_server(create_app(repo, settings, on_failure=stop), host, port, settings)
    try:
        server.run()
    except SystemExit as error:  # uvicorn's way to say that it could not start
        raise CtrkitError(f"the service could not start on {host}:{port}", "See the line above; another --port may be free") from error
    if failures:
        raise failures[0]
