"""One request on its way to being a row: what is known of it when it ends, however it ends.

Everything here is called on the event loop, so nothing is slow: the only thing that grows with a prompt is its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.answers import agree
from gateway.nouns import Answer, Ask, Cost, Hop, Mode, Policy
from gateway.store.base import DecisionRow, Entry, HopRow, Role


@dataclass(frozen=True, slots=True)
class Keep:
    """How texts are kept. redact: what each goes through.  most: characters."""

    redact: Callable[[str], str]
    most: int

    def kept(self, text: str) -> str:
        """A text as it may be kept; one that the function cannot take is not."""
        try:
            return str(self.redact(text))[: self.most]  # in this order: what the cut goes through is not to be seen
        except Exception as error:
            return f"[not kept: the redacting function raised {type(error).__name__}]"


@dataclass(slots=True)
class Story:
    """What is known so far. number: of the decision.  at: when it came, seconds since 1970.  hop_ends: seconds after
    that, on the clock that the request and its hops are timed by.

    first_seconds: after that, a stream began; None where nothing was streamed.
    model: the name that the route was asked for by.  choices: how many were asked for.  response_id: of the completion
    that the client was told, "" where it was told none.  tried: tiers that had their turn.
    span: OpenTelemetry's, and traceparent: the same as a header; None and "" where requests are not traced.
    """

    number: str
    at: float
    client: str = ""
    ask: Ask | None = None
    route: Policy | None = None
    model: str = ""
    choices: int = 1
    response_id: str = ""
    mode: Mode = Mode.BUFFER
    answer: Answer | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    first_seconds: float | None = None
    span: Any = None
    traceparent: str = ""
    hops: list[Hop] = field(default_factory=list)
    hop_ends: list[float] = field(default_factory=list)

    def asked(
        self, client: str, ask: Ask, route: Policy, model: str, mode: Mode, choices: int, metadata: Mapping[str, str]
    ) -> None:
        """It has been read, and is about to be put to the tiers. metadata: what may be kept of it."""
        self.client, self.ask, self.route, self.model, self.mode = client, ask, route, model, mode
        self.choices, self.metadata = choices, metadata

    @property
    def tried(self) -> int:
        return len({hop.tier for hop in self.hops})  # further choices are turns of one tier

    def note(self, hop: Hop, seconds: float) -> None:
        """One tier's turn has ended. seconds: since the request came."""
        self.hops.append(hop)
        self.hop_ends.append(seconds)

    def entry(
        self, status: int, seconds: float, *, inclusion: float | None, explored: bool, keep: Keep | None
    ) -> Entry:
        """The rows of a request that has ended. Of one that no tier was asked for there is a decision all the same."""
        answer, ask = self.answer, self.ask
        cost = sum((hop.cost for hop in self.hops), Cost())
        served = None if answer is None else answer.served
        decision = DecisionRow(
            number=self.number,
            at=self.at,
            client=self.client,
            policy="" if self.route is None else self.route.name,
            mode=str(self.mode),
            status=status,
            reason="" if answer is None else str(answer.reason),
            tier="" if served is None else served.tier,
            p_correct=None if served is None else served.p_correct,
            threshold=None if served is None else served.threshold,
            calibrator="" if served is None else served.calibrator_id,
            seconds=seconds,
            usd=cost.usd,
            prompt_tokens=cost.prompt_tokens,
            completion_tokens=cost.completion_tokens,
            prompt_sha256="" if ask is None else fingerprint(ask),
            prompt=None if keep is None or ask is None else keep.kept(shown(ask)),
            answer=None if keep is None or answer is None else keep.kept(answer.completion.text),
            inclusion=inclusion,
            explored=explored,
            metadata=self.metadata,
        )
        siblings = () if answer is None else answer.siblings
        roles = [Role.SIBLING if any(hop is one for one in siblings) else Role.HOP for hop in self.hops]
        compared = answer if explored else None
        return Entry(decision, hop_rows(self.number, self.hops, roles, beside=compared))


def fingerprint(ask: Ask) -> str:
    """SHA-256 of what was said by whom; the same for the same conversation, whatever else was asked for."""
    digest = hashlib.sha256()
    for message in ask.messages:
        for text in (message.role, message.content):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "big") + raw)
    if ask.prompt is not None:
        digest.update(ask.prompt.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def shown(ask: Ask) -> str:
    if ask.prompt is not None:
        return ask.prompt
    return "\n\n".join(f"{message.role}: {message.content}" for message in ask.messages)


def hop_rows(
    number: str, hops: Sequence[Hop], roles: Sequence[Role], first: int = 0, *, beside: Answer | None = None
) -> tuple[HopRow, ...]:
    """Hops as rows. first: the first one's position.  beside: what was served, where it is to be compared with them."""
    return tuple(
        hop_row(number, first + place, role, hop, None if beside is None else comes_to_the_same(hop, beside))
        for place, (hop, role) in enumerate(zip(hops, roles, strict=True))
    )


def comes_to_the_same(hop: Hop, answer: Answer) -> bool | None:
    """Whether a tier's answer and the served one do; None where there is none, or that cannot be told."""
    if hop is answer.served:
        return True
    if hop.completion is None or hop.completion.calls or answer.completion.calls:
        return None
    return agree(hop.completion.text, answer.completion.text)


def hop_row(number: str, position: int, role: Role, hop: Hop, agrees: bool | None) -> HopRow:
    features = {} if hop.features is None else dict(zip(hop.features.names, hop.features.values.tolist(), strict=True))
    return HopRow(
        number=number,
        position=position,
        role=role,
        tier=hop.tier,
        reason=str(hop.reason),
        null_reason="" if hop.null_reason is None else str(hop.null_reason),
        note=hop.note,
        p_correct=hop.p_correct,
        threshold=hop.threshold,
        calibrator=hop.calibrator_id,
        model="" if hop.completion is None else hop.completion.model,
        finish="" if hop.completion is None else str(hop.completion.finish),
        prompt_tokens=hop.cost.prompt_tokens,
        completion_tokens=hop.cost.completion_tokens,
        seconds=hop.seconds,
        usd=hop.cost.usd,
        retries=len(hop.retried),
        error="" if hop.error is None else str(hop.error),
        features=features,
        rival=hop.rival_id,
        rival_p=hop.rival_p,
        agrees=agrees,
    )
