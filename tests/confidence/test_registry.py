from __future__ import annotations

import importlib
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import confidence
from gateway.confidence import Higher, Needs
from gateway.confidence.__main__ import FIELDS, describe, table
from gateway.errors import BadTrace, ConfigError
from gateway.nouns import Earlier, Evidence, Source, TokenTrace


def whole_evidence(tokens: int = 200, seed: int = 0) -> Evidence:
    """Everything any feature may need, of an answer of 200 tokens."""
    rng = np.random.default_rng(seed)
    top = np.sort(-rng.exponential(6.0, (tokens, 20)), axis=1)[:, ::-1].copy()
    text = (b" so he has 3 + 4 = 7 apples" * tokens)[: tokens - 12] + b"\n\\boxed{17}."
    names = ("entropy", "self_certainty", "margin", "confidence_k20")
    trace = TokenTrace(
        Source.TOP_LOGPROBS,
        top[:, 0].copy(),
        top,
        tuple(bytes([byte]) for byte in text),
        {name: rng.random(tokens) for name in names},
        -0.2,
    )
    return Evidence(trace, text.decode(), (Earlier("small", "\\boxed{17}", 0.6),))


@pytest.mark.parametrize("name", confidence.names())
def test_every_feature_tells_its_formula_unit_edge_source_and_direction(name: str) -> None:
    module = importlib.import_module(f"gateway.confidence.{name}")
    sentence, told = describe(module.feature)
    assert sentence
    assert module.__doc__
    assert set(told) == set(FIELDS)
    assert all(told.values())
    assert isinstance(module.HIGHER, Higher)
    assert isinstance(module.NEEDS, Needs)


def test_the_reference_page_is_what_the_command_writes() -> None:
    page = Path(__file__).parents[2] / "docs" / "features.md"
    assert page.read_text() == table(), "run: python -m gateway.confidence > docs/features.md"


def test_every_feature_of_a_whole_answer_is_finite_and_in_the_order_asked() -> None:
    asked = confidence.names()[::-1]
    measured = confidence.measure(asked, whole_evidence())
    assert measured.names == tuple(asked)
    assert np.isfinite(measured.values).all()


def test_every_feature_measures_an_answer_of_one_token() -> None:
    top = np.array([[-0.1, -3.0, *np.linspace(-4, -9, 18)]])
    signals = {name: np.array([0.5]) for name in ("entropy", "self_certainty")}
    evidence = Evidence(TokenTrace(Source.TOP_LOGPROBS, top[:, 0].copy(), top, (b"7",), signals, -0.1), "7")
    values = dict(zip(confidence.names(), confidence.measure(confidence.names(), evidence).values, strict=True))
    undefined = {name for name, value in values.items() if np.isnan(value)}
    assert undefined == {"calc_min", "calc_q10", "upstream_logit", "upstream_agreement"}
    assert values["ans_sum"] == values["lp_mean"] == values["lp_window_min"] == -0.1


def test_an_answer_without_tokens_is_no_trace_at_all() -> None:
    with pytest.raises(BadTrace, match="T >= 1"):
        TokenTrace(Source.CHOSEN, np.array([]))


@pytest.mark.parametrize("bad", [-np.inf, np.inf, np.nan, 0.5])
def test_a_trace_with_a_value_that_is_no_log_prob_is_refused(bad: float) -> None:
    with pytest.raises(BadTrace):
        TokenTrace(Source.CHOSEN, np.array([-0.1, bad]))
    with pytest.raises(BadTrace):
        TokenTrace(Source.TOP_LOGPROBS, np.array([-0.1]), np.array([[-0.1, bad]]))


def test_a_wrong_name_is_answered_with_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"no feature 'lp_meen'; have .*lp_mean"):
        confidence.find("lp_meen")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lp_tail(windw=3)", "no parameter 'windw'; it takes: window"),
        ("lp_mean(window=3)", "it takes: none"),
        ("lp_tail(window=1.5)", "must be a whole number"),
        ("lp_quantile(q=low)", "must be a number"),
        ("lp_tail(window=0)", "must lie in"),
        ("lp_quantile(q=1.01)", "must lie in"),
        ("lp_quantile(q=nan)", "must lie in"),
        ("lp_bottom(share=-0.1)", "must lie in"),
        ("deepconf_average(k=0)", "must lie in"),
        ("lp_tail(window=3,window=4)", "gives window twice"),
        ("lp_tail(3)", "no parameter"),
        ("lp tail(", "cannot read feature"),
        ("_windows", "cannot read feature"),
        ("", "cannot read feature"),
    ],
)
def test_a_wrong_parameter_is_refused_in_words(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        confidence.find(spec)


def test_defaults_and_spaces_leave_no_trace_in_the_canonical_name() -> None:
    assert confidence.find("lp_tail( window = 32 )").spec == "lp_tail"
    assert confidence.find("deepconf_bottom(window=64, k=5)").spec == "deepconf_bottom(k=5,window=64)"


@given(st.floats(0, 1))
def test_the_canonical_name_reads_back_as_the_same_parameter(q: float) -> None:
    spec = confidence.find(f"lp_quantile(q={q!r})").spec
    assert confidence.find(spec).spec == spec
    values = np.linspace(-3, 0, 1000)
    evidence = Evidence(TokenTrace(Source.CHOSEN, values), "")
    assert confidence.find(spec).measure(evidence) == pytest.approx(np.quantile(values, q), abs=1e-12)


def test_the_engine_is_asked_for_no_more_than_the_features_use() -> None:
    assert confidence.needs(["lp_mean", "length"]) == Needs()
    assert confidence.needs(["margin_mean", "deepconf_tail(k=5)"]).top_k == 5
    assert confidence.needs(["margin_mean"]).top_k == 2
    assert confidence.needs(["entropy_mean", "ans_sum"]) == Needs(signals=("entropy",), tokens=True)
    assert confidence.needs(["upstream_logit"]).earlier


def test_what_the_trace_lacks_is_named() -> None:
    evidence = Evidence(TokenTrace(Source.TOP_LOGPROBS, np.array([-0.1]), np.array([[-0.1, -3.0]])), "7")
    with pytest.raises(BadTrace, match="deepconf_average needs the 20 most likely tokens, the engine reported 2"):
        confidence.measure(["deepconf_average"], evidence)
    with pytest.raises(BadTrace, match="entropy_mean needs the engine's entropy"):
        confidence.measure(["entropy_mean"], evidence)
    with pytest.raises(BadTrace, match="ans_sum needs the tokens' texts"):
        confidence.measure(["ans_sum"], evidence)


def test_arrays_of_the_engine_stand_in_for_candidates_of_the_same_k_only() -> None:
    signals = {"confidence_k20": np.array([9.0, 11.0]), "margin": np.array([0.2, 0.8])}
    evidence = Evidence(TokenTrace(Source.PLUGIN, np.array([-0.1, -0.2]), signals=signals), "")
    assert confidence.measure(["deepconf_average", "margin_mean"], evidence).values == pytest.approx([10.0, 0.5])
    with pytest.raises(BadTrace, match=r"deepconf_average\(k=5\) needs the 5"):
        confidence.measure(["deepconf_average(k=5)"], evidence)


def test_the_families_never_share_a_name() -> None:
    """A "log-prob average" that plots DeepConf values, and a "bottom 10 %" of unsaid things, misled whole studies."""
    for name in confidence.names():
        family = name.split("_")[0]
        needs = confidence.find(name).needs
        assert (family == "deepconf") == ("confidence_k20" in needs.stand_ins), name
        if family == "lp":
            assert needs == Needs(), name
    evidence = whole_evidence()
    deepconf = confidence.measure([n for n in confidence.names() if n.startswith("deepconf_")], evidence).values
    emitted = confidence.measure([n for n in confidence.names() if n.startswith("lp_")], evidence).values
    assert (deepconf > 0).all()
    assert (emitted < 0).all()


def test_the_bottom_of_windows_and_the_bottom_of_tokens_are_two_features() -> None:
    nats = np.array([-4.0, *[-0.1] * 99])
    evidence = Evidence(TokenTrace(Source.CHOSEN, nats), "")
    by_token, by_window = confidence.measure(["lp_bottom", "lp_window_bottom(window=10)"], evidence).values
    assert by_token == pytest.approx((-4.0 - 9 * 0.1) / 10)
    assert by_window == pytest.approx((-0.49 - 8 * 0.1) / 9)


def test_ten_features_of_200_tokens_take_far_less_than_a_millisecond() -> None:
    ten = ["deepconf_average", "deepconf_bottom", "deepconf_tail", "lp_mean", "lp_quantile", "lp_bottom"]
    ten += ["margin_mean", "ans_sum", "length", "upstream_logit"]
    answers = [whole_evidence(seed=seed) for seed in range(20)]
    confidence.measure(ten, whole_evidence(seed=99))
    seconds = []
    for evidence in answers:
        began = time.process_time()
        confidence.measure(ten, evidence)
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.5e-3
