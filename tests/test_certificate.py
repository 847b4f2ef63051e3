"""Certificates: they hold for the very policy they were earned with, and say which field is another one."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import config
from gateway.certificate import Certificate, CertifiedStep, Data, Promise, Withdrawn, certificate_fault
from gateway.errors import ConfigError
from gateway.nouns import Mix, Policy
from gateway.snapshot import Snapshot, healed, open_cascade
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, cascade, confgate_ends, running, write_artifact
from tests.faults.upstream import Upstream

SERVED = [("cheap", 0.8, "cheap@0123456789ab"), ("dear", None, "none")]


def certificate(calibrator: str = "cheap@0123456789ab") -> Certificate:
    return Certificate.sealed(
        issued=dt.date(2026, 11, 22),
        steps=[
            CertifiedStep(tier="cheap", accept_at=0.8, calibrator=calibrator),
            CertifiedStep(tier="dear", calibrator="none"),
        ],
        data=Data(split="test", n=999, sha256="ab" * 32),
        chosen="thresholds chosen on other questions",
        promises=[
            Promise(what="share of final answers that are wrong", limit=0.05, confidence=0.95, seen=0.03, n=999,
                    method="Clopper-Pearson"),
            Promise(what="cost of one request in usd", unit="usd", limit=1e-05, confidence=0.95, seen=2e-06, n=999,
                    method="split conformal"),
        ],
        assumptions=["requests are like these"],
    )  # fmt: skip


def plan(url: str, held: Certificate, **changes: Any) -> dict[str, Any]:
    told = cascade(url, **changes)
    told["policies"]["default"]["certificate"] = held.model_dump(mode="json", exclude_none=True)
    return told


def opened(folder: Path, told: dict[str, Any]) -> Snapshot:
    async def work() -> Snapshot:
        async with open_cascade(config.parse(json.dumps(told), folder / "cascade.yaml")) as snapshot:
            return await healed(snapshot)

    return asyncio.run(work())


def test_a_certificate_holds_for_what_was_certified() -> None:
    assert certificate_fault(certificate(), SERVED) == ""


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ([("cheap", 0.81, "cheap@0123456789ab"), SERVED[1]], "steps[0].accept_at of cheap: certified 0.8, served 0.81"),
        (
            [("cheap", 0.8, "cheap@ba9876543210"), SERVED[1]],
            "calibrator of cheap: certified cheap@0123456789ab",
        ),
        ([SERVED[1]], "steps: certified cheap -> dear, served dear"),
        ([SERVED[0], ("other", None, "none")], "served cheap -> other"),
    ],
)
def test_the_field_that_differs_is_named_with_what_to_do(
    served: list[tuple[str, float | None, str]], words: str
) -> None:
    why = certificate_fault(certificate(), served)
    assert words in why
    assert "confgate sweep --write" in why


def test_a_limit_that_was_edited_by_hand_is_no_promise() -> None:
    good = certificate()
    better = good.promises[0].model_copy(update={"limit": 0.01})
    edited = good.model_copy(update={"promises": (better, *good.promises[1:])})
    assert "changed after it was issued" in certificate_fault(edited, SERVED)


def test_a_withdrawn_certificate_says_since_when_and_why() -> None:
    gone = certificate().model_copy(update={"withdrawn": Withdrawn(since=dt.date(2026, 12, 1), why="drift of length")})
    assert certificate_fault(gone, SERVED) == "withdrawn on 2026-12-01: drift of length"


def test_what_is_no_certificate_is_told_with_its_line() -> None:
    told = plan("http://h/v1", certificate())
    told["policies"]["default"]["certificate"]["promises"][0]["confidence"] = 1.5
    with pytest.raises(ConfigError, match=r"cascade.yaml:\d+: policies.default.certificate.promises\[0\].confidence"):
        config.parse(json.dumps(told, indent=1), Path("cascade.yaml"))


def test_a_policy_carries_its_certificate_only_while_it_holds(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        good = opened(tmp_path, plan(upstream.url, certificate(label)))
        other = opened(tmp_path, plan(upstream.url, certificate()))
        with pytest.raises(
            ConfigError, match=r"certificate of policy default: calibrator of cheap: .*on_bad_certificate"
        ):
            opened(tmp_path, plan(upstream.url, certificate(), on_bad_certificate="refuse"))
    assert good.certificates["default"].holds
    assert good.policies["default"].certified  # type: ignore[union-attr]
    assert not good.policies["strict"].certified  # type: ignore[union-attr]
    assert f"served {label}" in other.certificates["default"].why
    assert not other.policies["default"].certified  # type: ignore[union-attr]


def test_a_withheld_calibrator_takes_the_certificate_with_it_and_does_not_stop_the_start(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    told = plan("http://127.0.0.1:1/v1", certificate(label), on_bad_artifact="escalate", on_bad_certificate="refuse")
    away = opened(tmp_path, told)
    assert away.certificates["default"].why.startswith(f"calibrator of cheap: certified {label}, served none")


def test_check_shows_the_promises_or_why_there_are_none(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    path = tmp_path / "cascade.yaml"
    path.write_text(json.dumps(plan("http://127.0.0.1:1/v1", certificate(label))))
    code, out, _ = confgate_ends("check", "-c", str(path))
    assert code == 0
    assert "certificate of default, issued 2026-11-22 on 999 questions of test" in out
    assert "share of final answers that are wrong at most 5.00% with 95% confidence (n = 999)" in out
    assert "cost of one request in usd at most 1e-05 usd" in out
    path.write_text(json.dumps(plan("http://127.0.0.1:1/v1", certificate(), on_bad_certificate="refuse"), indent=1))
    code, _, err = confgate_ends("check", "-c", str(path))
    assert code == 1
    assert "policies.default.certificate: calibrator of cheap" in err
    assert "Traceback" not in err


def test_operators_and_debuggers_see_whether_a_policy_is_certified(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        told = plan(upstream.url, certificate(label))
        told["policies"]["strict"]["certificate"] = certificate(label).model_dump(mode="json", exclude_none=True)
        with running(tmp_path, told) as gateway, httpx2.Client(base_url=gateway.url, timeout=PATIENCE) as http:
            found = [
                http.post("/v1/chat/completions", json=ask(route={"debug": True}) | {"model": model}).json()["route"]
                for model in ("auto", "auto:strict")
            ]
            metrics = http.get("/metrics").text
    assert [one["certified"] for one in found] == [True, False]
    assert 'confidence_gateway_certificate_holds{policy="default"} 1.0' in metrics
    assert 'confidence_gateway_certificate_holds{policy="strict"} 0.0' in metrics
    assert any(
        line["event"] == "certificate withdrawn" and "accept_at of cheap: certified 0.8, served 0.99" in line["why"]
        for line in gateway.lines()
    )


def test_a_mix_draws_by_the_decision_in_its_shares(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        told = cascade(upstream.url)
        told["policies"]["both"] = {"mix": [{"policy": "strict", "share": 0.3}, {"policy": "default", "share": 0.7}]}
        mix = opened(tmp_path, told).policies["both"]
        assert isinstance(mix, Mix)
        assert [one.name for one in mix.parts] == ["strict", "default"]
        assert all(isinstance(one, Policy) for one in mix.parts)


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ([{"policy": "strict", "share": 0.3}, {"policy": "default", "share": 0.6}], "the shares must sum to 1"),
        ([{"policy": "strikt", "share": 1}], "no policy with steps 'strikt'; did you mean 'strict'?"),
        ([{"policy": "both", "share": 1}], "no policy with steps 'both'"),
        ([{"policy": "strict", "share": 0.5}, {"policy": "strict", "share": 0.5}], "mixed in only once"),
        ([], "either steps or a mix"),
    ],
)
def test_a_mix_that_makes_no_sense_is_told_with_its_line(mix: list[dict[str, Any]], words: str) -> None:
    told = cascade("http://h/v1")
    told["policies"]["both"] = {"mix": mix}
    with pytest.raises(ConfigError) as caught:
        config.parse(json.dumps(told, indent=1), Path("cascade.yaml"))
    assert words in str(caught.value)
    assert str(caught.value).startswith("cascade.yaml:")
