"""When a calibrator should be fitted anew, and how much of it the labels allow. Starts fits; can promote nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.monitor.drift import Shift
from gateway.monitor.labels import Verdict

RUNGS = ((300, "refit"), (100, "platt"), (30, "intercept"))  # rare-class labels needed; science 7.4


class Cause(StrEnum):
    """Why a fit is wanted."""

    METRIC, DRIFT, SCHEDULE, MODEL = "metric", "drift", "schedule", "model change"


@dataclass(frozen=True, slots=True)
class Labels:
    """What a fit could use. rare: labels of the rarer class.  explored: those drawn whatever the confidence was."""

    rare: int
    explored: int


@dataclass(frozen=True, slots=True)
class FitWish:
    """A fit to start. how: intercept, platt or refit.  why: in words."""

    tier: str
    cause: Cause
    how: str
    why: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A fit that would be wanted, and what is missing for it."""

    tier: str
    cause: Cause
    missing: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """max_age_seconds: of a calibrator.  pause_seconds: between two fits of a tier, whatever the cause."""

    max_age_seconds: float = 90 * 86400.0
    pause_seconds: float = 86400.0


def wanted(
    tier: str,
    *,
    verdicts: Sequence[Verdict],
    shifts: Sequence[Shift],
    other_model: bool,
    fitted_at: float,
    tried_at: float | None,
    labels: Labels,
    schedule: Schedule,
    now: float,
) -> FitWish | Waiting | None:
    """The strongest cause to fit a tier's calibrator anew, None without one or within the pause. Seconds since 1970.

    other_model: the server is another than the artefact's; `labels` must then hold those of the new one alone.
    """
    cause = _cause(tier, verdicts, shifts, other_model, now - fitted_at > schedule.max_age_seconds)
    if cause is None or (tried_at is not None and now - tried_at < schedule.pause_seconds):
        return None
    why, told = cause
    rung = next((name for needed, name in RUNGS if labels.rare >= needed), None)
    if rung is None:
        return Waiting(tier, why, f"{RUNGS[-1][0] - labels.rare} more labels of the rarer class")
    if labels.explored == 0:
        return Waiting(tier, why, "labels of explored answers: accepted ones alone teach a calibrator its own opinion")
    if why is Cause.MODEL and rung != "refit":
        return Waiting(tier, why, f"{RUNGS[0][0] - labels.rare} more labels of the rarer class from the new model")
    return FitWish(tier, why, rung, told)


def _cause(
    tier: str, verdicts: Sequence[Verdict], shifts: Sequence[Shift], other_model: bool, old: bool
) -> tuple[Cause, str] | None:
    if other_model:
        return Cause.MODEL, "the server is another than its calibrator's"
    for verdict in verdicts:
        if verdict.tier == tier and (verdict.overconfident or verdict.underconfident):
            return Cause.METRIC, f"{'over' if verdict.overconfident else 'under'}-confident on {verdict.n:,} labels"
    for shift in shifts:
        if shift.tier == tier and shift.drifted:
            return Cause.DRIFT, str(shift)
    return (Cause.SCHEDULE, "it is old") if old else None
