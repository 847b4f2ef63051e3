"""The worst slice: group distributionally robust optimisation, as a comparator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Floats, Ints
from calibrators.objectives import base_of, slice_means
from calibrators.objectives.tilt import tilted


@dataclass(frozen=True, slots=True)
class GroupDro:
    """value = max_g L_g + adjust / sqrt(n_g), with the corner of the maximum rounded.

    adjust: C of Sagawa et al. 2020, arXiv:1911.08731: a slice of few rows fits its noise, so it is told to do better.
    sharpness: per nat. The maximum is the limit of sup_q q.L - KL(q | uniform)/sharpness, at most ln G / sharpness
    (0.002 nats for 8 slices) under it; a bare maximum has no gradient at its own solution, where slices tie, and the
    fit could never assert that it converged. WILDS instead walks q by exponentiated steps and stops somewhere.
    Needs slices.
    """

    adjust: float = 0.0
    sharpness: float = 1000.0

    def __post_init__(self) -> None:
        if not (0 <= self.adjust < np.inf and 0 < self.sharpness < np.inf):
            raise BadObjective(f"need adjust >= 0 and sharpness > 0, got {self.adjust} and {self.sharpness}")

    def __call__(self, losses: Floats, slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        code, share, mean = slice_means(losses, slices, base)
        adjusted = mean + self.adjust / np.sqrt(np.bincount(code, base > 0))
        value, q = tilted(adjusted, np.full(len(share), 1 / len(share)), self.sharpness)
        return value, (q / share)[code] * base
