"""answer() over engines that do as they are told; no network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import pytest

from calibrators.base import BadFeatures
from gateway import cascade, confidence
from gateway.errors import (
    DeadlinePassed,
    EngineDown,
    EngineGarbled,
    EngineRefused,
    EngineSlow,
    EngineTooSmall,
    GatewayError,
    NoTierLeft,
)
from gateway.nouns import (
    Ask,
    Completion,
    Cost,
    Earlier,
    Evidence,
    Finish,
    Floats,
    Hop,
    Message,
    Policy,
    Prices,
    Reason,
    Rival,
    Sampling,
    Source,
    Tier,
    TokenTrace,
)

T = TypeVar("T")


@dataclass
class Told:
    """An engine that says what it was told to say, or raises it."""

    says: Completion | Exception
    name: str = "told"
    seconds: float = 0.0
    asked: list[Ask] = field(default_factory=list)

    async def complete(self, ask: Ask) -> Completion:
        self.asked.append(ask)
        await asyncio.sleep(self.seconds)
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    async def ready(self) -> bool:
        return True

    async def fingerprint(self) -> Mapping[str, str]:
        return {}

    async def close(self) -> None: ...


class SecondFails(Told):
    """Of the samples whose seeds are counted up from 7."""

    async def complete(self, ask: Ask) -> Completion:
        if ask.sampling.seed == 8:
            raise EngineDown(self.name, "x")
        return await super().complete(ask)


class AsIs:
    """A calibrator whose feature, the mean log-prob, is -1 to 0: p = 1 + mean."""

    def predict(self, features: Floats, /) -> Floats:
        return 1.0 + features[:, 0]


class Refuses:
    def predict(self, features: Floats, /) -> Floats:
        raise BadFeatures("not these")


def said(p: float = 0.5, text: str = "yes", finish: Finish = Finish.STOP, **changes: Any) -> Completion:
    trace = TokenTrace(Source.CHOSEN, np.array([p - 1.0]))
    return replace(Completion(text, finish, 10, 4, "told", "m", 0.1, trace), **changes)


def tier(name: str, says: Completion | Exception, threshold: float | None = None, **changes: Any) -> Tier:
    prices = Prices(1.0, 2.0)
    made = Tier(name, Told(says), ("lp_mean",), AsIs(), "cal@1", Source.CHOSEN, threshold=threshold, prices=prices)
    return replace(made, **changes)


def run(act: Callable[[Ask], Coroutine[Any, Any, T]], seconds: float = 5.0, **ask: Any) -> T:
    async def work() -> T:
        deadline = asyncio.get_running_loop().time() + seconds
        return await act(Ask((Message("user", "?"),), deadline, **ask))

    return asyncio.run(work())


def reasons(hops: tuple[Hop, ...]) -> list[Reason]:
    return [hop.reason for hop in hops]


def test_the_first_sure_answer_is_served_and_nobody_else_is_asked() -> None:
    second = tier("b", said(1.0))
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(0.9), 0.8), second))))
    assert (answer.served.tier, answer.reason, answer.served.p_correct) == ("a", Reason.CONFIDENT, pytest.approx(0.9))
    assert second.engine.asked == []  # type: ignore[attr-defined]


def test_cost_sums_rejected_answers_too() -> None:
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(0.1), 0.8), tier("b", said(0.2))))))
    assert reasons(answer.hops) == [Reason.UNSURE, Reason.LAST]
    assert answer.cost == Cost(20, 8, pytest.approx(2 * (10 * 1 + 4 * 2) / 1e6))
    assert answer.seconds == pytest.approx(sum(hop.seconds for hop in answer.hops))


@pytest.mark.parametrize(
    ("completion", "ask", "change", "reason"),
    [
        (said(finish=Finish.LENGTH), {}, {}, Reason.TRUNCATED),
        (said(text=" "), {}, {}, Reason.NO_EVIDENCE),
        (said(trace=None, no_trace="none came"), {}, {}, Reason.NO_EVIDENCE),
        (said(), {}, {"calibrator": None}, Reason.UNCALIBRATED),
        (said(), {}, {"calibrator": Refuses()}, Reason.NO_EVIDENCE),
        (said(), {"sampling": Sampling(temperature=1.0)}, {}, Reason.SAMPLER_CHANGED),
        (said(), {}, {"source": Source.PLUGIN}, Reason.NO_EVIDENCE),
        (said(), {}, {"features": ("deepconf_average",)}, Reason.NO_EVIDENCE),
        (said(-1.0), {}, {}, Reason.NO_EVIDENCE),  # a calibrator that leaves [0, 1]
    ],
)
def test_no_evidence_escalates_by_its_own_name(
    completion: Completion, ask: dict[str, Any], change: dict[str, Any], reason: Reason
) -> None:
    chain = (tier("a", completion, 0.0, **change), tier("b", said(0.9)))
    answer = run(lambda question: cascade.answer(question, Policy("p", chain)), **ask)
    assert answer.hops[0].reason is reason
    assert answer.hops[0].null_reason is reason
    assert answer.hops[0].p_correct is None
    assert answer.served.tier == "b"


def test_candidates_may_stand_in_for_chosen_tokens() -> None:
    trace = TokenTrace(Source.TOP_LOGPROBS, np.array([-0.1]), np.array([[-0.1, -3.0]]))
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(trace=trace), 0.8), tier("b", said())))))
    assert answer.served.p_correct == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineDown("e", "gone"), Reason.FAILED),
        (EngineGarbled("e", "?"), Reason.FAILED),
        (EngineSlow("e", 1.0), Reason.SLOW),
        (EngineTooSmall("e", 9, 5), Reason.TOO_SMALL),
        (EngineRefused("e", 429, "busy", 3.0), Reason.RATE_LIMITED),
        (EngineRefused("e", 401, "key"), Reason.FAILED),
    ],
)
def test_a_tier_that_fails_is_passed_over(error: Exception, reason: Reason) -> None:
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", error, 0.8), tier("b", said())))))
    assert reasons(answer.hops) == [reason, Reason.LAST]
    kept = answer.hops[0].error
    assert (type(kept), str(kept), vars(kept)) == (type(error), str(error), vars(error))
    assert kept.__traceback__ is None, "its frames would hold the answer"


def test_a_request_at_fault_is_not_tried_elsewhere() -> None:
    second = tier("b", said())
    with pytest.raises(EngineRefused):
        run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", EngineRefused("e", 400, "bad"), 0.8), second))))
    assert second.engine.asked == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ((EngineDown("e", "x"), EngineDown("e", "y")), NoTierLeft),
        ((EngineTooSmall("e", 9, 5), EngineTooSmall("e", 9, 8)), EngineTooSmall),
        ((EngineTooSmall("e", 9, 5), EngineDown("e", "x")), NoTierLeft),
    ],
)
def test_when_nobody_answered_the_error_says_why(errors: tuple[Exception, ...], expected: type[GatewayError]) -> None:
    chain = tuple(tier(str(n), error, 0.8) for n, error in enumerate(errors))
    with pytest.raises(expected) as caught:
        run(lambda ask: cascade.answer(ask, Policy("p", chain)))
    if isinstance(caught.value, EngineTooSmall):
        assert caught.value.window_tokens == 8  # the largest window there is


def test_the_soonest_retry_after_is_kept() -> None:
    chain = tuple(tier(str(n), EngineRefused("e", 429, "busy", n), 0.8) for n in (9.0, 3.0))
    with pytest.raises(NoTierLeft) as caught:
        run(lambda ask: cascade.answer(ask, Policy("p", chain)))
    assert caught.value.retry_after_seconds == 3.0


def test_the_surest_earlier_answer_is_the_fallback() -> None:
    chain = (tier("a", said(0.2), 0.8), tier("b", said(0.5), 0.8), tier("c", EngineDown("e", "x")))
    answer = run(lambda ask: cascade.answer(ask, Policy("p", chain)))
    assert (answer.served.tier, answer.reason) == ("b", Reason.FALLBACK)
    with pytest.raises(NoTierLeft):
        run(lambda ask: cascade.answer(ask, Policy("p", chain, serve_fallback=False)))


def test_a_doubtful_last_answer_is_flagged() -> None:
    for p, reason in ((0.2, Reason.ABSTAINED), (0.4, Reason.LAST)):
        chain = (tier("a", said(p)),)
        answer = run(lambda ask, chain=chain: cascade.answer(ask, Policy("p", chain, abstain_below=0.3)))
        assert answer.reason is reason


def test_patience_is_the_tiers_and_the_deadline_the_requests() -> None:
    slow = replace(tier("a", said(0.9), 0.8, patience_seconds=0.02), engine=Told(said(), seconds=1.0))
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (slow, tier("b", said())))))
    assert reasons(answer.hops) == [Reason.SLOW, Reason.LAST]
    with pytest.raises(DeadlinePassed):
        run(
            lambda ask: cascade.answer(ask, Policy("p", (replace(slow, patience_seconds=9.0), tier("b", said())))),
            seconds=0.02,
        )


def test_an_answer_in_hand_at_the_deadline_is_served() -> None:
    slow = replace(tier("b", said()), engine=Told(said(), seconds=1.0))
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(0.1), 0.8), slow))), seconds=0.02)
    assert (answer.served.tier, answer.reason) == ("a", Reason.DEADLINE)


def test_a_tier_gets_the_candidates_its_features_or_the_client_need() -> None:
    for wanted, got in ((0, 5), (20, 20)):
        one = tier("a", said(), top_k=5)
        run(lambda ask, one=one: cascade.answer(ask, Policy("p", (one,))), top_k=wanted)
        assert one.engine.asked[0].top_k == got  # type: ignore[attr-defined]


def test_an_ask_for_other_evidence_is_otherwise_the_same() -> None:
    every: dict[str, Any] = {one.name: object() for one in fields(Ask)}
    told = Ask(**every).wanting(3, evidence=False, window=16)
    assert {name: getattr(told, name) for name in every} == every | {"top_k": 3, "evidence": False, "window": 16}


def test_every_hop_is_noted_failed_ones_too() -> None:
    seen: list[Hop] = []
    chain = (tier("a", EngineDown("e", "x"), 0.8), tier("b", said()))
    answer = run(lambda ask: cascade.answer(ask, Policy("p", chain), seen.append))
    assert tuple(seen) == answer.hops


def test_siblings_are_counted_and_seeded_apart() -> None:
    one = tier("a", said(0.9), 0.8)

    async def act(ask: Ask) -> Any:
        answer = await cascade.answer(ask, Policy("p", (one, tier("b", said()))))
        return await cascade.with_siblings(answer, ask, 3)

    answer = run(act, sampling=Sampling(seed=7))
    assert len(answer.siblings) == 2
    assert answer.cost.prompt_tokens == 30
    assert [ask.sampling.seed for ask in one.engine.asked] == [7, 8, 9]  # type: ignore[attr-defined]
    assert all(hop.p_correct == pytest.approx(0.9) for hop in answer.siblings)


def test_siblings_that_answered_are_noted_though_another_failed() -> None:
    seen: list[Hop] = []
    one = tier("a", said(), 0.8, engine=SecondFails(said(0.9)))

    async def act(ask: Ask) -> Any:
        answer = await cascade.answer(ask, Policy("p", (one, tier("b", said()))))
        return await cascade.with_siblings(answer, ask, 3, seen.append)

    with pytest.raises(EngineDown):
        run(act, sampling=Sampling(seed=7))
    assert [hop.error is None for hop in seen] == [False, True]


def test_the_largest_seed_is_counted_on_from_the_least() -> None:
    for seed, following in ((2**63 - 1, -(2**63)), (-1, 0), (-(2**63), 1 - 2**63)):
        asked = Ask(messages=(), deadline=0.0, sampling=Sampling(seed=seed))
        assert cascade.reseeded(asked, 1).sampling.seed == following


def test_a_skipped_tier_does_not_lend_its_place_to_another() -> None:
    """A calibrator that was fitted after three tiers counts them back; the second is not asked, or fails."""
    first, third = Earlier("first", "#### 1", 0.2), Earlier("third", "#### 2", 0.6)
    told = cascade.in_order([first, third], ("first", "second", "third"))
    assert [(one.tier, one.text, one.p_correct) for one in told] == [
        ("first", "#### 1", 0.2),
        ("second", "", None),
        ("third", "#### 2", 0.6),
    ]
    assert cascade.in_order([first, third], ()) == (first, third)
    evidence = Evidence(TokenTrace(Source.CHOSEN, np.zeros(1)), "#### 2", told)
    names = [f"upstream_{what}(back={back})" for back in (1, 2, 3) for what in ("logit", "agreement")]
    values = confidence.measure(names, evidence).values
    np.testing.assert_allclose(values, [np.log(1.5), 1, np.nan, np.nan, np.log(0.25), 0])


def test_a_calibrator_of_cut_answers_is_not_shown_what_comes_after_the_answer() -> None:
    words = (b"so ", b"#### 7", b" and ", b"more")
    trace = TokenTrace(Source.CHOSEN, np.array([-0.1, -0.3, -0.9, -0.9]), tokens=words)
    rambling = said(text=b"".join(words).decode(), trace=trace)
    for cut, p in ((True, 0.8), (False, 0.45)):
        only = Policy("p", (tier("a", rambling, cut=cut),))
        answer = run(lambda ask, only=only: cascade.answer(ask, only))
        assert answer.served.p_correct == pytest.approx(p)


def test_a_cut_that_cannot_be_made_costs_the_confidence() -> None:
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(), cut=True),))))
    assert (answer.served.p_correct, answer.served.null_reason) == (None, Reason.NO_EVIDENCE)


class Doubts:
    """Half of what AsIs says."""

    def predict(self, features: Floats, /) -> Floats:
        return 0.5 * (1.0 + features[:, 0])


def beside(rival: Rival) -> Policy:
    return Policy("p", (tier("a", said(0.9), 0.8, rival=rival), tier("b", said())))


def test_a_rivals_opinion_is_noted_and_decides_nothing() -> None:
    rival = Rival(tier("a", said(), calibrator=Doubts(), calibrator_id="new@2"), 0.5)
    answer = run(
        lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(0.9), 0.8, rival=rival), tier("b", said()))))
    )
    hop = answer.served
    assert (hop.tier, hop.p_correct, hop.calibrator_id) == ("a", pytest.approx(0.9), "cal@1")
    assert (hop.rival_p, hop.rival_id) == (pytest.approx(0.45), "new@2")


def test_a_rival_is_heard_where_the_one_in_service_has_nothing_to_say_and_is_given_the_evidence_it_needs() -> None:
    rival = Rival(tier("a", said(), calibrator=Doubts(), calibrator_id="new@2", top_k=5))
    first = tier("a", said(0.9), 0.8, calibrator=None, calibrator_id="none", rival=rival)
    answer = run(lambda ask: cascade.answer(ask, Policy("p", (first, tier("b", said())))))
    assert (answer.hops[0].p_correct, answer.hops[0].rival_p) == (None, pytest.approx(0.45))
    [asked] = first.engine.asked  # type: ignore[attr-defined]
    assert (asked.top_k, asked.evidence) == (5, True)


@pytest.mark.parametrize(("window", "others", "asked_for"), [(32, 32, 32), (32, 16, 0), (32, 0, 0), (0, 32, 0)])
def test_an_engines_summary_is_enough_where_both_calibrators_are_told_by_the_same(
    window: int, others: int, asked_for: int
) -> None:
    rival = Rival(tier("a", said(), calibrator_id="new@2", window=others))
    first = tier("a", said(0.9), 0.8, window=window, rival=rival)
    run(lambda ask: cascade.answer(ask, Policy("p", (first, tier("b", said())))))
    [asked] = first.engine.asked  # type: ignore[attr-defined]
    assert asked.window == asked_for


def test_a_rival_without_evidence_says_nothing() -> None:
    rival = Rival(tier("a", said(), calibrator=Refuses(), calibrator_id="new@2"))
    answer = run(
        lambda ask: cascade.answer(ask, Policy("p", (tier("a", said(0.9), 0.8, rival=rival), tier("b", said()))))
    )
    assert (answer.served.rival_p, answer.served.rival_id) == (None, "new@2")
