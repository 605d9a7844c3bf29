"""Settings of all tests."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side and share the cores

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Every end of a process group collects garbage: it need not look through all that was imported, which takes longer than most tests."""
    gc.freeze()
