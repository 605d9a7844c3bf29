"""What the images, the compose file and the manifests name is there: files, options, ports, metrics. Nothing is built here."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from serving.peers import together
from serving.settings import ServingSettings
from tests.handmade import make_bundle
from tests.serving.live import service, wait_until
from tests.serving.test_drift import drawn, write_profile
from tests.serving.test_workers import free_port

ROOT = Path(__file__).parents[2]
DOCKER, DEPLOY = ROOT / "docker", ROOT / "docs" / "deploy"
DOCKERFILES = ("serving.Dockerfile", "train.Dockerfile")


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, its text) of a Dockerfile, continued lines joined."""
    lines = [line for line in (DOCKER / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def of(name: str, instruction: str) -> list[str]:
    return [text for found, text in instructions(name) if found == instruction]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_is_built_in_stages_of_files_that_exist_and_is_not_root(name: str) -> None:
    assert len(of(name, "FROM")) == 2 and all(":" in base for base in of(name, "FROM"))
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for copied in of(name, "COPY"):
        *sources, _ = [word for word in copied.split() if not word.startswith("--")]
        if "--from=" in copied:
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(source == path or source.startswith(f"{path}/") for path in allowed), f"{source} is not sent to the build"
    after = [found for found, _ in instructions(name)]
    assert of(name, "USER") == ["10001:10001"] and after.index("USER") < after.index("ENTRYPOINT")
    assert "RUN" not in after[after.index("USER") :]
    extras = re.findall(r"'\.\[([\w,]+)\]'", " ".join(of(name, "RUN")))
    known = (ROOT / "pyproject.toml").read_text()
    assert extras and all(f"\n{extra} = [" in known for group in extras for extra in group.split(","))


def test_the_training_image_installs_what_setup_installs() -> None:
    runs = " ".join(of("train.Dockerfile", "RUN"))
    assert "torch==2.13.0 $shim torchrec==1.8.0" in runs and "cpu) shim=./docker/fbgemm-shim" in runs and "pip check" in runs
    assert "torch==2.13.0 $(SHIM) torchrec==1.8.0" in (ROOT / "Makefile").read_text()
    script = next(run for run in of("train.Dockerfile", "RUN") if "DEVICE" in run).partition("&&")[0]
    for device, shim in (("cpu", "./docker/fbgemm-shim"), ("gpu", "")):
        said = subprocess.run(["sh", "-euc", f'{script}; echo "$shim"'], env={"DEVICE": device}, capture_output=True, text=True, check=True)
        assert said.stdout.strip() == shim
    assert subprocess.run(["sh", "-euc", script], env={"DEVICE": "tpu"}, capture_output=True, check=False).returncode == 1


def test_the_serving_image_starts_and_its_health_check_passes(tmp_path: Path) -> None:
    """Its entry point and its health check, as they are but for the folder and the port."""
    make_bundle(tmp_path)
    port = str(free_port())
    entry = [sys.executable, "-m", "pipelines.cli", *json.loads(of("serving.Dockerfile", "ENTRYPOINT")[0])[1:]]
    entry = [{"/models": str(tmp_path), "8000": port}.get(word, word) for word in entry]
    assert port in entry and of("serving.Dockerfile", "EXPOSE") == ["8000"]
    check = json.loads(of("serving.Dockerfile", "HEALTHCHECK")[0].partition("CMD ")[2])
    check = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in check[1:])]
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0, "nobody is there yet"
    process = subprocess.Popen(entry, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: subprocess.run(check, capture_output=True, check=False).returncode == 0, 120)
    finally:
        process.terminate()
        process.wait()


def parsed(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def options() -> set[str]:
    from typer.main import get_command

    from pipelines.cli import app

    command: Any = get_command(app)
    return {option for parameter in command.commands["serve"].params for option in parameter.opts}


def test_compose_names_files_and_options_that_exist() -> None:
    (compose,) = parsed(DOCKER / "compose.yaml")
    serving = compose["services"]["serving"]
    assert (DOCKER / serving["build"]["context"] / serving["build"]["dockerfile"]).is_file()
    assert {word for word in serving["command"] if word.startswith("--")} <= options()
    assert serving["read_only"] and serving["volumes"][0].endswith(":/models:ro") and serving["ports"] == ["8000:8000"]
    assert float(serving["stop_grace_period"].removesuffix("s")) > ServingSettings().shutdown_s
    for name, about in compose["services"].items():
        for volume in about.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (DOCKER / source).is_dir(), f"{name}: {source}"
        if "image" in about and name != "serving":
            assert re.search(r":v?\d", about["image"]), "a version, not the latest"
    (prometheus,) = parsed(DOCKER / "prometheus" / "prometheus.yaml")
    assert all((DOCKER / "prometheus" / file).is_file() for file in prometheus["rule_files"])
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["serving:8000"]
    assert "--config.file=/etc/prometheus/prometheus.yaml" in compose["services"]["prometheus"]["command"]
    (dashboards,) = parsed(DOCKER / "grafana" / "provisioning" / "dashboards" / "ctrkit.yaml")
    assert f"./grafana{dashboards['providers'][0]['options']['path']}:/dashboards:ro" in compose["services"]["grafana"]["volumes"]
    (sources,) = parsed(DOCKER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"


def test_manifests_probe_paths_that_answer_and_are_not_root(exported: dict[str, set[str]], address: str) -> None:
    deployment, named, budget = parsed(DEPLOY / "kubernetes.yaml")
    (kserve,) = parsed(DEPLOY / "kserve.yaml")
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (predictor,) = kserve["spec"]["predictor"]["containers"]
    assert pod["metadata"]["labels"].items() >= deployment["spec"]["selector"]["matchLabels"].items()
    assert named["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and predictor["securityContext"]["runAsNonRoot"]
    assert pod["spec"]["securityContext"]["runAsUser"] == predictor["securityContext"]["runAsUser"] == 10001
    assert {word for word in [*container["args"], *predictor["command"]] if word.startswith("--")} <= options()
    assert container["args"][1].partition("=")[0] in ServingSettings.model_fields
    assert container["ports"][0]["containerPort"] == 8000 and str(predictor["ports"][0]["containerPort"]) in predictor["command"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert grace > ServingSettings().shutdown_s + float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    for one in (container, predictor):
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in one:
                assert httpx.get(address + one[probe]["httpGet"]["path"]).status_code == 200


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repo = tmp_path_factory.mktemp("repo")
    write_profile(make_bundle(repo), drawn(2000, 0))
    write_profile(make_bundle(repo, version=2), drawn(2000, 0))
    with service(repo, ServingSettings(poll_s=0, drift_min_rows=10, shadow={"clicks": 1})) as address:
        yield address


@pytest.fixture(scope="module")
def exported(address: str) -> dict[str, set[str]]:
    """Every sample that a service exports after some requests, as one of several workers, and its labels."""
    asked = [{"rows": drawn(50, 1)}, {"row": 1}]
    for body in asked:
        httpx.post(f"{address}/v1/models/clicks:score", json=body)

    def told() -> str:
        return httpx.get(f"{address}/metrics").text

    wait_until(lambda: 'outcome="scored"' in told() and "ctrkit_shadow_difference_bucket" in told())
    families = text_string_to_metric_families(together([told()]).decode())
    found: dict[str, set[str]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def expressions() -> list[str]:
    dashboard = json.loads((DOCKER / "grafana" / "dashboards" / "serving.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    shown += [variable["query"] for variable in dashboard["templating"]["list"]]
    (alerts,) = parsed(DOCKER / "prometheus" / "alerts.yaml")
    return shown + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("expression", expressions())
def test_every_query_names_metrics_and_labels_that_are_exported(expression: str, exported: dict[str, set[str]]) -> None:
    named = re.findall(r"\b(ctrkit_\w+)(?:\{([^}]*)\})?", expression)
    assert named or "up{" in expression
    own = {"instance", "job"}
    for metric, matchers in named:
        assert metric in exported, f"{metric} is not exported"
        for label in re.findall(r"(\w+)\s*(?:=~|!=|=|!~)", matchers):
            assert label in exported[metric] | own, f"{metric} has no label {label}"
        for grouped in re.findall(r"by \(([^)]*)\)", expression):
            assert set(grouped.replace(" ", "").split(",")) <= exported[metric] | own, f"{metric} has not all of {grouped}"
    assert expression.count("(") == expression.count(")")


def test_every_metric_is_on_the_dashboard_or_in_an_alert(exported: dict[str, set[str]]) -> None:
    asked = " ".join(expressions())
    families = {re.sub(r"_(bucket|count|sum|total|created)$", "", name) for name in exported if name.startswith("ctrkit_")}
    unseen = {family for family in families if family not in asked}
    assert not unseen, unseen


def test_alerts_have_summaries_whose_labels_exist() -> None:
    (alerts,) = parsed(DOCKER / "prometheus" / "alerts.yaml")
    documented = (DEPLOY / "README.md").read_text()
    for group in alerts["groups"]:
        for rule in group["rules"]:
            assert f"`{rule['alert']}`" in documented, "the page says what to look at"
            for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
                grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
                assert grouped is None or label in grouped[1].replace(" ", "").split(",")


def test_the_page_names_files_and_options_that_exist() -> None:
    text = (DEPLOY / "README.md").read_text()
    for file in re.findall(r"`(docker/[\w.]+)`", text):
        assert (ROOT / file).is_file()
    for file in re.findall(r"\]\(([\w.]+)\)", text):
        assert (DEPLOY / file).is_file()
    for option in re.findall(r"`(--[a-z]+) ", text):
        assert option in options() | {"--build-arg"}, option
    (recipe,) = re.findall(r"```\n(docker run.*?)```", text, re.DOTALL)
    assert "--model-repository=/models" in shlex.split(recipe.replace("\\\n", " "))
