"""Is what is installed the set that works together? Named before anything is imported, with the command that mends it.

torch, torchrec and fbgemm are built for one another: 1.7 and 1.9 install silently and fail in the loader. Without CUDA the libraries
of fbgemm-gpu do not load either, and they overwrite those of fbgemm-gpu-cpu; ``docker/fbgemm-shim`` takes that name instead.
"""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from ctrkit.errors import CtrkitError

TRAIN_COMMAND = "pip install torch==2.13.0 ./docker/fbgemm-shim torchrec==1.8.0 '.[train]'"
GPU_COMMAND = "pip install torch==2.13.0 torchrec==1.8.0 '.[train]'"
SERVE_COMMAND = "pip install '.[serving]'"


@dataclass(frozen=True)
class Package:
    """A distribution ctrkit needs: one version exactly, or any from ``version`` on."""

    name: str
    version: str
    exact: bool = False

    def accepts(self, installed: str) -> bool:
        return _numbers(installed) == _numbers(self.version) if self.exact else _numbers(installed) >= _numbers(self.version)

    @property
    def wanted(self) -> str:
        return self.version if self.exact else f"{self.version} or later"


@dataclass(frozen=True)
class Finding:
    """What is installed of one package, and how to mend it if it is wrong (``remedy`` is then a command for ctrkit's folder)."""

    package: str
    installed: str | None
    wanted: str
    problem: str = ""
    remedy: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem


SERVING = (
    Package("onnxruntime", "1.24"),
    Package("polars", "2.0"),
    Package("pyarrow", "18"),
    Package("usearch", "2.26"),
    Package("fastapi", "0.115"),
    Package("uvicorn", "0.34"),
    Package("uvloop", "0.21"),
    Package("httptools", "0.6"),
    Package("prometheus-client", "0.21"),
)
TRAINING = (
    Package("torch", "2.13.0", exact=True),
    Package("torchrec", "1.8.0", exact=True),
    Package("onnx", "1.18"),
    Package("onnxscript", "0.5"),
    Package("polars-hash", "0.5"),
    Package("captum", "0.8"),
    Package("optuna", "5"),
    Package("scikit-learn", "1.8"),
    Package("scipy", "1.15"),
    Package("implicit", "0.7.3"),
    Package("lightgbm", "4.5"),
    Package("matplotlib", "3.9"),
    Package("tensorboard", "2.19"),
    Package("threadpoolctl", "3.5"),
)
Stack = Literal["training", "serving"]


def check(stack: Stack) -> list[Finding]:
    """Compares the installed versions with the tested set, from their metadata alone: some milliseconds, nothing is imported."""
    if stack == "serving":
        return [_check(package, SERVE_COMMAND) for package in SERVING]
    command = GPU_COMMAND if _has_cuda_driver() else TRAIN_COMMAND
    return [_check(package, command) for package in TRAINING] + [_check_fbgemm()] + check("serving")


def require_training_stack() -> None:
    """Raises CtrkitError, one line with its remedy, where training cannot work here."""
    _require(check("training"))


def require_serving_stack() -> None:
    """Raises CtrkitError, one line with its remedy, where serving cannot work here."""
    _require(check("serving"))


def try_imports(modules: Sequence[str]) -> str:
    """Imports them in a process of its own: the error's last line, or ``""`` when all load."""
    result = subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], capture_output=True, text=True, check=False)
    lines = result.stderr.strip().splitlines()
    return "" if result.returncode == 0 else (lines[-1] if lines else f"the interpreter died with exit status {result.returncode}")


def _require(findings: list[Finding]) -> None:
    for finding in findings:
        if not finding.ok:
            raise CtrkitError(finding.problem, f"Run in ctrkit's folder: {finding.remedy}")


def _check(package: Package, command: str) -> Finding:
    version = installed(package.name)
    if version is None:
        problem = f"{package.name} is not installed ({package.wanted} is needed)"
    elif not package.accepts(version):
        problem = f"{package.name} {version} is installed, but {package.wanted} is needed"
    else:
        return Finding(package.name, version, package.wanted)
    return Finding(package.name, version, package.wanted, problem, command)


def _check_fbgemm() -> Finding:
    """fbgemm's libraries: whose they are, their version, and whether they can load here."""
    cuda, cpu, wanted = installed("fbgemm-gpu"), installed("fbgemm-gpu-cpu"), "1.8.0"
    shim = cuda is not None and not _holds_code("fbgemm-gpu")
    name = "fbgemm-gpu" if cuda is not None and not shim else "fbgemm-gpu-cpu"
    version = cuda if name == "fbgemm-gpu" else cpu
    command = GPU_COMMAND if _has_cuda_driver() else TRAIN_COMMAND
    afresh = f"pip uninstall --yes fbgemm-gpu fbgemm-gpu-cpu && {command}"
    if version is None:
        return Finding("fbgemm", None, wanted, f"fbgemm is not installed ({wanted} is needed)", command)
    if _numbers(version) != _numbers(wanted):
        return Finding(name, version, wanted, f"{name} {version} is installed, but {wanted} is needed", command)
    if name == "fbgemm-gpu" and cpu is not None:
        return Finding(name, version, wanted, "fbgemm-gpu and fbgemm-gpu-cpu are both installed and overwrite each other's files", afresh)
    if name == "fbgemm-gpu" and not _has_cuda_driver():
        return Finding(name, version, wanted, "fbgemm-gpu is the CUDA build, and this machine has no CUDA driver", afresh)
    if damaged := _damaged(name):
        return Finding(name, version, wanted, f"{name} is damaged: {damaged} is not the file it installed", afresh)
    return Finding(name, version, wanted)


def installed(name: str) -> str | None:
    """The installed version of a distribution, None without it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _holds_code(name: str) -> bool:
    """Whether a distribution has any file besides its own metadata (the shim has none)."""
    files = metadata.distribution(name).files or []
    return any(not file.parts[0].endswith(".dist-info") for file in files)


def _damaged(name: str) -> str:
    """The first shared library whose size is not the recorded one, or ``""``."""
    for file in metadata.distribution(name).files or []:
        if file.suffix == ".so" and file.size is not None:
            path = Path(str(file.locate()))
            if not path.is_file() or path.stat().st_size != file.size:
                return file.name
    return ""


def _has_cuda_driver() -> bool:
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()


def _numbers(version: str) -> tuple[int, ...]:
    """``2.13.0+cpu`` -> (2, 13, 0): the release's numbers, without local and pre-release parts."""
    numbers: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
