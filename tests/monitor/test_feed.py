from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import ConfigError, StoreDown
from gateway.monitor import feed
from gateway.monitor.feed import SETTLE_SECONDS, Book
from gateway.monitor.labels import ROUTED
from gateway.store.base import Cursor, DecisionRow, Entry, HopRow, Labelled, LabelRow, Source, Store
from gateway.store.sqlite import Sqlite
from tests.store.rows import decision, label, numbers, wish

AT = 1_700_000_000.0
LATER = AT + 2 * SETTLE_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Sqlite(tmp_path / "decisions.sqlite")
    yield opened
    opened.close()


def filled(store: Store, n: int, right: float, *, source: Source = Source.OPERATOR, explored: bool = True) -> list[str]:
    """n decisions with p = .9, accepted, drawn with .5 and labelled; right at this rate."""
    names, rng = numbers(n), np.random.default_rng(0)
    store.write(
        [Entry(decision(name, at=AT + place, inclusion=0.5, explored=explored), ()) for place, name in enumerate(names)]
    )
    store.put([wish(name, bool(rng.random() < right), source, at=AT + 1e4 + n) for n, name in enumerate(names)])
    return names


def test_labels_of_operators_reach_the_tests_of_tier_and_whole(store: Store) -> None:
    filled(store, 400, 0.6)
    book = Book(trusted_only=True)
    assert book.read(store, LATER) == 400
    said = {verdict.tier: (verdict.n, verdict.overconfident) for verdict in book.verdicts()}
    assert said == {"cheap": (400, True), ROUTED: (400, True)}


def test_what_was_read_is_not_counted_again_and_what_is_new_is(store: Store) -> None:
    names = filled(store, 10, 1.0)
    book = Book(trusted_only=False)
    assert [book.read(store, LATER), book.read(store, LATER)] == [10, 0]
    more = numbers(1, at=AT + 500)
    store.write([Entry(decision(more[0], at=AT + 500, explored=True, inclusion=0.5), ())])
    store.put([wish(more[0], True, at=AT + 5e4), wish(names[0], True, at=AT + 5e4)])
    assert book.read(store, LATER) == 1  # the client's label of a decision that an operator labelled is no second one


@pytest.mark.parametrize(("source", "explored"), [(Source.USER, True), (Source.PROXY, True), (Source.OPERATOR, False)])
def test_labels_of_clients_proxies_and_of_answers_chosen_by_hand_move_no_trusted_test(
    store: Store, source: Source, explored: bool
) -> None:
    filled(store, 50, 0.0, source=source, explored=explored)
    book = Book(trusted_only=True, limits={"default": 0.05}, least_inclusion=0.5)
    assert book.read(store, LATER) == 0
    assert book.verdicts() == []
    assert not any(error.violated for error in book.errors())


def test_a_broken_objective_is_proven_once_labels_have_had_their_time(store: Store) -> None:
    filled(store, 300, 0.5)
    book = Book(trusted_only=True, limits={"default": 0.05}, least_inclusion=0.5)
    book.read(store, AT + 1e5)
    assert [(error.n, error.violated) for error in book.errors()] == [(0, False)]
    book.read(store, LATER)
    assert [(error.n, error.labels, error.violated) for error in book.errors()] == [(300, 300, True)]
    book.read(store, LATER)
    assert book.errors()[0].n == 300


def test_an_objective_without_exploration_is_refused() -> None:
    with pytest.raises(ConfigError, match="need exploration"):
        Book(trusted_only=True, limits={"default": 0.05})


def test_a_label_whose_decision_is_gone_says_nothing_about_a_policy() -> None:
    assert feed.judged(Labelled(label("n", True), None, None)) is None
    assert feed.judged(Labelled(label("n", True), decision("n", p_correct=None), None)) is None


def test_a_client_named_like_an_operator_is_limited_all_the_same() -> None:
    rows = [
        Labelled(label(f"n{n}", True, Source.OPERATOR, author="ops", p_correct=0.95), None, None) for n in range(50)
    ]
    rows += [Labelled(label(f"m{n}", False, Source.USER, author="ops", p_correct=0.95), None, None) for n in range(50)]
    weight = feed.fit_weights(rows)
    assert (weight[:50] == 1).all()
    assert weight[50:].sum() <= 0.05 * weight.sum() * 1.001
    with pytest.raises(ConfigError, match="cannot be weighed"):
        feed.fit_weights([Labelled(label("n", p_correct=None), None, None)])


def test_what_an_earlier_release_did_is_not_held_against_the_next(store: Store) -> None:
    filled(store, 300, 0.4)
    names, rng = numbers(200, at=AT + 1e6), np.random.default_rng(1)
    told = {"at": AT + 1e6, "inclusion": 0.5, "explored": True, "calibrator": "cheap@ba9876543210"}
    store.write([Entry(decision(name, **told), ()) for name in names])
    says = rng.random(200) < 0.9
    store.put(
        [
            wish(name, bool(one), Source.OPERATOR, at=AT + 2e6, decided_at=AT + 1e6)
            for name, one in zip(names, says, strict=True)
        ]
    )
    old, new = Book(trusted_only=True), Book(trusted_only=True, since=AT + 5e5)
    for book in (old, new):
        book.read(store, LATER)
    assert {one.calibrator: one.overconfident for one in old.verdicts()} == {
        "cheap@0123456789ab": True, "": True, "cheap@ba9876543210": False
    }  # fmt: skip
    assert [(one.calibrator, one.n, one.overconfident) for one in new.verdicts()] == [
        ("cheap@ba9876543210", 200, False), ("", 200, False)
    ]  # fmt: skip


class Failing:
    """A store that is away whenever `left` reads have been made."""

    def __init__(self, store: Store, left: int) -> None:
        self._store, self.left = store, left

    def _once(self) -> None:
        if not self.left:
            raise StoreDown("away")
        self.left -= 1

    def labelled(self, after: Cursor, limit: int) -> list[Labelled]:
        self._once()
        return self._store.labelled(after, limit)

    def decisions(self, after: Cursor, limit: int) -> list[tuple[DecisionRow, tuple[HopRow, ...]]]:
        self._once()
        return self._store.decisions(after, limit)

    def labels(self, number: str) -> tuple[LabelRow, ...]:
        self._once()
        return self._store.labels(number)


def test_a_store_that_goes_away_at_any_moment_costs_no_label_and_doubles_none(store: Store) -> None:
    filled(store, 300, 0.5)
    whole = Book(trusted_only=True, limits={"default": 0.05}, least_inclusion=0.5)
    whole.read(store, LATER)
    for left in (0, 1, 2, 3, 4, 50, 250):
        book = Book(trusted_only=True, limits={"default": 0.05}, least_inclusion=0.5)
        with pytest.raises(StoreDown):
            book.read(Failing(store, left), LATER)
        book.read(store, LATER)
        assert book.verdicts() == whole.verdicts()
        assert book.errors() == whole.errors()


def test_a_label_whose_decision_was_still_to_be_written_counts_once_it_is(store: Store) -> None:
    [name] = numbers(1)
    store.put([wish(name, True, Source.OPERATOR, at=AT + 50)])
    book = Book(trusted_only=True)
    assert book.read(store, AT + 51) == 0
    store.write([Entry(decision(name, at=AT, explored=True, inclusion=0.5), ())])
    assert [book.read(store, AT + 66), book.read(store, AT + 81)] == [1, 0]


@pytest.mark.parametrize("jump", [-86400.0, 86400.0, -3600.0])
def test_a_clock_that_jumps_loses_no_label(store: Store, jump: float) -> None:
    names = numbers(3)
    store.write([Entry(decision(name, at=AT, explored=True, inclusion=0.5), ()) for name in names])
    book = Book(trusted_only=True)
    times = (AT + 100, AT + 200 + jump, AT + 300)  # right, then wrong, then right again
    counted = []
    for name, at in zip(names, times, strict=True):
        store.put([wish(name, True, Source.OPERATOR, at=at)])
        counted.append(book.read(store, at + 1))
    assert counted == [1, 1, 1]


def test_labels_dated_while_the_clock_was_back_count_although_nobody_looked_meanwhile(store: Store) -> None:
    names = numbers(4)
    store.write([Entry(decision(name, at=AT, explored=True, inclusion=0.5), ()) for name in names])
    book = Book(trusted_only=True)
    store.put([wish(names[0], True, Source.OPERATOR, at=AT + 1e5)])
    assert book.read(store, AT + 1e5) == 1
    for name in names[1:3]:  # as another machine dates them, too
        store.put([wish(name, True, Source.OPERATOR, at=AT + 100)])
    assert book.read(store, AT + 1e5 + 15) == 2
    store.put([wish(names[3], True, Source.OPERATOR, at=AT + 2e5)])
    assert [book.read(store, AT + 2e5), book.read(store, AT + 2e5 + 15)] == [1, 0]


def test_a_client_who_contradicts_an_operator_revises_nothing(store: Store) -> None:
    [name] = filled(store, 1, 1.0)
    store.put([wish(name, False, Source.USER, at=AT + 1e4 + 1)])
    book = Book(trusted_only=False)
    assert [book.read(store, LATER) for _ in range(3)] == [1, 0, 0]
    assert book.revised == 0


def test_what_was_drawn_with_less_than_is_explored_now_is_left_out(store: Store) -> None:
    filled(store, 50, 0.5)
    book = Book(trusted_only=True, limits={"default": 0.05}, least_inclusion=0.9)
    book.read(store, LATER)
    assert [error.n for error in book.errors()] == [0]


def test_decisions_that_are_not_the_releases_own_do_not_count(store: Store) -> None:
    filled(store, 40, 0.5)
    book = Book(trusted_only=True, counts=lambda row: row.threshold == 0.7)
    assert book.read(store, LATER) == 0


def test_a_revised_label_is_not_unlooked_but_told(store: Store) -> None:
    names = filled(store, 3, 1.0)
    book = Book(trusted_only=True)
    book.read(store, AT + 2e4)
    store.put([wish(names[0], False, Source.OPERATOR, at=AT + 2e4, revise=True)])
    assert (book.read(store, AT + 2e4 + 1), book.revised) == (0, 1)
    fresh = Book(trusted_only=True)
    assert fresh.read(store, AT + 2e4 + 1) == 3
    assert float(fresh.honesties.recent("default", "cheap", "cheap@0123456789ab")[1].sum()) == 2
