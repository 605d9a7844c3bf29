"""One process as a group of its own: tables are TorchRec's even so."""

from collections.abc import Iterator

import pytest

from ctrkit.training.distributed import Worker, process_group


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with process_group() as worker:
        yield worker
