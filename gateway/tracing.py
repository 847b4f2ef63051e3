"""OpenTelemetry: one span per request, and beneath it one per tier that was asked, and histograms of both, named as the
GenAI conventions say.

The conventions (opentelemetry.io/docs/specs/semconv/gen-ai, of semantic conventions 1.41) are "Development" still, so
their names stand in this file and nowhere else; what they have no word for begins with `route.`. Spans carry numbers,
names and our own words, metrics those of the configuration alone. Neither prompts nor answers are in either, whatever
is asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import requests
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.nouns import Ask, Hop, Mode
from gateway.store.story import Story

SCHEMA = "https://opentelemetry.io/schemas/1.41.0"
NAME = "confidence-gateway"  # of this instrumentation, and of the provider that a client of ours asks
OURS = "route"
CARRIED = ("traceparent", "tracestate")  # W3C Trace Context, the headers of a client's own trace
NANO = 1_000_000_000

# Buckets as the conventions have them, in s and in tokens.
DURATIONS = tuple(0.01 * 2**step for step in range(14))
FIRST_TOKEN = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
TOKENS = tuple(4.0**step for step in range(14))


class Traces:
    """The spans of one process, and the way to where they are sent. share: of the requests that are traced, where the
    client has not decided that already.  metrics: the way of the histograms, which are of all requests; None for none.
    """

    def __init__(self, exporter: SpanExporter, metrics: MetricExporter | None, service: str, share: float) -> None:
        self._meters = None if metrics is None else Meters(metrics, service)
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service}),
            sampler=ParentBased(TraceIdRatioBased(share)),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(NAME, schema_url=SCHEMA)
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
        """Write the spans of a request that has ended and of its hops, and count them.

        status: 499 when the client left.  kinds: of the tiers' engines, by tier.
        """
        span: Span = story.span
        operation = "chat" if story.ask is None or story.ask.prompt is None else "text_completion"
        if self._meters is not None:
            self._meters.count(story, operation, status, seconds, kinds)
        if span.is_recording():
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
        sender = threading.Thread(target=self._farewell, daemon=True)
        sender.start()
        sender.join(seconds)

    def _farewell(self) -> None:
        if self._meters is not None:
            self._meters.close()
        self._provider.shutdown()


class Meters:
    """The histograms of one process. Their attributes have few values, whatever clients and model servers say."""

    def __init__(self, exporter: MetricExporter, service: str) -> None:
        self._provider = MeterProvider(
            [PeriodicExportingMetricReader(exporter)],
            resource=Resource.create({"service.name": service}),
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter(NAME, schema_url=SCHEMA)

        def histogram(name: str, unit: str, buckets: tuple[float, ...], told: str) -> Histogram:
            return meter.create_histogram(f"gen_ai.{name}", unit, told, explicit_bucket_boundaries_advisory=buckets)

        self._asking = histogram("client.operation.duration", "s", DURATIONS, "Duration of one tier's turn.")
        self._chunk = histogram(
            "client.operation.time_to_first_chunk", "s", DURATIONS, "From a tier's turn to its stream's first piece."
        )
        self._tokens = histogram("client.token.usage", "{token}", TOKENS, "Tokens of one tier's turn, served or not.")
        self._serving = histogram("server.request.duration", "s", DURATIONS, "Duration of one request.")
        self._first = histogram("server.time_to_first_token", "s", FIRST_TOKEN, "Until a stream's first piece.")
        self._per_token = histogram(
            "server.time_per_output_token", "s", PER_TOKEN, "After the first, of a stream passed on as it comes."
        )

    def count(self, story: Story, operation: str, status: int, seconds: float, kinds: Mapping[str, str]) -> None:
        """A request that has ended, and its hops. The arguments are those of `Traces.end`."""
        for hop in story.hops:
            asked = {"gen_ai.operation.name": operation, "gen_ai.provider.name": kinds.get(hop.tier, "")}
            asked["gen_ai.request.model"] = hop.tier
            failed = {} if hop.error is None else {"error.type": type(hop.error).__name__}
            self._asking.record(hop.seconds, asked | failed)
            if hop.first_seconds is not None:
                self._chunk.record(hop.first_seconds, asked)
            if hop.cost.total_tokens:
                self._tokens.record(hop.cost.prompt_tokens, asked | {"gen_ai.token.type": "input"})
                self._tokens.record(hop.cost.completion_tokens, asked | {"gen_ai.token.type": "output"})
        served = {"gen_ai.operation.name": operation, "gen_ai.provider.name": NAME}
        if story.model:
            served["gen_ai.request.model"] = story.model
        self._serving.record(seconds, served | ({"error.type": str(status)} if status >= 400 else {}))
        if status == 200 and story.first_seconds is not None and story.answer is not None:
            self._first.record(story.first_seconds, served)
            more = story.answer.completion.completion_tokens - 1
            if more > 0 and story.mode is not Mode.BUFFER:
                self._per_token.record((seconds - story.first_seconds) / more, served)

    def close(self) -> None:
        """Send what there is."""
        self._provider.shutdown()


def otlp(endpoint: str) -> SpanExporter:
    """Sends spans to a collector by OTLP over HTTP. endpoint: without a path."""
    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", session=session())


def otlp_metrics(endpoint: str) -> MetricExporter:
    """The same for metrics."""
    return OTLPMetricExporter(f"{endpoint.rstrip('/')}/v1/metrics", session=session())


def session() -> requests.Session:
    """What is told goes where the configuration says, through nobody's proxy."""
    made = requests.Session()
    made.trust_env = False
    return made


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
        "gen_ai.response.id": None if completion is None else completion.response_id or None,
        "gen_ai.response.finish_reasons": None if completion is None else (str(completion.finish),),
        "gen_ai.usage.input_tokens": hop.cost.prompt_tokens,
        "gen_ai.usage.output_tokens": hop.cost.completion_tokens,
        "error.type": None if hop.error is None else type(hop.error).__name__,
        f"{OURS}.tier": hop.tier,
        f"{OURS}.reason": str(hop.reason),
        f"{OURS}.confidence": hop.p_correct,
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
        "gen_ai.provider.name": NAME,
        "gen_ai.request.model": story.model or None,
        "gen_ai.request.choice.count": None if story.choices == 1 else story.choices,
        "gen_ai.response.id": story.response_id or None,
        "gen_ai.response.model": None if answer is None else answer.completion.model,
        "gen_ai.response.finish_reasons": None if answer is None else (str(answer.completion.finish),),
        "gen_ai.usage.input_tokens": sum(hop.cost.prompt_tokens for hop in story.hops),
        "gen_ai.usage.output_tokens": sum(hop.cost.completion_tokens for hop in story.hops),
        f"{OURS}.id": story.number,
        f"{OURS}.client": story.client or None,
        f"{OURS}.policy": None if story.route is None else story.route.name,
        f"{OURS}.stream_mode": str(story.mode),
        f"{OURS}.tier": None if answer is None else answer.served.tier,
        f"{OURS}.reason": None if answer is None else str(answer.reason),
        f"{OURS}.confidence": None if answer is None else answer.served.p_correct,
        f"{OURS}.threshold": None if answer is None else answer.served.threshold,
        f"{OURS}.calibrator": None if answer is None else answer.served.calibrator_id,
        f"{OURS}.cost_usd": sum(hop.cost.usd for hop in story.hops),
    }
    return {name: value for name, value in told.items() if value is not None}
