"""What the monitors say, as Prometheus metrics. Labels come from the configuration and from our own words only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.monitor.alarms import Alarm, Kind
from gateway.monitor.drift import Shift
from gateway.monitor.labels import ErrorVerdict, Rolling, Verdict
from gateway.monitor.slo import Budget, Calibration, Objective

PREFIX = "confidence_gateway"


class MonitorMetrics:
    """In the registry of the process, beside the telemetry's own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, told: str, *labels: str) -> Gauge:
            return Gauge(f"{PREFIX}_{name}", told, labels, registry=registry)

        self._effect = gauge(
            "drift_effect", "largest KS distance of a tier's features and score in the latest look", "policy", "tier"
        )
        self._psi = gauge("drift_psi", "largest population stability index, less its mean by chance", "policy", "tier")
        self._drifted = gauge("drifted", "1 when the latest look at a tier found drift", "policy", "tier")
        self._slice_effect = gauge(
            "drift_slice_effect", "as drift_effect, of a slice of the configuration", "policy", "tier", "slice"
        )
        self._slice_drifted = gauge("slice_drifted", "as drifted, of a slice", "policy", "tier", "slice")
        self._far = gauge(
            "out_of_distribution_share", "share of answers beyond the reference's 99th percentile", "policy", "tier"
        )
        self._missed = gauge("drift_missed_rows", "answers that came while a full window waited for its look")
        self._wealth = gauge(
            "calibration_log_wealth", "most that the log wealth of a calibration test was", "policy", "tier", "side"
        )
        self._labels = gauge("calibration_labels", "labels that the calibration test has seen", "policy", "tier")
        self._holds = gauge("calibration_state", "1 for the state that holds", "policy", "state")
        self._brier = gauge("rolling_brier", "Brier score of the latest labels", "policy", "tier")
        self._brier_limit = gauge("rolling_brier_limit", "its 99th percentile if every p were true", "policy", "tier")
        self._ece = gauge("rolling_debiased_ece", "debiased ECE of the latest labels", "policy", "tier")
        self._ece_limit = gauge(
            "rolling_debiased_ece_limit", "its 99th percentile if every p were true", "policy", "tier"
        )
        self._error_low = gauge("accepted_error_low", "least rate of wrong accepted answers, at every look", "policy")
        self._error_high = gauge("accepted_error_high", "most of it, as far as labels come", "policy")
        self._error_limit = gauge("accepted_error_objective", "what was promised", "policy")
        self._budget = gauge("slo_budget", "share that may go wrong; policy is empty for all", "objective", "policy")
        self._burn = gauge(
            "slo_burn_rate",
            "share gone wrong over its budget, in a window of seconds",
            "objective",
            "policy",
            "seconds",
        )
        self._burning = gauge(
            "slo_burning", "1 while a budget burns too fast, and not by chance", "objective", "policy"
        )
        self._refits = Counter(
            f"{PREFIX}_refits",
            "fits that started by themselves, by what became of them",
            ["outcome"],
            registry=registry,
        )
        for outcome in ("started", "offered", "declined", "failed"):
            self._refits.labels(outcome)
        self._alarms = gauge("alarms", "what the monitors hold to be wrong now, by kind", "kind")
        for kind in Kind:
            self._alarms.labels(kind)

    def forget(self) -> None:
        """Everything by policy and tier: the configuration may have others now."""
        by_place = (
            self._effect, self._psi, self._drifted, self._far, self._slice_effect, self._slice_drifted,
            self._wealth, self._labels, self._holds, self._brier,
            self._brier_limit, self._ece, self._ece_limit, self._error_low, self._error_high, self._error_limit,
            self._budget, self._burn, self._burning,
        )  # fmt: skip
        for each in by_place:
            each.clear()

    def alarmed(self, alarms: Sequence[Alarm]) -> None:
        """All that are on."""
        for kind in Kind:
            self._alarms.labels(kind).set(sum(alarm.kind is kind for alarm in alarms))

    def refitted(self, outcomes: Sequence[str]) -> None:
        for outcome in outcomes:
            self._refits.labels(outcome).inc()

    def looked(self, shifts: Sequence[Shift], missed: int) -> None:
        """One look at drift."""
        for policy, tier, part in {(shift.policy, shift.tier, shift.slice) for shift in shifts}:
            here = [shift for shift in shifts if (shift.policy, shift.tier, shift.slice) == (policy, tier, part)]
            if part:
                effect = max(one.effect for one in here if one.what != "ood")
                self._slice_effect.labels(policy, tier, part).set(effect)
                self._slice_drifted.labels(policy, tier, part).set(any(one.drifted for one in here))
                continue
            self._effect.labels(policy, tier).set(max(one.effect for one in here if one.what != "ood"))
            self._psi.labels(policy, tier).set(max(one.psi for one in here))
            self._drifted.labels(policy, tier).set(any(one.drifted for one in here))
        for one in shifts:
            if one.what == "ood" and not one.slice:
                self._far.labels(one.policy, one.tier).set(one.effect)
        self._missed.set(missed)

    def judged(self, verdicts: Sequence[Verdict], states: Mapping[str, Calibration]) -> None:
        """verdicts: of which the newest calibrator of a tier comes last.  states: by policy."""
        for one in verdicts:
            self._wealth.labels(one.policy, one.tier, "over").set(one.log_over)
            self._wealth.labels(one.policy, one.tier, "under").set(one.log_under)
            self._labels.labels(one.policy, one.tier).set(one.n)
        for policy, now in states.items():
            for state in Calibration:
                self._holds.labels(policy, state).set(state is now)

    def rolled(self, policy: str, tier: str, found: Rolling) -> None:
        self._brier.labels(policy, tier).set(found.brier)
        self._brier_limit.labels(policy, tier).set(found.brier_limit)
        self._ece.labels(policy, tier).set(found.ece)
        self._ece_limit.labels(policy, tier).set(found.ece_limit)

    def erred(self, one: ErrorVerdict) -> None:
        self._error_low.labels(one.policy).set(one.low)
        self._error_high.labels(one.policy).set(one.high)
        self._error_limit.labels(one.policy).set(one.limit)

    def burned(self, promises: Sequence[tuple[Objective, str, Budget]], now: float, windows: Sequence[float]) -> None:
        """promises: objective, policy or "" for all, budget.  now: monotonic seconds."""
        for objective, policy, budget in promises:
            self._budget.labels(objective, policy).set(budget.share)
            self._burning.labels(objective, policy).set(bool(budget.alarms(now)))
            for seconds in windows:
                self._burn.labels(objective, policy, f"{seconds:g}").set(budget.burn(now, seconds))
