"""What any router must be held against: reference lines, measured on the same questions under the same cost model.

Where a baseline has thresholds they are chosen like ours, on the questions that chose ours, and measured on the test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from sklearn.metrics import roc_auc_score

from calibrators import platt
from calibrators.base import CalibrationError, FitData
from eval.choice import Goal, NothingFits, choose
from eval.crossed import Crossed, Floats, Ints, Path, check_same_tiers
from eval.stats import concave_hull
from eval.sweep import Played, Route, replay, sweep

LENGTH, RAW = "length", "raw"  # names of the scores that records come with, see Crossed.scores

RATES = 24  # exchange rates of the router that reads the prompt alone
TINY = 1e-300  # for models that cost nothing
STEPS, LEVELS = 12, 3  # baselines get fewer thresholds than we do: a finer grid changes their third digit


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One reference line. told: what it is, in words.  cost, accuracy: (P,) its points on the test questions.

    oracle: it knows the right answers, so no router can be it.
    picked: what the user's goal would have taken of it, by the questions that choose; None where there is no choice.
    """

    name: str
    told: str
    cost: Floats
    accuracy: Floats
    oracle: bool = False
    picked: Played | None = None


def lines(chosen_on: Crossed, test: Crossed, goal: Goal) -> list[Line]:
    """All reference lines that the tables know enough for. Raises BadTable for tables of different tiers."""
    check_same_tiers(chosen_on, test)
    found = [*singles(test), random_mix(test), random_escalation(test)]
    told = {
        LENGTH: "the shorter the answer, the surer: a threshold on its length",
        RAW: f"a threshold on the raw {chosen_on.raw}, the same number for every tier, not calibrated",
    }
    found += [
        thresholded(name, told.get(name, f"a threshold on {name}"), chosen_on, test, goal)
        for name in chosen_on.scores
        if name in test.scores
    ]
    if chosen_on.signals and test.signals:
        found.append(single_feature(chosen_on, test, goal))
    if chosen_on.prompts and test.prompts:
        found.append(before_answering(chosen_on, test, goal))
    if chosen_on.answers and test.answers and len(test.tiers) >= 3:
        found.append(agreement(chosen_on, test, goal))
    return [*found, router_oracle(test), cascade_oracle(test)]


def absent(chosen_on: Crossed, test: Crossed) -> dict[str, str]:
    """The reference lines that cannot be drawn, each with what is missing for it."""
    scores = chosen_on.scores.keys() & test.scores.keys()
    three = len(test.tiers) >= 3
    asked = {
        RAW: (
            RAW in scores,
            "no log-probs, and no column of every model that lies in [0, 1] and is a confidence as it is",
        ),
        LENGTH: (LENGTH in scores, "nothing tells how long answers are; completion_tokens would"),
        "best feature": (bool(chosen_on.signals and test.signals), "no calibrator looks at a feature of its own"),
        "before answering": (
            bool(chosen_on.prompts and test.prompts),
            "nothing tells how long prompts are; prompt_tokens would",
        ),
        "agreement": (
            three and bool(chosen_on.answers and test.answers),
            "final answers are not known; a column answer would tell" if three else "it takes three models",
        ),
    }
    return {name: why for name, (there, why) in asked.items() if not there}


def singles(test: Crossed) -> Iterator[Line]:
    """Every model alone."""
    for tier, name in enumerate(test.tiers):
        played = replay(test, Route((tier,)))
        yield _line(name, f"{name} alone", [played], picked=played)


def random_mix(test: Crossed) -> Line:
    """The upper concave hull of the single models: what sending requests to one of two at random reaches."""
    cost, accuracy = test.cost.mean(axis=0), test.right.mean(axis=0)
    hull = concave_hull(cost, accuracy)
    return Line("random mix", "each request sent to one of two models at random", cost[hull], accuracy[hull])


def random_escalation(test: Crossed) -> Line:
    """Cheapest tier first, accepted with probability u whatever it says, else the most accurate: u from 1 to 0.

    The last point is as accurate as the large model and costs both: what a cascade loses where its signal is worthless.
    """
    cost, accuracy = test.cost.mean(axis=0), test.right.mean(axis=0)
    first, last = int(cost.argmin()), int(accuracy.argmax())
    u = np.linspace(1, 0, 11)
    if first == last:
        told = f"{test.tiers[first]} is the cheapest and the most accurate: there is nothing to ask on for"
        return Line("random escalation", told, cost[[first]], accuracy[[first]])
    told = f"{test.tiers[first]}, then at random {test.tiers[last]} too"
    return Line(
        "random escalation",
        told,
        cost[first] + (1 - u) * cost[last],
        u * accuracy[first] + (1 - u) * accuracy[last],
    )


def thresholded(name: str, told: str, chosen_on: Crossed, test: Crossed, goal: Goal) -> Line:
    """A cascade like ours that thresholds another score."""
    scored_fit, scored_test = chosen_on.by(name), test.by(name)
    swept = sweep(scored_fit, levels=LEVELS, steps=STEPS)
    frontier = swept.frontier
    hull = frontier[concave_hull(swept.cost[frontier], swept.accuracy[frontier])]
    played = [replay(scored_test, swept.routes[place]) for place in hull]
    try:
        picked = replay(scored_test, choose(swept, goal).route)
    except NothingFits:
        picked = None
    return _line(name, told, played, picked=picked)


def single_feature(chosen_on: Crossed, test: Crossed, goal: Goal) -> Line:
    """A cascade like ours whose calibrators see one feature: each tier's best by AUROC where policies are chosen, and
    Platt there."""
    told, before, after = [], np.full(chosen_on.p.shape, np.nan), np.full(test.p.shape, np.nan)
    for tier, model in enumerate(chosen_on.tiers):
        y = chosen_on.right[:, tier]
        gained = {
            name: discrimination(values[:, tier], y)
            for name, values in chosen_on.signals.items()
            if name in test.signals
        }
        best = max(gained, key=lambda name: abs(gained[name] - 0.5), default="")
        if best and gained[best] != 0.5:
            columns = chosen_on.signals[best][:, tier], test.signals[best][:, tier]
            before[:, tier], after[:, tier] = calibrated(*columns, y, direction=1 if gained[best] > 0.5 else -1)
            told.append(f"{best} of {model}")
    chosen_on, test = replace(chosen_on, scores={"best feature": before}), replace(test, scores={"best feature": after})
    why = f"calibrated on its best single feature: {', '.join(told)}" if told else "no single feature tells anything"
    return thresholded("best feature", why, chosen_on, test, goal)


def before_answering(chosen_on: Crossed, test: Crossed, goal: Goal) -> Line:
    """A router that reads the prompt alone and asks one model: the most of p(right | prompt) - rate * mean cost.

    A model's p is Platt on its best prompt feature, fitted where policies are chosen.
    """
    p, shown = np.empty(chosen_on.p.shape), np.empty(test.p.shape)
    for tier in range(len(chosen_on.tiers)):
        y = chosen_on.right[:, tier]
        gained = {name: discrimination(values, y) for name, values in chosen_on.prompts.items() if name in test.prompts}
        best = max(gained, key=lambda name: abs(gained[name] - 0.5))
        direction = 1 if gained[best] >= 0.5 else -1
        p[:, tier], shown[:, tier] = calibrated(chosen_on.prompts[best], test.prompts[best], y, direction=direction)
    price = chosen_on.cost.mean(axis=0)
    rates = np.array([0.0, *np.geomspace(1e-3, 1e3, RATES)]) / max(float(price.max()), TINY)
    before = [asking(chosen_on, (p - rate * price).argmax(axis=1)) for rate in rates]
    after = [asking(test, (shown - rate * price).argmax(axis=1)) for rate in rates]
    accuracy, cost = (np.array([getattr(one, name) for one in before]) for name in ("accuracy", "mean_cost"))
    feasible = np.flatnonzero(goal.feasible(accuracy, cost))
    picked = after[feasible[goal.value(accuracy, cost)[feasible].argmax()]] if feasible.size else None
    told = f"asks one model, by its chance to be right given the prompt alone ({', '.join(chosen_on.prompts)})"
    return _line("before answering", told, [after[place] for place in concave_hull(cost, accuracy)], picked=picked)


def asking(table: Crossed, tier: Ints) -> Played:
    """One model is asked and served, each question its own. tier: (n,)."""
    where = np.arange(table.n), tier
    return Played(tier, table.right[where], table.cost[where], table.seconds[where], np.ones(table.n, dtype=np.int64))


def discrimination(values: Floats, right: Floats) -> float:
    """AUROC of a signal where it is known; .5 where it is not, or there is one class only."""
    known = np.isfinite(values)
    y = right[known]
    return float(roc_auc_score(y, values[known])) if 0 < y.sum() < y.size else 0.5


def calibrated(values: Floats, elsewhere: Floats, right: Floats, *, direction: int) -> tuple[Floats, Floats]:
    """p by Platt on one signal, here and elsewhere; NaN where there is no signal, the base rate where nothing is to be
    learned."""
    known = np.isfinite(values)
    p = [np.full(one.shape, np.nan) for one in (values, elsewhere)]
    if known.any():
        try:
            fitted = platt.fit(FitData(values[known, np.newaxis], right[known]), direction=direction)
        except CalibrationError:  # one class, or nearly; or the same value for all
            fitted = None
        for filled, one in zip(p, (values, elsewhere), strict=True):
            here = np.isfinite(one)
            filled[here] = right[known].mean() if fitted is None else fitted.predict(one[here, np.newaxis])
    return p[0], p[1]


def agreement(chosen_on: Crossed, test: Crossed, goal: Goal) -> Line:
    """Two tiers are always asked; where their final answers agree that is served, else a third is asked.

    Which three is chosen like our policy. No calibrator and no log-probs needed.
    """
    triples = [Route(chain, (1.0, 1.0)) for chain in combinations(range(len(test.tiers)), 3)]
    agreeing_fit, agreeing_test = agreeing(chosen_on), agreeing(test)
    before = [replay(agreeing_fit, route) for route in triples]
    after = [replay(agreeing_test, route) for route in triples]
    accuracy, cost = (np.array([getattr(one, name) for one in before]) for name in ("accuracy", "mean_cost"))
    feasible = np.flatnonzero(goal.feasible(accuracy, cost))
    picked = after[feasible[goal.value(accuracy, cost)[feasible].argmax()]] if feasible.size else None
    return _line("agreement", "two tiers agree on the final answer, or a third is asked", after, picked=picked)


def agreeing(table: Crossed) -> Crossed:
    """The table with p = 1 where a tier's answer is that of a tier before it, 0 where not; the first knows nothing."""
    answers = np.array(table.answers, dtype=object)

    def given(path: Path) -> Floats:
        if len(path) == 1:
            return np.full(table.n, np.nan)
        ours, theirs = answers[:, path[-1]], answers[:, list(path[:-1])]
        same: Floats = ((theirs == ours[:, np.newaxis]).any(axis=1) & (ours != "")).astype(np.float64)
        return same

    return replace(table, given=given)


def router_oracle(test: Crossed) -> Line:
    """Knows beforehand who will be right and pays only the cheapest of those; the cheapest of all where none is."""
    priced = np.where(test.right == 1, test.cost, np.inf)
    cost = np.where(np.isfinite(priced.min(axis=1)), priced.min(axis=1), test.cost.min(axis=1))
    any_right = float((test.right.max(axis=1)).mean())
    told = "knows beforehand which models will be right and asks the cheapest of them"
    return Line("router oracle", told, np.array([cost.mean()]), np.array([any_right]), oracle=True)


def cascade_oracle(test: Crossed) -> Line:
    """Asks the tiers in order, knows a right answer when it sees one and stops there; pays all it tried."""
    first_right = np.where(test.right.max(axis=1) == 1, test.right.argmax(axis=1), len(test.tiers) - 1)
    cost = test.cost.cumsum(axis=1)[np.arange(test.n), first_right]
    accuracy = float(test.right.max(axis=1).mean())
    told = "asks the models in order and stops at the first right answer"
    return Line("cascade oracle", told, np.array([cost.mean()]), np.array([accuracy]), oracle=True)


def _line(name: str, told: str, played: list[Played], *, picked: Played | None) -> Line:
    cost = np.array([one.mean_cost for one in played])
    return Line(name, told, cost, np.array([one.accuracy for one in played]), picked=picked)
