"""The `confidence` object that our vLLM plugin adds to a choice: five numbers a token, computed inside the engine.

Schema `confgate.confidence/1`; gateway/vllm_plugin/summary.py writes it. Two bytes a number instead of a hundred of
JSON per candidate: what an answer of 200 tokens weighs falls from 231 kB with 20 candidates to 3 kB. Where a calibrator
looks at nothing that the object's summary does not tell, the numbers stay in the engine altogether.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from gateway.errors import BadTrace
from gateway.nouns import SLACK_NATS, Ask, Floats, Source, Summary, TokenTrace

SCHEMA = "confgate.confidence/1"
STRUCTURED = frozenset({"response_format", "structured_outputs"})


class Arrays(msgspec.Struct):
    """Little-endian float16, in JSON as base64: one number per token, the end token's among them."""

    dtype: str
    confidence: bytes
    top1: bytes
    margin: bytes
    entropy: bytes
    self_certainty: bytes


READ_ARRAYS = msgspec.json.Decoder(Arrays | None)


Views = dict[str, dict[str, float]]
READ_SUMMARY = msgspec.json.Decoder(Views)


class Confidence(msgspec.Struct):
    """arrays: Arrays, summary: Views, read apart: what is wrong in them costs the confidence alone."""

    schema: str
    missing: str = ""
    tokens: int = 0
    k: int = 0
    greedy: bool = False
    window: int = 0
    ended: bool = False
    arrays: msgspec.Raw = msgspec.Raw(b"null")
    summary: msgspec.Raw = msgspec.Raw(b"null")


def wish(k: int, window: int) -> dict[str, Any]:
    """What a request adds to its body for the plugin to report. k: candidates in its mean of the largest log-probs.
    window: tokens in a group of its summary; 0 for the numbers of every token."""
    more = {"confidence_window": window} if window else {"confidence_arrays": 1}
    return {"vllm_xargs": {"confidence": 1, "confidence_k": k, **more}}


def check(told: Confidence | None, tokens: int, k: int) -> Confidence:
    """That the plugin's object is what was asked for, about an answer of so many tokens, the end token counted. Raises
    BadTrace with the reason."""
    if told is None:
        raise BadTrace("the engine sent no confidence; is it vLLM with our plugin's middleware and processor?")
    if told.schema != SCHEMA:
        raise BadTrace(f"confidence of the schema {told.schema[:40]!r}, this gateway reads {SCHEMA}")
    if told.missing:
        raise BadTrace(f"the engine sent no confidence: {told.missing[:200]}")
    if told.k != k:
        raise BadTrace(f"asked for the {k} most likely tokens, the engine's confidence is of {told.k}")
    if not told.greedy:
        raise BadTrace("the engine's confidence does not tell the chosen tokens' log-probs unless sampling is greedy")
    if told.tokens != tokens:
        raise BadTrace(f"the engine's confidence is of {told.tokens} tokens, the answer has {tokens}")
    if told.tokens <= told.ended:
        raise BadTrace("the answer has no tokens")
    return told


def summary(told: Confidence | None, tokens: int, k: int, window: int) -> Summary:
    """The plugin's summary of such an answer. Raises BadTrace with the reason."""
    told = check(told, tokens, k)
    if told.window != window:
        raise BadTrace(f"asked for groups of {window} tokens, the engine's are of {told.window}")
    try:
        views: Views = READ_SUMMARY.decode(told.summary)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadTrace(f"the engine's summary cannot be read ({error})") from None
    nats = views.get("top1", {})
    if (highest := nats.get("max", 0.0)) > SLACK_NATS:
        raise BadTrace(f"chosen log-probs must be <= 0, got {highest:.4g}")
    end = nats.get("end") if told.ended else None
    if told.ended and end is None:
        raise BadTrace(
            "the engine's summary does not tell the end token's log-prob: is the plugin older than this gateway?"
        )
    return Summary(Source.PLUGIN, tokens - told.ended, k, window, views, end)


def read(told: Confidence | None, tokens: int, k: int, over_http: TokenTrace | None) -> TokenTrace:
    """The plugin's numbers of every token of such an answer. Raises BadTrace with the reason.

    over_http: the same answer's log-probs, when a client asked for them too; they stay in the trace beside the signals.
    """
    told = check(told, tokens, k)
    arrays = unpacked(told.arrays)
    if arrays is None:
        raise BadTrace("the engine sent no confidence: no arrays")
    if arrays.dtype != "float16":
        raise BadTrace(f"confidence arrays of {arrays.dtype[:20]!r}, this gateway reads float16")
    rows = numbers(arrays, tokens)
    length = tokens - told.ended
    end_nats = rows.item(0, -1) if told.ended else None
    chosen, group, margin, entropy, certainty = rows[:, :length]
    signals = {f"confidence_k{k}": group, "margin": margin, "entropy": entropy, "self_certainty": certainty}
    if over_http is None:
        return TokenTrace(Source.PLUGIN, chosen, signals=signals, end_nats=end_nats)
    return TokenTrace(
        Source.PLUGIN,
        over_http.chosen,
        over_http.top,
        over_http.tokens,
        signals,
        over_http.end_nats,
        over_http.candidates,
        over_http.words,
    )


FLOAT16 = np.dtype("<f2")
NAMES = ("top1", "confidence", "margin", "entropy", "self_certainty")


def numbers(arrays: Arrays, tokens: int) -> Floats:
    """(5, tokens) float64, in the order of NAMES."""
    packed = (arrays.top1, arrays.confidence, arrays.margin, arrays.entropy, arrays.self_certainty)
    for name, raw in zip(NAMES, packed, strict=True):
        if len(raw) != 2 * tokens:
            raise BadTrace(f"the confidence array {name!r} holds {len(raw) / 2:g} numbers for {tokens} tokens")
    return np.frombuffer(b"".join(packed), FLOAT16).astype(np.float64).reshape(len(NAMES), tokens)


def unpacked(told: msgspec.Raw) -> Arrays | None:
    """The arrays, where there are any. Raises BadTrace."""
    try:
        found: Arrays | None = READ_ARRAYS.decode(told)
        return found
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadTrace(f"the confidence arrays are no base64 of float16 ({error})") from None


def wanted(ask: Ask) -> bool:
    """Whether an engine that computes confidence itself is asked for it: of greedy answers, and where nothing changes
    the logits that it reads. The plugin refuses such a request (gateway/vllm_plugin/processor.py)."""
    sampling = ask.sampling
    if not ask.evidence or sampling.temperature != 0 or sampling.logit_bias or sampling.min_tokens:
        return False
    return not ask.fields or not constrained(ask.fields)


def constrained(fields: Mapping[str, Any]) -> bool:
    """Whether a server that gets these fields may emit some tokens only. A tool that must be called is such a wish."""
    return not fields.keys().isdisjoint(STRUCTURED) or fields.get("tool_choice", "auto") not in ("auto", "none")
