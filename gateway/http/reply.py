"""An Answer as clients see it: the chat completion, the x-route-* headers and, on demand, the route itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from gateway.http.errors import SCHEMA
from gateway.http.wire import Request
from gateway.noun import noun
from gateway.nouns import Answer, CallPart, Completion, Hop, Mode, Opening, TokenTrace, ToolCall
from gateway.store.story import Story

EXPOSED = (  # to scripts of web pages, which otherwise may not read them
    "x-request-id", "retry-after",
    "x-route-schema", "x-route-id", "x-route-model", "x-route-tier", "x-route-policy", "x-route-tiers-tried",
    "x-route-confidence", "x-route-threshold", "x-route-reason", "x-route-calibrator", "x-route-stream-mode",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)  # fmt: skip
PLAIN = re.compile(r"[^A-Za-z0-9._:@/ -]")

Json = dict[str, Any]


class Form(Protocol):
    """How answers are written at one endpoint. prefix: of their ids.  whole, part: what `object` says."""

    @property
    def prefix(self) -> str: ...

    @property
    def whole(self) -> str: ...

    @property
    def part(self) -> str: ...

    def choice(self, number: int, completion: Completion, request: Request) -> Json:
        """One choice of a whole answer."""
        ...

    def first(self, number: int) -> Json | None:
        """What a choice's stream begins with."""
        ...

    def delta(self, number: int, text: str, logprobs: Any = None, calls: Sequence[CallPart] = ()) -> Json:
        """What a piece adds to a choice."""
        ...

    def last(self, number: int, finish: Any) -> Json:
        """What a choice's stream ends with."""
        ...

    def logprobs(self, told: list[Entry] | None, offset: int = 0) -> Json:
        """Log-probs of a run of tokens, which begins so many characters into the answer."""
        ...


class ChatForm:
    """Chat completions."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, number: int, completion: Completion, request: Request) -> Json:
        message: Json = {"role": "assistant", "content": completion.text, "refusal": None}
        if completion.calls:
            message |= {"content": completion.text or None, "tool_calls": [called(call) for call in completion.calls]}
        return {
            "index": number,
            "message": message,
            "logprobs": self.logprobs(entries(completion.trace, request)) if asked(request) else None,
            "finish_reason": completion.finish,
        }

    def first(self, number: int) -> Json:
        return self._delta(number, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, number: int, text: str, logprobs: Any = None, calls: Sequence[CallPart] = ()) -> Json:
        told: Json = {"content": text} if text or not calls else {}
        if calls:
            told["tool_calls"] = [call_part(part) for part in calls]
        return self._delta(number, told, logprobs)

    def last(self, number: int, finish: Any) -> Json:
        return self._delta(number, {}, finish=finish)

    def logprobs(self, told: list[Entry] | None, offset: int = 0) -> Json:  # noqa: ARG002  the older form tells it
        return {"content": told, "refusal": None}

    def _delta(self, number: int, told: Json, logprobs: Any = None, finish: Any = None) -> Json:
        return {"index": number, "delta": told, "logprobs": logprobs, "finish_reason": finish}


CHAT = ChatForm()


def called(call: ToolCall) -> Json:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def call_part(part: CallPart) -> Json:
    """Of a call: its id and its name once, then its arguments."""
    told: Json = {"index": part.index}
    if part.id:
        told |= {"id": part.id, "type": "function"}
    function = {"name": part.name} if part.name else {}
    return told | {"function": function | {"arguments": part.arguments}}


@noun(frozen=True, slots=True)
class Call:
    """The facts of one HTTP request. route_id: names the decision.  created: Unix time, s.  ignored: field names.
    mode: how a stream comes about.  form: how the answer is written."""

    request: Request
    route_id: str
    created: int
    debug: bool = False
    ignored: tuple[str, ...] = ()
    mode: Mode = Mode.BUFFER
    form: Form = CHAT


def whole(answer: Answer, call: Call) -> bytes:
    """The body of a whole answer."""
    completion, served = answer.completion, answer.served
    told: Json = {
        "id": f"{call.form.prefix}-{call.route_id}",
        "object": call.form.whole,
        "created": call.created,
        "model": completion.model,
        "choices": [choice(number, answered(hop), call) for number, hop in enumerate((served, *answer.siblings))],
        "usage": usage(answer),
        "system_fingerprint": system_fingerprint(served.tier, completion.model, served.calibrator_id),
    }
    if call.request.return_token_ids:
        told["prompt_token_ids"] = completion.prompt_token_ids
    if call.debug:
        told["route"] = route(answer, call)
    return msgspec.json.encode(told)


def choice(number: int, completion: Completion, call: Call) -> Json:
    told = call.form.choice(number, completion, call.request)
    if call.request.return_token_ids:
        told["token_ids"] = completion.token_ids
    if call.request.route is not None:
        told |= extras(call.request.extras, completion, told)
    return told


def extras(wanted: Sequence[str], completion: Completion, choice: Json) -> Json:
    """What the server told beside its answer. Where a raw prompt is gone on with, nothing was thought before."""
    told: Json = {"stop_reason": completion.stop_reason} if "stop_reason" in wanted else {}
    if "reasoning" in wanted and "message" in choice:
        told["message"] = choice["message"] | {"reasoning": completion.reasoning or None}
    return told


def asked(request: Request) -> bool:
    """Whether the client wants log-probs. Ours are never shown to one who does not."""
    return request.wants_logprobs


class Spoken(msgspec.Struct):
    """One token as clients read it. token, bytes: JSON already."""

    token: msgspec.Raw
    logprob: float
    bytes: msgspec.Raw


class Entry(Spoken):
    top_logprobs: list[Spoken]


def entries(trace: TokenTrace | None, request: Request, span: slice = slice(None)) -> list[Entry] | None:
    """Log-probs of a run of tokens; None where the engine did not tell them together with the tokens' texts."""
    if trace is None or not (told := trace.tokens or trace.words):
        return None
    tokens, chosen, wanted = told[span], trace.chosen[span].tolist(), request.candidates
    if not (wanted and trace.candidates and trace.top is not None):
        return [entry(text, nats, []) for text, nats in zip(tokens, chosen, strict=True)]
    top = trace.top[span, :wanted].tolist()
    rows = [[spoken(*one) for one in zip(*row, strict=False)] for row in zip(trace.candidates[span], top, strict=True)]
    return [entry(text, nats, row) for text, nats, row in zip(tokens, chosen, rows, strict=True)]


def entry(text: bytes, nats: float, row: list[Spoken]) -> Entry:
    token, spelled = written(text)
    return Entry(token, nats, spelled, row)


def spoken(text: bytes, nats: float) -> Spoken:
    token, spelled = written(text)
    return Spoken(token, nats, spelled)


@lru_cache(maxsize=2**14)  # few of a model's tokens make up most of what it says
def written(text: bytes) -> tuple[msgspec.Raw, msgspec.Raw]:
    """A token's text and its bytes as JSON: with 20 candidates a token, most of what a reply would cost to write."""
    token, spelled = msgspec.json.encode(text.decode("utf-8", "replace")), msgspec.json.encode(list(text))
    return msgspec.Raw(token), msgspec.Raw(spelled)


def usage(answer: Answer) -> Json:
    """What the returned choices took; tiers that were asked before are in route.usage_total."""
    first = answer.completion
    prompt, completion = first.prompt_tokens, first.completion_tokens
    completion += sum([answered(hop).completion_tokens for hop in answer.siblings])
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def answered(hop: Hop) -> Completion:
    assert hop.completion is not None, "a hop without a completion is never served"
    return hop.completion


@lru_cache(maxsize=256)  # tiers are few; a server's word for its model is not ours
def system_fingerprint(tier: str, model: str, calibrator_id: str) -> str:
    """Changes when the model, its tier or its calibrator does."""
    facts = f"{tier}\n{model}\n{calibrator_id}"
    return f"fp_{hashlib.blake2s(facts.encode(), digest_size=6).hexdigest()}"


def headers(opening: Opening, call: Call) -> dict[str, str]:
    """The facts every answer carries. Models and clients never write in here."""
    told = {
        "x-route-schema": SCHEMA,
        "x-route-id": call.route_id,
        "x-route-model": plain(opening.model),
        "x-route-tier": plain(opening.tier),
        "x-route-policy": plain(call.request.policy),
        "x-route-tiers-tried": str(opening.tried),
        "x-route-confidence": number(opening.p_correct),
        "x-route-threshold": number(opening.threshold),
        "x-route-reason": str(opening.reason),
        "x-route-calibrator": plain(opening.calibrator_id),
    }
    if call.request.stream:
        told["x-route-stream-mode"] = call.mode
    return told


def of_refusal(story: Story) -> dict[str, str]:
    """What an error tells of the route that it ended: whose it was and how far it got. Of an answer there is nothing
    to tell, and of a request that was refused before there is the id alone."""
    told = {"x-route-id": story.number}
    if story.route is not None:
        told |= {"x-route-policy": plain(story.model), "x-route-tiers-tried": str(story.tried)}
    return told


@lru_cache(maxsize=1024)  # names of ours, and of a server's model
def plain(text: str) -> str:
    """A name fit for a header: short, and nothing that could end a line."""
    return PLAIN.sub("?", text[:256])


def number(share: float | None) -> str:
    return "null" if share is None else f"{share:.6g}"


def route(answer: Answer, call: Call) -> Json:
    """The whole way to the answer."""
    served, spent = answer.served, answer.cost
    return {
        "schema": int(SCHEMA),
        "id": call.route_id,
        "model": answer.completion.model,
        "tier": served.tier,
        "policy": answer.policy.name,
        "certified": answer.policy.certified,
        "reason": answer.reason,
        "confidence": served.p_correct,
        "threshold": served.threshold,
        "calibrator": served.calibrator_id,
        "null_reason": served.null_reason,
        "source": served.completion.seen.source if served.completion and served.completion.seen else None,
        "hops": turns(answer.hops),
        "siblings": turns(answer.siblings),
        "usage_total": {
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "total_tokens": spent.total_tokens,
        },
        "cost": {"usd": spent.usd},
        "seconds": round(answer.seconds, 4),
        "ignored": list(call.ignored),
    }


def turns(hops: Sequence[Hop]) -> list[Json]:
    return [
        {
            "tier": hop.tier,
            "reason": hop.reason,
            "confidence": hop.p_correct,
            "threshold": hop.threshold,
            "null_reason": hop.null_reason,
            "tokens": hop.cost.total_tokens,
            "seconds": round(hop.seconds, 4),
            "retries": len(hop.retried),
            "given_up": hop.given_up,
        }
        for hop in hops
    ]
