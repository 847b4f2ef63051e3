"""Where a probability meets a threshold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.nouns import Finish, Mix, Policy, Reason, Rival, Tier
from gateway.policy import canaried, decide, drawn, lot
from tests.test_cascade import Told, said

shares = st.floats(0, 1)


@given(shares, shares)
def test_at_or_above_the_threshold_is_confident(p_correct: float, threshold: float) -> None:
    wanted = Reason.CONFIDENT if p_correct >= threshold else Reason.UNSURE
    assert decide(p_correct, threshold, finish=Finish.STOP, null_reason=None) is wanted


@given(shares | st.none(), st.sampled_from(list(Finish)))
def test_without_a_threshold_someone_has_to_answer(p_correct: float | None, finish: Finish) -> None:
    assert decide(p_correct, None, finish=finish, null_reason=None) is Reason.LAST


@given(shares)
def test_a_cut_answer_is_never_confident(p_correct: float) -> None:
    assert decide(p_correct, 0.0, finish=Finish.LENGTH, null_reason=None) is Reason.TRUNCATED


@given(shares)
def test_no_evidence_is_not_low_confidence(threshold: float) -> None:
    assert decide(None, threshold, finish=Finish.STOP, null_reason=Reason.SAMPLER_CHANGED) is Reason.SAMPLER_CHANGED
    assert decide(None, threshold, finish=Finish.STOP, null_reason=None) is Reason.NO_EVIDENCE


def policy(name: str) -> Policy:
    return Policy(name, ())


@given(st.text(max_size=50))
def test_a_policy_that_is_no_mix_is_followed_by_every_decision(decision: str) -> None:
    alone = policy("a")
    assert drawn(alone, decision) is alone


@given(st.text(max_size=50), st.text(max_size=16))
def test_the_same_decision_draws_alike_and_inside_the_interval(decision: str, key: str) -> None:
    mix = Mix("m", (policy("a"), policy("b")), (0.3, 0.7), key)
    assert drawn(mix, decision) is drawn(mix, decision)
    assert 0 <= lot(decision, key) < 1
    assert drawn(mix, decision).name == ("a" if lot(decision, key) < 0.3 else "b")


def test_a_mix_is_followed_in_its_shares_and_another_key_draws_otherwise() -> None:
    def followed(key: str) -> list[str]:
        mix = Mix("m", tuple(map(policy, "abc")), (0.2, 0.5, 0.3), key)
        return [drawn(mix, f"decision-{number}").name for number in range(20_000)]

    one, other = followed(""), followed("autumn")
    for name, share in zip("abc", (0.2, 0.5, 0.3), strict=True):
        assert abs(one.count(name) / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    same = sum(a == b for a, b in zip(one, other, strict=True)) / 20_000
    assert abs(same - (0.04 + 0.25 + 0.09)) < 0.02  # as of two independent draws


def test_shares_that_rounding_keeps_below_one_still_draw_somebody() -> None:
    mix = Mix("m", (policy("a"), policy("b")), (0.0, 0.0))
    assert drawn(mix, "x").name == "b"


def on_trial(share: float) -> Policy:
    new = Tier("small", Told(said()), calibrator_id="new@1")
    old = Tier("small", Told(said()), calibrator_id="old@1", threshold=0.8, rival=Rival(new, share))
    return Policy("p", (old, Tier("large", Told(said()))), certified=True)


@given(shares, shares)
def test_a_rival_decides_for_its_share_and_the_other_is_then_beside_it(share: float, place: float) -> None:
    route = on_trial(share)
    found = canaried(route, lambda _: place)
    if place >= share:
        assert found is route
        return
    tier = found.tiers[0]
    assert (tier.calibrator_id, tier.threshold) == ("new@1", 0.8)
    assert tier.rival is not None
    assert (tier.rival.tier.calibrator_id, tier.rival.share, tier.rival.tier.rival) == ("old@1", 0.0, None)
    assert not found.certified
    assert found.tiers[1] is route.tiers[1]
