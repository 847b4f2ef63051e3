"""Are recorded answers what they claim to be, or is the prompt broken? Looked at before anybody calibrates on them.

A model that scores far below what its makers report was asked in the wrong template, cut off, or misread; a calibrator
fitted on such answers describes the mistake. Only what chance cannot explain counts: a 95 % interval that lies on the
wrong side of the limit as a whole.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.scores import wilson
from eval import records
from eval.collect import SUMMED, summary, tallied
from eval.grade import Grade
from eval.records import MANIFEST, RECORDS, Collected, Manifest, Row
from eval.splits import Bools, contamination
from eval.tables import Table
from gateway.errors import ConfigError, GatewayError

# GSM8K accuracy that the Qwen2.5 technical report (arXiv:2412.15115) gives for its instruct models, by billions of
# parameters, and the least that a sound prompt reaches: 95 % of it from 7B on. Smaller ones depend on the protocol
# (public reruns: 58 to 65 % for 1.5B, 76 % for 3B), so 80 %, rounded.
REPORTED: Mapping[str, tuple[float, float]] = {
    "0.5": (0.496, 0.40),
    "1.5": (0.732, 0.58),
    "3": (0.867, 0.70),
    "7": (0.916, 0.95 * 0.916),
    "14": (0.948, 0.95 * 0.948),
    "32": (0.959, 0.95 * 0.959),
}
QWEN = re.compile(r"(?:^|/)qwen2\.5-(\d+(?:\.\d+)?)b-instruct", re.IGNORECASE)  # Math and Coder are other models
DATASET = "gsm8k"

MOST_TRUNCATED = MOST_UNREADABLE = 0.1  # share of answers: more, and accuracy measures the token limit or the format
MOST_UNMARKED = 0.02  # of accuracy, flexible minus strict (science 8.3), where the prompt asks for a marked answer
MARKS = ("\\boxed", "####")
ENOUGH = 200  # answers of a tier to one split that show whether the rest is worth paying for


class Implausible(GatewayError):
    """Answers that no sound prompt gives. `problems`: what is wrong with them, in words."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(
            f"these answers look broken: {'; '.join(problems)}. Read a few of them, repair the prompt, the chat "
            "template or --max-tokens, and collect anew; or go on all the same with --implausible"
        )
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Findings:
    """problems: what stops a fit.  warnings: what people should know."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def check(sources: Iterable[Path]) -> list[str]:
    """Look at collections (their folders, or the Parquet files in them). Returns warnings.

    Tables of the user's own say neither which model answered nor how an answer ended, and are passed over.
    Raises Implausible.
    """
    found = [findings(*one) for source in sources if (one := _collection(source)) is not None]
    problems = [problem for one in found for problem in one.problems]
    if problems:
        raise Implausible(problems)
    return [warning for one in found for warning in one.warnings]


class Gate:
    """Watches a collection's rows come in, and stops it when a tier's first ENOUGH answers cannot be those of a sound
    prompt: nobody shall pay for the rest. It looks once per tier and split, or chance would stop a sound one one day.

    folder: of the collection, whose manifest is there before the first row is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)

    def __call__(self, row: Row) -> None:
        """Raises Implausible."""
        seen = self._seen[row.split, row.tier]
        if row.grade == Grade.UNASKED or len(seen) == ENOUGH:
            return
        seen.append({name: getattr(row, name) for name in SUMMED})
        if len(seen) == ENOUGH:
            told = {"split": row.split, "tier": row.tier, **tallied(seen)}
            found = findings([told], records.read_manifest(self._folder / MANIFEST))
            if found.problems:
                raise Implausible(
                    [*found.problems, f"stopped after {ENOUGH} of its answers; they stay in {self._folder}"]
                )


def seen_before(every: Mapping[str, Table], split: str, clean: Sequence[str]) -> list[str]:
    """Whether confidence on the split to fit on looks unlike that on clean ones, tier by tier, in words (science 2.3).

    Compares the first feature. clean: splits that no model can have seen; none takes `test` where there is one.
    Raises ConfigError for a split that there is not.
    """
    have = {str(name) for table in every.values() for name in table.split}
    for name in clean:
        if name not in have:
            raise ConfigError(f"no split {name!r} in these records; have {', '.join(sorted(have))}")
    told = []
    for name in clean or [one for one in ("test",) if one in have and one != split]:
        for tier, table in every.items():
            one, other = table.rows(_known(table, split)), table.rows(_known(table, name))
            if one.y.size and other.y.size:
                found = contamination(one.X[:, 0], one.y == 1, other.X[:, 0], other.y == 1)
                told.append(f"{tier}, {split} against {name}: {found.advice}")
    return told


def _known(table: Table, split: str) -> Bools:
    known: Bools = (table.split == split) & np.isfinite(table.X[:, 0])
    return known


def _collection(source: Path) -> tuple[list[dict[str, Any]], Manifest] | None:
    file = source / RECORDS if source.is_dir() else source
    ours = source.is_dir() or (file.suffix == ".parquet" and records.is_ours(records.open_parquet(file).schema_arrow))
    return (summary(file), records.read_manifest(file.parent / MANIFEST)) if ours else None


def findings(rows: Iterable[Mapping[str, Any]], manifest: Manifest) -> Findings:
    """rows: as eval.collect.summary gives them, one per split and tier."""
    tiers = {tier.name: tier for tier in manifest.tiers}
    asked = [row for row in rows if row["n"] and row["tier"] in tiers]
    problems = [told for row in asked for told in _problems(row, tiers[row["tier"]], manifest.dataset)]
    marked = any(mark in f"{manifest.system}{manifest.template}" for mark in MARKS) or bool(manifest.shots)
    return Findings(tuple(problems), tuple(told for row in asked for told in _unmarked(row)) if marked else ())


def floor(model: str, dataset: str) -> tuple[float, float] | None:
    """(reported accuracy, the least that is plausible) of a model on a dataset; None where nothing is known."""
    found = QWEN.search(model)
    return REPORTED.get(found[1]) if found is not None and dataset == DATASET else None


def _problems(row: Mapping[str, Any], tier: Collected, dataset: str) -> Iterable[str]:
    name, n = f"{row['tier']} on {row['split']}", row["n"]
    known = floor(tier.weights or str(tier.fingerprint.get("model", "")), dataset)
    if known is not None and row["high"] < known[1]:
        told = f"{row['accuracy']:.1%} right [{row['low']:.1%}, {row['high']:.1%}], n = {n:,}"
        yield f"{name}: {told}, where {known[0]:.1%} is reported and {known[1]:.1%} the least that is plausible"
    for what, most, cause in (
        ("truncated", MOST_TRUNCATED, "the token limit is too low, or the model never stops"),
        ("unreadable", MOST_UNREADABLE, "no final number in them"),
    ):
        share = wilson(what, row[what], n)
        assert share.low is not None, "Wilson's interval has two ends"
        if share.low > most:
            yield f"{name}: {share.value:.1%} of {n:,} answers {what} ({cause})"


def _unmarked(row: Mapping[str, Any]) -> Iterable[str]:
    gap = (row["right"] - row["strict"]) / row["n"]
    if gap > MOST_UNMARKED:
        yield (
            f"{row['tier']} on {row['split']}: {gap:.1%} of the answers are right without being marked as the prompt "
            "asks (box or ####); does the model see the whole prompt?"
        )
