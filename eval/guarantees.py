"""Guarantees with a sample size behind them: for the final error, for what one tier accepts, and for the cost.

All of them hold for questions that are exchangeable with the ones counted here, which must have chosen nothing: neither
the calibrators, nor the thresholds, nor the order of the candidates. Where these questions did have a say, as when they
decide between a cascade and the best model alone, `among` says between how many policies, fixed beforehand, and every
bound is taken at a share of its error (Bonferroni), so that it holds whichever was taken. Under shift they say nothing;
watch for drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binom, norm

from calibrators.scores import clopper_pearson
from eval.crossed import Bools, Crossed, Floats, Ints, group_codes
from eval.sweep import Route, reached, replay
from gateway.errors import GatewayError

MIN_ACCEPTED = 30  # fewer accepted answers certify nothing that one would act on (arXiv:2407.18370 asks as many)
MOST_LABELS = 100_000

FINAL = "share of final answers that are wrong"
EXCHANGEABLE = "requests are like the questions counted here: same source, same prompt, same models, same sampler"
UNTOUCHED = "these questions chose no calibrator, no threshold and no order of candidates"
INDEPENDENT = "questions are independent; of variants of one question only the first was counted"


class BadGuarantee(GatewayError):
    """A level or a confidence that is none, or a certificate that cannot be read."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A promise that was earned.

    what: of which quantity, in words.  limit: it stays at or below this, with probability `confidence` over the
    questions counted.  seen: what was observed.  n: questions (or accepted answers) it rests on.  unit: share, or what
    a cost is counted in.
    policy: tiers and thresholds it is about, {"tiers": [...], "thresholds": [...]}.  data_sha256: of the crossed table.
    """

    what: str
    limit: float
    confidence: float
    seen: float
    n: int
    method: str
    policy: Mapping[str, Any]
    data_sha256: str
    assumptions: tuple[str, ...] = (EXCHANGEABLE, UNTOUCHED, INDEPENDENT)
    unit: str = "share"

    def __str__(self) -> str:
        return (
            f"{self.what} at most {self.limit:.4g} with {self.confidence:.0%} confidence "
            f"({self.method}; seen {self.seen:.4g}, n = {self.n:,})"
        )

    def covers(self, tiers: Sequence[str], thresholds: Sequence[float]) -> bool:
        """Whether it is about this very policy: one other threshold is another policy."""
        return bool(self.policy["tiers"] == list(tiers) and self.policy["thresholds"] == list(thresholds))

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "policy": dict(self.policy), "assumptions": list(self.assumptions)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Certificate:
        """Raises BadGuarantee for what is no certificate of ours."""
        wanted = set(cls.__dataclass_fields__)
        if set(saved) != wanted:
            raise BadGuarantee(f"a certificate has the fields {', '.join(sorted(wanted))}; got {', '.join(saved)}")
        read = cls(**{**saved, "assumptions": tuple(saved["assumptions"])})
        _check(read.confidence, "confidence")
        if not (math.isfinite(read.limit) and read.n >= 1 and set(read.policy) == {"tiers", "thresholds"}):
            raise BadGuarantee(f"a certificate with limit {read.limit}, n {read.n}, policy {dict(read.policy)}")
        return read


@dataclass(frozen=True, slots=True)
class Refused:
    """No promise can be made. why: in words, with what would be needed."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: not certified, {self.why}"


Outcome = Certificate | Refused


# Final error: Learn then Test


def binomial_p_value(wrong: int, n: int, alpha: float) -> float:
    """Of H: error rate > alpha, exact: P(Bin(n, alpha) <= wrong)."""
    return float(binom.cdf(wrong, n, alpha))


def hoeffding_bentkus_p_value(risk: float, n: int, alpha: float) -> float:
    """Of H: mean risk > alpha, for risks in [0, 1] that need not be 0 or 1 (Bates et al. 2021, arXiv:2101.02703)."""
    low = min(risk, alpha)
    hoeffding = math.exp(-n * _divergence(low, alpha))
    bentkus = math.e * float(binom.cdf(math.ceil(n * risk - 1e-9), n, alpha))
    return min(1.0, hoeffding, bentkus)


def _divergence(a: float, b: float) -> float:
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def kept(p_values: Sequence[float], delta: float) -> int:
    """Fixed-sequence testing: how many hypotheses, in the order given, fall before the first that does not.

    Each is tested at delta itself, and all kept are true at once with probability 1 - delta (Angelopoulos et al. 2021,
    arXiv:2110.01052).
    """
    for place, p_value in enumerate(p_values):
        if p_value > delta:
            return place
    return len(p_values)


def final_error(table: Crossed, candidates: Sequence[Route], alpha: float, delta: float = 0.05) -> Outcome:
    """The last of the candidates whose error rate is at most alpha with confidence 1 - delta.

    candidates: from the safest (the best model alone, or all large) to the cheapest, fixed before this table was seen:
    the efficient routes of a sweep on another split, dearest first, are such a path. Error is no monotone function of
    a threshold, as a larger model may be wrong where a smaller one is right; so every step is a test of its own.
    """
    _check(alpha, "alpha")
    _check(delta, "delta")
    what = FINAL
    counted = one_per_family(table)
    wrong = [int(counted.n - replay(counted, route).right.sum()) for route in candidates]
    passed = kept([binomial_p_value(errors, counted.n, alpha) for errors in wrong], delta)
    if passed == 0:
        seen = f"{wrong[0]}/{counted.n} wrong" if wrong else "no candidate"
        return Refused(what, f"the safest candidate does not show an error of at most {alpha:.4g} ({seen})")
    return Certificate(
        what,
        alpha,
        1 - delta,
        wrong[passed - 1] / counted.n,
        counted.n,
        "Learn then Test, exact binomial, fixed sequence",
        told(counted, candidates[passed - 1]),
        counted.sha256,
    )


def error_bound(table: Crossed, route: Route, delta: float = 0.05, *, among: int = 1) -> Certificate:
    """How often the final answer of this route is wrong at most: Clopper and Pearson's one-sided bound."""
    _check(delta, "delta")
    counted = one_per_family(table)
    wrong = int(counted.n - replay(counted, route).right.sum())
    return Certificate(
        FINAL,
        upper_bound(wrong, counted.n, delta / among),
        1 - delta,
        wrong / counted.n,
        counted.n,
        f"Clopper-Pearson{_shared(among)}",
        told(counted, route),
        counted.sha256,
    )


def _shared(among: int) -> str:
    return f", {among} policies at once" if among > 1 else ""


def one_per_family(table: Crossed) -> Crossed:
    """The first question of each family: binomial tails are those of independent questions."""
    return table.rows(np.sort(np.unique(group_codes(table), return_index=True)[1]))


def told(table: Crossed, route: Route) -> dict[str, Any]:
    """A route as plain values."""
    return {"tiers": [table.tiers[tier] for tier in route.chain], "thresholds": list(route.thresholds)}


# One tier's accepted answers


def accepted_error(table: Crossed, route: Route, delta: float = 0.05, *, among: int = 1) -> list[Outcome]:
    """Per tier of a route: an upper bound for the share of wrong answers among those it serves.

    Clopper and Pearson's one-sided bound at delta / levels, so that all hold at once with confidence 1 - delta.
    among: see the head of this file.
    """
    _check(delta, "delta")
    counted = one_per_family(table)
    outcomes: list[Outcome] = []
    for tier, _, accepted in reached(counted, route):
        name, m = counted.tiers[tier], int(accepted.sum())
        what = f"share of wrong answers among those that {name} serves"
        if m < MIN_ACCEPTED:
            outcomes.append(Refused(what, f"only {m} answers of it were served, {MIN_ACCEPTED} are needed"))
            continue
        wrong = int(m - counted.right[accepted, tier].sum())
        share = delta / len(route.chain) / among
        bound = upper_bound(wrong, m, share)
        method = f"Clopper-Pearson, {len(route.chain)} tiers at once{_shared(among)}"
        policy = told(counted, route)
        outcomes.append(Certificate(what, bound, 1 - delta, wrong / m, m, method, policy, counted.sha256))
    return outcomes


def upper_bound(wrong: int, n: int, delta: float) -> float:
    """One-sided: the error rate exceeds it with probability at most delta. About 3/n at no error and delta = .05."""
    return float(clopper_pearson(np.array([wrong]), np.array([n]), 1 - 2 * delta)[1][0])


def trusted_threshold(
    p: Floats, right: Floats, thresholds: Floats, alpha: float, delta: float = 0.05
) -> float | Refused:
    """The least strict threshold at which accepted answers are wrong at most alpha of the time, confidence 1 - delta.

    Scans from the strictest and stops at the first that fails. It begins where enough answers are accepted for a true
    error of alpha / 2 to pass, or failing that where none wrong would: one early mistake among thirty must not end the
    scan, and how many are accepted is a matter of p alone.  thresholds: fixed beforehand.
    After Jung et al. 2024, arXiv:2407.18370, whose code begins at 30 accepted and returns the strictest threshold when
    even that one fails; here that is Refused.
    """
    _check(alpha, "alpha")
    _check(delta, "delta")
    falling = np.sort(thresholds)[::-1]
    accepted = np.array([int((p >= threshold).sum()) for threshold in falling], dtype=np.int64)
    start = next(
        (
            places[0]
            for rate in (alpha / 2, 0.0)
            if (places := np.flatnonzero((accepted >= MIN_ACCEPTED) & _could_pass(accepted, rate, alpha, delta))).size
        ),
        len(falling),
    )
    found: float | None = None
    for threshold, m in zip(falling[start:], accepted[start:], strict=True):
        if upper_bound(int(m - right[p >= threshold].sum()), int(m), delta) > alpha:
            break
        found = float(threshold)
    if found is None:
        most = int(accepted.max(initial=0))
        return Refused("threshold", f"none of {len(falling)} shows an error of at most {alpha:.4g}; one accepts {most}")
    return found


def _could_pass(accepted: Ints, rate: float, alpha: float, delta: float) -> Bools:
    """Whether so many accepted answers, wrong at this rate, would show an error of at most alpha."""
    wrong = np.floor(accepted * rate).astype(np.int64)
    passes: Bools = clopper_pearson(wrong, np.maximum(accepted, 1), 1 - 2 * delta)[1] <= alpha
    return passes


def controlled_threshold(p: Floats, right: Floats, thresholds: Floats, alpha: float) -> float | Refused:
    """The least strict threshold with P(accepted and wrong) <= alpha in expectation (conformal risk control).

    Valid because that loss only falls as the threshold rises (Angelopoulos et al. 2022, arXiv:2208.02814): the least
    t with (n R(t) + 1) / (n + 1) <= alpha.
    """
    _check(alpha, "alpha")
    found: float | None = None
    for threshold in np.sort(thresholds)[::-1]:
        wrong = int(((p >= threshold) & (right == 0)).sum())
        if (wrong + 1) / (len(p) + 1) > alpha:
            break
        found = float(threshold)
    if found is None:
        return Refused("threshold", f"no threshold controls {alpha:.4g} with {len(p)} labels; the least is 1/(n+1)")
    return found


# Cost


def cost_bound(table: Crossed, route: Route, alpha: float = 0.05, *, among: int = 1) -> Outcome:
    """What one request costs at most, but for a share alpha of requests: the ceil((n + 1)(1 - alpha))-th smallest cost.

    Needs no labels (C3PO, arXiv:2511.07396). The probability is over the questions here and the new one together.
    """
    _check(alpha, "alpha")
    counted = one_per_family(table)
    costs = np.sort(replay(counted, route).cost)
    share = alpha / among
    rank = math.ceil((counted.n + 1) * (1 - share) - 1e-9)
    what = f"cost of one request in {counted.cost_unit}"
    if rank > counted.n:
        return Refused(what, f"{counted.n} questions, {math.ceil(1 / share) - 1} are needed for {1 - alpha:.4g}")
    limit = float(costs[rank - 1])
    policy = told(counted, route)
    seen = float(costs.mean())
    method = f"split conformal{_shared(among)}"
    return Certificate(what, limit, 1 - alpha, seen, counted.n, method, policy, counted.sha256, unit=counted.cost_unit)


# How many labels


def labels_needed(alpha: float, truth: float, delta: float = 0.05, power: float = 0.8) -> int:
    """Least n from which on the binomial test certifies "error <= alpha" with the given power, when it is `truth`.

    Power rises in saw teeth, as errors are whole; from this n on no tooth falls below. Raises BadGuarantee when truth
    is no better than alpha, or so near that MOST_LABELS do not do.
    """
    if not 0 <= truth < alpha < 1:
        raise BadGuarantee(f"need 0 <= truth < alpha < 1, got truth {truth} and alpha {alpha}")
    z = norm.ppf(1 - delta) * math.sqrt(alpha * (1 - alpha)) + norm.ppf(power) * math.sqrt(truth * (1 - truth))
    about = (z / (alpha - truth)) ** 2  # by the normal approximation; the saw teeth end well before twice as many
    if about > MOST_LABELS:
        raise BadGuarantee(f"{MOST_LABELS:,} labels do not certify {alpha} when the truth is {truth}")
    n = np.arange(1, 2 * int(about) + 300)
    allowed = binom.ppf(delta, n, alpha)
    allowed = np.where(binom.cdf(allowed, n, alpha) <= delta, allowed, allowed - 1)
    reached_power = np.where(allowed >= 0, binom.cdf(allowed, n, truth), 0.0)
    short = np.flatnonzero(reached_power < power)
    assert not short.size or short[-1] < n.size - 1, "power is short of what was asked at twice the labels needed"
    return int(n[short[-1]]) + 1 if short.size else 1


def labels_table(pairs: Sequence[tuple[float, float]] = ((0.1, 0.05), (0.05, 0.03), (0.05, 0.02), (0.03, 0.02),
                                                         (0.02, 0.01))) -> list[dict[str, float]]:  # fmt: skip
    """Rows {certify, truth, labels} for planning, at delta = .05 and 80 % power."""
    return [{"certify": alpha, "truth": truth, "labels": labels_needed(alpha, truth)} for alpha, truth in pairs]


def _check(share: float, name: str) -> None:
    if not 0 < share < 1:
        raise BadGuarantee(f"{name} must lie strictly between 0 and 1, got {share}")
