"""The card from records: the gateway's own decisions on held-out splits, and refusal of splits that were not."""

import datetime as dt
import json
from pathlib import Path

import numpy as np
import pytest

from calibrators import artifact as artifacts
from calibrators.artifact import ArtifactMismatch
from calibrators.base import DuplicateQuestion, FitData, find
from eval import card, policy_file, records
from eval.card import Request
from eval.grade import Grade
from eval.records import Collected, Manifest, Record
from eval.replay import replay
from gateway import confidence, config
from gateway.certificate import Certificate, CertifiedStep, Data, Promise
from gateway.errors import ConfigError
from gateway.nouns import Evidence, Finish, Source, TokenTrace

FEATURES = ("lp_mean", "lp_quantile(q=0)", "ans_min")
SKILL = {"small": 0.6, "large": 2.4}
NOW = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
SIZES = {"calibration": 300, "test": 400, "odd": 200}


def record(tier, split, number, difficulty, rng):
    """One simulated answer: the surer its tokens, the likelier right; every twentieth is cut."""
    right = rng.random() < 1 / (1 + np.exp(-(SKILL[tier] - 1.5 * difficulty)))
    nats = -np.abs(rng.normal(0.1 + 0.3 * (not right), 0.1, size=6))
    tokens = (b"so", b" ", b"#### ", b"4", b"2", b".")
    return Record(
        question=f"{split}-{number}",
        dataset="made up",
        split=split,
        family=f"{split}-{number}",
        tier=tier,
        engine="e",
        prompt="p",
        grade=Grade.RIGHT if right else Grade.WRONG,
        text="so #### 42.",
        finish=Finish.LENGTH if number % 20 == 0 else Finish.STOP,
        completion_tokens=5 + number % 7,
        trace=TokenTrace(Source.CHOSEN, nats, tokens=tokens),
        slices={"steps": 8 + number % 4},
    )


@pytest.fixture
def collected(tmp_path: Path) -> Path:
    """A folder with records and manifest, a configuration beside it and the calibrators that it names."""
    rng, rows = np.random.default_rng(3), []
    for split, n in SIZES.items():
        for number in range(n):
            difficulty = rng.normal() + (split == "odd")
            rows += [record(tier, split, number, difficulty, rng) for tier in SKILL]
    folder = tmp_path / "records"
    folder.mkdir()
    records.write(folder / records.RECORDS, map(records.flatten, rows))
    tiers = tuple(Collected(name=name, fingerprint={"model": name}) for name in SKILL)
    records.write_manifest(
        folder / records.MANIFEST,
        Manifest(
            dataset="made up", splits=SIZES, data_sha256="0" * 64, template="{question}", max_tokens=None, top_k=0,
            seed=0, tiers=tiers,
        ),
    )  # fmt: skip
    for name in SKILL:
        seal([one for one in rows if one.tier == name and one.split == "calibration"], tmp_path / f"{name}.json")
    (tmp_path / "cascade.yaml").write_text(CASCADE, encoding="utf-8")
    return tmp_path


CASCADE = """
keys: {allow_anonymous: true}
tiers:
  - {name: small, engine: {kind: openai_http, url: "http://127.0.0.1:9/v1", model: small}, calibrator: small.json}
  - {name: large, engine: {kind: openai_http, url: "http://127.0.0.1:9/v1", model: large}, calibrator: large.json}
policies: {default: {steps: [{tier: small, accept_at: 0.7}, {tier: large}]}}
"""


def seal(rows, path):
    X = np.array([confidence.measure(FEATURES, Evidence(one.trace, one.text)).values for one in rows])
    fitted = find("logistic").fit(FitData(X, [one.grade is Grade.RIGHT for one in rows], FEATURES))
    facts = {"data_sha256": "0" * 64, "n": len(rows), "n_rare": 30, "objective": "erm", "eta": 0.0, "seed": 0,
             "split": "calibration", "slices": {}}  # fmt: skip
    artifacts.dump(
        artifacts.Artifact.seal(
            id=rows[0].tier,
            kind="logistic",
            features=FEATURES,
            params=fitted.to_params(),
            fingerprint={"model": rows[0].tier, "source": "chosen"},
            fit=facts,
            metrics={},
            validity={"conditions": ["asked greedily"], "checks": {}},
            created=NOW,
        ),
        path,
    )


def make(folder: Path, **choices):
    request = Request(resamples=100, **choices)
    return card.make(config.read(folder / "cascade.yaml"), [folder / "records"], request, NOW).twin


def test_a_card_tells_each_tier_on_all_reached_and_accepted_answers_and_the_whole_on_every_held_out_split(collected):
    twin = make(collected)
    small, large = twin["tiers"]
    cut = SIZES["test"] // 20
    assert small["regions"]["all"]["n"] == SIZES["test"] - cut  # what was cut has no confidence
    assert small["regions"]["reached"]["n"] == SIZES["test"] - cut
    passed_on = small["regions"]["reached"]["n"] - small["regions"]["accepted"]["n"]
    assert large["regions"]["reached"]["n"] == large["regions"]["accepted"]["n"] == passed_on
    assert twin["routed"]["name"] == "test"
    assert sum(twin["routed"]["served_by"].values()) == SIZES["test"] - cut
    assert [shift["name"] for shift in twin["shifts"]] == ["odd"]
    assert twin["routing"]["thresholds"] == {"small": 0.7, "large": None}
    assert {row["slice"] for row in twin["routed"]["slices"] if row["column"] == "steps"} == {"8", "9", "10", "11"}
    assert "10 of them came without a confidence" in twin["shifts"][0]["description"]


def test_the_same_records_and_seed_make_the_same_card(collected):
    assert json.dumps(make(collected)) == json.dumps(make(collected))


def test_a_split_that_was_fitted_on_is_no_evidence(collected):
    with pytest.raises(ConfigError, match="fitted on split 'calibration'"):
        make(collected, home="calibration")
    with pytest.raises(ConfigError, match="no split 'nowhere' held out in these records; have odd, test"):
        make(collected, shifts=("nowhere",))


def test_a_question_that_is_also_in_the_fitted_split_is_refused(collected):
    path = collected / "records" / records.RECORDS
    rows = [records.flatten(one) for one in records.read(path)]
    shared = [
        row
        if row.question != "test-3"
        else type(row)(**{name: getattr(row, name) for name in row.__struct_fields__} | {"family": "calibration-1"})
        for row in rows
    ]
    records.write(path, shared)
    with pytest.raises(DuplicateQuestion):
        make(collected)


def test_a_calibrator_of_another_model_is_refused(collected):
    (collected / "small.json").write_bytes((collected / "large.json").read_bytes())
    with pytest.raises(ArtifactMismatch, match="model"):
        make(collected)


def test_a_card_shows_what_the_policys_certificate_promises_or_why_it_promises_nothing(collected):
    path = collected / "cascade.yaml"
    labels = [artifacts.load(collected / f"{name}.json").label for name in ("small", "large")]
    promises = [
        Promise(what="share of final answers that are wrong", limit=0.25, confidence=0.95, seen=0.2, n=190, method="m"),
        Promise(what="cost of one request in usd", unit="usd", limit=0.002, confidence=0.9, seen=0.001, n=190,
                method="m"),
    ]  # fmt: skip
    steps = [
        CertifiedStep(tier=tier, accept_at=mark, calibrator=label)
        for tier, mark, label in zip(("small", "large"), (0.7, None), labels, strict=True)
    ]
    good = Certificate.sealed(
        issued=NOW.date(), steps=steps, data=Data(split="test", n=190, sha256="0" * 64), chosen="on validation",
        promises=promises, assumptions=["they come as these came"],
    )  # fmt: skip
    policy_file.write(path, "default", [("small", 0.7), ("large", None)], good)
    share, cost = make(collected)["guarantees"]
    assert (share["risk"], share["unit"], share["confidence"], share["n"]) == (0.25, "share", 0.95, 190)
    assert "they come as these came" in share["assumptions"]
    assert (cost["claim"], cost["risk"], cost["unit"]) == ("Cost of one request in usd", 0.002, "usd")
    path.write_text(path.read_text().replace("limit: 0.25", "limit: 0.05"), encoding="utf-8")
    twin = make(collected)
    assert twin["guarantees"] == []
    assert "changed after it was issued" in twin["operating_conditions"][-1]


def test_a_mix_gets_no_card_but_its_parts_do(collected):
    mixed = CASCADE.replace("large}]}}", "large}]}, both: {mix: [{policy: default, share: 1.0}]}}")
    (collected / "cascade.yaml").write_text(mixed, encoding="utf-8")
    with pytest.raises(ConfigError, match="make one for each of default"):
        make(collected, policy="both")


def test_a_policy_or_tier_without_evidence_is_named(collected):
    with pytest.raises(ConfigError, match="no policy 'fast'; have default"):
        make(collected, policy="fast")
    text = CASCADE.replace(", calibrator: large.json", "")
    (collected / "cascade.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="tier large has no calibrator"):
        make(collected)


def test_replay_passes_over_questions_that_a_tier_was_never_asked(collected):
    route = card.asyncio.run(
        card.opened(
            config.read(collected / "cascade.yaml"),
            "default",
            [records.read_manifest(collected / "records" / records.MANIFEST)],
        )
    )
    rng = np.random.default_rng(0)
    told = [record(tier, "test", number, 0.0, rng) for number in (1, 2) for tier in SKILL]
    missing = Record(question="test-2", dataset="d", split="test", family="f", tier="large", engine="e", prompt="p",
                     grade=Grade.UNASKED, error="away")  # fmt: skip
    found = list(replay([*told[:3], missing], route))
    assert [one.first.question for one in found] == ["test-1"]
    assert [hop.tier for hop in found[0].hops] == ["small", "large"]
    assert found[0].at == int(found[0].hops[0].p_correct < 0.7)
