"""What `confgate sweep` does: from records and calibrators to a policy, a verdict, and all it is held against."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrators import artifact as artifacts
from calibrators.scores import Insufficient, Score
from calibrators.scores import Outcome as Measured
from eval import baselines, certify, guarantees, lookahead
from eval.baselines import Line
from eval.certify import Promised
from eval.choice import Goal, Mix, NothingFits, budget, exchange, mix, target
from eval.crossed import Crossed, group_codes
from eval.material import Material, Wish
from eval.stats import DEFINITIONS, BadComparison, aiq, concave_hull, mix_accuracy, pair_scores
from eval.sweep import Played, Route, Swept, replay, sweep
from eval.verdict import Verdict, judge
from gateway.certificate import Certificate
from gateway.errors import ConfigError

SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)  # of the reference's cost


@dataclass(frozen=True, slots=True)
class AtBudget:
    """At a share of the reference's cost: what mixing two efficient routes gives on the test, and a random mix of
    models for what that cost there. accuracy, random: None where not even the cheapest can be had."""

    share: float
    accuracy: float | None
    cost: float | None
    random: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Recommendation:
    """chosen_on, test: the tables.  curve: what the efficient routes of the one reach on the other.
    budgets: accuracy at shares of the reference's cost.  metrics: of the signal between the chain's first tier (the
    cheapest where no chain was chosen) and the reference, and AIQ of the curve.
    mixed: two routes that spend a budget exactly.  promised: what --write serves, and what the test promises of it.
    absent: the reference lines that cannot be drawn, and why.  named: the splits of both tables.  calibrators: files of
    the artefacts by tier.  notes: what a reader must know."""

    chosen_on: Crossed
    test: Crossed
    swept: Swept
    verdict: Verdict
    lines: list[Line]
    curve: list[tuple[Route, Played]]
    budgets: list[AtBudget]
    metrics: dict[str, Measured]
    mixed: Mix | None
    promised: Promised
    named: tuple[str, str]
    calibrators: Mapping[str, Path]
    notes: list[str]
    absent: Mapping[str, str]

    @property
    def certificates(self) -> tuple[guarantees.Outcome, ...]:
        return self.promised.outcomes


def decide(material: Material, wish: Wish) -> Recommendation:
    """Choose on the one table and judge on the other. Raises GatewayError leaves."""
    chosen_on, test = material.chosen_on, material.test
    goal = goal_of(wish, chosen_on.table)
    swept = sweep(chosen_on.table, levels=wish.levels, steps=wish.steps)
    rng = np.random.default_rng(wish.seed)
    verdict = judge(chosen_on.table, test.table, rng, goal, swept=swept)
    aim = goal or target(replay(chosen_on.table, verdict.reference).accuracy)
    frontier = swept.frontier
    hull = frontier[concave_hull(swept.cost[frontier], swept.accuracy[frontier])]
    meets = goal is None or goal.feasible(swept.accuracy[hull], swept.cost[hull])
    path = [swept.routes[place] for place in hull[np.broadcast_to(meets, hull.shape)][::-1]]
    return Recommendation(
        chosen_on.table,
        test.table,
        swept,
        verdict,
        [*baselines.lines(chosen_on.table, test.table, aim), looking_ahead(chosen_on.table, test.table, aim)],
        [(swept.routes[place], replay(test.table, swept.routes[place])) for place in hull],
        [at_budget(swept, test.table, verdict.reference, share) for share in SHARES],
        metrics(test.table, verdict, [replay(test.table, swept.routes[place]) for place in hull], rng),
        mix(swept, goal.most_cost) if goal is not None and np.isfinite(goal.most_cost) else None,
        promise(test.table, path, verdict, wish),
        material.named,
        material.calibrators,
        list(material.notes),
        baselines.absent(chosen_on.table, test.table),
    )


# Tiers and questions


# Costs and goals


def goal_of(wish: Wish, table: Crossed) -> Goal | None:
    """Raises ConfigError when two goals are wished for at once."""
    given = [name for name in ("budget", "target", "rate") if getattr(wish, name) is not None]
    if len(given) > 1:
        raise ConfigError("take one of --budget, --target and --lambda")
    if wish.budget is not None:
        return budget(_amount(wish.budget, table))
    if wish.target is not None:
        if not 0 < wish.target <= 1:
            raise ConfigError(f"--target is a share of right answers between 0 and 1, got {wish.target:g}")
        return target(wish.target)
    return None if wish.rate is None else exchange(wish.rate)


def _amount(written: str, table: Crossed) -> float:
    dearest = float(table.cost.mean(axis=0)[table.right.mean(axis=0).argmax()])
    try:
        return float(written[:-1]) / 100 * dearest if written.endswith("%") else float(written)
    except ValueError:
        wanted = f"a number of {table.cost_unit} per question, or a share of the most accurate model's cost such as 40%"
        raise ConfigError(f"--budget is {wanted}, got {written!r}") from None


# Numbers that others report


def at_budget(swept: Swept, test: Crossed, reference: Route, share: float) -> AtBudget:
    """The expectation over the mix's draws, so no luck of one draw is in it."""
    try:
        mixed = mix(swept, share * replay(swept.table, reference).mean_cost)
    except NothingFits:
        return AtBudget(share, None, None, None)
    low, high = replay(test, mixed.low), replay(test, mixed.high)
    accuracy = (1 - mixed.share) * low.accuracy + mixed.share * high.accuracy
    cost = (1 - mixed.share) * low.mean_cost + mixed.share * high.mean_cost
    singles = test.cost.mean(axis=0), test.right.mean(axis=0)
    random = float(mix_accuracy(max(cost, float(singles[0].min())), *singles))
    return AtBudget(share, accuracy, cost, random)


def metrics(test: Crossed, verdict: Verdict, curve: Sequence[Played], rng: np.random.Generator) -> dict[str, Measured]:
    """AUDC, APGR and CPT between two tiers, and the AIQ of all; see eval.stats.DEFINITIONS."""
    last = verdict.reference.chain[0]
    first = verdict.choice.route.chain[0]
    first = int(test.cost.mean(axis=0).argmin()) if first == last else first
    found = pair_scores(test.p_of((first,)), test.right[:, first], test.right[:, last], group_codes(test), rng)
    named: dict[str, Measured] = {
        f"{name} {test.tiers[first]} to {test.tiers[last]}": one for name, one in found.items()
    }
    cost, accuracy = (np.array([getattr(one, name) for one in curve]) for name in ("mean_cost", "accuracy"))
    try:
        value = aiq(cost, accuracy, test.cost.mean(axis=0), test.right.mean(axis=0))
        named["AIQ"] = Score(name="AIQ", value=value, n=test.n)
    except BadComparison as error:
        named["AIQ"] = Insufficient(name="AIQ", n=test.n, why=str(error))
    return named


# Alternatives and promises


def looking_ahead(chosen_on: Crossed, test: Crossed, goal: Goal) -> Line:
    """The look-ahead policy that the goal would take, beside all that are efficient."""
    policies = lookahead.candidates(chosen_on)
    before = [lookahead.replay(chosen_on, one) for one in policies]
    accuracy, cost = (np.array([getattr(one, name) for one in before]) for name in ("accuracy", "mean_cost"))
    after = [lookahead.replay(test, policies[place]) for place in concave_hull(cost, accuracy)]
    feasible = np.flatnonzero(goal.feasible(accuracy, cost))
    picked = None
    if feasible.size:
        best = feasible[goal.value(accuracy, cost)[feasible].argmax()]
        picked = lookahead.replay(test, policies[best])
    told = "every tier asks the one whose expected gain is worth its cost, skipping others; not served by the gateway"
    points = np.array([one.mean_cost for one in after]), np.array([one.accuracy for one in after])
    return Line("look-ahead", told, *points, picked=picked)


def promise(test: Crossed, path: Sequence[Route], verdict: Verdict, wish: Wish) -> Promised:
    """What can be promised on the test: of the recommended route, or of the cheapest one with a proven error rate."""
    delta = round(1 - wish.confidence, 12)  # 1 - .95 is a little more than .05
    rivals = [verdict.choice.route, verdict.reference] if len(verdict.choice.route.chain) > 1 else [verdict.recommended]
    found = certify.of_choice(test, verdict.recommended, rivals, delta)
    return found if wish.certify is None else certify.by_proof(test, path, wish.certify, delta, found)


def certificate(found: Recommendation, issued: dt.date) -> Certificate | None:
    """As it goes into the cascade file, None where nothing can be promised."""
    labels = {tier: artifacts.load(path).label for tier, path in found.calibrators.items()}
    return certify.certificate(found.promised, found.test, labels, *found.named, issued)


# JSON


def parts_of(found: Recommendation, policy: str) -> dict[str, tuple[list[tuple[str, float | None]], float]]:
    """The mix that spends the budget exactly, as policies of the cascade file: steps and share by name, in the order
    in which the gateway draws. Raises ConfigError where there is nothing to mix.

    policy: the mix's own name.
    """
    if found.mixed is None:
        raise ConfigError("a mix spends a budget: say with --budget how much a question may cost in the mean")
    mixed = found.mixed
    if mixed.share >= 1 or mixed.share <= 0 or mixed.low == mixed.high:
        told = (mixed.high if mixed.share >= 1 else mixed.low).told(found.test.tiers)
        raise ConfigError(f"one policy alone spends this budget: {told}; write it with --as recommended")
    return {
        f"{policy}-{which}": (steps_of(found.test, route), share)
        for which, route, share in (("high", mixed.high, mixed.share), ("low", mixed.low, 1 - mixed.share))
    }


def steps_of(table: Crossed, route: Route) -> list[tuple[str, float | None]]:
    """As a policy of the cascade file."""
    return [(table.tiers[tier], mark) for tier, mark in zip(route.chain, (*route.thresholds, None), strict=True)]


def as_json(found: Recommendation) -> dict[str, Any]:
    """All of it as plain values."""
    verdict, table = found.verdict, found.test
    numbers = ("accuracy", "reference_accuracy", "cost_share", "saving", "gain", "skill")
    return {
        "verdict": verdict.sentence,
        "sells": verdict.sells,
        "recommended": guarantees.told(table, verdict.recommended),
        "reference": guarantees.told(table, verdict.reference),
        "chosen": guarantees.told(table, verdict.choice.route),
        "cost_unit": table.cost_unit,
        "n": {"chosen_on": found.chosen_on.n, "test": table.n},
        "held_out": {**asdict(verdict.held_out), "optimism": verdict.held_out.optimism},
        "numbers": {name: getattr(verdict, name).as_json() for name in numbers},
        "anew": {name: score.as_json() for name, score in verdict.anew.items()},
        "signals": {name: one.as_json() for name, one in verdict.signals.items()},
        "against": [asdict(one) for one in verdict.against],
        "frontier": [
            {**guarantees.told(table, route), "cost": played.mean_cost, "accuracy": played.accuracy}
            for route, played in found.curve
        ],
        "baselines": [
            {
                "name": line.name,
                "told": line.told,
                "oracle": line.oracle,
                "cost": line.cost.tolist(),
                "accuracy": line.accuracy.tolist(),
                "picked": None
                if line.picked is None
                else {"cost": line.picked.mean_cost, "accuracy": line.picked.accuracy},
            }
            for line in found.lines
        ],
        "budgets": [asdict(one) for one in found.budgets],
        "metrics": {name: one.as_json() for name, one in found.metrics.items()},
        "mix": None
        if found.mixed is None
        else {
            "low": guarantees.told(table, found.mixed.low),
            "high": guarantees.told(table, found.mixed.high),
            "share_high": found.mixed.share,
        },
        "served": guarantees.told(table, found.promised.route),
        "certificates": [
            one.as_json() if isinstance(one, guarantees.Certificate) else asdict(one) for one in found.certificates
        ],
        "policies_tried": found.swept.combinations,
        "definitions": DEFINITIONS,
        "absent": dict(found.absent),
        "notes": found.notes,
    }
