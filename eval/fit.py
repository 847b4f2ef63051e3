"""Fit: from answers as numbers to one calibrator per tier, measured on answers that its fit has not seen.

Tiers are fitted in the cascade's order. A later tier may look at what the earlier ones said, which keeps it calibrated
on the hard questions that reach it, whatever the thresholds (science 3.8, fix B); whether it does is decided by what
that gains out of fold. An earlier tier's confidence enters a fit out of fold only, or its own labels would leak.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from calibrators import choose, scores
from calibrators.base import (
    MIN_RARE,
    BadFeatures,
    BadSlices,
    CalibrationError,
    DuplicateQuestion,
    FitData,
    Fitted,
    Ints,
    Missing,
    find,
    folds,
    log_losses,
    sigmoid,
)
from calibrators.objectives import Objective
from calibrators.objectives import find as find_objective
from calibrators.temperature import best_temperature
from calibrators.tempered import Tempered
from eval import tables
from eval.tables import Place, Table
from gateway import confidence
from gateway.confidence import Higher
from gateway.errors import ConfigError
from gateway.nouns import Earlier, Evidence, Floats, Source, TokenTrace

FOLDS = 5
FEW = 10  # answers that must differ from the most common value, or a fold may see a constant
REACH = 0.9  # a question counts as reaching a tier when no earlier tier was this sure
GROUPED = ("group_tilt", "group_dro")
STUB = TokenTrace(Source.CHOSEN, np.zeros(1))  # features of earlier tiers look at texts and probabilities alone


class Upstream(StrEnum):
    """Whether later tiers look at what earlier tiers said. AUTO: where it gains more than its standard error."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Pool(StrEnum):
    """Whether tiers share slopes. AUTO: where a tier has few answers and it does better by that out of fold."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """What people may choose.

    family: a calibrator family, or auto.  objective: a spec such as erm or group_tilt(eta=3).
    tune: splits to choose eta on; then objective is a bare name with a grid, tilt or group_tilt.
    split: what to fit on, None when the records hold one only.  slices: names of columns that group objectives use.
    chosen: the features were asked for by name, so one that cannot be used is an error and not passed over.
    missing: what a NaN in a feature means; None refuses it where there is none and marks it where there are some.
    """

    family: str = "auto"
    objective: str = "erm"
    split: str | None = None
    tune: tuple[str, ...] = ()
    slices: tuple[str, ...] = ()
    upstream: Upstream = Upstream.AUTO
    pool: Pool = Pool.AUTO
    chosen: bool = False
    missing: Missing | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What earlier tiers' confidences are worth to a later one, logistic on both sides, nats per answer out of fold.

    gain, se: of all n answers, higher = better.  reached_gain, reached_n: of those where no earlier tier was sure.
    """

    used: bool
    gain: float
    se: float
    n: int
    reached_gain: float | None
    reached_n: int

    def __str__(self) -> str:
        verdict = "used" if self.used else "not used"
        return f"earlier tiers' confidences {verdict}: they gain {self.gain:.4f} +- {self.se:.4f} nats (n = {self.n:,})"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fitting:
    """One tier's finished calibrator and how good it is.

    data: what it was fitted on, columns as in `data.names`.  held_out: (N,), p of each row by a fit without its fold.
    p: by (split, question), what later tiers may know: out of fold for fitted rows, predicted for all others.
    tried: every strength of the objective that was weighed, ERM first.  temperature: the last step of a later tier,
    fitted on the routed_n answers that reach it.
    pooled: the other tiers' answers, by tier, that its slopes are shared with.
    metrics: by name, as artefacts carry them.  notes: what was passed over, in words.
    """

    table: Table
    data: FitData
    calibrator: Fitted
    family: str
    objective: str
    eta: float
    reason: str
    held_out: Floats
    metrics: Mapping[str, Mapping[str, Any]]
    p: Mapping[Place, float]
    after: tuple[str, ...] = ()
    gain: Gain | None = None
    tried: tuple[choose.EtaRow, ...] = ()
    temperature: float | None = None
    routed_n: int = 0
    pooled: Mapping[str, FitData] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def tier(self) -> str:
        return self.table.tier

    @property
    def data_sha256(self) -> str:
        """Over everything that the calibrator was fitted on."""
        digest = hashlib.sha256("\n".join([self.tier, *self.data.names]).encode())
        for question in self.table.places:
            digest.update("\0".join(question).encode() + b"\n")
        others = [part for other in self.pooled.values() for part in (other.X, other.y)]
        for part in (self.data.X, self.data.y, self.data.slices, *others):
            digest.update(b"" if part is None else np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Failed:
    """A tier that could not be fitted, and why. `table`: later tiers may still read its texts."""

    table: Table
    error: CalibrationError

    @property
    def tier(self) -> str:
        return self.table.tier

    @property
    def p(self) -> Mapping[Place, float]:
        return {}


def fit(every: Mapping[str, Table], how: How) -> list[Fitting | Failed]:
    """Every tier in the order given. One that cannot be fitted does not keep the others from it.

    Raises ConfigError for a choice that fits no tier, DuplicateQuestion when two splits share a question.
    """
    split = the_split(every, how)
    fittings: list[Fitting | Failed] = []
    shared = sharing(every.values(), split, how)
    for table in every.values():
        try:
            others = {tier: data for tier, data in shared.items() if tier != table.tier}
            fittings.append(fit_tier(table, fittings, split, how, others))
        except CalibrationError as error:
            fittings.append(Failed(table, error))
    return fittings


def the_split(every: Mapping[str, Table], how: How) -> str:
    """The split to fit on. Raises ConfigError that lists what there is."""
    have = sorted({str(split) for table in every.values() for split in table.split})
    for wanted in (*how.tune, *([how.split] if how.split else [])):
        if wanted not in have:
            raise ConfigError(f"no split {wanted!r} in these records; have {', '.join(have)}")
    if how.split is None and len(have) > 1 + len(how.tune):
        raise ConfigError(f"these records hold several splits; say with --split which to fit on: {', '.join(have)}")
    split = how.split or next(name for name in have if name not in how.tune)
    if split in how.tune:
        raise ConfigError(f"split {split!r} cannot be fitted on and tuned on")
    for table in every.values():
        _check_disjoint(table, split)
    return split


def _check_disjoint(table: Table, split: str) -> None:
    """A question, or a variant of it, in two splits would be fitted on and judged on. Splits that were collected into
    folders of their own were never held against each other before."""
    splits: dict[str, set[str]] = {}
    for question, found_in in zip(table.question, table.split, strict=True):
        splits.setdefault(str(question), set()).add(str(found_in))
    shared = sorted(question for question, found in splits.items() if len(found) > 1)
    if shared:
        raise DuplicateQuestion(shared[0], len(shared))
    fitted = table.split == split
    both = set(table.family[fitted].tolist()) & set(table.family[~fitted].tolist())
    varied = sorted(str(name) for name, group in zip(table.question, table.family, strict=True) if group in both)
    if varied:
        raise DuplicateQuestion(varied[0], len(both))


def sharing(every: Iterable[Table], split: str, how: How) -> dict[str, FitData]:
    """By tier, the answers whose slopes others may share: of every tier that has enough to be fitted itself."""
    found: dict[str, FitData] = {}
    for table in () if how.pool is Pool.OFF else every:
        with contextlib.suppress(CalibrationError):  # told where that tier is fitted
            own, _ = usable(table, split, how)
            data = fit_data(own.rows(own.split == split), how)
            data.check_rare(MIN_RARE, choose.POOLED)
            found[table.tier] = data
    return found


def fit_tier(
    table: Table, before: Sequence[Fitting | Failed], split: str, how: How, others: Mapping[str, FitData] | None = None
) -> Fitting:
    """One tier. others: answers of the others, by tier, to share slopes with.  Raises CalibrationError."""
    own, notes = usable(table, split, how)
    whole, gain = own, None
    if before and how.upstream is not Upstream.OFF:
        looked = own.with_columns(*joined(own, upstream(own, before)))
        looked, dropped = pruned(looked, split, looked.names[len(own.names) :])
        notes += dropped
        if len(looked.names) > len(own.names):
            gain = worth(own, looked, before, split, how)
            whole = looked if gain.used else own
    here = whole.rows(whole.split == split)
    data = fit_data(here, how)
    made = make(whole, data, how, others or {})
    if before:
        made = tempered(made, data, reached(here, before))
    held_out = sigmoid(made.margins)
    outside = predicted(made.calibrator, whole.rows(whole.split != split), data)
    return Fitting(
        table=here,
        data=data,
        calibrator=made.calibrator,
        family=made.family,
        objective=made.objective,
        eta=made.eta,
        reason=made.reason,
        tried=made.tried,
        temperature=made.temperature,
        routed_n=made.routed_n,
        pooled=made.pooled,
        held_out=held_out,
        metrics=measured(held_out, data, how.seed),
        p=outside | dict(zip(here.places, held_out.tolist(), strict=True)),
        after=tuple(one.tier for one in before) if whole is not own else (),
        gain=gain,
        notes=tuple(notes),
    )


# Columns


def usable(table: Table, split: str, how: How) -> tuple[Table, list[str]]:
    """The table without features that say nothing here, and a note for each. By name asked for, they stay (and a fit
    refuses them)."""
    if not (table.split == split).any():
        raise BadFeatures(f"{table.tier}: no answer of split {split!r} can be fitted on")
    return (table, []) if how.chosen else pruned(table, split, table.names)


def pruned(table: Table, split: str, suspects: Sequence[str]) -> tuple[Table, list[str]]:
    """The table without those of the suspects that are (nearly) constant or undefined everywhere."""
    X, kept, notes = table.X[table.split == split], [], []
    for name, column in zip(table.names, X.T, strict=True):
        present = column[np.isfinite(column)]
        common = np.unique(present, return_counts=True)[1].max(initial=0)
        if name in suspects and present.size - common < FEW:
            notes.append(f"{name} passed over: it differs in only {present.size - common} of {column.size} answers")
        else:
            kept.append(name)
    if not kept:
        raise BadFeatures(f"{table.tier}: no feature left: {'; '.join(notes)}")
    where = [table.names.index(name) for name in kept]
    return table.with_columns(kept, table.X[:, where]), notes


def upstream(table: Table, before: Sequence[Fitting | Failed]) -> tuple[tuple[str, ...], Floats]:
    """Features of what earlier tiers said, (N, 2 per tier), as the gateway builds them: no answer is a silent tier."""
    names = tuple(spec for pair in pairs(len(before)) for spec in pair)
    rows = [
        confidence.measure(names, Evidence(STUB, table.said.get(place, ""), earlier(place, before))).values
        for place in table.places
    ]
    return names, np.array(rows).reshape(len(rows), len(names))


def earlier(place: Place, before: Sequence[Fitting | Failed]) -> tuple[Earlier, ...]:
    """What the tiers before said about one question."""
    return tuple(Earlier(one.tier, one.table.said.get(place, ""), one.p.get(place)) for one in before)


def joined(table: Table, more: tuple[Sequence[str], Floats]) -> tuple[tuple[str, ...], Floats]:
    return (*table.names, *more[0]), np.hstack([table.X, more[1]])


def fit_data(table: Table, how: How) -> FitData:
    """What a fit is given: rows of one family stay together, and NaN means what `how.missing` says."""
    slices: Ints | None = None
    names: tuple[str, ...] = ()
    if how.slices:
        absent = [name for name in how.slices if name not in table.slices]
        if absent:
            raise BadSlices(f"no slice {', '.join(absent)}; have {', '.join(sorted(table.slices)) or 'none'}")
        slices, names = tables.codes([table.slices[name] for name in how.slices], how.slices)
    elif how.objective.split("(")[0] in GROUPED:
        raise BadSlices(f"{how.objective} groups rows: say by what with --slices, one of {', '.join(table.slices)}")
    return FitData(
        table.X,
        table.y,
        table.names,
        slices=slices,
        slice_names=names,
        groups=table.family,
        missing=tuple(policy(name, column, how) for name, column in zip(table.names, table.X.T, strict=True)),
    )


def policy(name: str, column: Floats, how: How) -> Missing:
    """What a NaN means: of an earlier tier, that it was silent; of a feature of the user's choice, what they say."""
    if tables.looks_back(name):
        return Missing.INDICATE
    return how.missing or (Missing.INDICATE if bool(np.isnan(column).any()) else Missing.REFUSE)


def with_silence(data: FitData, seed: int) -> FitData:
    """The rows, and each once more as it looks when some of the earlier tiers were skipped or had no confidence.

    Without these copies a calibrator has hardly seen an earlier tier silent, and would guess when one is: its
    confidence in an answer asked for alone was .04 too high, and is within .02 with them, at no cost to the rest.
    Copies stay in the fold of their original. A copy's silent tiers are drawn at random, at least one of them.
    """
    columns = [[data.names.index(spec) for spec in pair if spec in data.names] for pair in pairs(len(data.names))]
    columns = [where for where in columns if where]
    if not columns:
        return data
    rng = np.random.default_rng(seed)
    silent = rng.random((data.n, len(columns))) < 0.5
    silent[np.arange(data.n), rng.integers(len(columns), size=data.n)] = True
    X = data.X.copy()
    for tier, where in enumerate(columns):
        for column in where:
            X[silent[:, tier], column] = np.nan
    twice = data.rows(np.tile(np.arange(data.n), 2))
    return replace(twice, X=np.vstack([data.X, X]))


def pairs(tiers: int) -> list[tuple[str, str]]:
    """The features about each of so many earlier tiers, nearest first."""
    return [
        (confidence.find(f"upstream_logit(back={back})").spec, confidence.find(f"upstream_agreement(back={back})").spec)
        for back in range(1, tiers + 1)
    ]


# Fits


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A calibrator and its out-of-fold logits, (N,)."""

    calibrator: Fitted
    margins: Floats
    family: str
    objective: str
    eta: float
    reason: str
    tried: tuple[choose.EtaRow, ...] = ()
    temperature: float | None = None
    routed_n: int = 0
    pooled: Mapping[str, FitData] = field(default_factory=dict)


def make(table: Table, data: FitData, how: How, others: Mapping[str, FitData]) -> _Made:
    """Fit as asked: the family that does best, the one that is named, or the eta that the tuning splits call for."""
    if how.tune:
        return _tuned(table, data, how)
    objective = find_objective(how.objective)
    eta = float(getattr(objective, "eta", 0.0))
    options: Mapping[str, Any]
    if how.pool is Pool.ON:
        if not others:
            raise BadFeatures("pooling needs another tier that can be fitted too; fit with --pool auto or off")
        family, options = "logistic", {"others": tuple(others.values())}
        calibrator = find(family).fit(data, objective=objective, **options)
        reason = f"{choose.POOLED}: asked for"
    elif how.family == "auto":
        choice = choose.auto(
            data, objective=objective, direction=direction(data), others=tuple(others.values()), seed=how.seed
        )
        calibrator, family, reason, options = choice.calibrator, choice.family, choice.reason, choice.options
    else:
        options = _options(how.family, data)
        calibrator = find(how.family).fit(data, objective=objective, **options)
        family, reason = how.family, f"{how.family}: asked for"
    full = with_silence(data, how.seed)
    if full is not data:
        calibrator = find(family).fit(full, objective=objective, **options)
    margins = choose.held_out_margins(full, folds(full, FOLDS, how.seed), family, objective=objective, **options)
    pooled = others if "others" in options else {}
    return _Made(calibrator, margins[: data.n], family, how.objective, eta, reason, pooled=pooled)


def _tuned(table: Table, data: FitData, how: How) -> _Made:
    """The eta that serves the worst of the tuning splits best, and the temperature that goes with it."""
    family = "logistic" if how.family == "auto" else how.family
    data.check_rare(MIN_RARE, family)
    full = with_silence(data, how.seed)
    shifted = {name: fit_data(answerable(table.rows(table.split == name), data), how) for name in how.tune}
    choice = choose.choose_eta(full, shifted, objective=how.objective, family=family, seed=how.seed)
    objective: Objective = find_objective(f"{how.objective}(eta={choice.eta!r})")
    margins = choose.held_out_margins(full, folds(full, FOLDS, how.seed), family, objective=objective)
    # one number from all rows: refitting it per fold moves it in the third digit
    margins = margins[: data.n] / cast(Tempered, choice.calibrator).t
    return _Made(
        choice.calibrator, margins, choice.calibrator.kind, how.objective, choice.eta, choice.reason, choice.rows
    )


def reached(table: Table, before: Sequence[Fitting | Failed]) -> npt.NDArray[np.bool_]:
    """(N,) which answers belong to questions of which no earlier tier was sure."""
    return np.array([all(one.p.get(place, 0.0) < REACH for one in before) for place in table.places], dtype=np.bool_)


def tempered(made: _Made, data: FitData, routed: npt.NDArray[np.bool_]) -> _Made:
    """With one more temperature, fitted out of fold on the answers that reach the tier, where there are enough of them.

    Calibration on all questions is not calibration on those that earlier tiers passed on (science card, 3.8).
    """
    there = data.y[routed]
    if min(there.sum(), (1 - there).sum()) < MIN_RARE:
        return made
    t = best_temperature(made.margins[routed], data.rows(routed), None)
    inner = made.calibrator
    hotter = Tempered(inner.inner, inner.t * t) if isinstance(inner, Tempered) else Tempered(inner, t)
    return replace(made, calibrator=hotter, margins=made.margins / t, temperature=t, routed_n=int(routed.sum()))


def _options(family: str, data: FitData) -> dict[str, Any]:
    """A single feature that is surer when low has to be turned around, by the families that ask."""
    return {"direction": -1} if direction(data) < 0 and family in ("platt", "isotonic", "histogram") else {}


def direction(data: FitData) -> int:
    """-1 for a single feature that is surer when low, else 1. A column of the user's own counts as higher = surer."""
    if len(data.names) != 1:
        return 1
    try:
        return -1 if confidence.find(data.names[0]).higher is Higher.DOUBTFUL else 1
    except ConfigError:
        return 1


def worth(own: Table, looked: Table, before: Sequence[Fitting | Failed], split: str, how: How) -> Gain:
    """What the columns of `looked` that `own` lacks gain out of fold, over all questions and over those that reach."""
    here = looked.rows(looked.split == split)
    without, with_them = fit_data(own.rows(own.split == split), how), fit_data(here, how)
    objective = find_objective(how.objective)
    fold = folds(without, FOLDS, how.seed)
    margins = [choose.held_out_margins(data, fold, "logistic", objective=objective) for data in (without, with_them)]
    gains = log_losses(margins[0], without.y) - log_losses(margins[1], without.y)
    gain, se = float(gains.mean()), choose.standard_error(gains, without)
    reaches = reached(here, before)
    return Gain(
        used=how.upstream is Upstream.ON or gain > se,
        gain=gain,
        se=se,
        n=without.n,
        reached_gain=float(gains[reaches].mean()) if reaches.any() else None,
        reached_n=int(reaches.sum()),
    )


def answerable(table: Table, data: FitData) -> Table:
    """The rows that have all that a calibrator fitted on `data` needs; the gateway escalates the others."""
    refused = np.array([policy is Missing.REFUSE for policy in data.missing])
    absent = np.isnan(table.X) & refused
    return table.rows(np.asarray(~absent.any(axis=1)))


def predicted(calibrator: Fitted, table: Table, data: FitData) -> dict[Place, float]:
    """p of the rows outside the fit, one by one as in service; those that lack what the calibrator needs have none."""
    good = answerable(table, data)
    return {
        place: float(calibrator.predict(row[np.newaxis])[0]) for place, row in zip(good.places, good.X, strict=True)
    }


# How good


SCORED: Mapping[str, Callable[..., Any]] = {
    "nll": scores.nll,
    "brier": scores.brier,
    "auroc": scores.auroc,
    "debiased_ece": scores.debiased_ece,
}


def measured(p: Floats, data: FitData, seed: int) -> dict[str, dict[str, Any]]:
    """Scores of out-of-fold probabilities, with intervals by question family, ECE beside what chance alone would give.

    Fewer than 30 of the rarer class: words in place of numbers.
    """
    missing = scores.too_few("", data.y)
    if missing is not None:
        return {name: missing.as_json() for name in SCORED}
    rng = np.random.default_rng(seed)
    told = scores.bootstrap_all(SCORED, p, data.y, rng, question=data.groups)
    floors = scores.noise_floor(p, data.y, rng, {"debiased_ece": scores.debiased_ece, "ece": scores.ece_equal_mass})
    floor = {
        name: {"floor": found.mean, "floor_95": found.p95, "chance": found.p_value} for name, found in floors.items()
    }
    plain = scores.Score(
        name="ece", value=floors["ece"].value, n=data.n, how="none: binned ECE; read it beside its floor"
    )
    found = {name: dict(score.as_json()) for name, score in told.items()}
    return found | {
        "debiased_ece": found["debiased_ece"] | floor["debiased_ece"],
        "ece": plain.as_json() | floor["ece"],
    }
