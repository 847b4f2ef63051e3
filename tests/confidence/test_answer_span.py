from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.confidence import cut_after_answer, measure
from gateway.confidence._answer import answer_tokens, result_tokens
from gateway.errors import BadTrace
from gateway.nouns import Earlier, Evidence, Source, TokenTrace


def said(*tokens: str | bytes, earlier: tuple[Earlier, ...] = ()) -> Evidence:
    """An answer in these tokens; the t-th has log-prob -t/100, so that a value names its token."""
    spelled = tuple(token.encode() if isinstance(token, str) else token for token in tokens)
    nats = -np.arange(len(spelled)) / 100
    top = np.stack([nats, nats - 1], axis=1)
    return Evidence(
        TokenTrace(Source.TOP_LOGPROBS, nats.copy(), top, spelled), b"".join(spelled).decode(errors="replace"), earlier
    )


def value(name: str, evidence: Evidence) -> float:
    return float(measure([name], evidence).values[0])


def test_the_span_of_a_boxed_number_covers_its_digits_and_no_brace() -> None:
    evidence = said("so ", "\\boxed", "{", "1", ",", "2", "3", "4", "}", ".")
    assert answer_tokens(evidence.trace) == slice(3, 8)
    assert value("ans_sum", evidence) == pytest.approx(-(3 + 4 + 5 + 6 + 7) / 100)
    assert value("ans_min", evidence) == pytest.approx(-0.07)
    assert value("ans_margin_first", evidence) == pytest.approx(math.exp(-0.03) - math.exp(-1.03))


def test_a_token_that_holds_more_than_the_number_belongs_to_it() -> None:
    assert answer_tokens(said("is ", "{1", "8}.").trace) == slice(1, 3)


def test_the_sign_belongs_to_the_number() -> None:
    assert answer_tokens(said("answer is ", "-", "$", "7").trace) == slice(1, 4)


def test_the_span_survives_characters_split_over_tokens() -> None:
    euro = "€".encode()
    evidence = said("Größe ", euro[:1], euro[1:], "1", "8", " 🙂"[:1], "🙂".encode()[:2], "🙂".encode()[2:])
    assert answer_tokens(evidence.trace) == slice(3, 5)


def test_the_span_survives_bytes_that_are_no_text() -> None:
    assert answer_tokens(said(b"\xff\xfe", "\\boxed{", "4", "2", "}", b"\xf0\x9f").trace) == slice(2, 4)


def test_full_width_digits_have_a_span_of_their_bytes() -> None:
    digit = "８".encode()
    assert answer_tokens(said("答", "１", digit[:2], digit[2:], "元").trace) == slice(1, 4)


@given(st.text(max_size=30), st.integers(0, 10**9), st.randoms(use_true_random=False))
def test_however_the_bytes_are_cut_the_span_covers_the_digits(lead: str, number: int, random) -> None:  # type: ignore[no-untyped-def]
    text = f"{lead} \\boxed{{{number:,}}}".encode(errors="replace")
    cuts = sorted(random.sample(range(1, len(text)), min(len(text) - 1, random.randint(0, 12))))
    tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    span = answer_tokens(said(*tokens).trace)
    assert span is not None
    covered = b"".join(tokens[span])
    assert f"{number:,}".encode() in covered
    assert f"{number:,}".encode() not in b"".join(tokens[span][1:])
    assert f"{number:,}".encode() not in b"".join(tokens[span][:-1])


def test_without_a_number_the_span_features_are_undefined_and_a_flag_says_so() -> None:
    evidence = said("I ", "do ", "not ", "know")
    assert all(math.isnan(value(name, evidence)) for name in ("ans_sum", "ans_min", "ans_margin_first"))
    assert value("no_answer", evidence) == 1
    assert value("no_answer", said("1", "8")) == 0


def test_a_range_has_no_span() -> None:
    assert answer_tokens(said("\\boxed{", "3", "-", "5", "}").trace) is None


def test_the_digits_of_results_stand_right_behind_an_equals_sign() -> None:
    evidence = said("3 + 4 =", " ", "7", ", 7*2 = $", "1", "4", "\n#### ", "1", "4")
    assert result_tokens(evidence.trace).tolist() == [2, 4, 5]
    assert value("calc_min", evidence) == pytest.approx(-0.05)
    assert value("calc_q10", evidence) == pytest.approx(np.quantile([-0.02, -0.04, -0.05], 0.1))


def test_the_final_answer_is_no_result_even_behind_an_equals_sign() -> None:
    assert math.isnan(value("calc_min", said("\\boxed{x =", " 7", "}")))
    assert math.isnan(value("calc_q10", said("the total is ", "7")))


def test_agreement_compares_numbers_not_spellings() -> None:
    def agreement(theirs: str) -> float:
        return value("upstream_agreement", said("\\boxed{", "18", "}", earlier=(Earlier("small", theirs, None),)))

    assert agreement("The answer is $18.00.") == 1
    assert agreement("#### 19") == 0
    assert math.isnan(agreement("no idea"))


def test_earlier_tiers_count_from_the_most_recent_one() -> None:
    evidence = said("18", earlier=(Earlier("tiny", "17", 0.2), Earlier("small", "18", 0.9)))
    assert value("upstream_logit", evidence) == pytest.approx(math.log(9))
    assert value("upstream_logit(back=2)", evidence) == pytest.approx(math.log(0.25))
    assert value("upstream_agreement(back=2)", evidence) == 0
    assert math.isnan(value("upstream_logit(back=3)", evidence))
    assert math.isnan(value("upstream_agreement(back=3)", evidence))


def test_a_tier_without_a_confidence_has_no_logit_and_a_certain_one_a_finite_one() -> None:
    assert math.isnan(value("upstream_logit", said("18", earlier=(Earlier("small", "18", None),))))
    assert value("upstream_logit", said("18", earlier=(Earlier("small", "18", 1.0),))) == pytest.approx(13.8, abs=0.1)
    assert value("upstream_logit", said("18", earlier=(Earlier("small", "18", 0.0),))) == pytest.approx(-13.8, abs=0.1)


def test_the_end_token_is_apart_and_may_be_unknown() -> None:
    trace = TokenTrace(Source.CHOSEN, np.array([-0.5]), end_nats=-3.0)
    assert value("end_lp", Evidence(trace, "")) == -3.0
    assert value("lp_sum", Evidence(trace, "")) == -0.5
    assert math.isnan(value("end_lp", said("18")))


def test_forks_are_tokens_below_one_half() -> None:
    evidence = Evidence(TokenTrace(Source.CHOSEN, np.log([0.9, 0.5, 0.49, 0.1])), "")
    assert measure(["low_count", "low_share", "length", "log_length"], evidence).values == pytest.approx(
        [2, 0.5, 4, math.log(4)]
    )


def test_what_follows_the_answer_can_be_cut() -> None:
    evidence = said("so ", "\\boxed{", "1", "8", "}", ". I hope", " that helps 2 of you!")
    cut = cut_after_answer(evidence)
    assert cut.text == "so \\boxed{18}"
    assert cut.trace.tokens == evidence.trace.tokens[:5]
    assert cut.trace.top is not None
    assert cut.trace.top.shape == (5, 2)
    assert value("lp_tail", cut) > value("lp_tail", evidence)
    assert cut_after_answer(cut).trace.chosen.size == 5


def test_an_answer_without_a_number_is_not_cut() -> None:
    evidence = said("no ", "idea")
    assert cut_after_answer(evidence) is evidence


def test_cutting_without_the_tokens_texts_is_refused() -> None:
    with pytest.raises(BadTrace, match="needs the tokens' texts"):
        cut_after_answer(Evidence(TokenTrace(Source.CHOSEN, np.array([-0.1])), "18"))
