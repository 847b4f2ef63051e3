"""Exponential tilt of slices: the robust default."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Floats, Ints
from calibrators.objectives import base_of, slice_means
from calibrators.objectives.tilt import tilted


@dataclass(frozen=True, slots=True)
class GroupTilt:
    """value = (1/eta) ln sum_g share_g exp(eta L_g), L_g the mean loss of slice g.  weights_i = q_g base_i / share_g.

    eta: per nat, >= 0; 0 is the mean.  Inside a slice every row keeps its own share, so each L_g stays a proper
    score: when only the mix of slices shifts, the optimum stays calibrated (science 3.6). Needs slices.
    """

    eta: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < np.inf:
            raise BadObjective(f"eta must be >= 0 and finite, got {self.eta}")

    def __call__(self, losses: Floats, slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        code, share, mean = slice_means(losses, slices, base)
        value, q = tilted(mean, share, self.eta)
        return value, (q / share)[code] * base
