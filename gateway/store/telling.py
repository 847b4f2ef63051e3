"""One decision's whole story, for programs and for people who look into an incident."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.store.base import Channel, DecisionRow, HopRow, LabelRow, Whole, counting

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Distance:
    """Squared Mahalanobis distance of an answer's features from the monitors' reference, of which 99 % are within the
    limit."""

    squared: float
    limit: float

    @property
    def far(self) -> bool:
        return self.squared > self.limit


NOWHERE: Mapping[int, Distance] = {}


def as_json(whole: Whole, distances: Mapping[int, Distance] = NOWHERE) -> Json:
    """Everything there is. `truth` is the label that counts: an operator's before a client's, never a proxy's.

    distances: by hop's position, where they are known.
    """
    told: Json = {
        "decision": None if whole.decision is None else decision_json(whole.decision),
        "hops": [asdict(hop) | out_of_distribution(distances.get(hop.position)) for hop in whole.hops],
        "labels": [asdict(label) for label in whole.labels],
        "truth": truth(whole.labels),
    }
    return {name: printable(value) for name, value in told.items()}


def out_of_distribution(distance: Distance | None) -> Json:
    if distance is None:
        return {"out_of_distribution": None}
    return {"out_of_distribution": asdict(distance) | {"far": distance.far}}


def decision_json(row: DecisionRow) -> Json:
    return {name: printable(value) for name, value in asdict(row).items()} | {"time": moment(row.at)}


def printable(told: Any) -> Any:
    """Values that UTF-8 can carry: a lone surrogate is told as its escape."""
    if isinstance(told, dict):
        return {printable(name): printable(value) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return [printable(value) for value in told]
    return told.encode("utf-8", "backslashreplace").decode() if type(told) is str else told


def truth(labels: Sequence[LabelRow]) -> bool | None:
    """Whether the answer was right, as far as anybody who may say so has."""
    found = counting(labels)
    label = found.get(Channel.OPERATOR) or found.get(Channel.CLIENT)
    return None if label is None else label.label


def as_text(whole: Whole, distances: Mapping[int, Distance] = NOWHERE) -> str:
    """The same for people. What came from models and clients cannot move the cursor."""
    parts = [heading(whole.decision)] if whole.decision is not None else ["its decision row is not there"]
    parts += [table([hop_line(hop) for hop in whole.hops])] if whole.hops else []
    parts += [
        "\n".join([f"features of {hop.position} {hop.tier}{away(distances.get(hop.position))}", *feature_lines(hop)])
        for hop in whole.hops
        if hop.features
    ]
    if whole.labels:
        parts.append(table([label_line(label) for label in whole.labels]))
    if whole.decision is not None:
        texts = (("prompt", whole.decision.prompt), ("answer", whole.decision.answer))
        parts += [f"{name}\n{plain(text, keep_lines=True)}" for name, text in texts if text is not None]
    return "\n\n".join(parts)


def away(distance: Distance | None) -> str:
    if distance is None:
        return ""
    told = f"squared distance {distance.squared:.1f}, 99 % of the reference are within {distance.limit:.1f}"
    return f"   far out: {told}" if distance.far else f"   {told}"


def heading(row: DecisionRow) -> str:
    served = f"served by {row.tier}: {row.reason}" if row.tier else "no answer was served"
    sure = "no confidence" if row.p_correct is None else f"p = {row.p_correct:.4f}"
    against = "" if row.threshold is None else f" against {row.threshold:g}"
    lines = [
        f"decision {row.number}   {moment(row.at)}   client {plain(row.client)}   policy {plain(row.policy)}",
        f"{row.status} {row.mode}   {served}   {sure}{against}   calibrator {row.calibrator or 'none'}",
        f"{row.seconds:.3f} s   {row.prompt_tokens} + {row.completion_tokens} tokens   {row.usd:.6g} USD",
        f"prompt sha256 {row.prompt_sha256}",
    ]
    if row.metadata:
        lines.append("   ".join(f"{plain(name)} {plain(value)}" for name, value in row.metadata.items()))
    if row.inclusion is not None:
        lines.append(f"explored with probability {row.inclusion:g}: {'drawn' if row.explored else 'not drawn'}")
    return "\n".join(lines)


def hop_line(hop: HopRow) -> Json:
    told = "" if hop.rival_p is None else f"{hop.rival}, on trial, gives {hop.rival_p:.4f}"
    why = "; ".join(part for part in (hop.null_reason, hop.note, hop.error, told) if part)
    return {
        "": str(hop.position),
        "role": str(hop.role),
        "tier": hop.tier,
        "reason": hop.reason,
        "p": "-" if hop.p_correct is None else f"{hop.p_correct:.4f}",
        "threshold": "-" if hop.threshold is None else f"{hop.threshold:g}",
        "calibrator": hop.calibrator,
        "model": hop.model or "-",
        "tokens": f"{hop.prompt_tokens} + {hop.completion_tokens}",
        "seconds": f"{hop.seconds:.3f}",
        "usd": f"{hop.usd:.6g}",
        "retries": str(hop.retries),
        "why": why or "-",
    }


def feature_lines(hop: HopRow) -> list[str]:
    width = max(len(plain(name)) for name in hop.features)
    return [
        f"  {plain(name).ljust(width)}  {'undefined' if value is None else f'{value:.6g}'}"
        for name, value in hop.features.items()
    ]


def label_line(label: LabelRow) -> Json:
    return {
        "label": "right" if label.label else "wrong",
        "source": str(label.source),
        "revision": str(label.revision),
        "by": label.author,
        "time": moment(label.at),
        "calibrator": label.calibrator or "none",
        "comment": label.comment or "-",
    }


def table(rows: Sequence[Json]) -> str:
    """Rows with the same keys as aligned text."""
    lines = [list(rows[0]), *([plain(str(value)) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def plain(text: str, *, keep_lines: bool = False) -> str:
    """Text without what a terminal would obey."""
    return "".join(one if one.isprintable() or (keep_lines and one == "\n") else repr(one)[1:-1] for one in text)


def moment(seconds: float) -> str:
    """ISO, UTC; a clock that was wrong by ages is told in seconds."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.3f} s"
