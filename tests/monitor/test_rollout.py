from __future__ import annotations

import itertools

import numpy as np
import pytest

from gateway.errors import ConfigError, RolloutRefused
from gateway.monitor import rollout
from gateway.monitor.compare import Compared, Margins, Paired, Told
from gateway.monitor.labels import ErrorVerdict, Verdict
from gateway.monitor.rollout import Action, Health, Limits, Minute, Rate, Release, Stage, State, Step, Trial

OLD, NEW = Release({"small": "a" * 64}, {"small": 0.9}), Release({"small": "b" * 64}, {"small": 0.92})
LIMITS, WELL = Limits(), Health()


def trial(n: int = 600, gain: float = 0.15, seed: int = 0, flipped: int = 10) -> Trial:
    """Truth is .8 everywhere: the old one says .8 + gain, the new one .8; both accept."""
    paired = Paired(Margins())
    for right in np.random.default_rng(seed).random(n) < 0.8:
        paired = paired.after(old=Told(0.8 + gain, True, 0.1), new=Told(0.8, True, 0.1), right=bool(right))
    return Trial(1_000, flipped, Compared((paired,)))


def overconfident(wealth: float) -> Health:
    return Health(honesty=(Verdict("default", "small", 400, float(np.log(wealth)), 0.0, True, False),))


def at(stage: Stage) -> State:
    share = LIMITS.canary_share if stage is Stage.CANARY else 0.0
    return State(live=OLD, candidate=NEW, stage=stage, since=0.0, share=share)


def test_a_better_calibrator_goes_from_shadow_by_canary_to_live() -> None:
    state = rollout.after(State(live=OLD), rollout.offered(State(live=OLD), NEW, LIMITS), 0.0, NEW)
    assert (state.stage, state.live) == (Stage.SHADOW, OLD)
    for expected in (Action.CANARY, Action.PROMOTE):
        step = rollout.next_step(state, health=WELL, trial=trial(), limits=LIMITS, now=1.0)
        assert step is not None
        assert step.action is expected
        state = rollout.after(state, step, 1.0)
    assert state == State(live=NEW, good=(OLD,), since=1.0)


def test_no_canary_before_enough_was_seen_in_shadow() -> None:
    early = Trial(LIMITS.min_shadow - 1, 0, trial().paired)
    assert rollout.next_step(at(Stage.SHADOW), health=WELL, trial=early, limits=LIMITS, now=1.0) is None


def test_a_calibrator_that_changes_too_many_decisions_is_rejected_in_shadow() -> None:
    step = rollout.next_step(at(Stage.SHADOW), health=WELL, trial=trial(flipped=200), limits=LIMITS, now=1.0)
    assert step is not None
    assert step.action is Action.REJECT
    assert "20.0% of decisions" in step.why[0]


@pytest.mark.parametrize("few", [trial(n=0), trial(n=LIMITS.min_labels - 1), trial(gain=0.0)])
def test_nothing_is_promoted_without_enough_labels_that_prove_it_better(few: Trial) -> None:
    assert rollout.next_step(at(Stage.CANARY), health=WELL, trial=few, limits=LIMITS, now=1.0) is None


def test_equal_calibrators_are_promoted_less_often_than_alpha() -> None:
    rng, promoted = np.random.default_rng(1), 0
    for _ in range(40):
        paired = Paired(Margins())
        for right, told in zip(rng.random(150) < 0.8, rng.normal(0, 0.05, (150, 2)), strict=True):
            old, new = (Told(float(np.clip(0.8 + each, 0, 1)), True, 0.1) for each in told)
            paired = paired.after(old=old, new=new, right=bool(right))
        promoted += "brier" in paired.safe_in()
    assert promoted <= 6  # 2 expected at most; more than 6 of 40 has a chance below 1 %


def test_a_worse_calibrator_is_rejected_by_name_of_what_got_worse() -> None:
    paired = Paired(Margins())
    for right in np.random.default_rng(2).random(600) < 0.6:
        paired = paired.after(old=Told(0.6, False, 0.5), new=Told(0.95, True, 0.1), right=bool(right))
    step = rollout.next_step(
        at(Stage.CANARY), health=WELL, trial=Trial(600, 5, Compared((paired,))), limits=LIMITS, now=1.0
    )
    assert step is not None
    assert step.action is Action.REJECT
    assert step.why == ("worse in brier, accepted_wrong",)


def test_a_candidate_that_proves_nothing_is_not_kept_for_ever() -> None:
    late = LIMITS.max_seconds + 1
    step = rollout.next_step(at(Stage.CANARY), health=WELL, trial=trial(n=0), limits=LIMITS, now=late)
    assert step is not None
    assert step.action is Action.REJECT


def test_wealth_of_a_hundred_rolls_back_and_less_does_not() -> None:
    live = State(live=NEW, good=(OLD,))
    assert rollout.next_step(live, health=overconfident(99), trial=None, limits=LIMITS, now=1.0) is None
    step = rollout.next_step(live, health=overconfident(101), trial=None, limits=LIMITS, now=1.0)
    assert step is not None
    assert step.action is Action.ROLLBACK
    assert rollout.after(live, step, 2.0) == State(live=OLD, good=(), since=2.0)


def test_without_an_earlier_release_all_is_put_to_the_largest_tier() -> None:
    step = rollout.next_step(State(live=OLD), health=overconfident(1e6), trial=None, limits=LIMITS, now=1.0)
    assert step is not None
    assert step.action is Action.SAFE
    assert rollout.after(State(live=OLD), step, 1.0).live is None


def test_a_failing_canary_is_rejected_and_the_live_release_stays() -> None:
    step = rollout.next_step(at(Stage.CANARY), health=overconfident(1e6), trial=trial(), limits=LIMITS, now=1.0)
    assert step is not None
    assert step.action is Action.REJECT
    assert rollout.after(at(Stage.CANARY), step, 1.0).live == OLD


def test_what_is_wrong_while_a_candidate_is_in_shadow_is_the_live_release_s_fault() -> None:
    step = rollout.next_step(at(Stage.SHADOW), health=overconfident(1e6), trial=trial(), limits=LIMITS, now=1.0)
    assert step is not None
    assert step.action is Action.SAFE


@pytest.mark.parametrize(
    ("health", "word"),
    [
        (Health(errors=(ErrorVerdict("default", 0.05, 900, 100, 0.06, 0.2),)), "at least 6.00%"),
        (Health(minutes=(Minute(50, 30),) * 15, forecast=0.2), "outside [0.5, 2]"),
        (Health(minutes=(Minute(50, 3),) * 15, forecast=0.2), "outside [0.5, 2]"),
        (Health(rates=(Rate("truncated", 40, 1_000, 0.01),)), "truncated: 40"),
        (Health(mismatches=("small",)), "server of small"),
    ],
)
def test_every_criterion_rolls_back_and_says_so(health: Health, word: str) -> None:
    assert word in " ".join(rollout.back(health))


@pytest.mark.parametrize(
    "health",
    [
        Health(errors=(ErrorVerdict("default", 0.05, 900, 100, 0.04, 0.2),)),
        Health(minutes=(Minute(50, 30),) * 14, forecast=0.2),
        Health(minutes=(Minute(50, 30),) * 14 + (Minute(50, 10),), forecast=0.2),
        Health(minutes=(Minute(1, 1),) * 15, forecast=0.2),
        Health(minutes=(Minute(50, 30), Minute(50, 2)) * 8, forecast=0.2),
        Health(rates=(Rate("truncated", 3, 150, 0.01), Rate("no answer", 19, 1_000, 0.01))),
    ],
)
def test_less_than_a_criterion_does_not(health: Health) -> None:
    assert rollout.back(health) == ()


def test_no_release_moves_a_threshold_by_more_than_a_step() -> None:
    far = Release({"small": "b" * 64}, {"small": 0.99})
    with pytest.raises(RolloutRefused, match=r"accept_at of small from 0\.9 to 0\.99"):
        rollout.offered(State(live=OLD), far, LIMITS)
    with pytest.raises(RolloutRefused, match="in shadow already"):
        rollout.offered(at(Stage.SHADOW), NEW, LIMITS)


def test_every_step_that_is_not_possible_is_refused() -> None:
    possible = {
        (Stage.NONE, Action.SHADOW), (Stage.NONE, Action.SAFE), (Stage.SHADOW, Action.CANARY),
        (Stage.SHADOW, Action.PROMOTE), (Stage.SHADOW, Action.REJECT), (Stage.SHADOW, Action.SAFE),
        (Stage.CANARY, Action.PROMOTE), (Stage.CANARY, Action.REJECT), (Stage.CANARY, Action.SAFE),
    }  # fmt: skip
    for stage, action in itertools.product(Stage, Action):
        state = State(live=OLD) if stage is Stage.NONE else at(stage)
        if (stage, action) in possible:
            rollout.after(state, Step(action, ()), 1.0, NEW)
        else:
            with pytest.raises(RolloutRefused, match="not possible"):
                rollout.after(state, Step(action, ()), 1.0, NEW)


def test_a_share_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="canary_share"):
        Limits(canary_share=1.5)


def test_a_canary_has_its_share_which_may_be_changed_and_ends_with_it() -> None:
    step = Step(Action.CANARY, ("as planned",), share=0.2)
    state = rollout.after(at(Stage.SHADOW), step, 5.0)
    assert (state.share, state.since, state.deciding) == (0.2, 5.0, NEW)
    with pytest.raises(RolloutRefused, match="not possible"):
        rollout.after(state, step, 6.0)
    wider = rollout.after(state, Step(Action.CANARY, ("well so far",), share=0.5), 7.0)
    assert (wider.share, wider.since) == (0.5, 7.0)
    for end in (Action.PROMOTE, Action.REJECT):
        assert rollout.after(wider, Step(end, ()), 8.0).share == 0.0
    with pytest.raises(RolloutRefused, match="share"):
        rollout.after(state, Step(Action.CANARY, (), share=1.5), 6.0)
