"""`confgate refit`: a calibrator in service put right by the labels of what it decided.

The ladder of science 7.4, by how many labels there are of the rarer class: its logit shifted, then also stretched, then
fitted anew on the same features. The child is bound to the same server as its parent, knows its parent and the
decisions whose labels went in, and is offered, never put in service: a rollout decides that.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from calibrators import logistic
from calibrators._linear import LinearCalibrator, smoothed_targets, task, with_ones
from calibrators.artifact import Artifact
from calibrators.base import CalibrationError, FitData, Fitted, Floats, Missing, folds, log_losses, sigmoid, varying
from calibrators.tempered import Tempered
from eval import tables
from eval.fit import measured
from eval.labels import heard
from gateway.monitor.feed import fit_weights
from gateway.monitor.triggers import RUNGS
from gateway.store.base import HopRow, Labelled, Role, Store, label_pages

LATEST = 2_000  # labels; older ones may be of traffic that is no more
FOLDS = 5
GOOD_FOR = dt.timedelta(days=90)
LEAST = {name: needed for needed, name in RUNGS}


class NotBetter(CalibrationError):
    """The child is not better than its parent by more than a standard error, out of fold."""


@dataclass(frozen=True, slots=True)
class Row:
    """One answer of the tier that a label tells about."""

    labelled: Labelled
    hop: HopRow
    right: bool


@dataclass(frozen=True, slots=True, eq=False)
class Refitted:
    """gain, se: of the child over its parent, nats per label out of fold, weighted.  numbers: of the decisions.

    notes: what became of what the parent had learned about giving answers up, where it had.  since: when the oldest of
    the answers was given, seconds since 1970.
    """

    artifact: Artifact
    how: str
    n: int
    n_rare: int
    gain: float
    se: float
    numbers: tuple[str, ...]
    notes: tuple[str, ...] = ()
    since: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.artifact.label}: {self.how} on {self.n:,} labels ({self.n_rare:,} of the rarer class), "
            f"{self.gain:.4f} +- {self.se:.4f} nats better than its parent out of fold"
            f"{''.join(f'; {note}' for note in self.notes)}"
        )


def rows(
    store: Store, tier: str, parent: Artifact, *, trusted: bool, drawn: bool, without: Collection[str] = ()
) -> tuple[list[Row], Counter[str]]:
    """What labels tell about answers that the parent judged, oldest label first; and what is left out, by why.

    trusted: operators' labels alone.  drawn: of explored decisions alone.  without: keys that are not heard.
    An answer that was not served is told about by the label of the one that was, where both come to the same, and where
    they differ and the other was right.
    """
    best, _, out = heard(label_pages(store), trusted=trusted, without=without)
    found: list[Row] = []
    for number, one in best.items():
        decision = one.decision
        if decision is None:
            out["its decision is not in the log"] += 1
        elif drawn and not decision.explored:
            out["not drawn by lot"] += 1
        elif one.label.p_correct is None:
            out["the answer that was served had no confidence"] += 1
        else:
            hops = store.whole(number).hops if decision.explored else (one.served,)
            for hop in hops:
                if hop is None or hop.tier != tier or hop.role is Role.SIBLING or hop.calibrator != parent.label:
                    continue
                if set(hop.features) != set(parent.features) or hop.p_correct is None:
                    out["without evidence"] += 1
                    continue
                right = told(one, hop)
                if right is None:
                    out["it differs from an answer that was wrong, too"] += 1
                else:
                    found.append(Row(one, hop, right))
    return found, out


def told(one: Labelled, hop: HopRow) -> bool | None:
    """What a decision's label says about one tier's answer; None for nothing."""
    if one.served is not None and one.served.position == hop.position:
        return one.label.label
    if hop.agrees is None:
        return None
    if hop.agrees:
        return one.label.label
    return False if one.label.label else None


def refit(
    parent: Artifact, found: Sequence[Row], *, why: str, created: dt.datetime, how: str = "auto", latest: int = LATEST
) -> Refitted:
    """The parent's child on the latest labels. how: intercept, platt, refit, or auto for what the labels allow.

    Raises CalibrationError, NotBetter among them.
    """
    kept = list(found)[-latest:]
    if not kept:
        raise CalibrationError("no label tells about an answer that this calibrator judged; see what was left out")
    weights = fit_weights([row.labelled for row in kept])
    heard = [row for row, weight in zip(kept, weights, strict=True) if weight > 0]
    if not heard:
        raise CalibrationError("only one client's key speaks, which is not heard alone; label as an operator")
    data = gathered(parent, heard, weights[weights > 0])
    how = rung(data.n_rare) if how == "auto" else how
    data.check_rare(LEAST[how], how)
    inner = parent.calibrator()
    fits: Mapping[str, Callable[[Fitted, FitData], Fitted | Narrowed]]
    fits = {"intercept": moved, "platt": stretched, "refit": anew}
    fit = fits[how]
    fold = folds(data, FOLDS)
    margins = np.empty(data.n)
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        margins[outside] = margin(fit(inner, data.rows(inside)), data.rows(outside).X)
    gains = log_losses(inner.margin(data.X), data.y) - log_losses(margins, data.y)
    gain = float(data.base @ gains)
    se = float(np.sqrt((data.base**2) @ (gains - gain) ** 2))
    if gain <= se:
        told = f"{how} on {data.n:,} labels gains {gain:.4f} +- {se:.4f} nats over {parent.label}"
        raise NotBetter(f"{told}, which may be chance: it is kept")
    child = fit(inner, data)
    abort, note = given_up(parent, inner, child, data)
    artifact = sealed(parent, child, data, heard, how, why, created, sigmoid(margins), abort, note)
    numbers = tuple(row.labelled.label.number for row in heard)
    since = min(row.labelled.label.decided_at for row in heard)
    return Refitted(artifact, how, data.n, data.n_rare, gain, se, numbers, (note,) if note else (), since)


def given_up(
    parent: Artifact, inner: Fitted, child: Fitted | Narrowed, data: FitData
) -> tuple[Mapping[str, object] | None, str]:
    """What the parent had learned about giving answers up that holds for its child, and in words; "" where it had not.

    A level says: of answers under a bound no more than a share is accepted at a threshold in the end. Where the child's
    probability is a rising function of its parent's that is no higher at the threshold, the child accepts no answer
    that the parent would not, so the share can only be smaller. Otherwise nothing is known.
    """
    if parent.early_abort is None:
        return None, ""
    learn = "learn it anew with `confgate fit --early-abort`"
    if isinstance(child, Narrowed):
        return None, f"early_abort was its parent's, of other scores, and is left out: {learn}"
    told = cast(Mapping[str, Any], parent.early_abort)
    slope, shift = np.polyfit(inner.margin(data.X), child.margin(data.X), 1)
    kept: list[Mapping[str, Any]] = []
    lost: list[Mapping[str, Any]] = []
    for level in told["levels"]:
        logit = float(np.log(level["threshold"] / (1 - level["threshold"])))
        (kept if slope > 0 and slope * logit + shift <= logit else lost).append(level)
    if not kept:
        return None, f"early_abort is left out: it accepts more than its parent did; {learn}"
    others = ", ".join(sorted({format(one["threshold"], "g") for one in lost}))
    words = f", not at {others}: {learn}" if lost else ""
    return {**told, "levels": kept}, f"early_abort is its parent's at thresholds where it accepts no more{words}"


def rung(n_rare: int) -> str:
    """The highest that so many labels of the rarer class allow. Raises CalibrationError below the lowest."""
    found = next((name for needed, name in RUNGS if n_rare >= needed), None)
    if found is None:
        needed = RUNGS[-1][0]
        raise CalibrationError(
            f"{n_rare} labels of the rarer class, {needed} are needed: collect {needed - n_rare} more"
        )
    return found


def gathered(parent: Artifact, heard: Sequence[Row], weights: Floats) -> FitData:
    """The parent's own columns. Answers to the same prompt stay together."""
    X = np.array(
        [[nan_for_none(row.hop.features[name]) for name in parent.features] for row in heard], dtype=np.float64
    )
    families = [row.labelled.decision.prompt_sha256 for row in heard if row.labelled.decision is not None]
    return FitData(
        X,
        np.array([row.right for row in heard], dtype=np.float64),
        parent.features,
        weights,
        groups=np.array(families),
        missing=tuple(
            Missing.INDICATE if tables.looks_back(name) or bool(np.isnan(column).any()) else Missing.REFUSE
            for name, column in zip(parent.features, X.T, strict=True)
        ),
    )


def nan_for_none(value: float | None) -> float:
    return float("nan") if value is None else value


def scaled(inner: Fitted, slope: float, intercept: float) -> Fitted:
    """slope * logit + intercept, nats: in its own parameters where its logit is linear, on top of it where not.

    Raises CalibrationError where nothing would be left of its order.
    """
    if slope <= 0:
        raise CalibrationError(
            f"labels say that answers this {inner.kind} is surer of are right no more often; fit anew"
        )
    if isinstance(inner, Tempered):
        return scaled(inner.inner, slope / inner.t, slope * inner.shift + intercept)
    if isinstance(inner, LinearCalibrator):
        return cast(Fitted, type(inner)(inner.linear.scaled(slope, intercept)))
    return Tempered(inner, 1 / slope, intercept)


def moved(inner: Fitted, data: FitData) -> Fitted:
    """Its logit and a shift."""
    (shift,) = task(data, np.ones((data.n, 1))).solve(None, offset=inner.margin(data.X))
    return scaled(inner, 1.0, float(shift))


def stretched(inner: Fitted, data: FitData) -> Fitted:
    """Its logit, stretched and shifted, on Platt's targets."""
    slope, shift = task(
        data,
        with_ones(inner.margin(data.X)),
        targets=smoothed_targets(data),
        lower=np.array([0.0, -np.inf]),
    ).solve(None)
    return scaled(inner, float(slope), float(shift))


@dataclass(frozen=True, slots=True, eq=False)
class Narrowed:
    """A calibrator of some of the parent's columns."""

    inner: Fitted
    columns: tuple[int, ...]


def anew(_: Fitted, data: FitData) -> Narrowed:
    """Logistic regression on the parent's features, without those that never vary."""
    columns = varying(data.X)
    return Narrowed(logistic.fit(data.columns(columns)), tuple(int(one) for one in columns))


def margin(fitted: Fitted | Narrowed, X: Floats) -> Floats:
    return fitted.inner.margin(X[:, fitted.columns]) if isinstance(fitted, Narrowed) else fitted.margin(X)


def sealed(
    parent: Artifact,
    child: Fitted | Narrowed,
    data: FitData,
    heard: Sequence[Row],
    how: str,
    why: str,
    created: dt.datetime,
    held_out: Floats,
    early_abort: Mapping[str, object] | None,
    note: str,
) -> Artifact:
    """The child as an artefact. early_abort, note: of `given_up`."""
    inner = child.inner if isinstance(child, Narrowed) else child
    features = tuple(data.names[j] for j in child.columns) if isinstance(child, Narrowed) else data.names
    digest = hashlib.sha256("\n".join([parent.sha256, how, *(row.labelled.label.number for row in heard)]).encode())
    for part in (data.X, data.y, data.base):
        digest.update(np.ascontiguousarray(part).tobytes())
    given = [row.labelled.label.at for row in heard]
    first, last = (dt.datetime.fromtimestamp(at, dt.UTC).date().isoformat() for at in (min(given), max(given)))
    facts: dict[str, Any] = {
        "data_sha256": digest.hexdigest(), "n": data.n, "n_rare": data.n_rare, "objective": "erm", "eta": 0, "seed": 0,
        "split": "live", "slices": [], "parent": parent.sha256, "how": how, "why": why,
    }  # fmt: skip
    if "after" in parent.fit:
        facts["after"] = parent.fit["after"]
    conditions = cast(Sequence[str], parent.validity["conditions"])
    mine = f"recalibrated ({how}) on {data.n:,} labels of served answers from {first} to {last}"
    return Artifact.seal(
        id=parent.id,
        kind=inner.kind,
        features=features,
        params=inner.to_params(),
        fingerprint=parent.fingerprint,
        fit=facts,
        metrics=measured(held_out, data, 0),
        validity={"conditions": [*conditions, mine, *([note] if note else [])], "checks": parent.validity["checks"]},
        early_abort=early_abort,
        created=created,
        expires=(created + GOOD_FOR).date(),
    )
