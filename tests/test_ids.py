"""Decision ids: what is put in comes out, and nobody else's id, nor a damaged one, is ever taken."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gateway import ids
from gateway.config import Ids
from gateway.errors import BadId, ConfigError, ForeignId
from gateway.ids import Seal

SECRET = b"s" * 32
SEAL = Seal(SECRET)
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._/-]{0,127}\Z")
SHARES = st.none() | st.floats(0, 1)
LABELS = st.sampled_from(["none", "cheap@0123456789ab", "a@b@ffffffffffff"])
TIMES = st.floats(-1e12, 1e12, allow_nan=False)


@st.composite
def made(draw: st.DrawFn) -> tuple[str, str]:
    """An id and whom it was given to."""
    tenant = draw(NAMES)
    facts = {"tier": draw(NAMES), "calibrator": draw(LABELS), "p_correct": draw(SHARES)}
    return SEAL.seal(ids.number(draw(TIMES)), tenant, **facts), tenant


@given(TIMES, NAMES, NAMES, LABELS, SHARES)
def test_what_an_id_was_made_from_comes_out_of_it(
    when: float, tenant: str, tier: str, calibrator: str, p_correct: float | None
) -> None:
    number = ids.number(when)
    told = SEAL.seal(number, tenant, tier=tier, calibrator=calibrator, p_correct=p_correct)
    found = SEAL.open(f"chatcmpl-{told}", tenant)
    assert found == SEAL.open(told, tenant)
    assert (found.number, found.tier, found.p_correct) == (number, tier, p_correct)
    assert found.calibrator == ("" if calibrator == "none" else calibrator[-12:])
    assert told.startswith(number)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", told)
    assert len(told) <= 256
    if 0 <= when < 2e11:
        assert found.unix_seconds == pytest.approx(when, abs=0.001)


@given(made(), st.data())
def test_a_damaged_id_is_refused(one: tuple[str, str], data: st.DataObject) -> None:
    told, tenant = one
    place = data.draw(st.integers(0, len(told) - 1))
    other = data.draw(st.sampled_from("ABCxyz019-_=.é "))
    assume(told[place] != other)
    with pytest.raises(BadId):
        SEAL.open(told[:place] + other + told[place + 1 :], tenant)
    for cut in (told[:place], told + other, told + told, told + "="):
        with pytest.raises(BadId):
            SEAL.open(cut, tenant)


@given(st.text(max_size=300))
def test_an_invented_id_is_refused_whatever_it_is(text: str) -> None:
    with pytest.raises(BadId):
        SEAL.open(text, "alice")


@given(made(), NAMES)
def test_another_clients_id_is_refused_as_such(one: tuple[str, str], other: str) -> None:
    told, tenant = one
    assume(other != tenant)
    with pytest.raises(ForeignId):
        SEAL.open(told, other)
    with pytest.raises(BadId):
        Seal(b"t" * 32).open(told, tenant)


def test_an_id_in_the_usual_case_is_short() -> None:
    told = SEAL.seal(ids.number(1.8e9), "alice", tier="large", calibrator="large@0123456789ab", p_correct=0.9)
    assert len(told) <= 80


def test_ids_stay_unique_while_the_clock_stands_still_or_goes_back() -> None:
    times = [1.8e9] * 5000 + [1.8e9 - second for second in range(5000)]
    assert len({ids.number(when) for when in times}) == 10_000


def test_an_id_of_a_secret_of_before_counts_until_that_is_forgotten() -> None:
    old = SEAL.seal(ids.number(0), "alice", tier="cheap")
    assert Seal(b"n" * 32, [SECRET]).open(old, "alice").tier == "cheap"
    with pytest.raises(ForeignId):
        Seal(b"n" * 32, [SECRET]).open(old, "bob")
    with pytest.raises(BadId):
        Seal(b"n" * 32).open(old, "alice")


def test_every_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No early end: as many comparisons for the first secret's id as for an invented one."""
    counts = []
    seal = Seal(SECRET, [b"a" * 32, b"b" * 32])
    genuine = seal.seal(ids.number(0), "alice")
    for told, tenant in ((genuine, "alice"), (genuine, "bob"), (genuine[:-2] + "AA", "alice")):
        seen = []
        real = ids.hmac.compare_digest

        def counted(a: bytes, b: bytes, real=real, seen=seen) -> bool:  # type: ignore[no-untyped-def]
            seen.append(len(a))
            return bool(real(a, b))

        with monkeypatch.context() as patch:
            patch.setattr(ids.hmac, "compare_digest", counted)
            with contextlib.suppress(BadId, ForeignId):
                seal.open(told, tenant)
        counts.append(sum(length == ids.MAC_BYTES for length in seen))
    assert counts == [3, 3, 3]


def test_a_kept_secret_is_made_once_and_for_its_owner_only(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "ids.secret"
    first = Ids(keep=path).seal(b"spare")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [other.name for other in tmp_path.iterdir()] == ["ids.secret"]
    told = first.seal(ids.number(0), "alice")
    assert Ids(keep=path).seal(b"another spare").open(told, "alice").tier == ""
    assert Ids(secret=f"file:{path}").seal(b"").open(told, "alice")


def test_a_secret_that_is_short_or_not_there_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "short").write_text("abc")
    for path, words in (("short", "too short"), ("gone", "No such file")):
        with pytest.raises(ConfigError, match=words):
            Ids(secret=f"file:{tmp_path / path}").seal(b"")
    with pytest.raises(ConfigError, match="cannot keep a secret"):
        Ids(keep=tmp_path / "no" / "such").seal(b"")
