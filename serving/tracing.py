"""A span a request with one for each stage of a prediction below it, for whatever collects OpenTelemetry's traces.

Where they go and how many are kept is OpenTelemetry's own to say: ``OTEL_EXPORTER_OTLP_ENDPOINT``, ``OTEL_TRACES_SAMPLER``, ``OTEL_SERVICE_NAME``
and the like, https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/. A span holds what the log's line holds: no
feature's value.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ctrkit.errors import CtrkitError
from serving.http import Scope
from serving.metrics import STAGES, route_of

STAGES_KEY = "ctrkit.stages"
"""Where a request's scope has the seconds of each of ``STAGES``, once it is answered."""


class Tracer:
    """Makes the spans of requests that have ended; a thread of OpenTelemetry's sends them.

    Args:
        exporter: where spans go, an OpenTelemetry ``SpanExporter``.
    """

    def __init__(self, exporter: Any) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "ctrkit"})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ctrkit.serving")
        self._propagator = TraceContextTextMapPropagator()
        self._kind, self._failed = SpanKind.SERVER, Status(StatusCode.ERROR)

    def request(self, scope: Scope, request_id: bytes, status: int, seconds: float, told: Mapping[str, Any]) -> None:
        """A request that has just ended.

        Args:
            scope: with the caller's ``traceparent`` header, if it sent one.
            seconds: it took.
            told: what the log's line has of it.
        """
        from opentelemetry.trace import set_span_in_context

        carried = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"] if name in (b"traceparent", b"tracestate")
        }
        ended = time.time_ns()
        attributes = {
            "http.request.method": scope["method"],
            "http.response.status_code": status,
            "url.path": scope["path"][:200],
            "ctrkit.request_id": request_id.decode(),
            **{f"ctrkit.{name}": value for name, value in told.items()},
        }
        span = self._tracer.start_span(
            f"{scope['method']} {route_of(scope['path'])}",
            context=self._propagator.extract(carried),
            kind=self._kind,
            attributes=attributes,
            start_time=ended - round(1e9 * seconds),
        )
        if span.is_recording():
            self._stages(set_span_in_context(span), scope.get(STAGES_KEY, ()), ended)
        if status >= 500:
            span.set_status(self._failed)
        span.end(ended)

    def _stages(self, context: Any, seconds: Sequence[float], ended: int) -> None:
        if not seconds:
            return
        *stages, total = zip(STAGES, seconds, strict=True)
        start = ended - round(1e9 * total[1])
        for name, spent in stages:
            end = min(start + round(1e9 * spent), ended)
            self._tracer.start_span(name, context=context, start_time=start).end(end)
            start = end

    def close(self) -> None:
        """Sends what waits."""
        self._provider.shutdown()


def open_tracer() -> Tracer:
    """Sends spans as the environment's ``OTEL_EXPORTER_OTLP_*`` say.

    Raises:
        CtrkitError: OpenTelemetry is not installed.
    """
    try:
        return Tracer(otlp_exporter())
    except ImportError as error:
        raise CtrkitError("tracing needs OpenTelemetry, which is not installed", "pip install '.[otel]'") from error


def otlp_exporter() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
