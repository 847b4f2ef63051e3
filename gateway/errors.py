"""One tree of errors. Every leaf carries its facts as fields; the message says what was expected and what came.

The HTTP door maps every leaf to a status (`gateway/http/errors.py`); a test proves that the map is total.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, Self


class GatewayError(Exception):
    """Base of everything the gateway raises on purpose. It may pass from one process to another, facts and all."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Python would call the class with the message, which is not what most of these are made from."""
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[GatewayError], args: tuple[object, ...]) -> GatewayError:
    error = kind.__new__(kind)
    error.args = args
    return error


class ConfigError(GatewayError):
    """A configuration, or a name in it, is wrong. The message says where and what would be right."""


class BadTrace(GatewayError):
    """A token trace that no confidence can be computed from."""


class DeadlinePassed(GatewayError):
    """The request's own deadline came before an answer did."""

    def __init__(self, waited_seconds: float) -> None:
        super().__init__(f"no answer within the request's {waited_seconds:.1f} s")
        self.waited_seconds = waited_seconds


class NoTierLeft(GatewayError):
    """Every tier was tried and none could answer.

    reasons: (tier, reason) in the order tried.  retry_after_seconds: the soonest that a server told us to come back.
    withheld: one answered, but was not sure, and the policy serves no such answer.
    """

    def __init__(
        self, reasons: Sequence[tuple[str, str]], retry_after_seconds: float | None = None, *, withheld: bool = False
    ) -> None:
        told = ", ".join(f"{tier}: {reason}" for tier, reason in reasons) or "no tier was asked"
        super().__init__(f"no tier could answer ({told})")
        self.reasons, self.retry_after_seconds, self.withheld = tuple(reasons), retry_after_seconds, withheld


class BadId(GatewayError):
    """A decision id that was not made here, or by a secret that is no longer known."""

    def __init__(self) -> None:
        super().__init__("there is no such decision")


class ForeignId(GatewayError):
    """A decision id that was given to another client."""

    def __init__(self) -> None:
        super().__init__("this decision was not made for this key")


class RateLimited(GatewayError):
    """A client asks more, or more at once, than its key allows. limit: in words, with the number."""

    def __init__(self, limit: str, retry_after_seconds: float) -> None:
        super().__init__(f"this key's limit is {limit}")
        self.limit, self.retry_after_seconds = limit, retry_after_seconds


class OverBudget(GatewayError):
    """A client has used up what its key may cost in a day or a month. retry_after_seconds: until that is over."""

    def __init__(self, budget: str, retry_after_seconds: float) -> None:
        super().__init__(f"this key's budget of {budget} is used up")
        self.budget, self.retry_after_seconds = budget, retry_after_seconds


class StoreDown(GatewayError):
    """Decisions and labels cannot be kept, or read, right now. why: for operators, never for clients."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the store cannot be used: {why}")
        self.why = why


class LabelConflict(GatewayError):
    """A label says the contrary of what is known about the same decision. number: of the decision.

    place: of the label among those that were to be stored, from 0.
    """

    def __init__(self, number: str, place: int) -> None:
        super().__init__(f"decision {number} has the contrary label already; say revise to replace it")
        self.number, self.place = number, place


class AuditBroken(GatewayError):
    """The audit log is not what was written. line: from 0."""

    def __init__(self, path: str, line: int, why: str) -> None:
        super().__init__(f"{path}: line {line + 1}: {why}; keep the file, find out who changed it, restore a copy")
        self.path, self.line = path, line


class RolloutRefused(GatewayError):
    """A step of a calibrator's rollout that cannot be taken now. The message says why and what can be."""


class ClientGone(GatewayError):
    """The client hung up; nobody is left to answer."""


class EngineError(GatewayError):
    """An engine did not deliver a usable answer. elsewhere: another server of the tier may, and may be asked."""

    elsewhere = False

    def __init__(self, engine: str, message: str) -> None:
        super().__init__(f"{engine}: {message}")
        self.engine = engine

    def bare(self) -> Self:
        """The same without the frames that it came through. To be kept, or raised again where it is: an error holds the
        variables of its frames, and those that hold it in turn are left to the garbage collector."""
        return copy(self)


class EngineDown(EngineError):
    """The engine could not be reached, or broke the connection. again: another connection may do better."""

    def __init__(self, engine: str, message: str, *, again: bool = False) -> None:
        super().__init__(engine, message)
        self.again = again


class EngineSlow(EngineError):
    """The engine stayed silent for longer than its patience."""

    def __init__(self, engine: str, waited_seconds: float) -> None:
        super().__init__(engine, f"sent nothing for {waited_seconds:.1f} s")
        self.waited_seconds = waited_seconds


class EngineBarred(EngineError):
    """The engine failed too often of late and is left alone for a while."""

    def __init__(self, engine: str, retry_after_seconds: float) -> None:
        super().__init__(engine, f"failed too often; left alone for {retry_after_seconds:.1f} s")
        self.retry_after_seconds = retry_after_seconds


class EngineFull(EngineError):
    """As many questions as the engine may be given are with it, and as many as may wait do."""

    def __init__(self, engine: str, retry_after_seconds: float) -> None:
        super().__init__(engine, "every seat is taken")
        self.retry_after_seconds = retry_after_seconds


class EngineGarbled(EngineError):
    """The engine answered with something that is not a chat completion."""


class EngineTooSmall(EngineError):
    """The prompt does not fit the engine's context window."""

    def __init__(self, engine: str, prompt_tokens: int | None, window_tokens: int) -> None:
        came = "the prompt" if prompt_tokens is None else f"a prompt of {prompt_tokens} tokens"
        super().__init__(engine, f"maximum context length is {window_tokens} tokens, got {came}")
        self.prompt_tokens, self.window_tokens = prompt_tokens, window_tokens


class EngineRefused(EngineError):
    """The engine refused the request: bad key, unknown model, rate limit, or a field it does not take."""

    def __init__(self, engine: str, status: int, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(engine, f"refused with {status}: {message}")
        self.status, self.retry_after_seconds = status, retry_after_seconds
