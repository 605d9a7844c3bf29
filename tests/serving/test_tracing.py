"""Spans of requests, with their stages, and nothing of the rows in them."""

import sys
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ctrkit.errors import CtrkitError
from serving import tracing
from serving.app import create_app
from serving.settings import ServingSettings
from tests.handmade import make_bundle
from tests.serving.live import service

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_request_is_a_span_with_its_stages_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "otlp_exporter", lambda: exporter)
    make_bundle(tmp_path)
    sent = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine-1"}
    with service(tmp_path, ServingSettings(poll_s=0, tracing=True)) as address:
        path = f"{address}/v1/models/clicks:score"
        assert httpx.post(path, json={"rows": [{"user": "stranger"}]}, headers=sent).status_code == 200
        assert httpx.post(path, json={"rows": [{"user": 1.5}]}).status_code == 422
    spans = exporter.get_finished_spans()  # the service has ended, and sent them
    (answered,) = (span for span in spans if (span.attributes or {}).get("ctrkit.request_id") == "mine-1")
    about = dict(answered.attributes or {})
    assert answered.name == "POST score" and about["http.response.status_code"] == 200
    assert (about["ctrkit.model"], about["ctrkit.version"], about["ctrkit.rows"]) == ("clicks", 1, 1)
    assert f"{answered.context.trace_id:032x}" == TRACE and answered.parent is not None and f"{answered.parent.span_id:016x}" == PARENT
    assert answered.resource.attributes["service.name"] == "ctrkit"
    below = [span for span in spans if span.parent is not None and span.parent.span_id == answered.context.span_id]
    assert [span.name for span in below] == ["read", "parse", "queue", "run", "answer"]
    times = [time for span in below for time in (span.start_time, span.end_time)]
    assert times == sorted(times) and answered.start_time <= times[0] and times[-1] <= answered.end_time
    (refused,) = (span for span in spans if (span.attributes or {}).get("ctrkit.refused"))
    assert (refused.attributes or {})["http.response.status_code"] == 422
    assert "stranger" not in " ".join(span.to_json() for span in spans)


def test_without_the_library_tracing_is_refused_and_off_it_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    create_app(tmp_path, ServingSettings())
    with pytest.raises(CtrkitError, match="not installed"):
        create_app(tmp_path, ServingSettings(tracing=True))
