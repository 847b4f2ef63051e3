from __future__ import annotations

import pytest

from gateway.monitor import slo
from gateway.monitor.slo import Budget, Calibration, Objective, Slos


def filled(minutes: int, bad_in_ten: int, share: float = 0.005, per_minute: int = 10) -> Budget:
    budget = Budget(share)
    for minute in range(minutes):
        for n in range(per_minute):
            budget.note(minute * 60.0, bad=n < bad_in_ten)
    return budget


def test_a_budget_burns_at_one_when_exactly_the_allowed_share_goes_wrong() -> None:
    assert filled(60, 1, share=0.1).burn(59 * 60.0, 3600) == pytest.approx(1.0)


def test_an_outage_pages_within_minutes_and_no_longer_than_it_lasts() -> None:
    budget = filled(120, 0)
    start = 120
    for minute in range(start, start + 10):
        for _ in range(10):
            budget.note(minute * 60.0, bad=True)
    assert any(pair.page for pair in budget.alarms((start + 9) * 60.0))
    for minute in range(start + 10, start + 20):
        for _ in range(10):
            budget.note(minute * 60.0, bad=False)
    assert not any(pair.burn == 14.4 for pair in budget.alarms((start + 19) * 60.0))


def test_a_few_requests_at_night_wake_nobody() -> None:
    budget = Budget(0.005)
    budget.note(0.0, bad=True)
    assert budget.alarms(1.0) == []


def test_a_wide_budget_can_alarm_too() -> None:
    assert filled(60, 10, share=0.5).alarms(59 * 60.0)
    assert not filled(60, 6, share=0.5).alarms(59 * 60.0, slo.PAIRS[:1])


def test_minutes_of_days_ago_are_forgotten() -> None:
    budget = filled(10, 10)
    later = (slo.MINUTES + 20) * 60.0
    budget.note(later, bad=False)
    assert budget.seen(later, 72 * 3600) == (0, 1)


def test_too_few_labels_are_unknown_and_a_proof_needs_no_more() -> None:
    slos = Slos()
    assert calibration_of(slos.min_labels - 1) is Calibration.UNKNOWN
    assert calibration_of(slos.min_labels) is Calibration.HOLDS
    assert slo.calibration(labels=5, broken=True, slos=slos) is Calibration.BROKEN


def calibration_of(labels: int) -> Calibration:
    return slo.calibration(labels=labels, broken=False, slos=Slos())


def test_every_objective_of_events_but_escalation_has_a_budget_of_all_requests() -> None:
    assert set(Slos().budgets) == set(Objective) - {Objective.ESCALATION}
    assert Slos().budgets[Objective.AVAILABILITY] == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("bad", "total", "share", "alarmed"),
    [(2, 24, 0.05, False), (1, 20, 0.005, False), (3, 24, 0.005, True), (12, 24, 0.05, True), (80, 1500, 0.05, False),
     (110, 1500, 0.05, True)],
)  # fmt: skip
def test_what_chance_may_give_is_no_alarm(bad: int, total: int, share: float, alarmed: bool) -> None:
    budget = Budget(share)
    for event in range(total):
        budget.note(100.0, bad=event < bad)
    assert bool(budget.alarms(100.0)) is alarmed
