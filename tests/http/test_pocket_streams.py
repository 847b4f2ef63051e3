"""Streams of real models in the gateway's own process, read by the real client: two tiers of the pocket cascade, and
the pocket cascade as it is shipped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from calibrators import artifact as artifacts
from eval import stream_study
from eval._server import gateway
from eval.datasets import pocket
from gateway import config as configs
from gateway.snapshot import prefix_tokens
from tests.faults.gateway import PATIENCE, ROOT, running, write_artifact

pytest.importorskip("torch")
pytest.importorskip("transformers")

POCKET = ROOT / "deploy" / "pocket"
QUESTION = "Mia has 12 apples and buys 30 more. Then she gives 7 of them to Tom. How many apples does Mia have now?"
TOKENS = 8
HOPELESS = {
    "feature": "lp_mean",
    "levels": [
        {
            "threshold": 0.5,
            "epsilon": 0.05,
            "bounds": [{"tokens": TOKENS, "at_most": 0.0, "n": 300, "accepted": 0}],  # whatever it says
        }
    ],
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("pocket")
    write_artifact(folder / "first.json", model="pocket-nano", span=f"prefix-{TOKENS}")
    write_artifact(folder / "hopeless.json", model="pocket-micro", early_abort=HOPELESS)
    tiers: list[dict[str, Any]] = [
        {
            "name": name,
            "engine": {
                "kind": "local",
                "model": str(POCKET / "models" / name),
                "max_tokens": 128,
                "threads": 1,
            },
        }
        for name in ("pocket-nano", "pocket-micro")
    ]
    tiers[0] |= {"calibrator": str(POCKET / "calibrators" / "pocket-nano.json"), "prefix_calibrator": "first.json"}
    tiers[1]["calibrator"] = "hopeless.json"
    told = {
        "server": {"port": 0, "request_seconds": 60},
        "keys": {"allow_anonymous": True},
        "tiers": tiers,
        "policies": {
            "default": {"steps": [{"tier": "pocket-nano", "accept_at": 0.01}, {"tier": "pocket-micro"}]},
            "easy": {"steps": [{"tier": "pocket-nano", "accept_at": 0.0}, {"tier": "pocket-micro"}]},
            "strict": {"steps": [{"tier": "pocket-nano", "accept_at": 1.0}, {"tier": "pocket-micro"}]},
            "hasty": {
                "steps": [{"tier": "pocket-micro", "accept_at": 0.6, "early_abort": 0.05}, {"tier": "pocket-nano"}]
            },
        },
    }
    with (
        running(folder, told) as gateway,
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=60) as sdk,
    ):
        yield sdk


def messages(question: str) -> Any:
    return [{"role": "user", "content": question}]


def heard(
    client: openai.OpenAI, model: str, mode: str, question: str = QUESTION
) -> tuple[str, dict[str, str], list[Any]]:
    """Text, x-route-* headers without their prefix, and the chunks."""
    told = client.chat.completions.with_raw_response.create(
        model=model,
        messages=messages(question),
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"route": {"stream_mode": mode, "debug": True}},
    )
    route = {name[8:]: value for name, value in told.headers.items() if name.startswith("x-route-")}
    chunks = list(told.parse())
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, route, chunks


def whole(client: openai.OpenAI, model: str, question: str = QUESTION) -> str:
    return client.chat.completions.create(model=model, messages=messages(question)).choices[0].message.content or ""


@pytest.mark.parametrize(
    ("model", "mode", "tier", "reason"),
    [
        ("auto", "buffer", "pocket-nano", "confident"),
        ("auto", "commit", "pocket-micro", "last"),
        ("auto:easy", "prefix", "pocket-nano", "confident"),
        ("auto:strict", "prefix", "pocket-micro", "last"),
        ("pocket-micro", "commit", "pocket-micro", "bypass"),
    ],
)
def test_a_stream_says_what_the_whole_answer_says(
    model: str, mode: str, tier: str, reason: str, client: openai.OpenAI
) -> None:
    text, route, chunks = heard(client, model, mode)
    assert (route["stream-mode"], route["tier"], route["reason"]) == (mode, tier, reason)
    assert text == whole(client, tier)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > TOKENS
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 5


def test_a_beginning_that_was_given_up_is_shown_in_the_route(client: openai.OpenAI) -> None:
    _, _, chunks = heard(client, "auto:strict", "prefix")
    first, last = chunks[-1].model_extra["route"]["hops"]
    assert (first["reason"], first["given_up"], last["given_up"]) == ("unsure", True, False)
    assert first["tokens"] > TOKENS


def test_a_model_in_this_process_is_stopped_early_too(client: openai.OpenAI) -> None:
    text, route, chunks = heard(client, "auto:hasty", "buffer")
    first, _ = chunks[-1].model_extra["route"]["hops"]
    assert (first["reason"], first["given_up"], route["tier"]) == ("unsure", True, "pocket-nano")
    assert text == whole(client, "pocket-nano")


# As it is shipped

# The 50th of the test split, which nano and micro are not sure of after 64 tokens and small is; of the 53rd none is.
MIDDLE, LAST = (pocket.load(split="test", n=53)[place] for place in (49, 52))


@pytest.fixture(scope="module")
def shipped() -> Iterator[openai.OpenAI]:
    with (
        gateway(POCKET / "cascade.yaml") as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as sdk,
    ):
        yield sdk


def decider(tier: str) -> artifacts.Artifact:
    """What decides on a shipped tier's first tokens."""
    [path] = [one.prefix_calibrator for one in configs.read(POCKET / "cascade.yaml").tiers if one.name == tier]
    assert path is not None
    return artifacts.load(path)


def test_the_shipped_cascade_decides_on_first_tokens_and_passes_the_rest_on(shipped: openai.OpenAI) -> None:
    text, route, chunks = heard(shipped, "auto", "prefix", MIDDLE.text)
    assert (route["stream-mode"], route["tier"], route["reason"]) == ("prefix", "pocket-small", "confident")
    sealed = decider("pocket-small")
    assert route["calibrator"] == sealed.label
    *earlier, answered = chunks[-1].model_extra["route"]["hops"]
    assert [(hop["reason"], hop["given_up"]) for hop in earlier] == [("unsure", True)] * 2
    assert answered["confidence"] >= answered["threshold"]
    assert chunks[-1].usage.completion_tokens > prefix_tokens(sealed)  # so it was not decided on as a whole
    assert text == whole(shipped, "pocket-small", MIDDLE.text)


def test_what_no_shipped_tier_is_sure_of_comes_from_the_last(shipped: openai.OpenAI) -> None:
    text, route, chunks = heard(shipped, "auto", "prefix", LAST.text)
    assert (route["tier"], route["reason"], route["confidence"]) == ("pocket-base", "last", "null")
    hops = chunks[-1].model_extra["route"]["hops"]
    assert [hop["given_up"] for hop in hops] == [True, True, True, False]
    assert text == whole(shipped, "pocket-base", LAST.text)


def test_the_study_hears_every_mode_as_a_user_does(shipped: openai.OpenAI) -> None:
    found = stream_study.listened(shipped, "default", [MIDDLE, LAST])
    assert [one.name for one in found.seen] == ["buffer", "prefix", "commit"]
    assert [dict(one.served) for one in found.seen][1:] == [{"pocket-small": 1, "pocket-base": 1}, {"pocket-base": 2}]
    for one in found.seen:
        assert all(usd > 0 and 0 < first <= last for _, usd, first, last in one.rows)
