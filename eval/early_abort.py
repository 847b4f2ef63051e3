"""Which answers will not be accepted whatever comes: learned from recorded ones, by what their first tokens were like.

For a threshold and an epsilon, and for each number of tokens, a bound on a running feature is looked for: of the
answers at or under it no larger a share than epsilon is accepted at the threshold in the end. Each number of tokens is
tried on the answers that the ones before leave. A bound is taken when the exact upper limit of that share is at most
epsilon, on all questions and on those that reach the tier; all that were tried share the error, so that with CONFIDENCE
all bounds of one threshold and epsilon hold at once, those before taken as given.

Whether an answer would be accepted is known from probabilities out of fold, as a fit's later tiers know them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from calibrators.scores import clopper_pearson
from eval import records
from eval.fit import Failed, Fitting, reached
from eval.records import RECORDS
from eval.seal import needs_of
from eval.tables import Place
from gateway import confidence
from gateway.confidence import Higher
from gateway.errors import ConfigError
from gateway.nouns import Evidence, Floats, Source

Bools = npt.NDArray[np.bool_]

FEATURE = "lp_mean"
TOKENS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
EPSILONS = (0.01, 0.02, 0.05, 0.1, 0.2)
SHARES = tuple(tenth / 10 for tenth in range(1, 11))  # of the answers that are left, to be given up at once
CONFIDENCE = 0.95
FEW = 50  # answers of so many tokens; of fewer nothing could be proven that is worth the error it shares


@dataclass(frozen=True, slots=True)
class Bound:
    """Answers whose feature of the first `tokens` tokens is at_most this are given up.

    n: how many of the recorded ones were.  accepted: how many of those would have been accepted.
    """

    tokens: int
    at_most: float
    n: int
    accepted: int


def learn(
    done: Sequence[Fitting | Failed], sources: Sequence[Path], feature: str = FEATURE
) -> dict[str, dict[str, object]]:
    """What artefacts carry as `early_abort`, by tier. sources: the records that were fitted on.

    A tier whose engine computes confidence itself, and so tells it at the end only, is left out.
    Raises ConfigError for a feature that cannot be followed while an answer is made, and for a table of the user's own.
    """
    able = [one for one in done if isinstance(one, Fitting) and one.table.source is not Source.PLUGIN]
    check(feature, able)
    files = [source / RECORDS if source.is_dir() else source for source in sources]
    values = running(files, {one.tier: one.table.places for one in able}, feature)
    found: dict[str, dict[str, object]] = {}
    for place, one in enumerate(done):
        if isinstance(one, Fitting) and one.tier in values:
            populations = [np.ones(one.data.n, dtype=np.bool_)]
            if place:
                populations.append(reached(one.table, done[:place]))
            found[one.tier] = {
                "feature": confidence.find(feature).spec,
                "confidence": CONFIDENCE,
                "levels": levels(values[one.tier], one, populations),
            }
    return found


def check(feature: str, fittings: Sequence[Fitting]) -> None:
    """Raises ConfigError unless the gateway can follow the feature on the evidence that it asks for anyway."""
    found = confidence.find(feature)
    if found.higher is not Higher.SURER or found.needs.earlier or found.needs.tokens or found.needs.signals:
        raise ConfigError(
            f"{feature} cannot be followed while an answer is made; take one of log-probs, such as lp_mean"
        )
    for one in fittings:
        if one.table.source is None:
            raise ConfigError(
                "early abort is learned from answers token by token: collect them with `confgate collect`"
            )
        if found.needs.top_k > needs_of(one).top_k:
            raise ConfigError(f"{feature} needs more candidates than the calibrator of {one.tier} asks for")


def running(files: Sequence[Path], wanted: Mapping[str, Sequence[Place]], feature: str) -> dict[str, Floats]:
    """(N, len(TOKENS)) by tier: the feature of the first tokens, NaN for answers of fewer. wanted: rows, by tier."""
    rows = {tier: {place: row for row, place in enumerate(places)} for tier, places in wanted.items()}
    values = {tier: np.full((len(places), len(TOKENS)), np.nan) for tier, places in wanted.items()}
    for file in files:
        for record in records.read(file):
            row = rows.get(record.tier, {}).get((record.split, record.question))
            if row is None or record.trace is None:
                continue
            for column, tokens in enumerate(TOKENS):
                if tokens > record.trace.chosen.size:
                    break
                begun = Evidence(record.trace.part(0, tokens), "")
                values[record.tier][row, column] = confidence.measure([feature], begun).values[0]
    return values


def levels(values: Floats, fitting: Fitting, populations: Sequence[Bools]) -> list[dict[str, object]]:
    """Every threshold and epsilon for which there are bounds."""
    first = np.zeros(fitting.data.n, dtype=np.bool_)  # of each family: binomial tails are those of independent answers
    first[np.unique(fitting.table.family, return_index=True)[1]] = True
    found: list[dict[str, object]] = []
    for threshold in THRESHOLDS:
        accepted = fitting.held_out >= threshold
        for epsilon in EPSILONS:
            bounds = search(values[first], accepted[first], [which[first] for which in populations], epsilon)
            if bounds:
                told = [asdict(bound) for bound in bounds]
                found.append({"threshold": threshold, "epsilon": epsilon, "bounds": told})
    return found


def search(values: Floats, accepted: Bools, populations: Sequence[Bools], epsilon: float) -> list[Bound]:
    """The bounds of one threshold and epsilon, by rising number of tokens.

    values: (N, len(TOKENS)).  accepted: (N,) in the end.  populations: each (N,); the share must hold in every one.
    """
    usable = [column for column in range(len(TOKENS)) if np.isfinite(values[:, column]).sum() >= FEW]
    delta = (1 - CONFIDENCE) / max(1, len(usable) * len(SHARES))
    waiting = np.ones(len(values), dtype=np.bool_)
    bounds: list[Bound] = []
    for column in usable:
        here = waiting & np.isfinite(values[:, column])
        if not here.any():
            continue
        candidates = np.quantile(values[here, column], SHARES, method="lower")
        under = here & (values[:, column] <= candidates[:, np.newaxis])
        good = np.ones(len(candidates), dtype=np.bool_)
        for which in populations:
            n, hits = (under & which).sum(axis=1), (under & which & accepted).sum(axis=1)
            good &= (n > 0) & (clopper_pearson(hits, np.maximum(n, 1), 1 - 2 * delta)[1] <= epsilon)
        if good.any():
            best = int(np.flatnonzero(good)[-1])
            gone = under[best]
            bounds.append(Bound(TOKENS[column], float(candidates[best]), int(gone.sum()), int((gone & accepted).sum())))
            waiting &= ~gone
    return bounds
