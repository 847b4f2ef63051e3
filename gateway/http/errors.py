"""From our errors to HTTP, once and for all of them; a test proves that the table is total.

An upstream's own words never get through: they may name hosts, paths or another client's prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import (
    AuditBroken,
    BadId,
    BadTrace,
    ClientGone,
    ConfigError,
    DeadlinePassed,
    EngineBarred,
    EngineDown,
    EngineFull,
    EngineGarbled,
    EngineRefused,
    EngineSlow,
    EngineTooSmall,
    ForeignId,
    GatewayError,
    LabelConflict,
    NoTierLeft,
    OverBudget,
    RateLimited,
    RolloutRefused,
    StoreDown,
)
from gateway.nouns import Reason

SCHEMA = "1"  # of the x-route-* headers
RETRY_SECONDS = 1.0  # what to tell a client when no server said how long to wait


class RequestError(GatewayError):
    """The request itself cannot be served. param: the field at fault.  close: the rest of it was left unread."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, close: bool = False
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.close = status, param, code, close


class Draining(GatewayError):
    """The process is about to end: this request is not taken any more, or there is no time left for it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told. retry_after_seconds: sent as a header where trying again makes sense."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_seconds: float | None = None
    close: bool = False

    @property
    def body(self) -> bytes:
        told = {"message": self.message, "type": kind(self.status), "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": told})

    @property
    def headers(self) -> dict[str, str]:
        told = {"content-type": "application/json", "x-route-schema": SCHEMA}
        if self.retry_after_seconds is not None:
            told["retry-after"] = str(max(1, math.ceil(self.retry_after_seconds)))
        if self.status == 401:
            told["www-authenticate"] = "Bearer"
        if self.close:
            told["connection"] = "close"
        return told


def kind(status: int) -> str:
    """OpenAI's `type` for a status."""
    named = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    return named.get(status, "server_error" if status >= 500 else "invalid_request_error")


def too_small(error: EngineTooSmall) -> Problem:
    """LiteLLM and LangChain look for this very sentence."""
    window = f"This model's maximum context length is {error.window_tokens} tokens." if error.window_tokens else ""
    asked = f" Your messages came to {error.prompt_tokens} tokens." if error.prompt_tokens else ""
    message = f"{window or 'The messages exceed the maximum context length.'}{asked} Please shorten the messages."
    return Problem(400, message, "messages", "context_length_exceeded")


def refused(error: EngineRefused) -> Problem:
    if error.status in (400, 413, 422):
        return Problem(400, "The model does not take this request.")
    if error.status == 429:
        pause = error.retry_after_seconds
        return Problem(429, "The model is busy.", None, "rate_limited", RETRY_SECONDS if pause is None else pause)
    return Problem(502, "The model server did not let the gateway in.")


def busy(retry_after_seconds: float) -> Problem:
    return Problem(503, "The model is busy.", retry_after_seconds=retry_after_seconds)


def no_tier_left(error: NoTierLeft) -> Problem:
    """429 when all were limited, 503 when an unsure answer is withheld or none was even asked, 504 when the last was
    too slow, else 502."""
    reasons = [reason for _, reason in error.reasons]
    pause = RETRY_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
    if not reasons or set(reasons) <= {Reason.BREAKER_OPEN, Reason.RATE_LIMITED}:
        limited = bool(reasons) and set(reasons) == {Reason.RATE_LIMITED}
        return Problem(
            429 if limited else 503, "All models are busy.", None, "rate_limited" if limited else None, pause
        )
    if error.withheld:
        return Problem(503, "No model that could answer was sure.", retry_after_seconds=pause)
    if reasons[-1] == Reason.SLOW:
        return Problem(504, "No model answered in time.")
    return Problem(502, "No model could answer.")


CONTRARY = "This decision has the contrary label already; send revise: true to replace it."

TABLE: dict[type[GatewayError], Callable[[Any], Problem]] = {
    RequestError: lambda error: Problem(error.status, str(error), error.param, error.code, close=error.close),
    EngineTooSmall: too_small,
    EngineRefused: refused,
    EngineBarred: lambda error: busy(error.retry_after_seconds),
    EngineFull: lambda error: busy(error.retry_after_seconds),
    EngineDown: lambda _: Problem(502, "The model server broke off."),
    EngineGarbled: lambda _: Problem(502, "The model server answered with something that is no answer."),
    EngineSlow: lambda _: Problem(504, "The model did not answer in time."),
    DeadlinePassed: lambda _: Problem(504, "The request's time was up before any model had answered."),
    NoTierLeft: no_tier_left,
    Draining: lambda _: Problem(503, "The gateway is shutting down.", retry_after_seconds=RETRY_SECONDS, close=True),
    StoreDown: lambda _: Problem(503, "Labels cannot be kept right now.", retry_after_seconds=RETRY_SECONDS),
    LabelConflict: lambda _: Problem(409, CONTRARY, "id", "conflicting_label"),
    BadId: lambda _: Problem(404, "There is no such decision."),
    RateLimited: lambda error: Problem(
        429, f"Rate limit reached: {error.limit}.", None, "rate_limit_exceeded", error.retry_after_seconds, close=True
    ),
    OverBudget: lambda error: Problem(
        429, f"The budget of {error.budget} is used up.", None, "insufficient_quota", error.retry_after_seconds
    ),
    RolloutRefused: lambda error: Problem(409, f"{error}."),  # met behind the admin key only
    AuditBroken: lambda _: Problem(503, "The audit log is not what was written; no step is taken until it is."),
    ForeignId: lambda _: Problem(403, "This decision was not made for this key."),
    ClientGone: lambda _: Problem(499, "The client left."),
    ConfigError: lambda _: Problem(500, "The gateway is configured wrongly."),
    BadTrace: lambda _: Problem(500, "The gateway made a mistake."),
}


def problem(error: BaseException) -> Problem:
    """What to tell a client. Whatever is not one of ours is our mistake, and nothing of it is told."""
    for family in type(error).__mro__:
        if family in TABLE:
            return TABLE[family](error)
    return Problem(500, "The gateway made a mistake.")
