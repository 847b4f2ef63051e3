"""Putting a calibrator right by labels of what it decided: the ladder, and what is not heard."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from calibrators import artifact as artifacts
from calibrators import beta, isotonic
from calibrators.artifact import Artifact
from calibrators.base import CalibrationError, FitData, TooFewRare
from eval import refit
from eval.monitors import brought
from eval.refit import NotBetter
from eval.refit_cli import app
from gateway import config as configs
from gateway.errors import GatewayError
from gateway.monitor.feed import PAGE
from gateway.monitor.reference import NOTHING
from gateway.monitor.rollouts import Rollouts
from gateway.store.base import Entry, HopRow, Role, Source, Store
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import cascade, confgate_ends, write_artifact
from tests.store.rows import decision, hop, numbers, wish

AT = 1_700_000_000.0
NOW = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)


@pytest.fixture
def parent(tmp_path: Path) -> Artifact:
    write_artifact(tmp_path / "cheap.json")
    return artifacts.load(tmp_path / "cheap.json")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Sqlite(tmp_path / "store.db")
    yield opened
    opened.close()


def filled(
    store: Store, parent: Artifact, n: int, *, slope: float = 10.0, intercept: float = 4.0, seed: int = 0,
    source: Source = Source.OPERATOR, explored: bool = True, author: str = "ops",
) -> None:  # fmt: skip
    """n answers that are right with sigmoid(slope * nats + intercept), whatever the parent says."""
    rng = np.random.default_rng(seed)
    nats = rng.uniform(-0.6, 0.0, n)
    right = rng.random(n) < 1 / (1 + np.exp(-(slope * nats + intercept)))
    p = parent.calibrator().predict(nats[:, None])
    names = numbers(n, AT + 1e6 * seed)
    told = {"calibrator": parent.label, "explored": explored, "inclusion": 0.5}
    entries = []
    for place, name in enumerate(names):
        told["prompt_sha256"] = f"{seed}{place}"
        features = {"lp_mean": float(nats[place])}
        row = hop(name, calibrator=parent.label, p_correct=float(p[place]), features=features)
        entries.append(Entry(decision(name, at=AT, p_correct=float(p[place]), **told), (row,)))
    store.write(entries)
    wishes = [
        wish(name, bool(says), source, author=author, at=AT + 100 + place, p_correct=float(one))
        for place, (name, says, one) in enumerate(zip(names, right, p, strict=True))
    ]
    store.put(wishes)


def made(store: Store, parent: Artifact, **changes: Any) -> refit.Refitted:
    found, _ = refit.rows(store, "cheap", parent, trusted=True, drawn=True)
    return refit.refit(parent, found, why="a test", created=NOW, **changes)


@pytest.mark.parametrize(
    ("n", "how", "slope", "intercept"),
    [(110, "intercept", 10.0, 2.5), (260, "platt", 5.0, 1.0), (760, "refit", 5.0, 1.0)],
)
def test_labels_put_a_calibrator_right_as_far_as_there_are_enough(
    n: int, how: str, slope: float, intercept: float, store: Store, parent: Artifact
) -> None:
    filled(store, parent, n, slope=slope, intercept=intercept)
    child = made(store, parent)
    assert (child.how, child.n, len(child.numbers)) == (how, n, n)
    assert child.gain > child.se
    nats = np.linspace(-0.5, -0.05, 7)[:, None]
    truth = 1 / (1 + np.exp(-(slope * nats[:, 0] + intercept)))
    before = np.abs(parent.calibrator().predict(nats) - truth).max()
    assert np.abs(child.artifact.calibrator().predict(nats) - truth).max() < min(0.5 * before, 0.12)
    assert child.artifact.fingerprint == parent.fingerprint
    assert child.artifact.fit["parent"] == parent.sha256
    assert child.artifact.sha256 != parent.sha256
    assert child.artifact.id == parent.id


@pytest.mark.parametrize(("n", "how", "slope", "intercept"), [(110, "intercept", 10.0, 2.5), (260, "platt", 5.0, 1.0)])
@pytest.mark.parametrize("family", [beta, isotonic], ids=lambda family: family.__name__)
def test_labels_shift_and_stretch_a_calibrator_whose_own_parameters_cannot_take_it_up(
    family: ModuleType, n: int, how: str, slope: float, intercept: float, store: Store, parent: Artifact
) -> None:
    rng = np.random.default_rng(1)
    nats = rng.uniform(-0.6, 0.0, 4000)
    right = (rng.random(nats.size) < 1 / (1 + np.exp(-(10 * nats + 4)))).astype(np.float64)
    curved = family.fit(FitData(nats[:, None], right, ("lp_mean",)), learn_score=True)
    told = {name: getattr(parent, name) for name in ("id", "features", "fingerprint", "fit", "validity", "metrics")}
    parent = Artifact.seal(**told, kind=curved.kind, params=curved.to_params(), created=NOW)
    filled(store, parent, n, slope=slope, intercept=intercept)
    child = made(store, parent).artifact
    assert (child.fit["how"], child.kind) == (how, "tempered")
    at = np.linspace(-0.5, -0.05, 7)[:, None]
    truth = 1 / (1 + np.exp(-(slope * at[:, 0] + intercept)))
    before = np.abs(parent.calibrator().predict(at) - truth).max()
    assert np.abs(child.calibrator().predict(at) - truth).max() < min(0.6 * before, 0.15)
    grandchild = refit.scaled(child.calibrator(), 0.5, -1.0)
    assert grandchild.margin(at) == pytest.approx(0.5 * child.calibrator().margin(at) - 1.0)


def test_labels_that_turn_an_order_round_stretch_nothing(store: Store, parent: Artifact) -> None:
    filled(store, parent, 260, slope=-10.0, intercept=-2.0)
    with pytest.raises(CalibrationError, match="fit anew"):
        made(store, parent, how="platt")


def test_a_calibrator_that_keeps_its_word_is_kept(store: Store, parent: Artifact) -> None:
    filled(store, parent, 150, seed=2)
    with pytest.raises(NotBetter, match="may be chance"):
        made(store, parent, how="intercept")


def test_too_few_labels_of_the_rarer_class_are_told_with_how_many_are_wanting(store: Store, parent: Artifact) -> None:
    filled(store, parent, 40)
    with pytest.raises(CalibrationError, match="30 are needed: collect"):
        made(store, parent)
    with pytest.raises(TooFewRare):
        made(store, parent, how="refit")


def test_one_clients_key_alone_is_not_heard_and_operators_are_asked_for(store: Store, parent: Artifact) -> None:
    filled(store, parent, 200, intercept=1.0, source=Source.USER, author="mallory")
    found, _ = refit.rows(store, "cheap", parent, trusted=False, drawn=True)
    assert len(found) == 200
    with pytest.raises(CalibrationError, match="not heard alone"):
        refit.refit(parent, found, why="", created=NOW)
    assert refit.rows(store, "cheap", parent, trusted=True, drawn=True)[0] == []


def test_a_bad_key_can_be_cut_out_and_the_fit_repeated(store: Store, parent: Artifact, tmp_path: Path) -> None:
    filled(store, parent, 260, intercept=2.5)
    filled(store, parent, 120, slope=-10.0, intercept=-2.0, seed=3, author="mallory")
    everybody = set(made(store, parent, how="intercept").numbers)
    (tmp_path / "cascade.yaml").write_text(json.dumps(cascade("http://127.0.0.1:1/v1", store={"sqlite": "store.db"})))
    where = ("--tier", "cheap", "-c", str(tmp_path / "cascade.yaml"), "--out", str(tmp_path / "new.json"), "--json")
    code, out, err = confgate_ends("refit", *where, "--without", "mallory")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["labels"], told["left_out"]) == (260, {"of mallory": 120})
    assert len(everybody) == 380
    code, out, err = confgate_ends("refit", *where, "--without", "malory")
    assert (code, out) == (1, "")
    assert "no label that would count is of a key 'malory'" in err


def test_labels_of_answers_that_were_not_drawn_are_left_out_and_counted(store: Store, parent: Artifact) -> None:
    filled(store, parent, 5, explored=False)
    found, left_out = refit.rows(store, "cheap", parent, trusted=True, drawn=True)
    assert (found, left_out) == ([], {"not drawn by lot": 5})


@pytest.mark.parametrize(
    ("agrees", "label", "told"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, None), (None, True, None)],
)
def test_a_label_tells_about_an_answer_that_was_not_served_as_far_as_it_can(
    agrees: bool | None, label: bool, told: bool | None, store: Store, parent: Artifact
) -> None:
    [name] = numbers(1)
    first: HopRow = hop(name, calibrator=parent.label, reason="unsure", p_correct=0.5, agrees=agrees)
    last = hop(name, 1, tier="dear", calibrator="dear@0123456789ab", reason="last", p_correct=0.9)
    shadow = hop(name, 2, tier="other", role=Role.SHADOW)
    store.write([Entry(decision(name, tier="dear", explored=True, inclusion=0.5), (first, last, shadow))])
    store.put([wish(name, label, Source.OPERATOR, tier="dear", calibrator="0123456789ab")])
    found, _ = refit.rows(store, "cheap", parent, trusted=True, drawn=True)
    assert [row.right for row in found] == ([] if told is None else [told])


def test_the_command_writes_a_child_and_says_how_much_better_it_is(
    store: Store, parent: Artifact, tmp_path: Path
) -> None:
    filled(store, parent, 110, intercept=2.5)
    path = tmp_path / "cascade.yaml"
    path.write_text(json.dumps(cascade("http://127.0.0.1:1/v1", store={"sqlite": "store.db"})))
    code, out, err = confgate_ends(
        "refit", "--tier", "cheap", "-c", str(path), "--out", str(tmp_path / "new.json"), "--json"
    )
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["how"], told["labels"], told["offered"]) == ("intercept", 110, False)
    assert artifacts.load(tmp_path / "new.json").label == told["artefact"]
    for words, wanted in (
        (("--tier", "cheap", "--offer"), "configures no rollout"),
        (("--tier", "chaep", "--out", "x"), "did you mean 'cheap'?"),
    ):
        code, out, err = confgate_ends("refit", *words, "-c", str(path))
        assert (code, out) == (1, "")
        assert wanted in err


def test_a_child_brings_what_the_traffic_looked_like_that_its_labels_are_of(
    store: Store, parent: Artifact, tmp_path: Path
) -> None:
    filled(store, parent, 260, intercept=2.5)
    steps = {"default": {"steps": [{"tier": "cheap", "accept_at": 0.8}, {"tier": "dear"}]}}
    plan = cascade("http://127.0.0.1:1/v1", store={"sqlite": "store.db"}, policies=steps, rollout={"folder": "rollout"})
    plan["ids"] = {"keep": "ids.secret"}
    plan["exploration"] = {"share": 0.5}
    (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
    rollouts = Rollouts(tmp_path / "rollout")
    rollouts.begin("cheap", parent, who="gateway", at=AT)
    code, out, err = confgate_ends(
        "refit", "--tier", "cheap", "-c", str(tmp_path / "cascade.yaml"), "--offer", "--json"
    )
    assert (code, err) == (0, "")
    child = rollouts.find(json.loads(out)["artefact"]).artifact
    [(place, own)] = rollouts.registry.reference(child.sha256).tiers.items()
    assert place == ("default", "cheap")
    assert (own.calibrator, own.had_of, len(own.rows)) == (child.label, "", PAGE)  # all came at once
    assert (own.rows[:, -1] == child.calibrator().predict(own.rows[:, :-1])).all()


def test_a_child_of_a_tier_that_saw_too_little_brings_nothing(store: Store, parent: Artifact, tmp_path: Path) -> None:
    filled(store, parent, 110, intercept=2.5)
    (tmp_path / "cascade.yaml").write_text(json.dumps(cascade("http://127.0.0.1:1/v1")))
    config = configs.read(tmp_path / "cascade.yaml")
    child = made(store, parent)
    assert child.since == AT
    assert brought(config, store, "cheap", parent, child.artifact, child.since, AT + 1e6) is NOTHING


def abortable(path: Path, at: float) -> Artifact:
    """A parent that learned to give up answers at one threshold."""
    bounds = [{"tokens": 3, "at_most": -0.5, "n": 200, "accepted": 2}]
    levels = [{"threshold": at, "epsilon": 0.05, "bounds": bounds}]
    write_artifact(path, early_abort={"feature": "lp_mean", "confidence": 0.95, "levels": levels})
    return artifacts.load(path)


@pytest.mark.parametrize(
    ("intercept", "how", "kept", "words"),
    [
        (
            2.0,
            "platt",
            True,
            "at thresholds where it accepts no more",
        ),  # the parent was too sure: the child accepts less
        (6.0, "intercept", False, "it accepts more than its parent did"),
        (2.0, "refit", False, "of other scores"),
    ],
)
def test_what_a_parent_learned_about_giving_up_goes_on_only_where_its_child_accepts_no_more(
    intercept: float, how: str, kept: bool, words: str, store: Store, tmp_path: Path
) -> None:
    parent = abortable(tmp_path / "cheap.json", 0.8)
    filled(store, parent, 1000 if how == "refit" else 400, intercept=intercept)
    found, _ = refit.rows(store, "cheap", parent, trusted=True, drawn=True)
    made = refit.refit(parent, found, why="x", created=NOW, how=how)
    assert (made.artifact.early_abort == parent.early_abort) is kept
    assert (made.artifact.early_abort is None) is not kept
    assert words in str(made)
    assert words in " ".join(made.artifact.validity["conditions"])  # type: ignore[arg-type]
    logit = np.linspace(-0.6, 0.0, 400)[:, None]
    old, new = (one.calibrator().predict(logit) >= 0.8 for one in (parent, made.artifact))
    assert kept is not True or not (new & ~old).any()


def test_where_signatures_are_demanded_a_child_is_signed_or_refused_before_anything_is_fitted(
    store: Store, parent: Artifact, tmp_path: Path, key: Path
) -> None:
    filled(store, parent, 110, intercept=2.5)
    secret = artifacts.read_private_key(key)
    artifacts.dump(artifacts.sign(parent, secret), tmp_path / "cheap.json")
    path = tmp_path / "cascade.yaml"
    told = {"store": {"sqlite": "store.db"}, "exploration": {"share": 0.5}, "rollout": {"folder": "rollout"}}

    def offered(*words: str, signers: list[str]) -> Result:
        path.write_text(json.dumps(cascade("http://127.0.0.1:1/v1", signers=signers, **told)))
        return CliRunner().invoke(app, ["--tier", "cheap", "-c", str(path), "--offer", *words])

    ours, rollouts = [artifacts.public_key(secret)], Rollouts(tmp_path / "rollout")
    rollouts.begin("cheap", artifacts.load(tmp_path / "cheap.json"), who="test", at=1.0)
    assert "--key FILE or CONFGATE_SIGNING_KEY" in str(offered(signers=ours).exception)
    assert "not under signers" in str(offered("--key", str(key), signers=["0" * 64]).exception)
    assert rollouts.registry.hashes() == [parent.sha256]
    assert json.loads(offered("--key", str(key), "--json", signers=ours).output)["signed"] is True
    state = rollouts.state("cheap")
    assert state is not None
    assert state.candidate is not None
    artifacts.verify(rollouts.registry.get(state.candidate.artifacts["cheap"]).artifact, bytes.fromhex(ours[0]))


def test_first_tokens_are_not_put_right_by_labels_and_a_child_that_no_policy_takes_is_not_offered(
    store: Store, tmp_path: Path
) -> None:
    parent = abortable(tmp_path / "cheap.json", 0.8)
    filled(store, parent, 400, intercept=6.0)
    plan = cascade(
        "http://127.0.0.1:1/v1", store={"sqlite": "store.db"}, exploration={"share": 0.5}, rollout={"folder": "rollout"}
    )
    plan["policies"]["default"]["steps"][0]["early_abort"] = 0.05
    path = tmp_path / "cascade.yaml"
    path.write_text(json.dumps(plan))
    Rollouts(tmp_path / "rollout").begin("cheap", parent, who="test", at=1.0)
    for tier, wanted in (("cheap:prefix", "confgate fit --prefix"), ("cheap", "confgate fit --early-abort")):
        ended = CliRunner().invoke(app, ["--tier", tier, "--how", "intercept", "-c", str(path), "--offer"])
        assert isinstance(ended.exception, GatewayError)
        assert wanted in str(ended.exception)
    state = Rollouts(tmp_path / "rollout").state("cheap")
    assert state is not None
    assert state.candidate is None
