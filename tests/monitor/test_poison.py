from __future__ import annotations

import numpy as np
import pytest

from gateway.errors import ConfigError
from gateway.monitor import poison
from gateway.nouns import Floats


def traffic(keys: int, n: int = 4_000) -> tuple[Floats, Floats, list[str]]:
    rng = np.random.default_rng(keys)
    p = rng.uniform(0.02, 0.98, n)
    return p, (rng.random(n) < p).astype(float), [f"key{k}" for k in rng.integers(keys, size=n)]


def rates(p: Floats, right: Floats, weight: Floats) -> Floats:
    cell = np.minimum((p * poison.BINS).astype(int), poison.BINS - 1)
    return np.bincount(cell, weight * right) / np.bincount(cell, weight)


@pytest.mark.parametrize("honest", [4, 9, 30])
def test_a_tenth_of_all_labels_inverted_by_one_key_moves_no_bin_by_more_than_the_limit(honest: int) -> None:
    p, right, authors = traffic(honest)
    bad = np.arange(p.size) % 10 == 0
    attacked = np.where(bad, 1 - right, right)
    signed = ["bad" if one else author for one, author in zip(bad, authors, strict=True)]
    without = rates(p[~bad], right[~bad], poison.weights(p[~bad], right[~bad], list(np.array(authors)[~bad])))
    limited = rates(p, attacked, poison.weights(p, attacked, signed))
    assert np.abs(rates(p, attacked, np.ones_like(p)) - without).max() > 0.05  # what it does unhindered
    assert np.abs(limited - without).max() <= poison.MAX_MOVE


def test_a_key_that_fills_one_bin_alone_moves_it_no_farther() -> None:
    p, right, authors = traffic(9)
    bad = (p > 0.9) & (np.arange(p.size) % 2 == 0)
    attacked = np.where(bad, 0.0, right)
    signed = ["bad" if one else author for one, author in zip(bad, authors, strict=True)]
    without = rates(p[~bad], right[~bad], poison.weights(p[~bad], right[~bad], list(np.array(authors)[~bad])))
    assert np.abs(rates(p, attacked, poison.weights(p, attacked, signed)) - without).max() <= poison.MAX_MOVE


def test_a_bad_key_that_no_third_one_contradicts_moves_no_bin_by_more_than_the_limit() -> None:
    p, right, _ = traffic(1)
    bad = np.arange(p.size) % 10 == 0
    attacked = np.where(bad, 1 - right, right)
    signed = ["bad" if one else "operator" for one in bad]
    weight = poison.weights(p, attacked, signed, frozenset({"operator"}))
    assert (weight[bad] > 0).all()  # of two that differ nobody knows which one is right
    without = rates(p[~bad], right[~bad], np.ones(int((~bad).sum())))
    assert np.abs(rates(p, attacked, np.ones_like(p)) - without).max() > 0.05
    assert np.abs(rates(p, attacked, weight) - without).max() <= poison.MAX_MOVE + 1e-9


def test_honest_keys_keep_most_of_their_weight() -> None:
    p, right, authors = traffic(20)
    assert poison.weights(p, right, authors).mean() > 0.8


def test_no_key_has_more_than_its_share_of_a_fit() -> None:
    p, right, _ = traffic(1)
    authors = ["loud" if n % 2 else f"key{n % 50}" for n in range(p.size)]
    weight = poison.weights(p, right, authors)
    loud = np.array([author == "loud" for author in authors])
    assert weight[loud].sum() <= poison.KEY_SHARE * weight.sum() * 1.2  # the second limit may turn others down a little


def test_trusted_labels_are_limited_in_nothing_and_a_lone_client_is_not_heard() -> None:
    p, right, _ = traffic(1, 200)
    assert (poison.weights(p, right, ["operator"] * 200, frozenset({"operator"})) == 1).all()
    assert (poison.weights(p, right, ["client"] * 200) == 0).all()


def test_labels_without_an_author_each_are_refused() -> None:
    with pytest.raises(ConfigError, match="one author per p"):
        poison.weights(np.array([0.5, 0.6]), np.array([1.0, 0.0]), ["one"])
