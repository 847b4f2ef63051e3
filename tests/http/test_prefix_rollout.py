"""Calibrators of first tokens have rollouts of their own, in a gateway that serves streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrators import artifact as artifacts
from gateway.cli import app
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, UNSURE, cascade, free_port, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.http.test_rollout import ADMIN, ENVIRONMENT, ROLLOUT, Run, listens

PLACE, TOKENS, WORDS = "cheap:prefix", 3, "one two three four five six"


class Streams(Run):
    """Of which the place of first tokens is looked at."""

    place = PLACE

    def ask(self, nats: float = SURE, *, right: bool | None = None, say: str = WORDS) -> dict[str, str]:
        body = ask({"nats": nats, "text": say}, {"text": WORDS}, stream=True)
        answer = self.public.post("/v1/chat/completions", json=body).raise_for_status()
        if right is not None:
            label = {"id": answer.headers["x-route-id"], "label": right, "source": "operator"}
            self.public.post("/v1/feedback", json=label, headers=ADMIN).raise_for_status()
        return dict(answer.headers)


@contextmanager
def served(home: Path, upstream: Upstream) -> Iterator[Streams]:
    port = free_port()
    write_artifact(home / "cheap.json")
    write_artifact(home / "first.json", intercept=8.0, span=f"prefix-{TOKENS}")
    plan = cascade(
        upstream.url,
        keys={"allow_anonymous": True, "admins": [{"name": "root", "key": "env:ROOT_KEY"}]},
        admin={"port": port},
        ids={"secret": "env:ROUTE_SECRET"},
        store={"sqlite": "decisions.sqlite", "seconds": PATIENCE},
        rollout=ROLLOUT,
    )
    plan["tiers"][0] |= {"prefix_calibrator": "first.json"}
    plan["tiers"][0]["engine"]["continuous_usage"] = True
    plan["policies"]["default"]["stream_mode"] = "prefix"
    with running(home, plan, **ENVIRONMENT) as gateway:
        run = Streams(gateway, home, port)
        with run.public, run.admin:
            until(lambda: listens(port))
            yield run


@pytest.fixture
def run(tmp_path: Path, upstream: Upstream) -> Iterator[Streams]:
    with served(tmp_path, upstream) as made:
        yield made


SPAN = {"span": f"prefix-{TOKENS}"}


def test_a_calibrator_of_first_tokens_goes_by_shadow_and_canary_to_live_and_is_rolled_back(run: Streams) -> None:
    old = run.ask()["x-route-calibrator"]
    assert old.startswith("first@")
    whole = run.admin.get("/admin/calibrators").json()["tiers"]["cheap"]["live"]
    new = run.put("new", intercept=2.7, **SPAN)  # .85 where the old one says 1; in truth it is .8
    run.act("shadow", artefact=new).raise_for_status()
    headers = run.ask()
    assert headers["x-route-calibrator"] == old

    def kept() -> dict[str, Any]:
        return run.admin.get(f"/admin/decisions/{headers['x-route-id']}").json()  # type: ignore[no-any-return]

    until(lambda: "hops" in kept())
    hop = kept()["hops"][0]
    assert (hop["rival"], hop["rival_p"]) == (new, pytest.approx(0.846, abs=0.01))
    asked, arms, told = 0, set(), run.told()
    while told["live"] == old:
        for _ in range(20):
            asked += 1
            right = asked % 5 > 0 if told["stage"] == "canary" else None
            arms.add((told["stage"], run.ask(SURE, right=right, say=f"{asked} {WORDS}")["x-route-calibrator"]))
        told = run.told()
        assert asked < 1000, told["history"]
    assert {("canary", old), ("canary", new), ("shadow", old)} <= arms
    assert [event["action"] for event in run.told()["history"]] == ["begin", "shadow", "canary", "promote"]
    bad = run.put("bad", intercept=12.0, **SPAN)
    run.act("promote", artefact=bad).raise_for_status()
    assert run.ask(UNSURE)["x-route-calibrator"] == bad
    labels = 0
    while run.told()["live"] == bad:
        run.ask(UNSURE, right=False, say=f"wrong {labels} {WORDS}")
        labels += 1
        assert labels < 300
    until(lambda: run.ask()["x-route-calibrator"] == new)
    assert run.told()["history"][-1]["action"] == "rollback"
    assert run.admin.get("/admin/calibrators").json()["tiers"]["cheap"]["live"] == whole


def test_each_place_takes_its_own_kind_and_says_where_the_other_one_belongs(run: Streams) -> None:
    live = run.ask()["x-route-calibrator"]
    whole, other, first = run.put("whole"), run.put("other", span="prefix-7"), run.put("second", slope=9.0, **SPAN)
    for artefact, why in ((whole, "its place is 'cheap', not 'cheap:prefix'"), (other, "fit on as many")):
        run.act("shadow", artefact=artefact).raise_for_status()
        until(lambda: run.told()["history"][-1]["action"] == "reject")
        assert why in run.told()["history"][-1]["why"][0]
    command = ["rollout", "shadow", "cheap", first, "--why", "x", "-c", str(run.folder / "cascade.yaml")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code != 0
    assert "'cheap:prefix', not 'cheap'" in str(done.exception)
    path = run.folder / "whole.json"
    assert artifacts.load(path).label == whole
    command = ["rollout", "offer", PLACE, str(path), "--why", "x", "-c", str(run.folder / "cascade.yaml")]
    assert "its place is 'cheap'" in str(CliRunner().invoke(app, command).exception)
    assert run.ask()["x-route-calibrator"] == live


def test_with_nothing_left_to_go_back_to_no_first_tokens_are_passed_on(run: Streams) -> None:
    live = run.told()["live"]
    while run.told()["live"] == live:
        run.ask(SURE, right=False)
    assert run.told()["history"][-1]["action"] == "safe"
    until(lambda: run.ask()["x-route-tier"] == "dear")
    new = run.put("new", intercept=3.0, **SPAN)
    run.act("promote", artefact=new).raise_for_status()
    assert run.ask()["x-route-calibrator"] == new
