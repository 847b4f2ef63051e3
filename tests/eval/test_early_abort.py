"""Learning when to give up: bounds that hold, and none where nothing can be known."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta
from typer.testing import CliRunner

from calibrators import artifact as artifacts
from eval import abort_study, records
from eval.abort_study import Run
from eval.cli import app
from eval.early_abort import CONFIDENCE, EPSILONS, FEW, SHARES, TOKENS, Bools, check, running, search
from eval.grade import Grade
from eval.records import Record
from eval.replay import Recorded
from gateway import attempts
from gateway.answers import Rule
from gateway.errors import ConfigError
from gateway.nouns import Ask, EarlyAbort, Finish, Floats, Piece, Source, TokenTrace


def world(n: int, seed: int, signal: float) -> tuple[Floats, Bools]:
    """Running features that tell more and more, answers of 10 to 130 tokens, half of them accepted in the end."""
    rng = np.random.default_rng(seed)
    logit = 2 * rng.normal(size=n)
    accepted = rng.random(n) < 1 / (1 + np.exp(-signal * 3 * logit))
    seen = np.sqrt(np.array(TOKENS) / 16) * logit[:, np.newaxis] + rng.normal(size=(n, len(TOKENS)))
    length = rng.integers(10, 130, size=n)
    return np.where(np.array(TOKENS) <= length[:, np.newaxis], seen, np.nan), accepted


def gone(values: Floats, bounds: dict[int, float]) -> Bools:
    """(N,) given up at any number of tokens: the gateway's own rule, written down once more."""
    return np.any([values[:, TOKENS.index(tokens)] <= at_most for tokens, at_most in bounds.items()], axis=0)


@pytest.mark.parametrize("epsilon", EPSILONS[1:])
def test_on_unseen_answers_no_more_are_lost_than_allowed(epsilon: float) -> None:
    values, accepted = world(4000, 0, signal=1.0)
    found = search(values, accepted, [np.ones(4000, dtype=np.bool_)], epsilon)
    assert found
    fresh, wanted = world(40_000, 1, signal=1.0)
    lost = gone(fresh, {bound.tokens: bound.at_most for bound in found})
    assert lost.mean() > 0.1
    assert wanted[lost].mean() <= epsilon


def test_every_bound_has_the_evidence_that_it_claims() -> None:
    values, accepted = world(3000, 2, signal=1.0)
    usable = sum(np.isfinite(values).sum(axis=0) >= FEW)
    waiting = np.ones(3000, dtype=np.bool_)
    for bound in search(values, accepted, [waiting.copy()], 0.05):
        under = waiting & (values[:, TOKENS.index(bound.tokens)] <= bound.at_most)
        assert (under.sum(), (under & accepted).sum()) == (bound.n, bound.accepted)
        tail = (1 - CONFIDENCE) / (usable * len(SHARES))
        assert beta.ppf(1 - tail, bound.accepted + 1, bound.n - bound.accepted) <= 0.05
        waiting &= ~under


def test_nothing_is_given_up_where_first_tokens_tell_nothing() -> None:
    values, accepted = world(3000, 3, signal=0.0)
    assert search(values, accepted, [np.ones(3000, dtype=np.bool_)], 0.1) == []


def test_it_must_hold_among_those_that_reach_the_tier_too() -> None:
    values, accepted = world(3000, 4, signal=1.0)
    low = values[:, 0] < -1
    accepted = accepted | (low & (np.arange(3000) % 3 == 0))
    reach = low.copy()
    everybody = np.ones(3000, dtype=np.bool_)
    for bound in search(values, accepted, [everybody, reach], 0.2):
        under = reach & (values[:, TOKENS.index(bound.tokens)] <= bound.at_most)
        assert under.any()
    assert sum(b.n for b in search(values, accepted, [everybody, reach], 0.2)) < sum(
        b.n for b in search(values, accepted & ~low, [everybody], 0.2)
    )


def test_a_threshold_is_served_by_what_was_learned_for_a_lower_one_only() -> None:
    learned = EarlyAbort("lp_mean", {(0.5, 0.1): {8: -1.0}, (0.9, 0.02): {8: -2.0}, (0.9, 0.1): {8: -0.5}})
    assert learned.at(0.95, 0.1) == {8: -0.5}
    assert learned.at(0.9, 0.05) == {8: -2.0}
    assert learned.at(0.8, 0.2) == {8: -1.0}
    assert learned.at(0.8, 0.05) == {}
    assert learned.at(0.4, 0.5) == {}


def test_differences_are_paired_and_in_their_units() -> None:
    rng = np.random.default_rng(0)
    off, run = Run("off"), Run("0.1")
    for number in range(400):
        tokens = float(rng.integers(50, 150))
        right = float(rng.random() < 0.8)
        off.rows.append((right, tokens, tokens * 1e-6, 1.0))
        run.rows.append((right if number % 100 else 0.0, tokens / 2, tokens * 0.9e-6, 1.0))
        off.families.append(str(number))
    found = abort_study.differences(off, run)
    lost = sum(off.rows[number][0] for number in range(0, 400, 100)) / 4
    assert found["right"][0] == pytest.approx(-lost)
    assert found["completion tokens"] == pytest.approx((-50, -50, -50))
    assert found["usd"] == pytest.approx((-10, -10, -10))
    told = abort_study.verdicts([off, run])
    assert "cost falls, time does not differ measurably" in told[0]
    assert told[-1].startswith("It pays here in money at 0.1" if lost < 1 else "It")
    worse = Run("0.2", [(right, tokens, 2 * usd, seconds) for right, tokens, usd, seconds in off.rows], off.families)
    assert "does not pay" in abort_study.verdicts([off, worse])[-1]


def test_first_tokens_alone_have_nothing_to_give_up() -> None:
    told = CliRunner().invoke(app, ["fit", "--records", "nowhere", "--prefix", "3", "--early-abort", "--implausible"])
    assert isinstance(told.exception, ConfigError)
    assert "leave out --prefix" in str(told.exception)


def test_an_artefact_refuses_bounds_that_are_none() -> None:
    bad = {"feature": "lp_mean", "levels": [{"threshold": 0.9, "epsilon": 0.1, "bounds": [{"tokens": 8}]}]}
    assert not artifacts._is_early_abort(bad)


def test_first_tokens_are_measured_as_the_gateway_measures_them(tmp_path: Path) -> None:
    nats = -np.linspace(0.01, 1.0, 20)
    trace = TokenTrace(Source.CHOSEN, nats, None, (b" so",) * 20, {}, -0.5)
    record = Record(
        question="q", dataset="made", split="s", family="q", tier="one", engine="0" * 12, prompt="0" * 64,
        grade=Grade.RIGHT, text=" so" * 20, rule=Rule.NONE, finish=Finish.STOP, completion_tokens=21, trace=trace,
    )  # fmt: skip
    records.write(tmp_path / "records.parquet", [records.flatten(record)])
    found = running([tmp_path / "records.parquet"], {"one": [("s", "other"), ("s", "q")]}, "lp_mean")["one"]
    assert np.isnan(found[0]).all()
    told = {tokens: value for tokens, value in zip(TOKENS, found[1], strict=True) if np.isfinite(value)}
    assert told == pytest.approx({8: nats[:8].mean(), 16: nats[:16].mean()})
    heard: dict[int, float | None] = {}

    async def hear(piece: Piece) -> None:
        if piece.tokens in TOKENS:
            heard[piece.tokens] = attempts.running("lp_mean", piece, piece.tokens)

    asyncio.run(Recorded(record).stream(Ask((), 0.0), hear))
    assert heard == pytest.approx(told)


def test_a_feature_that_cannot_be_followed_is_refused() -> None:
    for feature in ("upstream_logit", "entropy_mean", "ans_min"):
        with pytest.raises(ConfigError, match="cannot be followed"):
            check(feature, [])
