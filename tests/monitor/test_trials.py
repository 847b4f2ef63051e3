from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.monitor import rollout
from gateway.monitor.compare import Margins
from gateway.monitor.rollout import Action, Limits, Release, Stage, State
from gateway.monitor.trials import ANY_COST, Showing
from gateway.store.base import START, Cursor, Entry, Labelled, Role, Source, Store, Wish
from gateway.store.sqlite import Sqlite
from tests.store.rows import decision, hop, label, numbers

AT = 1_700_000_000.0
OLD, NEW = "cheap@0123456789ab", "cheap@ba9876543210"
STATE = State(
    live=Release({"cheap": "a" * 64}, {}), candidate=Release({"cheap": "b" * 64}, {}), stage=Stage.SHADOW, since=AT
)
CANARY = State(live=STATE.live, candidate=STATE.candidate, stage=Stage.CANARY, since=AT, share=0.5)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Sqlite(tmp_path / "decisions.sqlite")
    yield opened
    opened.close()


def showing(state: State, **changes: object) -> Showing:
    told = {"live": OLD, "candidate": NEW, "margins": Margins(0.0, 0.1, ANY_COST), "explored_only": False, **changes}
    return Showing("cheap", state, **told)  # type: ignore[arg-type]


def filled(
    store: Store,
    n: int,
    *,
    old: float,
    new: float,
    truth: float,
    share: float = 0.0,
    seed: int = 0,
    by: Source = Source.OPERATOR,
) -> None:
    """n answers in order, of which `share` were the new one's to decide; all that were accepted at .8 are labelled."""
    entries, wishes = [], []
    rng, names = np.random.default_rng(0), numbers(n, AT)
    for place, name in enumerate(names):
        canary = bool(rng.random() < share)
        mine, other = (new, old) if canary else (old, new)
        accepted = mine >= 0.8
        cheap = hop(
            name, p_correct=mine, calibrator=NEW if canary else OLD, rival=OLD if canary else NEW, rival_p=other,
            reason="confident" if accepted else "unsure",
        )  # fmt: skip
        dear = hop(name, 1, tier="dear", reason="last", p_correct=None, threshold=None, calibrator="none", usd=0.009)
        told = decision(
            name, at=AT + place, tier="cheap" if accepted else "dear", p_correct=mine if accepted else None,
            reason="confident" if accepted else "last", calibrator=cheap.calibrator if accepted else "none",
        )  # fmt: skip
        entries.append(Entry(told, (cheap,) if accepted else (cheap, dear)))
        says = label(name, bool(rng.random() < truth), by, at=AT + place + 1, decided_at=AT + place, tier=told.tier)
        wishes.append(Wish(says))
    store.write(entries)
    store.put(wishes)


def test_a_candidate_nearer_to_the_truth_is_shown_to_be_better(store: Store) -> None:
    filled(store, 400, old=0.95, new=0.85, truth=0.7, share=0.5)
    found = showing(CANARY)
    found.read(store, AT + 1e4)
    assert found.paired.n == 400
    assert found.paired.widest.mean["brier"][1] < -0.02
    step = rollout.next_step(CANARY, health=rollout.Health(), trial=found.trial(), limits=Limits(), now=AT + 1e4)
    assert step is not None
    assert step.action is Action.PROMOTE


def test_what_was_read_is_counted_once_and_what_is_new_is(store: Store) -> None:
    filled(store, 50, old=0.95, new=0.85, truth=0.7, share=0.5)
    found = showing(CANARY)
    for _ in range(3):
        found.read(store, AT + 1e4)
    assert (found.paired.n, found.seen, found.flipped) == (50, 50, 0)


def test_labels_dated_while_the_clock_was_back_count_too(store: Store) -> None:
    filled(store, 400, old=0.95, new=0.85, truth=0.7, share=0.5)
    found = showing(CANARY)
    found.read(store, AT + 1e4)
    [name] = numbers(1, AT)
    turn = hop(name, p_correct=0.95, calibrator=OLD, rival=NEW, rival_p=0.85)
    store.write([Entry(decision(name, at=AT + 400, p_correct=0.95, calibrator=OLD), (turn,))])
    store.put([Wish(label(name, True, Source.OPERATOR, at=AT + 10, decided_at=AT + 400))])
    found.read(store, AT + 1e4)
    assert found.paired.n == 401


def test_in_shadow_flips_are_decisions_that_would_be_others(store: Store) -> None:
    filled(store, 40, old=0.95, new=0.5, truth=0.7)
    found = showing(STATE)
    found.read(store, AT + 1e4)
    assert (found.seen, found.flipped) == (40, 40)
    assert found.promised() == {"truncated": 0.0, "no_evidence": 0.0, "escalated": 1.0}
    assert found.paired.widest.mean["accepted_wrong"][1] < 0
    assert found.paired.widest.mean["cost"] == (
        1.0,
        1.0,
    )  # what escalating costs is not known yet, so it counts as all there is


def test_harm_that_shows_in_the_small_arm_alone_weighs_as_much_as_the_large_one(store: Store) -> None:
    """The new one accepts what the old one rejects, and half of it is wrong. Only its own arm has labels of that."""
    filled(store, 2000, old=0.5, new=0.9, truth=0.5, share=0.1)
    found = showing(State(STATE.live, (), STATE.candidate, Stage.CANARY, AT, 0.1))
    found.read(store, AT + 1e5)
    assert 120 < found.paired.n < 280
    assert "accepted_wrong" in found.paired.harmful_in()


def test_an_arm_that_is_larger_is_thinned(store: Store) -> None:
    filled(store, 1000, old=0.9, new=0.9, truth=0.9, share=0.1)
    found = showing(State(STATE.live, (), STATE.candidate, Stage.CANARY, AT, 0.1))
    found.read(store, AT + 1e5)
    assert found.paired.n == pytest.approx(200, abs=60)


def test_labels_of_clients_and_of_what_was_decided_earlier_count_for_nothing(store: Store) -> None:
    filled(store, 30, old=0.95, new=0.85, truth=0.7, share=0.5, by=Source.USER)
    found = showing(CANARY)
    found.read(store, AT + 1e4)
    assert found.paired.n == 0
    later = showing(State(STATE.live, (), STATE.candidate, Stage.CANARY, AT + 1e4, 0.5))
    later.read(store, AT + 2e4)
    assert (later.paired.n, later.seen) == (0, 0)


def test_labels_of_answers_that_were_not_drawn_count_only_where_all_do(store: Store) -> None:
    filled(store, 30, old=0.95, new=0.85, truth=0.7, share=0.5)
    found = showing(CANARY, explored_only=True)
    found.read(store, AT + 1e4)
    assert found.paired.n == 0


def test_only_the_release_that_decides_is_judged_by_its_labels(store: Store) -> None:
    filled(store, 300, old=0.99, new=0.85, truth=0.5, share=0.5)
    [verdict] = read(store, CANARY).health(AT + 1e4).honesty
    assert verdict.calibrator == NEW
    [verdict] = read(store, STATE).health(AT + 1e4).honesty
    assert (verdict.calibrator, rollout.back(rollout.Health(honesty=[verdict])) != ()) == (OLD, True)


def read(store: Store, state: State, **changes: object) -> Showing:
    found = showing(state, **changes)
    found.read(store, AT + 1e4)
    return found


def test_a_broken_servers_hops_are_in_nothing(store: Store) -> None:
    for name in numbers(20, AT):
        broken = hop(name, reason="failed", p_correct=None, error="gone", calibrator=OLD)
        store.write([Entry(decision(name, at=AT), (broken, hop(name, 1, role=Role.SHADOW)))])
    found = read(store, STATE)
    assert (found.seen, found.health(AT + 1e4).minutes) == (0, [])
    assert found.promised() == {}


def test_a_doubled_rate_of_cut_answers_is_seen(store: Store) -> None:
    entries = []
    for place, name in enumerate(numbers(300, AT)):
        cut = place % 3 == 0
        turn = hop(name, p_correct=None if cut else 0.9, null_reason="truncated" if cut else "", calibrator=OLD)
        entries.append(Entry(decision(name, at=AT), (turn,)))
    store.write(entries)
    found = read(
        store, State(live=STATE.live, since=AT), candidate="", forecast={"truncated": 0.05, "no_evidence": 0.1}
    )
    assert [rate.doubled for rate in found.health(AT + 1e4).rates] == [True, False]
    assert found.trial() is None


def test_beside_nothing_in_service_a_candidate_changes_nothing_and_is_compared_with_nothing(store: Store) -> None:
    entries = []
    for name in numbers(30, AT):
        turn = hop(name, p_correct=None, null_reason="uncalibrated", calibrator="none", rival=NEW, rival_p=0.9)
        entries.append(Entry(decision(name, at=AT, tier="dear"), (turn,)))
    store.write(entries)
    found = read(store, State(live=None, candidate=STATE.candidate, stage=Stage.SHADOW, since=AT), live="")
    assert (found.seen, found.flipped, found.paired.n) == (30, 0, 0)
    assert found.promised()["escalated"] == 0.0


def test_labels_that_come_as_fast_as_they_are_read_do_not_keep_a_look_from_ending(store: Store) -> None:
    filled(store, 20, old=0.95, new=0.85, truth=0.7, share=0.5)

    class Flood:
        """With each page another label has come, for ever."""

        asked = 0

        def labelled(self, after: Cursor, limit: int) -> list[Labelled]:
            self.asked += 1
            assert self.asked < 20
            return store.labelled(START, 1)

        decisions, labels, whole = map(staticmethod, (store.decisions, store.labels, store.whole))

    found = showing(CANARY)
    found.read(Flood(), AT + 1e4)
    assert found.paired.n <= 1
