"""What becomes of calibrators, as Prometheus metrics."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.monitor.metrics import PREFIX
from gateway.monitor.rollout import Action, Stage


class RolloutMetrics:
    """In the registry of the process, beside the telemetry's own. Several workers all tell the same stage."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._stage = Gauge(
            f"{PREFIX}_rollout_stage", "1 for the stage a candidate is in", ["tier", "stage"], registry=registry
        )
        self._steps = Counter(
            f"{PREFIX}_rollout_steps", "steps of rollouts that this process took", ["tier", "action"], registry=registry
        )
        self._broken = Gauge(
            f"{PREFIX}_rollout_broken",
            "1 where registry or artefact cannot be used, so what ran before runs on",
            ["tier"],
            registry=registry,
        )
        self._probes = Counter(
            f"{PREFIX}_fingerprint_probes", "questions to a tier about itself, by result", ["tier", "result"],
            registry=registry,
        )  # fmt: skip
        self._mismatch = Gauge(
            f"{PREFIX}_fingerprint_mismatch",
            "1 where a tier's server is another than its calibrator's",
            ["tier"],
            registry=registry,
        )

    def start(self, tiers: Iterable[str]) -> None:
        """So that every series is there before anything happens."""
        for tier in tiers:
            self.at(tier, Stage.NONE)
            self.broken(tier, broken=False)
            self.mismatched(tier, mismatch=False)
            for action in Action:
                self._steps.labels(tier, action)

    def at(self, tier: str, stage: Stage) -> None:
        for each in Stage:
            self._stage.labels(tier, each).set(each is stage)

    def stepped(self, tier: str, action: Action) -> None:
        self._steps.labels(tier, action).inc()

    def broken(self, tier: str, *, broken: bool) -> None:
        self._broken.labels(tier).set(broken)

    def probed(self, tier: str, result: str) -> None:
        self._probes.labels(tier, result).inc()

    def mismatched(self, tier: str, *, mismatch: bool) -> None:
        self._mismatch.labels(tier).set(mismatch)
