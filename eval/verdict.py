"""The verdict: what to do, in one sentence, and the numbers it stands on. It sells no saving that was not shown.

The policy is chosen on one set of questions and judged on another that chose nothing. A cascade is recommended only
when, on the latter, (1) it is cheaper than the reference and not shown to be less accurate, or is more accurate, and
(2) it is more accurate than a random mix of the single models at its own cost. The second is what a worthless
confidence fails: escalating at random also saves money.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from calibrators.scores import Insufficient, Score, auroc_delong, too_few
from calibrators.scores import Outcome as Measured
from eval.choice import Choice, Goal, NothingFits, Scored, choose, scored, target
from eval.crossed import Crossed, Floats, Ints, check_same_tiers, group_codes
from eval.stats import RESAMPLES, drawn, holm, interval, mcnemar, mix_accuracies, resampled_means
from eval.sweep import STEPS, Played, Route, Swept, grid, replay, sweep

LEVELS = 4  # two or three win as a rule, and every further level is another chance to fit noise (science 5.3)
COARSE_LEVELS = 3
COARSE = 5  # thresholds per level of the policies among which a resample chooses anew
ANEW = 400  # resamples that choose anew
WEAK_AUROC = 0.7  # below it a confidence is called weak; one feature of log-probs has .70 to .80 (science 1.7)


@dataclass(frozen=True, slots=True)
class Against:
    """The chosen policy against one model alone. only_policy, only_model: questions that just one of them got right.

    p_value: exact McNemar, adjusted by Holm for all models.
    """

    tier: str
    accuracy: float
    cost: float
    only_policy: int
    only_model: int
    p_value: float


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """sentence: what to do.  recommended: the route to serve, a single model where no cascade is sold.

    choice, held_out: what was chosen, and what became of it on the test.  reference: the model alone that it is
    compared with.  accuracy, cost_share, gain, saving, skill: on the test, see eval.stats.DEFINITIONS; policies fixed.
    anew: gain and saving again, when every resample chooses its policy itself: what choosing is worth.
    """

    sentence: str
    sells: bool
    recommended: Route
    reference: Route
    choice: Choice
    held_out: Scored
    accuracy: Score
    reference_accuracy: Score
    cost_share: Score
    saving: Score
    gain: Score
    skill: Score
    anew: dict[str, Score]
    signals: dict[str, Measured]
    against: list[Against]


def judge(
    chosen_on: Crossed,
    test: Crossed,
    rng: np.random.Generator,
    goal: Goal | None = None,
    *,
    swept: Swept | None = None,
    resamples: int = RESAMPLES,
    anew: int = ANEW,
) -> Verdict:
    """Choose on one table, judge on the other.

    goal: None asks for the accuracy of the best single model at the least cost.  swept: of `chosen_on`, if it is there.
    resamples, anew: of the two bootstraps.
    Raises NothingFits, and BadTable when both tables share questions or families.
    """
    check_same_tiers(chosen_on, test)
    swept = sweep(chosen_on, levels=LEVELS, steps=STEPS) if swept is None else swept
    reference = reference_for(chosen_on, goal)
    aim = goal or parity(chosen_on, reference)
    choice = choose(swept, aim)
    held_out = scored(choice, chosen_on, test)
    numbers = measure(test, replay(test, choice.route), replay(test, reference), rng, resamples)
    signals = {name: signal(test, tier) for tier, name in enumerate(test.tiers)}
    sells = len(choice.route.chain) > 1 and worth_it(numbers)
    return Verdict(
        tell(test, choice, reference, numbers, signals, sells=sells),
        sells,
        choice.route if sells or len(choice.route.chain) == 1 else reference,
        reference,
        choice,
        held_out,
        **numbers,
        anew=chosen_anew(chosen_on, test, goal, reference, rng, anew),
        signals=signals,
        against=compare(test, replay(test, choice.route)),
    )


def reference_for(table: Crossed, goal: Goal | None) -> Route:
    """The model alone that one would serve without a cascade: the one the goal chooses, or the most accurate one.

    Of models within one standard error the cheapest: a saving over a needlessly dear model is none.
    """
    alone = sweep(table, levels=1)
    if goal is not None:
        try:
            return choose(alone, goal).route
        except NothingFits:
            pass
    return choose(alone, Goal()).route


def parity(table: Crossed, reference: Route) -> Goal:
    """As accurate as the reference, for less."""
    return target(replay(table, reference).accuracy)


def measure(test: Crossed, ours: Played, theirs: Played, rng: np.random.Generator, resamples: int) -> dict[str, Score]:
    """Accuracy, cost share, saving, gain and skill with paired intervals; all from the same resampled questions."""
    columns = np.column_stack([ours.right, ours.cost, theirs.right, theirs.cost, test.cost, test.right])
    means = resampled_means(columns, group_codes(test), rng, resamples)
    how = f"paired bootstrap of {resamples:,} by question, policy fixed"

    def score(name: str, of: Callable[[Floats], Floats]) -> Score:
        value = float(of(columns.mean(axis=0)[np.newaxis])[0])
        return interval(name, value, of(means), test.n, how)

    tiers = len(test.tiers)
    return {
        "accuracy": score("accuracy", lambda m: m[:, 0]),
        "reference_accuracy": score("reference accuracy", lambda m: m[:, 2]),
        "cost_share": score("cost share", lambda m: m[:, 1] / np.maximum(m[:, 3], 1e-300)),
        "saving": score("saving", lambda m: 1 - m[:, 1] / np.maximum(m[:, 3], 1e-300)),
        "gain": score("gain", lambda m: m[:, 0] - m[:, 2]),
        "skill": score("skill", lambda m: m[:, 0] - mix_accuracies(m[:, 1], m[:, 4 : 4 + tiers], m[:, 4 + tiers :])),
    }


def worth_it(numbers: dict[str, Score]) -> bool:
    """Whether held-out questions show that a cascade pays. Equality shows nothing."""
    (saving_low, _), (gain_low, gain_high), (skill_low, _) = (
        ends(numbers[name]) for name in ("saving", "gain", "skill")
    )
    cheaper = saving_low > 0 and gain_high >= 0
    return (cheaper or gain_low > 0) and skill_low > 0


def signal(test: Crossed, tier: int) -> Measured:
    """AUROC of one tier's p over the answers that have one: after all tiers before it, if it looks at those."""
    p = test.p_of(tuple(range(tier + 1)))
    known = ~np.isnan(p)
    few = too_few("auroc", test.right[known, tier])
    return few if few is not None else auroc_delong(p[known], test.right[known, tier])


def compare(test: Crossed, ours: Played) -> list[Against]:
    """The policy against every model alone, adjusted for the number of models."""
    found = [mcnemar(ours.right, test.right[:, tier]) for tier in range(len(test.tiers))]
    adjusted = holm([one.p_value for one in found])
    return [
        Against(
            name,
            float(test.right[:, tier].mean()),
            float(test.cost[:, tier].mean()),
            found[tier].only_a,
            found[tier].only_b,
            adjusted[tier],
        )
        for tier, name in enumerate(test.tiers)
    ]


# Choosing anew in every resample


def chosen_anew(
    chosen_on: Crossed,
    test: Crossed,
    goal: Goal | None,
    reference: Route,
    rng: np.random.Generator,
    resamples: int = ANEW,
) -> dict[str, Score]:
    """Saving and gain when both sets of questions are drawn anew and the policy is chosen on the first.

    Chosen among all chains of at most COARSE_LEVELS tiers on a coarse grid, without the benefit of one standard error,
    as that would take a replay of each. So this interval is for the recipe, not for the one policy it gave here.
    """
    routes = [reference, *coarse_routes(chosen_on)]
    right_fit, cost_fit = _outcomes(chosen_on, routes)
    right_test, cost_test = _outcomes(test, routes)
    fit = _weights(group_codes(chosen_on), resamples, rng)
    seen = _weights(group_codes(test), resamples, rng)
    accuracy, cost = fit @ right_fit, fit @ cost_fit
    kept_accuracy, kept_cost = seen @ right_test, seen @ cost_test
    gain, saving = np.empty(resamples), np.empty(resamples)
    for draw in range(resamples):
        aim = goal or target(float(accuracy[draw, 0]))
        value = np.where(aim.feasible(accuracy[draw], cost[draw]), aim.value(accuracy[draw], cost[draw]), -np.inf)
        place = int(value.argmax()) if np.isfinite(value).any() else 0
        gain[draw] = kept_accuracy[draw, place] - kept_accuracy[draw, 0]
        saving[draw] = 1 - kept_cost[draw, place] / max(kept_cost[draw, 0], 1e-300)
    how = f"bootstrap of {resamples:,} by question, policy chosen anew in each"
    return {
        "gain": interval("gain", float(gain.mean()), gain, test.n, how),
        "saving": interval("saving", float(saving.mean()), saving, test.n, how),
    }


def coarse_routes(table: Crossed) -> list[Route]:
    """Every chain of at most COARSE_LEVELS tiers at every combination of COARSE thresholds per level."""
    swept_chains = sorted({route.chain for route in sweep(table, levels=COARSE_LEVELS, steps=1).routes}, key=len)
    routes = []
    for chain in swept_chains:
        grids = [grid(table, chain[: level + 1], COARSE).tolist() for level in range(len(chain) - 1)]
        routes += [Route(chain, marks) for marks in product(*grids)]
    return routes


def _outcomes(table: Crossed, routes: list[Route]) -> tuple[Floats, Floats]:
    """(right, cost), each (families, R): sums over the questions of a family, ready to be weighted."""
    groups = group_codes(table)
    families = int(groups.max()) + 1
    right, cost = np.empty((families, len(routes))), np.empty((families, len(routes)))
    for place, route in enumerate(routes):
        played = replay(table, route)
        right[:, place] = np.bincount(groups, played.right, families)
        cost[:, place] = np.bincount(groups, played.cost, families)
    return right, cost


def _weights(groups: Ints, resamples: int, rng: np.random.Generator) -> Floats:
    """(resamples, families) such that weights @ sums are means over the questions drawn."""
    sizes = np.bincount(groups).astype(np.float64)
    times = drawn(sizes.size, resamples, rng)
    weights: Floats = times / (times @ sizes)[:, np.newaxis]
    return weights


# Words


def tell(
    test: Crossed,
    choice: Choice,
    reference: Route,
    numbers: dict[str, Score],
    signals: dict[str, Measured],
    *,
    sells: bool,
) -> str:
    """One sentence that says what to do and why, with the numbers it rests on."""
    names = [test.tiers[tier] for tier in choice.route.chain]
    chain, alone = " then ".join(names), test.tiers[reference.chain[0]]
    accuracy, gain, share = numbers["accuracy"], numbers["gain"], numbers["cost_share"]
    held_out = f"on {test.n:,} held-out questions"
    if sells:
        return (
            f"use {chain}: {percents(accuracy)} right at {percents(share)} of the cost of {alone} "
            f"({percents(numbers['reference_accuracy'])} right; difference {points(gain)}) {held_out}"
        )
    if len(choice.route.chain) == 1:
        why = reason(test, reference, signals)
        if choice.route.chain != reference.chain:
            return (
                f"serve {names[0]}: {percents(accuracy)} right at {percents(share)} of the cost of {alone} {held_out}"
            )
        return f"no cascade beats {alone} alone on this data: {why}; serve {alone}"
    skill = numbers["skill"]
    if ends(skill)[0] > 0 and ends(gain)[1] < 0:
        return (
            f"{chain} trades accuracy for cost: {points(gain)} at {percents(share)} of the cost of {alone} {held_out}; "
            f"serve {alone} unless that is worth it"
        )
    if ends(skill)[0] <= 0:
        first = signals[names[0]]
        return (
            f"no cascade is shown to beat {alone} alone: {chain} is {points(skill)} better than a random mix of models "
            f"at its own cost {held_out}, which may be chance ({confidence_of(names[0], first)}); serve {alone}"
        )
    return (
        f"no cascade is shown to beat {alone} alone: {chain} costs {percents(share)} of it and differs by "
        f"{points(gain)} {held_out}; serve {alone}"
    )


def reason(test: Crossed, reference: Route, signals: dict[str, Measured]) -> str:
    """Why the model alone is the choice."""
    only = reference.chain[0]
    cost = test.cost.mean(axis=0)
    cheaper = [tier for tier in range(len(test.tiers)) if cost[tier] < cost[only]]
    if len(test.tiers) == 1:
        return "there is no other"
    if not cheaper:
        return "no model is cheaper, and none is shown to be more accurate"
    first = max(cheaper, key=lambda tier: _auroc(signals[test.tiers[tier]]))
    name, found = test.tiers[first], signals[test.tiers[first]]
    if isinstance(found, Insufficient):
        return f"too few answers of {name} tell its confidence from chance ({found.why})"
    if found.value < WEAK_AUROC:
        return f"the {confidence_of(name, found)} is too weak"
    return f"asking {name} first costs more than its accepted answers save ({confidence_of(name, found)})"


def _auroc(found: Measured) -> float:
    return found.value if isinstance(found, Score) else -1.0


def confidence_of(name: str, found: Measured) -> str:
    if isinstance(found, Insufficient):
        return f"confidence signal of {name}: {found.why}"
    return f"confidence signal of {name} (AUROC {found.value:.2f} [{found.low:.2f}, {found.high:.2f}])"


def ends(score: Score) -> tuple[float, float]:
    """The interval of a score that has one, as all from a bootstrap do."""
    assert score.low is not None, score
    assert score.high is not None, score
    return score.low, score.high


def percents(score: Score) -> str:
    """As 94.2 % [92.8, 95.4]."""
    low, high = ends(score)
    return f"{100 * score.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def points(score: Score) -> str:
    """As +0.3 points [-0.6, +1.2]."""
    low, high = ends(score)
    return f"{100 * score.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]"
