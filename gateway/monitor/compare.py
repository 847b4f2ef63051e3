"""A new calibrator against the one in service, on the same labelled answers, at every look.

Each answer gives three differences, new minus old, all harm where above 0: squared error of p, accepted and wrong, and
cost as a share of the dearest way. Each is a bet both ways; science 7.4. Where nobody knows whether an answer was
right, a difference lies between two ends, and every bet is paid by the end that is against it: it can only win less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from calibrators.sampling import Z
from gateway.monitor.betting import Wealth
from gateway.nouns import Floats

ALPHA = 0.05  # promote when the 95 % confidence sequence excludes harm; science 7.4
MEASURES = ("brier", "accepted_wrong", "cost")


@dataclass(frozen=True, slots=True)
class Margins:
    """Harm that is still none, per measure. brier 0: the new one has to be proven better, not just no worse.

    accepted_wrong: as a share of answers; where nothing differs at all, excluding .02 takes 370 labels, .01 twice that.
    cost: as a share of what the dearest way costs.
    """

    brier: float = 0.0
    accepted_wrong: float = 0.02
    cost: float = 0.05


@dataclass(frozen=True, slots=True)
class Told:
    """What a calibrator makes of one answer whose rightness is known. cost: in [0, 1], of the dearest way."""

    p_correct: float
    accepted: bool
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class Paired:
    """rows: answers of which both calibrators' verdicts are known.  n: of them, those known to be right or wrong.

    Arrays are by MEASURES, (3,).
    safe: wealth against "harm of at least the margin".  harmful: against "harm of at most the margin".
    least, most: sums of the differences, which are the same where everything is known; and of their squares.
    """

    margins: Margins
    safe: Wealth = field(default_factory=lambda: Wealth.fresh((3,)))
    harmful: Wealth = field(default_factory=lambda: Wealth.fresh((3,)))
    n: int = 0
    least: Floats = field(default_factory=lambda: np.zeros(3))
    most: Floats = field(default_factory=lambda: np.zeros(3))
    least_squares: Floats = field(default_factory=lambda: np.zeros(3))
    most_squares: Floats = field(default_factory=lambda: np.zeros(3))

    @property
    def rows(self) -> int:
        return self.safe.n

    @property
    def mean(self) -> dict[str, tuple[float, float]]:
        """Between what the differences so far lie, new minus old, by measure; empty without any."""
        if not self.rows:
            return {}
        ends = ((end / self.rows).tolist() for end in (self.least, self.most))
        return {name: (low, high) for name, low, high in zip(MEASURES, *ends, strict=True)}

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """`mean` with its 95 % error, for people: it holds for one look, and proves nothing. Empty below two rows."""
        if self.rows < 2:
            return {}
        ends = []
        for side, total, squares in ((-1, self.least, self.least_squares), (1, self.most, self.most_squares)):
            mean = total / self.rows
            variance = np.maximum(squares - self.rows * mean**2, 0.0) / (self.rows - 1)
            ends.append((mean + side * Z * np.sqrt(variance / self.rows)).tolist())
        return {name: (low, high) for name, low, high in zip(MEASURES, *ends, strict=True)}

    def after(self, *, old: Told, new: Told, right: bool | None) -> Paired:
        """right: None where it is not known."""
        ends = np.array([harm(old, new, right=one) for one in ((True, False) if right is None else (right,))])
        least, most = ends.min(axis=0), ends.max(axis=0)
        margin = np.array([self.margins.brier, self.margins.accepted_wrong, self.margins.cost])
        return Paired(
            self.margins,
            self.safe.after(margin - most, 1 - margin),
            self.harmful.after(least - margin, 1 + margin),
            self.n + (right is not None),
            self.least + least,
            self.most + most,
            self.least_squares + least**2,
            self.most_squares + most**2,
        )

    def safe_in(self, alpha: float = ALPHA) -> frozenset[str]:
        """Measures in which harm beyond the margin is excluded. All three are needed, so each may have all of alpha."""
        return frozenset(np.array(MEASURES)[self.safe.log >= np.log(1 / alpha)].tolist())

    def harmful_in(self, alpha: float = ALPHA) -> frozenset[str]:
        """Measures in which harm beyond the margin is proven. One is enough, so each has a third of alpha."""
        return frozenset(np.array(MEASURES)[self.harmful.log >= np.log(3 / alpha)].tolist())


def harm(old: Told, new: Told, *, right: bool) -> Floats:
    """(3,), by MEASURES, in [-1, 1]."""
    return np.array(
        [
            (new.p_correct - right) ** 2 - (old.p_correct - right) ** 2,
            (not right) * (float(new.accepted) - float(old.accepted)),
            np.clip(new.cost - old.cost, -1.0, 1.0),
        ]
    )


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """One trial, looked at in one or more ways. Each has its share of alpha, so what any of them proves is proven."""

    views: tuple[Paired, ...]

    @property
    def n(self) -> int:
        """Labels that say whether an answer was right of which both verdicts are known."""
        return max(view.n for view in self.views)

    @property
    def widest(self) -> Paired:
        """The view with the most rows, for telling."""
        return max(self.views, key=lambda view: view.rows)

    def safe_in(self, alpha: float = ALPHA) -> tuple[str, ...]:
        return self._any([view.safe_in(alpha / len(self.views)) for view in self.views])

    def harmful_in(self, alpha: float = ALPHA) -> tuple[str, ...]:
        return self._any([view.harmful_in(alpha / len(self.views)) for view in self.views])

    def _any(self, found: Sequence[frozenset[str]]) -> tuple[str, ...]:
        return tuple(name for name in MEASURES if any(name in one for one in found))
