"""What a calibrator's traffic is to be like, from the decision log before it came: what it would have made of that.

A release that is put in service by hand had no trial that could have promised anything. The features of every answer
are in the log, so the new calibrator can be asked about each under the thresholds that are configured now. A tier that
is reached by more or by other questions, because an earlier one has changed as well, is not foreseen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np

from calibrators.artifact import Artifact
from gateway.monitor.feed import PAGE, Readable
from gateway.monitor.trials import RATES, accepts
from gateway.nouns import Floats
from gateway.store.base import Cursor, DecisionRow, HopRow, Role

LEAST_ROWS, MOST_ROWS = 200, 5_000
# Seconds: the latest is most like what comes; longer where it is too little.
WINDOWS = (3600.0, 6 * 3600.0, 86400.0, 7 * 86400.0)


def forecast(
    store: Readable,
    tier: str,
    artifact: Artifact,
    thresholds: Mapping[str, float],
    *,
    alike: Collection[str],
    until: float,
) -> dict[str, float]:
    """`escalated`, of answers with a p, and of all answers the shares of RATES; {} where the log tells too little.

    thresholds: by policy, what the tier's answers are accepted at.  alike: labels of calibrators whose features were
    measured on the same part of an answer.  until: seconds since 1970.  Raises StoreDown.
    """
    for seconds in WINDOWS:
        seen = Counter[str]()
        rows: list[Floats] = []
        levels: list[float] = []
        after: Cursor = (until - seconds, "", "")
        while seen["n"] < MOST_ROWS and (page := store.decisions(after, PAGE)):
            for decision, hops in page:
                hop = _hop(decision, hops, tier) if decision.at < until else None
                if hop is None or decision.policy not in thresholds:
                    continue
                seen["n"] += 1
                for name, reason in RATES.items():
                    seen[name] += hop.null_reason == reason
                known = _known(hop, artifact.label)
                if known is not None:
                    seen["judged"] += 1
                    seen["escalated"] += not accepts(known, thresholds[decision.policy])
                elif (
                    hop.p_correct is not None
                    and hop.calibrator in alike
                    and hop.features.keys() >= {*artifact.features}
                ):
                    values = [hop.features[name] for name in artifact.features]
                    rows.append(np.array([np.nan if value is None else value for value in values]))
                    levels.append(thresholds[decision.policy])
            if page[-1][0].at >= until:
                break
            after = (page[-1][0].at, page[-1][0].number, "")
        if rows:
            found = artifact.calibrator().predict(np.stack(rows))
            seen["judged"] += len(rows)
            seen["escalated"] += sum(not accepts(float(p), level) for p, level in zip(found, levels, strict=True))
        if seen["judged"] >= LEAST_ROWS:
            told = {name: smoothed(seen[name], seen["n"]) for name in RATES}
            return told | {"escalated": smoothed(seen["escalated"], seen["judged"])}
    return {}


def smoothed(hits: int, n: int) -> float:
    """Laplace's rule: what was never seen in n is rare, and not impossible."""
    return (hits + 1) / (n + 2)


def _hop(decision: DecisionRow, hops: tuple[HopRow, ...], tier: str) -> HopRow | None:
    """The tier's turn with a calibrator, where no fault came before it."""
    if decision.status != 200:
        return None
    for hop in hops:
        if hop.role is not Role.HOP or hop.error:
            return None
        if hop.tier == tier:
            return hop if hop.calibrator != "none" else None
    return None


def _known(hop: HopRow, label: str) -> float | None:
    """What this very calibrator said of an answer, in service or on trial."""
    return hop.p_correct if hop.calibrator == label else hop.rival_p if hop.rival == label else None
