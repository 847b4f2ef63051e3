"""A new calibrator against the one in service, on the same labelled answers, at every look.

Each answer gives three differences, new minus old, all harm where above 0: squared error of p, accepted and wrong, and
cost as a share of the dearest way. Each is a bet both ways; science 7.4.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from gateway.monitor.betting import Wealth

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
    """n: labelled answers of which both calibrators' verdicts are known. Arrays are by MEASURES, (3,).

    safe: wealth against "harm of at least the margin".  harmful: against "harm of at most the margin".
    """

    margins: Margins
    safe: Wealth = field(default_factory=lambda: Wealth.fresh((3,)))
    harmful: Wealth = field(default_factory=lambda: Wealth.fresh((3,)))
    total: tuple[float, ...] = (0.0, 0.0, 0.0)

    @property
    def n(self) -> int:
        return self.safe.n

    @property
    def mean(self) -> dict[str, float]:
        """Differences so far, new minus old, by measure; empty without any."""
        return dict(zip(MEASURES, (each / self.n for each in self.total), strict=True)) if self.n else {}

    def after(self, *, old: Told, new: Told, right: bool) -> Paired:
        wrong = float(not right)
        harm = np.array(
            [
                (new.p_correct - right) ** 2 - (old.p_correct - right) ** 2,
                wrong * (new.accepted - old.accepted),
                np.clip(new.cost - old.cost, -1.0, 1.0),
            ]
        )
        margin = np.array([self.margins.brier, self.margins.accepted_wrong, self.margins.cost])
        return Paired(
            self.margins,
            self.safe.after(margin - harm, 1 - margin),
            self.harmful.after(harm - margin, 1 + margin),
            tuple(float(each) for each in np.array(self.total) + harm),
        )

    def safe_in(self, alpha: float = ALPHA) -> tuple[str, ...]:
        """Measures in which harm beyond the margin is excluded. All three are needed, so each may have all of alpha."""
        return tuple(np.array(MEASURES)[self.safe.log >= np.log(1 / alpha)].tolist())

    def harmful_in(self, alpha: float = ALPHA) -> tuple[str, ...]:
        """Measures in which harm beyond the margin is proven. One is enough, so each has a third of alpha."""
        return tuple(np.array(MEASURES)[self.harmful.log >= np.log(3 / alpha)].tolist())
