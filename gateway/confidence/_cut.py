"""Parts of answers. Text after the final answer says little about it and spoils averages and tails, so it is cut off;
and a stream is decided on by its first tokens."""

from __future__ import annotations

from dataclasses import replace

from gateway.confidence._answer import spelling
from gateway.errors import BadTrace
from gateway.nouns import Evidence


def first_tokens(evidence: Evidence, count: int) -> Evidence:
    """The evidence as it looks when `count` tokens have come and the rest is unknown; all of a shorter answer.

    Raises BadTrace without the tokens' texts: what the first tokens say would be unknown.
    """
    trace = evidence.trace
    if trace.chosen.size < count:
        return evidence
    if not trace.tokens:
        raise BadTrace("the first tokens need their texts, the engine reported none")
    part = trace.part(0, count)
    return replace(evidence, trace=part, text=b"".join(part.tokens).decode("utf-8", "replace"))


def cut_after_answer(evidence: Evidence) -> Evidence:
    """The evidence up to the token that ends the final answer, closing brace included; all of it without an answer.

    A calibrator is fitted on cut answers or on whole ones, never on both. Raises BadTrace without the tokens' texts:
    measuring the whole answer instead would go unnoticed.
    """
    trace = evidence.trace
    if not trace.tokens:
        raise BadTrace("cutting after the final answer needs the tokens' texts, the engine reported none")
    spelled = spelling(trace)
    if spelled.reading.number is None:
        return evidence
    kept = slice(0, spelled.tokens(0, spelled.reading.stop).stop)
    cut = replace(
        trace,
        chosen=trace.chosen[kept],
        top=None if trace.top is None else trace.top[kept],
        tokens=trace.tokens[kept],
        signals={name: signal[kept] for name, signal in trace.signals.items()},
    )
    return replace(evidence, trace=cut, text=spelled.text[: spelled.reading.stop])
