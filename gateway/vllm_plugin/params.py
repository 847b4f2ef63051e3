"""What a request says in `vllm_xargs` about the confidence that it wants.

    {"confidence": 1}                    report it; without this nothing else is looked at
    {"confidence_k": 20}                 candidates in the mean of the k largest log-probs, 1 to 20
    {"confidence_window": 32}            tokens in a group
    {"confidence_arrays": 1}             the arrays too, not only their summary
    {"confidence_abort": 4.5}            end the answer once a full group's mean confidence is under this, in nats

The middleware adds `confidence_id`, where to send the arrays, and for n > 1 `confidence_seed`, from which a choice's
number is told. Nobody else may set these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gateway.vllm_plugin.signals import K_MAX

OPT_IN, K, WINDOW, ARRAYS, ABORT = (
    "confidence", "confidence_k", "confidence_window", "confidence_arrays", "confidence_abort"
)  # fmt: skip
ID, SEED = "confidence_id", "confidence_seed"
KNOWN = (OPT_IN, K, WINDOW, ARRAYS, ABORT, ID, SEED)
WINDOW_MAX = 4096


@dataclass(frozen=True, slots=True)
class Wanted:
    """k: candidates.  window: tokens.  abort_below: mean nats of a full window, -inf for never.  arrays: ship them.

    id: whom to tell, "" while the middleware has not said.  seed: of the first of several choices, None for one choice.
    """

    k: int = K_MAX
    window: int = 32
    abort_below: float = -math.inf
    arrays: bool = False
    id: str = ""
    seed: int | None = None


def read(xargs: Mapping[str, Any] | None) -> Wanted | None:
    """What is wanted, None when nothing is. Raises ValueError that names the field and says what it may be."""
    if not xargs or not xargs.get(OPT_IN):
        return None
    unknown = sorted(key for key in xargs if key.startswith(OPT_IN) and key not in KNOWN)
    if unknown:
        raise ValueError(f"vllm_xargs has no {unknown[0]!r}; it takes {', '.join(KNOWN[:5])}")
    abort = xargs.get(ABORT)
    if abort is not None and not (_is_number(abort) and math.isfinite(abort) and abort > 0):
        raise ValueError(f"vllm_xargs.{ABORT} must be a number of nats > 0, got {abort!r}")
    return Wanted(
        _whole(xargs, K, K_MAX, K_MAX),
        _whole(xargs, WINDOW, 32, WINDOW_MAX),
        -math.inf if abort is None else float(abort),
        bool(xargs.get(ARRAYS)),
        str(xargs.get(ID, "")),
        xargs.get(SEED),
    )


def _whole(xargs: Mapping[str, Any], key: str, default: int, most: int) -> int:
    value = xargs.get(key, default)
    if not _is_number(value) or value != int(value) or not 1 <= value <= most:
        raise ValueError(f"vllm_xargs.{key} must be a whole number from 1 to {most}, got {value!r}")
    return int(value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def without_abort(wanted: Wanted) -> Wanted:
    """The same, but never given up."""
    return replace(wanted, abort_below=-math.inf)
