"""OpenTelemetry: one span per request, and beneath it one per tier that was asked, named as the GenAI conventions say.

The conventions (opentelemetry.io/docs/specs/semconv/gen-ai, of semantic conventions 1.41) are "Development" still, so
their names stand in this file and nowhere else; what they have no word for begins with `confidence_gateway.`. Spans
carry numbers, names and our own words. Neither prompts nor answers are in them, whatever is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.nouns import Ask, Hop
from gateway.store.story import Story

SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
OURS = "confidence_gateway"
CARRIED = ("traceparent", "tracestate")  # W3C Trace Context, the headers of a client's own trace
NANO = 1_000_000_000


class Traces:
    """The spans of one process, and the way to where they are sent. share: of the requests that are traced, where the
    client has not decided that already."""

    def __init__(self, exporter: SpanExporter, service: str, share: float) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("confidence-gateway", schema_url=SCHEMA)
        self._context = TraceContextTextMapPropagator()

    def begin(self, path: str, headers: Mapping[str, str], story: Story) -> None:
        """Open the span of a request that has just come, a child of the client's where it sent one."""
        carried = {name: headers[name] for name in CARRIED if name in headers}
        told: dict[str, str] = {}
        story.span = self._tracer.start_span(
            f"POST {path}",
            context=self._context.extract(carried),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": "POST", "http.route": path, "url.path": path},
            start_time=int(story.at * NANO),
        )
        self._context.inject(told, set_span_in_context(story.span))
        story.traceparent = told["traceparent"]

    def end(self, story: Story, status: int, seconds: float, kinds: Mapping[str, str]) -> None:
        """Write the spans of a request that has ended and of its hops.

        status: 499 when the client left.  kinds: of the tiers' engines, by tier.
        """
        span: Span = story.span
        if span.is_recording():
            operation = "chat" if story.ask is None or story.ask.prompt is None else "text_completion"
            context, wanted = set_span_in_context(span), asked(story.ask)
            for hop, ended in zip(story.hops, story.hop_ends, strict=True):
                one = self._tracer.start_span(
                    f"{operation} {hop.tier}",
                    context=context,
                    kind=SpanKind.CLIENT,
                    attributes=of_hop(hop, operation, kinds.get(hop.tier, "")) | wanted,
                    start_time=int((story.at + ended - hop.seconds) * NANO),
                )
                if hop.error is not None:
                    one.set_status(StatusCode.ERROR, type(hop.error).__name__)
                one.end(int((story.at + ended) * NANO))
            span.set_attributes(of_request(story, operation, status))
            if status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end(int((story.at + seconds) * NANO))

    def close(self, seconds: float) -> None:
        """Send what waits, for so long and no longer: a collector that is away holds up nobody's end."""
        sender = threading.Thread(target=self._provider.shutdown, daemon=True)
        sender.start()
        sender.join(seconds)


def otlp(endpoint: str) -> SpanExporter:
    """Sends spans to a collector by OTLP over HTTP. endpoint: without a path."""
    session = requests.Session()
    session.trust_env = False  # spans go where the configuration says, through nobody's proxy
    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", session=session)


def asked(ask: Ask | None) -> dict[str, Any]:
    """What every tier was asked to do."""
    if ask is None:
        return {}
    told = {
        "gen_ai.request.temperature": ask.sampling.temperature,
        "gen_ai.request.top_p": ask.sampling.top_p,
        "gen_ai.request.max_tokens": ask.max_tokens,
        "gen_ai.request.seed": ask.sampling.seed,
    }
    return {name: value for name, value in told.items() if value is not None}


def of_hop(hop: Hop, operation: str, kind: str) -> dict[str, Any]:
    """One tier's turn. OpenTelemetry leaves out what is None with a warning, so we leave it out without."""
    completion = hop.completion
    told = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": kind or None,
        "gen_ai.request.model": hop.tier,
        "gen_ai.response.model": None if completion is None else completion.model,
        "gen_ai.response.finish_reasons": None if completion is None else (str(completion.finish),),
        "gen_ai.usage.input_tokens": hop.cost.prompt_tokens,
        "gen_ai.usage.output_tokens": hop.cost.completion_tokens,
        "error.type": None if hop.error is None else type(hop.error).__name__,
        f"{OURS}.reason": str(hop.reason),
        f"{OURS}.p_correct": hop.p_correct,
        f"{OURS}.threshold": hop.threshold,
        f"{OURS}.calibrator": hop.calibrator_id,
        f"{OURS}.null_reason": None if hop.null_reason is None else str(hop.null_reason),
        f"{OURS}.retries": len(hop.retried),
        f"{OURS}.given_up": hop.given_up,
        f"{OURS}.cost_usd": hop.cost.usd,
    }
    return {name: value for name, value in told.items() if value is not None}


def of_request(story: Story, operation: str, status: int) -> dict[str, Any]:
    """A request that has ended."""
    answer = story.answer
    told = {
        "http.response.status_code": status,
        "error.type": str(status) if status >= 400 else None,
        "gen_ai.operation.name": operation,
        "gen_ai.response.model": None if answer is None else answer.served.tier,
        "gen_ai.response.finish_reasons": None
        if answer is None or answer.served.completion is None
        else (str(answer.served.completion.finish),),
        "gen_ai.usage.input_tokens": sum(hop.cost.prompt_tokens for hop in story.hops),
        "gen_ai.usage.output_tokens": sum(hop.cost.completion_tokens for hop in story.hops),
        f"{OURS}.route_id": story.number,
        f"{OURS}.client": story.client or None,
        f"{OURS}.policy": None if story.route is None else story.route.name,
        f"{OURS}.stream_mode": str(story.mode),
        f"{OURS}.reason": None if answer is None else str(answer.reason),
        f"{OURS}.p_correct": None if answer is None else answer.served.p_correct,
        f"{OURS}.cost_usd": sum(hop.cost.usd for hop in story.hops),
    }
    return {name: value for name, value in told.items() if value is not None}
