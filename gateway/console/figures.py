"""What the console's tiles and charts of calibration show, from the store's rows. Pure: not for the event loop."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gateway.cascade import charge
from gateway.console import estimates
from gateway.nouns import Floats, Tier
from gateway.store.base import Brief, DecisionRow, HopRow, Role, Whole
from gateway.store.telling import truth

Json = dict[str, Any]

LEAST_LABELS = 20  # below, no diagram is drawn
BIN_LABELS, MOST_BINS = 20, 10  # of a reliability diagram; each bin holds as many labels as the next
CELLS = 20  # of a histogram
SLICES = 40  # of the strip of requests over time
DRAWS = 500  # of labels from p itself, for the band that true probabilities would stay in


@dataclass(frozen=True, slots=True)
class Served:
    """A served answer with a calibrated probability that somebody has judged. drawn: a label was sought by lot."""

    tier: str
    calibrator: str
    p_correct: float
    right: bool
    drawn: bool


def traffic(briefs: Sequence[Brief], since: float, now: float, *, most: int) -> Json:
    """Requests, who answered them, how long they took. briefs: newest first, at most `most`, which may be fewer than
    there were; the time they cover is told."""
    begun = briefs[-1].at if len(briefs) == most else since
    served = [one for one in briefs if one.status == 200 and one.tier]
    failed = sum(one.status >= 500 for one in briefs)
    return {
        "n": len(briefs),
        "cut": len(briefs) == most,
        "from": begun,
        "to": now,
        "per_minute": len(briefs) / max(now - begun, 1e-9) * 60,
        "slices": slices(briefs, begun, now),
        "failed": estimates.share(failed, len(briefs)).json() if briefs else None,
        "tiers": answered(served),
        "seconds": seconds(served),
        "usd": estimates.mean(np.array([one.usd for one in served]), np.ones(len(served))).json() if served else None,
    }


def slices(briefs: Sequence[Brief], begun: float, now: float) -> list[Json]:
    """Requests and failures over time, in equal steps, oldest first."""
    step = max(now - begun, 1e-9) / SLICES
    places = [min(SLICES - 1, max(0, int((one.at - begun) / step))) for one in briefs]
    counts, failures = (
        Counter(places),
        Counter(place for place, one in zip(places, briefs, strict=True) if one.status >= 500),
    )
    return [{"at": begun + place * step, "n": counts[place], "failed": failures[place]} for place in range(SLICES)]


def answered(served: Sequence[Brief]) -> list[Json]:
    """The share of answers that each tier gave, the most first."""
    counts = Counter(one.tier for one in served)
    return [{"tier": tier} | estimates.share(hits, len(served)).json() for tier, hits in counts.most_common()]


def seconds(served: Sequence[Brief]) -> Json | None:
    """Median and 95th percentile of a request, s."""
    if not served:
        return None
    taken = np.sort(np.array([one.seconds for one in served]))
    return {"p50": estimates.quantile(taken, 0.5).json(), "p95": estimates.quantile(taken, 0.95).json()}


def saving(explored: Sequence[Whole], largest: Mapping[str, str], least: int) -> Json:
    """What was spent beside what the largest tier alone would have cost, where both are known: in explored decisions.

    largest: by policy, its last tier.  least: rows, below which nothing is said.
    """
    spent, alone, weights = [], [], []
    for whole in explored:
        decision = whole.decision
        if decision is None or not decision.inclusion:
            continue
        tier = largest.get(decision.policy)
        cost = next((hop.usd for hop in whole.hops if hop.tier == tier and not hop.error), None)
        if cost is not None:
            spent.append(sum(hop.usd for hop in whole.hops if hop.role is Role.HOP))
            alone.append(cost)
            weights.append(1 / decision.inclusion)
    if len(spent) < least or sum(alone) <= 0:
        return {"figure": None, "n": len(spent), "least": least, "free": bool(spent) and sum(alone) <= 0}
    found = estimates.ratio(np.array(alone) - np.array(spent), np.array(alone), np.array(weights))
    return {"figure": found.json(), "n": len(spent), "least": least, "free": False}


def likely_saving(log: Sequence[tuple[DecisionRow, Sequence[HopRow]]], largest: Mapping[str, Tier], least: int) -> Json:
    """What was probably saved, of decisions that were not explored: as if the largest tier would have answered with as
    many tokens as the one that was served, at its prices. Where it was asked, what it cost is known.

    largest: by policy, its last tier.  least: rows, below which nothing is said.
    """
    spent, alone = [], []
    for decision, hops in log:
        tier, way = largest.get(decision.policy), [hop for hop in hops if hop.role is Role.HOP]
        served = next((hop for hop in reversed(way) if hop.tier == decision.tier and not hop.error), None)
        if decision.status != 200 or tier is None or served is None:
            continue
        known = next((hop.usd for hop in way if hop.tier == tier.name and not hop.error), None)
        guess = charge(served.prompt_tokens, served.completion_tokens, tier.prices).usd
        spent.append(sum(hop.usd for hop in way))
        alone.append(guess if known is None else known)
    if len(spent) < least or sum(alone) <= 0:
        return {"figure": None, "n": len(spent), "least": least}
    found = estimates.ratio(np.array(alone) - np.array(spent), np.array(alone), np.ones(len(spent)))
    return {"figure": found.json(), "n": len(spent), "least": least}


def judged(labelled: Sequence[Whole]) -> list[Served]:
    """Those that say something about a calibrator. A proxy's opinion says nothing."""
    found = []
    for whole in labelled:
        right = truth(whole.labels)
        if whole.decision is not None and right is not None and whole.decision.p_correct is not None:
            found.append(of(whole.decision, whole.decision.p_correct, right=right))
    return found


def of(decision: DecisionRow, p_correct: float, *, right: bool) -> Served:
    return Served(decision.tier, decision.calibrator, p_correct, right, decision.explored)


def calibration(rows: Sequence[Served], rng: np.random.Generator) -> list[Json]:
    """For each tier's calibrators and for all together: a reliability diagram and a histogram.

    Of labels sought by lot, and of all: who labels what looks wrong chooses by the truth.
    """
    places: defaultdict[tuple[str, str], list[Served]] = defaultdict(list)
    for row in rows:
        places["", ""].append(row)
        places[row.tier, row.calibrator].append(row)
    return [
        {
            "tier": tier,
            "calibrator": calibrator,
            "drawn": diagram([row for row in some if row.drawn], rng),
            "all": diagram(some, rng),
        }
        for (tier, calibrator), some in places.items()
    ]


def diagram(rows: Sequence[Served], rng: np.random.Generator) -> Json:
    """Both charts of some labels; only counts where there are few."""
    p = np.array([row.p_correct for row in rows])
    right = np.array([row.right for row in rows], dtype=np.float64)
    told: Json = {"n": len(rows), "least": LEAST_LABELS, "bins": [], "gap": None, "cells": cells(p, right)}
    if len(rows) < LEAST_LABELS:
        return told
    return told | {
        "bins": reliability(p, right, rng),
        "gap": estimates.mean(p - right, np.ones(p.size)).json(),
        "claimed": float(p.mean()),
        "right": estimates.share(float(right.sum()), p.size).json(),
    }


def reliability(p: Floats, right: Floats, rng: np.random.Generator) -> list[Json]:
    """Bins of equally many labels, by rising p: claimed, found, and where the found share would be in 95 of 100 cases
    if every p were true. (N,) each, N >= 1."""
    order = np.argsort(p, kind="stable")
    found = []
    for place in np.array_split(order, min(MOST_BINS, max(1, p.size // BIN_LABELS))):
        claimed = p[place]
        drawn = (rng.random((DRAWS, place.size)) < claimed).mean(axis=1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        told = estimates.share(float(right[place].sum()), int(place.size)).json()
        told |= {"claimed": float(claimed.mean()), "p_low": float(claimed[0]), "p_high": float(claimed[-1])}
        found.append(told | {"band_low": float(low), "band_high": float(high)})
    return found


def cells(p: Floats, right: Floats) -> list[Json]:
    """Right and wrong answers by probability, in equal steps from the tenth below the smallest to 1. (N,) each."""
    lowest = min(0.9, np.floor(10 * p.min()) / 10) if p.size else 0.0
    edges = np.linspace(lowest, 1, CELLS + 1)
    rights, wrongs = (np.histogram(p[right == one], edges)[0].tolist() for one in (1, 0))
    return [
        {"from": low, "to": high, "right": hits, "wrong": misses}
        for low, high, hits, misses in zip(edges[:-1].tolist(), edges[1:].tolist(), rights, wrongs, strict=True)
    ]
