"""Minimise a smooth function of a few parameters, in float64, to a gradient norm under 1e-6, or say that it failed.

Fits here are small (at most some tens of parameters, thousands of rows), so every one is full batch and by Newton's
method: a first-order optimiser stopped after a fixed number of steps returns a temperature of 1.20 where 2.53 is right
(science 3.4), and nothing tells.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibrators.base import Bools, Floats, NotConverged

GRADIENT_LIMIT = 1e-6  # what convergence means (science 2.3)
GRADIENT_GOAL = 1e-10  # what is tried for: the last Newton step squares the error and costs little
CURVATURE_MIN = 1e-9  # flatter than this, and the minimum is not one point: it lies at infinity or along a line
STEP_MAX = 20.0  # in logits; longer first steps leave the region where a logistic loss has any curvature

ValueAndGradient = Callable[[Floats], tuple[float, Floats]]


def newton(
    value_and_gradient: ValueAndGradient,
    start: Floats,
    *,
    lower: Floats | None = None,
    upper: Floats | None = None,
    max_steps: int = 200,
) -> Floats:
    """The minimiser, (P,), between the bounds. Raises NotConverged, also when the minimum is flat, as for separable
    classes or collinear features without ridge.

    value_and_gradient: theta (P,) -> (value, gradient (P,)); it must be defined a little outside the bounds too.
    Newton steps with backtracking; the Hessian is a central difference of the gradient, so that any objective works
    without writing its second derivative, and negative curvature is turned around, so that a non-convex objective
    goes downhill as well. Bounds: projected Newton (Bertsekas 1982), converged when the free gradient vanishes.
    """
    lower = np.full(start.shape, -np.inf) if lower is None else lower
    upper = np.full(start.shape, np.inf) if upper is None else upper
    theta, softest = np.clip(start.astype(np.float64), lower, upper), np.inf
    value, gradient = value_and_gradient(theta)
    for step in range(max_steps):
        free = ~(((theta <= lower) & (gradient > 0)) | ((theta >= upper) & (gradient < 0)))
        left = float(np.linalg.norm(gradient[free]))
        if left < GRADIENT_GOAL:
            return _unless_flat(theta, softest)
        direction, softest = _direction(value_and_gradient, theta, gradient, free)
        taken = _backtrack(value_and_gradient, theta, value, gradient, direction, lower, upper)
        if taken is None or (left < GRADIENT_LIMIT and np.linalg.norm(taken[2][free]) >= left):
            if left < GRADIENT_LIMIT:
                return _unless_flat(theta, softest)  # rounding hides any further descent
            raise NotConverged(
                f"no descent after {step} Newton steps, gradient norm {left:.2g} (need {GRADIENT_LIMIT:g})"
            )
        theta, value, gradient = taken
    raise NotConverged(f"gradient norm still {left:.2g} after {max_steps} Newton steps (need {GRADIENT_LIMIT:g})")


def brent(value: Callable[[float], float], low: float, high: float) -> float:
    """The minimiser, to 1e-8, of a function with one valley in [low, high]. Raises NotConverged, also at an edge."""
    from scipy.optimize import minimize_scalar  # a serving gateway has no SciPy

    found = minimize_scalar(value, bounds=(low, high), method="bounded", options={"xatol": 1e-9, "maxiter": 500})
    if not found.success:
        raise NotConverged(f"Brent's method stopped after {found.nit} steps: {found.message}")
    if min(found.x - low, high - found.x) < 1e-3 * (high - low):
        raise NotConverged(f"no minimum inside ({low:.3g}, {high:.3g}); it runs to the edge at {found.x:.3g}")
    return float(found.x)


def _unless_flat(theta: Floats, softest: float) -> Floats:
    if softest < CURVATURE_MIN:
        raise NotConverged(
            f"the minimum is flat (curvature {softest:.2g}) and would be arbitrary: classes are separable, "
            "or features are copies of each other; use ridge > 0, or drop features"
        )
    return theta


def _direction(f: ValueAndGradient, theta: Floats, gradient: Floats, free: Bools) -> tuple[Floats, float]:
    """(Newton's descent direction (P,), 0 where not free; the smallest absolute curvature)."""
    where = np.flatnonzero(free)
    hessian = np.empty((len(where), len(where)))
    for row, j in enumerate(where):
        ahead, behind = theta.copy(), theta.copy()
        width = 1e-5 * (1.0 + abs(theta[j]))
        ahead[j] += width
        behind[j] -= width
        hessian[row] = (f(ahead)[1] - f(behind)[1])[where] / (2 * width)
    curvature, axes = np.linalg.eigh((hessian + hessian.T) / 2)
    curvature = np.abs(curvature)
    softest = float(curvature.min())
    curvature = np.maximum(curvature, 1e-8 * curvature.max() + 1e-12)
    direction = np.zeros_like(theta)
    direction[where] = -axes @ ((axes.T @ gradient[where]) / curvature)
    length = float(np.linalg.norm(direction))
    return direction * min(1.0, STEP_MAX / max(length, 1e-300)), softest


def _backtrack(
    f: ValueAndGradient,
    theta: Floats,
    value: float,
    gradient: Floats,
    direction: Floats,
    lower: Floats,
    upper: Floats,
) -> tuple[Floats, float, Floats] | None:
    """The first of the steps 1, 1/2, 1/4, ... with enough descent (Armijo), as (theta, value, gradient)."""
    slack = 1e-14 * (1.0 + abs(value))  # near the minimum descent is smaller than rounding
    for halvings in range(30):
        trial = np.clip(theta + direction * 0.5**halvings, lower, upper)
        trial_value, trial_gradient = f(trial)
        if trial_value <= value + 1e-4 * float(gradient @ (trial - theta)) + slack:
            return trial, trial_value, trial_gradient
    return None
