"""Conditional value at risk: the mean of the worst share, as a comparator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Floats, Ints
from calibrators.objectives import base_of


@dataclass(frozen=True, slots=True)
class Cvar:
    """value = mean of the worst `alpha` of the losses = sup over weights <= base/alpha, its corner rounded.

    alpha: in (0, 1]; 1 is the mean.  On log-loss it degenerates to "always 0.5" (science 3.3): for Brier or regret.
    sharpness: per nat. The supremum pays KL(w | base)/sharpness, at most ln(1/alpha)/sharpness (0.0012 nats at
    alpha = 0.3), because the bare CVaR has no gradient where losses tie at its quantile, which is where its minimum is.
    Rockafellar and Uryasev 2000.
    """

    alpha: float = 0.3
    sharpness: float = 1000.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha <= 1 and 0 < self.sharpness < np.inf):
            raise BadObjective(f"need alpha in (0, 1] and sharpness > 0, got {self.alpha} and {self.sharpness}")

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        order = np.argsort(-losses, kind="stable")
        weights = np.empty_like(base)
        weights[order] = self._capped(losses[order], base[order])
        used = weights > 0
        price = float(weights[used] @ np.log(weights[used] / base[used])) / self.sharpness
        return float(weights @ losses) - price, weights

    def _capped(self, falling: Floats, base: Floats) -> Floats:
        """min(base/alpha, c base exp(sharpness loss)) for falling losses, with the c that makes them sum to 1.

        The number k of capped rows is the smallest whose c leaves row k below its cap.
        """
        before = np.concatenate([[0.0], np.cumsum(base)[:-1]]) / self.alpha  # mass of the k worst, all at their cap
        possible = before < 1 - 1e-12
        pivot = falling[possible][
            -1
        ]  # the loss at the alpha-quantile: exponents from here on neither vanish nor overflow
        height = np.exp(np.clip(self.sharpness * (falling - pivot), -700.0, 700.0))
        rest = np.cumsum((base * height)[::-1])[::-1]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            fits = possible & ((1 - before) / rest * height <= (1 + 1e-12) / self.alpha)
        k = int(fits.argmax()) if fits.any() else int(possible.sum()) - 1
        weights = base / self.alpha
        weights[k:] = base[k:] * height[k:] * ((1 - before[k]) / rest[k])
        return weights
