"""What labels say about calibrated probabilities: alarms from bets, and rolling figures beside what chance would give.

An alarm is a bet won (gateway/monitor/betting.py): it may be looked at after every label. Rolling figures are there to
be read; that one of many windows lies outside its limits is no proof.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from calibrators.sampling import wilson
from gateway.certificate import Certificate, Withdrawn
from gateway.errors import ConfigError
from gateway.monitor.betting import Bound, Honesty
from gateway.nouns import Floats

if TYPE_CHECKING:
    from calibrators.scores import Recalibration

Bools = npt.NDArray[np.bool_]

ALPHA = 0.01  # of a false alarm, ever, per place and per side of the aggregate; science 7.2
ROLLING = 500  # labels in a window; science 7.2
ROUTED = "(routed)"  # the tier that stands for the policy as a whole


@dataclass(frozen=True, slots=True)
class Judged:
    """A served answer of which it is known whether it was right.

    accepted: its p met the threshold; False for a last tier's answer.  trusted: who says so is no client.
    explored: a label was sought by lot, not because of what the answer looked like.
    """

    policy: str
    tier: str
    calibrator: str
    p_correct: float
    right: bool
    accepted: bool
    trusted: bool
    explored: bool = False


@dataclass(frozen=True, slots=True)
class Rolling:
    """The latest labels of a place. Each limit: the figure is below it with 99 % if every p were true, by simulation.

    ece: debiased, which takes most of the noise out.  ece_floor: what it is on average if every p were true.
    ks: KS calibration error, without bins.  cox: intercept and slope of y on logit p with their intervals.
    """

    n: int
    brier: float
    brier_limit: float
    ece: float
    ece_floor: float
    ece_limit: float
    ks: float
    ks_limit: float
    cox: Recalibration

    @property
    def outside(self) -> bool:
        return self.brier > self.brier_limit or self.ece > self.ece_limit or self.ks > self.ks_limit

    def as_json(self) -> dict[str, Any]:
        """JSON's."""
        flat = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "cox"}
        cox = {"intercept": self.cox.intercept.as_json(), "slope": self.cox.slope.as_json()}
        return flat | cox | {"outside": self.outside}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One place as of now. n: labels.  log_over, log_under: the most either log wealth ever was.

    calibrator: id@12 hex digits, "" for the routed whole, whichever calibrators it had: begin anew with a new release.
    """

    policy: str
    tier: str
    n: int
    log_over: float
    log_under: float
    overconfident: bool
    underconfident: bool
    calibrator: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the latest labels of a place say beside what was claimed. n: labels.  claimed: mean p.  right: their share,
    with Wilson's 95 % interval, which is for reading: looked at again and again, it is left now and then by chance.
    """

    n: int
    claimed: float
    right: float
    low: float
    high: float


def seen(p: Floats, right: Floats) -> Seen:
    """p, right: (N,), N >= 1."""
    share = float(right.mean())
    return Seen(p.size, float(p.mean()), share, *wilson(share, p.size))


@dataclass(frozen=True, slots=True)
class ErrorVerdict:
    """Errors among accepted answers against what was promised. low, high: a confidence sequence, valid at every look.

    n: accepted answers of explored traffic, labelled or not.  labels: those with one.
    """

    policy: str
    limit: float
    n: int
    labels: int
    low: float
    high: float

    @property
    def violated(self) -> bool:
        return self.low > self.limit


@dataclass(slots=True, eq=False)
class Honesties:
    """The tests of every place, per policy, tier and calibrator, and per policy. Fed with labels in order of arrival.

    A new calibrator is a new place: late labels count for the one that decided. tolerance: a gap that is no alarm.
    """

    tolerance: float = 0.0
    alpha: float = ALPHA
    _states: dict[tuple[str, str, str], Honesty] = field(default_factory=dict)
    _recent: dict[tuple[str, str, str], deque[tuple[float, float]]] = field(default_factory=dict)

    def note(self, rows: Iterable[Judged]) -> None:
        for row in rows:
            for place in ((row.policy, row.tier, row.calibrator), (row.policy, ROUTED, "")):
                state = self._states.get(place) or Honesty.fresh(self.tolerance)
                self._states[place] = state.after(row.p_correct, float(row.right))
                recent = self._recent.setdefault(place, deque(maxlen=ROLLING))
                recent.append((row.p_correct, float(row.right)))

    def verdicts(self) -> list[Verdict]:
        """In the order in which places were first heard of, so a tier's newest calibrator comes last."""
        return [
            Verdict(
                policy,
                tier,
                state.n,
                float(state.peak_over),
                float(state.peak_under),
                bool(state.overconfident(self.alpha)),
                bool(state.underconfident(self.alpha)),
                calibrator,
            )
            for (policy, tier, calibrator), state in self._states.items()
        ]

    def recent(self, policy: str, tier: str, calibrator: str = "") -> tuple[Floats, Floats]:
        """p and right, (N,) each, of the latest labels of a place."""
        rows = np.array(self._recent.get((policy, tier, calibrator), ()), dtype=np.float64).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]


def rolling(p: Floats, right: Floats, rng: np.random.Generator, draws: int = 500) -> Rolling:
    """The figures of a window, and their limits by drawing labels from p itself. (N,) each, N >= 2.

    Raises ConfigError where SciPy is missing, which a gateway that only serves does not need.
    """
    try:
        from calibrators import scores
    except ImportError as error:
        raise ConfigError(f"rolling scores need SciPy ({error}): pip install 'confidence-gateway[calibrate]'") from None
    chance = (rng.random((draws, p.size)) < p).astype(np.float64)
    briers = scores.brier(p, chance)
    eces = scores.debiased_ece(p, chance)
    errors = scores.ks_ce(p, chance)
    return Rolling(
        int(p.size),
        float(scores.brier(p, right)),
        float(np.quantile(briers, 0.99)),
        float(scores.debiased_ece(p, right)),
        float(np.mean(eces)),
        float(np.quantile(eces, 0.99)),
        float(scores.ks_ce(p, right)),
        float(np.quantile(errors, 0.99)),
        scores.recalibration(p, right),
    )


@dataclass(slots=True, eq=False)
class AcceptedError:
    """The rate of wrong answers among those a policy accepts, on explored traffic, against its objective.

    Every accepted answer that exploring was on for comes in, in order: with 1 / inclusion where it was drawn, labelled
    and wrong, with 0 otherwise (Horvitz and Thompson). So a label that never comes counts as right, and the lower end
    holds however many stay away; the upper end holds only as far as labels do come.
    least_inclusion: no answer was drawn with a smaller probability.
    """

    policy: str
    limit: float
    least_inclusion: float
    alpha: float = ALPHA
    _bound: Bound = field(init=False)
    _labels: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.least_inclusion <= 1:
            raise ConfigError(f"a least inclusion probability lies in (0, 1], got {self.least_inclusion}")
        if not 0 < self.limit < 1:
            raise ConfigError(f"an objective for accepted errors lies in (0, 1), got {self.limit}")
        self._bound = Bound.fresh(1 / self.least_inclusion)

    def note(self, *, inclusion: float, explored: bool, right: bool | None) -> None:
        """One accepted answer. right: None without a label from anybody that is trusted."""
        if inclusion < self.least_inclusion:
            raise ConfigError(f"an answer was drawn with {inclusion}, less than the stated {self.least_inclusion}")
        counted = explored and right is not None
        self._labels += counted
        self._bound = self._bound.after(1 / inclusion if counted and not right else 0.0)

    def verdict(self) -> ErrorVerdict:
        return ErrorVerdict(
            self.policy,
            self.limit,
            self._bound.n,
            self._labels,
            self._bound.low(self.alpha / 2),
            self._bound.high(self.alpha / 2),
        )


@dataclass(frozen=True, slots=True)
class Weighted:
    """A mean of unevenly drawn labels. n: labels.  n_effective: as many even ones would tell as much."""

    value: float
    n: int
    n_effective: float


def self_normalised(values: Floats, inclusion: Floats) -> Weighted:
    """Hajek's mean: each value weighs 1 / inclusion. (N,) each, N >= 1, inclusion in (0, 1]. Science 7.3."""
    if values.size == 0 or values.shape != inclusion.shape or not bool(((inclusion > 0) & (inclusion <= 1)).all()):
        raise ConfigError(f"need one inclusion probability in (0, 1] per value, got {values.shape}, {inclusion.shape}")
    weight = 1 / inclusion
    return Weighted(
        float(values @ weight / weight.sum()), int(values.size), float(weight.sum() ** 2 / (weight**2).sum())
    )


def doubly_robust(p: Floats, right: Floats, explored: Bools, inclusion: Floats) -> float:
    """Accuracy of all answers: what p claims, put right where a label was drawn. (N,) each; right of others is ignored.

    Unbiased whatever p is, and the closer p the less it varies. Science 7.3.
    """
    put_right = np.where(explored, (np.where(explored, right, 0.0) - p) / inclusion, 0.0)
    return float((p + put_right).mean())


def withdrawn(
    certificates: Mapping[str, Certificate], errors: Iterable[ErrorVerdict], honest: Iterable[Verdict], today: dt.date
) -> dict[str, Certificate]:
    """Of the policies whose assumptions labels have broken, the certificate that says so; those withdrawn stay so.

    certificates: by policy. Over-confidence of the routed whole or of a tier withdraws; under-confidence costs money
    and breaks no promise.
    """
    why: dict[str, str] = {}
    for verdict in honest:
        if verdict.overconfident:
            why.setdefault(
                verdict.policy,
                f"{verdict.tier} claims more than {verdict.n:,} labels bear out (log wealth {verdict.log_over:.1f})",
            )
    for error in errors:
        if error.violated:
            why[error.policy] = (
                f"errors among accepted answers are above {error.limit:.2%}: at least {error.low:.2%} "
                f"({error.labels:,} labels)"
            )
    return {
        policy: certificate.model_copy(update={"withdrawn": Withdrawn(since=today, why=why[policy])})
        for policy, certificate in certificates.items()
        if policy in why and certificate.withdrawn is None
    }
