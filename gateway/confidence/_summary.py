"""Features that an engine's own summary of an answer tells as well as all its tokens would.

What a summary is made of is fixed by whoever makes it (gateway/vllm_plugin/summary.py), but for two parameters that it
is asked for: `k`, and the `window` of its groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gateway.errors import BadTrace
from gateway.nouns import Summed

ASKED_FOR = ("k", "window")


@dataclass(frozen=True, slots=True)
class View:
    """A number of a summary. made_with: parameters of the feature that the summary knows with this value alone."""

    signal: str
    name: str
    made_with: Mapping[str, float] = field(default_factory=dict)

    def read(self, evidence: Summed) -> float:
        try:
            return evidence.summary.views[self.signal][self.name]
        except KeyError:
            told = f"the engine's summary does not tell the {self.name} of its {self.signal}"
            raise BadTrace(f"{told}: is its plugin older than this gateway?") from None


TENTH = {"share": 0.1}
VIEWS: Mapping[str, View] = {
    "deepconf_average": View("confidence", "mean"),
    "deepconf_bottom": View("confidence", "bottom_groups", TENTH),
    "deepconf_lowest": View("confidence", "lowest_group"),
    "deepconf_tail": View("confidence", "tail"),
    "entropy_max": View("entropy", "max"),
    "entropy_mean": View("entropy", "mean"),
    "lp_bottom": View("top1", "bottom_tokens", TENTH),
    "lp_mean": View("top1", "mean"),
    "lp_quantile": View("top1", "min", {"q": 0.0}),
    "lp_tail": View("top1", "tail"),
    "lp_window_bottom": View("top1", "bottom_groups", TENTH),
    "lp_window_min": View("top1", "lowest_group"),
    "margin_mean": View("margin", "mean"),
    "margin_min": View("margin", "min"),
    "self_certainty": View("self_certainty", "mean"),
}
OTHERS: Mapping[str, Callable[[Summed], float]] = {
    "end_lp": lambda evidence: math.nan if evidence.summary.end_nats is None else evidence.summary.end_nats,
    "length": lambda evidence: float(evidence.summary.length),
    "log_length": lambda evidence: math.log(evidence.summary.length),
    "lp_sum": lambda evidence: VIEWS["lp_mean"].read(evidence) * evidence.summary.length,
}
OF_THE_TEXT = frozenset({"no_answer", "upstream_agreement", "upstream_logit"})  # no token is looked at


def reader(name: str, function: Callable[..., float], bound: Mapping[str, float]) -> Callable[[Summed], float] | None:
    """How a feature with these parameters is read from a summary; None where only the tokens tell it."""
    if name in OF_THE_TEXT:
        return lambda evidence: function(evidence, **bound)
    view = VIEWS.get(name)
    if view is None:
        return OTHERS.get(name)
    given = {key: value for key, value in bound.items() if key not in ASKED_FOR}
    return view.read if given == dict(view.made_with) else None
