"""A summary made inside the engine tells the features that it tells as well as the numbers of all tokens do."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gateway import confidence
from gateway.confidence import _summary
from gateway.engines import _compact
from gateway.errors import BadTrace
from gateway.nouns import Earlier, Evidence, Features, Source, Summary, Summed
from gateway.vllm_plugin import params, summary
from gateway.vllm_plugin.signals import COLUMNS

K = 20
TEXT = "2 + 2 = 4"
EARLIER = (Earlier("small", "it is 4", 0.75),)
TOLD = [
    name + ("(q=0)" if name == "lp_quantile" else "")
    for name in (*_summary.VIEWS, *_summary.OTHERS, *_summary.OF_THE_TEXT)
]


def measured(
    specs: list[str], tokens: int, *, ended: bool = True, window: int = confidence.WINDOW
) -> tuple[Features, Features]:
    """From the summary and from the arrays of one random answer, as the plugin writes and the gateway reads them."""
    rng = np.random.default_rng(tokens)
    records = np.zeros((tokens, COLUMNS), dtype=np.float32)
    records[:, 0] = rng.gamma(9.0, 1.5, tokens)
    records[:, 1] = -rng.gamma(0.3, 0.6, tokens)
    records[-1, 1] = -1.9e-6  # as sure as models are of an end
    records[:, 2:5] = rng.random((tokens, 3))
    wanted = params.Wanted(k=K, window=window, arrays=True)
    raw = json.dumps(summary.confidence(records, wanted, greedy=True, ended=ended))
    told = _compact.msgspec.json.decode(raw, type=_compact.Confidence)
    summed = Summed(_compact.summary(told, tokens, K, window), TEXT, EARLIER)
    whole = Evidence(_compact.read(told, tokens, K, None), TEXT, EARLIER)
    return confidence.measure(specs, summed), confidence.measure(specs, whole)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("tokens", [2, 9, 11, 32, 33, 34, 101, 200, 2000])
def test_features_are_what_they_are_by_all_tokens(tokens: int, ended: bool) -> None:
    """What is one token's is so to the last bit: a test of drift would see another distribution where many answers have
    the same value and the two ways differed by a millionth."""
    of_summary, of_tokens = measured(TOLD, tokens, ended=ended)
    assert of_summary.names == of_tokens.names
    np.testing.assert_allclose(of_summary.values, of_tokens.values, rtol=1e-9, atol=1e-12)
    read, seen = (dict(zip(one.names, one.values.tolist(), strict=True)) for one in (of_summary, of_tokens))
    assert math.isnan(read["end_lp"]) is not ended
    for name in ("end_lp", "lp_quantile(q=0)", "entropy_max", "margin_min", "lp_bottom" if tokens < 10 else "length"):
        assert read[name] == seen[name] or math.isnan(seen[name])


def test_each_is_told_by_a_number_of_its_own() -> None:
    """Else one could be read from another's place, and agree by chance."""
    values = dict(zip(TOLD, measured(TOLD, 200)[0].values.round(6).tolist(), strict=True))
    alike = {name for name in values if list(values.values()).count(values[name]) > 1}
    assert alike <= {"no_answer", "upstream_agreement"} | {"lp_window_min", "deepconf_lowest"}


@pytest.mark.parametrize(
    ("specs", "window"),
    [
        (["lp_mean", "length", "margin_min"], confidence.WINDOW),
        (["lp_tail(window=16)", "deepconf_bottom(k=5,window=16)"], 16),
        (["lp_tail(window=16)", "deepconf_bottom"], 0),  # one summary has one window
        (["lp_tail(window=4096)"], params.WINDOW_MAX),
        (["lp_tail(window=4097)"], 0),  # the plugin would refuse the request
        (["lp_mean", "lp_quantile"], 0),  # of a tenth, not the least
        (["lp_bottom(share=0.2)"], 0),
        (["lp_mean", "ans_min"], 0),
        (["upstream_logit", "upstream_agreement"], confidence.WINDOW),
    ],
)
def test_which_features_a_summary_tells(specs: list[str], window: int) -> None:
    assert confidence.window(specs) == window
    if window and "deepconf_bottom(k=5,window=16)" not in specs:
        of_summary, of_tokens = measured(specs, 80, window=window)
        np.testing.assert_allclose(of_summary.values, of_tokens.values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("lp_quantile", "numbers of every token"),
        ("lp_tail(window=16)", "a window of 16, the engine's summary was made with 32"),
        ("deepconf_average(k=5)", "a k of 5, the engine's summary was made with 20"),
    ],
)
def test_what_a_summary_does_not_tell_is_no_evidence(spec: str, why: str) -> None:
    with pytest.raises(BadTrace, match=why):
        confidence.measure([spec], Summed(Summary(Source.PLUGIN, 3, K, 32, {"top1": {}}), TEXT))


def test_a_number_that_is_missing_is_no_evidence() -> None:
    views = {"top1": {"mean": -0.1}}
    summed = Summed(Summary(Source.PLUGIN, 3, K, 32, views), TEXT)
    assert confidence.measure(["lp_mean"], summed).values.tolist() == [-0.1]
    for spec in ("lp_bottom", "margin_min"):
        with pytest.raises(BadTrace, match="older than this gateway"):
            confidence.measure(["lp_mean", spec], summed)
