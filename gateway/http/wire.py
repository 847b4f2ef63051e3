"""What a client may send, field by field, and the Ask it becomes. Nothing is passed on that is not listed here.

The fields of chat completions are here, and those that OpenAI's older completions share with them (`Request`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import from_json

from gateway.config import Server
from gateway.http.errors import RequestError
from gateway.nouns import GREEDY, Ability, Ask, Message, Mode, Sampling, ToolCall
from gateway.written import unknown

VLLM_SAMPLER = ("top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos", "min_tokens")
SAMPLER_FIELDS = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", *VLLM_SAMPLER)
# Of every request: what not every tier can do.
ABLE = frozenset({*VLLM_SAMPLER, "return_token_ids", "route", "response_format", "structured_outputs"})
SAMPLING_FIELDS = frozenset(SAMPLER_FIELDS) | {"seed", "stop"}

# Never taken: each would let a client run code, reach an address or read memory on the model server.
REFUSED = frozenset(
    {"chat_template", "prompt_logprobs", "kv_transfer_params", "session_id", "prompt_embeds", "mm_processor_kwargs"}
)

# What tools were called before they were called tools; taken with these harmless values only.
UNSUPPORTED: dict[str, tuple[object, ...]] = {"functions": ([],), "function_call": ("none", "auto")}

Json = dict[str, Any]

Text = Annotated[str, Field(max_length=16 * 2**20)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
SIGNED_64 = 2**63
MOST_TOKENS = 2**20  # no window holds more, and whoever asks for more gets what there is
Tokens = Annotated[int, Field(ge=1, lt=SIGNED_64), AfterValidator(lambda wanted: min(wanted, MOST_TOKENS))]


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


class Listed(BaseModel):
    """An object of a request of which the listed fields are read and passed on."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True)


class FunctionCall(Listed):
    """arguments: as the model wrote them."""

    name: FunctionName
    arguments: Text


class CallMade(Listed):
    """A tool call of an earlier answer."""

    id: str = Field(max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall


def turns(schema: Json) -> None:
    """A message's schema as what may stand together: something said, calls made, and what a called tool answered."""
    told = schema.pop("properties")
    said, calls, call_id = ({"anyOf": told[name]["anyOf"][:1]} for name in ("content", "tool_calls", "tool_call_id"))
    nothing: Json = {"type": "null"}
    asked = {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": said}
    called = {"role": {"const": "assistant"}, "content": told["content"], "tool_calls": calls}
    answered = {"role": {"const": "tool"}, "content": said, "tool_call_id": {"anyOf": [*call_id["anyOf"], nothing]}}
    schema["anyOf"] = [
        {"required": ["role", "content"], "properties": asked | {"tool_calls": nothing, "tool_call_id": nothing}},
        {"required": ["role", "tool_calls"], "properties": called | {"tool_call_id": nothing}},
        {"required": ["role", "content"], "properties": answered | {"tool_calls": nothing}},
    ]
    schema.pop("required")


class ChatMessage(Listed):
    """One turn."""

    model_config = ConfigDict(extra="ignore", strict=True, hide_input_in_errors=True, json_schema_extra=turns)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(default=None, description="null only beside tool_calls")
    tool_calls: list[CallMade] | None = Field(default=None, min_length=1, max_length=128, description="of an assistant")
    tool_call_id: str | None = Field(default=None, max_length=256, description="of a tool: the call that it answers")

    @property
    def text(self) -> str:
        content = self.content
        if content is None or isinstance(content, str):
            return content or ""
        return "".join(part.text for part in content)

    @property
    def plain(self) -> bool:
        """Without tools."""
        return self.tool_calls is None and self.tool_call_id is None

    @property
    def turn(self) -> Message:
        if self.plain:
            return Message(self.role, self.text)
        calls = [ToolCall(one.id, one.function.name, one.function.arguments) for one in self.tool_calls or ()]
        return Message(self.role, self.text, tuple(calls), self.tool_call_id or "")


class Function(Listed):
    """parameters: a JSON schema."""

    name: FunctionName
    description: str | None = Field(default=None, max_length=65536)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Listed):
    """Something that the model may want called."""

    type: Literal["function"]
    function: Function


class FunctionChosen(Listed):
    """Which one."""

    name: FunctionName


class ToolChosen(Listed):
    """The one tool to be called."""

    type: Literal["function"]
    function: FunctionChosen


class JsonSchema(Listed):
    """What an answer has to look like."""

    name: FunctionName
    description: str | None = Field(default=None, max_length=65536)
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class PlainFormat(Listed):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


class SchemaFormat(Listed):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def format_kind(told: object) -> str:
    """What a response format is, as sent or as read."""
    kind = told.get("type") if isinstance(told, dict) else getattr(told, "type", None)
    return "<schema>" if kind == "json_schema" else "<plain>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")] | Annotated[ToolChosen, Tag("<object>")],
    Discriminator(lambda told: "<string>" if isinstance(told, str) else "<object>"),
]
ResponseFormat = Annotated[
    Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")], Discriminator(format_kind)
]


class StructuredOutputs(BaseModel):
    """vLLM's. One of these."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: str | None = Field(default=None, min_length=1, max_length=65536)
    choice: list[Text] | None = Field(default=None, min_length=1, max_length=1024)
    grammar: str | None = Field(default=None, min_length=1, max_length=65536)
    json_object: Literal[True] | None = None


class ChatTemplateKwargs(BaseModel):
    """What may be said to a chat template: no names of templates, nothing that it could not be asked for otherwise."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    enable_thinking: bool | None = None
    thinking: bool | None = None


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
    extras: list[Literal["reasoning", "stop_reason"]] | None = Field(
        default=None, max_length=2, description="of the server's, to be told with a whole answer"
    )


# Objects of ours, or of few words, where a word that means nothing is a mistake. Elsewhere it is ignored, and told.
EXACT: dict[str, type[BaseModel]] = {
    "route": RouteOptions,
    "structured_outputs": StructuredOutputs,
    "chat_template_kwargs": ChatTemplateKwargs,
}


class Request(BaseModel):
    """The fields of every request for an answer. A field that is null counts as absent."""

    model_config = ConfigDict(extra="allow", strict=True, hide_input_in_errors=True)

    model: str = Field(min_length=1, max_length=256, description="auto, auto:<policy>, or a tier's name")
    max_tokens: Tokens | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, description="absent: greedy, unlike OpenAI")
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-SIGNED_64, lt=SIGNED_64)
    stop: StopStrings | None = None
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(default=None, max_length=1024)
    n: int | None = Field(default=None, ge=1, le=128)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, max_length=512)
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(
        default=None,
        max_length=16,
        description="not passed on; kept as far as monitors.slices.metadata lists it",
    )
    route: RouteOptions | None = None

    top_k: int | None = Field(default=None, ge=-1, le=2**20, description="vLLM's; -1 and 0 for all")
    min_p: float | None = Field(default=None, ge=0, le=1, description="vLLM's")
    repetition_penalty: float | None = Field(default=None, gt=0, le=2, description="vLLM's")
    stop_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(
        default=None, max_length=64, description="vLLM's"
    )
    ignore_eos: bool | None = Field(default=None, description="vLLM's")
    min_tokens: int | None = Field(default=None, ge=0, le=2**20, description="vLLM's")
    return_token_ids: bool | None = Field(default=None, description="vLLM's; whole answers only")
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(default=None, description="vLLM's")

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def policy(self) -> str:
        """The model asked for; `route.policy` says the same the other way."""
        named = self.route.policy if self.route else None
        return self.model if named is None else f"auto:{named}"

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
        extra = self.model_extra
        if not extra:
            return []
        return sorted(name for name in extra if extra[name] is not None and name not in UNSUPPORTED)

    @property
    def extras(self) -> Sequence[str]:
        """What of the server's is to be told beside the answer."""
        return (self.route and self.route.extras) or ()

    def check(self, server: Server) -> None:
        """Rules about more than one field. Raises RequestError."""
        if self.stream_options is not None and not self.stream:
            raise RequestError(400, "stream_options needs stream: true.", param="stream_options")
        if self.choices > server.max_choices:
            raise RequestError(400, f"n may be at most {server.max_choices} here.", param="n")
        if self.return_token_ids and self.stream:
            raise RequestError(400, "return_token_ids needs a whole answer, not a stream.", param="return_token_ids")
        if self.stream and self.extras:
            raise RequestError(400, "route.extras needs a whole answer, not a stream.", param="route.extras")
        if self.min_tokens and self.tokens_wanted is not None and self.min_tokens > self.tokens_wanted:
            raise RequestError(400, "min_tokens may not exceed the most tokens wanted.", param="min_tokens")
        if self.structured_outputs is not None and len(self.structured_outputs.model_dump(exclude_none=True)) != 1:
            raise RequestError(400, "structured_outputs needs exactly one of its fields.", param="structured_outputs")

    @property
    def tokens_wanted(self) -> int | None:
        return self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        """Ours are never shown to one who does not."""
        raise NotImplementedError

    @property
    def candidates(self) -> int:
        """How many likely tokens the client wants to see at each place."""
        raise NotImplementedError

    @property
    def asked(self) -> tuple[tuple[Message, ...], str | None]:
        """Messages, or a raw prompt."""
        raise NotImplementedError

    def needs(self) -> dict[Ability, str]:
        """What a tier must be able to do, each with the field that says so."""
        told: dict[Ability, str] = {}
        if self.model_fields_set.isdisjoint(ABLE):
            return told
        vllm = [name for name in VLLM_SAMPLER if getattr(self, name) is not None]
        if vllm:
            told[Ability.SAMPLER] = vllm[0]
        if self.return_token_ids:
            told[Ability.WITH_IDS] = "return_token_ids"
        if self.extras:
            told[Ability.WITH_EXTRAS] = "route.extras"
        if self.response_format is not None and self.response_format.type != "text":
            told[Ability.RESPONSE_FORMAT] = "response_format"
        if self.structured_outputs is not None:
            told[Ability.STRUCTURED_OUTPUTS] = "structured_outputs"
        return told

    def fields_passed_on(self, needs: Mapping[Ability, str]) -> dict[str, Any]:
        """What a server gets as it is, once it is known that its tier takes it. needs: the request's."""
        if not needs:
            return {}
        names = {str(ability) for ability in needs if ability in type(self).model_fields}
        told = self.model_dump(include=names, exclude_none=True, by_alias=True)
        return told | ({"return_token_ids": True} if self.return_token_ids else {})


ABLE_CHAT = frozenset({"tools", "reasoning_effort", "chat_template_kwargs"})


class ChatRequest(Request):
    """The body of POST /v1/chat/completions. A field that is null counts as absent."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: Tokens | None = Field(default=None, description="wins over max_tokens")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    tools: list[Tool] | None = Field(default=None, max_length=128)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: ChatTemplateKwargs | None = Field(default=None, description="vLLM's")

    @property
    def tokens_wanted(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def candidates(self) -> int:
        return self.top_logprobs or 0

    @property
    def asked(self) -> tuple[tuple[Message, ...], str | None]:
        return tuple([message.turn for message in self.messages]), None

    def check(self, server: Server) -> None:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs: true.", param="top_logprobs")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise RequestError(400, "tool_choice needs tools.", param="tool_choice")
        for place, message in enumerate(self.messages):
            if message.content is None and not (message.role == "assistant" and message.tool_calls):
                param = f"messages.{place}.content"
                raise RequestError(400, f"{param}: Field required.", param=param)
            if message.tool_calls and message.role != "assistant":
                param = f"messages.{place}.tool_calls"
                raise RequestError(400, f"{param}: only an assistant calls tools.", param=param)
            if message.tool_call_id is not None and message.role != "tool":
                param = f"messages.{place}.tool_call_id"
                raise RequestError(400, f"{param}: only a tool answers calls.", param=param)
        super().check(server)

    def needs(self) -> dict[Ability, str]:
        told = super().needs()
        if self.model_fields_set.isdisjoint(ABLE_CHAT) and all(one.plain for one in self.messages):
            return told
        talks = (place for place, one in enumerate(self.messages) if one.tool_call_id is not None or one.tool_calls)
        first = next(talks, None)
        if self.tools or first is not None:
            told[Ability.TOOLS] = "tools" if self.tools else f"messages.{first}"
        for ability in (Ability.REASONING_EFFORT, Ability.CHAT_TEMPLATE_KWARGS):
            if getattr(self, ability) is not None:
                told[ability] = str(ability)
        return told

    def fields_passed_on(self, needs: Mapping[Ability, str]) -> dict[str, Any]:
        told = super().fields_passed_on(needs)
        if self.tools:
            told |= self.model_dump(include={"tool_choice", "parallel_tool_calls"}, exclude_none=True, by_alias=True)
        return told


Kind = TypeVar("Kind", bound=Request)


def read(body: bytes, server: Server, kind: type[Kind]) -> Kind:
    """Raises RequestError with 400 and the field at fault."""
    try:
        if b"NaN" in body or b"Infinity" in body:  # the reader of the next line takes them for numbers
            msgspec.json.decode(body)
        request = kind.model_validate_json(body)
    except msgspec.DecodeError:
        raise RequestError(400, "The request is not valid JSON.", code="invalid_json") from None
    except ValidationError as error:
        raise mistake(error) from None
    request.check(server)
    check_extra(request.model_extra or {})
    strange = unread(body, request) if server.strict_fields else []
    if strange:
        raise RequestError(400, f"Unknown field {strange[0]}.", param=strange[0], code="unknown_parameter")
    return request


def unread(body: bytes, request: Request) -> list[str]:
    """The way to every field of a body, however deep, that holds something and means nothing to us."""
    return sorted(shown(way) for way in strangers(from_json(body), request) if way not in UNSUPPORTED)


def strangers(told: Json, found: BaseModel, way: str = "") -> Iterator[str]:
    """told: what `found` was read from."""
    names = {field.alias or name: name for name, field in type(found).model_fields.items()}
    for key, value in told.items():
        read = getattr(found, names[key]) if key in names else None
        if key not in names and value is not None:
            yield f"{way}{key}"
        elif isinstance(read, BaseModel):
            yield from strangers(value, read, f"{way}{key}.")
        elif isinstance(read, list):
            for place, (one, item) in enumerate(zip(value, read, strict=True)):
                if isinstance(item, BaseModel):
                    yield from strangers(one, item, f"{way}{key}.{place}.")


def mistake(error: ValidationError) -> RequestError:
    """The first thing that is wrong, with the way to it as OpenAI writes it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if first["type"] == "json_invalid":
        return RequestError(400, "The request is not valid JSON.", code="invalid_json")
    parts = [str(part) for part in first["loc"] if not str(part).startswith("<") and part != "[key]"]
    param = shown(".".join(parts)) if parts else None
    if first["type"] == "extra_forbidden" and parts[0] in EXACT:
        told = unknown("field", shown(parts[-1]), EXACT[parts[0]].model_fields)
        return RequestError(400, f"{parts[0]}: {told}.", param=param, code="unknown_parameter")
    return RequestError(400, f"{param or 'The request'}: {first['msg']}.", param=param)


def shown(name: str) -> str:
    """A client's own word in our answer: short and printable."""
    return "".join(c if c.isprintable() and c.isascii() else "?" for c in name[:80])


def check_extra(extra: dict[str, Any]) -> None:
    """Fields that would change the answer, which no tier supports, are refused rather than ignored."""
    for name, value in extra.items():
        if value is None:
            continue
        if name in REFUSED or (name in UNSUPPORTED and value not in UNSUPPORTED[name]):
            raise RequestError(400, f"{name} is not supported.", param=name, code="unsupported_parameter")


def to_ask(
    request: Request,
    deadline: float,
    *,
    pin: bool,
    needs: Mapping[Ability, str] | None = None,
    decision: str = "",
    trace: str = "",
    salt: str = "",
    priority: int = 0,
) -> tuple[Ask, list[str]]:
    """The ask, and the fields of the request that were ignored.

    deadline: seconds on the loop's clock.  pin: keep to the calibrators' sampler whatever the client says.
    needs: of this request, where they are known already.  decision, trace, salt, priority: as in the Ask.
    """
    if needs is None:
        needs = needed(request, pin=pin)
    ignored = request.unknown
    if pin:
        ignored = sorted({*ignored, *(name for name in SAMPLER_FIELDS if getattr(request, name) is not None)})
    messages, prompt = request.asked
    ask = Ask(
        messages=messages,
        deadline=deadline,
        max_tokens=request.tokens_wanted,
        sampling=sampling(request, pin=pin),
        top_k=request.candidates,
        texts=request.wants_logprobs,
        decision=decision,
        prompt=prompt,
        needs=frozenset(needs),
        fields=request.fields_passed_on(needs),
        trace=trace,
        salt=salt,
        priority=priority,
    )
    return ask, ignored


def needed(request: Request, *, pin: bool) -> Mapping[Ability, str]:
    """What a tier must be able to do for the request, each with the field that says so."""
    told = request.needs()
    if pin:
        told.pop(Ability.SAMPLER, None)
    return told


def sampling(request: Request, *, pin: bool) -> Sampling:
    """What was asked for; what was not is as the calibrators had it."""
    said = request.model_fields_set & SAMPLING_FIELDS
    if all(getattr(request, name) in (None, getattr(GREEDY, name)) for name in said):
        return GREEDY  # nearly always, and to make another costs more than to look
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if pin:
        return Sampling(seed=request.seed, stop=stop)
    bias = tuple(sorted((int(token), value) for token, value in (request.logit_bias or {}).items()))
    made = Sampling(
        temperature=or_else(request.temperature, GREEDY.temperature),
        top_p=or_else(request.top_p, GREEDY.top_p),
        seed=request.seed,
        stop=stop,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias,
        top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=or_else(request.repetition_penalty, GREEDY.repetition_penalty),
        stop_token_ids=tuple(request.stop_token_ids or ()),
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
    )
    return GREEDY if made == GREEDY else made  # the very one is quickly known again


def or_else(said: float | None, unsaid: float) -> float:
    return unsaid if said is None else said
