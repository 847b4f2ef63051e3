"""From a status that is not 200 to one of our errors. Reads vLLM's, OpenAI's and llama.cpp's error shapes.

What an upstream writes is never passed on to a client: it may name hosts, paths or another client's prompt. It is read
for two facts only, the size of the window and that of the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import msgspec

from gateway.errors import EngineDown, EngineError, EngineGarbled, EngineRefused, EngineTooSmall

RETRY_AFTER_MAX_SECONDS = 60.0  # a server that says "in a day" is asked again in a minute

WINDOW = (
    re.compile(r"context (?:length|size|window)[^0-9]{0,40}(\d{1,9})"),  # OpenAI, vLLM, SGLang, llama.cpp
    re.compile(r"max(?:imum)?[ _]model[ _]len(?:gth)?[^0-9]{0,20}(\d{1,9})"),  # vLLM
)
PROMPT = (
    re.compile(r"(?<!at least )(?<!bound for )\b(\d{1,9}) input tokens"),  # vLLM, which from 0.16 on may stop counting
    re.compile(r"(\d{1,9}) (?:tokens )?(?:in|from) the (?:input )?messages"),  # OpenAI, older vLLM
    re.compile(r"(?:prompt|input|request) \(?(?:length )?\(?(\d{1,9})"),  # vLLM's decoder prompt, llama.cpp, SGLang
    re.compile(r"resulted in (\d{1,9}) tokens"),  # OpenAI
)


class Complaint(msgspec.Struct):
    """The needed part of {"error": {...}}; codes are strings at OpenAI and integers at vLLM."""

    message: str = ""
    type: str | None = None
    code: str | int | None = None


class Wrapped(msgspec.Struct):
    error: Complaint | str | None = None


def refusal(engine: str, status: int, headers: Mapping[str, str], body: bytes) -> EngineError:
    """What an answer with this status means."""
    if status in (400, 413, 422):
        complaint = read(body)
        window = first_number(WINDOW, complaint.message)
        if window is not None:
            return EngineTooSmall(engine, first_number(PROMPT, complaint.message), window)
        if complaint.code == "context_length_exceeded" or complaint.type == "exceed_context_size_error":
            return EngineTooSmall(engine, None, 0)
        return EngineRefused(engine, status, "it does not take this request")
    if status == 429:
        return EngineRefused(engine, status, "too many requests", retry_after(headers.get("retry-after")))
    if 400 <= status < 500:
        return EngineRefused(engine, status, "its address, key or model name is configured wrongly")
    if status >= 500:
        return EngineDown(engine, f"answered {status}")
    return EngineGarbled(engine, f"answered {status} instead of 200")


def read(body: bytes) -> Complaint:
    """The complaint in an error body, an empty one where there is none."""
    try:
        error = msgspec.json.decode(body, type=Wrapped).error
        if error is None:  # vLLM before 0.10 sent the complaint without a wrapping
            return msgspec.json.decode(body, type=Complaint)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Complaint()
    return Complaint(error) if isinstance(error, str) else error


def first_number(patterns: tuple[re.Pattern[str], ...], message: str) -> int | None:
    """What the first matching pattern captures. Only the message's beginning is read: it may quote a prompt."""
    for pattern in patterns:
        match = pattern.search(message[:1000].lower())
        if match:
            return int(match[1])
    return None


def retry_after(value: str | None) -> float | None:
    """Seconds to leave the server alone, at most a minute; None for junk. Accepts seconds and HTTP dates."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
    if seconds != seconds:  # NaN
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_SECONDS)
