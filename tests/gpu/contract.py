"""The contract held against real vLLM servers, by the OpenAI client: what a fault-injecting upstream can only imitate.

    python tests/gpu/pocket_cascade.py --parts engine contract --out docs/results/vllm_cascade.json

Each check says what it saw, and what the server itself makes of the same request where the gateway is there to do
better: of a limit that leaves the prompt no room, say, which vLLM refuses.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

from tests.gpu import servers

Seen = dict[str, Any]
QUESTION = [{"role": "user", "content": "Tom has 12 apples. He gives 5 to Ann. How many apples does Tom have left?"}]
WINDOW = 1024  # tokens, of the servers
PATIENCE = 3.0  # seconds until a server must have dropped what its client left


class Contract:
    """base: the gateway, its last tier called `model`.  server: the base of that tier's own server, of `port`."""

    def __init__(self, base: str, server: str, port: int, model: str) -> None:
        self.gateway = openai.OpenAI(base_url=base, api_key="none", max_retries=0, timeout=60)
        self.server = openai.OpenAI(base_url=server, api_key="none", max_retries=0, timeout=60)
        self.port, self.model = port, model

    def ask(self, client: openai.OpenAI | None = None, model: str | None = None, **more: Any) -> Any:
        call: Any = (client or self.gateway).chat.completions.create
        return call(**{"model": model or self.model, "messages": QUESTION, "temperature": 0, "max_tokens": 200} | more)

    def own_status(self, **more: Any) -> int:
        """What the server itself makes of the same request."""
        try:
            self.ask(self.server, **more)
        except openai.APIStatusError as error:
            return error.status_code
        return 200

    def log_probs_are_the_servers(self) -> Seen:
        """Asked for: those of the model that answered, cut back to what was asked. Not asked for: none."""
        ours, theirs = (self.ask(client, logprobs=True, top_logprobs=3) for client in (self.gateway, self.server))
        one, other = ours.choices[0].logprobs.content, theirs.choices[0].logprobs.content
        assert "".join(entry.token for entry in one) == ours.choices[0].message.content
        assert [entry.token for entry in one] == [entry.token for entry in other[: len(one)]]
        assert len(other) - len(one) <= 1, "the end token alone is left out"
        gap = max(abs(a.logprob - b.logprob) for a, b in zip(one, other[: len(one)], strict=True))
        assert gap < 0.05, gap
        assert {len(entry.top_logprobs) for entry in one} == {3}
        assert self.ask(model="auto").choices[0].logprobs is None
        return {"tokens": len(one), "largest_gap_nats": gap}

    def streams_say_what_whole_answers_say(self) -> Seen:
        text = {}
        for mode in ("buffer", "commit"):  # no calibrator of first tokens is fitted on the engine's signals
            model = self.model if mode == "commit" else "auto"
            chunks = list(
                self.ask(model=model, stream=True, stream_options={"include_usage": True},
                         extra_body={"route": {"stream_mode": mode}})
            )  # fmt: skip
            whole = self.ask(model=chunks[0].model)
            text[mode] = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            assert text[mode] == whole.choices[0].message.content, mode
            assert chunks[-1].usage == whole.usage, mode
            assert all(choice.logprobs is None for chunk in chunks for choice in chunk.choices), mode
        return {"characters": {mode: len(said) for mode, said in text.items()}}

    def several_choices_differ_and_carry_their_own_log_probs(self) -> Seen:
        answer = self.ask(n=4, temperature=1.3, seed=7, logprobs=True, top_logprobs=0)
        texts = [choice.message.content for choice in answer.choices]
        spelled = ["".join(entry.token for entry in choice.logprobs.content) for choice in answer.choices]
        assert len(set(texts)) > 1, texts
        assert all(said.startswith(text) or text.startswith(said) for said, text in zip(spelled, texts, strict=True))
        return {"different": len(set(texts)), "of": len(texts)}

    def a_limit_beyond_the_window_is_clamped(self) -> Seen:
        """In chat, in a stream and for a raw prompt; vLLM itself refuses each."""
        wish = {"max_tokens": WINDOW - 8}
        own = self.own_status(**wish)
        answer = self.ask(**wish)
        streamed = list(self.ask(stream=True, **wish))
        raw = self.gateway.completions.create(model=self.model, prompt="1 + 1 =", temperature=0, max_tokens=WINDOW)
        reasons = {answer.choices[0].finish_reason, streamed[-1].choices[0].finish_reason, raw.choices[0].finish_reason}
        assert reasons <= {"stop", "length"}, reasons
        return {"server_itself": own, "finish_reasons": sorted(reasons)}

    def a_prompt_beyond_the_window_is_refused_in_the_known_words(self) -> Seen:
        long = [{"role": "user", "content": "apples and pears " * WINDOW}]
        own = self.own_status(messages=long)
        with pytest.raises(openai.BadRequestError, match=f"maximum context length is {WINDOW} tokens") as refused:
            self.ask(model="auto", messages=long)
        assert refused.value.code == "context_length_exceeded"
        return {"server_itself": own, "message": refused.value.message}

    def a_schema_is_kept_to(self) -> Seen:
        """By a tier whose server computes confidence, which it refuses to do beside a schema or a bias."""
        schema = {"enum": [5, 12]}
        wish = {"response_format": {"type": "json_schema", "json_schema": {"name": "apples", "schema": schema}}}
        own = self.own_status(**wish)
        answer = self.ask(extra_body={"route": {"debug": True}}, **wish)
        told = json.loads(answer.choices[0].message.content)
        assert told in schema["enum"], told
        assert self.ask(logit_bias={"5": -1}, extra_body={"min_tokens": 2}).choices[0].message.content
        return {"server_itself": own, "answer": told, "null_reason": answer.model_extra["route"]["null_reason"]}

    def seeds_stops_and_samplers_reach_the_server(self) -> Seen:
        warm = {"temperature": 1.3, "top_p": 0.95, "seed": 11, "extra_body": {"top_k": 40, "min_p": 0.01}}
        twice = [self.ask(**warm).choices[0].message.content for _ in range(2)]
        assert twice[0] == twice[1], twice
        stopped = self.ask(stop=["7"]).choices[0]
        assert stopped.finish_reason == "stop"
        assert "7" not in stopped.message.content, stopped.message.content
        return {"same_text_for_a_seed": True, "stopped_after": stopped.message.content[-20:]}

    def who_leaves_frees_the_server(self) -> Seen:
        """Whole answers and streams, which would run for the whole window."""
        long = {"max_tokens": 900, "extra_body": {"ignore_eos": True}, "temperature": 1.3, "n": 4}
        freed = {}
        for kind in ("whole", "stream"):
            if kind == "whole":
                with pytest.raises(openai.APITimeoutError):
                    self.ask(self.gateway.with_options(timeout=0.3), **long)
            else:
                with self.ask(stream=True, **long | {"n": 1}) as events:
                    next(iter(events))
            left = time.monotonic()
            while True:
                self.ask(self.server, max_tokens=1)  # a server that does nothing does not count anew either
                if not servers.metric(self.port, "vllm:num_requests_running"):
                    break
                assert time.monotonic() - left < PATIENCE, f"{kind}: it still runs"
            freed[kind] = round(time.monotonic() - left, 2)
        return {"seconds": freed}


CHECKS: tuple[Callable[[Contract], Seen], ...] = (
    Contract.log_probs_are_the_servers,
    Contract.streams_say_what_whole_answers_say,
    Contract.several_choices_differ_and_carry_their_own_log_probs,
    Contract.a_limit_beyond_the_window_is_clamped,
    Contract.a_prompt_beyond_the_window_is_refused_in_the_known_words,
    Contract.a_schema_is_kept_to,
    Contract.seeds_stops_and_samplers_reach_the_server,
    Contract.who_leaves_frees_the_server,
)


def held(contract: Contract) -> dict[str, Seen]:
    """Every check's findings by its name; a failed one has `wrong`, and the others are still made."""
    found: dict[str, Seen] = {}
    for check in CHECKS:
        name = check.__name__.replace("_", " ")
        try:
            found[name] = check(contract)
        except (AssertionError, openai.OpenAIError, pytest.fail.Exception) as error:
            found[name] = {"wrong": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps({name: found[name]}), flush=True)
    return found
