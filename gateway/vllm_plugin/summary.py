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
    columns = dict(zip(SIGNALS, records[:, : len(SIGNALS)].T, strict=True))
    length = len(records) - 1 if ended and len(records) > 1 else len(records)
    told = {
        "schema": SCHEMA,
        "tokens": len(records),
        "k": wanted.k,
        "window": wanted.window,
        "greedy": greedy,
        "ended": ended,
        "aborted": aborted(records),
        "summary": {name: summary(values[:length], wanted.window) for name, values in columns.items()},
    }
    if wanted.arrays:
        told["arrays"] = {"dtype": "float16"} | {
            name: base64.b64encode(values.astype("<f2").tobytes()).decode("ascii") for name, values in columns.items()
        }
    return told


def summary(values: npt.NDArray[np.float32], window: int) -> dict[str, float]:
    """DeepConf's views of one signal (T,): mean, least group, mean of the least 10 % of groups, tail; and extremes."""
    groups = grouped(values.astype(np.float64), window)
    least = max(1, int(BOTTOM * groups.size))
    told = {
        "mean": values.mean(dtype=np.float64),
        "min": values.min(),
        "max": values.max(),
        "lowest_group": groups.min(),
        "bottom_groups": np.partition(groups, least - 1)[:least].mean(),
        "tail": values[-window:].mean(dtype=np.float64),
    }
    return {name: float(f"{value:.6g}") for name, value in told.items()}


def grouped(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Means of all full sliding windows, at least one."""
    if values.size <= window:
        return np.array([values.mean()])
    total = np.cumsum(np.concatenate(([0.0], values)))
    return np.asarray((total[window:] - total[:-window]) / window)
