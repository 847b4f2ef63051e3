"""What a mean over all decisions is, when only some were labelled, each with a known probability.

Everywhere y: (N,), the outcome of each decision, read only where labelled; labelled: (N,) of bool; inclusion: (N,) in
(0, 1], the probability with which that decision was to be labelled, logged when it was drawn. Unbiased as long as
whether a drawn decision got its label does not depend on what the label says. Raises BadSample.
Sources: Horvitz and Thompson 1952; Hajek 1971; the augmented estimator of Robins, Rotnitzky and Zhao 1994.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


class BadSample(ValueError):
    """Arrays that no mean can be estimated from. The message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error. n: decisions.  labelled: of them.  effective: (sum w)^2 / sum w^2."""

    value: float
    standard_error: float
    n: int
    labelled: int
    effective: float

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.standard_error:.4f} ({self.labelled} of {self.n} labelled)"


def horvitz_thompson(y: Floats, labelled: Bools, inclusion: Floats) -> Estimate:
    """sum(y / e) over the labelled, by N. Unbiased; its error grows with the mean itself, so prefer `hajek`."""
    weights = checked(y, labelled, inclusion)
    terms = np.where(labelled, y, 0.0) * weights
    # Poisson sampling: Var = sum over all of (1 - e) y^2 / e, estimated from the labelled by one more 1 / e
    variance = float((terms**2 * (1 - inclusion)).sum()) / y.size**2
    return _estimate(float(terms.mean()), variance, labelled, weights)


def hajek(y: Floats, labelled: Bools, inclusion: Floats) -> Estimate:
    """sum(y / e) by sum(1 / e), both over the labelled: the default. Exact where y is constant."""
    weights = checked(y, labelled, inclusion)
    total = float(weights.sum())
    value = float((np.where(labelled, y, 0.0) * weights).sum()) / total
    residual = np.where(labelled, y - value, 0.0) * weights
    variance = float((residual**2 * (1 - inclusion)).sum()) / total**2
    return _estimate(value, variance, labelled, weights)


def doubly_robust(y: Floats, labelled: Bools, inclusion: Floats, expected: Floats) -> Estimate:
    """mean(p + 1{labelled} (y - p) / e). expected: (N,), what y is expected to be, say the calibrated probability.

    Unbiased whatever `expected` is; the better it is, the smaller the error. The error includes that of the N decisions
    themselves, unlike the other two.
    """
    weights = checked(y, labelled, inclusion)
    if expected.shape != y.shape or not bool(np.isfinite(expected).all()):
        raise BadSample(f"need finite expectations of shape {y.shape}, got {expected.shape}")
    terms = expected + (np.where(labelled, y, 0.0) - np.where(labelled, expected, 0.0)) * weights
    variance = float(terms.var(ddof=1)) / y.size if y.size > 1 else float("inf")
    return _estimate(float(terms.mean()), variance, labelled, weights)


Z = 1.959963984540054  # of a normal's central 95 %


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927). n > 0: draws, of uneven ones as many as even ones would tell as much.

    `scores.wilson` is for any level, and takes SciPy, which a serving gateway does not have.
    """
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def checked(y: Floats, labelled: Bools, inclusion: Floats) -> Floats:
    """Weights (N,): 1 / e where labelled, else 0."""
    if y.ndim != 1 or y.size == 0 or labelled.shape != y.shape or inclusion.shape != y.shape:
        raise BadSample(f"need three arrays of shape (N,), N >= 1; got {y.shape}, {labelled.shape}, {inclusion.shape}")
    if not bool(((inclusion > 0) & (inclusion <= 1)).all()):
        raise BadSample("inclusion probabilities must lie in (0, 1]; what is 0 can never be told")
    if not bool(labelled.any()):
        raise BadSample("nothing is labelled yet")
    if not bool(np.isfinite(y[labelled]).all()):
        raise BadSample("the outcome of a labelled decision is not finite")
    return np.where(labelled, 1.0 / inclusion, 0.0)


def _estimate(value: float, variance: float, labelled: Bools, weights: Floats) -> Estimate:
    effective = float(weights.sum()) ** 2 / float((weights**2).sum())
    return Estimate(value, variance**0.5, labelled.size, int(labelled.sum()), effective)
