"""Another model behind the same name: it is asked questions, fitted anew and put on trial, by nobody's hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from calibrators import artifact as artifacts
from gateway.monitor.rollout import Stage
from gateway.monitor.rollouts import Rollouts, of
from tests.faults.gateway import ROOT, confgate_ends

POCKET = ROOT / "deploy/pocket"


def swapped(folder: Path, **refit: object) -> Path:
    """The pocket's first tier, served by the weights of its second."""
    model = {"kind": "local", "model": str(POCKET / "models/pocket-micro"), "max_tokens": 128, "threads": 1}
    tier = {"name": "pocket-nano", "engine": model, "calibrator": str(POCKET / "calibrators/pocket-nano.json")}
    plan = {
        "keys": {"allow_anonymous": True}, "on_bad_artifact": "escalate",
        "store": {"sqlite": "store.db"}, "exploration": {"share": 0.1}, "rollout": {"folder": "rollout"},
        "monitors": {"refit": refit}, "tiers": [tier],
        "policies": {"default": {"steps": [{"tier": "pocket-nano"}]}},
    }  # fmt: skip
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump(plan))
    sealed = artifacts.load(POCKET / "calibrators/pocket-nano.json")
    Rollouts(folder / "rollout").begin("pocket-nano", sealed, who="test", at=1e9)
    return path


@pytest.mark.timeout(300)
def test_what_another_model_answers_is_fitted_and_bound_to_it_and_put_on_trial(tmp_path: Path) -> None:
    path = swapped(tmp_path, questions={"dataset": "pocket", "n": 100})
    words = ("refit", "--tier", "pocket-nano", "-c", str(path), "--why", "model change: a test", "--questions")
    code, out, err = confgate_ends(*words, "--offer", "--json", patience=240)
    assert code == 0, err
    told = json.loads(out)
    assert (told["how"], told["labels"] > 60, told["offered"]) == ("questions", True, True)
    rollouts = Rollouts(tmp_path / "rollout")
    state = rollouts.state("pocket-nano")
    assert state is not None
    assert state.stage is Stage.SHADOW
    kept = rollouts.registry.get(of(state.candidate, "pocket-nano") or "")
    assert kept.artifact.label == told["artefact"]
    micro = artifacts.load(POCKET / "calibrators/pocket-micro.json")
    assert kept.artifact.fingerprint["weights"] == micro.fingerprint["weights"]
    assert kept.lineage.parent == of(state.live, "pocket-nano")
    assert kept.lineage.why == "model change: a test"


def test_without_questions_it_is_said_where_they_are_named(tmp_path: Path) -> None:
    words = ("refit", "--tier", "pocket-nano", "-c", str(swapped(tmp_path)), "--questions", "--offer")
    code, out, err = confgate_ends(*words)
    assert (code, out) == (1, "")
    assert "monitors.refit.questions" in err
