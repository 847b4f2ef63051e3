"""What a client may send, field by field, and the Ask it becomes. Nothing is passed on that is not listed here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from gateway.config import Server
from gateway.http.errors import RequestError
from gateway.nouns import GREEDY, Ask, Message, Mode, Sampling

SAMPLER_FIELDS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")

# Never taken: each would let a client run code, reach an address or read memory on the model server.
REFUSED = frozenset(
    {"chat_template", "prompt_logprobs", "kv_transfer_params", "session_id", "prompt_embeds", "mm_processor_kwargs"}
)

# Taken with these harmless values only, until a tier can say that it supports more.
UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "reasoning_effort": ("none",),
}

Text = Annotated[str, Field(max_length=16 * 2**20)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
SIGNED_64 = 2**63


class Part(BaseModel):
    """One piece of a message. Only text: a picture's address would make the model server fetch it."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    type: Literal["text"]
    text: Text


def written_as(content: object) -> str:
    return "<parts>" if isinstance(content, list) else "<string>"


Content = Annotated[
    Annotated[Text, Tag("<string>")] | Annotated[list[Part], Field(min_length=1, max_length=256), Tag("<parts>")],
    Discriminator(written_as),
]
StopStrings = Annotated[
    Annotated[StopString, Tag("<string>")] | Annotated[list[StopString], Field(max_length=16), Tag("<parts>")],
    Discriminator(written_as),
]


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)

    include_usage: bool | None = None


class RouteOptions(BaseModel):
    """Our own field: how the route is shown, how a stream comes about, and what this request wants otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    debug: bool | None = None
    stream_mode: Literal["buffer", "prefix", "commit"] | None = None
    policy: str | None = Field(default=None, max_length=128, description="as the model auto:<policy>")
    threshold: float | None = Field(default=None, ge=0, le=1, description="accept at this probability, in every tier")
    max_tier: str | None = Field(default=None, max_length=128, description="stop at this tier")
    budget_usd: float | None = Field(default=None, ge=0, description="ask no tier that may exceed it")
    deadline_seconds: float | None = Field(default=None, gt=0)


class ChatRequest(BaseModel):
    """The body of POST /v1/chat/completions. A field that is null counts as absent."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=256, description="auto, auto:<policy>, or a tier's name")
    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**20)
    max_tokens: int | None = Field(default=None, ge=1, le=2**20, description="max_completion_tokens wins")
    temperature: float | None = Field(default=None, ge=0, le=2, description="absent: greedy, unlike OpenAI")
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-SIGNED_64, lt=SIGNED_64)
    stop: StopStrings | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    n: int | None = Field(default=None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(default=None, max_length=16)
    route: RouteOptions | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    def mode(self, usual: Mode) -> Mode:
        """How its stream comes about; several choices are decided on together. usual: of those who do not ask."""
        if not self.stream or self.choices > 1:
            return Mode.BUFFER
        return Mode(self.route.stream_mode) if self.route and self.route.stream_mode else usual

    @property
    def debug(self) -> bool:
        return bool(self.route and self.route.debug)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def unknown(self) -> list[str]:
        """Fields we do not know and that hold something."""
        extra = self.model_extra or {}
        return sorted(name for name in extra if extra[name] is not None and name not in UNSUPPORTED)


def read(body: bytes, server: Server) -> ChatRequest:
    """Raises RequestError with 400 and the field at fault."""
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise mistake(error) from None
    check_together(request, server)
    check_extra(request.model_extra or {})
    if server.strict_fields and request.unknown:
        name = request.unknown[0]
        raise RequestError(400, f"Unknown field {shown(name)}.", param=shown(name), code="unknown_parameter")
    return request


def mistake(error: ValidationError) -> RequestError:
    """The first thing that is wrong, with the way to it as OpenAI writes it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(400, "The request is not valid JSON.", code="invalid_json")
    parts = [str(part) for part in first["loc"] if not str(part).startswith("<") and part != "[key]"]
    param = shown(".".join(parts)) if parts else None
    return RequestError(400, f"{param or 'The request'}: {first['msg']}.", param=param)


def shown(name: str) -> str:
    """A client's own word in our answer: short and printable."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in name[:80])


def check_together(request: ChatRequest, server: Server) -> None:
    """Rules about more than one field."""
    if request.top_logprobs is not None and not request.logprobs:
        raise RequestError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.stream_options is not None and not request.stream:
        raise RequestError(400, "stream_options needs stream: true.", param="stream_options")
    if request.choices > server.max_choices:
        raise RequestError(400, f"n may be at most {server.max_choices} here.", param="n")


def check_extra(extra: dict[str, Any]) -> None:
    """Fields that would change the answer, which no tier supports yet, are refused rather than ignored."""
    for name, value in extra.items():
        if value is None:
            continue
        if name in REFUSED or (name in UNSUPPORTED and value not in UNSUPPORTED[name]):
            raise RequestError(400, f"{name} is not supported.", param=name, code="unsupported_parameter")


def to_ask(request: ChatRequest, deadline: float, *, pin: bool) -> tuple[Ask, list[str]]:
    """The ask, and the fields of the request that were ignored.

    deadline: seconds on the loop's clock.  pin: keep to the calibrators' sampler whatever the client says.
    """
    ignored = request.unknown
    if pin:
        ignored = sorted({*ignored, *(name for name in SAMPLER_FIELDS if getattr(request, name) is not None)})
    ask = Ask(
        messages=tuple(Message(message.role, message.text) for message in request.messages),
        deadline=deadline,
        max_tokens=request.max_completion_tokens or request.max_tokens,
        sampling=sampling(request, pin=pin),
        top_k=request.top_logprobs or 0,
        texts=bool(request.logprobs),
    )
    return ask, ignored


def sampling(request: ChatRequest, *, pin: bool) -> Sampling:
    """What was asked for; what was not is as the calibrators had it."""
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if pin:
        return Sampling(seed=request.seed, stop=stop)
    bias = tuple(sorted((int(token), value) for token, value in (request.logit_bias or {}).items()))
    return Sampling(
        temperature=GREEDY.temperature if request.temperature is None else request.temperature,
        top_p=GREEDY.top_p if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=stop,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
    )
