"""What other thresholds would have cost and got right on logged traffic, as far as that is known.

Only explored decisions tell what every tier would have said, so only they are replayed, each with the weight
1 / inclusion (gateway/exploration.py). A label is about the answer that was served. Another tier's answer is right
where it agrees with one that was right, and wrong where it agrees with a wrong one or differs from a right one; an
answer that differs from a wrong one may be either, and so may one of which nobody can say whether it agrees. What is
not known is not guessed: accuracy is told as the range from all of it wrong to all of it right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.sampling import wilson
from gateway import policy as policies
from gateway.console import estimates
from gateway.console.estimates import Figure
from gateway.nouns import Finish, Floats, Policy, Reason
from gateway.store.base import HopRow, Role, Whole
from gateway.store.telling import truth

Json = dict[str, Any]
Ints = npt.NDArray[np.intp]

LEAST_ROWS = 30  # labelled ones for an accuracy, and all for a cost: below, nothing is said
STEPS = 100  # of the slider over [0, 1]


@dataclass(frozen=True, slots=True, eq=False)
class Crossed:
    """N decisions that every one of K tiers answered, in the policy's order.

    surest: (N, K), the largest threshold that each answer meets, -inf for one that no threshold accepts.
    usd: (N, K).  right: (N, K), 1 or 0, NaN where not known.  labelled: (N,) of bool.  weights: (N,), 1 / inclusion.
    left_out: how many explored decisions are not among them, by why.
    """

    tiers: tuple[str, ...]
    surest: Floats
    usd: Floats
    right: Floats
    labelled: npt.NDArray[np.bool_]
    weights: Floats
    left_out: Mapping[str, int]

    def only(self, rows: npt.NDArray[np.bool_]) -> Crossed:
        return Crossed(
            self.tiers,
            self.surest[rows],
            self.usd[rows],
            self.right[rows],
            self.labelled[rows],
            self.weights[rows],
            self.left_out,
        )


def crossed(explored: Sequence[Whole], route: Policy) -> Crossed:
    """Those of a policy's explored decisions that can be replayed with its tiers and calibrators as they are now."""
    tiers = tuple(tier.name for tier in route.tiers)
    calibrators = {tier.name: tier.calibrator_id for tier in route.tiers[:-1]}
    left_out: dict[str, int] = {}
    rows: list[tuple[list[HopRow], bool | None, float]] = []
    for whole in explored:
        if whole.decision is None or whole.decision.policy != route.name or not whole.decision.inclusion:
            continue
        hops = {hop.tier: hop for hop in whole.hops if hop.role is not Role.SIBLING}
        why = unusable(hops, tiers, calibrators)
        if why:
            left_out[why] = left_out.get(why, 0) + 1
        else:
            rows.append(([hops[tier] for tier in tiers], truth(whole.labels), 1 / whole.decision.inclusion))
    shape = (len(rows), len(tiers))
    return Crossed(
        tiers,
        np.array([[surest(hop) for hop in hops] for hops, _, _ in rows], dtype=np.float64).reshape(shape),
        np.array([[hop.usd for hop in hops] for hops, _, _ in rows], dtype=np.float64).reshape(shape),
        np.array([[right(hop, label) for hop in hops] for hops, label, _ in rows], dtype=np.float64).reshape(shape),
        np.array([label is not None for _, label, _ in rows], dtype=np.bool_),
        np.array([weight for _, _, weight in rows], dtype=np.float64),
        left_out,
    )


def unusable(hops: Mapping[str, HopRow], tiers: Sequence[str], calibrators: Mapping[str, str]) -> str:
    """Why a decision cannot be replayed, "" where it can."""
    if not set(tiers) <= hops.keys():
        return "a tier was not asked"
    if hops[tiers[-1]].error:
        return "the last tier failed"
    if any(not hops[tier].finish and not hops[tier].error for tier in tiers):
        return "an answer was given up before its end"
    if any(hops[tier].calibrator != label for tier, label in calibrators.items()):
        return "another calibrator was in service"
    return ""


def surest(hop: HopRow) -> float:
    """The largest threshold at which the policy accepts this answer; -inf where it never does."""
    p = hop.p_correct
    if p is None or hop.error or not hop.finish:
        return -np.inf
    meets = policies.decide(p, p, finish=Finish(hop.finish), null_reason=None)
    return p if meets is Reason.CONFIDENT else -np.inf


def right(hop: HopRow, label: bool | None) -> float:
    """1 or 0 where the label of the served answer tells about this one; else NaN."""
    if label is None or hop.agrees is None:
        return np.nan
    if hop.agrees:
        return float(label)
    return 0.0 if label else np.nan


def replayed(rows: Crossed, thresholds: Sequence[float]) -> Ints:
    """Which tier would have answered, (N,). thresholds: (K - 1,), of all tiers but the last."""
    accepts = rows.surest[:, :-1] >= np.asarray(thresholds)
    sure: Ints = np.where(accepts.any(axis=1), accepts.argmax(axis=1), accepts.shape[1])
    return sure


def everywhere(rows: Crossed, tier: int) -> Ints:
    """One tier for all, (N,)."""
    return np.full(rows.weights.size, tier, dtype=np.intp)


def told(explored: Sequence[Whole], route: Policy, tier: str) -> Json:
    """The curve over one tier's threshold, all others as they are, with the policy itself and each tier alone.

    tier: any but the policy's last.
    """
    rows = crossed(explored, route)
    now = [step.threshold or 0.0 for step in route.tiers[:-1]]
    place = rows.tiers.index(tier)
    known = rows.only(rows.labelled)
    head: Json = {
        "policy": route.name,
        "tier": tier,
        "tiers": list(rows.tiers),
        "thresholds": now,
        "explored": len(rows.weights) + sum(rows.left_out.values()),
        "left_out": [{"why": why, "n": n} for why, n in sorted(rows.left_out.items())],
        "rows": int(rows.weights.size),
        "labelled": int(known.weights.size),
        "least": LEAST_ROWS,
        "effective": estimates.effective(known.weights) if known.weights.size else 0.0,
        "now": None,
        "alone": [],
        "points": [],
    }
    if known.weights.size < LEAST_ROWS:
        return head
    grid = sorted({step / STEPS for step in range(STEPS + 1)} | {now[place]})
    return head | {
        "now": point(rows, known, replayed(rows, now), replayed(known, now)) | {"threshold": now[place]},
        "alone": [
            {"tier": name} | point(rows, known, everywhere(rows, at), everywhere(known, at), alone=True)
            for at, name in enumerate(rows.tiers)
        ],
        "points": [
            point(rows, known, replayed(rows, one), replayed(known, one)) | {"threshold": threshold}
            for threshold in grid
            for one in [[*now[:place], threshold, *now[place + 1 :]]]
        ],
    }


def point(rows: Crossed, known: Crossed, chosen: Ints, chosen_known: Ints, *, alone: bool = False) -> Json:
    """One way to route. chosen: (N,), who answers. alone: nobody before him is asked."""
    spent, total = cost(rows, chosen, alone=alone), float(rows.weights.sum())
    largest = rows.usd[:, -1]
    least, most, unknown = accuracy(known, chosen_known)
    return {
        "usd": estimates.mean(spent, rows.weights).json(),
        "saving": estimates.ratio(largest - spent, largest, rows.weights).json() if float(largest.sum()) > 0 else None,
        "least": least.json(),
        "most": most.json(),
        "unknown": unknown,
        "shares": [float(rows.weights @ (chosen == place)) / total for place in range(len(rows.tiers))],
    }


def cost(rows: Crossed, chosen: Ints, *, alone: bool = False) -> Floats:
    """US dollars of each decision, (N,): of all tiers up to the one that answers."""
    up_to: Floats = rows.usd if alone else np.cumsum(rows.usd, axis=1)
    spent: Floats = np.take_along_axis(up_to, chosen[:, None], axis=1)[:, 0]
    return spent


def accuracy(known: Crossed, chosen: Ints) -> tuple[Figure, Figure, float]:
    """The share of right answers if all that is not known were wrong, if it were right, and the share not known."""
    found = np.take_along_axis(known.right, chosen[:, None], axis=1)[:, 0]
    n, weights = int(found.size), known.weights
    drawn = estimates.effective(weights)
    ends = []
    for guess in (0.0, 1.0):
        value = float(weights @ np.nan_to_num(found, nan=guess)) / float(weights.sum())
        ends.append(Figure(value, *wilson(value, drawn), n))
    return ends[0], ends[1], float(weights @ np.isnan(found)) / float(weights.sum())
