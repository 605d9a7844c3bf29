"""What is installed is judged from metadata alone, so the tests write the metadata of a site-packages of their own."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ctrkit.doctor import GPU_COMMAND, SERVING, TRAIN_COMMAND, TRAINING, check, require_serving_stack, require_training_stack, try_imports

ROOT = Path(__file__).parents[1]
TESTED = {
    "torch": "2.13.0+cpu",
    "torchrec": "1.8.0",
    "fbgemm-gpu": "1.8.0",
    "fbgemm-gpu-cpu": "1.8.0",
    "onnx": "1.18.0",
    "onnxscript": "0.5.0",
    "polars-hash": "0.5.0",
    "captum": "0.8.0",
    "optuna": "5.0.0",
    "scikit-learn": "1.8.0",
    "scipy": "1.15.0",
    "onnxruntime": "1.24.0",
    "polars": "2.0.0",
    "pyarrow": "18.0.0",
    "fastapi": "0.115.0",
    "uvicorn": "0.34.0",
    "uvloop": "0.21.0",
    "httptools": "0.6.0",
    "prometheus-client": "0.21.0",
    "usearch": "2.26.0",
    "implicit": "0.7.3",
    "lightgbm": "4.5.0",
    "matplotlib": "3.9.0",
    "tensorboard": "2.19.0",
    "threadpoolctl": "3.5.0",
}
PROBE = """
from ctrkit.errors import CtrkitError
from ctrkit import doctor
try:
    getattr(doctor, "require_{stack}_stack")()
except CtrkitError as error:
    print(error)
"""


def site(folder: Path, versions: dict[str, str], libraries: dict[str, bytes] | None = None, cut: bool = False) -> Path:
    """A site-packages that holds only metadata, and the shared libraries of the distributions named in ``libraries``."""
    for name, version in versions.items():
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        record = [f"{info.name}/METADATA,,"]
        if name in (libraries or {}):
            library = folder / "fbgemm_gpu" / "fbgemm_gpu_py.so"
            library.parent.mkdir(exist_ok=True)
            content = (libraries or {})[name]
            library.write_bytes(content[:-1] if cut else content)
            record.append(f"fbgemm_gpu/{library.name},,{len(content)}")
        (info / "RECORD").write_text("\n".join(record) + "\n")
    return folder


def verdict(folder: Path, stack: str = "training") -> str:
    """What ``require_*_stack`` says where only ``folder`` is installed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-S", "-c", PROBE.replace("{stack}", stack)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=True)
    assert result.stderr == ""
    return result.stdout.strip()


def test_the_running_environment_is_the_tested_set() -> None:
    require_training_stack()
    require_serving_stack()
    assert all(finding.ok for finding in check("training"))


def test_the_tested_set_with_the_shim_is_accepted(tmp_path: Path) -> None:
    assert verdict(site(tmp_path, TESTED, {"fbgemm-gpu-cpu": b"library"})) == ""


@pytest.mark.parametrize(
    ("package", "version", "expected"),
    [
        ("torch", "2.12.1", "torch 2.12.1 is installed, but 2.13.0 is needed"),
        ("torch", "2.13.1", "torch 2.13.1 is installed, but 2.13.0 is needed"),
        ("torchrec", "1.7.0", "torchrec 1.7.0 is installed, but 1.8.0 is needed"),
        ("torchrec", "1.9.0a0", "torchrec 1.9.0a0 is installed, but 1.8.0 is needed"),
        ("fbgemm-gpu-cpu", "1.9.0", "fbgemm-gpu-cpu 1.9.0 is installed, but 1.8.0 is needed"),
        ("onnxruntime", "1.9.2", "onnxruntime 1.9.2 is installed, but 1.24 or later is needed"),
        ("polars", "1.38.0", "polars 1.38.0 is installed, but 2.0 or later is needed"),
    ],
)
def test_a_wrong_version_is_one_line_with_the_command(tmp_path: Path, package: str, version: str, expected: str) -> None:
    said = verdict(site(tmp_path, {**TESTED, package: version}, {"fbgemm-gpu-cpu": b"library"}))
    assert said.startswith(expected)
    assert "pip install" in said
    assert "\n" not in said


@pytest.mark.parametrize("version", ["1.24.0", "1.24.0rc1", "2.0", "1.100.3"])
def test_later_versions_are_accepted(tmp_path: Path, version: str) -> None:
    assert verdict(site(tmp_path, {**TESTED, "onnxruntime": version}), "serving") == ""


@pytest.mark.parametrize("package", ["torch", "torchrec", "onnx", "polars-hash", "pyarrow"])
def test_a_missing_package_is_named(tmp_path: Path, package: str) -> None:
    versions = {name: version for name, version in TESTED.items() if name != package}
    assert verdict(site(tmp_path, versions, {"fbgemm-gpu-cpu": b"library"})).startswith(f"{package} is not installed")


def test_serving_needs_no_torch(tmp_path: Path) -> None:
    serving = [package.name for package in SERVING]
    folder = site(tmp_path, {name: TESTED[name] for name in serving})
    assert verdict(folder, "serving") == ""
    assert verdict(folder, "training").startswith("torch is not installed")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="a CUDA driver is present: the CUDA build is right here")
def test_the_cuda_build_without_a_driver_is_named(tmp_path: Path) -> None:
    versions = {name: version for name, version in TESTED.items() if name != "fbgemm-gpu-cpu"}
    said = verdict(site(tmp_path, versions, {"fbgemm-gpu": b"cuda"}))
    assert "no CUDA driver" in said
    assert "./docker/fbgemm-shim" in said


def test_both_builds_of_fbgemm_overwrite_each_other(tmp_path: Path) -> None:
    said = verdict(site(tmp_path, TESTED, {"fbgemm-gpu-cpu": b"library", "fbgemm-gpu": b"cuda"}))
    assert "overwrite each other's files" in said
    assert "pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu && pip install" in said


def test_an_overwritten_library_is_named(tmp_path: Path) -> None:
    said = verdict(site(tmp_path, TESTED, {"fbgemm-gpu-cpu": b"library"}, cut=True))
    assert "fbgemm_gpu_py.so is not the file it installed" in said


def test_the_cpu_build_alone_is_missing(tmp_path: Path) -> None:
    versions = {name: version for name, version in TESTED.items() if not name.startswith("fbgemm")}
    assert verdict(site(tmp_path, versions)).startswith("fbgemm is not installed")


def test_a_loader_failure_is_its_last_line() -> None:
    assert try_imports(["json", "math"]) == ""
    assert try_imports(["no_such_module"]) == "ModuleNotFoundError: No module named 'no_such_module'"


def test_a_mismatch_stops_a_verb_before_anything_is_imported(tmp_path: Path) -> None:
    """``torch`` here is only metadata of a wrong version: importing it would be a ModuleNotFoundError or the real one."""
    site(tmp_path, {"torch": "2.14.0"})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "pipelines.cli", "train", "nothing.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert "torch 2.14.0 is installed, but 2.13.0 is needed" in result.stderr


def test_versions_and_remedies_agree_with_pyproject_and_the_makefile() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = {f"{package.name}{'==' if package.exact else '>='}{package.version}" for package in (*TRAINING, *SERVING)}
    assert wanted == {*extras["serving"], *extras["train"]} - {"ctrkit[serving]"}
    makefile = (ROOT / "Makefile").read_text()
    for pin in (requirement for requirement in extras["train"] if "==" in requirement):
        assert pin in TRAIN_COMMAND and pin in GPU_COMMAND and pin in makefile
    assert "fbgemm-shim" in TRAIN_COMMAND and "fbgemm-shim" not in GPU_COMMAND
