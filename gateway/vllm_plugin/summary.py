"""From a request's records to the `confidence` object of its answer."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.vllm_plugin.channel import Records
from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.signals import ABORTED, SIGNALS

SCHEMA = "confgate.confidence/1"
BOTTOM = 0.1  # DeepConf's share of the least sure groups
VIEWS = ("mean", "min", "max", "lowest_group", "bottom_groups", "tail", "bottom_tokens", "end")


def missing(why: str) -> dict[str, Any]:
    """The object of an answer without confidence."""
    return {"schema": SCHEMA, "missing": why}


def aborted(records: Records) -> bool:
    """Whether the last token was forced, because a full group's confidence had fallen under the request's limit."""
    return bool(records[-1, ABORTED])


def confidence(records: Records, wanted: Wanted, *, greedy: bool, ended: bool) -> dict[str, Any]:
    """records: (T >= 1, COLUMNS) float32 of an answer's tokens, the end token among them when `ended`.

    greedy: `top1` is the log-prob of the emitted tokens.  Summaries are of the text's tokens, without the end token,
    unless that is the only one; its own values are `end`. Groups are sliding windows of wanted.window tokens (the whole
    answer, if shorter).
    """
    halves = np.ascontiguousarray(records[:, : len(SIGNALS)].T, dtype="<f2")
    length = len(records) - 1 if ended and len(records) > 1 else len(records)
    told = {
        "schema": SCHEMA,
        "tokens": len(records),
        "k": wanted.k,
        "window": wanted.window,
        "greedy": greedy,
        "ended": ended,
        "aborted": aborted(records),
        "summary": summary(halves[:, :length], wanted.window, halves[:, length:]),
    }
    if wanted.arrays:
        packed = (base64.b64encode(row).decode("ascii") for row in halves)
        told["arrays"] = {"dtype": "float16", **dict(zip(SIGNALS, packed, strict=True))}
    return told


def summary(halves: npt.NDArray[np.float16], window: int, end: npt.NDArray[np.float16]) -> dict[str, dict[str, float]]:
    """Of each signal, (5, T): DeepConf's mean, lowest group, mean of the lowest 10 % of groups and tail; extremes;
    the mean of the lowest 10 % of tokens; and the end token's, (5, 1), where there is one.
    Of the very numbers that arrays hold, and told in full, so that a feature is the same whichever it is read from.

    Ufuncs alone, for all five at once: this runs in the loop of vLLM's API server, where a crowd of answers that end
    together waits for it one by one.
    """
    rows = halves.astype(np.float64, order="C")
    length = rows.shape[1]
    window = min(window, length)
    total = np.add.accumulate(rows, axis=1)
    groups = total[:, window - 1 :].copy()  # of all full sliding windows, at least one
    groups[:, 1:] -= total[:, :-window]
    least = max(1, int(BOTTOM * groups.shape[1]))
    tokens = -(-length // 10)
    told = np.concatenate((np.empty((len(VIEWS) - 1, len(SIGNALS))), end.T.astype(np.float64)))
    views = told[: len(VIEWS) - 1]
    mean, smallest, largest, lowest_group, bottom_groups, tail, bottom_tokens = views
    mean[:] = total[:, -1]
    np.minimum.reduce(rows, axis=1, out=smallest)
    np.maximum.reduce(rows, axis=1, out=largest)
    tail[:] = groups[:, -1]
    groups.partition(least - 1, axis=1)
    bottom = groups[:, :least]
    np.minimum.reduce(bottom, axis=1, out=lowest_group)
    np.add.reduce(bottom, axis=1, out=bottom_groups)
    rows.partition(tokens - 1, axis=1)
    np.add.reduce(rows[:, :tokens], axis=1, out=bottom_tokens)
    views /= np.array((length, 1, 1, window, least * window, window, tokens))[:, None]
    by_signal = told.T.tolist()
    # strict=False: without an end token its view, the last one, is left out
    return {signal: dict(zip(VIEWS, row, strict=False)) for signal, row in zip(SIGNALS, by_signal, strict=True)}
