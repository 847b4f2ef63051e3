from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gateway.confidence import measure
from gateway.confidence._order import kept_ceil, kept_floor, lowest_mean, quantile
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence, Source, TokenTrace

FAMILY = ("deepconf_average", "deepconf_group", "deepconf_bottom", "deepconf_lowest", "deepconf_tail")


def evidence_of(confidence: np.ndarray) -> Evidence:
    """A trace whose token confidence is exactly what is given: every candidate alike."""
    top = np.repeat(-confidence[:, np.newaxis], 20, axis=1)
    return Evidence(TokenTrace(Source.TOP_LOGPROBS, top[:, 0].copy(), top), "")


def by_the_paper(c: np.ndarray, window: int) -> list[float]:
    """The definitions of arXiv:2508.15260 in loops, with the plain mean for answers shorter than a window."""
    tail = sum(c[-window:]) / len(c[-window:])
    mean = sum(c) / len(c)
    if len(c) < window:
        return [mean, mean, mean, mean, tail]
    groups = sorted(sum(c[i : i + window]) / window for i in range(len(c) - window + 1))
    kept = max(1, len(groups) // 10)
    return [mean, sum(groups) / len(groups), sum(groups[:kept]) / kept, groups[0], tail]


def test_token_confidence_of_a_hand_made_list_of_twenty() -> None:
    top = -np.arange(1.0, 21.0)[np.newaxis, :]
    evidence = Evidence(TokenTrace(Source.TOP_LOGPROBS, top[:, 0].copy(), top), "")
    assert measure(["deepconf_average"], evidence).values[0] == pytest.approx(10.5)
    assert measure(["deepconf_average(k=4)"], evidence).values[0] == pytest.approx(2.5)


def test_a_twenty_first_candidate_changes_nothing() -> None:
    top = np.tile(-np.arange(1.0, 22.0), (5, 1))
    twenty = Evidence(TokenTrace(Source.TOP_LOGPROBS, top[:, 20].copy(), top[:, :20].copy()), "")
    with_chosen = Evidence(TokenTrace(Source.TOP_LOGPROBS, top[:, 20].copy(), top), "")
    names = [*FAMILY, "entropy_lower_mean", "entropy_lower_max", "margin_mean"]
    assert measure(names, twenty).values.tolist() == measure(names, with_chosen).values.tolist()


def test_a_uniform_distribution_has_the_logarithm_of_its_size() -> None:
    """Confidence is not monotone in doubt: more equally likely tokens give more of it."""
    few, many = (Evidence(TokenTrace(Source.CHOSEN, t[:, 0].copy(), t), "") for t in map(uniform, (20, 150_000)))
    assert measure(["deepconf_average"], few).values[0] == pytest.approx(np.log(20))
    assert measure(["deepconf_average"], many).values[0] == pytest.approx(np.log(150_000))
    assert measure(["entropy_lower_mean"], few).values[0] == pytest.approx(np.log(20))


def uniform(size: int) -> np.ndarray:
    return np.full((3, 20), -np.log(size))


@pytest.mark.parametrize("window", [1, 2, 8, 32])
@pytest.mark.parametrize("offset", [-1, 0, 1, 40])
def test_the_family_follows_the_paper_at_every_edge_of_the_window(window: int, offset: int) -> None:
    tokens = max(1, window + offset)
    confidence = np.random.default_rng(tokens).uniform(1, 25, tokens)
    measured = [
        measure([name if name == "deepconf_average" else f"{name}(window={window})"], evidence_of(confidence)).values[0]
        for name in FAMILY
    ]
    assert measured == pytest.approx(by_the_paper(confidence, window))


@pytest.mark.parametrize(("tokens", "groups"), [(1, 1), (31, 1), (32, 1), (33, 2), (200, 169)])
def test_there_is_one_window_for_each_start(tokens: int, groups: int) -> None:
    assert group_means(np.ones(tokens), 32).shape == (groups,)


@pytest.mark.parametrize(
    ("size", "floor", "ceil"), [(1, 1, 1), (9, 1, 1), (10, 1, 1), (11, 1, 2), (19, 1, 2), (20, 2, 2), (30, 3, 3)]
)
def test_a_tenth_is_rounded_down_for_windows_and_up_for_tokens(size: int, floor: int, ceil: int) -> None:
    assert (kept_floor(size, 0.1), kept_ceil(size, 0.1)) == (floor, ceil)


def test_rounding_does_not_stumble_over_binary_fractions() -> None:
    assert 0.07 * 100 > 7
    assert kept_ceil(100, 0.07) == 7
    assert 0.29 * 100 < 29
    assert kept_floor(100, 0.29) == 29


SIGNALS = arrays(np.float64, st.integers(1, 80), elements=st.floats(-30, 0))


@given(SIGNALS, st.integers(1, 90))
def test_windows_lie_between_the_extremes_and_average_out(nats: np.ndarray, window: int) -> None:
    groups = group_means(nats, window)
    assert groups.min() >= nats.min() - 1e-9
    assert groups.max() <= nats.max() + 1e-9
    if window == 1:
        assert groups == pytest.approx(nats)


@given(SIGNALS, st.floats(0, 1))
def test_quantile_and_bottom_agree_with_sorting(nats: np.ndarray, q: float) -> None:
    assert quantile(nats, q) == pytest.approx(np.quantile(nats, q), abs=1e-12)
    kept = kept_ceil(nats.size, q)
    assert lowest_mean(nats, kept) == pytest.approx(np.sort(nats)[:kept].mean(), abs=1e-12)


@given(SIGNALS)
def test_the_family_is_ordered(nats: np.ndarray) -> None:
    evidence = evidence_of(-nats)
    lowest, bottom, group = measure(["deepconf_lowest", "deepconf_bottom", "deepconf_group"], evidence).values
    assert lowest <= bottom + 1e-9
    assert bottom <= group + 1e-9


@given(SIGNALS, st.floats(0.1, 5))
def test_less_likely_tokens_never_look_surer(nats: np.ndarray, worse: float) -> None:
    names = [
        "lp_mean",
        "lp_sum",
        "lp_quantile",
        "lp_bottom",
        "lp_tail",
        "lp_group",
        "lp_window_min",
        "lp_window_bottom",
    ]
    before = measure(names, Evidence(TokenTrace(Source.CHOSEN, nats.copy()), "")).values
    after = measure(names, Evidence(TokenTrace(Source.CHOSEN, nats - worse), "")).values
    assert (after < before).all()


@given(SIGNALS)
def test_means_forget_the_order_of_tokens_and_windows_do_not_grow_with_it(nats: np.ndarray) -> None:
    names = ["lp_mean", "lp_quantile", "lp_bottom", "low_count", "length"]
    there = measure(names, Evidence(TokenTrace(Source.CHOSEN, nats.copy()), "")).values
    back = measure(names, Evidence(TokenTrace(Source.CHOSEN, nats[::-1].copy()), "")).values
    assert there == pytest.approx(back)


def test_a_long_answer_keeps_its_precision_in_the_prefix_sums() -> None:
    nats = np.full(100_000, -1e-6)
    nats[0] = -30.0
    assert group_means(nats, 32)[-1] == pytest.approx(-1e-6, rel=1e-4)
