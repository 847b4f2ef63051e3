"""What drift is measured from when rollouts have put other calibrators in service than the reference was written for.

A calibrator that `confgate refit` made brings what the traffic looked like that its labels are of. Any other is asked
what it makes of the answers in the reference: whether answers look as they did does not depend on who judges them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

from calibrators.artifact import Artifact
from calibrators.base import CalibrationError
from gateway.errors import ConfigError
from gateway.monitor.reference import NOTHING, Reference, TierReference
from gateway.monitor.registry import Registry
from gateway.monitor.rollouts import Rollouts, of

log = logging.getLogger(__name__)


def renewed(reference: Reference, live: Mapping[str, Artifact], registry: Registry) -> Reference:
    """The reference for what is in service now; the very same one where it is of that already. live: by tier.

    A tier stays without one where the new calibrator looks at other features, or at another part of answers.
    """
    written = reference.written or reference
    tiers = dict(written.tiers)
    for tier, artifact in live.items():
        own = _own(registry, artifact)
        for place in [place for place in {**written.tiers, **own.tiers} if place[1] == tier]:
            known = written.tiers.get(place)
            if known is None or known.calibrator != artifact.label:  # else it was written for this one since
                mine = own.tiers.get(place) or (None if known is None else _judged(known, artifact, registry))
                tiers |= {} if mine is None else {place: mine}
    if all(tiers[place] is written.tiers.get(place) for place in tiers):
        return written
    told = [written.sha256, *sorted(artifact.sha256 for artifact in live.values())]
    return Reference(tiers, hashlib.sha256("\n".join(told).encode()).hexdigest(), written)


def in_service(rollouts: Rollouts) -> dict[str, Artifact]:
    """By tier, as the logs of rollouts have it. Raises ArtifactError, AuditBroken."""
    states = {tier: rollouts.state(tier) for tier in rollouts.tiers()}
    live = {tier: of(None if state is None else state.live, tier) for tier, state in states.items()}
    return {tier: rollouts.registry.get(sha256).artifact for tier, sha256 in live.items() if sha256 is not None}


def _own(registry: Registry, artifact: Artifact) -> Reference:
    try:
        return registry.reference(artifact.sha256)
    except ConfigError as error:
        log.error("a calibrator's own reference is not used", extra={"calibrator": artifact.label, "why": str(error)})
        return NOTHING


def _judged(known: TierReference, artifact: Artifact, registry: Registry) -> TierReference | None:
    if known.calibrator not in registry.alike(artifact):
        return None
    try:
        return known.under(artifact.label, artifact.features, artifact.calibrator().predict)
    except CalibrationError as error:  # gaps that it refuses, say
        log.warning(
            "the reference says nothing to a calibrator", extra={"calibrator": artifact.label, "why": str(error)}
        )
        return None
