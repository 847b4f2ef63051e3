"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import quote, urlsplit

import msgspec
from pydantic import AfterValidator, Field, StringConstraints, model_validator

from gateway import engines
from gateway.engines import _compact, _http, _refusals, _reply, _stream, _text
from gateway.engines._replicas import Replica, Replicas
from gateway.errors import (
    BadTrace,
    ConfigError,
    EngineDown,
    EngineError,
    EngineGarbled,
    EngineRefused,
    EngineSlow,
    EngineTooSmall,
)
from gateway.nouns import (
    GREEDY,
    TOLD_WHOLE,
    Ability,
    Ask,
    Completion,
    Hear,
    Message,
    Piece,
    Sampling,
    Summary,
    TokenTrace,
)
from gateway.resilience.limit import Limit
from gateway.written import SecretReference, read_secret, wrong

log = logging.getLogger(__name__)

MIB = 2**20
READY_SECONDS = 2.0
IDENTITY_SECONDS = 10.0  # vLLM's loop answers nobody while it builds replies with 20 candidates a token for a crowd
NAME_CHARACTERS = 200  # of a model's name that a server made up, in the log
DRAIN_SECONDS = 0.05  # for the end of a body whose [DONE] has come: 5 bytes, and the connection can be used again


def with_an_address_there_can_be(url: str) -> str:
    try:
        host, _ = urlsplit(url).hostname or "", urlsplit(url).port
        _ = host.encode("idna")
    except ValueError as error:
        raise wrong("{url}: {told}", url=url, told=str(error)) from None
    if not host:
        raise wrong("{url}: it names no host", url=url)
    return url


Url = Annotated[str, StringConstraints(pattern=r"^https?://[^\s?#]+$"), AfterValidator(with_an_address_there_can_be)]


class Options(engines.Options):
    """A server, and the name of one model that it serves."""

    abilities: ClassVar[frozenset[Ability]] = frozenset({Ability.RAW_PROMPT, Ability.SAMPLER, *TOLD_WHOLE})
    forwards: ClassVar[bool] = True

    kind: Literal["openai_http"]
    url: Url | None = Field(default=None, description="up to and including /v1", examples=["http://127.0.0.1:8001/v1"])
    urls: tuple[Url, ...] = Field(
        default=(), max_length=64, description="instead: several servers of the very same model"
    )
    model: str = Field(min_length=1, description="as the server calls it")
    api_key: SecretReference | None = None
    connect_seconds: float = Field(1.0, gt=0, description="its name's look-up and TLS included")
    first_byte_seconds: float = Field(
        10.0,
        gt=0,
        description="of a stream: how long until its first token; a replica given up after so long counts as failing",
    )
    idle_seconds: float = Field(
        15.0, gt=0, description="how long a stream that has begun may stay silent; what a reply's body may take"
    )
    whole_by: Literal["reply", "stream"] = Field(
        default="reply",
        description="how answers are asked for that nobody hears before they are complete. A reply costs less, but "
        "says nothing until it is made: that a server hangs is found out when the tier's patience ends; by stream, "
        "after first_byte_seconds or idle_seconds",
    )
    max_reply_mib: float = Field(16.0, gt=0)
    confidence: Literal["logprobs", "engine"] = Field(
        "logprobs",
        description="where evidence comes from: log-probs over HTTP, or our plugin inside vLLM (docs/vllm_plugin.md)",
    )
    confidence_k: int = Field(20, ge=1, le=20, description="candidates in the plugin's mean of the largest log-probs")
    continuous_usage: bool = Field(
        default=False,
        description="vLLM: streams count tokens all along, so that what a cancelled answer cost is known in full",
    )
    prefix_cache: Literal["shared", "client"] = Field(
        default="shared",
        description="vLLM: client keeps each client's cached prompts apart, so that nobody can tell by the time of an "
        "answer what others have asked; shared saves the work on what many prompts begin with",
    )
    priority: bool = Field(
        default=False,
        description="vLLM, started with `--scheduling-policy priority`: send the client's priority; others refuse it",
    )
    extra_body: dict[str, Any] = Field(
        default={},
        description="fields sent with every request. A vLLM server without `--generation-config vllm` applies its "
        "model's own defaults: overrule them with {repetition_penalty: 1.0, top_k: -1}",
    )

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.url is None) == (not self.urls):
            raise wrong("a server needs either url or urls", at=("urls",) if self.urls else ())
        if len(set(self.urls)) < len(self.urls):
            raise wrong("the same server is named twice", at=("urls",))
        return self


async def open_engine(options: Options, *, name: str) -> OpenAIHttp | Replicas:
    """Makes the sessions; no byte is sent yet."""
    key = read_secret(options.api_key).get_secret_value() if options.api_key else None
    if options.url is not None:
        return OpenAIHttp(options, name, key)
    alone = {url: options.model_copy(update={"url": url, "urls": ()}) for url in options.urls}
    members = [Replica(url, OpenAIHttp(one, name, key)) for url, one in alone.items()]
    hung_seconds = math.inf if options.whole_by == "stream" else options.first_byte_seconds  # else they notice
    return Replicas(name, members, hung_seconds)


class OpenAIHttp:
    """One model on one server. Must be made and used inside one event loop."""

    def __init__(self, options: Options, name: str, key: str | None = None) -> None:
        self.name = name
        self._options = options
        assert options.url is not None, "one engine, one server"
        self._base = options.url.rstrip("/")
        self._path = quote(urlsplit(self._base).path, safe="/%:@!$&'()*+,;=")
        self._root = self._path.removesuffix("/v1")  # vLLM's own endpoints
        self._client = self._open(key)
        self._questions = itertools.count()
        self._other = ""  # the model that answered last, unless it was the configured one

    def _open(self, key: str | None) -> _http.Client:
        """No compression: a small body may unpack to a huge one. Raises ConfigError."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "confidence-gateway"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        options = self._options
        cap = int(options.max_reply_mib * MIB)
        try:
            return _http.Client(self._base, headers, connect_seconds=options.connect_seconds, most_bytes=cap)
        except ValueError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    async def complete(self, ask: Ask) -> Completion:
        """One answer. Raises EngineError leaves only; a cancelled call closes its connection."""
        if self._options.whole_by == "stream" and not ask.needs & TOLD_WHOLE:
            return await self.stream(ask, unheard)
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            raw = await self._post(ask)
        except EngineTooSmall as error:
            ask = await self._shortened(ask, error)
            raw = await self._post(ask)
        read = _reply.read if ask.prompt is None else _text.read
        answered = read(raw, ask, self.name)
        return self._completion(answered, ask, loop.time() - began)

    async def stream(self, ask: Ask, hear: Hear) -> Completion:
        """The same piece by piece. A call that is cancelled, broken or ended by `hear` closes its connection."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answered = await self._listen(ask, hear)
        except EngineTooSmall as error:
            answered = await self._listen(await self._shortened(ask, error), hear)
        return self._completion(answered, ask, loop.time() - began)

    def _completion(self, answered: _reply.Answered, ask: Ask, seconds: float) -> Completion:
        trace, summary, no_trace = evidence(answered, ask, self._options)
        other = self._is_other(answered.model)
        if other:
            trace, summary, no_trace = trace if ask.texts else None, None, _reply.another(self._options.model)
        return Completion(
            answered.text,
            answered.finish,
            answered.prompt_tokens,
            answered.completion_tokens,
            self.name,
            answered.model,
            seconds,
            trace,
            no_trace,
            _reply.clamped_tokens(trace),
            answered.calls,
            answered.prompt_token_ids,
            answered.token_ids,
            answered.reasoning,
            answered.stop_reason,
            summary,
            other,
            answered.response_id,
        )

    def _is_other(self, model: str) -> bool:
        """Whether an answer is another model's than was asked for; of each change operators are told."""
        other = "" if model == self._options.model else model[:NAME_CHARACTERS] or "nameless"
        if other != self._other:
            self._other = other
            told = {"tier": self.name, "url": self._base, "configured": self._options.model}
            if other:
                log.error("another model answers", extra=told | {"model": other})
            else:
                log.warning("the configured model answers again", extra=told)
        return bool(other)

    async def _listen(self, ask: Ask, hear: Hear) -> _reply.Answered:
        """One stream to its end. Raises EngineError leaves, and what `hear` raises."""
        body = request_body(ask, self._options) | streamed(self._options)
        kind = _stream.Assembly if ask.prompt is None else _text.Assembly
        assembly = kind(ask, self.name, self._options.model)
        options, now = self._options, asyncio.get_running_loop().time
        limit = Limit(now() + options.first_byte_seconds)  # while we wait for the server, never for who hears
        heard = False
        told = self._client.request("POST", self._at(ask), msgspec.json.encode(body), self._told(ask))
        try:
            with limit, await self._client.ask(told, fresh=ask.fresh) as reply:
                await reply.head()
                await self._check(reply, "text/event-stream")
                async for raw in reply.pieces():
                    piece = assembly.take(raw)
                    if piece is not None:
                        if not heard:
                            self._is_other(piece.model)
                        heard = True
                        limit.reschedule(None)
                        await hear(piece)
                    if assembly.done:
                        break
                    if assembly.begun:
                        limit.reschedule(now() + options.idle_seconds)
                answered, end = assembly.finished()
                limit.reschedule(None)
                if end is not None:
                    heard = True
                    await hear(end)
                await drain(reply)
        except _http.Trouble as error:
            raise self._translated(error, heard=heard) from error
        except EngineDown as error:
            error.again = error.again and not heard
            raise
        except (EngineRefused, EngineTooSmall) as error:
            if heard:  # of a request that it has taken this says nothing, and half its answer was told
                raise EngineDown(self.name, f"broke its answer off ({error})") from None
            raise
        except TimeoutError:
            raise EngineSlow(
                self.name, options.idle_seconds if assembly.begun else options.first_byte_seconds
            ) from None
        return answered

    async def _shortened(self, ask: Ask, error: EngineTooSmall) -> Ask:
        """The ask with what the window leaves for its answer. Raises the error where the prompt alone is too long."""
        if ask.prompt is not None and error.prompt_tokens is None:
            error = EngineTooSmall(self.name, await self._counted(ask.prompt), error.window_tokens)
        shorter = fitting(ask, error)
        if shorter is None:
            raise error
        return shorter

    async def _counted(self, prompt: str) -> int | None:
        """Tokens of a raw prompt, by vLLM's own endpoint; other servers do not have it."""
        body = msgspec.json.encode({"model": self._options.model, "prompt": prompt})
        try:
            raw = await self._call(self._client.request("POST", f"{self._root}/tokenize", body))
            return msgspec.json.decode(raw, type=Tokenized).count
        except (EngineError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None

    async def _post(self, ask: Ask) -> bytes:
        """The body of a 200. Raises EngineError leaves only."""
        body = msgspec.json.encode(request_body(ask, self._options))
        told = self._client.request("POST", self._at(ask), body, self._told(ask))
        return await self._call(told, fresh=ask.fresh)

    def _told(self, ask: Ask) -> str:
        """Headers of one question. In the server's log it is called by its decision, and no two alike, because a first
        attempt may still be running there when the second comes."""
        named = f"X-Request-Id: {ask.decision}-{self.name}-{next(self._questions)}\r\n" if ask.decision else ""
        return f"{named}traceparent: {ask.trace}\r\n" if ask.trace else named

    def _at(self, ask: Ask) -> str:
        return f"{self._path}/chat/completions" if ask.prompt is None else f"{self._path}/completions"

    async def _call(self, told: bytes, *, fresh: bool = False) -> bytes:
        """The body of a 200, whatever is wrong translated into our errors."""
        try:
            with await self._client.ask(told, fresh=fresh) as reply:
                await reply.head()
                if not reply.complete:  # it has been made, and is only on its way; nearly always it comes at once
                    with Limit(asyncio.get_running_loop().time() + self._options.idle_seconds):
                        await reply.rest()
                await self._check(reply, "application/json")
                return await reply.whole()
        except _http.Trouble as error:
            raise self._translated(error) from error
        except TimeoutError:
            raise EngineSlow(self.name, self._options.idle_seconds) from None

    def _translated(self, error: _http.Trouble, *, heard: bool = False) -> EngineError:
        """heard: a part of the answer was told already, so nobody else can be asked for it."""
        match error:
            case _http.ConnectTimeout():
                return EngineDown(self.name, f"no connection within {self._options.connect_seconds:g} s")
            case _http.Unreachable():
                return EngineDown(self.name, f"nobody answers at {self._base} ({error})", again=True)
            case _http.TooLarge():
                return EngineGarbled(self.name, f"a reply larger than {self._options.max_reply_mib:g} MiB")
            case _http.Improper():
                return EngineGarbled(self.name, f"no proper HTTP ({error})")
            case _:
                return EngineDown(self.name, f"the connection broke ({error})", again=not heard)

    async def _check(self, reply: _http.Reply, kind: str) -> None:
        """Raises what a reply that is not a plain 200 of this content type means."""
        if reply.headers.get("content-encoding", "identity").lower() != "identity":
            raise EngineGarbled(self.name, "a compressed reply, though plain was asked for")
        if reply.status != 200:
            raise _refusals.refusal(self.name, reply.status, reply.headers, await reply.whole())
        if reply.headers.get("content-type", "").partition(";")[0].strip().lower() != kind:
            raise EngineGarbled(self.name, f"a reply that is no {kind}")

    async def ready(self) -> bool:
        """Whether the server lists the model, within two seconds."""
        try:
            async with asyncio.timeout(READY_SECONDS):
                return bool(await self._listed())
        except (EngineError, TimeoutError):
            return False

    async def fingerprint(self) -> Mapping[str, str]:
        """The model's name, the server's kind and version. No such server can tell a revision or a chat template."""
        try:
            async with asyncio.timeout(IDENTITY_SECONDS):
                listed = await self._listed()
                version = await self._version()
        except TimeoutError:
            raise EngineDown(self.name, f"did not say who it is within {IDENTITY_SECONDS:g} s") from None
        return listed | version

    async def _listed(self) -> dict[str, str]:
        """Raises EngineRefused when the server does not serve the model."""
        raw = await self._call(self._client.request("GET", f"{self._path}/models"))
        try:
            models = msgspec.json.decode(raw, type=Models).data
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise EngineGarbled(self.name, "no list of models") from None
        for model in models:
            if model.id == self._options.model:
                return {"model": model.id} | ({"engine": model.owned_by} if model.owned_by else {})
        have = ", ".join(model.id for model in models[:5])
        raise EngineRefused(self.name, 404, f"the server does not serve {self._options.model}, it serves: {have}")

    async def _version(self) -> dict[str, str]:
        """vLLM's own endpoint; other servers do not have it."""
        try:
            raw = await self._call(self._client.request("GET", f"{self._root}/version"))
            return {"engine_version": msgspec.json.decode(raw, type=Version).version}
        except (EngineError, msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return {}

    async def close(self) -> None:
        self._client.close()


async def unheard(_: Piece) -> None:
    """Who wants the whole answer alone."""


async def drain(reply: _http.Reply) -> None:
    """Read what is behind an answer's end, if that is soon over; else the connection is not used again."""
    with suppress(TimeoutError, _http.Trouble):
        async with asyncio.timeout(DRAIN_SECONDS):
            await reply.whole()


class Model(msgspec.Struct):
    id: str
    owned_by: str = ""


class Models(msgspec.Struct):
    data: list[Model]


class Version(msgspec.Struct):
    version: str


class Tokenized(msgspec.Struct):
    count: int


def request_body(ask: Ask, options: Options) -> dict[str, Any]:
    """What is sent. The sampler is always written out, because servers have defaults of their own."""
    sampling = ask.sampling
    body: dict[str, Any] = {
        "model": options.model,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "n": 1,
        "stream": False,
    }
    raw = ask.prompt is not None
    body |= {"prompt": ask.prompt} if raw else {"messages": [turn(message) for message in ask.messages]}
    in_engine = options.confidence == "engine" and not raw
    if ask.texts or (ask.evidence and not in_engine):
        body |= {"logprobs": ask.top_k} if raw else {"logprobs": True, "top_logprobs": ask.top_k}
    if in_engine and _compact.wanted(ask):
        body |= _compact.wish(options.confidence_k, ask.window)
    if ask.max_tokens is not None:
        body["max_tokens"] = ask.max_tokens
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if options.prefix_cache == "client" and ask.salt:
        body["cache_salt"] = ask.salt
    if options.priority and ask.priority:
        body["priority"] = ask.priority
    body |= options.extra_body
    body |= vllm_sampler(sampling)
    body |= ask.fields
    return body


def turn(message: Message) -> dict[str, Any]:
    """One message as it is sent."""
    told: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        told["content"] = message.content or None
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    if message.call_id:
        told["tool_call_id"] = message.call_id
    return told


def vllm_sampler(sampling: Sampling) -> dict[str, Any]:
    """What other servers may not know, so it is sent only where it was asked for."""
    if sampling is GREEDY:
        return {}
    names = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens")
    return {name: getattr(sampling, name) for name in names if getattr(sampling, name) != getattr(GREEDY, name)}


def evidence(answered: _reply.Answered, ask: Ask, options: Options) -> tuple[TokenTrace | None, Summary | None, str]:
    """The trace and the engine's summary of an answer, or why there is none. Never one source in another's place: the
    calibrator is of one."""
    if options.confidence == "logprobs" or ask.prompt is not None or not _compact.wanted(ask):
        return answered.trace, None, answered.no_trace
    told, tokens, k = answered.confidence, answered.completion_tokens, options.confidence_k
    try:
        if ask.window:
            return answered.trace, _compact.summary(told, tokens, k, ask.window), ""
        return _compact.read(told, tokens, k, answered.trace), None, ""
    except BadTrace as error:
        return answered.trace, None, str(error)  # log-probs that a client asked for are his all the same


def streamed(options: Options) -> dict[str, Any]:
    """What makes the same request a stream. Usage comes with its last event."""
    continuous = {"continuous_usage_stats": True} if options.continuous_usage else {}
    return {"stream": True, "stream_options": {"include_usage": True, **continuous}}


def fitting(ask: Ask, error: EngineTooSmall) -> Ask | None:
    """The ask with as many tokens as the window leaves, when it may be the answer's length and not the prompt's.

    A server that did not count a chat's prompt is asked without a limit: then it gives what is left. Of a raw prompt it
    would give 16 tokens then, and fails (vLLM 0.22) where it is told null.
    """
    if ask.max_tokens is None:
        return None
    if error.prompt_tokens is None:
        return replace(ask, max_tokens=None) if ask.prompt is None else None
    room = error.window_tokens - error.prompt_tokens
    return replace(ask, max_tokens=room) if 0 < room < ask.max_tokens else None
