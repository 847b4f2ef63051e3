"""The breaker against its rules, on a clock of our own."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.resilience.breaker import Breaker, Entry, Rules

RULES = Rules(in_a_row=5, share=0.5, least=10, window_seconds=10, open_seconds=5, open_max_seconds=60)


def breaker() -> Breaker:
    return Breaker(RULES, chance=lambda: 0.5)  # in the middle: no jitter


def call(one: Breaker, now: float, good: bool | None) -> Entry:
    entry = one.enter(now)
    one.leave(entry, good=good, now=now)
    return entry


def opened(now: float = 0.0) -> Breaker:
    one = breaker()
    for _ in range(RULES.in_a_row):
        call(one, now, False)
    assert one.is_open
    return one


def test_failures_in_a_row_open_it_and_one_success_between_them_does_not() -> None:
    one = breaker()
    for good in (False, False, False, False, True, False, False, False, False):
        call(one, 0.0, good)
        assert not one.is_open
    call(one, 0.0, False)
    assert one.is_open


def test_what_was_answered_counts_until_a_call_fails_or_the_window_is_over() -> None:
    one = breaker()
    assert not one.answered(0.0)
    call(one, 0.0, True)
    call(one, 1.0, None)
    assert one.answered(10.0)
    assert not one.answered(10.1)
    call(one, 11.0, False)
    assert not one.answered(11.0)


def test_a_share_of_failures_opens_it_within_its_window_only() -> None:
    for step, is_open in ((0.5, True), (3.0, False)):
        one = breaker()
        ever = []
        for n in range(20):
            call(one, n * step, n % 2 == 0)
            ever.append(one.is_open)
        assert any(ever) is is_open


def test_what_says_nothing_counts_for_nothing() -> None:
    one = breaker()
    for _ in range(100):
        call(one, 0.0, None)
    assert not one.is_open


def test_open_times_double_to_their_cap() -> None:
    one, now = opened(), 0.0
    lasted = []
    for _ in range(6):
        lasted.append(one.left(now))
        now += lasted[-1]
        assert call(one, now, False) is Entry.PROBE
    assert lasted == [5, 10, 20, 40, 60, 60]


def test_open_times_vary_by_a_fifth() -> None:
    for chance, seconds in ((0.0, 4.0), (0.999999, 6.0)):
        one = Breaker(RULES, chance=lambda chance=chance: chance)  # type: ignore[misc]
        for _ in range(5):
            call(one, 0.0, False)
        assert one.left(0.0) == pytest.approx(seconds, abs=1e-4)


def test_who_comes_while_a_probe_is_out_is_barred() -> None:
    one = opened()
    assert [one.enter(5.0) for _ in range(3)] == [Entry.PROBE, Entry.BARRED, Entry.BARRED]


def test_a_good_probe_closes_it_and_the_count_begins_anew() -> None:
    one = opened()
    assert call(one, 4.9, True) is not Entry.PROBE
    one = opened()
    assert call(one, 5.0, True) is Entry.PROBE
    assert not one.is_open
    for _ in range(4):
        call(one, 5.0, False)
    assert not one.is_open


def test_a_probe_whose_client_left_makes_room_for_the_next() -> None:
    one = opened()
    assert call(one, 5.0, None) is Entry.PROBE
    assert one.enter(5.0) is Entry.PROBE


def test_a_call_from_before_the_opening_does_not_close_it() -> None:
    one = breaker()
    early = one.enter(0.0)
    for _ in range(5):
        call(one, 0.0, False)
    one.leave(early, good=True, now=1.0)
    assert one.is_open


@given(st.lists(st.tuples(st.sampled_from(["enter", "good", "bad", "left"]), st.floats(0, 20)), max_size=200))
def test_there_is_never_more_than_one_probe(steps: list[tuple[str, float]]) -> None:
    one, now, held = breaker(), 0.0, list[Entry]()
    for act, seconds in steps:
        now += seconds
        if act == "enter":
            held.append(one.enter(now))
        elif held:
            one.leave(held.pop(0), good={"good": True, "bad": False, "left": None}[act], now=now)
        assert held.count(Entry.PROBE) <= 1
        assert 0 <= one.left(now) <= 60 * 1.2


def test_a_busy_tier_pays_no_more_for_its_breaker_than_an_idle_one() -> None:
    """A window full of calls must not be counted anew for each of them."""
    one = breaker()
    began = time.process_time()
    for n in range(20_000):
        call(one, n * 1e-4, True)
    assert time.process_time() - began < 1.0  # 0.05 s; counting anew took 24


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 5)), max_size=100))
def test_the_share_is_that_of_the_window(calls: list[tuple[bool, float]]) -> None:
    rules, told, now = Rules(in_a_row=10**6), list[tuple[float, bool]](), 0.0
    one = Breaker(rules)
    for good, seconds in calls:
        now += seconds
        call(one, now, good)
        told = [(when, well) for when, well in [*told, (now, good)] if when >= now - rules.window_seconds]
        failed = sum(not well for _, well in told)
        assert one.is_open is (not good and len(told) >= rules.least and failed >= rules.share * len(told))
        if one.is_open:
            return
