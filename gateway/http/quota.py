"""What a client may use: requests and tokens a minute, requests at once, tokens and money a day and a month.

Everything is charged when it begins, by an estimate, and corrected when it has ended: a flood cannot slip through
before the first of it is counted. What a server took and nobody told stays estimated. Rates run on the monotonic clock,
budgets on calendar days and months in UTC.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from types import TracebackType
from typing import Self

from gateway.config import Allowance
from gateway.errors import EngineSlow, OverBudget, RateLimited
from gateway.http.auth import Caller
from gateway.noun import noun
from gateway.nouns import Completion, Cost, Hop, Policy, Prices, Tier
from gateway.resilience.ledger import DAYS, MONTHS, REQUESTS, TOKENS, Bucket, Ledger, Numbers, Windows

log = logging.getLogger(__name__)

UNTOLD_TOKENS = 512  # reserved for an answer whose length the client did not limit; gsm8k's mean stays below 300
CHARACTERS_PER_TOKEN = 4  # of English text; only for what is reserved or untold, tokens that were used are counted
BUSY_SECONDS = 1.0

Clock = Callable[[], float]


@noun(frozen=True, slots=True)
class Estimate:
    """What one tier may take for a request at most. completion_tokens: of all choices together."""

    prompt_tokens: int
    completion_tokens: int
    choices: int = 1

    @classmethod
    def of(cls, characters: int, max_tokens: int | None, choices: int) -> Self:
        return cls(math.ceil(characters / CHARACTERS_PER_TOKEN), (max_tokens or UNTOLD_TOKENS) * choices, choices)

    def untold(self, hop: Hop) -> Estimate:
        """What a server took for one choice and nobody was told: it was too slow, was given up, or does not count."""
        prompt_tokens = 0 if hop.cost.prompt_tokens else self.prompt_tokens
        if hop.completion is not None:
            return Estimate(prompt_tokens, 0 if hop.cost.completion_tokens else said(hop.completion))
        slow = isinstance(hop.error, EngineSlow) and hop.error.waited_seconds > 0  # else it was never asked
        if not slow and not hop.given_up:
            return UNASKED
        return Estimate(prompt_tokens, 0 if hop.cost.completion_tokens else self.completion_tokens // self.choices)

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def usd(self, prices: Prices) -> float:
        told = self.prompt_tokens * prices.usd_per_mtok_in + self.completion_tokens * prices.usd_per_mtok_out
        return told / 1e6


UNASKED = Estimate(0, 0)


def said(completion: Completion) -> int:
    """About so many tokens an answer has."""
    calls = sum(len(call.arguments) for call in completion.calls)
    return math.ceil((len(completion.text) + len(completion.reasoning) + calls) / CHARACTERS_PER_TOKEN)


@lru_cache  # so that it is said once
def warn(tier: str) -> None:
    log.warning("a tier does not tell how many tokens it took; limits go by the length of texts", extra={"tier": tier})


def dearest(tiers: tuple[Tier, ...]) -> str:
    """The tier whose tokens cost most; the later one of equals."""
    costs = [(tier.prices.usd_per_mtok_out, tier.prices.usd_per_mtok_in, place) for place, tier in enumerate(tiers)]
    return tiers[max(costs)[2]].name


def without(route: Policy, tier: str) -> Policy | None:
    """A route that stops below a tier, and says so; None when nothing would be left of it."""
    kept = tuple(one for one in route.tiers if one.name != tier)
    if not kept or route.bypass:
        return None
    return replace(route, tiers=(*kept[:-1], replace(kept[-1], threshold=None)), curtailed=True, certified=False)


class Visit:
    """One request on its way through. Use as a context manager around all of it.

    monotonic, wall: clocks, seconds.  dearest: the tier with a cap of its own.
    """

    def __init__(self, ledger: Ledger, dearest: str, wall: Clock, monotonic: Clock | None = None) -> None:
        self._ledger, self._dearest = ledger, dearest
        self._monotonic = monotonic or asyncio.get_running_loop().time
        self._caller: Caller | None = None
        self._began = wall()  # what is charged in one window is corrected in the same
        self._known_periods: list[Period] = []
        self._entered = self._abandoned = False
        self._reserved = self._used = NOTHING
        self._estimate, self._prices = UNASKED, dict[str, Prices]()

    def __enter__(self) -> Self:
        return self

    def enter(self, caller: Caller) -> None:
        """Count the request, before its body is even read. Raises RateLimited."""
        self._caller, limits = caller, caller.limits
        if not limits.limited:
            return
        with self._ledger.locked():
            now = self._monotonic()
            if limits.in_flight is not None and self._ledger.in_flight(caller.name) >= limits.in_flight:
                raise RateLimited(f"{limits.in_flight} requests at once", BUSY_SECONDS)
            bucket = self._bucket(REQUESTS, limits.requests_per_minute)
            if bucket is not None:
                if bucket.left(now) < 1:
                    raise RateLimited(f"{limits.requests_per_minute} requests per minute", bucket.wait_seconds(now))
                bucket.take(1, now)
            self._ledger.in_flight(caller.name, +1)
            self._entered = True

    def reserve(self, route: Policy, estimate: Estimate) -> Policy:
        """The route within the client's means, paid for in advance. Raises RateLimited, OverBudget."""
        caller = self._caller
        assert caller is not None, "reserve comes after enter"
        limits = caller.limits
        if not limits.limited:
            return route
        with self._ledger.locked():
            now = self._monotonic()
            bucket = self._bucket(TOKENS, limits.tokens_per_minute)
            if bucket is not None and bucket.left(now) < min(estimate.tokens, bucket.per_minute):
                least = min(estimate.tokens, bucket.per_minute)
                raise RateLimited(f"{limits.tokens_per_minute} tokens per minute", bucket.wait_seconds(now, least))
            route = self._affordable(route, limits)
            usd = {tier.name: estimate.usd(tier.prices) for tier in route.tiers}
            spent = Spent(estimate.tokens, sum(usd.values()), usd.get(self._dearest, 0.0))
            self._charge(spent)
            self._reserved = spent
        self._estimate, self._prices = estimate, {tier.name: tier.prices for tier in route.tiers}
        return route

    def _affordable(self, route: Policy, limits: Allowance) -> Policy:
        for place, window, ends, caps in self._periods(limits):
            windows = Windows(self._numbers, place)
            for what, cap, told in caps:
                if cap is None or windows.spent(window, what) < cap:
                    continue
                if what == Windows.DEAREST:
                    if not any(tier.name == self._dearest for tier in route.tiers):
                        continue
                    shorter = without(route, self._dearest)
                    if shorter is not None:
                        route = shorter
                        continue
                raise OverBudget(told, ends)
        return route

    def note(self, hop: Hop) -> None:
        """One tier's turn, as it ends."""
        if not self._entered:  # of who has no limits nothing is counted
            return
        dearest = hop.tier == self._dearest
        self._used += Spent.of(hop.cost, dearest=dearest)
        untold = self._estimate.untold(hop)
        if untold.tokens:
            usd = untold.usd(self._prices[hop.tier])
            self._used += Spent(untold.tokens, usd, usd if dearest else 0.0)
            if hop.completion is not None:
                warn(hop.tier)

    def abandon(self) -> None:
        """The client left before its answer: what it had begun was paid for, but nobody will tell how much."""
        self._abandoned = True

    def settle(self) -> None:
        """Correct what was reserved by what was used; at the end at the latest, earlier when no tier will be asked."""
        used = self._used.at_least(self._reserved) if self._abandoned else self._used
        if self._entered and used != self._reserved:
            with self._ledger.locked():
                self._charge(used - self._reserved)
        self._reserved = used

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.settle()
        if self._entered and self._caller is not None:
            with self._ledger.locked():
                self._ledger.in_flight(self._caller.name, -1)
            self._entered = False

    def headers(self) -> dict[str, str]:
        """x-ratelimit-*, as OpenAI writes them."""
        if self._caller is None or not self._caller.limits.limited:
            return {}
        limits, told = self._caller.limits, {}
        with self._ledger.locked():
            now = self._monotonic()
            for what, place, per_minute in (
                ("requests", REQUESTS, limits.requests_per_minute),
                ("tokens", TOKENS, limits.tokens_per_minute),
            ):
                bucket = self._bucket(place, per_minute)
                if bucket is not None:
                    told[f"x-ratelimit-limit-{what}"] = str(per_minute)
                    told[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.left(now))))
                    told[f"x-ratelimit-reset-{what}"] = duration(bucket.full_seconds(now))
        return told

    @property
    def _numbers(self) -> Numbers:
        assert self._caller is not None, "only who has entered has a slot"
        return self._ledger.numbers(self._caller.name)

    def _bucket(self, place: int, per_minute: int | None) -> Bucket | None:
        return None if per_minute is None else Bucket(self._numbers, place, per_minute)

    def _charge(self, spent: Spent) -> None:
        """Add to everything that is counted, or take back what is negative."""
        assert self._caller is not None, "only who has entered is charged"
        bucket = self._bucket(TOKENS, self._caller.limits.tokens_per_minute)
        if bucket is not None:
            bucket.take(spent.tokens, self._monotonic())
        for place, window, _, _ in self._periods(self._caller.limits):
            windows = Windows(self._numbers, place)
            for what, amount in (
                (Windows.TOKENS, spent.tokens),
                (Windows.USD, spent.usd),
                (Windows.DEAREST, spent.dearest_usd),
            ):
                if amount:
                    windows.spend(window, what, amount)

    def _periods(self, limits: Allowance) -> list[Period]:
        """(place in the slot, the window's number, seconds until it ends, (what, cap, in words))."""
        if self._known_periods:
            return self._known_periods
        wall = self._began
        today = dt.datetime.fromtimestamp(wall, dt.UTC)
        day = int(wall // 86400) + 1
        month = (today.year - 1970) * 12 + today.month
        first = dt.datetime(today.year + today.month // 12, today.month % 12 + 1, 1, tzinfo=dt.UTC)
        self._known_periods = [
            (DAYS, day, day * 86400 - wall, limits.daily),
            (MONTHS, month, first.timestamp() - wall, limits.monthly),
        ]
        return self._known_periods


Period = tuple[int, int, float, list[tuple[int, float | None, str]]]


@noun(frozen=True, slots=True)
class Spent:
    """What one request takes from a budget."""

    tokens: float = 0
    usd: float = 0.0
    dearest_usd: float = 0.0

    @classmethod
    def of(cls, cost: Cost, *, dearest: bool) -> Self:
        return cls(cost.total_tokens, cost.usd, cost.usd if dearest else 0.0)

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.tokens + other.tokens, self.usd + other.usd, self.dearest_usd + other.dearest_usd)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.tokens - other.tokens, self.usd - other.usd, self.dearest_usd - other.dearest_usd)

    def at_least(self, other: Spent) -> Spent:
        return Spent(max(self.tokens, other.tokens), max(self.usd, other.usd), max(self.dearest_usd, other.dearest_usd))


NOTHING = Spent()


def duration(seconds: float) -> str:
    """As OpenAI writes a reset: 20ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s" if whole >= 60 else f"{whole}s"
