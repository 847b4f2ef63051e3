from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.confidence import measure
from gateway.confidence._entropy import bounds
from gateway.nouns import Evidence, Source, TokenTrace


@given(st.integers(2, 400), st.integers(1, 20), st.floats(0.01, 8), st.integers(0, 2**32 - 1))
def test_the_bounds_bracket_the_true_entropy(vocabulary: int, k: int, heat: float, seed: int) -> None:
    k = min(k, vocabulary)
    logits = np.random.default_rng(seed).normal(0, heat, (3, vocabulary))
    nats = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    nats -= logits.max(axis=1, keepdims=True)
    entropy = -(np.exp(nats) * nats).sum(axis=1)
    low, high = bounds(np.sort(nats, axis=1)[:, ::-1][:, :k], vocabulary)
    assert (low <= entropy + 1e-9).all()
    assert (entropy <= high + 1e-9).all()
    if k == vocabulary:
        assert low == pytest.approx(entropy)


def test_without_a_rest_both_bounds_are_the_entropy() -> None:
    nats = np.log([[0.5, 0.25, 0.125, 0.125]])
    low, high = bounds(nats, vocabulary=150_000)
    assert low == pytest.approx(1.75 * np.log(2))
    assert high == pytest.approx(low, abs=1e-6)


def test_a_certain_token_has_no_entropy() -> None:
    low, high = bounds(np.array([[0.0, -60.0]]), vocabulary=1000)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(0, abs=1e-12)


def test_a_mass_a_little_over_one_has_no_negative_rest() -> None:
    low, high = bounds(np.log([[0.7, 0.30003]]), vocabulary=1000)
    assert low[0] == pytest.approx(-(0.7 * np.log(0.7) + 0.3 * np.log(0.3)), abs=1e-3)
    assert high[0] >= low[0]


def test_the_lower_bound_beats_the_renormalised_entropy_when_the_rest_is_large() -> None:
    nats = np.full((1, 20), -np.log(600))
    renormalised = np.log(20)
    low, high = bounds(nats, vocabulary=600)
    assert low[0] == pytest.approx(np.log(600))
    assert high[0] == pytest.approx(np.log(600))
    assert renormalised < low[0] / 2


def test_exact_entropy_comes_from_the_engine() -> None:
    signals = {"entropy": np.array([0.5, 1.5]), "self_certainty": np.array([9.0, 13.0])}
    evidence = Evidence(TokenTrace(Source.PLUGIN, np.array([-0.1, -0.2]), signals=signals), "")
    assert measure(["entropy_mean", "entropy_max", "self_certainty"], evidence).values.tolist() == [1.0, 1.5, 11.0]
