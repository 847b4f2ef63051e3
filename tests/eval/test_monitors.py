"""`confgate monitors` on traffic made up here; the command itself runs on pocket records, docs/results/monitors.md."""

from __future__ import annotations

import numpy as np

from eval import monitors
from eval.card import Absent
from eval.monitors import Asked, Request
from gateway.monitor.labels import ROUTED
from gateway.monitor.reference import Reference
from gateway.nouns import Policy, Tier


def asked(n: int, seed: int, *, shift: float = 0.0, over: float = 0.0) -> list[Asked]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) + shift
    p = np.clip(1 / (1 + np.exp(-X[:, 0] - 1)), 0.05, 0.95)
    right = rng.random(n) < p - over
    return [
        Asked(((("default", "small"), np.append(x, a)),), "small", float(a), bool(b))
        for x, a, b in zip(X, p, right, strict=True)
    ]


def route() -> Policy:
    return Policy(
        "default", (Tier("small", Absent("small", {}), features=("lp_mean", "length"), calibrator_id="small@1"),)
    )


def test_halves_of_the_same_traffic_raise_no_alarm() -> None:
    rng = np.random.default_rng(0)
    by_drift, by_labels, looks = monitors.quiet(asked(1_000, 1), route(), Request(halves=5), rng)
    assert (by_drift, by_labels) == (0, 0)
    assert looks == 10


def test_delays_of_a_shift_are_counted_from_its_first_request() -> None:
    known = monitors.reference_of(asked(1_000, 2), route())
    found = monitors.loud(
        "harder", asked(300, 3, shift=-1, over=0.3), asked(800, 4), known, Request(orders=3), np.random.default_rng(5)
    )
    assert found.drift == (monitors.ROWS,) * 3
    assert len(found.labels) == 3
    assert all(0 < labels <= 300 for labels in found.labels)
    assert found.claimed > found.accuracy


def test_tiers_that_see_too_little_have_no_reference_and_raise_no_alarm() -> None:
    known = monitors.reference_of(asked(monitors.ROWS - 1, 6), route())
    assert known.tiers == {}
    assert monitors.drift_alarm(asked(300, 7, shift=5), Reference({})) == (None, 0, ())


def test_the_page_says_n_and_interval_of_what_was_measured() -> None:
    request = Request(streams=20, stream_labels=200, orders=2)
    rng = np.random.default_rng(8)
    known = monitors.reference_of(asked(1_000, 9), route())
    found = monitors.Found(
        request=request, n_reference={"small": 1_000}, n_home=800, quiet_drift=0, quiet_labels=0, quiet_looks=4,
        false_alarms=monitors.false_alarms(request, rng),
        stream_delays={0.3: monitors.stream_delay(0.3, request, rng)},
        delays=[monitors.loud("harder", asked(300, 10, over=0.4), asked(800, 11), known, request, rng)],
    )  # fmt: skip
    page = monitors.told(found, "confgate monitors")
    assert "0 alarms, 0.00% [0.00%, 16.84%]" in page
    assert "| harder | 300 |" in page
    assert "0 of 20 |" in page
    assert ROUTED not in page
