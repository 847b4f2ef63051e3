"""The self-normalised tilt of the released code: only to reproduce the paper. Use `tilt`, or better `group_tilt`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrators.base import BadObjective, Floats, Ints
from calibrators.objectives import base_of
from calibrators.objectives.tilt import tilted


@dataclass(frozen=True, slots=True)
class TiltSelfnorm:
    """value J = sum_i w_i loss_i with w = the tilt's weights, differentiated through w: w_i (1 + eta (loss_i - J)).

    The weights sum to 1 but are NEGATIVE for every loss below J - 1/eta: the fit is paid to make easy examples worse,
    and J is not convex. J = tilt value + KL(w | base)/eta, so it is no KL-DRO objective and values at different eta do
    not compare.  After arXiv:2606.20544's repository (calibrated_moe), where the softmax is not detached; science 3.2.
    """

    eta: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta < np.inf:
            raise BadObjective(f"eta must be >= 0 and finite, got {self.eta}")

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        _, softmax = tilted(losses, base_of(losses, base), self.eta)
        value = float(softmax @ losses)
        return value, softmax * (1 + self.eta * (losses - value))
