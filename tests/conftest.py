"""Settings of all tests."""

import functools
import gc
import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side and share the cores

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Every end of a process group collects garbage: it need not look through all that was imported, which takes longer than most tests."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_operator_library() -> Iterator[None]:
    """Every ``torch.onnx.export`` parses the same five hundred operators anew, which takes longer than the export: parsed once."""
    from torch.onnx._internal.exporter import _registration

    registry = _registration.ONNXRegistry
    parsed = functools.cache(registry.from_torchlib)

    def copy_of_parsed(opset_version: int) -> _registration.ONNXRegistry:
        copy = registry()
        copy._opset_version = opset_version
        copy.functions = {target: list(found) for target, found in parsed(opset_version).functions.items()}
        return copy

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(registry, "from_torchlib", staticmethod(copy_of_parsed))
        yield
