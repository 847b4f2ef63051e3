"""Which family, and how robust: chosen by a proper score on answers that the fit has not seen, with the reason why.

Never by ECE: a constant predictor can have an ECE of 0 (science 4.4).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibrators import tempered
from calibrators.base import (
    MIN_RARE,
    BadFeatures,
    BadObjective,
    Bools,
    FitData,
    Fitted,
    Floats,
    Ints,
    find,
    folds,
    log_losses,
    varying,
)
from calibrators.objectives import Objective, effective_share
from calibrators.objectives import find as find_objective
from calibrators.objectives.erm import Erm
from calibrators.temperature import best_temperature
from calibrators.tempered import Tempered

PER_PARAMETER = 20  # answers of the rarer class that pay for one free parameter (science 2.2: 10 to 20)
ETAS = {"tilt": (0.0, 0.1, 0.25, 0.5, 1.0), "group_tilt": (0.0, 1.0, 3.0, 10.0)}  # science 3.5
ESS_MIN = 0.2
POOLED = "pooled logistic"


@dataclass(frozen=True, slots=True)
class Tried:
    """One family on held-out folds.  nll: nats per answer.  worse: nll less the best family's, +- its paired se.

    nll and worse are None, and `why_not` says why, for a family that was not tried.
    """

    family: str
    nll: float | None = None
    worse: float | None = None
    se: float | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The chosen family, fitted on all data with `options`; why; and everything that was tried, simplest first."""

    family: str
    reason: str
    calibrator: Fitted = field(repr=False)
    tried: tuple[Tried, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def auto(
    data: FitData,
    *,
    objective: Objective | None = None,
    prior: bool = False,
    direction: int = 1,
    others: Sequence[FitData] = (),
    seed: int = 0,
) -> Choice:
    """Choose a family by sample size, then by log-loss on five folds of questions, and fit it.

    Of the families within one standard error of the best, the simplest wins.
    prior: the one column is the logit of an earlier calibrator; then intercept and temperature are candidates, and
    the intercept alone is fitted when there are fewer than 30 of the rarer class.
    direction: of a single feature, -1 when lower is surer (as an entropy is); Platt and isotonic keep to it.
    others: other models' answers, whose slopes may be shared when this model has few answers; see `logistic.fit`.
    Raises OneClass, TooFewRare and what the fits raise.
    """
    if prior and data.X.shape[1] != 1:
        raise BadFeatures(f"a prior is one column of logits, got {data.X.shape[1]} columns")
    data.check_rare(1 if prior else MIN_RARE, "auto")
    if data.n_rare < MIN_RARE:
        fitted = find("intercept").fit(data, objective=objective)
        why = f"only {data.n_rare} answers of the rarer class: the earlier calibrator's intercept is shifted, no more"
        return Choice("intercept", why, fitted)
    open_to, closed = _candidates(data, objective, prior, direction, others)
    fold = folds(data, 5, seed)
    margins = {
        name: held_out_margins(data, fold, family, objective=objective, **options)
        for name, (family, options) in open_to.items()
    }
    losses = {name: log_losses(z, data.y) for name, z in margins.items()}
    best = min(losses, key=lambda name: float(data.base @ losses[name]))
    tried = tuple(_compare(name, losses[name], losses[best], data) for name in losses)
    chosen = next(t for t in tried if t.worse is not None and t.se is not None and t.worse <= t.se)
    family, options = open_to[chosen.family]
    calibrator = find(family).fit(data, objective=objective, **options)
    return Choice(family, _reason(chosen, best, data), calibrator, (*tried, *closed), options)


def _candidates(
    data: FitData, objective: Objective | None, prior: bool, direction: int, others: Sequence[FitData]
) -> tuple[dict[str, tuple[str, dict[str, Any]]], list[Tried]]:
    """(what to try, simplest first, as family and options; the others with why not)."""
    many, mean = data.X.shape[1] > 1, objective is None or isinstance(objective, Erm)
    slopes = data.X.shape[1] + 1
    learn = {} if prior or many else {"learn_score": True}  # a raw signal is no logit: beta needs one
    thin = data.n_rare < 10 * slopes
    families: list[tuple[str, dict[str, Any], str]] = [
        ("intercept", {}, "" if prior else "needs an earlier calibrator's logit"),
        ("temperature", {}, "" if prior else "needs an earlier calibrator's logit"),
        ("platt", {"direction": direction}, "more than one feature: logistic weighs them" if many else ""),
        # more slopes than the rare class pays for: the ridge takes back what is too many
        ("logistic", {"ridge": 10.0 if thin else 1.0}, "" if many else "one feature: Platt is the same"),
        (POOLED, {"others": others}, _nothing_to_share(data, others)),
        ("beta", learn, _needs(data, rare=3 * PER_PARAMETER)),
        ("quadratic", {}, _needs(data, rare=3 * PER_PARAMETER)),
        ("isotonic", {"direction": direction}, _needs(data, rows=1000, rare=10 * PER_PARAMETER) or _only_mean(mean)),
        ("gbdt", {}, _needs(data, rows=2000, rare=300)),
    ]
    open_to = {
        name: ("logistic" if name == POOLED else name, options) for name, options, why_not in families if not why_not
    }
    return open_to, [Tried(name, why_not=why_not) for name, _, why_not in families if why_not]


def _needs(data: FitData, *, rare: int, rows: int = 0) -> str:
    if data.n < rows:
        return f"{data.n} answers, needs {rows}"
    return f"{data.n_rare} of the rarer class, needs {rare}" if data.n_rare < rare else ""


def _nothing_to_share(data: FitData, others: Sequence[FitData]) -> str:
    if not others or data.X.shape[1] == 1:
        return "no slopes that another model could share"
    needed = PER_PARAMETER * (data.X.shape[1] + 1)
    return "" if data.n_rare < needed else f"{data.n_rare} of the rarer class pay for slopes of its own"


def _only_mean(mean: bool) -> str:
    return "" if mean else "takes no objective but erm"


def held_out_margins(
    data: FitData, fold: Ints, family: str, *, objective: Objective | None = None, **options: Any
) -> Floats:
    """Logit of each row by the fit without its fold, (N,), nats.  fold: (N,) in 0..k-1.  options: of the family's fit.

    Size limits do not apply to the folds: they were checked on all the data, of which a fold's fit has four fifths.
    A column that varies in the held-out fold alone, as a flag that is set in a few answers may, is left out of that
    fold's fit, which has nothing to learn about it. Other models' answers to the questions of that fold (option
    `others`) are left out too. Raises what the fits raise.
    """
    limits = {"min_rare", "min_rows"} & inspect.signature(find(family).fit).parameters.keys()
    margins = np.empty(data.n)
    for k in range(int(fold.max()) + 1):
        out = fold == k
        told = varying(data.X[~out])
        inside, given = data, dict(options)
        if 0 < len(told) < data.X.shape[1]:
            inside = data.columns(told)
            if given.get("signs") is not None:
                given["signs"] = [given["signs"][j] for j in told]
        if given.get("others"):
            given["others"] = [_without(other, data, out) for other in given["others"]]
        fitted = find(family).fit(inside.rows(~out), objective=objective, **given, **dict.fromkeys(limits, 1))
        margins[out] = fitted.margin(inside.X[out])
    return margins


def _without(other: FitData, data: FitData, out: Bools) -> FitData:
    """Another model's answers, less those to the questions of the rows that are `out`."""
    if other.groups is None or data.groups is None:
        return other
    return other.rows(~np.isin(other.groups, data.groups[out]))


def _compare(name: str, losses: Floats, best: Floats, data: FitData) -> Tried:
    gap = losses - best
    return Tried(name, float(data.base @ losses), float(data.base @ gap), standard_error(gap, data))


def standard_error(losses: Floats, data: FitData) -> float:
    """Standard error of the weighted mean loss, rows of one question counted together. 0 for losses that are all 0."""
    centred = data.base * (losses - float(data.base @ losses))
    if data.groups is not None:
        _, code = np.unique(data.groups, return_inverse=True)
        centred = np.bincount(code, centred).astype(np.float64)
    count = len(centred)
    return float(np.sqrt((centred**2).sum() * count / max(count - 1, 1)))


def _reason(chosen: Tried, best: str, data: FitData) -> str:
    size = f"{data.n} answers, {data.n_rare} of the rarer class"
    if chosen.family == best:
        return f"{chosen.family}: lowest held-out log-loss, {chosen.nll:.4f} nats ({size})"
    return (
        f"{chosen.family}: the simplest within one standard error of the best; "
        f"{chosen.worse:.4f} +- {chosen.se:.4f} nats worse than {best} on held-out folds ({size})"
    )


# How robust


@dataclass(frozen=True, slots=True)
class EtaRow:
    """One strength of an objective, after the final temperature. eta 0 is ERM.

    nll: in distribution, out of fold, +- se, nats.  shifted: nll per shifted split.  worst: the largest of those.
    ess: effective sample size of the fit's weights over N.  rejected: why it may not be chosen, or "".
    """

    eta: float
    nll: float
    se: float
    shifted: Mapping[str, float]
    worst: float
    ess: float
    temperature: float
    rejected: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class EtaChoice:
    """The chosen strength, fitted and tempered; why; and every row, ERM first."""

    eta: float
    reason: str
    rows: tuple[EtaRow, ...]
    calibrator: Fitted = field(repr=False)


def choose_eta(
    data: FitData,
    shifted: Mapping[str, FitData],
    *,
    objective: str = "group_tilt",
    family: str = "logistic",
    etas: Sequence[float] | None = None,
    seed: int = 0,
) -> EtaChoice:
    """The eta with the lowest NLL on the worst shifted split, as far as the home distribution does not pay for it.

    Allowed are etas whose in-distribution NLL is at most ERM's + 1 standard error and whose effective sample size is
    at least 0.2 N, all after one temperature refitted in distribution on out-of-fold logits (science 3.5).
    shifted: tuning splits by name; judge the result on other shifts than these.
    Raises BadObjective for an objective without a grid, and what the fits raise.
    """
    if objective not in ETAS:
        raise BadObjective(f"no eta grid for {objective!r}; have {', '.join(ETAS)}")
    if not shifted:
        raise BadFeatures("need at least one shifted split to choose eta on")
    grid = sorted({0.0, *(float(eta) for eta in (ETAS[objective] if etas is None else etas))})
    fold = folds(data, 5, seed)
    rows: list[EtaRow] = []
    fits: list[Fitted] = []
    for eta in grid:
        row, fitted = _try_eta(eta, data, shifted, find_objective(f"{objective}(eta={eta!r})"), family, fold)
        limit = rows[0].nll + rows[0].se if rows else np.inf
        rows.append(_judged(row, limit))
        fits.append(fitted)
    chosen = min((i for i, row in enumerate(rows) if not row.rejected), key=lambda i: rows[i].worst)
    gain = rows[0].worst - rows[chosen].worst
    reason = (
        f"{objective} eta={grid[chosen]:g}: worst of {len(shifted)} shifted splits {rows[chosen].worst:.4f} nats, "
        f"{gain:.4f} under ERM; in distribution {rows[chosen].nll:.4f} against {rows[0].nll:.4f} +- {rows[0].se:.4f}"
        if chosen
        else f"erm: no allowed eta of {objective} lowers the worst shifted split's {rows[0].worst:.4f} nats"
    )
    return EtaChoice(grid[chosen], reason, tuple(rows), fits[chosen])


def final_temperature(calibrator: Fitted, routed: FitData) -> Tempered:
    """The last step for every level: one temperature on the answers that reach it (science 3.8).

    routed: those answers, none of which the calibrator was fitted on.  Raises OneClass, TooFewRare, NotConverged.
    """
    return tempered.fit(routed, inner=calibrator)


def _judged(row: EtaRow, limit: float) -> EtaRow:
    why = ""
    if row.eta and row.ess < ESS_MIN:
        why = f"effective sample size {row.ess:.2f} N, needs {ESS_MIN}"
    elif row.nll > limit:
        why = f"in distribution {row.nll:.4f} nats, over ERM + 1 se = {limit:.4f}"
    return EtaRow(row.eta, row.nll, row.se, row.shifted, row.worst, row.ess, row.temperature, why)


def _try_eta(
    eta: float, data: FitData, shifted: Mapping[str, FitData], objective: Objective, family: str, fold: Ints
) -> tuple[EtaRow, Fitted]:
    logits = held_out_margins(data, fold, family, objective=objective)
    losses = np.empty(data.n)
    for k in range(int(fold.max()) + 1):  # a fold's temperature comes from the other folds' logits
        out = fold == k
        t = best_temperature(logits[~out], data.rows(~out))
        losses[out] = log_losses(logits[out] / t, data.y[out])
    fitted = find(family).fit(data, objective=objective)
    final = Tempered(fitted, best_temperature(logits, data))
    nlls = {name: float(s.base @ log_losses(final.margin(s.X), s.y)) for name, s in shifted.items()}
    _, weights = objective(log_losses(fitted.margin(data.X), data.y), data.slices, data.base)
    row = EtaRow(
        eta,
        float(data.base @ losses),
        standard_error(losses, data),
        nlls,
        max(nlls.values()),
        effective_share(weights),
        final.t,
    )
    return row, final
