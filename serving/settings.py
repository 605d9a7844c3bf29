"""What a service allows, watches and tells."""

import os
from pathlib import Path

from pydantic import Field

from ctrkit.schema import Settings
from serving.wire.ask import Limits


class ServingSettings(Settings):
    """Limits of a request, what is served, who may ask."""

    max_rows: int = Field(default=10_000, ge=1, description="rows or candidates of one request; more is a 413")
    max_body_mb: float = Field(default=16, gt=0, description="size of one request's body; more is a 413")
    max_depth: int = Field(default=16, ge=4, description="lists and objects inside one another in a JSON body")
    timeout_s: float = Field(default=30, gt=0, description="time of one request, its body's arrival included")
    max_in_flight: int = Field(default=256, ge=1, description="requests of one model at a time; more are told to come back with 429")
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="runs of the graph beside the event loop; default all cores"
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one run of the graph")
    batch_rows: int | None = Field(
        default=None, ge=1, description="requests that wait are joined up to so many rows; 1: never; default what warm-up finds best"
    )
    inline_ms: float = Field(
        default=2, ge=0, description="runs that warm-up found shorter stay on the event loop: the way to a thread and back costs more"
    )
    live_versions: int = Field(default=2, ge=1, description="the newest so many versions of a model are loaded")
    pin: dict[str, int] = Field(default_factory=dict, description="model -> version that answers unless one is named; default the latest")
    max_changed_items: int = Field(
        default=100_000, ge=0, description="items of one model that clients may add, change and remove until the service restarts"
    )
    journal: Path | None = Field(
        default=None, description="folder where changes of items are kept over restarts and shared by processes; default in memory alone"
    )
    poll_s: float = Field(default=5, ge=0, description="how often the repository is looked at for new versions; 0: never")
    control: bool = Field(default=False, description="whether clients may load and unload models: /v2/repository/models/<name>/load")
    shutdown_s: float = Field(default=30, gt=0, description="how long a service that ends waits for requests in flight")
    key_file: Path | None = Field(default=None, description="API keys, one a line; CTRKIT_API_KEYS holds more; without any, none is needed")
    cors_origins: tuple[str, ...] = Field(default=(), description="web origins whose pages may ask; default none")
    access_log: bool = Field(default=True, description="one JSON line a request on stderr")

    @property
    def limits(self) -> Limits:
        return Limits(rows=self.max_rows, depth=self.max_depth, bytes=int(self.max_body_mb * 2**20))
