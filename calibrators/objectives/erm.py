"""Empirical risk: the plain mean. The row every other objective is compared with."""

from __future__ import annotations

from dataclasses import dataclass

from calibrators.base import Floats, Ints
from calibrators.objectives import base_of


@dataclass(frozen=True, slots=True)
class Erm:
    """value = sum_i base_i loss_i; weights = base, whatever the losses."""

    def __call__(self, losses: Floats, _slices: Ints | None = None, base: Floats | None = None) -> tuple[float, Floats]:
        base = base_of(losses, base)
        return float(base @ losses), base
