"""What a service allows, watches and tells."""

import os
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from ctrkit.schema import Settings
from serving.wire.ask import Limits


class ServingSettings(Settings):
    """Limits of a request, what is served, who may ask."""

    max_rows: int = Field(default=10_000, ge=1, description="rows or candidates of one request; more is a 413")
    max_body_mb: float = Field(default=16, gt=0, description="size of one request's body; more is a 413")
    max_depth: int = Field(default=16, ge=4, description="lists and objects inside one another in a JSON body")
    timeout_s: float = Field(default=30, gt=0, description="time of one request, its body's arrival included")
    max_in_flight: int = Field(default=256, ge=1, description="requests of one model at a time; more are told to come back with 429")
    workers: int = Field(default=1, ge=1, le=256, description="processes that answer, each with the models loaded")
    runs: int = Field(
        default_factory=lambda given: max(1, (os.cpu_count() or 1) // given.get("workers", 1)),
        ge=1,
        description="runs of the graph beside a worker's event loop; default its share of the cores",
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
    split: dict[str, dict[int, float]] = Field(
        default_factory=dict, description="model -> version -> its share of the requests that name none; the rest is the default's"
    )
    shadow: dict[str, int] = Field(default_factory=dict, description="model -> version that scores, unseen, what others have answered")
    shadow_rows: int = Field(default=20_000, ge=1, description="rows that wait for shadows; what comes beyond is let go")
    drift_rows: int = Field(default=50_000, ge=1, description="rows of the sliding window that is compared with the training data")
    drift_min_rows: int = Field(default=1_000, ge=1, description="with fewer rows in that window nothing is told of drift")
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
    tls_cert: Path | None = Field(default=None, description="PEM file with the certificate and its chain: answer HTTPS")
    tls_key: Path | None = Field(default=None, description="PEM file with the certificate's key, without a password")
    cors_origins: tuple[str, ...] = Field(default=(), description="web origins whose pages may ask; default none")
    tracing: bool = Field(default=False, description="OpenTelemetry spans, sent where the environment's OTEL_EXPORTER_OTLP_* say")
    access_log: bool = Field(default=True, description="one JSON line a request on stderr")

    @field_validator("split")
    @classmethod
    def _are_shares(cls, split: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
        for name, shares in split.items():
            if not all(0 < share <= 1 for share in shares.values()) or sum(shares.values()) > 1:
                raise ValueError(f"the shares of '{name}' must lie above 0 and add up to 1 at most")
        return split

    @model_validator(mode="after")
    def _one_worker_is_controlled(self) -> "ServingSettings":
        if self.control and self.workers > 1:
            raise ValueError("control: a client's load or unload would reach one of several workers: serve with one, or without control")
        return self

    @property
    def named_versions(self) -> list[tuple[str, str, str, int]]:
        """Versions that must be loaded however old: what for, in two ways, the model and the version."""
        pinned = [("pin", "to be pinned to", name, version) for name, version in self.pin.items()]
        split = [("split", "to take a share", name, version) for name, shares in self.split.items() for version in shares]
        return [*pinned, *split, *(("shadow", "to score in the shadow", name, version) for name, version in self.shadow.items())]

    @property
    def limits(self) -> Limits:
        return Limits(rows=self.max_rows, depth=self.max_depth, bytes=int(self.max_body_mb * 2**20))
