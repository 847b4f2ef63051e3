"""Cost models: what asking one tier one question adds, as (n, K) arrays for a crossed table.

A cascade pays for every tier it tried: the models share no KV cache, so each reads the prompt anew. Prices and
machines come from a YAML file that people write:

    load: 128 requests in flight per GPU, vLLM 0.22      # what the throughputs below were measured under, in words
    tiers:
      qwen-3b:
        parameters: 3.09e9
        usd_per_mtok_in: 0.05
        usd_per_mtok_out: 0.10
        gpus: 1
        prompt_tokens_per_second: 90000
        completion_tokens_per_second: 12000
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import Field, ValidationError

from eval.crossed import BadTable, Floats
from gateway.config import PriceList, causes, compose, tell
from gateway.errors import ConfigError
from gateway.written import Written

Model = Literal["tokens", "flops", "gpu-seconds", "usd", "seconds"]
MODELS: tuple[Model, ...] = get_args(Model)


class TierCost(PriceList):
    """One tier's prices and machine; what a cost model needs and the file lacks is asked for by name."""

    parameters: float | None = Field(
        default=None, gt=0, description="weights of the model, active ones if it is sparse"
    )
    gpus: float | None = Field(default=None, gt=0, description="GPUs that one replica occupies")
    prompt_tokens_per_second: float | None = Field(default=None, gt=0, description="one replica's, under `load`")
    completion_tokens_per_second: float | None = Field(default=None, gt=0, description="one replica's, under `load`")


class CostFile(Written):
    """A whole file of prices."""

    load: str = Field(default="", description="what the throughputs were measured under, in words")
    tiers: dict[str, TierCost]


def read(path: Path) -> CostFile:
    """Raises ConfigError with one line `file:line: where: what` for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prices {path}: {getattr(error, 'strerror', None) or error}") from None
    tree, raw = compose(text, path)
    try:
        return CostFile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(tell(mistake, tree, path) for mistake in causes(error))) from None


@dataclass(frozen=True, slots=True, eq=False)
class Usage:
    """What every answer took. tiers: K names.  prompt_tokens, completion_tokens, seconds: (n, K) >= 0."""

    tiers: tuple[str, ...]
    prompt_tokens: Floats
    completion_tokens: Floats
    seconds: Floats


def cost(model: Model, usage: Usage, prices: CostFile | None = None) -> Floats:
    """(n, K) in the model's own unit. Raises ConfigError naming what the price file lacks.

    tokens: prompt and completion.  flops: 2 * parameters * tokens, the multiply-adds of the weights alone; attention
    over a prompt of 1,000 tokens adds a few percent (science 5.1).  gpu-seconds: GPUs times tokens over throughput
    under a stated load, which is what a busy machine is worth; the seconds one request waited depend on who else was
    there.  usd: by the price of tokens.  seconds: the latency one user sees; tiers are asked one after another, so
    these add up too.
    """
    if model == "tokens":
        return usage.prompt_tokens + usage.completion_tokens
    if model == "seconds":
        return usage.seconds
    if model not in MODELS:
        raise ConfigError(f"no cost model {model!r}; have {', '.join(MODELS)}")
    entries = _entries(model, usage.tiers, prices)
    if model == "usd":
        per_in = _column(model, usage.tiers, entries, "usd_per_mtok_in")
        per_out = _column(model, usage.tiers, entries, "usd_per_mtok_out")
        return np.asarray((usage.prompt_tokens * per_in + usage.completion_tokens * per_out) / 1e6)
    if model == "flops":
        parameters = _column(model, usage.tiers, entries, "parameters")
        return np.asarray(2 * parameters * (usage.prompt_tokens + usage.completion_tokens))
    gpus = _column(model, usage.tiers, entries, "gpus")
    reading = usage.prompt_tokens / _column(model, usage.tiers, entries, "prompt_tokens_per_second")
    writing = usage.completion_tokens / _column(model, usage.tiers, entries, "completion_tokens_per_second")
    return np.asarray(gpus * (reading + writing))


def check_unit(cost_unit: str, tiers: Sequence[str], costs: Floats) -> None:
    """Raises BadTable when every answer is free: no policy could be cheaper than another."""
    if not bool((costs > 0).any()):
        raise BadTable(f"every answer of {', '.join(tiers)} costs 0 {cost_unit}: give prices, or count tokens instead")


def _entries(model: Model, tiers: Sequence[str], prices: CostFile | None) -> list[TierCost]:
    if prices is None:
        raise ConfigError(f"the cost model {model!r} needs a file of prices; --prices says which")
    for tier in tiers:
        if tier not in prices.tiers:
            raise ConfigError(f"the prices have no tier {tier!r}; they have {', '.join(prices.tiers) or 'none'}")
    return [prices.tiers[tier] for tier in tiers]


def _column(model: Model, tiers: Sequence[str], entries: Sequence[TierCost], name: str) -> Floats:
    """(K,) one number of each tier. A price that was not written is not 0."""
    values = [getattr(entry, name) for entry in entries]
    for tier, entry, value in zip(tiers, entries, values, strict=True):
        if value is None or name not in entry.model_fields_set:
            raise ConfigError(f"the cost model {model!r} needs {name} of the tier {tier!r} in the prices")
    return np.array(values, dtype=np.float64)
