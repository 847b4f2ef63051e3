from __future__ import annotations

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from gateway.monitor.escalation import Allowed
from gateway.monitor.metrics import MonitorMetrics
from gateway.monitor.reference import Reference, tier_reference
from gateway.monitor.rollout import Action, Stage
from gateway.monitor.rollout_metrics import RolloutMetrics
from gateway.monitor.slo import Calibration, Objective, Slos
from gateway.monitor.watch import Watch
from gateway.nouns import Features, Floats, Hop, Reason

NAMES, PLACE = ("lp_mean", "length"), ("default", "small")


def rows(n: int, shift: float = 0.0, seed: int = 0) -> Floats:
    X = np.random.default_rng(seed).normal(size=(n, 2)) + shift
    return np.column_stack([X, 1 / (1 + np.exp(-X[:, 0]))])


def traffic(n: int, shift: float = 0.0, seed: int = 1) -> list[Hop]:
    return [
        Hop("small", Reason.CONFIDENT, 0.1, None, float(row[-1]), Features(NAMES, row[:-1]), calibrator_id="s@1")
        for row in rows(n, shift, seed)
    ]


def watch() -> Watch:
    reference = Reference({PLACE: tier_reference("s@1", NAMES, rows(1_500))})
    return Watch(reference, Slos(), rows=200)


def test_nothing_is_judged_before_a_window_is_full_and_a_shift_is_told_when_it_is() -> None:
    one = watch()
    for hop in traffic(199, 1.0):
        one.note("default", [hop])
    assert one.look() == []
    assert one.latest == {}
    one.note("default", traffic(1, 1.0))
    assert {shift.what for shift in one.look() if shift.drifted} >= {"lp_mean", "length", "p_correct"}
    assert one.looks == 1
    assert any(shift.drifted for shift in one.latest[PLACE])


def test_the_latest_look_is_what_counts() -> None:
    one = watch()
    for shift in (1.0, 0.0):
        for hop in traffic(200, shift):
            one.note("default", [hop])
        one.look()
    assert not any(shift.drifted for shift in one.latest[PLACE])


def test_what_clients_do_wrong_burns_no_budget() -> None:
    one = watch()
    one.allow({"default": Allowed(0.5)})
    for status in (200, 200, 404, 422, 499, 503):
        one.ended(status, 20.0, policy="default", escalated=True, now=10.0)
    seen = {(name, policy): budget.seen(10.0, 60.0) for name, policy, budget in one.promises()}
    assert seen == {
        (Objective.AVAILABILITY, ""): (1, 3), (Objective.LATENCY, ""): (2, 2), (Objective.ESCALATION, "default"): (2, 2)
    }  # fmt: skip


def test_metrics_say_what_a_look_found() -> None:
    registry = CollectorRegistry()
    metrics, one = MonitorMetrics(registry), watch()
    for hop in traffic(200, 1.0):
        one.note("default", [hop])
    metrics.looked(one.look(), one.windows.missed)
    metrics.judged([], {"default": Calibration.BROKEN})
    rollouts = RolloutMetrics(registry)
    rollouts.stepped("small", Action.ROLLBACK)
    rollouts.at("small", Stage.NONE)
    text = generate_latest(registry).decode()
    for line in (
        'confidence_gateway_drifted{policy="default",tier="small"} 1.0',
        'confidence_gateway_calibration_state{policy="default",state="broken"} 1.0',
        'confidence_gateway_calibration_state{policy="default",state="holds"} 0.0',
        'confidence_gateway_rollout_steps_total{action="rollback",tier="small"} 1.0',
        'confidence_gateway_rollout_stage{stage="none",tier="small"} 1.0',
    ):
        assert line in text
