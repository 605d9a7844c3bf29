"""The house's rules: who may import whom, what stays light, and what no committed file holds."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"ctrkit.errors", "ctrkit.schema", "ctrkit.config", "ctrkit.config_file", "ctrkit.config_errors", "ctrkit.quiet"}
"""The words everybody may use."""

MAY_IMPORT: dict[str, set[str]] = {
    "ctrkit": set(),
    "ctrkit.errors": set(),
    "ctrkit.quiet": set(),
    "ctrkit.doctor": set(),
    "ctrkit.client": set(),
    "ctrkit.schema": set(),
    "ctrkit.config": set(),
    "ctrkit.config_file": set(),
    "ctrkit.config_errors": set(),
    "ctrkit.transforms": set(),
    "ctrkit.feeds": set(),
    "ctrkit.known": set(),
    "ctrkit.drift": {"ctrkit.known"},
    "ctrkit.pieces": {"ctrkit.feeds"},
    "ctrkit.bundle": {"ctrkit.feeds", "ctrkit.known", "ctrkit.pieces"},
    "ctrkit.data": {"ctrkit.transforms", "ctrkit.drift", "ctrkit.known"},
    "ctrkit.embeddings": {"ctrkit.data.batch", "ctrkit.layers"},
    "ctrkit.layers": set(),
    "ctrkit.models": {"ctrkit.embeddings", "ctrkit.layers", "ctrkit.data.batch"},
    "ctrkit.selection": {"ctrkit.data"},
    "ctrkit.retrieval": {  # a way of its own from the log to a bundle: it uses the readers, tables, optimizers and the graph's writer
        "ctrkit.models",
        "ctrkit.layers",
        "ctrkit.embeddings",
        "ctrkit.transforms",
        "ctrkit.data",
        "ctrkit.training",
        "ctrkit.export",
        "ctrkit.bundle",
        "ctrkit.feeds",
    },
    "ctrkit.training": {"ctrkit.models", "ctrkit.embeddings", "ctrkit.data", "ctrkit.drift"},
    "ctrkit.export": {
        "ctrkit.models",
        "ctrkit.embeddings",
        "ctrkit.transforms",
        "ctrkit.bundle",
        "ctrkit.feeds",
        "ctrkit.known",
        "ctrkit.data.batch",
    },
    "ctrkit.explain": {
        "ctrkit.training",
        "ctrkit.export",
        "ctrkit.models",
        "ctrkit.layers",
        "ctrkit.transforms",
        "ctrkit.data",
        "ctrkit.feeds",
    },
    "ctrkit.companions": set(),
    "pipelines": {"ctrkit", "serving"},
    "serving": {"ctrkit.bundle", "ctrkit.feeds", "ctrkit.pieces", "ctrkit.drift", "ctrkit.retrieval.bundle", "ctrkit.retrieval.index"},
}
"""DESIGN.md's table: a room may import itself, the words above, and these rooms."""


def rooms(module: str) -> str:
    """``ctrkit.data.loader`` -> ``ctrkit.data``; ``pipelines.cli`` -> ``pipelines``."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "ctrkit" else parts[0]


def sources() -> list[Path]:
    return sorted(path for package in ("ctrkit", "pipelines", "serving") for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import of ours in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import: name the room"
            names = [node.module or ""]
            if node.module == "ctrkit":
                names = [
                    f"ctrkit.{alias.name}" if (ROOT / "ctrkit" / alias.name).exists() or module_file(alias.name) else "ctrkit"
                    for alias in node.names
                ]
        yield from ((node.lineno, name) for name in names if name.split(".")[0] in ("ctrkit", "pipelines", "serving"))


def module_file(name: str) -> bool:
    return (ROOT / "ctrkit" / f"{name}.py").exists()


def allowed(importer: str, imported: str) -> bool:
    room = rooms(importer)
    if rooms(imported) == room or imported == "ctrkit" or imported in BASE:
        return True
    return any(imported == granted or imported.startswith(f"{granted}.") for granted in MAY_IMPORT[room])


def test_imports_go_only_down_the_table() -> None:
    wrong = []
    for path in sources():
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert rooms(module) in MAY_IMPORT, f"{path}: a room that DESIGN.md does not have"
        wrong += [f"{path.relative_to(ROOT)}:{line} imports {name}" for line, name in imports(path) if not allowed(module, name)]
    assert not wrong, "\n".join(wrong)


def test_the_table_has_no_circles() -> None:
    def reach(room: str, seen: tuple[str, ...]) -> None:
        assert room not in seen, " -> ".join((*seen, room))
        for granted in MAY_IMPORT[rooms(room)] - {"ctrkit"}:
            if granted != "ctrkit.data.batch":
                reach(rooms(granted), (*seen, room))

    for room in MAY_IMPORT:
        reach(room, ())


def modules_after(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has loaded after ``code``."""
    program = f"import sys\n{code}\nprint('@', *sorted({{name.partition('.')[0] for name in sys.modules}}))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(result.stdout.rpartition("@")[2].split())


@pytest.mark.parametrize(
    "module", ["ctrkit", "ctrkit.schema", "ctrkit.config", "ctrkit.bundle", "ctrkit.client", "ctrkit.doctor", "serving", "pipelines.cli"]
)
def test_light_modules_stay_light(module: str) -> None:
    loaded = modules_after(f"import {module}")
    assert module.partition(".")[0] in loaded
    assert loaded.isdisjoint({"torch", "torchrec", "fbgemm_gpu", "onnx", "tensorboard", "matplotlib", "pandas"})


def test_the_service_and_the_scorer_never_load_torch() -> None:
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in (ROOT / "serving").rglob("*.py")]
    loaded = modules_after("\n".join(f"import {name}" for name in [*names, "pipelines.score", "pipelines.serve"]))
    assert "serving" in loaded
    assert loaded.isdisjoint({"torch", "torchrec", "fbgemm_gpu", "onnx"})


def test_help_imports_nothing_heavy() -> None:
    code = "sys.argv = ['ctrkit', '--help']\nfrom pipelines.cli import app\ntry:\n    app()\nexcept SystemExit as leaving:\n    assert not leaving.code"
    loaded = modules_after(code)
    assert "typer" in loaded
    assert loaded.isdisjoint({"torch", "polars", "onnxruntime", "numpy", "pyarrow", "fastapi", "pydantic", "yaml"})


def committed() -> list[Path]:
    """The tree's text files, as git knows them, or as they lie there in a copy without git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    kept = ("ctrkit", "pipelines", "serving", "tests", "configs", "docker", "docs", ".ci")
    found = [path for folder in kept for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [*found, ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]


HOSTS = (
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "download.pytorch" + ".org",
    "registry.npmjs" + ".org",
    "index-" + "url",
    "docker" + ".io",
)
MACHINE_PATH = re.compile(r"(?<![\w.}$/])/(?:work|home|root|Users|opt/(?:pypi|wheels))/")


def test_no_file_knows_a_machine_or_a_registry() -> None:
    files = committed()
    assert len(files) > 50
    wrong = []
    for path in files:
        try:
            text = path.read_text(encoding="utf8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line) and path != Path(__file__):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {MACHINE_PATH.search(line)}")
            wrong += [f"{path.relative_to(ROOT)}:{number}: {host}" for host in HOSTS if host in line]
    assert not wrong, "\n".join(wrong)


def test_the_machine_path_is_recognised() -> None:
    assert MACHINE_PATH.search("see /wor" + "k/data") and MACHINE_PATH.search("'/hom" + "e/me/x'")
    assert not MACHINE_PATH.search("a framework/data") and not MACHINE_PATH.search("../work/data")
