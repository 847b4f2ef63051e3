"""Spans as a collector gets them from a gateway that is really running."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from gateway.config import Tracing
from gateway.errors import ConfigError
from tests.faults.ask import ask
from tests.faults.collector import Collector, attributes
from tests.faults.gateway import (
    P_SURE,
    PATIENCE,
    SURE,
    UNSURE,
    cascade,
    free_port,
    running,
    soonest,
    timed,
    until,
    write_artifact,
)
from tests.faults.upstream import Upstream

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
OTHER = "0af7651916cd43dd8448eb211c80319c"
CARRIED = f"00-{TRACE}-{PARENT}-01"


class Run:
    """A gateway, its model servers, and its collector."""

    def __init__(self, url: str, upstream: Upstream, collector: Collector) -> None:
        self.url, self.upstream, self.collector = f"{url}/v1/chat/completions", upstream, collector

    def ask(self, body: dict[str, Any], traceparent: str = "") -> httpx2.Response:
        return httpx2.post(
            self.url, json=body, headers={"traceparent": traceparent} if traceparent else {}, timeout=PATIENCE
        )

    def requests(self, since: int, n: int) -> list[Any]:
        """Spans of requests, once n have come."""
        until(lambda: len(self._requests(since)) >= n)
        return self._requests(since)

    def _requests(self, since: int) -> list[Any]:
        return [span for span in self.collector.spans[since:] if span.name.startswith("POST")]


def planned(upstream: Upstream, folder: Path, endpoint: str, **changes: Any) -> dict[str, Any]:
    write_artifact(folder / "cheap.json")
    return cascade(upstream.url, tracing={"endpoint": endpoint, **changes})


@pytest.fixture(scope="module")
def run(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("tracing")
    with Collector() as collector:
        plan = planned(upstream, folder, collector.url, service="ours")
        with running(folder, plan, OTEL_BSP_SCHEDULE_DELAY="100") as gateway:
            yield Run(gateway.url, upstream, collector)


def test_a_request_is_a_span_with_one_beneath_it_for_each_tier(run: Run) -> None:
    collector, before = run.collector, len(run.upstream.seen)
    reply = run.ask(ask({"nats": UNSURE}, {"nats": SURE, "text": "it is 42"}), CARRIED)
    broken = run.ask(ask({"fault": "500"}, {"fault": "500"}, n=3))
    bad = run.ask({"model": "auto"})
    streamed = run.ask(ask({"nats": SURE}, stream=True))
    requests = [attributes(one) for one in run.requests(0, 4)]
    seen = [one for one in run.upstream.seen[before:] if one.path.endswith("/chat/completions")]
    assert [one.status_code for one in (reply, broken, bad, streamed)] == [200, 502, 400, 200]
    assert collector.services == {"ours"}
    traced = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    cheap, dear, whole = sorted(traced, key=lambda span: span.end_time_unix_nano)
    assert (whole.name, cheap.name, dear.name) == ("POST /v1/chat/completions", "chat cheap", "chat dear")
    assert whole.parent_span_id.hex() == PARENT
    assert cheap.parent_span_id == dear.parent_span_id == whole.span_id
    assert (whole.kind, cheap.kind) == (whole.SPAN_KIND_SERVER, cheap.SPAN_KIND_CLIENT)
    begun, over = whole.start_time_unix_nano, whole.end_time_unix_nano
    times = (begun, cheap.start_time_unix_nano, cheap.end_time_unix_nano)
    times += (dear.start_time_unix_nano, dear.end_time_unix_nano, over)
    assert np.diff(times).min() > -2_000, "in this order, as far as a float of seconds since 1970 tells them apart"

    told = attributes(dear)
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.provider.name"] == "openai_http"
    assert told["gen_ai.request.model"] == "dear"
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    assert told["gen_ai.response.id"] == "chatcmpl-upstream"
    assert (told["gen_ai.request.temperature"], told["gen_ai.request.top_p"]) == (0, 1)
    assert told["gen_ai.usage.output_tokens"] == reply.json()["usage"]["completion_tokens"]
    assert (told["route.tier"], attributes(cheap)["route.reason"]) == ("dear", "unsure")
    asked = attributes(whole)
    assert (asked["gen_ai.request.model"], asked["gen_ai.response.model"]) == ("auto", "large")
    assert reply.headers["x-route-id"].startswith(asked["route.id"])
    assert (asked["gen_ai.response.id"], "gen_ai.request.choice.count" in asked) == (reply.json()["id"], False)
    assert (asked["http.response.status_code"], asked["route.policy"]) == (200, "default")

    assert {one.headers["traceparent"].split("-")[1] for one in seen[:2]} == {TRACE}
    assert seen[0].headers["traceparent"].split("-")[2] == whole.span_id.hex(), "a server's own spans stand beneath"

    failed = [span for span in collector.spans if span.status.code == span.status.STATUS_CODE_ERROR]
    assert {span.name for span in failed} == {"POST /v1/chat/completions", "chat cheap", "chat dear"}
    assert {attributes(span)["error.type"] for span in failed} == {"502", "EngineDown"}
    assert sorted(one["http.response.status_code"] for one in requests) == [200, 200, 400, 502]
    assert [one["error.type"] for one in requests if one["http.response.status_code"] == 400] == ["400"]
    assert [one["gen_ai.request.choice.count"] for one in requests if one["http.response.status_code"] == 502] == [3]
    sure = next(one for one in requests if one.get("route.reason") == "confident")
    assert sure["route.confidence"] == pytest.approx(P_SURE)
    assert sure["gen_ai.response.id"] == json.loads(streamed.text.split("\n")[0].removeprefix("data: "))["id"]
    assert sum(attributes(span).get("gen_ai.response.id") == "chatcmpl-upstream" for span in collector.spans) == 3
    everything = str(collector.spans)
    assert "it is 42" not in everything
    assert "nats" not in everything


def counted(collector: Collector, name: str) -> dict[tuple[Any, ...], tuple[int, float]]:
    """(how many, their sum) of each series, by the attributes that tell them apart."""
    apart = ("gen_ai.request.model", "gen_ai.token.type", "error.type")
    found = {}
    for point in collector.points.get(f"gen_ai.{name}", ()):
        told = attributes(point)
        found[tuple(told[one] for one in apart if one in told)] = point.count, point.sum
    return found


def test_all_requests_and_turns_are_counted_by_the_names_that_others_use(upstream: Upstream, tmp_path: Path) -> None:
    with Collector() as collector:
        plan = planned(upstream, tmp_path, collector.url, share=0)
        with running(tmp_path, plan, OTEL_METRIC_EXPORT_INTERVAL="200") as gateway:
            run = Run(gateway.url, upstream, collector)
            assert run.ask(ask({"nats": UNSURE}, {"text": "one two"})).status_code == 200
            assert run.ask(ask({"fault": "500"}, {"fault": "500"})).status_code == 502
            assert run.ask(ask(stream=True, route={"stream_mode": "commit"})).status_code == 200
            assert run.ask({"model": "auto"}).status_code == 400
            until(lambda: sum(n for n, _ in counted(collector, "server.request.duration").values()) == 4)
            requests = counted(collector, "server.request.duration")
            assert {key: n for key, (n, _) in requests.items()} == {("auto",): 2, ("auto", "502"): 1, ("400",): 1}
            turns = counted(collector, "client.operation.duration")
            assert {key: n for key, (n, _) in turns.items()} == {
                ("cheap",): 1, ("cheap", "EngineDown"): 1, ("dear",): 2, ("dear", "EngineDown"): 1,
            }  # fmt: skip
            assert counted(collector, "client.token.usage") == {
                ("cheap", "input"): (1, 7), ("cheap", "output"): (1, 5),
                ("dear", "input"): (2, 14), ("dear", "output"): (2, 3 + 5),
            }  # fmt: skip
            [(dear, (one, _))] = counted(collector, "client.operation.time_to_first_chunk").items()
            assert (dear, one) == (("dear",), 1)
            [(n, first)] = counted(collector, "server.time_to_first_token").values()
            [(also, per_token)] = counted(collector, "server.time_per_output_token").values()
            assert (n, also) == (1, 1)
            assert 0 < first + 4 * per_token <= requests[("auto",)][1], "one of two"
            assert collector.points["gen_ai.client.token.usage"][0].explicit_bounds[-1] == 67_108_864
        assert not collector.spans, "none was to be traced"


def test_a_client_that_does_not_want_a_trace_gets_none(run: Run) -> None:
    before = len(run.collector.spans)
    assert run.ask(ask(), f"00-{OTHER}-{PARENT}-00").status_code == 200
    assert run.ask(ask(), f"00-{OTHER[::-1]}-{PARENT}-01").status_code == 200
    assert {span.trace_id.hex() for span in run.requests(before, 1)} == {OTHER[::-1]}


def test_rubbish_for_a_trace_begins_one_of_our_own(run: Run) -> None:
    before = len(run.collector.spans)
    for rubbish in ("x", "00-" + "0" * 32 + "-0000000000000000-01", "ff-" + TRACE, "x" * 4000):
        assert run.ask(ask(), rubbish).status_code == 200
    roots = run.requests(before, 4)
    assert len({span.trace_id for span in roots}) == 4
    assert {span.parent_span_id for span in roots} == {b""}


def test_a_collector_that_is_away_holds_up_nobody(upstream: Upstream, tmp_path: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"

    def end() -> float:
        with running(tmp_path, planned(upstream, tmp_path, nobody)) as gateway:
            url = f"{gateway.url}/v1/chat/completions"
            assert all(httpx2.post(url, json=ask(), timeout=PATIENCE).status_code == 200 for _ in range(3))
            gateway.process.terminate()
            return timed(lambda: gateway.process.wait(PATIENCE))

    assert soonest(end, 12.0, tries=3) < 12.0


def test_without_its_packages_tracing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "gateway" and rest[2] and "tracing" in rest[2]:
            raise ImportError("No module named 'opentelemetry.sdk'")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install 'confidence-gateway\[otel\]'"):
        Tracing.model_validate({"endpoint": "http://127.0.0.1:4318"}).open()
