"""What the commands print: tables of words and numbers, made from rows that --json prints as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli import table

if TYPE_CHECKING:
    from eval.fit import Failed, Fitting

Row = dict[str, Any]


def interval(value: float | None, low: float | None, high: float | None, form: str = ".1%") -> str | None:
    """ "87.4% [85.6%, 89.0%]", or as much of it as there is."""
    if value is None:
        return None
    return f"{value:{form}}" if low is None or high is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"


def share(part: int, n: int) -> str | None:
    return f"{part / n:.1%}" if n else None


def collected(rows: Sequence[Row], path: Path) -> str:
    """The table at the end of a collection, and what to do about rows that failed."""
    lines = [
        {
            "split": row["split"],
            "tier": row["tier"],
            "n": row["n"],
            "accuracy": interval(row["accuracy"], row["low"], row["high"]),
            "strict": share(row["strict"], row["n"]),
            "truncated": share(row["truncated"], row["n"]),
            "unreadable": share(row["unreadable"], row["n"]),
            "tokens": row["prompt_tokens"] + row["completion_tokens"],
            "usd": row["usd"],
            "unasked": row["unasked"],
        }
        for row in rows
    ]
    failed = sum(row["unasked"] for row in rows)
    advice = f"\n{failed} answers failed; the same command asks for them again" if failed else ""
    return f"{table(lines)}\n{path}{advice}"


def row(one: Fitting | Failed) -> Row:
    """One tier of a fit: sizes, the family and why, and the scores; or why there is no calibrator."""
    from eval.fit import Failed

    told: Row = {"tier": one.tier, "left_out": dict(one.table.left_out)}
    if isinstance(one, Failed):
        return told | {"error": str(one.error)}
    return told | {
        "n": one.data.n,
        "n_rare": one.data.n_rare,
        "family": one.family,
        "reason": one.reason,
        "objective": one.objective,
        "eta": one.eta,
        "pooled_with": list(one.pooled),
        "features": list(one.data.names),
        "upstream": one.gain and str(one.gain),
        "tried": [asdict(tried) for tried in one.tried],
        "temperature": one.temperature,
        "routed_n": one.routed_n,
        "notes": list(one.notes),
        "metrics": {name: dict(metric) for name, metric in one.metrics.items()},
    }


def fitted(rows: Sequence[Row], paths: Sequence[Path]) -> str:
    """The table of a fit, then the reasons, then where the artefacts are."""
    good = [row for row in rows if "error" not in row]
    lines = [
        {
            "tier": row["tier"],
            "n": row["n"],
            "n_rare": row["n_rare"],
            "left out": sum(row["left_out"].values()),
            "family": row["family"],
            "AUROC": metric(row["metrics"]["auroc"]),
            "NLL": metric(row["metrics"]["nll"]),
            "ECE, debiased": metric(row["metrics"]["debiased_ece"]),
            "chance gives": floor(row["metrics"].get("ece")),
        }
        for row in good
    ]
    why = [f"{row['tier']}: {reason}" for row in good for reason in reasons(row)]
    wrong = [f"{row['tier']}: not fitted: {row['error']}" for row in rows if "error" in row]
    weighed = [weighing(row) for row in good if row["tried"]]
    return "\n".join([*([table(lines)] if lines else []), *weighed, *why, *map(str, paths), *wrong])


def weighing(row: Row) -> str:
    """What each strength of a robust objective came to for one tier, ERM first."""
    lines = [
        {
            row["tier"]: f"{row['objective']}(eta={tried['eta']:g})" if tried["eta"] else "erm",
            "NLL": f"{tried['nll']:.4f} +- {tried['se']:.4f}",
            **{f"NLL, {split}": f"{nll:.4f}" for split, nll in tried["shifted"].items()},
            "ESS": f"{tried['ess']:.2f} N",
            "temperature": f"{tried['temperature']:.2f}",
            "": "chosen" if tried["eta"] == row["eta"] else tried["rejected"],
        }
        for tried in row["tried"]
    ]
    return "\n" + table(lines) + "\n"


def reasons(row: Row) -> list[str]:
    routed = row["temperature"] and (
        f"temperature {row['temperature']:.3f} fitted on the {row['routed_n']:,} answers that reach it"
    )
    pooled = row["pooled_with"] and f"slopes shared with {', '.join(row['pooled_with'])}"
    left = ", ".join(f"{n} {why}" for why, n in row["left_out"].items() if n)
    told = [row["reason"], pooled, row["upstream"], routed, *row["notes"], left and f"left out of the fit: {left}"]
    return [one for one in told if one]


def metric(told: Mapping[str, Any]) -> str:
    if "insufficient" in told:
        return f"insufficient: {told['insufficient']}"
    return interval(told["value"], told["low"], told["high"], ".3f") or "-"


def floor(told: Mapping[str, Any] | None) -> str | None:
    """A binned ECE beside what a perfectly calibrated model of this n would show."""
    return None if told is None else f"ECE {told['value']:.3f}, floor {told['floor']:.3f}"
