"""What a service allows."""

import os

from pydantic import Field

from ctrkit.schema import Settings


class ServingSettings(Settings):
    """Limits of one request, and threads."""

    max_rows: int = Field(default=10_000, ge=1, description="rows or candidates of one request")
    max_body_mb: float = Field(default=16, gt=0, description="size of one request's body")
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="requests scored at the same time; default all cores"
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one request")
