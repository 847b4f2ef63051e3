"""What the monitors cost, and what they say without a gateway around them."""

from __future__ import annotations

from tests.bench.monitors import ended_microseconds


def test_noting_a_request_over_four_tiers_takes_the_event_loop_less_than_fifty_microseconds() -> None:
    middle, _, tiers = ended_microseconds(2_000)
    assert tiers == 4
    assert middle < 50
