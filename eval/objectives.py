"""`confgate objectives`: what each robust objective does to calibration, per tier and for the routed whole.

Every objective fits the same logistic calibrators on the same answers; strengths are chosen on some shifts and judged
on others (science 3.5). A later tier also sees the logits of the earlier tiers' plain (ERM) calibrators, the same for
all objectives, so that a row differs from the row ERM in its objective alone. Every calibrator gets one temperature,
fitted in distribution on out-of-fold logits of the questions that reach its tier, as `confgate fit` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from calibrators import choose, logistic, scores
from calibrators.base import (
    MIN_RARE,
    Bools,
    CalibrationError,
    FitData,
    Fitted,
    Floats,
    Ints,
    Missing,
    NotConverged,
    folds,
    log_losses,
    sigmoid,
)
from calibrators.objectives import Objective, effective_share
from calibrators.objectives import find as find_objective
from calibrators.objectives.erm import Erm
from calibrators.objectives.importance import domain_ratios
from calibrators.objectives.robust_filtered import Crossed, accepted_at, fit_cascade
from calibrators.temperature import best_temperature
from calibrators.tempered import Tempered
from eval import tables
from gateway.errors import ConfigError

ERM = "erm"
# Grids of science 3.5, 0 apart, which is the row ERM itself; then what papers and others recommend at one strength.
CHOSEN = {
    "tilt": (0.1, 0.25, 0.5, 1.0),
    "tilt_selfnorm": (0.1, 0.25, 0.5, 1.0),
    "group_tilt": (1.0, 3.0, 10.0),
}
FIXED = ("tilt(eta=2)", "tilt_selfnorm(eta=2)", "group_tilt(eta=3)", "group_dro", "cvar(alpha=0.3)", "chi_square")
UPSTREAM = "logit of tier"  # columns that say what an earlier tier made of the question
ROUTED, TOGETHER = "routed", "unseen shifts together"


def _nll(p: Floats, y: Floats) -> Floats:
    p = np.clip(p, scores.P_CLIP, 1 - scores.P_CLIP)
    losses: Floats = -np.log(np.where(y == 1, p, 1 - p))
    return losses


def _brier(p: Floats, y: Floats) -> Floats:
    losses: Floats = (p - y) ** 2
    return losses


LOSSES = {"nll": _nll, "brier": _brier}  # per answer, (N,)
RANKED = {"debiased_ece": scores.debiased_ece, "auroc": scores.auroc}  # of all answers together


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What people may choose. tune: shifts that strengths are chosen on.  unseen: shifts that only judge.

    slices: the column that group objectives group by.  accept_at: threshold of every tier but the last.
    """

    fit: str = "calibration"
    home: str = "test"
    tune: tuple[str, ...]
    unseen: tuple[str, ...]
    slices: str = "steps"
    accept_at: float = 0.9
    resamples: int = 1_000
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Tier:
    """One tier's answers by split, the same questions in the same order for every tier."""

    name: str
    data: Mapping[str, FitData]


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """One tier under one objective. chosen: the spec that was fitted, ERM where no strength was worth its price.

    ess: effective sample size of the fit's weights over N; None where the objective has no one set of weights.
    """

    calibrator: Fitted
    chosen: str
    ess: float | None
    temperature: float


# Data


def read(sources: Sequence[Path], setting: Setting) -> list[Tier]:
    """Questions that every tier has a usable answer to, by split. Raises ConfigError, BadRecords."""
    parts = [tables.read(source)[0] for source in sources]
    names = list(parts[0])
    splits = (setting.fit, setting.home, *setting.tune, *setting.unseen)
    found: dict[str, dict[str, FitData]] = {name: {} for name in names}
    for split in splits:
        holding = [part for part in parts if split in part[names[0]].split]
        if not holding:
            have = sorted({str(word) for part in parts for word in part[names[0]].split})
            raise ConfigError(f"no split {split!r} in these records; have {', '.join(have)}")
        every = {name: table.rows(table.split == split) for name, table in holding[0].items()}
        shared = set.intersection(*(set(table.question.tolist()) for table in every.values()))
        for name, table in every.items():
            found[name][split] = as_fit_data(table.rows(np.isin(table.question, sorted(shared))), setting)
    return look_back([Tier(name, data) for name, data in found.items()], setting)


def as_fit_data(table: tables.Table, setting: Setting) -> FitData:
    """One tier's answers of one split, questions in the order of their ids."""
    order = np.argsort(table.question)
    if setting.slices not in table.slices:
        raise ConfigError(f"no slice {setting.slices!r}; have {', '.join(sorted(table.slices))}")
    code, names = tables.codes([table.slices[setting.slices]], [setting.slices])
    missing = (Missing.IMPUTE,) * len(table.names)
    return FitData(table.X[order], table.y[order], table.names, None, code[order], names, table.family[order], missing)


def look_back(tiers: Sequence[Tier], setting: Setting) -> list[Tier]:
    """Every tier with one more column per earlier tier: the logit of its ERM calibrator, out of fold where fitted."""
    seen: dict[str, list[Floats]] = {split: [] for split in tiers[0].data}
    found = []
    for tier in tiers:
        tier = Tier(tier.name, {split: with_columns(data, seen[split]) for split, data in tier.data.items()})
        found.append(tier)
        fitted = logistic.fit(tier.data[setting.fit])
        for split, data in tier.data.items():
            seen[split].append(held_out(data, Erm(), setting) if split == setting.fit else fitted.margin(data.X))
    return found


def with_columns(data: FitData, more: Sequence[Floats]) -> FitData:
    if not more:
        return data
    names = (*data.names, *(f"{UPSTREAM} {number}" for number in range(1, len(more) + 1)))
    missing = (*data.missing, *(Missing.REFUSE,) * len(more))
    return replace(data, X=np.column_stack([data.X, *more]), names=names, missing=missing)


def held_out(data: FitData, objective: Objective, setting: Setting) -> Floats:
    """Out-of-fold logits, (N,)."""
    return choose.held_out_margins(data, folds(data, 5, setting.seed), "logistic", objective=objective)


# Fits


def fit_all(tiers: Sequence[Tier], setting: Setting) -> tuple[dict[str, list[Fit]], dict[str, str]]:
    """(every objective's fits, one per tier, ERM first; why others could not be fitted)."""
    fits: dict[str, list[Fit]] = {ERM: [plain(tier.data[setting.fit], ERM, setting) for tier in tiers]}
    failed: dict[str, str] = {}

    def attempt(name: str, fit: Any) -> None:
        try:
            fits[name] = fit()
        except CalibrationError as error:
            failed[name] = str(error)

    for name, grid in CHOSEN.items():
        attempt(f"{name}, chosen", lambda n=name, g=grid: [strongest(t, n, g, setting) for t in tiers])
    for spec in FIXED:
        attempt(spec, lambda s=spec: [plain(tier.data[setting.fit], s, setting) for tier in tiers])
    attempt("importance", lambda: [weighted(tier, setting) for tier in tiers])
    attempt("robust_filtered", lambda: filtered(tiers, setting))
    return fits, failed


def reached(data: FitData, setting: Setting) -> Bools:
    """(N,) which of the questions no earlier tier's ERM calibrator is sure enough of to answer."""
    columns = [j for j, name in enumerate(data.names) if name.startswith(UPSTREAM)]
    reaches: Bools = np.all(sigmoid(data.X[:, columns]) < setting.accept_at, axis=1)
    return reaches


def temperature(margins: Floats, data: FitData, region: Bools) -> float:
    """Of the region's answers; of all answers where the region has too few right or wrong.  margins: (N,), held out."""
    there = data.rows(region) if region.any() else data
    if there.n_rare < MIN_RARE:
        return best_temperature(margins, data)
    return best_temperature(margins[region], there)


def plain(data: FitData, spec: str, setting: Setting, region: Bools | None = None) -> Fit:
    """One objective at one strength, and its temperature.  region: (N,), where it is fitted; None takes `reached`."""
    objective = find_objective(spec)
    region = reached(data, setting) if region is None else region
    fitted = logistic.fit(data, objective=objective)
    share = effective_share(objective(log_losses(fitted.margin(data.X), data.y), data.slices, data.base)[1])
    try:
        t = temperature(held_out(data, objective, setting), data, region)
    except NotConverged:  # "always 0.5", which CVaR and chi-square on log-loss come to, has no temperature
        return Fit(fitted, f"{spec}, no temperature", share, 1.0)
    return Fit(Tempered(fitted, t), spec, share, t)


def strongest(tier: Tier, name: str, grid: Sequence[float], setting: Setting) -> Fit:
    """The strength with the lowest log-loss on the worst tuning shift, among those that home can afford: out-of-fold
    log-loss at most ERM's + 1 standard error, effective sample size at least 0.2 N, all at a temperature for all
    questions. A strength whose fit has no minimum, as the self-normalised tilt's may not, is passed over."""
    data = tier.data[setting.fit]
    everywhere = np.ones(data.n, dtype=np.bool_)
    best, worst, limit = ERM, np.inf, np.inf
    for spec in (ERM, *(f"{name}(eta={eta!r})" for eta in grid)):
        try:
            fit = plain(data, spec, setting, everywhere)
            losses = log_losses(held_out(data, find_objective(spec), setting) / fit.temperature, data.y)
        except CalibrationError:
            continue
        if spec == ERM:
            limit = float(losses.mean()) + choose.standard_error(losses, data)
        if losses.mean() > limit or (fit.ess is not None and fit.ess < choose.ESS_MIN):
            continue
        shifted = max(nll_of(fit.calibrator, tier.data[split]) for split in setting.tune)
        if shifted < worst:
            best, worst = spec, shifted
    return plain(data, best, setting)


def nll_of(calibrator: Fitted, data: FitData) -> float:
    return float(log_losses(calibrator.margin(data.X), data.y).mean())


def weighted(tier: Tier, setting: Setting) -> Fit:
    """Importance weights toward the tuning shifts, whose features it sees but not their labels."""
    data = tier.data[setting.fit]
    target = np.vstack([tier.data[split].X for split in setting.tune])
    ratios = domain_ratios(data, target)
    tilted = replace(data, weights=ratios)
    t = temperature(held_out(tilted, Erm(), setting), data, reached(data, setting))
    return Fit(Tempered(logistic.fit(tilted), t), "importance", effective_share(ratios), t)


def filtered(tiers: Sequence[Tier], setting: Setting) -> list[Fit]:
    """Robust Filtered at its defaults; it fits its own temperatures, on the questions that reach each tier."""
    data = tuple(tier.data[setting.fit] for tier in tiers)
    thresholds = np.full(len(tiers) - 1, setting.accept_at)
    found = fit_cascade(Crossed(data, np.zeros((data[0].n, len(tiers))), thresholds))
    spec = ERM if found.erm else f"robust_filtered, {found.filtered:,} questions in F, {found.rounds} rounds"
    return [Fit(one, spec, None, one.t if isinstance(one, Tempered) else 1.0) for one in found.calibrators]


# Measures


def measure(tiers: Sequence[Tier], fits: Mapping[str, Sequence[Fit]], setting: Setting) -> list[dict[str, Any]]:
    """One row per distribution, tier (and the routed whole) and objective."""
    rng = np.random.default_rng(setting.seed)
    places: dict[str, tuple[str, ...]] = {name: (name,) for name in (setting.home, *setting.tune, *setting.unseen)}
    places[TOGETHER] = setting.unseen
    rows = []
    for place, splits in places.items():
        erm: dict[str, tuple[Floats, Floats]] = {}
        family = np.concatenate([cast(Any, tiers[0].data[split].groups) for split in splits])
        code = np.unique(family, return_inverse=True)[1]
        draws = rng.multinomial(code.max() + 1, np.full(code.max() + 1, 1 / (code.max() + 1)), setting.resamples)
        for name, several in fits.items():
            for tier, (p, y) in answers(tiers, several, splits, setting).items():
                erm.setdefault(tier, (p, y))
                told = {"distribution": place, "tier": tier, "objective": name}
                against = erm[tier] if name != ERM else None
                rows.append(told | judged(p, y, against, draws[:, code], rng) | paired(p, y, against, family, setting))
    return rows


def answers(
    tiers: Sequence[Tier], fits: Sequence[Fit], splits: Sequence[str], setting: Setting
) -> dict[str, tuple[Floats, Floats]]:
    """(p, y) on all questions of some splits, by tier, and of the answers that the cascade serves."""
    p = np.column_stack(
        [
            np.concatenate([sigmoid(fit.calibrator.margin(tier.data[split].X)) for split in splits])
            for tier, fit in zip(tiers, fits, strict=True)
        ]
    )
    y = np.column_stack([np.concatenate([tier.data[split].y for split in splits]) for tier in tiers])
    level, row = accepted_at(p, np.full(len(tiers) - 1, setting.accept_at)), np.arange(len(p))
    found = {tier.name: (p[:, k], y[:, k]) for k, tier in enumerate(tiers)}
    return found | {ROUTED: (p[row, level], y[row, level])}


def judged(
    p: Floats, y: Floats, erm: tuple[Floats, Floats] | None, draws: Ints, rng: np.random.Generator
) -> dict[str, Any]:
    """Scores of some answers, and the paired difference to ERM's.

    draws: (R, N), how often each answer is in each resample; answers of one family always together.
    """
    told: dict[str, Any] = {"n": int(p.size), "right": int(y.sum()), "mean_p": float(p.mean())}
    told |= {name: float(loss(p, y).mean()) for name, loss in LOSSES.items()}
    few = scores.too_few("", y)
    if few is not None:
        told["insufficient"] = few.why
    else:
        floor = scores.noise_floor(p, y, rng, {"debiased_ece": scores.debiased_ece}, draws=400)["debiased_ece"]
        told |= {"debiased_ece": floor.value, "floor_95": floor.p95, "chance": floor.p_value}
        told["auroc"] = scores.auroc_delong(p, y).as_json()
    if erm is not None:
        for name, loss in LOSSES.items():
            gap = loss(p, y) - loss(*erm)
            drawn = draws @ gap / draws.sum(axis=1)
            low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
            told[f"{name}_less_erm"] = {"value": float(gap.mean()), "low": low, "high": high}
    return told


def paired(
    p: Floats, y: Floats, erm: tuple[Floats, Floats] | None, family: npt.NDArray[Any], setting: Setting
) -> dict[str, Any]:
    """Differences to ERM of the scores that are no means over answers, by paired bootstrap of families."""
    if erm is None or scores.too_few("", y) is not None or scores.too_few("", erm[1]) is not None:
        return {}
    told = {}
    for name, score in RANKED.items():
        rng = np.random.default_rng(setting.seed)
        gap = scores.bootstrap_difference(score, (p, y), erm, rng, question=family, resamples=setting.resamples)
        told[f"{name}_less_erm"] = {"value": gap.value, "low": gap.low, "high": gap.high}
    return told


# Words


def page(rows: Sequence[Mapping[str, Any]], fits: Mapping[str, Sequence[Fit]], about: Mapping[str, Any]) -> str:
    """The study as Markdown. about: what `study` tells of itself."""
    parts = [
        "# What each objective does to calibration",
        f"Made by `{about['command']}` on {about['machine']}, {about['versions']}; the numbers with all digits are in "
        "the JSON file beside this page.",
        about["words"],
        "Less ERM: the difference to the row erm on the same answers, negative = better (of AUROC: positive), with a "
        f"95 % interval from {about['resamples']:,} resamples of question families; **bold** where the interval "
        "excludes 0. In the routed whole objectives may serve other tiers' answers to a question. ECE is debiased, "
        "equal mass; beside it what 95 % of perfectly calibrated forecasters stay below.",
        "## What was fitted",
        _table(
            ("objective", *about["tiers"]),
            [(name, *(_fit(fit) for fit in several)) for name, several in fits.items()],
        ),
        *(f"{name} was not fitted: {why}." for name, why in about["failed"].items()),
    ]
    for place in dict.fromkeys(row["distribution"] for row in rows):
        parts.append(f"## {place}: {about['roles'][place]}")
        for tier in (*about["tiers"], ROUTED):
            some = [row for row in rows if (row["distribution"], row["tier"]) == (place, tier)]
            whole = "The routed whole" if tier == ROUTED else f"Tier {tier}, on all questions"
            parts.append(f"{whole}, n = {some[0]['n']:,}, {some[0]['right']:,} right under erm.")
            parts.append(_table(HEAD, [_cells(row) for row in some]))
    return "\n\n".join(parts) + "\n"


HEAD = (
    "objective", "NLL", "less ERM", "Brier", "less ERM", "ECE (chance)", "less ERM", "AUROC", "less ERM", "mean p",
    "right",
)  # fmt: skip


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    few = row.get("insufficient")
    return (
        row["objective"],
        f"{row['nll']:.3f}",
        _gap(row.get("nll_less_erm")),
        f"{row['brier']:.3f}",
        _gap(row.get("brier_less_erm")),
        few or f"{row['debiased_ece']:.3f} ({row['floor_95']:.3f})",
        _gap(row.get("debiased_ece_less_erm")),
        few or f"{row['auroc']['value']:.3f}",
        _gap(row.get("auroc_less_erm")),
        f"{row['mean_p']:.3f}",
        f"{row['right'] / row['n']:.3f}",
    )


def _gap(gap: Mapping[str, float] | None) -> str:
    if gap is None:
        return "–"
    told = f"{gap['value']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]"
    return f"**{told}**" if gap["low"] > 0 or gap["high"] < 0 else told


def _fit(fit: Fit) -> str:
    share = "" if fit.ess is None else f", ESS {fit.ess:.2f} N"
    return f"{fit.chosen}, T {fit.temperature:.2f}{share}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def study(sources: Sequence[Path], setting: Setting, about: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """(the page, the same in numbers).  about: command, machine, versions."""
    tiers = read(sources, setting)
    fits, failed = fit_all(tiers, setting)
    rows = measure(tiers, fits, setting)
    told: dict[str, Any] = {
        **about,
        "resamples": setting.resamples,
        "tiers": [tier.name for tier in tiers],
        "features": {tier.name: list(tier.data[setting.fit].names) for tier in tiers},
        "n": {split: data.n for split, data in tiers[0].data.items()},
        "failed": failed,
        "roles": {setting.home: "in distribution", TOGETHER: "no choice was made on them"}
        | dict.fromkeys(setting.tune, "strengths were chosen on it")
        | dict.fromkeys(setting.unseen, "no choice was made on it"),
        "words": f"Logistic calibrators, fitted on {tiers[0].data[setting.fit].n:,} answers of split {setting.fit} per "
        f"tier; groups by {setting.slices}; strengths chosen on {', '.join(setting.tune)}; all but the last accept at "
        f"p ≥ {setting.accept_at:g}. Later tiers see the logits of the earlier tiers' ERM calibrators. "
        "One temperature each, fitted out of fold on the questions that no earlier tier's ERM calibrator accepts, as "
        "`confgate fit` does (on all, where those hold fewer than "
        f"{MIN_RARE} right or {MIN_RARE} wrong); robust_filtered fits its own on the questions that reach a tier.",
    }
    fitted = {
        name: [
            {"tier": tier.name, "chosen": fit.chosen, "ess": fit.ess, "temperature": fit.temperature}
            for tier, fit in zip(tiers, several, strict=True)
        ]
        for name, several in fits.items()
    }
    return page(rows, fits, told), {**told, "fits": fitted, "rows": rows}
