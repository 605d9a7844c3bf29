"""Settings of all tests."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side and share the cores

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
