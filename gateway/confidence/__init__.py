"""From a token trace to confidence features. One feature per file; the file's name is the feature's name.

A feature file exports

    NEEDS = Needs(...)                                   # what the engine must report for it
    def feature(evidence: Evidence, *, window: int = 32) -> float

A feature is written in configurations and artefacts as its name, with the parameters that differ from the defaults in
brackets: `lp_mean`, `lp_tail(window=16)`, `deepconf_bottom(k=5,window=64)`. A parameter called `k` is the number of
candidates per token that the engine has to report. NaN means "not defined for this answer" (say, no final number in
it); the calibrator's missing-value policy decides what that is worth.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gateway.errors import BadTrace, ConfigError
from gateway.nouns import Evidence, Features

SPEC = re.compile(r"^(?P<name>[a-z][a-z0-9_]*)(?:\((?P<params>[^()]*)\))?$")


@dataclass(frozen=True, slots=True)
class Needs:
    """What a feature reads beyond the chosen tokens' log-probs.

    top_k: candidates per token.  signals: arrays only an engine can compute.  tokens: the tokens' bytes.
    earlier: the answers of the tiers tried before.
    """

    top_k: int = 0
    signals: tuple[str, ...] = ()
    tokens: bool = False
    earlier: bool = False

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            max(self.top_k, other.top_k),
            tuple(sorted({*self.signals, *other.signals})),
            self.tokens or other.tokens,
            self.earlier or other.earlier,
        )


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature with its parameters bound. `spec` is its canonical spelling."""

    spec: str
    needs: Needs
    measure: Callable[[Evidence], float]


def names() -> list[str]:
    """Every feature there is: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


@lru_cache(maxsize=1024)
def find(spec: str) -> Feature:
    """The feature a spec names. Raises ConfigError that lists the right names, or the right parameters."""
    match = SPEC.match(spec.replace(" ", ""))
    if match is None:
        raise ConfigError(f"cannot read feature {spec!r}; write name or name(parameter=number)")
    name = match["name"]
    if name not in names():
        raise ConfigError(f"no feature {name!r}; have {', '.join(names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    function: Callable[..., float] = module.feature
    defaults = _defaults(function)
    given = _read_params(spec, match["params"] or "", defaults)
    bound = {**defaults, **given}
    needs: Needs = module.NEEDS
    if "k" in bound:
        needs = needs | Needs(top_k=int(bound["k"]))
    told = ",".join(f"{key}={value:g}" for key, value in sorted(given.items()) if value != defaults[key])
    return Feature(f"{name}({told})" if told else name, needs, lambda evidence: float(function(evidence, **bound)))


def needs(specs: Iterable[str]) -> Needs:
    """What an engine must report so that all these features can be measured."""
    total = Needs()
    for spec in specs:
        total |= find(spec).needs
    return total


def measure(specs: Iterable[str], evidence: Evidence) -> Features:
    """Measure the named features on one answer. Raises BadTrace when the trace lacks what a feature needs."""
    found = [find(spec) for spec in specs]
    for feature in found:
        _check_needs(feature, evidence)
    values = np.array([feature.measure(evidence) for feature in found], dtype=np.float64)
    if bool(np.isinf(values).any()):
        raise BadTrace(f"infinite: {', '.join(f.spec for f, v in zip(found, values, strict=True) if np.isinf(v))}")
    return Features(tuple(feature.spec for feature in found), values)


def _check_needs(feature: Feature, evidence: Evidence) -> None:
    trace, wants = evidence.trace, feature.needs
    have_k = 0 if trace.top is None else trace.top.shape[1]
    if wants.top_k > have_k:
        raise BadTrace(f"{feature.spec} needs the {wants.top_k} most likely tokens, the engine reported {have_k}")
    missing = [name for name in wants.signals if name not in trace.signals]
    if missing:
        raise BadTrace(f"{feature.spec} needs the engine's {', '.join(missing)}")
    if wants.tokens and not trace.tokens:
        raise BadTrace(f"{feature.spec} needs the tokens' texts, the engine reported none")


def _defaults(function: Callable[..., float]) -> Mapping[str, float]:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p.default for p in parameters}


def _read_params(spec: str, text: str, defaults: Mapping[str, float]) -> dict[str, float]:
    params: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if key not in defaults or not equals:
            right = ", ".join(sorted(defaults)) or "none"
            raise ConfigError(f"feature {spec!r} has no parameter {key!r}; it takes: {right}")
        try:
            params[key] = type(defaults[key])(value)
        except ValueError:
            raise ConfigError(f"feature {spec!r}: {key} must be a number, got {value!r}") from None
    return params
