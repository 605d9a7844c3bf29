"""What the OpenAPI document says and what the service does are one: Schemathesis asks what the document allows, and what it does not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from pipelines.bench.synthetic_towers import clustered, write_towers
from serving.settings import ServingSettings
from tests.handmade import make_bundle
from tests.serving.live import service

NAMES = {"name": ["clicks", "shop", "nobody"], "version": ["1", "7"]}
"""Else hardly a request would get past its 404."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repo: Path = tmp_path_factory.mktemp("repo")
    make_bundle(repo)
    write_towers(repo, "shop", 1, clustered(400, 8, 12, seed=3))
    with service(repo, ServingSettings(poll_s=0, access_log=False)) as address:
        yield address


@pytest.fixture(scope="module")
def document(address: str) -> dict[str, Any]:
    document = httpx.get(f"{address}/openapi.json").json()
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", []):
                if parameter["in"] == "path":
                    parameter["schema"] = {"type": "string", "enum": NAMES[parameter["name"]]}
    return document


@pytest.fixture(scope="module")
def api(address: str, document: dict[str, Any]) -> Any:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=address)
    return schema


BRIEF = settings(
    max_examples=5, phases=[Phase.explicit, Phase.generate], derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("mode", GenerationMode)
def test_the_document_says_what_the_service_does(api: Any, mode: GenerationMode) -> None:
    """Which features a model has is not in the document, so a body may fit it and yet be refused with a 4xx."""
    asked = set()
    for found in api.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters or operation.query):
            continue  # nothing that could be wrong

        @BRIEF
        @given(operation.as_strategy(generation_mode=mode))
        def check(case: schemathesis.Case) -> None:
            asked.add(case.operation.label)
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=20)

        check()
    assert {"POST /v1/models/{name}:score", "POST /v1/models/{name}:rank", "POST /v2/models/{name}/infer"} <= asked and len(asked) > 15


def test_an_answer_that_is_not_documented_is_found(address: str, document: dict[str, Any]) -> None:
    del document["paths"]["/v1/models/{name}"]["get"]["responses"]["404"]
    api = schemathesis.openapi.from_dict(document)
    api.config.update(base_url=address)
    case = api["/v1/models/{name}"]["GET"].Case(path_parameters={"name": "nobody"})
    with pytest.raises(FailureGroup) as raised:
        case.call_and_validate()
    assert [type(failure).__name__ for failure in raised.value.exceptions] == ["UndefinedStatusCode"]
