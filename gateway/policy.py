"""A calibrated probability meets a threshold here and nowhere else; and which policy of a mix a decision follows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from gateway.nouns import Finish, Mix, Policy, Reason, Rival, Tier


def decide(p_correct: float | None, threshold: float | None, *, finish: Finish, null_reason: Reason | None) -> Reason:
    """What becomes of one tier's answer.

    p_correct: calibrated probability in [0, 1], None without evidence, and then null_reason says why.
    threshold: accept at or above it; None accepts whatever came (a last tier, a bypass).
    No evidence is not low confidence: it has its own reason, and it escalates.
    """
    if threshold is None:
        return Reason.LAST
    if finish.cut:
        return Reason.TRUNCATED
    if p_correct is None:
        return null_reason or Reason.NO_EVIDENCE
    return Reason.CONFIDENT if p_correct >= threshold else Reason.UNSURE


def drawn(route: Policy | Mix, decision: str) -> Policy:
    """The policy that this decision follows. decision: any text; the same one always draws alike, on every machine."""
    if isinstance(route, Policy):
        return route
    place = lot(decision, route.key)
    ends = accumulate(route.shares)
    return next((part for part, end in zip(route.parts, ends, strict=True) if place < end), route.parts[-1])


def canaried(route: Policy, place: Callable[[str], float]) -> Policy:
    """The route of one conversation: a tier whose rival decides for it has changed places with the rival.

    place: by the name of a tier or of its `first_tokens`, where the conversation stands in [0, 1); it is the rival's
    when below the rival's share. A route with a rival in it is not what a certificate was issued for.
    """
    if not any(tier.rival or (tier.prefix and tier.prefix.tier.rival) for tier in route.tiers):
        return route
    tiers = tuple(changed(tier, place) for tier in route.tiers)
    if all(one is other for one, other in zip(tiers, route.tiers, strict=True)):
        return route
    return replace(route, tiers=tiers, certified=False)


def changed(tier: Tier, place: Callable[[str], float]) -> Tier:
    found = swapped(tier, place(tier.name))
    if tier.prefix is None:
        return found
    first = swapped(tier.prefix.tier, place(first_tokens(tier.name)))
    if found is tier and first is tier.prefix.tier:
        return tier
    return replace(found, prefix=replace(tier.prefix, tier=first))


def swapped(tier: Tier, place: float) -> Tier:
    rival = tier.rival
    if rival is None or not rival.share or place >= rival.share:
        return tier
    beside = Rival(replace(tier, rival=None))
    mine = replace(rival.tier, threshold=tier.threshold, abort_epsilon=tier.abort_epsilon, prefix=tier.prefix)
    return replace(mine, rival=beside)


def first_tokens(tier: str) -> str:
    """What decides on a tier's first tokens is called so, where it is on trial. No tier's name has a colon."""
    return f"{tier}:prefix"


def lot(decision: str, key: str = "") -> float:
    """A number in [0, 1) that looks random and follows from the decision and the key alone. key: 64 bytes at most."""
    digest = hashlib.blake2b(decision.encode(), digest_size=8, key=key.encode(), person=b"mix").digest()
    return int.from_bytes(digest) / 2**64
