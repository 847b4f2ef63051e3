"""Which server goes to which GPU, and how much of it. A plan that does not fit is refused, with what would fit.

Every placement is tried where servers and GPUs are few, and the one kept leaves the fullest GPU as empty as can be; of
many the first STEPS are, beginning with the servers that are largest and the GPUs that are emptiest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Any

from gateway.errors import ConfigError
from gateway.fleet import memory
from gateway.fleet.memory import GIB, Need
from gateway.fleet.settings import Serve
from gateway.fleet.shapes import Shape

LEAST_CONTEXT = 1024  # shorter contexts are not worth suggesting
MORE_GPUS = 8
STEPS = 10_000  # of a search: all there are for six servers on four GPUs, none of which are alike
CHOICES = 200  # of tiers to do without

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wish:
    """A tier that wants a server of its own. shape: its model's.  plugin: its server computes confidence itself."""

    tier: str
    serve: Serve
    shape: Shape
    plugin: bool = False

    @property
    def need(self) -> Need:
        return memory.need(self.serve, self.shape, plugin=self.plugin)


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU. total, free: bytes as CUDA counts them; free is what other programs leave."""

    index: int
    total: int
    free: int

    def budget(self, headroom: float) -> int:
        return self.free - math.ceil(headroom * self.total)


@dataclass(frozen=True, slots=True)
class Placed:
    """A server and its GPUs. utilization: vLLM's share of a GPU's total memory; its own context is not part of it."""

    wish: Wish
    need: Need
    gpus: tuple[int, ...]
    utilization: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes. servers: in the order of the cascade."""

    devices: tuple[Device, ...]
    headroom: float
    servers: tuple[Placed, ...]

    def rows(self) -> list[Row]:
        """One per server, GiB on each of its GPUs."""
        return [row(placed.wish, placed.need, placed.gpus, placed.utilization) for placed in self.servers]

    def gpu_rows(self) -> list[Row]:
        """One per GPU."""
        rows = []
        for device in self.devices:
            used = sum(placed.need.total for placed in self.servers if device.index in placed.gpus)
            rows.append(
                {
                    "gpu": device.index,
                    "total_gib": gib(device.total),
                    "free_gib": gib(device.free),
                    "planned_gib": gib(used),
                    "headroom_gib": gib(device.free - device.budget(self.headroom)),
                    "spare_gib": gib(device.budget(self.headroom) - used),
                }
            )
        return rows


class Unfit(ConfigError):
    """The tiers do not fit the GPUs. rows: what each needs.  remedies: changes that were tried and would fit."""

    def __init__(self, rows: Sequence[Row], gpus: Sequence[Row], remedies: Sequence[str], table: str) -> None:
        told = "\n".join(f"  - {remedy}" for remedy in remedies)
        super().__init__(f"the tiers do not fit the GPUs\n{table}\nany one of these would fit:\n{told}")
        self.rows, self.gpus, self.remedies = tuple(rows), tuple(gpus), tuple(remedies)


def plan(wishes: Sequence[Wish], devices: Sequence[Device], *, headroom: float) -> Plan:
    """Where each server goes. Raises Unfit with a table and remedies, ConfigError for a model that cannot be served."""
    found = place(wishes, devices, headroom)
    if found is not None:
        return found
    rows = [row(wish, wish.need, None, None) for wish in wishes]
    gpus = [
        {"gpu": device.index, "free_gib": gib(device.free), "for_servers_gib": gib(device.budget(headroom))}
        for device in devices
    ]
    missing = sum(w.need.total * w.serve.tensor_parallel for w in wishes) - sum(d.budget(headroom) for d in devices)
    told = f"{aligned(rows)}\n{aligned(gpus)}" + (f"\n{gib(missing)} GiB are missing" if missing > 0 else "")
    raise Unfit(rows, gpus, list(remedies(wishes, devices, headroom)), told)


def place(wishes: Sequence[Wish], devices: Sequence[Device], headroom: float) -> Plan | None:
    """The placement whose fullest GPU is emptiest; absent when there is none. The same wishes give the same plan."""
    needs = [wish.need for wish in wishes]
    budgets = [device.budget(headroom) for device in devices]
    where = assign(
        [(need.total, wish.serve.tensor_parallel) for need, wish in zip(needs, wishes, strict=True)], budgets
    )
    if where is None:
        return None
    servers = []
    for wish, need, positions in zip(wishes, needs, where, strict=True):
        # One share for all its GPUs, which vLLM refuses to start without: no more than needed of the largest.
        largest = max(devices[position].total for position in positions)
        share = math.floor((need.total - need.context) / largest * 1e4) / 1e4
        gpus = tuple(devices[position].index for position in positions)
        servers.append(Placed(wish, need, gpus, max(share, 1e-4)))
    return Plan(tuple(devices), headroom, tuple(servers))


def assign(loads: Sequence[tuple[int, int]], budgets: Sequence[int]) -> list[tuple[int, ...]] | None:
    """Positions of the GPUs of each load, (bytes on each GPU, how many GPUs); absent when they do not fit.

    Least largest share of a budget, as far as STEPS go. GPUs that are alike, and equally full, are tried once.
    """
    if sum(size * count for size, count in loads) > sum(budgets):
        return None
    order = sorted(range(len(loads)), key=lambda n: (-loads[n][1], -loads[n][0], n))
    to_come = [sum(loads[n][0] * loads[n][1] for n in order[step:]) for step in range(len(order) + 1)]
    best: list[tuple[int, ...]] | None = None
    best_share = math.inf
    chosen: list[tuple[int, ...]] = [()] * len(loads)
    left = list(budgets)
    steps = 0

    def fill(step: int, share: float) -> None:
        nonlocal best, best_share, steps
        if share >= best_share or to_come[step] > sum(left):
            return
        if step == len(order):
            best, best_share = list(chosen), share
            return
        size, count = loads[order[step]]
        emptiest = sorted(range(len(budgets)), key=lambda n: (left[n] - size) / budgets[n], reverse=True)
        seen = set()
        for positions in combinations(emptiest, count):
            steps += 1
            if steps > STEPS:
                return
            alike = tuple(sorted((budgets[n], left[n]) for n in positions))
            if alike in seen or any(left[n] < size for n in positions):
                continue
            seen.add(alike)
            for n in positions:
                left[n] -= size
            chosen[order[step]] = tuple(sorted(positions))
            fill(step + 1, max(share, *(1 - left[n] / budgets[n] for n in positions)))
            for n in positions:
                left[n] += size

    fill(0, 0.0)
    return best


def remedies(wishes: Sequence[Wish], devices: Sequence[Device], headroom: float) -> Iterator[str]:
    """Changes that make everything fit, each tried; the mildest of its kind."""

    def fits(changed: Sequence[Wish]) -> bool:
        return place(changed, devices, headroom) is not None

    for told, change in CHANGES:
        found = mildest(wishes, change, fits)
        if found:
            yield told.format(tiers=", ".join(found))
    for what, halve in (("context", half_context), ("concurrency", half_concurrency)):
        tried = list(wishes)
        while True:
            shorter = [changed(wish, halve) for wish in tried]
            if shorter == tried:
                break
            tried = shorter
            if fits(tried):
                values = ", ".join(f"{wish.tier} {getattr(wish.serve, what):,}" for wish in tried)
                yield f"{what}: {values}"
                break
    both = [changed(changed(wish, to_fp8), to_fp8_cache) for wish in wishes]
    if fits(both) and not mildest(wishes, to_fp8, fits) and not mildest(wishes, to_fp8_cache, fits):
        yield "quantization: fp8 and kv_cache_dtype: fp8 for all tiers"
    if gone := fewest(wishes, fits):
        yield "fewer tiers: without " + ", ".join(wish.tier for wish in gone)
    largest = max(devices, key=lambda device: device.total)
    for more in range(1, MORE_GPUS + 1):
        new = [Device(max(d.index for d in devices) + 1 + n, largest.total, largest.total) for n in range(more)]
        if place(wishes, [*devices, *new], headroom) is not None:
            yield f"{more} more GPU{'s' * (more > 1)} with {gib(largest.total)} GiB"
            return
    # GPUs that hold the largest server; as many as there are servers always do. A tenth of a GiB is spent on rounding.
    room = math.ceil(10 * max(wish.need.total for wish in wishes) / (1 - headroom) / GIB) / 10
    widths = [wish.serve.tensor_parallel for wish in wishes]
    for count in range(max(widths), sum(widths) + 1):
        if place(wishes, [Device(n, int(room * GIB), int(room * GIB)) for n in range(count)], headroom) is not None:
            yield f"{count} GPU{'s' * (count > 1)} with at least {room:g} GiB{' each' * (count > 1)}"
            return


def fewest(wishes: Sequence[Wish], fits: Callable[[Sequence[Wish]], bool]) -> tuple[Wish, ...]:
    """The tiers to do without, as few as will do, the first that suffice; nothing when one alone does not fit.

    Without its n largest it fits whenever it fits without any n.
    """
    by_size = sorted(wishes, key=lambda wish: -wish.need.total * wish.serve.tensor_parallel)
    for n in range(1, len(wishes)):
        if fits(by_size[n:]):
            choices = islice(combinations(wishes, n), CHOICES)
            return next((out for out in choices if fits([w for w in wishes if w not in out])), tuple(by_size[:n]))
    return ()


def mildest(
    wishes: Sequence[Wish], change: Callable[[Wish], Serve], fits: Callable[[Sequence[Wish]], bool]
) -> list[str]:
    """The tiers to change, as few as will do, those that win most first; nothing when all of them do not suffice."""
    tried = {wish.tier: wish for wish in wishes}
    changed_tiers = []
    for wish in sorted(wishes, key=lambda w: after(w, change) - w.need.total):
        if after(wish, change) >= wish.need.total:
            continue
        tried[wish.tier] = changed(wish, change)
        changed_tiers.append(wish.tier)
        if fits(list(tried.values())):
            return changed_tiers
    return []


def after(wish: Wish, change: Callable[[Wish], Serve]) -> int:
    """What would be needed after the change, bytes."""
    return changed(wish, change).need.total


def changed(wish: Wish, change: Callable[[Wish], Serve]) -> Wish:
    return replace(wish, serve=change(wish))


def to_fp8(wish: Wish) -> Serve:
    return wish.serve.model_copy(update={"quantization": "fp8"})


def to_fp8_cache(wish: Wish) -> Serve:
    return wish.serve.model_copy(update={"kv_cache_dtype": "fp8"})


def eager(wish: Wish) -> Serve:
    return wish.serve.model_copy(update={"enforce_eager": True})


def half_context(wish: Wish) -> Serve:
    """Half the context, and of what a request holds of it."""
    context = wish.serve.context // 2
    if context < LEAST_CONTEXT:
        return wish.serve
    held = wish.serve.tokens_per_request
    return wish.serve.model_copy(
        update={"context": context, "tokens_per_request": None if held is None else min(held, context)}
    )


def half_concurrency(wish: Wish) -> Serve:
    return wish.serve.model_copy(update={"concurrency": max(1, wish.serve.concurrency // 2)})


CHANGES: tuple[tuple[str, Callable[[Wish], Serve]], ...] = (
    ("quantization: fp8 for {tiers}", to_fp8),
    ("kv_cache_dtype: fp8 for {tiers}", to_fp8_cache),
    ("enforce_eager: true for {tiers}", eager),
)


def row(wish: Wish, need: Need, gpus: tuple[int, ...] | None, utilization: float | None) -> Row:
    told: Row = {"tier": wish.tier, "gpus": "-" if gpus is None else ",".join(map(str, gpus))}
    if gpus is None:
        told["gpus"] = f"any {wish.serve.tensor_parallel}"
    told |= {
        "weights_gib": gib(need.weights),
        "kv_gib": gib(need.kv_cache),
        "kv_tokens": memory.reported_kv_tokens(wish.serve),
        "activations_gib": gib(need.activations),
        "graphs_gib": gib(need.graphs),
        "context_gib": gib(need.context),
        "total_gib": gib(need.total),
    }
    return told if utilization is None else told | {"utilization": utilization}


def gib(size: float) -> float:
    """Two decimals, as vLLM prints them."""
    return round(size / GIB, 2)


def aligned(rows: Sequence[Row]) -> str:
    """Rows with the same keys as columns."""
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)
