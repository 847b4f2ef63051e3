"""Rollouts in a gateway that serves: real processes, real labels, and the folder that they share with the terminal."""

from __future__ import annotations

import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from calibrators import artifact as artifacts
from gateway.monitor.rollouts import Rollouts
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, SURE, UNSURE, Gateway, cascade, free_port, running, until, write_artifact
from tests.faults.upstream import Upstream

ADMIN = {"authorization": "Bearer sk-root"}
ENVIRONMENT = {"ROOT_KEY": "sk-root", "ROUTE_SECRET": "0123456789abcdef0123456789abcdef"}
ROLLOUT: dict[str, Any] = {
    "folder": "rollout", "poll_seconds": 0.2, "settle_seconds": 0.5, "labels_of": "all", "share": 0.5, "max_flips": 1,
    "min_shadow": 20, "min_labels": 40, "worse_accepted": 0.2, "worse_cost": None, "probe": None,
}  # fmt: skip


class Run:
    """A gateway, its folder, and both of its doors. place: whose rollout is looked at."""

    place = "cheap"

    def __init__(self, gateway: Gateway, folder: Path, port: int) -> None:
        self.gateway, self.folder = gateway, folder
        self.rollouts = Rollouts(folder / "rollout")
        self.public = httpx2.Client(base_url=gateway.url, timeout=PATIENCE)
        self.admin = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=ADMIN, timeout=PATIENCE)

    def told(self) -> dict[str, Any]:
        told = self.admin.get("/admin/calibrators").raise_for_status().json()
        return told["tiers"][self.place]  # type: ignore[no-any-return]

    def act(self, step: str, artefact: str = "", **more: Any) -> httpx2.Response:
        """artefact: by default what is in service for a rollback, else what is on trial."""
        about = artefact or self.told()["live" if step == "rollback" else "candidate"]
        body = {"tier": self.place, "why": "a test", **more}
        return self.admin.post(f"/admin/calibrators/{about}/{step}", json=body)

    def put(self, name: str, **how: Any) -> str:
        """An artefact in the registry; its label."""
        path = self.folder / f"{name}.json"
        label = write_artifact(path, **how)
        self.rollouts.registry.put(
            artifacts.load(path), parent=None, who="test", at="2026-01-01T00:00:00+00:00", why=""
        )
        return label

    def ask(self, nats: float = SURE, *, right: bool | None = None, say: str = "?") -> dict[str, str]:
        """One answer's headers; its label by an operator, if there is to be one."""
        body = ask({"nats": nats, "text": say}, {"text": say})
        headers = self.public.post("/v1/chat/completions", json=body).raise_for_status().headers
        if right is not None:
            label = {"id": headers["x-route-id"], "label": right, "source": "operator"}
            self.public.post("/v1/feedback", json=label, headers=ADMIN).raise_for_status()
        return dict(headers)


@contextmanager
def served(home: Path, upstream: Upstream, **rollout: Any) -> Iterator[Run]:
    port = free_port()
    write_artifact(home / "cheap.json")
    plan = cascade(
        upstream.url,
        keys={"allow_anonymous": True, "admins": [{"name": "root", "key": "env:ROOT_KEY"}]},
        admin={"port": port},
        ids={"secret": "env:ROUTE_SECRET"},
        store={"sqlite": "decisions.sqlite", "seconds": PATIENCE},
        rollout=ROLLOUT | rollout,
    )
    with running(home, plan, **ENVIRONMENT) as gateway:
        run = Run(gateway, home, port)
        with run.public, run.admin:
            until(lambda: listens(port))  # a moment after the other listener
            yield run


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def run(tmp_path: Path, upstream: Upstream) -> Iterator[Run]:
    with served(tmp_path, upstream) as made:
        yield made


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, upstream: Upstream) -> Iterator[Run]:
    """For tests that leave the first calibrator live and none on trial."""
    with served(tmp_path_factory.mktemp("rollout"), upstream) as made:
        yield made


def test_a_calibrator_that_only_the_file_names_serves_nobody_and_the_log_says_how_it_can(lasting: Run) -> None:
    served_by = lasting.ask()["x-route-calibrator"]
    file = lasting.folder / "cheap.json"
    before = file.read_bytes()
    try:
        written = write_artifact(file, intercept=5.0)
        assert lasting.admin.post("/admin/reload").status_code == 200
        said = lasting.gateway.logged(lambda line: line["event"].startswith("the file's calibrator"))
    finally:
        file.write_bytes(before)
    assert [line["calibrator"] for line in said] == [written]
    assert "confgate rollout offer cheap" in said[0]["why"]
    assert lasting.ask()["x-route-calibrator"] == served_by


def test_a_calibrator_that_the_file_comes_to_name_goes_on_trial_where_the_file_says_so(
    tmp_path: Path, upstream: Upstream
) -> None:
    with served(tmp_path, upstream, new_in_file="shadow") as run:
        live = run.ask()["x-route-calibrator"]
        written = write_artifact(run.folder / "cheap.json", intercept=5.0)
        assert run.admin.post("/admin/reload").status_code == 200
        until(lambda: run.told()["candidate"] == written)
        assert run.told()["stage"] == "shadow"
        assert run.told()["live"] == live == run.ask()["x-route-calibrator"]
        write_artifact(run.folder / "cheap.json", intercept=6.0)
        assert run.admin.post("/admin/reload").status_code == 200
        run.gateway.logged(lambda line: "not put on trial" in line["event"])
        assert run.told()["candidate"] == written, "one trial at a time"


def test_a_bad_calibrator_promoted_by_hand_is_rolled_back_by_its_labels_and_no_request_is_lost(run: Run) -> None:
    good = run.ask()["x-route-calibrator"]
    bad = run.put("bad", intercept=12.0)
    assert run.act("promote", artefact=bad).status_code == 200
    assert run.ask(UNSURE)["x-route-calibrator"] == bad  # p = .98 for what the good one puts at .02
    statuses: list[int] = []
    ending = threading.Event()

    def load() -> None:
        with httpx2.Client(base_url=run.gateway.url, timeout=PATIENCE) as client:
            while not ending.is_set():
                told = client.post("/v1/chat/completions", json=ask({"nats": UNSURE}))
                statuses.append(told.status_code)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(load)
        try:
            labels = 0
            while run.told()["live"] == bad:
                run.ask(UNSURE, right=False, say="wrong")
                labels += 1
                assert labels < 200
            until(lambda: run.ask()["x-route-calibrator"] == good)
        finally:
            ending.set()
    assert set(statuses) == {200}
    back = run.told()["history"][-1]
    assert (back["action"], back["who"].split("@")[0]) == ("rollback", "gateway")
    assert "over-confident" in back["why"][0]
    assert run.told()["live"] == good
    decided, *_ = run.gateway.logged(lambda line: line["event"] == "rollout step" and line["action"] == "rollback")
    *_, worn = run.gateway.logged(
        lambda line: line["event"] == "calibrator put in service" and line["calibrator"] == good
    )
    seconds = (dt.datetime.fromisoformat(worn["time"]) - dt.datetime.fromisoformat(back["at"])).total_seconds()
    assert worn["calibrator"] == good
    assert seconds < 10
    assert decided["audit_sha256"] == run.rollouts.history("cheap")[-1].sha256
    print(f"{len(statuses)} requests, none lost; on {labels} labels, in service {seconds:.2f} s after the decision")


def test_a_better_calibrator_goes_by_shadow_and_canary_to_live_on_its_evidence(run: Run) -> None:
    old = run.ask()["x-route-calibrator"]
    new = run.put("new", intercept=2.45)  # .81 where the old one says .95; in truth it is .8
    run.act("shadow", artefact=new).raise_for_status()
    assert (run.told()["stage"], run.told()["candidate"]) == ("shadow", new)
    arms, asked, told = set(), 0, run.told()
    while told["live"] == old:
        for _ in range(20):
            asked += 1
            # labels are late: in shadow they would take the old one out first, over-confident as it is
            right = asked % 10 < 7 if told["stage"] == "canary" else None
            headers = run.ask(SURE, right=right, say=f"a {asked}")
            arms.add((told["stage"], headers["x-route-calibrator"]))
        told = run.told()
        assert told["stage"] != "none" or told["live"] == new, told
        assert asked < 2000, told
    assert run.told()["live"] == new
    assert [event["action"] for event in run.told()["history"]] == ["begin", "shadow", "canary", "promote"]
    assert {("canary", new), ("canary", old)} <= arms


def test_steps_by_hand_are_logged_with_who_and_why_and_impossible_ones_refused(lasting: Run) -> None:
    run = lasting
    new = run.put("new", intercept=3.0)
    assert run.act("rollback").status_code == 409
    assert run.act("shadow", artefact="ffffffffffff").status_code == 404
    assert run.act("canary", new).status_code == 409
    assert run.act("rollback", new).status_code == 409, "another is in service"
    assert run.act("stop", new, tier="nobody").status_code == 404
    assert run.act("sing", new).status_code in (400, 422)
    assert run.act("shadow", new, why="").status_code in (400, 422)
    door = f"/admin/calibrators/{new}/shadow"
    eve = {"authorization": "Bearer sk-eve"}
    assert run.admin.get("/admin/calibrators", headers=eve).status_code == 401
    assert run.admin.post(door, json={"tier": "cheap", "why": "x"}, headers=eve).status_code == 401
    assert run.act("shadow", new).status_code == 200
    assert run.act("shadow", new).status_code == 409
    assert run.act("promote", run.told()["live"]).status_code == 409, "another is on trial"
    assert run.act("canary", new.rpartition("@")[2][:6], share=0.25).json()["share"] == 0.25
    assert run.act("stop").json()["stage"] == "none"
    last = run.told()["history"][-1]
    assert (last["who"], last["why"], last["action"]) == ("root", ["a test"], "reject")


def test_a_conversation_stays_in_its_arm_and_arms_have_their_share(lasting: Run) -> None:
    run = lasting
    new = run.put("new", intercept=3.9)
    run.act("shadow", new).raise_for_status()
    run.act("canary", share=0.5).raise_for_status()

    def arm(first: str, *more: dict[str, str]) -> str:
        body = {"model": "auto", "messages": [{"role": "user", "content": first}, *more]}
        return run.public.post("/v1/chat/completions", json=body).headers["x-route-calibrator"]

    arms = [arm(f"question {number}") for number in range(40)]
    assert 8 <= arms.count(new) <= 32  # 4 standard deviations and more
    later = [{"role": "assistant", "content": "well"}, {"role": "user", "content": "and?"}]
    assert [arm(f"question {number}", *later) for number in range(40)] == arms
    run.act("stop").raise_for_status()


def test_what_the_trial_says_is_kept_with_the_hop_and_decides_nothing(lasting: Run) -> None:
    run = lasting
    new = run.put("new", intercept=-20.0)
    run.act("shadow", artefact=new).raise_for_status()
    headers = run.ask(SURE)
    assert headers["x-route-tier"] == "cheap"

    def kept() -> dict[str, Any]:
        return run.admin.get(f"/admin/decisions/{headers['x-route-id']}").json()  # type: ignore[no-any-return]

    until(lambda: "hops" in kept())
    [hop] = kept()["hops"]
    assert hop["rival"] == new
    assert hop["rival_p"] == pytest.approx(0.0, abs=1e-6)
    assert hop["p_correct"] == pytest.approx(0.953, abs=0.01)
    run.act("stop").raise_for_status()


def test_a_step_in_the_folder_reaches_a_running_gateway_and_outlives_it(tmp_path: Path, upstream: Upstream) -> None:
    with served(tmp_path, upstream) as run:
        new = run.put("new", intercept=3.0)
        run.rollouts.act("cheap", "promote", who="ops", at=time.time(), why="from a terminal", artefact=new)  # type: ignore[arg-type]
        until(lambda: run.ask()["x-route-calibrator"] == new)
        run.admin.post("/admin/reload").raise_for_status()
        assert run.ask()["x-route-calibrator"] == new  # though the file names the old one
    with served(tmp_path, upstream) as run:
        assert run.ask()["x-route-calibrator"] == new
        assert run.act("rollback").status_code == 200
        assert run.ask()["x-route-calibrator"] != new


def test_killed_at_any_stage_it_comes_back_at_that_stage(tmp_path: Path, upstream: Upstream) -> None:
    """With kill -9 right after each step was acknowledged, and half a line in the log besides."""
    steps: list[tuple[str, dict[str, Any]]]
    steps = [("shadow", {}), ("canary", {"share": 1.0}), ("promote", {}), ("rollback", {})]
    history: list[dict[str, Any]] = []
    found, arms = [], []
    for action, more in [*steps, ("", {})]:
        with served(tmp_path, upstream) as run:
            told = run.told()
            assert told["history"][: len(history)] == history
            if not history:
                first, new = told["live"], run.put("new", intercept=3.0)
            found.append((told["stage"], told["live"], told["candidate"]))
            arms.append(run.ask()["x-route-calibrator"])
            if action:
                run.act(action, **more, **({"artefact": new} if action == "shadow" else {})).raise_for_status()
                history = run.told()["history"]
                run.gateway.kill()
        with run.rollouts.course("cheap").open("ab") as file:
            file.write(b'{"number": 99, "at": "20')
    kept = [("none", first, None), ("shadow", first, new), ("canary", first, new), ("none", new, None)]
    assert found == [*kept, ("none", first, None)]
    assert arms == [first, first, new, new, first]


def test_two_gateways_on_one_folder_follow_one_rollout(tmp_path: Path, upstream: Upstream) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    shared = str(tmp_path / "shared")
    with served(folders[0], upstream, folder=shared) as one, served(folders[1], upstream, folder=shared) as two:
        one.rollouts = two.rollouts = Rollouts(tmp_path / "shared")
        new = one.put("new", intercept=3.0)
        assert two.act("promote", artefact=new).status_code == 200
        until(lambda: one.ask()["x-route-calibrator"] == two.ask()["x-route-calibrator"] == new)
        while two.told()["live"] == new:  # the one that decides sees its own labels; both of them follow
            for run in (one, two):
                run.ask(SURE, right=False, say="wrong")
        until(lambda: one.ask()["x-route-calibrator"] == two.ask()["x-route-calibrator"] != new)
        assert [event["action"] for event in one.told()["history"]] == ["begin", "shadow", "promote", "rollback"]


def test_a_registry_that_is_broken_leaves_what_runs_running_and_says_so(lasting: Run) -> None:
    run = lasting
    before = run.ask()["x-route-calibrator"]
    log = run.rollouts.course("cheap")
    whole = log.read_bytes()
    log.write_bytes(whole.replace(b'"begin"', b'"bogus"'))
    until(lambda: "error" in run.told())
    assert "changed" in run.told()["error"]
    assert run.ask()["x-route-calibrator"] == before
    assert run.act("rollback").status_code == 503
    metrics = run.admin.get("/metrics").text
    assert 'confidence_gateway_rollout_broken{tier="cheap"} 1.0' in metrics
    log.write_bytes(whole)
    until(lambda: "error" not in run.told())
    new = run.put("new", intercept=3.0)
    path = run.rollouts.find(new).path
    path.chmod(0o644)
    path.write_text("{}")
    assert run.act("promote", artefact=new).status_code in (404, 422)
    assert run.ask()["x-route-calibrator"] == before


def test_after_the_last_rollback_everything_escalates_until_another_is_promoted(run: Run) -> None:
    old = run.ask()["x-route-calibrator"]
    for _ in range(200):
        if run.told()["serving"] != old:  # what is written down is in service a moment later
            break
        run.ask(SURE, right=False, say="wrong")
    assert run.told()["history"][-1]["action"] == "safe"
    headers = run.ask(SURE)
    assert (headers["x-route-tier"], headers.get("x-route-calibrator", "none")) == ("dear", "none")
    new = run.put("new", intercept=3.0)
    run.act("promote", artefact=new).raise_for_status()
    assert run.ask(SURE)["x-route-tier"] == "cheap"


def test_a_rollout_without_evidence_is_a_mistake_in_the_file(tmp_path: Path, upstream: Upstream) -> None:
    from gateway import config
    from gateway.errors import ConfigError

    write_artifact(tmp_path / "cheap.json")
    for changes, told in (
        ({}, "store"),
        ({"store": {"sqlite": "d.sqlite"}}, "labels_of"),
    ):
        plan = cascade(upstream.url, rollout={"folder": "r"}, **changes)
        with pytest.raises(ConfigError, match=told):
            config.parse(json.dumps(plan), tmp_path / "cascade.yaml")


@pytest.fixture(scope="module")
def changing() -> Iterator[Upstream]:
    """An upstream of its own, whose weights and template can be swapped."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, changing: Upstream) -> Iterator[Run]:
    probe = {"seconds": 0.5, "tokens": 8}
    with served(tmp_path_factory.mktemp("probed"), changing, probe=probe) as made:
        until(lambda: list((made.folder / "rollout" / "fingerprints").glob("cheap.*.json")))
        yield made


@pytest.mark.parametrize(("what", "told"), [("swapped_nats", "other weights"), ("template_tokens", "template")])
def test_a_server_that_became_another_one_behind_the_same_name_costs_the_confidence_until_it_is_itself_again(
    what: str, told: str, probed: Run, changing: Upstream
) -> None:
    assert probed.ask()["x-route-tier"] == "cheap"
    try:
        setattr(changing, what, 1)
        until(lambda: probed.told()["serving"] == "none")
        assert told in probed.told()["mismatch"]
        assert probed.ask()["x-route-tier"] == "dear"
        [cheap] = [tier for tier in probed.admin.get("/admin/tiers").json() if tier["tier"] == "cheap"]
        assert "another than its calibrator's" in cheap["withheld"]
        assert 'fingerprint_mismatch{tier="cheap"} 1.0' in probed.admin.get("/metrics").text
        assert probed.told()["history"][-1]["action"] == "mismatch"
        assert probed.gateway.logged(lambda line: line["event"] == "fingerprint mismatch")
    finally:
        setattr(changing, what, 0)
    until(lambda: probed.told()["serving"] != "none")
    assert probed.ask()["x-route-tier"] == "cheap"
    assert [event["action"] for event in probed.told()["history"]][-2:] == ["mismatch", "match"]


def test_questions_about_a_server_itself_are_in_no_clients_figures(probed: Run, changing: Upstream) -> None:
    def figures() -> list[str]:
        lines = probed.admin.get("/metrics").text.splitlines()
        counted = ("hops_total", "tokens_total", "cost_usd_total", "requests_total")
        return [line for line in lines if any(line.startswith(f"confidence_gateway_{name}{{") for name in counted)]

    def probes() -> float:
        lines = probed.admin.get("/metrics").text.splitlines()
        [line] = [one for one in lines if 'fingerprint_probes_total{result="same",tier="cheap"}' in one]
        return float(line.split()[-1])

    before, seen, asked = figures(), probes(), len(changing.asked("small"))
    until(lambda: probes() >= seen + 2)
    assert figures() == before
    assert len(changing.asked("small")) >= asked + 2
    decisions = probed.admin.get("/admin/decisions?limit=1000").json()["data"]
    assert len(decisions) <= 20  # those of the tests


def test_a_tier_that_is_left_alone_is_asked_nothing_about_itself(tmp_path: Path) -> None:
    with Upstream() as broken, served(tmp_path, broken, probe={"seconds": 0.5}) as run:
        plan = json.loads((tmp_path / "cascade.yaml").read_text())
        plan["tiers"][0]["limits"] = {"breaker": {"in_a_row": 1, "open_seconds": 60}}
        (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
        run.admin.post("/admin/reload").raise_for_status()
        run.public.post("/v1/chat/completions", json=ask({"fault": "500"})).raise_for_status()
        until(lambda: 'fingerprint_probes_total{result="skipped",tier="cheap"}' in run.admin.get("/metrics").text)
        before = len(broken.asked("small"))
        time.sleep(2)
        assert len(broken.asked("small")) == before
