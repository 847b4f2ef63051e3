from __future__ import annotations

import asyncio
import csv
import datetime as dt
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from calibrators import artifact as artifacts
from calibrators import scores
from calibrators.base import (
    BadLabels,
    BadSlices,
    CalibrationError,
    ConstantFeature,
    DuplicateQuestion,
    Missing,
    OneClass,
    TooFewRare,
    logit,
    sigmoid,
)
from calibrators.temperature import best_temperature
from eval import collect as collecting
from eval import fit, held_out, prompts, records, seal, tables
from eval.cli import app
from eval.datasets import Question
from eval.fit import Failed, Fitting, How, Pool, Upstream
from eval.grade import Grade
from eval.records import BadRecords, Record
from eval.tables import Table
from gateway import config as configs
from gateway.errors import ConfigError, GatewayError
from gateway.nouns import Finish, Floats, Source, TokenTrace
from gateway.snapshot import open_cascade
from tests.faults.gateway import cascade
from tests.faults.upstream import Upstream as Server


@pytest.fixture(autouse=True)
def quick_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Intervals have tests of their own; here a few resamples do."""
    monkeypatch.setattr(scores, "bootstrap_all", partial(scores.bootstrap_all, resamples=100))
    monkeypatch.setattr(scores, "noise_floor", partial(scores.noise_floor, draws=100))


MADE = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def table(
    X: Floats, y: Floats, *, tier: str = "small", names: Sequence[str] = (), split: str = "cal", **more: Any
) -> Table:
    n = len(y)
    ids = np.array([f"q{row}" for row in range(n)])
    return Table(
        tier, tuple(names) or tuple(f"x{j}" for j in range(X.shape[1])), X, y, ids, ids, np.full(n, split),
        more.pop("slices", {}), **more,
    )  # fmt: skip


def one(tables_: Sequence[Table], how: How) -> list[Fitting]:
    done = fit.fit({t.tier: t for t in tables_}, how)
    for fitting in done:
        assert isinstance(fitting, Fitting), fitting
    return [fitting for fitting in done if isinstance(fitting, Fitting)]


def world(n: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    """X (n, 3) of which the last column says nothing, the true p, and labels drawn from it."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3))
    p = sigmoid(1.5 * X[:, 0] - 1.0 * X[:, 1] + 0.5)
    return X, p, (rng.random(n) < p).astype(np.float64)


# Fits


@pytest.mark.parametrize("objective", ["erm", "group_tilt(eta=3)"])
def test_a_known_calibration_is_recovered(objective: str) -> None:
    X, p, y = world(4000)
    half = ["low" if x < 0 else "high" for x in X[:, 0]]
    fitting = one([table(X, y, slices={"half": half})], How(objective=objective, slices=("half",)))[0]
    fresh, truth, _ = world(500, seed=1)
    assert np.abs(fitting.calibrator.predict(fresh) - truth).mean() < 0.03
    assert np.abs(fitting.held_out - p).mean() < 0.03
    assert fitting.metrics["auroc"]["value"] == pytest.approx(float(scores.auroc(p, y)), abs=0.02)
    low, high = fitting.metrics["nll"]["low"], fitting.metrics["nll"]["high"]
    assert low < float(scores.nll(p, y)) < high
    assert fitting.metrics["ece"]["value"] < fitting.metrics["ece"]["floor_95"] * 1.5


def test_auto_says_what_it_chose_and_why() -> None:
    X, _, y = world(800)
    fitting = one([table(X, y)], How())[0]
    assert fitting.family == fitting.calibrator.kind
    assert "held-out" in fitting.reason


def test_questions_of_one_family_are_never_fitted_and_judged_on() -> None:
    """Every question comes ten times with one label and a fingerprint of its own that says nothing of others."""
    rng = np.random.default_rng(0)
    y = np.repeat((rng.random(60) < 0.5).astype(np.float64), 10)
    X = np.repeat(rng.normal(size=(60, 20)), 10, axis=0) + 1e-3 * rng.normal(size=(600, 20))
    apart = table(X, y)
    together = replace_family(apart, np.repeat([f"f{n}" for n in range(60)], 10))
    how = How(family="logistic")
    leaky, honest = one([apart], how)[0], one([together], how)[0]
    assert leaky.metrics["auroc"]["value"] > 0.7
    assert honest.metrics["auroc"]["value"] < 0.6


def replace_family(given: Table, family: Any) -> Table:
    return replace(given, family=np.asarray(family))


def test_an_earlier_tiers_labels_do_not_leak_through_its_confidence() -> None:
    """The earlier tier overfits noise, and the later tier has the very same labels: in-sample confidences would tell
    them all, those out of fold tell nothing."""
    rng = np.random.default_rng(3)
    n = 300
    y = (rng.random(n) < 0.5).astype(np.float64)
    first = table(rng.normal(size=(n, 60)), y, tier="first")
    second = table(rng.normal(size=(n, 1)), y, tier="second")
    before, after = one([first, second], How(family="logistic", upstream=Upstream.ON))
    in_sample = before.calibrator.predict(first.X)
    assert float(scores.auroc(in_sample, y)) > 0.75  # the leak that there would be
    assert "upstream_logit" in after.data.names
    assert after.metrics["auroc"]["value"] < 0.6


def hard_and_easy(n: int = 1500) -> tuple[Table, Table]:
    """Two tiers that share a hidden difficulty; each sees it through its own noise. Their texts agree when right."""
    rng = np.random.default_rng(5)
    hard = rng.normal(size=n)
    said, tiers = {}, []
    for tier, skill in (("first", 0.0), ("second", 1.5)):
        signal = -hard + rng.normal(size=n)
        y = (rng.random(n) < sigmoid(skill - 2 * hard)).astype(np.float64)
        texts = np.where(y == 1, "#### 1", [f"#### {number}" for number in rng.integers(2, 9, n)])
        said[tier] = {("cal", f"q{row}"): str(text) for row, text in enumerate(texts)}
        tiers.append(table(signal[:, None], y, tier=tier, said=said[tier]))
    return tiers[0], tiers[1]


def test_a_later_tier_looks_back_where_that_gains() -> None:
    first, second = one(hard_and_easy(), How(family="logistic"))
    assert first.gain is None
    assert second.gain is not None
    assert second.gain.used
    assert second.gain.gain > second.gain.se
    assert second.after == ("first",)
    assert second.data.names == ("x0", "upstream_logit", "upstream_agreement")
    assert set(second.data.missing[1:]) == {Missing.INDICATE}
    alone = one(hard_and_easy(), How(family="logistic", upstream=Upstream.OFF))[1]
    assert second.metrics["nll"]["value"] < alone.metrics["nll"]["value"]
    assert alone.after == ()


def two_tiers(n: int, seed: int) -> tuple[Table, Table]:
    """Two tiers that see one hidden difficulty through noise of their own, as in the toy cascade of science 3.8."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    seen = [(-hard + rng.normal(size=n))[:, None] for _ in range(2)]
    right = [(rng.random(n) < sigmoid(skill - 2 * hard)).astype(np.float64) for skill in (0.5, 1.5)]
    return table(seen[0], right[0], tier="first"), table(seen[1], right[1], tier="second")


def test_a_later_tier_is_calibrated_on_what_reaches_it_wherever_the_threshold_before_it_lies() -> None:
    """Science 10.13: a gap under two points at three thresholds that the fit knew nothing of; alone, it is too sure."""
    first, second = one(two_tiers(6_000, 0), How(family="logistic", upstream=Upstream.ON))
    alone = one(two_tiers(6_000, 0), How(family="logistic", upstream=Upstream.OFF))[1].calibrator
    alone = getattr(alone, "inner", alone)  # as fitted on everybody, before the temperature of what reached it
    before, after = two_tiers(40_000, 1)
    p_first = first.calibrator.predict(before.X)
    looked = dict(zip(second.data.names, [after.X[:, 0], logit(p_first)], strict=False))
    X = np.column_stack([looked.get(name, np.full(len(p_first), np.nan)) for name in second.data.names])
    p, p_alone = second.calibrator.predict(X), alone.predict(after.X)
    assert second.data.names[:2] == ("x0", "upstream_logit")
    for threshold in (0.5, 0.7, 0.9):
        reached = p_first < threshold
        assert abs(p[reached].mean() - after.y[reached].mean()) < 0.02
    few = p_first < 0.5
    assert p_alone[few].mean() - after.y[few].mean() > 0.04


def test_a_later_tier_asked_alone_still_has_a_true_confidence() -> None:
    tiers = hard_and_easy()
    second = one(tiers, How(family="logistic"))[1]
    X, y = second.data.X.copy(), second.data.y
    X[:, 1:] = np.nan
    p = np.array([second.calibrator.predict(row[None])[0] for row in X])
    assert p.mean() == pytest.approx(y.mean(), abs=0.02)
    assert float(scores.debiased_ece(p, y)) < 0.04


def test_a_later_tier_is_tempered_on_the_answers_that_reach_it() -> None:
    """Made sharp where the first tier is sure and flat where it is not: only the flat part may count."""
    first, second = one(list(hard_and_easy()), How(upstream=Upstream.OFF, family="logistic"))
    assert first.temperature is None
    assert second.temperature is not None
    reached = np.array([first.p[place] < 0.9 for place in second.table.places])
    assert second.routed_n == reached.sum() < second.data.n
    flat = second.held_out[reached]
    again = best_temperature(logit(flat), second.data.rows(reached))
    assert again == pytest.approx(1.0, abs=1e-3)  # nothing is left to temper there
    assert second.calibrator.kind == "tempered"


def alike(n: int, seed: int = 3) -> list[Table]:
    """Three tiers whose confidence means the same, up to how steep it is."""
    rng = np.random.default_rng(seed)
    slopes = np.linspace(-1.2, 1.2, 16)
    tiers = []
    for tier, scale in (("small", 0.8), ("medium", 1.0), ("large", 1.2)):
        X = rng.normal(size=(n, 16))
        tiers.append(table(X, (rng.random(n) < sigmoid(scale * X @ slopes)).astype(np.float64), tier=tier))
    return tiers


def test_tiers_with_few_answers_share_slopes_and_the_artefact_says_with_whom() -> None:
    tiers = alike(150)
    shared = fit.sharing(tiers[1:], "cal", How())
    apart, auto = (fit.fit_tier(tiers[0], (), "cal", How(), others) for others in ({}, shared))
    assert (tuple(apart.pooled), tuple(auto.pooled)) == ((), ("medium", "large"))
    assert auto.metrics["nll"]["value"] < apart.metrics["nll"]["value"]
    sealed = seal.seal(auto, seal.Terms(manifest=None, split="cal", seed=0, created=MADE, days=None))
    assert (sealed.kind, sealed.fit["pooled_with"]) == ("logistic", ["medium", "large"])
    X, y, groups = auto.data.X, auto.data.y, auto.data.groups
    changed = replace(auto, pooled={"medium": fit.FitData(X, 1 - y, auto.data.names, groups=groups)})
    assert changed.data_sha256 != auto.data_sha256 != replace(auto, pooled={}).data_sha256


def test_a_later_tier_shares_what_is_its_own_and_keeps_what_it_sees_of_earlier_ones() -> None:
    first, second = one(hard_and_easy(), How(pool=Pool.ON, upstream=Upstream.ON))
    assert (first.family, tuple(first.pooled), tuple(second.pooled)) == ("logistic", ("second",), ("first",))
    assert second.after == ("first",)
    assert second.metrics["auroc"]["value"] > first.metrics["auroc"]["value"]


def test_a_tier_that_cannot_be_fitted_is_shared_with_nobody() -> None:
    tiers = alike(150)
    tiers[1] = replace(tiers[1], y=np.ones(150))
    done = fit.fit({one.tier: one for one in tiers}, How(pool=Pool.ON, upstream=Upstream.OFF))
    assert isinstance(done[0], Fitting)
    assert isinstance(done[1], Failed)
    assert tuple(done[0].pooled) == ("large",)
    assert "another tier" in str(failed(tiers[0], How(pool=Pool.ON)))


def test_looking_back_is_left_where_it_gains_nothing() -> None:
    X, _, y = world(800)
    other, _, z = world(800, seed=9)
    fittings = one([table(X, y, tier="first"), table(other, z, tier="second")], How(family="logistic"))
    gain = fittings[1].gain
    assert gain is not None
    assert gain.used == (gain.gain > gain.se)
    assert abs(gain.gain) < 0.01


def test_eta_is_chosen_on_the_shifted_splits() -> None:
    X, _, y = world(1200)
    fresh, _, z = world(300, seed=2)
    home, away = table(X, y), table(fresh + 0.5, z, split="more")
    both = replace(
        home,
        X=np.vstack([home.X, away.X]),
        y=np.concatenate([y, z]),
        question=np.array([f"q{n}" for n in range(1500)]),
        family=np.array([f"q{n}" for n in range(1500)]),
        split=np.concatenate([home.split, away.split]),
        slices={"half": ["low" if x < 0 else "high" for x in [*home.X[:, 0], *away.X[:, 0]]]},
    )
    fitting = one([both], How(objective="group_tilt", tune=("more",), slices=("half",)))[0]
    assert fitting.family == "tempered"
    assert fitting.eta in (0.0, 1.0, 3.0, 10.0)
    assert "shifted splits" in fitting.reason
    assert fitting.data.n == 1200
    assert ("more", "q1300") in fitting.p


# What is refused


def failed(given: Table, how: How | None = None) -> CalibrationError:
    done = fit.fit({given.tier: given}, how or How())[0]
    assert isinstance(done, Failed), done
    return done.error


def test_too_little_to_learn_from_is_said_in_words() -> None:
    X = world(200)[0]
    few = np.ones(200)
    few[:12] = 0
    assert isinstance(failed(table(X, np.ones(200))), OneClass)
    told = failed(table(X, few))
    assert isinstance(told, TooFewRare)
    assert "12 answers of the rarer class" in str(told)


def test_a_feature_asked_for_by_name_may_not_be_constant_and_others_are_passed_over() -> None:
    X, _, y = world(300)
    X[:, 2] = 7.0
    assert isinstance(failed(table(X, y), How(chosen=True)), ConstantFeature)
    fitting = one([table(X, y)], How(family="logistic"))[0]
    assert fitting.data.names == ("x0", "x1")
    assert fitting.notes == ("x2 passed over: it differs in only 0 of 300 answers",)


def test_infinity_and_nan_are_refused_by_name() -> None:
    X, _, y = world(300)
    X[4, 1] = np.inf
    assert "'x1' is infinite in 1 rows" in str(failed(table(X, y)))
    X[4, 1] = np.nan
    assert "'x1' is NaN in 1 of 300 rows" in str(failed(table(X, y), How(missing=Missing.REFUSE)))


def test_a_group_objective_needs_to_know_by_what() -> None:
    X, _, y = world(300)
    told = failed(table(X, y, slices={"steps": [1] * 300}), How(objective="group_tilt(eta=3)"))
    assert isinstance(told, BadSlices)
    assert "--slices, one of steps" in str(told)
    assert "no slice size; have steps" in str(failed(table(X, y, slices={"steps": [1] * 300}), How(slices=("size",))))


def test_a_question_in_two_splits_is_refused() -> None:
    X, _, y = world(300)
    given = table(X, y)
    split = np.array(["other", *given.split[1:]])
    question = given.question.copy()
    question[0] = "q1"
    with pytest.raises(DuplicateQuestion, match="'q1' among them"):
        fit.fit({"small": replace(given, split=split, question=question)}, How(split="cal"))
    with pytest.raises(ConfigError, match="several splits; say with --split which to fit on: cal, other"):
        fit.fit({"small": replace(given, split=split)}, How())
    with pytest.raises(ConfigError, match="no split 'nope' in these records; have cal"):
        fit.fit({"small": given}, How(split="nope"))


def test_a_variant_of_a_fitted_question_in_another_folder_is_refused_and_of_others_is_not() -> None:
    X, _, y = world(300)
    whole = table(X, y)
    split = np.repeat(["cal", "test", "shifted"], 100)
    family = np.array([f"f{row}" for row in range(300)])
    family[250], family[251] = family[150], family[151]
    done = fit.fit({"small": replace(whole, split=split, family=family)}, How(split="cal", family="logistic"))
    assert isinstance(done[0], Fitting)
    family[252] = family[7]
    with pytest.raises(DuplicateQuestion, match="keep rewordings of one question together") as error:
        fit.fit({"small": replace(whole, split=split, family=family)}, How(split="cal", family="logistic"))
    assert (error.value.question, error.value.count) == ("q252", 1)


def test_slices_are_told_apart_and_small_ones_put_together() -> None:
    code, names = tables.codes([[2] * 30 + [3] * 30 + [9] * 5, ["a"] * 65], ["steps", "kind"])
    assert names == ("other", "steps=2 kind=a", "steps=3 kind=a")
    assert np.bincount(code).tolist() == [5, 30, 30]
    _, terciles = tables.codes([list(range(90))], ["size"])
    assert terciles == ("size<=29.6667", "size<=59.3333", "size>59.3333")


# From records


def answered(question: str, said: str, grade: Grade, nats: float, **changes: Any) -> Record:
    trace = TokenTrace(Source.CHOSEN, np.full(4, nats), None, (said.encode(), b"", b"", b""))
    base = Record(
        question=question, dataset="d", split="s", family=question, tier="t", engine="e", prompt="p", grade=grade,
        text=said, finish=Finish.STOP, trace=trace,
    )  # fmt: skip
    return replace(base, **changes)


def test_failures_that_a_rule_sees_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        answered("q1", "#### 1", Grade.RIGHT, -0.1),
        answered("q2", "#### 2", Grade.WRONG, -0.5),
        answered("q3", "#### 3", Grade.WRONG, -0.5, finish=Finish.LENGTH),
        answered("q4", "", Grade.UNREADABLE, -0.5),
        answered("q5", "no idea", Grade.UNREADABLE, -0.5),
        answered("q6", "#### 6", Grade.RIGHT, -0.5, trace=None, no_trace="clamped"),
        answered("q7", "", Grade.UNASKED, -0.5, text=None, trace=None, error="away"),
    ]
    path = tmp_path / "records.parquet"
    records.write(path, map(records.flatten, rows))
    found = tables.from_records(path)["t"]
    assert found.question.tolist() == ["q1", "q2"]
    assert found.y.tolist() == [1.0, 0.0]
    assert found.left_out == {
        "truncated": 1,
        "empty": 1,
        "unreadable": 1,
        "without evidence": 1,
        "not answered": 1,
    }
    assert "margin_min" not in found.names  # it needs candidates, and there are none
    assert "lp_mean" in found.names
    assert found.said["s", "q3"] == "#### 3"
    with pytest.raises(GatewayError, match="margin_min needs the 2 most likely tokens"):
        tables.from_records(path, ["margin_min"])


def test_what_stands_behind_the_answer_can_be_left_out(tmp_path: Path) -> None:
    words = (b"so ", b"#### 7", b" and ", b"more")
    trace = TokenTrace(Source.CHOSEN, np.array([-0.1, -0.3, -0.9, -0.9]), None, words)
    rows = [answered(f"q{n}", b"".join(words).decode(), Grade.RIGHT, 0.0, trace=trace) for n in range(2)]
    path = tmp_path / "records.parquet"
    records.write(path, map(records.flatten, rows))
    for cut, nats in ((True, -0.2), (False, -0.55)):
        found = tables.from_records(path, ["lp_mean"], cut=cut)["t"]
        assert found.cut is cut
        np.testing.assert_allclose(found.X, nats, rtol=1e-6)


def test_windows_go_to_the_features_that_have_one() -> None:
    told = tables.windowed(["lp_mean", "lp_tail", "deepconf_bottom(k=5)", "lp_tail(window=8)"], 16)
    assert told == ["lp_mean", "lp_tail(window=16)", "deepconf_bottom(k=5,window=16)", "lp_tail(window=8)"]


def question(number: int, rng: np.random.Generator) -> Question:
    """What two models of the fake server are told to answer; the surer they sound, the oftener they are right."""
    told: dict[str, Any] = {"aside": "".join("abcdefghij"[int(digit)] for digit in str(number + 1000))}  # no two alike
    for model, skill in (("small", 0.0), ("large", 2.0)):
        nats = float(rng.uniform(-1.5, -0.05))
        right = rng.random() < sigmoid(np.array(skill + 2 + 3 * nats))
        told[model] = {"text": f"The answer is {number + (not right)}", "nats": round(nats, 3)}
    return Question(f"q{number}", json.dumps(told), str(number), "made", "cal", slices={"steps": number % 3})


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(config, folder of records): 400 questions, answered by two models over HTTP. The server keeps running."""
    folder = tmp_path_factory.mktemp("collected")
    rng = np.random.default_rng(0)
    asked = [question(number, rng) for number in range(400)]
    with Server() as server:
        given = cascade(server.url)
        given["tiers"][0]["calibrator"] = "out/calibrators/cheap.json"
        given["tiers"][1]["calibrator"] = "out/calibrators/dear.json"
        (folder / "cascade.yaml").write_text(json.dumps(given))
        config = configs.read(folder / "cascade.yaml")
        asyncio.run(collecting.collect(config, asked, folder / "out", collecting.Plan(top_k=3)))
        yield config, folder / "out"


def fitted(*arguments: str) -> str:
    ended = CliRunner().invoke(app, ["fit", *arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.output


def test_fitted_artefacts_are_taken_by_the_gateway_they_were_collected_through(collected: Any) -> None:
    config, folder = collected
    told = json.loads(fitted("--records", str(folder), "--features", "lp_mean", "--json"))
    assert [row["tier"] for row in told["tiers"]] == ["cheap", "dear"]
    sealed = artifacts.load(folder / "calibrators" / "cheap.json")
    assert sealed.fingerprint["source"] == "chosen"  # lp_mean needs no candidates, though they were recorded
    assert sealed.fingerprint["sampling"] == "greedy"
    assert sealed.fingerprint["prompt_template"] == records.read_manifest(folder / "manifest.json").prompt
    assert sealed.fit["n"] == 400
    assert sealed.metrics["nll"]["n"] == 400
    assert sealed.expires is not None
    unseen = held_out.read(folder / "calibrators" / "cheap.json", sealed)
    assert unseen is not None
    assert len(unseen.p) == 400
    everyone = artifacts.load(folder / "calibrators" / "dear.json")
    later = held_out.read(folder / "calibrators" / "dear.json", everyone)
    assert later is not None
    assert later.after == tuple(everyone.fit["after"])  # type: ignore[arg-type]

    async def withheld() -> dict[str, str]:
        async with open_cascade(config) as snapshot:
            return dict(snapshot.withheld)

    assert asyncio.run(withheld()) == {}


def test_answers_cut_when_fitting_are_cut_when_serving(collected: Any, tmp_path: Path) -> None:
    config, folder = collected
    fitted("--records", str(folder), "--features", "lp_mean", "--cut-after-answer", "--out", str(tmp_path))
    assert artifacts.load(tmp_path / "cheap.json").fingerprint["span"] == "answer"
    entry = config.tiers[0].model_copy(update={"calibrator": tmp_path / "cheap.json"})
    others = [other.model_copy(update={"calibrator": None}) for other in config.tiers[1:]]

    async def opened() -> bool:
        async with open_cascade(config.model_copy(update={"tiers": (entry, *others)})) as snapshot:
            return snapshot.tiers["cheap"].cut

    assert asyncio.run(opened())


def test_a_fit_on_first_tokens_is_sealed_as_one_and_serves_as_one(collected: Any, tmp_path: Path) -> None:
    config, folder = collected
    fitted("--records", str(folder), "--features", "lp_mean", "--prefix", "3", "--out", str(tmp_path))
    path = tmp_path / "cheap-prefix-3.json"
    assert artifacts.load(path).fingerprint["span"] == "prefix-3"
    entry = config.tiers[0].model_copy(update={"calibrator": None, "prefix_calibrator": path})
    others = [other.model_copy(update={"calibrator": None}) for other in config.tiers[1:]]
    alone = config.model_copy(update={"tiers": (entry, *others)})

    async def tokens() -> int:
        async with open_cascade(alone) as snapshot:
            assert snapshot.tiers["cheap"].calibrator is None
            prefix = snapshot.tiers["cheap"].prefix
            return 0 if prefix is None else prefix.tokens

    assert asyncio.run(tokens()) == 3


def test_a_fit_on_first_tokens_looks_at_nothing_else(tmp_path: Path, collected: Any) -> None:
    for more in (("--upstream", "on"), ("--cut-after-answer",)):
        told = CliRunner().invoke(app, ["fit", "--records", str(collected[1]), "--prefix", "3", *more])
        assert isinstance(told.exception, ConfigError)
        assert "--prefix measures the first tokens alone" in str(told.exception)


def test_the_same_records_and_seed_give_the_same_bytes(collected: Any, tmp_path: Path) -> None:
    _, folder = collected
    common = ("--records", str(folder), "--features", "lp_mean", "--created", "2026-01-01T00:00:00+00:00")
    for name in "ab":
        fitted(*common, "--out", str(tmp_path / name))
    for tier in ("cheap", "dear"):
        assert (tmp_path / "a" / f"{tier}.json").read_bytes() == (tmp_path / "b" / f"{tier}.json").read_bytes()


def test_several_collections_are_put_together_and_every_strength_is_shown(collected: Any, tmp_path: Path) -> None:
    config, folder = collected
    rng = np.random.default_rng(1)
    other = [replace(question(number, rng), split="shifted") for number in range(400, 600)]
    asyncio.run(collecting.collect(config, other, tmp_path / "more", collecting.Plan(top_k=3)))
    both = ("-r", str(folder), "-r", str(tmp_path / "more"), "--out", str(tmp_path / "out"), "--tiers", "cheap")
    tuned = ("--features", "lp_mean", "--objective", "tilt", "--tune", "shifted")
    printed = fitted(*both, *tuned)
    assert re.search(r"^erm +\d", printed, re.MULTILINE)
    assert "ESS" in printed
    assert "NLL, shifted" in printed
    sealed = artifacts.load(tmp_path / "out" / "cheap.json")
    assert (sealed.fit["n"], sealed.fit["tune"]) == (400, ["shifted"])


def test_collections_of_other_prompts_are_not_put_together(collected: Any, tmp_path: Path) -> None:
    config, folder = collected
    asked = [question(number, np.random.default_rng(1)) for number in range(400, 410)]
    plan = collecting.Plan(top_k=3, prompt=prompts.boxed())
    asyncio.run(collecting.collect(config, asked, tmp_path / "other", plan))
    with pytest.raises(ConfigError, match="same prompt"):
        tables.read_all([folder, tmp_path / "other"])


def test_no_expiry_is_none_and_a_table_is_printed(collected: Any, tmp_path: Path) -> None:
    _, folder = collected
    told = fitted(
        "-r", str(folder), "--features", "lp_mean", "--no-expiry", "--out", str(tmp_path), "--family", "platt",
        "--objective", "group_tilt", "--eta", "3", "--slices", "steps", "--upstream", "off",
    )  # fmt: skip
    sealed = artifacts.load(tmp_path / "cheap.json")
    assert sealed.expires is None
    assert (sealed.kind, sealed.fit["objective"], sealed.fit["eta"]) == ("platt", "group_tilt", 3.0)
    assert set(sealed.fit["slices"]) == {"steps=0", "steps=1", "steps=2"}  # type: ignore[arg-type]
    assert "AUROC" in told
    assert "floor" in told


# From a user's own table


def own_rows(n: int = 300) -> list[dict[str, Any]]:
    X, _, y = world(n)
    return [
        {
            "model": model,
            "question": f"q{row}",
            "correct": int(y[row]),
            "certainty": float(X[row, 0]),
            "doubt": float(X[row, 1]),
            "topic": "ab"[row % 2],
        }
        for model in ("m1", "m2")
        for row in range(n)
    ]


def write_own(path: Path, rows: list[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    return path


def test_a_table_of_ones_own_fits_alike_from_three_formats(tmp_path: Path) -> None:
    made = []
    for suffix in ("parquet", "jsonl", "csv"):
        path = write_own(tmp_path / f"my.{suffix}", own_rows())
        fitted("--records", str(path), "--slices", "topic", "--out", str(tmp_path / suffix), "--created", "2026-01-01")
        made.append((tmp_path / suffix / "m1.json").read_bytes())
    assert made[0] == made[1] == made[2]
    sealed = artifacts.load(tmp_path / "csv" / "m1.json")
    assert sealed.features == ("certainty", "doubt")
    assert sealed.fingerprint == {"model": "m1", "source": "external"}


def edited(change: Any) -> list[dict[str, Any]]:
    rows = own_rows()
    change(rows)
    return rows


def drop(name: str) -> Any:
    return lambda rows: [row.pop(name) for row in rows]


def put(name: str, value: Any, rows: slice = slice(None)) -> Any:
    return lambda all_rows: [row.update({name: value}) for row in all_rows[rows]]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (drop("correct"), [], "no column correct; have model, question, certainty"),
        (put("correct", 2), ["--features", "doubt"], "row 1: correct must be 1 or 0, true or false, got"),
        (drop("topic"), ["--features", "nope"], "no column nope; have model"),
        (lambda _: None, [], "row 1: topic is 'a', not a number; name the columns to fit on with --features"),
        (lambda _: None, ["--features", "doubt", "--tiers", "m3"], "no answers of 'm3' in these records; have m1, m2"),
        (lambda _: None, ["--features", "doubt", "--family", "nope"], "nope"),
        (lambda _: None, ["--features", "doubt", "--objective", "nope"], "no objective 'nope'; have"),
        (lambda _: None, ["--features", "doubt", "--upstream", "maybe"], "--upstream is one of auto, on, off"),
        (lambda _: None, ["--features", "doubt", "--created", "soon"], "no time: 'soon'"),
        (lambda _: None, ["--features", "doubt", "--tune", "all"], "--tune chooses eta itself"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_ones_own_table_is_said_in_one_line(
    tmp_path: Path, suffix: str, change: Any, arguments: list[str], said: str
) -> None:
    path = write_own(tmp_path / f"my.{suffix}", edited(change))
    ended = CliRunner().invoke(app, ["fit", "--records", str(path), *arguments])
    told = ended.output + str(ended.exception)
    assert ended.exit_code == 1
    assert isinstance(ended.exception, GatewayError | SystemExit), ended.exception
    assert said in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("doubt", 1.0), "m1: not fitted: feature 'doubt' is 1 in every row; drop it"),
        (put("doubt", None, slice(3)), "m1: not fitted: feature 'doubt' is NaN in 3 of 300 rows; leave those rows out"),
        (put("correct", 1), "m1: not fitted: all 300 answers are right"),
        (put("correct", 1, slice(280)), "m1: not fitted: "),
    ],
)
def test_a_model_that_cannot_be_fitted_does_not_keep_others_from_it(tmp_path: Path, change: Any, said: str) -> None:
    rows = own_rows()
    change(rows[:300])
    path = write_own(tmp_path / "my.jsonl", rows)
    arguments = ["--features", "certainty,doubt", "--missing", "refuse"]
    ended = CliRunner().invoke(app, ["fit", "--records", str(path), *arguments])
    assert ended.exit_code == 1
    assert said in ended.output
    found = sorted(found.name for found in (tmp_path / "calibrators").iterdir())
    assert found == ["m2.held-out.parquet", "m2.json"]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_a_table_cut_in_half_is_refused_in_words(tmp_path: Path, suffix: str) -> None:
    path = write_own(tmp_path / f"my.{suffix}", own_rows())
    raw = path.read_bytes()
    path.write_bytes(raw[: raw.rindex(b"m2") - 20] if suffix != "parquet" else raw[: len(raw) // 2])
    with pytest.raises(BadRecords, match="cut"):
        tables.read(path, ["certainty"])


def test_a_csv_cut_anywhere_is_refused_or_holds_whole_lines_alone(tmp_path: Path) -> None:
    """Behind a comma, an empty cell; inside a number, a shorter one: nothing but the line's end tells."""
    path, whole = tmp_path / "my.csv", "model,question,correct,certainty\na,q1,1,0.75\na,q2,0,0.25\n"
    for size in range(1, len(whole) + 1):
        path.write_text(whole[:size])
        if whole[size - 1] == "\n" and size > whole.index("\n") + 1:
            assert tables.read(path)[0]["a"].X.tolist() == [[0.75], [0.25]][: whole[:size].count("\n") - 1]
            continue
        with pytest.raises(BadRecords):
            tables.read(path)


def test_a_csv_cell_may_hold_line_breaks(tmp_path: Path) -> None:
    text = 'model,question,correct,certainty\r\na,"one\ntwo\u2028three",1,0.5\r\na,q2,0,0.25\r\n'
    (tmp_path / "my.csv").write_bytes(text.encode())
    assert tables.read(tmp_path / "my.csv")[0]["a"].question.tolist() == ["one\ntwo\u2028three", "q2"]


def test_files_that_are_no_table_are_refused_in_words(tmp_path: Path) -> None:
    for name, text, said in [
        ("a.txt", "x", "need a file that ends in .parquet, .jsonl, .csv"),
        ("a.jsonl", "", "no rows in it"),
        ("b.jsonl", "[1]\n", "line 1 is no JSON object"),
        ("c.csv", "", "no rows in it"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(BadRecords, match=said):
            tables.read(tmp_path / name)
    with pytest.raises(BadRecords, match="there is no such file"):
        tables.read(tmp_path / "absent.csv")
    with pytest.raises(BadRecords, match="there is no manifest"):
        tables.read(tmp_path)


def test_labels_in_words_count_too(tmp_path: Path) -> None:
    rows = [{"model": "m", "question": "q", "correct": word, "x": 1.0} for word in ("true", "False", 1, 0.0, True)]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, manifest = tables.read(path)
    assert manifest is None
    assert found["m"].y.tolist() == [1, 0, 1, 0, 1]
    path.write_text(json.dumps(rows[0] | {"correct": "yes"}))
    with pytest.raises(BadLabels, match="row 1: correct must be 1 or 0, true or false, got 'yes'"):
        tables.read(path)


def test_an_artefact_tells_how_it_was_made() -> None:
    fitting = one(hard_and_easy(), How(family="logistic"))[1]
    terms = seal.Terms(manifest=None, split="cal", seed=0, created=MADE, days=90)
    sealed = seal.seal(fitting, terms)
    assert sealed.expires == "2026-04-01"
    assert sealed.fit["after"] == ["first"]
    assert sealed.fit["upstream"]["used"] is True  # type: ignore[index, call-overload]
    assert sealed.fit["data_sha256"] == fitting.data_sha256
    other = one(hard_and_easy(1499), How(family="logistic"))[1]
    assert other.data_sha256 != fitting.data_sha256
