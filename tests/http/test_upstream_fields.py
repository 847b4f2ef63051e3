"""What the gateway says to a model server by itself: a name for the server's log, whose turn it is, how to stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gateway import config as configs
from gateway.errors import ConfigError
from gateway.http.doors import REQUEST_ID
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, UNSURE, Gateway, cascade, running, write_artifact
from tests.faults.upstream import Upstream

WORDS = "one two three four five six seven eight"
COMMIT = {"stream": True, "route": {"stream_mode": "commit"}}


def keys(**priorities: int) -> dict[str, Any]:
    return {
        "clients": [
            {"name": name, "sha256": hashlib.sha256(f"sk-{name}".encode()).hexdigest(), "priority": priority}
            for name, priority in priorities.items()
        ]
    }


@pytest.fixture(scope="module")
def told(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose dear tier goes by priorities and sends several tokens at once."""
    folder = tmp_path_factory.mktemp("told")
    write_artifact(folder / "cheap.json")
    plan = cascade(upstream.url, keys=keys(chat=-5, night=10, plain=0))
    plan["tiers"][1]["engine"] |= {"priority": True, "extra_body": {"stream_interval": 3}}
    with running(folder, plan) as process:
        yield process


def put(gateway: Gateway, who: str, body: dict[str, Any]) -> httpx2.Response:
    headers = {"authorization": f"Bearer sk-{who}"}
    return httpx2.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=PATIENCE)


def test_a_question_has_its_decisions_name_in_the_servers_log(told: Gateway, upstream: Upstream) -> None:
    answer = put(told, "plain", ask({"nats": UNSURE}, {"nats": SURE}, n=3))
    names = [seen.headers["x-request-id"] for seen in upstream.asked("small") + upstream.asked("large")]
    number = answer.headers["x-route-id"][:20]
    assert [name.rpartition("-")[0] for name in names] == [f"{number}-cheap", *[f"{number}-dear"] * 3]
    assert len(set(names)) == 4, "several at once, or one after another that may still run, must differ"
    assert all(REQUEST_ID.match(name.encode()) for name in names)
    assert put(told, "plain", ask({"fault": "reset"})).status_code == 200
    assert len(upstream.asked("small")) == 3, "one try more"
    everything = [seen.headers["x-request-id"] for seen in upstream.seen if seen.method == "POST"]
    assert len(set(everything)) == len(everything)
    assert not [seen for seen in upstream.seen if "request_id" in seen.body]


def test_a_clients_priority_goes_to_the_servers_that_schedule_by_it(told: Gateway, upstream: Upstream) -> None:
    for who in ("chat", "night", "plain"):
        assert put(told, who, ask({"nats": UNSURE}, priority=-99)).is_success
    assert [seen.body.get("priority") for seen in upstream.asked("large")] == [-5, 10, None]
    assert all("priority" not in seen.body for seen in upstream.asked("small")), "this server would refuse it"


def test_a_priority_that_no_server_goes_by_is_a_mistake(tmp_path: Path) -> None:
    plan = cascade("http://127.0.0.1:1/v1", keys=keys(chat=-5))
    with pytest.raises(ConfigError, match=r"cascade.yaml:\d+: keys.clients\[0\].priority: no tier's server"):
        configs.parse(json.dumps(plan, indent=1), tmp_path / "cascade.yaml")


def test_several_tokens_in_an_event_are_as_good_as_one(told: Gateway, upstream: Upstream) -> None:
    with openai.OpenAI(base_url=f"{told.url}/v1", api_key="sk-plain", max_retries=0, timeout=PATIENCE) as client:
        events = [
            event.choices[0]
            for event in client.chat.completions.create(
                model="auto",
                messages=ask({}, {"text": WORDS})["messages"],
                stream=True,
                logprobs=True,
                extra_body={"route": COMMIT["route"]},
            )
        ]
    assert upstream.asked("large")[-1].body["stream_interval"] == 3
    spoken = [event.delta.content for event in events if event.delta.content]
    assert "".join(spoken) == WORDS
    assert len(spoken) <= 4, "what comes together is passed on together"
    tokens = [one.token for event in events if event.logprobs for one in event.logprobs.content or ()]
    assert "".join(tokens) == WORDS
    assert len(tokens) == 8
