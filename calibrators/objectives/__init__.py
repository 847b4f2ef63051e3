"""What a fit minimises: from the losses of the rows to one value. One objective per file; the file's name is its name.

An objective file exports a frozen dataclass called like the file in CamelCase, whose fields are its parameters:

    objective(losses (N,), slices (N,) or None, base (N,) or None) -> (value, weights (N,))

losses: nats (or squared error), >= 0 and finite.  slices: whole numbers >= 0.  base: the empirical distribution, >= 0,
summing to 1; None means 1/N each.  weights: d value / d losses, exactly; >= 0 and summing to 1, so that a fit is a
weighted fit whose weights follow the losses. (`tilt_selfnorm` alone breaks this, and says so.) Full batch always: a
minibatch softmax makes the answer depend on the batch size.

In configurations an objective is written as its name, with parameters in brackets: `erm`, `group_tilt(eta=3)`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from typing import Any, Protocol

import numpy as np

from calibrators.base import BadObjective, BadSlices, Floats, Ints

SPEC = re.compile(r"^(?P<name>[a-z][a-z0-9_]*)(?:\((?P<params>[^()]*)\))?$")


class Objective(Protocol):
    """losses (N,) -> value, and the exact derivative of the value by each loss."""

    def __call__(
        self, losses: Floats, slices: Ints | None = None, base: Floats | None = None, /
    ) -> tuple[float, Floats]: ...


def names() -> list[str]:
    """Every objective there is: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(spec: str) -> Objective:
    """The objective a spec names. Raises BadObjective that lists the right names, or the right parameters."""
    match = SPEC.match(spec.replace(" ", ""))
    if match is None or match["name"] not in names():
        raise BadObjective(f"no objective {spec!r}; have {', '.join(names())}")
    name = match["name"]
    kind: Any = getattr(importlib.import_module(f"{__name__}.{name}"), "".join(p.title() for p in name.split("_")))
    fields = {f.name: f for f in dataclasses.fields(kind)}
    bound_to_rows = [f.name for f in fields.values() if f.default is dataclasses.MISSING]
    if bound_to_rows:
        raise BadObjective(f"{name} needs {', '.join(bound_to_rows)} of each row; build it in Python")
    objective: Objective = kind(**_read_params(spec, match["params"] or "", set(fields)))
    return objective


def effective_share(weights: Floats) -> float:
    """Effective sample size over N, in (0, 1]: 1 for equal weights, 1/N when one row carries everything."""
    return float(weights.sum() ** 2 / (weights @ weights) / len(weights))


def base_of(losses: Floats, base: Floats | None) -> Floats:
    """The given distribution over rows, or 1/N each. Raises BadObjective when losses are not finite numbers (N,)."""
    if losses.ndim != 1 or losses.size == 0 or not bool(np.isfinite(losses).all()):
        raise BadObjective(f"need finite losses of shape (N >= 1,), got {losses.shape}")
    if base is None:
        return np.full(losses.shape, 1.0 / losses.size)
    if base.shape != losses.shape:
        raise BadObjective(f"{losses.size} losses but base weights of shape {base.shape}")
    return base


def slice_means(losses: Floats, slices: Ints | None, base: Floats) -> tuple[Ints, Floats, Floats]:
    """(slice number of each row (N,), share of each slice (G,), mean loss of each slice (G,)), empty slices left out.

    Raises BadSlices when there are none.
    """
    if slices is None:
        raise BadSlices("this objective works on slices; give FitData.slices, for example question-length terciles")
    if slices.shape != losses.shape:
        raise BadSlices(f"{losses.size} losses but slices of shape {slices.shape}")
    _, code = np.unique(np.where(base > 0, slices, slices[base > 0][0]), return_inverse=True)
    share = np.bincount(code, base).astype(np.float64)
    return code.astype(np.int64), share, np.bincount(code, base * losses) / share


def _read_params(spec: str, text: str, known: set[str]) -> dict[str, float]:
    params: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if key not in known or not equals:
            raise BadObjective(f"objective {spec!r} has no parameter {key!r}; it takes: {', '.join(known) or 'none'}")
        try:
            params[key] = float(value)
        except ValueError:
            raise BadObjective(f"objective {spec!r}: {key} must be a number, got {value!r}") from None
    return params
