"""What texts lose before they are kept."""

from __future__ import annotations

import time

import pytest

from gateway.store import redact
from gateway.store.settings import Texts
from gateway.store.story import Keep


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("write to mia.m+x@example.org now", "write to [address] now"),
        ("see https://user:pw@host.example/path?q=1 there", "see [link] there"),
        ("call +49 (30) 1234-5678 90", "call [number]"),
        ("card 4111 1111 1111 1111.", "card [number]."),
        ("key sk-proj-abcdefghijklmnopqrstuvwxyz0123456789", "key [key]"),
        ("Mia has 12 apples and 1,250 pears: 12 + 1250 = 1262", "Mia has 12 apples and 1,250 pears: 12 + 1250 = 1262"),
        ("antidisestablishmentarianism stays", "antidisestablishmentarianism stays"),
    ],
)
def test_contacts_and_long_numbers_go_and_the_rest_stays(text: str, kept: str) -> None:
    assert redact.contacts(text) == kept
    assert redact.nothing(text) == text


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "a@", "http://", "-", "a1_", "(((", "\0"])
def test_no_text_is_slow(piece: str) -> None:
    began = time.process_time()
    redact.contacts(piece * (65536 // len(piece)))
    assert time.process_time() - began < 3


def test_a_function_that_fails_keeps_nothing_of_the_text() -> None:
    def fails(text: str) -> str:
        raise ValueError(text)

    assert Keep(fails, 100).kept("secret") == "[not kept: the redacting function raised ValueError]"
    assert Keep(redact.nothing, 3).kept("secret") == "sec"


@pytest.mark.parametrize(
    "name", ["no.such:thing", "gateway.store.redact:gone", "gateway.store.redact", "json:JSONDecodeErro"]
)
def test_a_function_that_is_not_there_is_a_mistake_of_the_configuration(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot find|no function"):
        Texts(redact=name)


def test_what_a_cut_would_go_through_is_replaced_before_it() -> None:
    text = "x " * 20 + "write to john.smith@example.com"
    for most in range(40, len(text)):
        assert "john" not in Keep(redact.contacts, most).kept(text)
