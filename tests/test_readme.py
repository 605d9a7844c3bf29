"""Runs the README, and as a slow test the guides after it: every command of their ``bash`` blocks, in order, in an empty folder."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ctrkit.models.registry import models

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
GUIDES = {path.name: path.read_text(encoding="utf8") for path in sorted((ROOT / "docs").glob("*.md"))}
ALL = "\n".join([README, *GUIDES.values()])
BIN = Path(sys.executable).parent


def blocks(text: str) -> list[tuple[str, str]]:
    """Language and body of each."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    """The commands of the bash blocks; a trailing backslash joins lines, comments are dropped."""
    text = "".join(body for language, body in blocks(text) if language == "bash").replace("\\\n", " ")
    return [line for line in (re.sub(r"\s+# .*", "", line).strip() for line in text.splitlines()) if line]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder with the documents' YAML under the name that the text before it gives."""
    for before, body in re.findall(r"`([\w-]+\.yaml)`[^`]*\n\n```yaml\n(.*?)^```", ALL, re.MULTILINE | re.DOTALL):
        (tmp_path / before).write_text(body, encoding="utf8")
    return tmp_path


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def services() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.terminate()
        process.wait()


JOURNEY = {"validate", "train", "evaluate", "explain", "export", "score", "serve"}


@pytest.mark.parametrize(
    ("text", "verbs"),
    [(README, JOURNEY), pytest.param(ALL, JOURNEY | {"tune", "index"}, marks=pytest.mark.slow)],
    ids=["README", "README and guides"],
)
def test_every_command_runs(
    text: str, verbs: set[str], folder: Path, port: int, environment: dict[str, str], services: list[subprocess.Popen[str]]
) -> None:
    ran = set()
    for command in commands(text):
        command = command.replace("8000", str(port))
        verb = shlex.split(command)[0]
        if verb == "make":
            run(f"make --dry-run {command.removeprefix('make ')}", ROOT, environment)
        elif verb == "source":
            assert shlex.split(command) == ["source", ".venv/bin/activate"]
        elif command.startswith("ctrkit serve "):
            services.append(subprocess.Popen(shlex.split(command), cwd=folder, env=environment, stdout=subprocess.DEVNULL, text=True))
            wait_until_ready(port, services[-1])
        elif verb == "curl":
            (probability,) = answer(command, folder, environment)["probabilities"]
            assert 0 < probability < 1
        else:
            assert verb in ("ctrkit", "torchrun"), f"no test knows how to run: {command}"
            run(command, folder, environment)
        ran.add(" ".join(shlex.split(command)[: 2 if verb != "curl" else 1]))
    assert ran >= {"curl", "make demo", "make test", *(f"ctrkit {verb}" for verb in verbs)}


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    result = subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def wait_until_ready(port: int, process: subprocess.Popen[str]) -> None:
    for _ in range(600):
        assert process.poll() is None, "the service died"
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("the service did not get ready in a minute")


def answer(command: str, folder: Path, environment: dict[str, str]) -> dict[str, list[float]]:
    """What the README's curl gets; without curl on this machine the same body is sent by httpx."""
    if shutil.which("curl"):
        import json

        return json.loads(run(command, folder, environment))
    words = shlex.split(command)
    url = next(word for word in words if word.startswith("http"))
    header, body = words[words.index("-H") + 1], words[words.index("-d") + 1]
    name, _, value = header.partition(": ")
    response = httpx.post(url, content=body, headers={name: value})
    assert response.status_code == 200, response.text
    return response.json()


def test_the_first_config_is_short() -> None:
    config = next(body for language, body in blocks(README) if language == "yaml")
    assert len(config.splitlines()) < 20


def test_the_table_of_models_is_complete() -> None:
    for model in models():
        assert f"| `{model.name}` | {model.paper} |" in GUIDES["models.md"]
    assert f"the {len(models())} models" in README


def test_the_table_of_settings_names_only_what_there_is() -> None:
    from ctrkit.config import Data, Embedding, Experiment, Export, Split, Training
    from ctrkit.schema import Feature

    known = {name for group in (Experiment, Data, Split, Feature, Embedding, Training, Export) for name in group.model_fields}
    table = re.search(r"\| key \| what.*?\n\n", GUIDES["config.md"], re.DOTALL)
    assert table
    keys = [key for row in table[0].splitlines()[2:] if row for key in re.findall(r"`([\w.\[\]]+)`", row.split("|")[1])]
    assert len(keys) > 10
    for key in keys:
        assert key.strip(".").removesuffix("[]").split(".")[-1] in known, key


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_link_leads_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", document.read_text(encoding="utf8")):
        linked = document.parent / target if target else document
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], anchor


@pytest.mark.parametrize("target", ["setup", "demo", "test", "test-slow", "lint", "format"])
def test_the_makefile_has_every_target(target: str, environment: dict[str, str]) -> None:
    said = run(f"make --dry-run --always-make {target}", ROOT, environment)
    assert "torch==2.13.0 ./docker/fbgemm-shim torchrec==1.8.0" in said
    assert said.index("torch==2.13.0") < said.index(".[dev]") < said.index("pip check")


def test_a_gpu_install_leaves_the_shim_out(environment: dict[str, str]) -> None:
    said = run("GPU=1 make --dry-run --always-make setup", ROOT, environment)
    assert "fbgemm-shim" not in said
    assert "torch==2.13.0" in said and "torchrec==1.8.0" in said


@pytest.mark.slow
def test_the_serving_install_scores_and_serves_without_torch(folder: Path, port: int, services: list[subprocess.Popen[str]]) -> None:
    """``pip install '.[serving]'`` in a fresh environment, on a bundle written by this one."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    run("ctrkit data simulate --rows 3000 --format csv --out clicks", folder, environment)
    run("ctrkit train clicks.yaml --set training.epochs=1 && ctrkit export out/runs/clicks-autoint-1 --to repo", folder, environment)
    run(f"{sys.executable} -m venv fresh && fresh/bin/pip install --quiet '{ROOT}[serving]'", folder, environment)
    assert "torch" not in run("fresh/bin/pip list", folder, environment)
    clean = {**os.environ, "PATH": f"{folder / 'fresh/bin'}{os.pathsep}{os.environ['PATH']}"}
    run("ctrkit score repo/clicks/1 clicks/part-00000.csv --output predictions.parquet && ctrkit doctor", folder, clean)
    command = ["fresh/bin/ctrkit", "serve", "repo", "--port", str(port)]
    services.append(subprocess.Popen(command, cwd=folder, env=clean, stdout=subprocess.DEVNULL, text=True))
    wait_until_ready(port, services[-1])
    response = httpx.post(f"http://127.0.0.1:{port}/v1/models/clicks:score", json={"rows": [{"user_id": "u1"}, {}]})
    assert len(response.json()["probabilities"]) == 2
