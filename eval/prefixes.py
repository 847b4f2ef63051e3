"""How early can one tell? For every tier and number of first tokens: how well their calibrator ranks right and wrong.

    python -m eval.prefixes --fit runs/pocket/calibration --test runs/pocket/test --out docs/results/prefix.md

Calibrators are fitted as `confgate fit --prefix k` does, on one collection, and measured on another one.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from eval import fit, records, tables
from eval.cli import as_command
from eval.fit import Failed, How, Upstream
from eval.tables import Table
from gateway.errors import ConfigError

LENGTHS = "8,16,24,32,48,64"
THRESHOLD = 0.9  # the pocket cascade's


@dataclass(frozen=True, slots=True)
class Row:
    """One tier's calibrator of k first tokens (None: the whole answer) on n unseen answers.

    scores: `Score.as_json()` by name.  accepted, accepted_right: shares, at p >= THRESHOLD.
    """

    tier: str
    k: int | None
    n: int
    n_rare: int
    scores: Mapping[str, Mapping[str, Any]]
    accepted: float
    accepted_right: float | None


def study(fit_on: Path, test_on: Path, lengths: Sequence[int | None]) -> list[Row]:
    """Every tier at every length; one that cannot be fitted is told of and left out. Raises ConfigError, BadRecords."""
    found: list[Row] = []
    split = the_split(fit_on)
    for k in lengths:
        every, _ = tables.read_all([fit_on, test_on], prefix=k)
        for one in fit.fit(every, How(split=split, upstream=Upstream.OFF, family="logistic")):
            if isinstance(one, Failed):
                typer.echo(f"note: {one.tier} left out at {k or 'whole'}: {one.error}", err=True)
                continue
            table = every[one.tier]
            found.append(measured(table.rows(table.split != split), one.p, k))
    return found


def the_split(path: Path) -> str:
    """The one split that a collection holds. Raises ConfigError, BadRecords."""
    found = {split for split, _ in records.asked(path / records.RECORDS)}
    if len(found) != 1:
        raise ConfigError(f"{path} holds several splits ({', '.join(sorted(found))}); need one to fit on")
    return found.pop()


def measured(test: Table, known: Mapping[tables.Place, float], k: int | None) -> Row:
    """How good probabilities are on answers that no fit has seen."""
    test = test.rows(np.array([place in known for place in test.places], dtype=np.bool_))
    p = np.array([known[place] for place in test.places])
    data = fit.fit_data(test, How())
    accepted = p >= THRESHOLD
    return Row(
        test.tier,
        k,
        data.n,
        data.n_rare,
        fit.measured(p, data, seed=0),
        float(accepted.mean()),
        float(test.y[accepted].mean()) if accepted.any() else None,
    )


def page(rows: Sequence[Row], command: str) -> str:
    """The study as Markdown."""
    lines = [
        "# How early can one tell?",
        "",
        f"Made by `{command}`.",
        "",
        "Calibrators (logistic) fitted on the first k tokens of one collection's answers and measured on another's, "
        "with 95 % intervals by question. `accepted`: share with p at or above "
        f"{THRESHOLD:g}; `right`: share of those that are.",
        "",
        "| tier | k | n (rarer class) | AUROC | log loss, nats | accepted | right of those |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.tier):
        right = "none accepted" if row.accepted_right is None else f"{row.accepted_right:.3f}"
        told = "whole" if row.k is None else str(row.k)
        lines.append(
            f"| {row.tier} | {told} | {row.n} ({row.n_rare}) | {shown(row.scores['auroc'])} | "
            f"{shown(row.scores['nll'])} | {row.accepted:.3f} | {right} |"
        )
    return "\n".join([*lines, ""])


def shown(score: Mapping[str, Any]) -> str:
    if "value" not in score:
        return "too few"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def main(
    fit_on: Annotated[Path, typer.Option("--fit", help="Folder of `collect` to fit on.")],
    test_on: Annotated[Path, typer.Option("--test", help="Folder of `collect` to measure on.")],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/results/prefix.md"),
    lengths: Annotated[str, typer.Option(help="Numbers of first tokens, with commas between.")] = LENGTHS,
) -> None:
    """Tell how well first tokens say whether an answer will be right."""
    rows = study(fit_on, test_on, [*(int(k) for k in lengths.split(",")), None])
    told = page(rows, shlex.join(["python", "-m", "eval.prefixes", *sys.argv[1:]]))
    out.write_text(told, encoding="utf-8")
    typer.echo(told)


if __name__ == "__main__":
    as_command(main)
