"""lm-evaluation-harness `samples_*.jsonl` as rows of a table.

Of multiple-choice tasks that tool keeps the log-prob of every option: that is a confidence. Of generated answers it
keeps the texts and no log-prob at all, so there is nothing to calibrate; samples that `confgate export` wrote carry our
features under `route` and are read by those.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.records import BadRecords

MARKS = ("doc_id", "resps", "filtered_resps")
NAME = re.compile(r"samples_(?P<task>.+)_(?P<time>\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
METRICS = ("acc", "exact_match")  # 1 or 0 for each sample
BATCH = "write the prompts with `confgate batch`, run them there, and read the answers with `confgate import`"


def are_samples(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the lines of a JSONL file are that tool's samples."""
    return bool(rows) and all(mark in rows[0] for mark in MARKS)


def table_rows(path: Path, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row per sample: model, question, correct, and what is known of its confidence.

    Of several filters over the same answers the first is taken: they differ in how strictly a text is read.
    Raises BadRecords where the answers carry no confidence.
    """
    named = NAME.fullmatch(path.name)
    model, task = model_of(path, named), named["task"] if named else path.stem
    filters = [sample.get("filter") for sample in samples]
    rows = []
    for number, sample in enumerate(samples, start=1):
        if sample.get("filter") == filters[0]:
            try:
                rows.append({"model": model, "question": f"{task}-{sample['doc_id']}", **_told(sample)})
            except _Unusable as error:
                raise BadRecords(path, f"line {number}: {error}") from None
    return rows


def model_of(path: Path, named: re.Match[str] | None) -> str:
    """The model's name: from the results of the same time, else from the folder, where "/" is spelt "__"."""
    results = path.with_name(f"results_{named['time']}.json") if named else None
    if results is not None and results.is_file():
        try:
            return str(json.loads(results.read_text(encoding="utf-8"))["model_name"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadRecords(results, f"no results of lm-evaluation-harness ({error!r})") from None
    return path.absolute().parent.name.replace("__", "/")


class _Unusable(ValueError):
    """A sample that makes no row. The message says why."""


def _told(sample: Mapping[str, Any]) -> dict[str, Any]:
    route = sample.get("route")
    if isinstance(route, dict) and isinstance(route.get("features"), dict):
        facts = {name: route[name] for name in ("question", "split", "family") if route.get(name)}
        return {**facts, "correct": _correct(sample), **route["features"]}
    nats = _option_nats(sample)
    best, second, *_ = sorted(nats, reverse=True)
    return {
        "correct": _correct(sample),
        "choice_nats": best,
        "choice_margin": best - second,
        "choice_p": 1 / sum(math.exp(one - best) for one in nats),
    }


def _correct(sample: Mapping[str, Any]) -> int:
    for metric in METRICS:
        if sample.get(metric) in (0, 1):
            return int(sample[metric])
    raise _Unusable(f"no metric {' or '.join(METRICS)} that is 1 or 0; it has {sample.get('metrics')}")


def _option_nats(sample: Mapping[str, Any]) -> list[float]:
    """Log-prob of every option, nats. That tool writes [log-prob, whether it is what greedy decoding gives]."""
    found = sample["filtered_resps"]
    if not isinstance(found, list) or not all(isinstance(one, list) and len(one) == 2 for one in found):
        raise _Unusable(f"generated answers: lm-evaluation-harness keeps no log-probs of those; {BATCH}")
    if len(found) < 2:
        raise _Unusable("the log-prob of the right answer alone is no confidence: a server does not know which it is")
    return list(_numbers(found))


def _numbers(found: Sequence[Sequence[Any]]) -> Iterator[float]:
    for nats, _ in found:
        try:
            number = float(nats)
        except (TypeError, ValueError):
            raise _Unusable(f"an option's log-prob is {nats!r}, not a number") from None
        if not math.isfinite(number):
            raise _Unusable(f"an option's log-prob is {nats!r}, not finite")
        yield number
