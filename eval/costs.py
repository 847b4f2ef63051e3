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

`usd_per_answer` stands for the prices of tokens where an answer has one price, whatever its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from pydantic import Field, ValidationError

from eval.crossed import BadTable, Bools, Floats
from gateway.config import PriceList, causes, compose, tell
from gateway.errors import ConfigError
from gateway.written import Written

Model = Literal["tokens", "flops", "gpu-seconds", "usd", "seconds", "cost"]
MODELS: tuple[Model, ...] = get_args(Model)
PAID: tuple[Model, ...] = ("cost", "usd")  # what a table of one's own may hold added up


class TierCost(PriceList):
    """One tier's prices and machine; what a cost model needs and the file lacks is asked for by name."""

    parameters: float | None = Field(
        default=None, gt=0, description="weights of the model, active ones if it is sparse"
    )
    usd_per_answer: float | None = Field(default=None, ge=0, description="of one answer, however long it is")
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
    """What every answer took. tiers: K names.  prompt_tokens, completion_tokens, seconds: (n, K) >= 0, NaN where that
    is not known.  paid: what somebody else has added up, by the cost model that it stands for, (n, K) or NaN."""

    tiers: tuple[str, ...]
    prompt_tokens: Floats
    completion_tokens: Floats
    seconds: Floats
    paid: Mapping[Model, Floats] = field(default_factory=dict)

    def rows(self, chosen: Bools) -> Usage:
        """The same for some of the questions. chosen: (n,)."""
        return Usage(
            self.tiers,
            self.prompt_tokens[chosen],
            self.completion_tokens[chosen],
            self.seconds[chosen],
            {model: cost[chosen] for model, cost in self.paid.items()},
        )


def likeliest(usage: Usage, prices: CostFile | None = None) -> Model:
    """The cost model that is meant where none is named. Raises ConfigError where nothing tells what answers cost."""
    if prices is not None:
        return "usd"
    for model in PAID:
        if model in usage.paid:
            return model
    if not np.isnan(usage.prompt_tokens + usage.completion_tokens).all():
        return "tokens"
    raise ConfigError(
        "nothing says what an answer costs: add a column cost (in any unit) or usd, or prompt_tokens and "
        "completion_tokens; or give --prices with usd_per_answer of each model, or take --cost seconds where there are "
        "seconds"
    )


def cost(model: Model, usage: Usage, prices: CostFile | None = None) -> Floats:
    """(n, K) in the model's own unit. Raises ConfigError naming what the price file, or the answers, lack.

    tokens: prompt and completion.  flops: 2 * parameters * tokens, the multiply-adds of the weights alone; attention
    over a prompt of 1,000 tokens adds a few percent (science 5.1).  gpu-seconds: GPUs times tokens over throughput
    under a stated load, which is what a busy machine is worth; the seconds one request waited depend on who else was
    there.  usd: by the price of tokens.  seconds: the latency one user sees; tiers are asked one after another, so
    these add up too.  cost: whatever unit the column `cost` of a user's own table is in; `usd` without a price file is
    its column `usd`.
    """
    if model not in MODELS:
        raise ConfigError(f"no cost model {model!r}; have {', '.join(MODELS)}")
    if model in usage.paid and prices is None:
        return _told(model, usage, usage.paid[model], f"a number in every row of the column {model}")
    if model == "cost":
        raise ConfigError("the cost model 'cost' is the column cost of a table of your own, and there is none")
    return _told(model, usage, _counted(model, usage, prices), NEEDED[model])


NEEDED: Mapping[Model, str] = {
    "seconds": "the seconds of every answer",
    **dict.fromkeys(("tokens", "flops", "gpu-seconds", "usd"), "prompt_tokens and completion_tokens of every answer"),
}


def _told(model: Model, usage: Usage, cost: Floats, needed: str) -> Floats:
    """The cost itself, if all of it is known. Raises ConfigError."""
    unknown = np.isnan(cost)
    if unknown.any():
        tiers = ", ".join(tier for place, tier in enumerate(usage.tiers) if unknown[:, place].any())
        raise ConfigError(
            f"the cost model {model!r} needs {needed}; {int(unknown.sum()):,} of {unknown.size:,} lack that ({tiers})"
        )
    return cost


def _counted(model: Model, usage: Usage, prices: CostFile | None) -> Floats:
    """(n, K), NaN where the answers do not say enough."""
    if model == "tokens":
        return usage.prompt_tokens + usage.completion_tokens
    if model == "seconds":
        return usage.seconds
    entries = _entries(model, usage.tiers, prices)
    if model == "usd":
        return np.stack([_usd(usage, place, entry) for place, entry in enumerate(entries)], axis=1)
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


def _usd(usage: Usage, place: int, entry: TierCost) -> Floats:
    """(n,) of one tier."""
    tier = usage.tiers[place : place + 1]
    if entry.usd_per_answer is not None and not {"usd_per_mtok_in", "usd_per_mtok_out"} & entry.model_fields_set:
        return np.full(len(usage.seconds), entry.usd_per_answer)
    (per_in,), (per_out,) = (_column("usd", tier, [entry], f"usd_per_mtok_{way}") for way in ("in", "out"))
    counted = usage.prompt_tokens[:, place] * per_in + usage.completion_tokens[:, place] * per_out
    return np.asarray(counted / 1e6 + (entry.usd_per_answer or 0.0))


def _column(model: Model, tiers: Sequence[str], entries: Sequence[TierCost], name: str) -> Floats:
    """(K,) one number of each tier. A price that was not written is not 0."""
    values = [getattr(entry, name) for entry in entries]
    for tier, entry, value in zip(tiers, entries, values, strict=True):
        if value is None or name not in entry.model_fields_set:
            raise ConfigError(f"the cost model {model!r} needs {name} of the tier {tier!r} in the prices")
    return np.array(values, dtype=np.float64)
