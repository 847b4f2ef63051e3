"""Where a tier wears calibrators: one judges whole answers, one first tokens. Each place has a rollout of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibrators.artifact import Artifact, ArtifactMismatch
from gateway.config import Config
from gateway.nouns import Prefix, Tier
from gateway.policy import first_tokens
from gateway.snapshot import bared, like, prefix_tokens


@dataclass(frozen=True, slots=True)
class Place:
    """name: of the rollout.  calibrator: the one that is configured.  first: it judges first tokens."""

    name: str
    tier: str
    calibrator: Path
    first: bool = False

    def seen(self, tier: Tier) -> Tier:
        """The tier as if what this place wears were all it had."""
        if not self.first:
            return tier
        if tier.prefix is None:
            return bared(tier)
        return replace(like(tier, tier.prefix.tier), rival=tier.prefix.tier.rival)

    def put(self, tier: Tier, found: Tier, tokens: int) -> Tier:
        """The tier with what was found for this place. tokens: how many first ones are judged, 0 for no calibrator."""
        if not self.first:
            return found
        return replace(tier, prefix=Prefix(tokens, replace(found, prefix=None)) if tokens else None)

    def check(self, artifact: Artifact) -> None:
        """Raises ArtifactMismatch for one that belongs to the other place."""
        tokens = prefix_tokens(artifact)
        if bool(tokens) == self.first:
            return
        fitted = f"the first {tokens} tokens, and decides on no whole answer" if tokens else "whole answers"
        other = first_tokens(self.tier) if tokens else self.tier
        raise ArtifactMismatch(f"{artifact.label} was fitted on {fitted}; its place is {other!r}, not {self.name!r}")


def places(config: Config) -> Sequence[Place]:
    """All that have a calibrator configured, in the order of the tiers."""
    found: list[Place] = []
    for entry in config.tiers:
        if entry.calibrator is not None:
            found.append(Place(entry.name, entry.name, entry.calibrator))
        if entry.prefix_calibrator is not None:
            found.append(Place(first_tokens(entry.name), entry.name, entry.prefix_calibrator, first=True))
    return found
