"""From a sweep to a certificate: which policy may be promised anything, what, and what had a say in choosing it.

Two honest ways lead here. Either thresholds were chosen on other questions, and the certifying questions decided no
more than whether that policy or the best model alone is served: then every bound is taken for both at once. Or the
candidates were fixed on other questions and Learn then Test walks down them on the certifying ones, which controls the
error of the whole walk; the other bounds are then taken for all candidates at once.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.crossed import Crossed
from eval.guarantees import (
    Certificate,
    Outcome,
    Refused,
    accepted_error,
    cost_bound,
    error_bound,
    final_error,
    one_per_family,
    told,
)
from eval.sweep import Route
from gateway import certificate as written
from gateway.certificate import NO_CALIBRATOR, CertifiedStep, Data, Promise

EACH = "each promise holds with its own confidence; that all hold at once is less likely"
NO_FAILURE = "every tier that is asked answers: what is served because a later tier failed was not counted"
SAME_COSTS = "tokens, prices and machines stay as they were when this was issued"
BLIND = "has no calibrator, so nothing notices when its model becomes another one"


@dataclass(frozen=True, slots=True)
class Promised:
    """What can be said of one route.

    route: what would be served.  chosen: what chose it, in words.  proof: what Learn then Test said, when it was asked.
    """

    route: Route
    chosen: str
    outcomes: tuple[Outcome, ...]
    proof: Outcome | None = None

    @property
    def refused(self) -> Refused | None:
        """Why the error rate that was asked for is not proven."""
        return self.proof if isinstance(self.proof, Refused) else None


def of_choice(test: Crossed, route: Route, rivals: Sequence[Route], delta: float) -> Promised:
    """For a route that was taken, on the test, out of `rivals`, which were fixed before the test was seen."""
    among = len(set(rivals))
    chosen = "thresholds were chosen on other questions than these"
    if among > 1:
        chosen += f", which decided between {among} policies only; bounds hold for all {among} at once"
    return Promised(route, chosen, bounds(test, route, delta, among))


def by_proof(test: Crossed, path: Sequence[Route], alpha: float, delta: float, otherwise: Promised) -> Promised:
    """The cheapest route of a path whose error rate is shown to be at most alpha.

    path: safest first, fixed before the test was seen.  otherwise: what stays when not even the first one is.
    """
    proof = final_error(test, path, alpha, delta)
    if isinstance(proof, Refused):
        return Promised(otherwise.route, otherwise.chosen, (proof, *otherwise.outcomes), proof)
    route = next(route for route in path if told(test, route) == proof.policy)
    chosen = (
        f"{len(path)} candidates were fixed on other questions than these; Learn then Test kept this one, with the "
        f"family-wise error controlled; the other bounds hold for all {len(path)} at once"
    )
    return Promised(route, chosen, (proof, *bounds(test, route, delta, len(path))[1:]), proof)


def bounds(test: Crossed, route: Route, delta: float, among: int) -> tuple[Outcome, ...]:
    """Final error, error of what each tier serves, cost: each at confidence 1 - delta."""
    return (
        error_bound(test, route, delta, among=among),
        *accepted_error(test, route, delta, among=among),
        cost_bound(test, route, delta, among=among),
    )


def certificate(
    promised: Promised, test: Crossed, labels: Mapping[str, str], chosen_on: str, split: str, issued: dt.date
) -> written.Certificate | None:
    """As it goes into the cascade file; None where nothing can be promised.

    labels: of the calibrators, by tier; tiers without one are missing.  chosen_on: the split that chose.  split: the
    one that certifies.
    """
    good = [one for one in promised.outcomes if isinstance(one, Certificate)]
    if not good:
        return None
    marks = (*promised.route.thresholds, None)
    names = [test.tiers[tier] for tier in promised.route.chain]
    blind = [f"{name} {BLIND}" for name in names if name not in labels]
    return written.Certificate.sealed(
        issued=issued,
        steps=[
            CertifiedStep(tier=name, accept_at=mark, calibrator=labels.get(name, NO_CALIBRATOR))
            for name, mark in zip(names, marks, strict=True)
        ],
        data=Data(split=split, n=one_per_family(test).n, sha256=test.sha256),
        chosen=f"on {chosen_on}: {promised.chosen}",
        promises=[
            Promise(what=one.what, limit=one.limit, unit=one.unit, confidence=one.confidence, seen=one.seen, n=one.n,
                    method=one.method)
            for one in good
        ],
        assumptions=[*dict.fromkeys(words for one in good for words in one.assumptions), NO_FAILURE, SAME_COSTS, EACH,
                     *blind],
    )  # fmt: skip
