"""Monitors of a real gateway, on recorded answers: quiet while traffic stays, loud when it shifts, deaf to faults."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from calibrators import artifact as artifacts
from gateway import ids
from gateway.certificate import Certificate, CertifiedStep
from gateway.monitor import reference as references
from gateway.monitor.labels import ROUTED
from gateway.monitor.reference import Reference, tier_reference
from gateway.monitor.rollouts import Rollouts
from gateway.nouns import Floats
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, confgate_ends, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.test_feedback import SECRETS, bearer, planned
from tests.test_certificate import certificate

RECORDED = json.loads((Path(__file__).parents[1] / "data/pocket/lp_mean.json").read_text())
FIT_SECONDS = 200.0  # scikit-learn alone takes a loaded machine ten to import
LOOK_SECONDS = PATIENCE  # until a look of one a second has been taken, on a machine that stalls


def answers(split: str) -> list[tuple[float, bool]]:
    """Mean log-prob and whether it was right, of each."""
    rows = RECORDED["splits"][split]
    return [(nats, bool(right)) for nats, right in zip(rows["lp_mean"], rows["right"], strict=True)]


def p_of(nats: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-(RECORDED["slope"] * nats + RECORDED["intercept"]))))


class Run:
    """A gateway whose first tier answers as pocket-nano did."""

    def __init__(self, gateway: Gateway, plan: dict[str, Any]) -> None:
        self.gateway = gateway
        self.client = httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE)
        self.root = httpx2.Client(base_url=gateway.url, headers=bearer("root"), timeout=PATIENCE)
        self.admin = httpx2.Client(
            base_url=f"http://127.0.0.1:{plan['admin']['port']}", headers=bearer("root"), timeout=PATIENCE
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.client, self.root, self.admin):
            each.close()

    def serve(self, nats: Sequence[float], **more: Any) -> list[httpx2.Response]:
        """One request per answer."""

        def one(value: float) -> httpx2.Response:
            body = ask({"nats": value, **more}, {"nats": -0.01})
            return self.client.post("/v1/chat/completions", json=body)

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(one, nats))

    def labelled(self, rows: Sequence[tuple[float, bool]]) -> set[str]:
        """Serve them, and have an operator say which were right; the numbers of their decisions."""
        served = self.serve([nats for nats, _ in rows])
        items = [
            {"id": answer.headers["x-route-id"], "label": right, "source": "operator"}
            for answer, (_, right) in zip(served, rows, strict=True)
        ]
        # A store that is slow for a moment says 503; to send it again is harmless.
        until(lambda: self.root.post("/v1/feedback", json={"items": items}).status_code in (200, 201), LOOK_SECONDS)
        return {ids.number_of(str(item["id"])) for item in items}

    def report(self) -> dict[str, Any]:
        told = self.admin.get("/admin/monitors")
        assert told.status_code == 200
        found: dict[str, Any] = told.json()
        return found

    def drift(self) -> dict[str, Any]:
        found: dict[str, Any] = self.report()["monitors"]["drift"][0]
        return found

    def whole(self) -> dict[str, Any]:
        """The test of what clients were told; empty before its first label."""
        tests = self.report()["monitors"]["labels"]["tests"]
        return next((test for test in tests if test["tier"] == ROUTED), {})

    def kinds(self) -> set[str]:
        return {alarm["kind"] for alarm in self.report()["alarms"]}

    def slo(self, objective: str) -> Any:
        return next(one for one in self.report()["slos"] if one["objective"] == objective)

    def since(self, kind: str) -> set[str]:
        return {alarm["since"] for alarm in self.report()["alarms"] if alarm["kind"] == kind and not alarm["elsewhere"]}

    def metrics(self) -> str:
        return self.admin.get("/metrics").text


def prepared(folder: Path, url: str, **changes: Any) -> dict[str, Any]:
    """A cascade whose first tier accepts all, so that what it says of itself is what clients get."""
    label = write_artifact(folder / "cheap.json", slope=RECORDED["slope"], intercept=RECORDED["intercept"])
    nats = np.array(RECORDED["splits"]["validation"]["lp_mean"])
    rows = np.column_stack([nats, p_of(nats)])
    references.dump(Reference({("default", "cheap"): tier_reference(label, ("lp_mean",), rows)}), folder / "then.npz")
    plan = planned(url, **changes)
    plan["policies"] = {"default": {"steps": [{"tier": "cheap", "accept_at": 0.0}, {"tier": "dear"}]}}
    slos = {"min_labels": 100, "escalated": 0.5}  # servers fail here, and what they should have answered is passed on
    plan["monitors"] = {"reference": "then.npz", "rows": 200, "every_seconds": 1, "slos": slos}
    return plan


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def run(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("watched")
    plan = prepared(folder, upstream.url)
    plan["monitors"]["slices"] = {"metadata": {"feature": ["chat", "search"]}}
    with running(folder, plan, **SECRETS) as gateway, Run(gateway, plan) as one:
        yield one


def test_nothing_is_called_fine_before_it_was_looked_at(run: Run) -> None:
    report = run.report()
    assert report["alarms"] == []
    assert report["policies"] == [{"policy": "default", "calibration": "unknown", "certificate": None, "not_valid": []}]
    assert [(place["tier"], place["state"]) for place in report["monitors"]["drift"]] == [
        ("cheap", "unknown"), ("dear", "unknown")
    ]  # fmt: skip
    assert "nothing is explored" in report["monitors"]["labels"]["unknown"]


def test_stationary_traffic_is_quiet_and_so_are_faults_of_servers(run: Run) -> None:
    first, second = [nats for nats, _ in answers("test")[:200]], [nats for nats, _ in answers("test")[200:400]]
    run.serve(first)
    until(lambda: run.drift()["state"] == "quiet", LOOK_SECONDS)
    run.serve([-0.3] * 40, fault="hang_up")
    run.serve([-0.3] * 40, fault="500")
    run.serve([-0.3] * 40, fault="no_logprobs")
    assert run.drift()["rows"] == 0
    run.serve(second)
    until(lambda: run.drift()["looks"] == 2, LOOK_SECONDS)
    assert run.drift()["state"] == "quiet"
    assert run.kinds() <= {"slo"}  # answers that a fault sent on to the next tier are escalations all the same


def test_of_what_a_request_says_of_itself_the_log_keeps_what_slices_are_made_of(run: Run) -> None:
    before = run.drift()["rows"]
    body = ask({"nats": -0.3}) | {"metadata": {"feature": "chat", "patient": "Mary"}}
    number = run.client.post("/v1/chat/completions", json=body).headers["x-route-id"]
    told: dict[str, Any] = {}

    def written() -> bool:
        told.update(run.admin.get(f"/admin/decisions/{number}").json())
        return bool(told.get("decision"))

    until(written, LOOK_SECONDS)
    assert told["decision"]["metadata"] == {"feature": "chat"}
    until(lambda: run.drift()["rows"] == before + 1, LOOK_SECONDS)
    parts = [part["slice"] for part in run.drift()["slices"]]
    assert parts == ["metadata feature=chat", "metadata feature=search"]


def test_a_request_that_bends_its_own_route_is_not_compared(run: Run) -> None:
    before = run.drift()["rows"]
    body = ask({"nats": -0.3}, route={"max_tier": "cheap"})
    assert run.client.post("/v1/chat/completions", json=body).status_code == 200
    assert run.client.post("/v1/chat/completions", json=ask({"nats": -0.3}) | {"model": "cheap"}).status_code == 200
    run.serve([-0.03])
    until(lambda: run.drift()["rows"] != before, LOOK_SECONDS)
    assert run.drift()["rows"] == before + 1
    told = run.slo("escalation")
    counted = told["windows"][-1]["n"]
    assert (told["policy"], told["budget"]) == ("default", 0.5)
    run.client.post("/v1/chat/completions", json=ask({"nats": -0.3}) | {"model": "dear"})
    run.serve([-0.03])
    until(lambda: run.slo("escalation")["windows"][-1]["n"] > counted, LOOK_SECONDS)
    assert run.slo("escalation")["windows"][-1]["n"] == counted + 1


def test_shifted_traffic_is_loud_without_a_label(run: Run) -> None:
    run.serve([nats for nats, _ in answers("reworded")])
    until(lambda: "drift" in run.kinds(), LOOK_SECONDS)
    [alarm] = [alarm for alarm in run.report()["alarms"] if alarm["kind"] == "drift"]
    assert (alarm["tier"], alarm["slice"]) == ("cheap", "default")
    assert "effect" in alarm["why"]
    assert alarm["since"].startswith("20")
    assert run.report()["policies"][0]["not_valid"] == [f"cheap: {alarm['why']}"]
    assert 'confidence_gateway_drifted{policy="default",tier="cheap"} 1.0' in run.metrics()
    assert 'confidence_gateway_alarms{kind="drift"} 1.0' in run.metrics()
    assert run.gateway.logged(lambda line: line["event"] == "alarm" and line["kind"] == "drift")


def test_a_promotion_leaves_no_tier_without_anything_that_drift_is_measured_from(
    upstream: Upstream, tmp_path: Path
) -> None:
    plan = prepared(tmp_path, upstream.url)
    plan["rollout"] = {"folder": "rollout", "probe": None, "poll_seconds": 0.2, "labels_of": "all"}
    write_artifact(tmp_path / "new.json", slope=RECORDED["slope"], intercept=RECORDED["intercept"] - 1)
    new = artifacts.load(tmp_path / "new.json")
    with running(tmp_path, plan, **SECRETS) as gateway, Run(gateway, plan) as run:
        before = run.serve([-0.01])[0].headers["x-route-calibrator"]
        rollouts = Rollouts(tmp_path / "rollout")
        rollouts.registry.put(new, parent=None, who="test", at="2026-01-01T00:00:00+00:00", why="")
        step, door = {"tier": "cheap", "why": "a test"}, f"/admin/calibrators/{new.label}"
        assert run.admin.post(f"{door}/promote", json=step).status_code == 200
        as_ever = [nats for nats, _ in answers("test")[:200]]
        [told] = {answer.headers["x-route-calibrator"] for answer in run.serve(as_ever)}
        assert told == new.label != before
        until(lambda: run.drift()["state"] == "quiet", LOOK_SECONDS)
        assert (run.drift()["reference_had_of"], run.drift()["n"]) == (before, 200)
        [available] = [slo for slo in run.report()["slos"] if slo["objective"] == "availability"]
        assert max(window["n"] for window in available["windows"]) == 201  # what was seen before is not forgotten
        far = run.serve([-9.0])[0].headers["x-route-id"]
        where = ("route-log", far, "-c", str(tmp_path / "cascade.yaml"))
        until(lambda: "far out: squared distance" in confgate_ends(*where, **SECRETS)[1], LOOK_SECONDS)
        run.serve([nats for nats, _ in answers("reworded")[:200]])
        until(lambda: run.drift()["state"] == "drifted", LOOK_SECONDS)
        assert "drift" in run.kinds()
        assert run.admin.post(f"{door}/rollback", json=step).status_code == 200
        until(lambda: run.drift()["reference_had_of"] is None and run.drift()["calibrator"] == before, LOOK_SECONDS)


def test_the_live_card_says_in_large_letters_that_it_is_not_valid_now(run: Run) -> None:
    page = run.admin.get("/admin/card")
    assert page.headers["content-type"].startswith("text/html")
    assert '<p class="banner bad" role="status">NOT VALID NOW</p>' in page.text
    assert "<script" not in page.text
    words = run.admin.get("/admin/card", params={"format": "md"}).text
    assert "\n# **NOT VALID NOW**\n" in words
    told = run.admin.get("/admin/card", params={"format": "json"}).json()
    assert told["standing"] == "NOT VALID NOW"
    assert told["why"] == run.report()["policies"][0]["not_valid"]
    assert [step["accept_at"] for step in told["routing"]["steps"]] == [0.0, None]
    assert told["versions"]["reference_sha256"]
    assert any("nothing is explored" in one for one in told["unknown"])
    assert any("monitors.card" in one for one in told["unknown"])
    assert run.admin.get("/admin/card", params={"policy": "nobody"}).status_code == 404
    assert run.admin.get("/admin/card", params={"format": "pdf"}).status_code == 422


def test_commands_print_what_a_running_gateway_says(run: Run) -> None:
    where = ("--live", str(run.admin.base_url), "--key", "env:ROOT_KEY")
    code, out, err = confgate_ends("monitors", *where, **SECRETS)
    assert (code, err) == (1, "")  # an alarm is on
    assert "drift" in out
    assert "calibration" in out
    code, out, _ = confgate_ends("monitors", *where, "--json", **SECRETS)
    assert (code, json.loads(out)["alarms"][0]["kind"]) == (1, "drift")
    code, out, _ = confgate_ends("card", *where, **SECRETS)
    assert (code, "NOT VALID NOW" in out) == (0, True)
    code, out, err = confgate_ends("card", "--live", str(run.admin.base_url))
    assert (code, out) == (1, "")
    assert "name an admin's key" in err
    assert "Traceback" not in confgate_ends("monitors", "--live", "http://127.0.0.1:1")[2]


def test_nobody_sees_monitors_without_an_admins_key(run: Run) -> None:
    assert run.admin.get("/admin/monitors", headers=bearer("alice")).status_code == 401
    assert run.client.get("/admin/monitors").status_code == 404


def certified(folder: Path, url: str) -> dict[str, Any]:
    """The same with exploration, and a certificate for its policy."""
    plan = prepared(folder, url, exploration={"share": 1.0, "waiting": 1000})
    label = write_artifact(folder / "cheap.json", slope=RECORDED["slope"], intercept=RECORDED["intercept"])
    known = certificate()
    steps = [
        CertifiedStep(tier="cheap", accept_at=0.0, calibrator=label),
        CertifiedStep(tier="dear", calibrator="none"),
    ]
    held = Certificate.sealed(
        issued=known.issued, steps=steps, data=known.data, chosen=known.chosen, promises=known.promises,
        assumptions=known.assumptions,
    )  # fmt: skip
    plan["policies"]["default"]["certificate"] = held.model_dump(mode="json", exclude_none=True)
    return plan


def promised(run: Run) -> bool:
    """Whether an answer says that its policy is certified."""
    body = ask({"nats": -0.01}, route={"debug": True})
    found: bool = run.client.post("/v1/chat/completions", json=body).json()["route"]["certified"]
    return found


def test_labels_withdraw_a_certificate_and_neither_reload_nor_restart_brings_it_back(
    upstream: Upstream, tmp_path: Path
) -> None:
    plan = certified(tmp_path, upstream.url)
    with running(tmp_path, plan, **SECRETS) as gateway, Run(gateway, plan) as run:
        assert promised(run)
        run.labelled(answers("test")[:100])
        until(lambda: run.whole().get("n") == 100, LOOK_SECONDS)
        assert promised(run)
        assert run.kinds() == set()
        assert run.report()["policies"][0]["calibration"] == "holds"
        whole = run.whole()
        assert whole["state"] == "holds"
        assert whole["latest"]["low"] < whole["latest"]["right"] < whole["latest"]["high"]

        run.labelled(answers("reworded")[:150])
        until(lambda: not promised(run), LOOK_SECONDS)
        until(lambda: {"overconfident", "certificate"} <= run.kinds(), LOOK_SECONDS)
        assert "CERTIFICATE WITHDRAWN" in run.admin.get("/admin/card").text
        [policy] = run.report()["policies"]
        assert policy["calibration"] == "broken"
        assert "claims more than" in policy["certificate"]["why"]
        assert 'confidence_gateway_certificate_holds{policy="default"} 0.0' in run.metrics()
        assert gateway.logged(lambda line: line["event"] == "certificate withdrawn")
        assert run.admin.post("/admin/reload").status_code == 200
        assert not promised(run)

        since = run.since("overconfident")
    with running(tmp_path, plan, **SECRETS) as gateway, Run(gateway, plan) as run:
        assert not promised(run)
        until(lambda: run.admin.get("/admin/monitors").status_code == 200, LOOK_SECONDS)
        until(lambda: run.since("overconfident") == since, LOOK_SECONDS)  # and not since the restart

        looser = json.loads(json.dumps(plan))  # another release: what the old one did is not held against it
        looser["policies"]["default"]["steps"][0]["accept_at"] = 0.05
        looser["policies"]["default"].pop("certificate")
        (tmp_path / "cascade.yaml").write_text(json.dumps(looser))
        assert run.admin.post("/admin/reload").status_code == 200
        until(lambda: run.report()["policies"][0]["calibration"] == "unknown", LOOK_SECONDS)
        until(lambda: run.kinds() == set(), LOOK_SECONDS)  # nor does what the process before it saw stay for long


def test_what_labels_break_starts_a_fit_that_is_put_on_trial_and_decides_nothing(
    upstream: Upstream, tmp_path: Path
) -> None:
    plan = certified(tmp_path, upstream.url)
    plan["policies"]["default"].pop("certificate")
    plan["monitors"]["refit"] = {"causes": ["metric"]}
    plan["rollout"] = {"folder": "rollout", "probe": None}
    with running(tmp_path, plan, **SECRETS) as gateway, Run(gateway, plan) as run:
        assert run.serve([-0.01])[0].headers["x-route-tier"] == "cheap"
        assert run.report()["refits"] == []
        labelled = run.labelled(answers("test")[:60]) | run.labelled(answers("reworded")[:200])
        until(lambda: run.serve([-0.01])[0].headers["x-route-tier"] == "dear", LOOK_SECONDS)  # the rollout's doing
        until(lambda: [fit["state"] for fit in run.report()["refits"]] == ["offered"], FIT_SECONDS)
        [fit] = run.report()["refits"]
        assert (fit["tier"], fit["cause"]) == ("cheap", "metric")
        assert 'confidence_gateway_refits_total{outcome="offered"} 1.0' in run.metrics()
        [kept] = [one for one in Rollouts(tmp_path / "rollout").history("cheap") if one.action == "shadow"]
        assert kept.who == "confgate refit"
        state = Rollouts(tmp_path / "rollout").state("cheap")
        assert state is not None
        assert state.candidate is not None
        child = Rollouts(tmp_path / "rollout").registry.get(state.candidate.artifacts["cheap"])
        assert child.artifact.label in fit["why"]
        assert child.artifact.fit["how"] == "intercept"
        assert set(child.lineage.labels) <= labelled
        assert len(set(child.lineage.labels)) == len(child.lineage.labels) > 200  # those that had come when it began
        assert state.live is None
        assert run.serve([-0.01])[0].headers["x-route-tier"] == "dear"
