"""What holds of any store, on a real SQLite and a real PostgreSQL."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from gateway.errors import ConfigError, LabelConflict
from gateway.store import base
from gateway.store.base import AlarmRow, Channel, Kind, Outcome, Role, Source, Store
from tests.store.conftest import Open
from tests.store.rows import HOSTILE, decision, entry, hop, label, numbers, wish


def test_what_was_written_is_there_when_it_is_opened_again(opened: Open) -> None:
    [number] = numbers(1)
    shadow = hop(number, 2, role=Role.SHADOW, tier="dear", p_correct=None, threshold=None, null_reason="uncalibrated")
    turn = hop(number, rival="cheap@ba9876543210", rival_p=2 / 3)
    told = base.Entry(decision(number, p_correct=1 / 3, inclusion=0.01, explored=True), (turn,))
    store = opened()
    store.write([told])
    store.write([base.Entry(None, (shadow,))])
    store.put([wish(number)])
    store.close()
    assert opened().whole(number) == base.Whole(told.decision, (told.hops[0], shadow), (label(number),))


def test_any_text_survives_nul_and_lone_surrogates_too(store: Store) -> None:
    [number] = numbers(1)
    told = decision(number, prompt=HOSTILE, answer=HOSTILE, metadata={HOSTILE: HOSTILE})
    turn = hop(number, note=HOSTILE, model=HOSTILE, error=HOSTILE, features={HOSTILE: 1e-300})
    store.write([base.Entry(told, (turn,))])
    store.put([wish(number, comment=HOSTILE)])
    whole = store.whole(number)
    assert (whole.decision, whole.hops) == (told, (turn,))
    assert whole.labels[0].comment == HOSTILE


def test_values_that_are_no_numbers_become_absent(store: Store) -> None:
    [number] = numbers(1)
    store.write([base.Entry(None, (hop(number, features={"a": float("nan"), "b": float("inf"), "c": 0.5}),))])
    assert store.whole(number).hops[0].features == {"a": None, "b": None, "c": 0.5}


def test_an_alarm_keeps_its_earliest_time_over_processes_until_it_ends_or_nobody_sees_it(store: Store) -> None:
    drift = AlarmRow("drift", "a tier's name; %s", "default", "", "far", True, since=100.0, seen=100.0)
    late = replace(drift, kind="slo", what="latency", why=HOSTILE, page=False, since=90.0)
    assert store.alarms([], [], 0.0) == []
    assert store.alarms([drift, late], [], 0.0) == [late, drift]
    again = replace(drift, why="farther", since=200.0, seen=200.0)  # after a restart
    assert store.alarms([again], [], 0.0) == [late, replace(again, since=100.0)]
    assert store.alarms([], [], 150.0) == [replace(again, since=100.0)]
    assert store.alarms([], [drift.about], 0.0) == [late]
    assert store.alarms([again], [], 150.0) == [again]


def test_writing_twice_does_no_harm(store: Store) -> None:
    [number] = numbers(1)
    store.write([entry(number), entry(number)])
    store.write([entry(number, seconds=99.0)])
    assert store.whole(number).decision == decision(number)


def test_of_an_unknown_decision_nothing_is_known(store: Store) -> None:
    assert store.whole("never-was") == base.Whole(None, (), ())


def test_the_same_label_again_changes_nothing(store: Store) -> None:
    [number] = numbers(1)
    [(first, row)] = store.put([wish(number)])
    [(second, same)] = store.put([wish(number, source=Source.VERIFIER, comment="again", at=2e9)])
    assert (first, second) == (Outcome.CREATED, Outcome.UNCHANGED)
    assert same == row
    assert store.labels(number) == (row,)


def test_a_contradiction_is_refused_and_with_revise_appended(store: Store) -> None:
    [number] = numbers(1)
    store.put([wish(number)])
    with pytest.raises(LabelConflict):
        store.put([wish(number, says=False)])
    [(outcome, row)] = store.put([wish(number, says=False, revise=True, at=1_700_000_200.0)])
    assert (outcome, row.revision, row.label) == (Outcome.REVISED, 1, False)
    assert [one.revision for one in store.labels(number)] == [0, 1]
    assert [one.label.label for one in store.labelled()] == [False], "the latest counts, once"


def test_operators_clients_and_proxies_do_not_contradict_each_other(store: Store) -> None:
    [number] = numbers(1)
    store.put([wish(number), wish(number, says=False, source=Source.OPERATOR)])
    store.put([wish(number, says=False, source=Source.PROXY)])
    counting = base.counting(store.labels(number))
    assert {channel: row.label for channel, row in counting.items()} == {
        Channel.CLIENT: True,
        Channel.OPERATOR: False,
        Channel.PROXY: False,
    }
    with pytest.raises(LabelConflict):
        store.put([wish(number, says=False, source=Source.USER)])


def test_of_a_batch_with_one_contradiction_nothing_is_stored(store: Store) -> None:
    known, *others = numbers(20)
    store.put([wish(known)])
    with pytest.raises(LabelConflict):
        store.put([*(wish(one) for one in others), wish(known, says=False)])
    assert not any(store.labels(one) for one in others)


def test_a_batch_answers_in_its_own_order(store: Store) -> None:
    some = numbers(7)[::-1]
    wishes = [wish(one, says=place % 2 == 0) for place, one in enumerate(some)]
    done = store.put(wishes)
    assert [row.number for _, row in done] == some
    assert [row.label for _, row in done] == [True, False, True, False, True, False, True]


def test_many_copies_at_once_make_one_row(opened: Open) -> None:
    store = opened()
    some = numbers(30)
    lock = threading.Lock() if store.threads == 1 else None
    outcomes: list[Outcome] = []

    def send() -> None:
        for start in range(0, 30, 10):
            wishes = [wish(one) for one in some[start : start + 10]]
            if lock is None:
                done = store.put(wishes)
            else:
                with lock:
                    done = store.put(wishes)
            outcomes.extend(outcome for outcome, _ in done)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 4 * 30
    assert outcomes.count(Outcome.CREATED) == 30
    assert all(len(store.labels(one)) == 1 for one in some)


def test_the_log_is_read_page_by_page_in_order(store: Store) -> None:
    some = numbers(25)
    times = [1_700_000_000.0 + place // 3 for place in range(25)]  # several at the same moment
    store.write([entry(one, at=at) for one, at in zip(some, times, strict=True)])
    read = list(base.pages(store, 4))
    assert {row.number for row, _ in read} == set(some)
    assert len(read) == 25
    assert [row.at for row, _ in read] == times
    assert all(hops == (hop(row.number),) for row, hops in read)


def test_labels_come_with_their_decision_and_the_hop_that_was_served(store: Store) -> None:
    kept, lost = numbers(2)
    late = hop(kept, 1, tier="dear", reason="last")
    shadow = hop(kept, 2, tier="dear", role=Role.SHADOW)
    store.write([base.Entry(decision(kept, tier="dear"), (hop(kept), late, shadow))])
    store.put([wish(kept, tier="dear"), wish(lost, at=1_700_000_200.0)])
    first, second = list(base.label_pages(store, limit=1))
    assert (first.decision, first.served) == (decision(kept, tier="dear"), late)
    assert (second.label.number, second.decision, second.served) == (lost, None, None)
    assert list(base.label_pages(store, base.cursor(first.label))) == [second]


def test_labels_come_in_the_order_in_which_they_were_stored_whatever_their_dates(store: Store) -> None:
    some = numbers(6)
    for name, at in zip(some, (3e9, 1e9, 3e9, 2e9, 3e9, 4e9), strict=True):
        store.put([wish(name, at=at)])
    assert [one.label.number for one in base.label_pages(store, limit=1)] == some
    assert [one.label.at for one in store.labelled()] == [3e9, 1e9, 3e9, 2e9, 3e9, 4e9]
    *_, latest = store.labelled()
    store.put([wish(some[0], says=False, revise=True, at=1e9)])
    assert [one.label.number for one in store.labelled(base.cursor(latest.label))] == [some[0]]
    assert base.counting(store.labels(some[0]))[Channel.CLIENT].revision == 1
    assert base.counting(store.whole(some[0]).labels)[Channel.CLIENT].revision == 1


def test_what_wants_a_label_is_listed_until_it_has_one(store: Store) -> None:
    wanted, labelled, proxied, plain, failed = numbers(5)
    store.write([entry(one, explored=True) for one in (wanted, labelled, proxied)])
    store.write([entry(plain), entry(failed, explored=True, status=502)])
    store.put([wish(labelled), wish(proxied, source=Source.PROXY)])
    assert {row.number for row in store.recent(10, wanting=True)} == {wanted, proxied}
    assert {row.number for row in store.recent(10)} == {wanted, labelled, proxied, plain, failed}
    assert len(store.recent(2)) == 2
    assert store.recent(10, before=1_700_000_000.0) == []


def test_requests_in_short_are_the_latest_since_a_time(store: Store) -> None:
    some = numbers(5)
    store.write([entry(one, at=100.0 + place, usd=place, policy=f"p{place % 2}") for place, one in enumerate(some)])
    assert [row.usd for row in store.briefs(101.0, 3)] == [4, 3, 2]
    assert [row.at for row in store.briefs(101.0, 10)] == [104.0, 103.0, 102.0, 101.0]
    assert [row.usd for row in store.briefs(0.0, 10, "p1")] == [3, 1]
    assert store.briefs(200.0, 10) == []


def test_explored_and_labelled_decisions_come_with_hops_and_labels_and_without_texts(store: Store) -> None:
    explored, labelled, both, proxied, old, plain = numbers(6)
    texts = {"prompt": HOSTILE, "answer": HOSTILE}
    times = {explored: 200.0, labelled: 201.0, both: 202.0, proxied: 203.0, old: 50.0, plain: 204.0}
    store.write(
        [
            base.Entry(decision(one, at=at, explored=one in (explored, both, old), **texts), (hop(one, agrees=True),))
            for one, at in times.items()
        ]
    )
    store.write([base.Entry(None, (hop(both, 1, role=Role.SHADOW, agrees=False),))])
    store.put([wish(one, at=300.0) for one in (labelled, both, old)] + [wish(proxied, source=Source.PROXY)])
    store.put([wish(both, says=False, revise=True, at=301.0)])
    found = store.stories(Kind.EXPLORED, 100.0, 10)
    assert [row.decision for row in found] == [
        decision(both, at=202.0, explored=True),
        decision(explored, at=200.0, explored=True),
    ]
    assert found[0].hops == (
        hop(both, features={}, agrees=True),
        hop(both, 1, role=Role.SHADOW, features={}, agrees=False),
    )
    assert [row.label for row in found[0].labels] == [True, False]
    assert found[1].labels == ()
    assert [row.decision and row.decision.number for row in store.stories(Kind.LABELLED, 100.0, 10)] == [both, labelled]
    assert [row.decision and row.decision.number for row in store.stories(Kind.EXPLORED, 100.0, 1)] == [both]
    assert store.whole(both).decision == decision(both, at=202.0, explored=True, **texts), "they are still there"


def test_old_decisions_are_forgotten_and_their_labels_stay(store: Store) -> None:
    old, labelled, ancient, new = numbers(4)
    store.write([entry(old, at=100.0), entry(labelled, at=100.0), entry(ancient, at=10.0), entry(new, at=300.0)])
    store.put([wish(labelled), wish(ancient)])
    assert store.purge(200.0, 50.0) == 2
    assert store.purge(200.0, 50.0) == 0
    left = {one: store.whole(one) for one in (old, labelled, ancient, new)}
    assert [one for one, whole in left.items() if whole.decision] == [labelled, new]
    assert [one for one, whole in left.items() if whole.hops] == [labelled, new]
    assert [one for one, whole in left.items() if whole.labels] == [labelled, ancient]


def test_a_store_of_a_later_version_is_refused(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    store.write([entry(numbers(1)[0])])
    store.close()
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"gateway.store.{module}.MIGRATIONS", ())
    with pytest.raises(ConfigError, match="use a later gateway"):
        opened().recent(1)


def test_a_store_of_an_earlier_version_is_brought_up_to_date(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    from gateway.store import sql

    [number] = numbers(1)
    store = opened()
    store.write([entry(number)])
    store.close()
    later = (*sql.MIGRATIONS, ("ALTER TABLE decisions ADD COLUMN later TEXT",))
    for module in ("sqlite", "postgres"):
        monkeypatch.setattr(f"gateway.store.{module}.MIGRATIONS", later)
    store = opened()
    assert store.whole(number).decision == decision(number)
    with_it = replace(decision(number), number=numbers(1)[0])
    store.write([base.Entry(with_it, ())])
    store.close()
    assert opened().whole(with_it.number).decision == with_it


def test_what_was_written_before_there_were_trials_is_still_there(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gateway.store import sql

    [number] = numbers(1)
    plain = hop(number)
    with monkeypatch.context() as before:
        for module in ("sqlite", "postgres"):
            before.setattr(f"gateway.store.{module}.MIGRATIONS", sql.MIGRATIONS[:1])
        store = opened()
        with store.writing() as at:  # type: ignore[attr-defined]
            later = ("rival", "rival_p", "agrees")
            names = [name for name in sql.columns(base.HopRow).split(", ") if name not in later]
            told = f"INSERT INTO hops ({', '.join(names)}) VALUES ({', '.join(['%s'] * len(names))})"
            at.many(told, [sql.packed(plain)[: len(names)]])
        store.close()
    assert opened().whole(number).hops == (plain,)
