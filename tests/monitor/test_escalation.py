"""How many requests may escalate: by what the reference says of the policy, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.monitor import telling
from gateway.monitor.alarms import Alarms, Kind
from gateway.monitor.clients import Clients
from gateway.monitor.escalation import Allowed, allowed, odds_doubled
from gateway.monitor.evidence import Findings, Served
from gateway.monitor.metrics import MonitorMetrics
from gateway.monitor.reference import NOTHING, Reference, tier_reference
from gateway.monitor.settings import Monitors
from gateway.monitor.slo import WINDOWS, Slos
from gateway.monitor.telling import Seen
from gateway.monitor.watch import Watch

LABEL = "small@1"


def known(share: float, n: int = 1_000) -> Reference:
    """Of a policy whose first tier is below .8 in this share of its answers."""
    p = np.where(np.arange(n) < share * n, 0.5, 0.9)
    rows = np.column_stack([np.random.default_rng(0).normal(size=n), p])
    return Reference({("default", "small"): tier_reference(LABEL, ["lp_mean"], rows)})


def served(accept_at: float = 0.8, label: str = LABEL) -> Served:
    return {"default": {"small": (label, accept_at), "large": ("none", None)}, "alone": {"large": ("none", None)}}


def watching(reference: Reference, served: Served, slos: Slos) -> Watch:
    watch = Watch(reference, slos, rows=200)
    watch.allow(allowed(served, reference, slos))
    return watch


def sent(watch: Watch, share: float, n: int = 400) -> Watch:
    for place in range(n):
        watch.ended(200, 0.1, policy="default", escalated=place < share * n, now=60.0 * (place % 60))
    return watch


def seen(watch: Watch, served: Served) -> Seen:
    return Seen(served, Monitors(), watch, Findings(), {}, {}, kept=False, requests=400, began=0.0)


@pytest.mark.parametrize(("expected", "limit"), [(0.05, 0.096), (0.3, 0.462), (0.9, 0.947)])
def test_twice_the_odds_of_what_the_reference_says_may_escalate(expected: float, limit: float) -> None:
    found = allowed(served(), known(expected), Slos())
    assert found.keys() == {"default"}, "where there is one tier nothing escalates"
    assert found["default"].limit == pytest.approx(limit, abs=2e-3)
    assert found["default"].expected == pytest.approx(expected, abs=2e-3)
    assert found["default"].n == 1_000


def test_another_threshold_lets_as_many_escalate_as_it_turns_away_there() -> None:
    lower = allowed(served(0.4), known(0.9), Slos())["default"]
    assert lower.expected == pytest.approx(1 / 1002)  # nobody was below; what was never seen is rare
    assert allowed(served(0.95), known(0.3), Slos())["default"].expected == pytest.approx(1001 / 1002)


def test_what_is_set_by_hand_counts_whatever_the_reference_says() -> None:
    assert allowed(served(), known(0.9), Slos(escalated=0.25)) == {"default": Allowed(0.25)}


@pytest.mark.parametrize(
    ("reference", "label", "why"),
    [(NOTHING, LABEL, "no reference is configured"), (known(0.5), "small@2", "the reference is of small@1"),
     (Reference({("other", "small"): known(0.5).tiers["default", "small"]}), LABEL, "has no small of this policy")],
)  # fmt: skip
def test_without_a_share_to_expect_there_is_no_objective_and_that_is_said(
    reference: Reference, label: str, why: str
) -> None:
    now = served(label=label)
    watch = sent(watching(reference, now, Slos()), 1.0)
    assert [alarm for alarm in telling.alarms(seen(watch, now), 3600.0) if alarm.kind is Kind.SLO] == []
    report = telling.report(seen(watch, now), Alarms(), 0.0, 3600.0)
    [told] = [one for one in report["slos"] if one["objective"] == "escalation"]
    assert (told["policy"], told["state"], told["budget"]) == ("default", "unknown", None)
    assert why in told["why"]
    assert "monitors.slos.escalated" in telling.as_text(report)


@pytest.mark.parametrize(
    ("expected", "escalated", "alarmed"),
    [(0.9, 0.9, False), (0.9, 0.99, True), (0.1, 0.1, False), (0.1, 0.5, True), (0.3, 0.9, True)],
)
def test_a_cascade_that_escalates_as_it_is_meant_to_is_no_news_and_one_that_escalates_more_is(
    expected: float, escalated: float, alarmed: bool
) -> None:
    watch = sent(watching(known(expected), served(), Slos()), escalated)
    found = [alarm for alarm in telling.alarms(seen(watch, served()), 3600.0) if alarm.kind is Kind.SLO]
    assert [(one.what, one.slice) for one in found] == ([("escalation", "default")] if alarmed else [])
    assert all("needed more than one tier" in one.why for one in found)
    registry = CollectorRegistry()
    MonitorMetrics(registry).burned(watch.promises(), 3600.0, WINDOWS)
    text = generate_latest(registry).decode()
    assert f'slo_burning{{objective="escalation",policy="default"}} {float(alarmed)}' in text
    limit = odds_doubled((round(1000 * expected) + 1) / 1002)
    assert f'slo_budget{{objective="escalation",policy="default"}} {limit}' in text


def by_clients(watch: Watch, shares: dict[str, float], n: int = 60, now: float = 60.0) -> Watch:
    for client, share in shares.items():
        for place in range(n):
            watch.ended(200, 0.1, policy="default", escalated=place < share * n, now=now, client=client)
    return watch


def test_a_key_that_escalates_far_more_than_its_policy_was_chosen_for_is_named() -> None:
    watch = watching(known(0.3), served(), Slos())
    by_clients(watch, {"alice": 0.95, "bob": 0.3, "carol": 0.0, "dan": 0.0, "eve": 0.46})
    [alarm] = [one for one in telling.alarms(seen(watch, served()), 60.0) if one.kind is Kind.SLO]
    assert (alarm.what, alarm.slice, alarm.page) == ("escalation by alice", "default", False)
    assert alarm.why.startswith("57 of 60 requests of key alice needed more than one tier")
    assert watch.clients.excesses({"default": 0.46}, 60.0 + 1800) != [], "the half hour before counts as well"
    assert watch.clients.excesses({"default": 0.46}, 60.0 + 3600) == []


def test_among_many_keys_chance_names_none() -> None:
    chance, named = np.random.default_rng(0), 0
    for _ in range(20):
        clients = Clients()
        for client in map(str, range(50)):
            for escalated in chance.random(40) < 0.46:  # each as often as it may
                clients.note("default", client, 1.0, escalated=bool(escalated))
        named += clients.excesses({"default": 0.46}, 1.0) != []
    assert named <= 2  # P(more than 2 of 20 | 1 %) is 1e-3


@pytest.mark.parametrize(
    "shares", [{"alice": 1.0}, {"alice": 0.45, "bob": 0.45}, {"": 1.0, "bob": 0.2}], ids=["alone", "within", "nobody"]
)
def test_a_key_alone_or_within_the_limit_and_those_without_one_are_not_named(shares: dict[str, float]) -> None:
    watch = by_clients(watching(known(0.3), served(), Slos()), shares)
    assert watch.clients.excesses({"default": 0.46}, 60.0) == []


def test_requests_of_other_ways_are_not_counted_and_a_new_limit_begins_anew() -> None:
    watch = sent(watching(known(0.3), served(), Slos()), 1.0, n=40)
    watch.ended(200, 0.1, policy="", escalated=True, now=0.0)
    counted = watch.escalations["default"]
    assert counted.seen(3599.0, 3600.0) == (40, 40)
    watch.allow(allowed(served(), known(0.3), Slos()))
    assert watch.escalations["default"] is counted
    another = Watch(known(0.3), Slos(), rows=300, used=watch)
    another.allow(allowed(served(), known(0.3), Slos()))
    assert another.promises() == watch.promises(), "other windows for drift take nothing back that was used up"
    watch.allow(allowed(served(0.95), known(0.3), Slos()))
    assert watch.escalations["default"].seen(3599.0, 3600.0) == (0, 0)
