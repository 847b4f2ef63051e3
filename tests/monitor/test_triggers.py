from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.monitor.drift import Shift
from gateway.monitor.labels import Verdict
from gateway.monitor.triggers import Cause, FitWish, Labels, Schedule, Waiting, wanted

DAY = 86400.0
DRIFTED = Shift("default", "small", "lp_mean", 0.3, 1e-9, 0.4, 500, 1_500, True)
OVER = Verdict("default", "small", 400, 9.0, 0.0, True, False)


def ask(**other: Any) -> FitWish | Waiting | None:
    given: dict[str, Any] = {
        "verdicts": [], "shifts": [], "other_model": False, "fitted_at": 0.0, "tried_at": None,
        "labels": Labels(rare=400, explored=100), "schedule": Schedule(), "now": DAY,
    }  # fmt: skip
    return wanted("small", **(given | other))


def test_a_quiet_tier_wants_no_fit() -> None:
    calm = replace(OVER, overconfident=False), replace(OVER, tier="large")
    assert ask(verdicts=calm, shifts=[replace(DRIFTED, drifted=False), replace(DRIFTED, tier="large")]) is None


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        ({"verdicts": [OVER]}, Cause.METRIC),
        ({"verdicts": [replace(OVER, overconfident=False, underconfident=True)]}, Cause.METRIC),
        ({"shifts": [DRIFTED]}, Cause.DRIFT),
        ({"now": 91 * DAY}, Cause.SCHEDULE),
        ({"other_model": True, "verdicts": [OVER]}, Cause.MODEL),
    ],
)
def test_every_cause_starts_a_fit(other: dict[str, Any], cause: Cause) -> None:
    wish = ask(**other)
    assert isinstance(wish, FitWish)
    assert (wish.cause, wish.how) == (cause, "refit")


@pytest.mark.parametrize(("rare", "how"), [(300, "refit"), (299, "platt"), (99, "intercept")])
def test_the_ladder_takes_no_more_than_the_labels_bear(rare: int, how: str) -> None:
    wish = ask(shifts=[DRIFTED], labels=Labels(rare, 50))
    assert isinstance(wish, FitWish)
    assert wish.how == how


@pytest.mark.parametrize(
    ("other", "missing"),
    [
        ({"labels": Labels(29, 50)}, "1 more labels"),
        ({"labels": Labels(400, 0)}, "explored"),
        ({"labels": Labels(100, 50), "other_model": True}, "200 more labels"),
    ],
)
def test_what_is_missing_for_a_fit_is_told(other: dict[str, Any], missing: str) -> None:
    waiting = ask(shifts=[DRIFTED], **other)
    assert isinstance(waiting, Waiting)
    assert missing in waiting.missing


def test_no_second_fit_within_the_pause() -> None:
    assert ask(shifts=[DRIFTED], tried_at=0.5 * DAY) is None
    assert ask(shifts=[DRIFTED], tried_at=-0.5 * DAY) is not None
