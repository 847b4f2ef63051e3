"""The words of the house: what a request, a trace, an answer are. Frozen, checked once, then trusted.

Log-probabilities are natural-log ("nats"), at most 0. Raw signals are in nats, higher = surer; only a number whose name
starts with `p_` is a calibrated probability, and only such a number ever meets a threshold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from gateway.errors import BadTrace, EngineError
from gateway.noun import noun
from gateway.resilience.guard import Guard

Floats = npt.NDArray[np.float64]


class Reason(StrEnum):
    """Why a hop ended as it did, and why an answer was served. The words are the API's own."""

    CONFIDENT = "confident"
    UNSURE = "unsure"
    LAST = "last"
    BYPASS = "bypass"
    FALLBACK = "fallback"
    ABSTAINED = "abstained"
    BUDGET = "budget"
    DEADLINE = "deadline"
    TRUNCATED = "truncated"
    NO_EVIDENCE = "no_evidence"
    SAMPLER_CHANGED = "sampler_changed"
    UNCALIBRATED = "uncalibrated"
    TOO_SMALL = "too_small"
    RATE_LIMITED = "rate_limited"
    BREAKER_OPEN = "breaker_open"
    FAILED = "failed"
    SLOW = "slow"


class Finish(StrEnum):
    """How a text ended: by itself, cut at the token limit, or by a tool call or filter of the engine's."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"

    @property
    def cut(self) -> bool:
        """Whether the text ends before the answer does, which no calibrator was fitted on."""
        return self is Finish.LENGTH or self is Finish.CONTENT_FILTER


class Mode(StrEnum):
    """How an answer is streamed to a client. docs/streaming.md says what each is good for."""

    BUFFER = "buffer"  # decided on as a whole, then replayed
    PREFIX = "prefix"  # its first tokens are held and decided on, the rest passes through
    COMMIT = "commit"  # the tier is chosen beforehand, everything passes through


class Source(StrEnum):
    """Where evidence came from. A calibrator is valid for the one it was fitted on and refuses the others."""

    PLUGIN = "plugin"  # arrays computed inside vLLM
    TOP_LOGPROBS = "top_logprobs"  # chosen token and the K most likely ones
    CHOSEN = "chosen"  # chosen token only


class Ability(StrEnum):
    """What a request may need beyond plain chat. A tier has it or not; the first five only where its configuration
    allows them."""

    TOOLS = "tools"
    RESPONSE_FORMAT = "response_format"
    REASONING_EFFORT = "reasoning_effort"
    STRUCTURED_OUTPUTS = "structured_outputs"
    CHAT_TEMPLATE_KWARGS = "chat_template_kwargs"
    RAW_PROMPT = "completions"  # a text to go on with, without a chat template around it
    SAMPLER = "sampler"  # vLLM's samplers beside OpenAI's
    WITH_IDS = "token_ids"  # told with the answer
    WITH_EXTRAS = "extras"  # what was thought before it, and what it stopped at


TOLD_WHOLE = frozenset({Ability.WITH_IDS, Ability.WITH_EXTRAS})  # by replies, and by no stream
# These change nothing about what a calibrator may say; a sampler is looked at in its own right.
HARMLESS = frozenset({Ability.SAMPLER, *TOLD_WHOLE})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called. arguments: as the model wrote them, JSON if all is well."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallPart:
    """What a piece of an answer adds to the call at `index`. id, name: told once, "" afterwards."""

    index: int
    arguments: str
    id: str = ""
    name: str = ""


@noun(frozen=True, slots=True)
class Message:
    """One turn of a conversation. calls: what the assistant wanted called.  call_id: which call this answers."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""


@noun(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. The default is greedy, which is what calibrators are fitted under.

    From top_k on, vLLM's: 0 candidates, a share of 0 and a penalty of 1 are none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0

    def draws_like(self, other: Sampling) -> bool:
        """Whether both draw tokens from the same distribution: seeds and stop strings, and without heat what only
        narrows the choice, do not change it."""
        return self is other or self._drawing() == other._drawing()

    def _drawing(self) -> tuple[object, ...]:
        narrowed = (self.top_p, self.top_k, self.min_p) if self.temperature > 0 else None
        changed = (self.presence_penalty, self.frequency_penalty, self.logit_bias, self.repetition_penalty)
        return self.temperature, narrowed, changed, self.stop_token_ids, self.ignore_eos, self.min_tokens


GREEDY = Sampling()


@noun(frozen=True, slots=True)
class Ask:
    """One request to one engine, or to the cascade as a whole.

    max_tokens: completion tokens wanted, None for the engine's own limit.  deadline: seconds on the loop's clock.
    top_k: how many most-likely tokens per position the engine must report (0: the chosen token alone).
    texts: the candidates' texts are wanted too (a client asked for log-probs); features never need them.
    evidence: whether log-probs are needed at all; a server is a third faster without.
    window: of the groups in an engine's own Summary of the answer, where that is all that is needed; 0 where it is not.
    fresh: an engine on a network takes a new connection, because those it holds may all have died at once.
    decision: names what is being decided; a policy that is a mix draws by it, so the same decision draws alike.
    prompt: a raw text to go on with, instead of messages.
    needs: what a tier must be able to do.  fields: sent to it as they are, because it is.
    trace: the W3C traceparent under which an engine on a network may report its own spans; "" for none.
    salt: the client's own part of a server's prefix cache, if the server keeps clients apart; "" for none.
    priority: the client's, where a server schedules by it; lower is earlier.
    """

    messages: tuple[Message, ...]
    deadline: float
    max_tokens: int | None = None
    sampling: Sampling = GREEDY
    top_k: int = 0
    texts: bool = False
    evidence: bool = True
    fresh: bool = False
    decision: str = ""
    prompt: str | None = None
    needs: frozenset[Ability] = frozenset()
    fields: Mapping[str, Any] = field(default_factory=dict)
    trace: str = ""
    salt: str = ""
    priority: int = 0
    window: int = 0

    def wanting(self, top_k: int, *, evidence: bool, window: int = 0) -> Ask:
        """The same for other evidence. Every tier needs its own, and `replace` takes three times as long."""
        return Ask(
            self.messages,
            self.deadline,
            self.max_tokens,
            self.sampling,
            top_k,
            self.texts,
            evidence,
            self.fresh,
            self.decision,
            self.prompt,
            self.needs,
            self.fields,
            self.trace,
            self.salt,
            self.priority,
            window,
        )

    @property
    def characters(self) -> int:
        """Of the prompt, about; tools and formats as they are sent."""
        called = sum(len(call.arguments) for message in self.messages for call in message.calls)
        sent = len(json.dumps(self.fields, ensure_ascii=False)) if self.fields else 0
        return sum(len(message.content) for message in self.messages) + len(self.prompt or "") + called + sent


@noun(frozen=True, slots=True, eq=False)
class TokenTrace:
    """What the engine said about each token of one answer, the end token apart.

    chosen: (T,) nats <= 0, log-prob of the emitted token.
    top:    (T, K) nats, the K most likely tokens, falling along K; None when the engine gave none.
    tokens: T byte strings whose concatenation is the answer's UTF-8 text; empty when the engine did not give them.
    words: T byte strings as the engine told them, where they do not spell the answer; for clients to read.
    candidates: T rows of K byte strings, the texts behind `top`; empty unless the Ask wanted texts.
    signals: arrays by name, each (T,), computed inside the engine (exact entropy, margin, ...).
    end_nats: log-prob of the end token, None when the answer was cut or the engine does not tell.
    Raises BadTrace when T = 0, shapes differ, or a value is not finite or is positive.
    """

    source: Source
    chosen: Floats
    top: Floats | None = None
    tokens: tuple[bytes, ...] = ()
    signals: Mapping[str, Floats] = field(default_factory=dict)
    end_nats: float | None = None
    candidates: tuple[tuple[bytes, ...], ...] = ()
    words: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if self.chosen.ndim != 1 or self.chosen.size == 0:
            raise BadTrace(f"need chosen log-probs of shape (T,) with T >= 1, got {self.chosen.shape}")
        _check_nats("chosen", self.chosen)
        if self.top is not None:
            if self.top.ndim != 2 or self.top.shape[0] != self.chosen.size or self.top.shape[1] == 0:
                raise BadTrace(f"need top log-probs of shape ({self.chosen.size}, K >= 1), got {self.top.shape}")
            _check_nats("top", self.top)
            if not falls(self.top):
                raise BadTrace("top log-probs must fall along K; sort them before building a trace")
        if self.tokens and len(self.tokens) != self.chosen.size:
            raise BadTrace(f"{self.chosen.size} log-probs but {len(self.tokens)} token texts")
        if self.candidates:
            widths = {len(row) for row in self.candidates}
            if self.top is None or len(self.candidates) != self.chosen.size or widths != {self.top.shape[1]}:
                raise BadTrace("candidate texts must match the top log-probs one to one")
        for name, signal in self.signals.items():
            if signal.shape != self.chosen.shape or not finite(signal):
                raise BadTrace(f"signal {name!r} must be finite and of shape {self.chosen.shape}, got {signal.shape}")
            signal.setflags(write=False)

    def part(self, start: int, stop: int) -> TokenTrace:
        """The evidence of tokens [start, stop); of the end token only where stop is beyond the last.

        Raises BadTrace when there are none.
        """
        kept = slice(start, stop)
        return TokenTrace(
            self.source,
            self.chosen[kept],
            None if self.top is None else self.top[kept],
            self.tokens[kept],
            {name: signal[kept] for name, signal in self.signals.items()},
            self.end_nats if stop > self.chosen.size else None,
            self.candidates[kept],
            self.words[kept],
        )


@noun(frozen=True, slots=True, eq=False)
class Summary:
    """What an engine made of one answer's tokens itself, the end token apart; their own numbers stayed with it.

    length: T >= 1 tokens.  k: candidates in its mean of the largest log-probs.  window: tokens in a group, all of an
    answer that is shorter.  views: finite numbers by signal (`top1` is the chosen tokens' log-prob) and by name: mean,
    min, max, tail, of groups the lowest and the mean of the lowest tenth, of tokens the mean of the lowest tenth.
    end_nats: log-prob of the end token, None when the answer was cut.
    """

    source: Source
    length: int
    k: int
    window: int
    views: Mapping[str, Mapping[str, float]]
    end_nats: float | None = None


def finite(values: Floats) -> bool:
    """Whether all are. values: (T,). The sum of squares tells it at once, but for one that overflows."""
    return math.isfinite(values.dot(values)) or bool(np.isfinite(values).all())


def falls(rows: Floats) -> bool:
    """Whether no row rises anywhere. rows: (T, K), T and K >= 1.

    Neighbours are compared in one line, in half the time that NumPy takes for each row by itself; where one row ends
    and the next begins, a rise is none.
    """
    line, k = rows.ravel(), rows.shape[1]
    rises = line[1:] > line[:-1]
    return bool(np.count_nonzero(rises) == np.count_nonzero(rises[k - 1 :: k]))


SLACK_NATS = 1e-4  # engines compute in 32 or 16 bits, so a certain token may come as +1e-7; more is no log-prob


def _check_nats(name: str, nats: Floats) -> None:
    lowest, highest = nats.item(nats.argmin()), nats.item(nats.argmax())  # both NaN where one is
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise BadTrace(f"{name} log-probs hold NaN or infinity; is the server in a raw log-prob mode?")
    if highest > SLACK_NATS:
        raise BadTrace(f"{name} log-probs must be <= 0, got {highest:.4g}")
    nats.setflags(write=False)


@noun(frozen=True, slots=True, eq=False)
class Completion:
    """One engine's answer to one Ask.

    no_trace: why, in words, when the engine gave no usable evidence: then there is no summary, and a trace only of the
    log-probs that a client asked for.
    summary: where the Ask wanted no more; a trace beside it is of the log-probs that a client asked for.
    model: id@revision of what actually answered.  seconds: from the call to the last token.
    clamped_tokens: how many tokens carry the engine's floor instead of a log-prob (vLLM sends -9999 for -infinity).
    calls: what the model wants called; the trace is then of all that it wrote, not of the text alone.
    prompt_token_ids, token_ids: where the Ask wanted them.
    other_model: the server named another model than it was asked for.
    reasoning: what was thought before the answer, where a server keeps it apart.  stop_reason: the stop string or token
    id that ended it, as the server tells it.  response_id: what it calls its reply, "" where it does not.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int
    engine: str
    model: str
    seconds: float
    trace: TokenTrace | None = None
    no_trace: str = ""
    clamped_tokens: int = 0
    calls: tuple[ToolCall, ...] = ()
    prompt_token_ids: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    stop_reason: str | int | None = None
    summary: Summary | None = None
    other_model: bool = False
    response_id: str = ""

    @property
    def seen(self) -> Summary | TokenTrace | None:
        """What confidence is measured on."""
        return None if self.no_trace else self.summary or self.trace


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Part of an answer, as it arrives from an engine.

    text: what it adds.  tokens: how many there are now, all pieces so far together.  model: as the engine calls it.
    trace: the evidence of tokens [start, stop) of all that there are; raises BadTrace when there is none.
    prompt_tokens: of the question; 0 while the engine has not told.  calls: what it adds to tool calls.
    ends: whether the answer is complete with it, as the engine gives it back next.
    no_evidence: why nothing may be judged by its log-probs, "" where it may; who asked for them is shown them anyway.
    other_model: as in Completion.
    """

    text: str
    tokens: int
    model: str
    trace: Callable[[int, int], TokenTrace]
    prompt_tokens: int = 0
    calls: tuple[CallPart, ...] = ()
    no_evidence: str = ""
    ends: bool = False
    other_model: bool = False

    def evidence(self, tokens: int) -> TokenTrace:
        """What so many first tokens may be judged by. Raises BadTrace when there is none."""
        if self.no_evidence:
            raise BadTrace(self.no_evidence)
        return self.trace(0, tokens)


Hear = Callable[[Piece], Awaitable[None]]  # may raise, to end the answer: nothing that an operating system raises


@noun(frozen=True, slots=True, eq=False)
class Earlier:
    """What an earlier tier of the same cascade said about the same question; p_correct is None where it had none."""

    tier: str
    text: str
    p_correct: float | None


@noun(frozen=True, slots=True, eq=False)
class Evidence:
    """All a confidence feature may look at: the trace, the text it belongs to, and the tiers that answered before."""

    trace: TokenTrace
    text: str
    earlier: tuple[Earlier, ...] = ()


@noun(frozen=True, slots=True, eq=False)
class Summed:
    """Evidence of an answer whose tokens stayed in the engine; what it is, is as in Evidence."""

    summary: Summary
    text: str
    earlier: tuple[Earlier, ...] = ()


@noun(frozen=True, slots=True, eq=False)
class Features:
    """Measured confidence features of one answer. names: F strings; values: (F,), finite."""

    names: tuple[str, ...]
    values: Floats


@noun(frozen=True, slots=True, eq=False)
class Verdict:
    """What one answer's evidence is worth. Of an answer that was judged, p_correct is None exactly when null_reason is
    not."""

    p_correct: float | None = None
    null_reason: Reason | None = None
    note: str = ""
    features: Features | None = None


class Engine(Protocol):
    """Anything that turns an Ask into a Completion.

    `complete` raises EngineError leaves only; when its task is cancelled it stops the work behind it before it returns.
    `ready` tells whether a question could be answered now; it never raises.
    `fingerprint` is what the engine can tell about itself, by the names artefacts use (model, revision, engine,
    engine_version, dtype, ...): only what it knows, so a missing key means "cannot tell". Raises EngineError when away.
    """

    @property
    def name(self) -> str: ...

    async def complete(self, ask: Ask) -> Completion: ...

    async def ready(self) -> bool: ...

    async def fingerprint(self) -> Mapping[str, str]: ...

    async def close(self) -> None: ...


@runtime_checkable
class Streaming(Engine, Protocol):
    """An engine that can tell an answer piece by piece.

    `stream` returns what `complete` would for the same tokens; the pieces' texts joined are its text. `hear` is awaited
    with each piece before more is read, so whoever takes long to hear slows the server down. It raises as `complete`
    does, EngineDown never with `again` once a piece was told.
    """

    async def stream(self, ask: Ask, hear: Hear) -> Completion: ...


@runtime_checkable
class Calibrator(Protocol):
    """A fitted map from features to a probability. X: (N, F) -> p (N,) in (0, 1)."""

    def predict(self, features: Floats, /) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Prices:
    """What a token costs. usd_per_mtok_*: US dollars per million tokens."""

    usd_per_mtok_in: float = 0.0
    usd_per_mtok_out: float = 0.0


@noun(frozen=True, slots=True)
class Cost:
    """What was spent. Adds up over hops, rejected ones too."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.usd + other.usd,
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, eq=False)
class Tier:
    """One rung of the cascade.

    features: names the calibrator was fitted on.  threshold: accept at p_correct >= threshold; None on a last tier.
    calibrator_id: id@first-12-hex-of-sha256, or "none".  patience_seconds: how long one attempt may take.
    source, sampling: what the calibrator was fitted under; other evidence or another sampler costs the confidence.
    top_k: candidates per token the features need.  window: of groups, where an engine's Summary tells them all; else 0.
    guard: its breaker, seats and retries, the same in every policy.
    after: names of the earlier tiers, in order, that the calibrator was fitted after, when it looks at what they said.
    cut: the calibrator was fitted on answers cut behind their final number, and measures no others.
    prefix: what decides on an answer's first tokens; a calibrator of whole answers never does.
    abilities: what it can do beyond plain chat.  fitted_for: of these, what its calibrator was fitted on.
    early_abort: what its calibrator's fit learned about answers that will not be accepted.  abort_epsilon: the share of
    answers worth accepting that the policy's step bears among those given up; 0 gives up none.
    rival: another calibrator that is on trial beside this one.
    """

    name: str
    engine: Engine
    features: tuple[str, ...] = ()
    calibrator: Calibrator | None = None
    calibrator_id: str = "none"
    source: Source | None = None
    sampling: Sampling = GREEDY
    top_k: int = 0
    window: int = 0
    threshold: float | None = None
    prices: Prices = Prices()
    patience_seconds: float = 60.0
    guard: Guard = field(default_factory=Guard)
    after: tuple[str, ...] = ()
    cut: bool = False
    prefix: Prefix | None = None
    abilities: frozenset[Ability] = frozenset()
    fitted_for: frozenset[Ability] = frozenset()
    early_abort: EarlyAbort | None = None
    abort_epsilon: float = 0.0
    rival: Rival | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rival:
    """Another calibrator of a tier: the one on trial, or where that decides, the one it may come to replace.

    tier: the same tier with it.  share: of conversations that it decides for; in all others it is computed and logged.
    """

    tier: Tier
    share: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class EarlyAbort:
    """When an answer will not be accepted whatever comes, learned offline with a calibrator.

    feature: spec of what is measured on the first tokens of an answer.
    bounds: by (threshold, epsilon), by number of tokens: of the answers whose feature was at or under this, no larger a
    share than epsilon is accepted at the threshold in the end.
    """

    feature: str
    bounds: Mapping[tuple[float, float], Mapping[int, float]]

    def at(self, threshold: float, epsilon: float) -> Mapping[int, float]:
        """The bounds that hold at a threshold: those of the largest one learned for that is not above it, since fewer
        answers are accepted at a higher one; and of the largest epsilon that is not above the one asked for."""
        for learned, least in sorted(self.bounds, reverse=True):
            if learned <= threshold and least <= epsilon:
                return self.bounds[learned, least]
        return {}


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """What decides on the first tokens of a tier's answers: the tier with a calibrator that was fitted on so many."""

    tokens: int
    tier: Tier


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """Which tiers are asked in which order, and what happens when none is sure.

    serve_fallback: when the last tier fails, serve the surest earlier answer, marked, instead of an error.
    abstain_below: a last answer under this probability is served flagged as abstained.  bypass: one tier, no cascade.
    certified: it carries a certificate that holds.
    curtailed: dearer tiers were left out, because there was no money for them.
    stream_mode: of clients who do not ask for one.  commit_to: the tier that answers in commit mode, "" for the last.
    """

    name: str
    tiers: tuple[Tier, ...]
    serve_fallback: bool = True
    abstain_below: float | None = None
    bypass: bool = False
    certified: bool = False
    curtailed: bool = False
    stream_mode: Mode = Mode.BUFFER
    commit_to: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """Several policies, of which each decision follows one: parts[i] in the mean so often as shares[i] says.

    shares: sum to 1.  key: of the hash that draws.
    """

    name: str
    parts: tuple[Policy, ...]
    shares: tuple[float, ...]
    key: str = ""


@noun(frozen=True, slots=True, eq=False)
class Hop:
    """One tier's turn. p_correct is None without evidence, and null_reason says why; completion is None when the engine
    failed (see error) or its answer was given up before its end. retried: why second attempts were made.

    rival_id, rival_p: what the tier's rival makes of the same answer, which decided nothing; "" without one.
    first_seconds: of an answer that was heard piece by piece, until the first of them.
    other_model: as in Completion, and known of answers that were given up, too.
    """

    tier: str
    reason: Reason
    seconds: float
    threshold: float | None = None
    p_correct: float | None = None
    features: Features | None = None
    completion: Completion | None = None
    error: EngineError | None = None
    calibrator_id: str = "none"
    cost: Cost = Cost()
    note: str = ""
    null_reason: Reason | None = None
    retried: tuple[EngineError, ...] = ()
    given_up: bool = False
    rival_id: str = ""
    rival_p: float | None = None
    first_seconds: float | None = None
    other_model: bool = False


@noun(frozen=True, slots=True, eq=False)
class Opening:
    """What is known about an answer when its first piece is passed on; of a whole answer, the same facts in the end.

    tried: tiers asked so far, this one included.
    """

    tier: str
    model: str
    reason: Reason
    tried: int
    p_correct: float | None
    threshold: float | None
    calibrator_id: str


@noun(frozen=True, slots=True, eq=False)
class Answer:
    """What the cascade served, and the whole way there. `served` is one of `hops`.

    siblings: further choices of the tier that was served, when a client asked for more than one.
    """

    hops: tuple[Hop, ...]
    served: Hop
    reason: Reason
    policy: Policy
    siblings: tuple[Hop, ...] = ()

    @property
    def cost(self) -> Cost:
        return sum((hop.cost for hop in (*self.hops, *self.siblings)), Cost())

    @property
    def seconds(self) -> float:
        return sum(hop.seconds for hop in self.hops)

    @property
    def completion(self) -> Completion:
        assert self.served.completion is not None, "a hop without a completion is never served"
        return self.served.completion

    @property
    def opening(self) -> Opening:
        served = self.served
        return Opening(
            served.tier,
            self.completion.model,
            self.reason,
            len(self.hops),
            served.p_correct,
            served.threshold,
            served.calibrator_id,
        )
