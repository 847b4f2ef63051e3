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
DECIMALS = 6

Floats = npt.NDArray[np.float64]


def missing(why: str) -> dict[str, Any]:
    """The object of an answer without confidence."""
    return {"schema": SCHEMA, "missing": why}


def aborted(records: Records) -> bool:
    """Whether the last token was forced, because a full group's confidence had fallen under the request's limit."""
    return bool(records[-1, ABORTED])


def confidence(records: Records, wanted: Wanted, *, greedy: bool, ended: bool) -> dict[str, Any]:
    """records: (T >= 1, COLUMNS) float32 of an answer's tokens, the end token among them when `ended`.

    greedy: `top1` is the log-prob of the emitted tokens.  Summaries are of the text's tokens, without the end token,
    unless that is the only one; groups are sliding windows of wanted.window tokens (the whole answer, if shorter).
    """
    values = records[:, : len(SIGNALS)]
    length = len(records) - 1 if ended and len(records) > 1 else len(records)
    told = {
        "schema": SCHEMA,
        "tokens": len(records),
        "k": wanted.k,
        "window": wanted.window,
        "greedy": greedy,
        "ended": ended,
        "aborted": aborted(records),
        "summary": summary(values[:length], wanted.window),
    }
    if wanted.arrays:
        halves = np.ascontiguousarray(values.T, dtype="<f2")
        packed = (base64.b64encode(row).decode("ascii") for row in halves)
        told["arrays"] = {"dtype": "float16", **dict(zip(SIGNALS, packed, strict=True))}
    return told


def summary(values: npt.NDArray[np.float32], window: int) -> dict[str, dict[str, float]]:
    """Of each signal, (T, 5): DeepConf's mean, lowest group, mean of the lowest 10 % of groups and tail; and extremes.

    One pass for all five, rounded as one array: this runs in the loop of vLLM's API server, which is what limits a
    small model's speed.
    """
    rows = np.ascontiguousarray(values.T, dtype=np.float64)
    groups = grouped(rows, window)
    least = max(1, int(BOTTOM * groups.shape[1]))
    views = {
        "mean": mean(rows),
        "min": rows.min(axis=1),
        "max": rows.max(axis=1),
        "lowest_group": groups.min(axis=1),
        "bottom_groups": mean(np.partition(groups, least - 1, axis=1)[:, :least]),
        "tail": mean(rows[:, -window:]),
    }
    told = np.round(np.stack(list(views.values()), axis=1), DECIMALS).tolist()
    return {signal: dict(zip(views, row, strict=True)) for signal, row in zip(SIGNALS, told, strict=True)}


def grouped(rows: Floats, window: int) -> Floats:
    """Means of all full sliding windows, at least one: (S, T) -> (S, max(1, T - window + 1))."""
    if rows.shape[1] <= window:
        return mean(rows)[:, None]
    total = np.add.accumulate(rows, axis=1)
    groups = total[:, window - 1 :].copy()
    groups[:, 1:] -= total[:, :-window]
    return groups / window


def mean(rows: Floats) -> Floats:
    """(S, T) -> (S,); quicker than ndarray.mean for arrays this small."""
    return np.asarray(np.add.reduce(rows, axis=1) / rows.shape[1])
