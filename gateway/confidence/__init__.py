"""From a token trace to confidence features. One feature per file; the file's name is the feature's name.

A feature file exports

    NEEDS = Needs(...)                                   # what the engine must report for it
    HIGHER = Higher.SURER                                # what a larger value means
    def feature(evidence: Evidence, *, window: int = 32) -> float

and the function's docstring holds a sentence and the lines `Formula:`, `Unit:`, `Undefined:`, `Source:`, from which
`python -m gateway.confidence` writes docs/features.md.

A feature is written in configurations and artefacts as its name, with the parameters that differ from the defaults in
brackets: `lp_mean`, `lp_tail(window=16)`, `deepconf_bottom(k=5,window=64)`. A parameter called `k` is the number of
candidates per token that the engine has to report. NaN means "not defined for this answer" (say, no final number in
it, or no earlier tier); the calibrator's missing-value policy decides what that is worth.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache, partial

import numpy as np

from gateway.confidence import _summary
from gateway.confidence._cut import cut_after_answer, first_tokens
from gateway.errors import BadTrace, ConfigError
from gateway.nouns import Evidence, Features, Summed

__all__ = [
    "Feature",
    "Higher",
    "Needs",
    "cut_after_answer",
    "find",
    "first_tokens",
    "measure",
    "names",
    "needs",
    "window",
]

SPEC = re.compile(r"^(?P<name>[a-z][a-z0-9_]*)(?:\((?P<params>[^()]*)\))?$")

WINDOW, MOST_WINDOW = 32, 4096  # tokens in a group: where no feature says, and the most that our plugin sums up

# Inclusive. Names of parameters mean the same in every feature; a parameter not listed here takes any finite number.
RANGES: Mapping[str, tuple[float, float]] = {
    "k": (1, math.inf),
    "window": (1, math.inf),
    "back": (1, math.inf),
    "share": (0, 1),  # at least one value is always kept, so 0 is the minimum
    "q": (0, 1),
}


class Higher(StrEnum):
    """What a larger value of a feature says about the answer; sign-constrained calibrators hold to it."""

    SURER = "surer"
    DOUBTFUL = "less sure"
    EITHER = "depends on the model"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a feature reads beyond the chosen tokens' log-probs.

    top_k: candidates per token.  signals: arrays only an engine can compute.  tokens: the tokens' bytes.
    earlier: the answers of the tiers tried before; where there is none the feature is NaN, not an error.
    stand_ins: arrays of an engine's own which, all present, make candidates unnecessary.
    """

    top_k: int = 0
    signals: tuple[str, ...] = ()
    tokens: bool = False
    earlier: bool = False
    stand_ins: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        return Needs(
            max(self.top_k, other.top_k),
            tuple(sorted({*self.signals, *other.signals})),
            self.tokens or other.tokens,
            self.earlier or other.earlier,
            tuple(sorted({*self.stand_ins, *other.stand_ins})),
        )


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature with its parameters bound. `spec` is its canonical spelling.

    read: from an engine's own summary of an answer; None where that does not tell it.
    """

    spec: str
    needs: Needs
    higher: Higher
    measure: Callable[[Evidence], float]
    bound: Mapping[str, float]
    read: Callable[[Summed], float] | None


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
    told = ",".join(f"{key}={_spell(value)}" for key, value in sorted(given.items()) if value != defaults[key])
    return Feature(
        f"{name}({told})" if told else name,
        _bind_needs(module.NEEDS, bound),
        module.HIGHER,
        partial(function, **bound),
        bound,
        _summary.reader(name, function, bound),
    )


def needs(specs: Iterable[str]) -> Needs:
    """What an engine must report so that all these features can be measured."""
    total = Needs()
    for spec in specs:
        total |= find(spec).needs
    return total


def window(specs: Iterable[str]) -> int:
    """Of how many tokens an engine's groups must be for its summary of an answer to tell all these features; 0 where no
    summary does."""
    features = [find(spec) for spec in specs]
    if any(feature.read is None for feature in features):
        return 0
    windows = {int(feature.bound["window"]) for feature in features if "window" in feature.bound} or {WINDOW}
    return min(windows) if len(windows) == 1 and min(windows) <= MOST_WINDOW else 0


def measure(specs: Iterable[str], evidence: Evidence | Summed) -> Features:
    """Measure the named features on one answer, in the order given. values: (F,), NaN where undefined, never infinite.

    Raises BadTrace when the trace, or the engine's summary, lacks what a feature needs, ConfigError on a wrong name.
    """
    found = _find_all(tuple(specs))
    if isinstance(evidence, Summed):
        summary = evidence.summary
        values = [read(evidence) for read in _readers(found, summary.k, summary.window)]
    else:
        trace = evidence.trace
        _check_needs(found, 0 if trace.top is None else trace.top.shape[1], tuple(trace.signals), bool(trace.tokens))
        values = [measure(evidence) for measure in found.measures]
    if any(map(math.isinf, values)):
        raise BadTrace(f"infinite: {', '.join(n for n, v in zip(found.names, values, strict=True) if math.isinf(v))}")
    return Features(found.names, np.array(values, dtype=np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Features that are measured together. demanding: those that need more than the chosen tokens."""

    features: tuple[Feature, ...]
    names: tuple[str, ...]
    measures: tuple[Callable[[Evidence], float], ...]
    demanding: tuple[Feature, ...]


@lru_cache(maxsize=256)
def _find_all(specs: tuple[str, ...]) -> _Found:
    found = tuple(find(spec) for spec in specs)
    return _Found(
        found,
        tuple(feature.spec for feature in found),
        tuple(feature.measure for feature in found),
        tuple(feature for feature in found if feature.needs != Needs()),
    )


@lru_cache(maxsize=1024)  # traces of one engine have the same things in them
def _check_needs(found: _Found, have_k: int, signals: tuple[str, ...], tokens: bool) -> None:
    """Raises BadTrace for what a trace lacks. have_k, signals, tokens: what it has."""
    for feature in found.demanding:
        wants = feature.needs
        stood_in = bool(wants.stand_ins) and all(name in signals for name in wants.stand_ins)
        if wants.top_k > have_k and not stood_in:
            raise BadTrace(f"{feature.spec} needs the {wants.top_k} most likely tokens, the engine reported {have_k}")
        missing = [name for name in wants.signals if name not in signals]
        if missing:
            raise BadTrace(f"{feature.spec} needs the engine's {', '.join(missing)}")
        if wants.tokens and not tokens:
            raise BadTrace(f"{feature.spec} needs the tokens' texts, the engine reported none")


@lru_cache(maxsize=1024)  # summaries of one engine are made alike
def _readers(found: _Found, k: int, window: int) -> tuple[Callable[[Summed], float], ...]:
    """Raises BadTrace for what a summary lacks. k, window: what it was made with."""
    readers = []
    for feature in found.features:
        if feature.read is None:
            raise BadTrace(f"{feature.spec} needs the numbers of every token, the engine told its summary alone")
        for name, have in (("k", k), ("window", window)):
            want = feature.bound.get(name, have)
            if want != have:
                raise BadTrace(f"{feature.spec} needs a {name} of {want:g}, the engine's summary was made with {have}")
        readers.append(feature.read)
    return tuple(readers)


def _bind_needs(needs: Needs, bound: Mapping[str, float]) -> Needs:
    """A parameter k is the number of candidates; a stand-in's name may depend on it."""
    top_k = max(needs.top_k, int(bound.get("k", 0)))
    return replace(needs, top_k=top_k, stand_ins=tuple(name.format_map(bound) for name in needs.stand_ins))


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
        if key in params:
            raise ConfigError(f"feature {spec!r} gives {key} twice")
        params[key] = _read_number(spec, key, value, type(defaults[key]))
    return params


def _read_number(spec: str, key: str, text: str, kind: type[float]) -> float:
    try:
        value = kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise ConfigError(f"feature {spec!r}: {key} must be {wanted}, got {text!r}") from None
    low, high = RANGES.get(key, (-math.inf, math.inf))
    if not math.isfinite(value) or not low <= value <= high:
        raise ConfigError(f"feature {spec!r}: {key} must lie in [{low:g}, {high:g}], got {text}")
    return value


def _spell(value: float) -> str:
    """The shortest spelling that reads back as the same number: two thresholds must not share a name."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
