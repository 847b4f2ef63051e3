"""The doctor, as a command, at servers that are well and at servers that are not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import config as configs
from gateway import doctor
from tests.faults.gateway import cascade, confgate_ends, free_port, running, write_artifact
from tests.faults.upstream import Upstream

Json = dict[str, Any]


@pytest.fixture
def server() -> Iterator[Upstream]:
    with Upstream() as one:
        yield one


def consult(folder: Path, plan: Json, seconds: float = 20) -> tuple[list[str], dict[tuple[str, str], Json]]:
    """What is wrong, and findings by (tier, check)."""
    if not (folder / "cheap.json").exists():
        write_artifact(folder / "cheap.json")
    config = configs.parse(json.dumps(plan), folder / "cascade.yaml")
    findings = asyncio.run(doctor.examine_config(config, seconds))
    return doctor.faults(findings), {(one.tier, one.check): one.row() for one in findings}


def command(folder: Path, plan: Json, *more: str) -> tuple[int, str, str]:
    write_artifact(folder / "cheap.json")
    (folder / "cascade.yaml").write_text(json.dumps(plan))
    return confgate_ends("doctor", "--config", str(folder / "cascade.yaml"), *more)


def test_a_server_that_will_do_is_found_good_in_every_respect(server: Upstream, tmp_path: Path) -> None:
    wrong, found = consult(tmp_path, cascade(server.url))
    assert not wrong
    assert {row["verdict"] for row in found.values()} == {"good"}, found
    assert {check for tier, check in found if tier == "cheap"} == {
        "calibrator", "reachable", "version", "answers", "log-probs", "sampler", "raw",
    }  # fmt: skip
    assert "engine_version 0.33.0" in found["cheap", "reachable"]["told"]


def test_what_no_server_tells_is_unknown_and_not_good(server: Upstream, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json", chat_template="a" * 64)
    wrong, found = consult(tmp_path, cascade(server.url))
    assert not wrong
    assert found["cheap", "calibrator"]["verdict"] == "unknown"
    assert "chat_template" in found["cheap", "calibrator"]["told"]


@pytest.mark.parametrize(
    ("older", "feature", "verdict", "told"),
    [
        (False, "lp_bottom", "good", "plugin, its summary of each answer"),
        (False, "lp_quantile", "good", "plugin, 0 candidates per token"),
        (True, "lp_bottom", "bad", "is the plugin older than this gateway?"),
        (True, "lp_quantile", "good", "plugin"),
        (False, "deepconf_average(k=5)", "bad", "a k of 5"),
    ],
)
def test_a_servers_plugin_is_asked_for_what_the_calibrator_looks_at(
    older: bool, feature: str, verdict: str, told: str, server: Upstream, tmp_path: Path
) -> None:
    server.older_plugin = older
    write_artifact(tmp_path / "cheap.json", feature=feature, source="plugin")
    plan = cascade(server.url)
    plan["tiers"][0]["engine"]["confidence"] = "engine"
    _, found = consult(tmp_path, plan)
    assert found["cheap", "log-probs"]["verdict"] == verdict
    assert told in found["cheap", "log-probs"]["told"]


@pytest.mark.parametrize(
    ("server_is", "check", "verdict", "words"),
    [
        ({"raw": False}, "raw", "bad", "--logprobs-mode raw_logprobs"),
        ({"penalised": True}, "sampler", "bad", "--generation-config vllm"),
        ({"version": "0.31.2"}, "version", "warn", "older than 0.33"),
        ({"breaks": "no_logprobs"}, "log-probs", "bad", ""),
        ({"breaks": "infinite_logprob"}, "log-probs", "bad", ""),
        ({"breaks": "unauthorized"}, "answers", "bad", "key"),
        ({"breaks": "500"}, "answers", "bad", "answered 500"),
    ],
)
def test_each_pitfall_is_named_with_its_cure(
    server_is: Json, check: str, verdict: str, words: str, server: Upstream, tmp_path: Path
) -> None:
    for name, value in server_is.items():
        setattr(server, name, value)
    wrong, found = consult(tmp_path, cascade(server.url))
    assert bool(wrong) == (verdict == "bad")
    assert found["cheap", check]["verdict"] == verdict, found
    assert words in found["cheap", check]["told"]


def test_a_calibrator_of_another_model_and_a_server_that_is_away_are_both_told(
    server: Upstream, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json", engine_version="0.30.0")
    plan = cascade(server.url)
    plan["tiers"][1]["engine"]["url"] = f"http://127.0.0.1:{free_port()}/v1"
    wrong, found = consult(tmp_path, plan)
    assert len(wrong) == 2
    assert "fitted on '0.30.0', served '0.33.0'" in found["cheap", "calibrator"]["told"]
    assert found["dear", "reachable"]["verdict"] == "bad"


def test_candidates_that_a_server_does_not_allow_are_told_as_such(server: Upstream, tmp_path: Path) -> None:
    server.max_logprobs = -1
    wrong, found = consult(tmp_path, cascade(server.url))
    assert len(wrong) == 1
    assert "--max-logprobs" in found["cheap", "log-probs"]["told"]
    assert found["dear", "log-probs"]["verdict"] == "warn", "nobody needs them there"


def test_a_server_that_hangs_costs_the_time_that_was_given_and_no_more(server: Upstream, tmp_path: Path) -> None:
    server.breaks = "silent"
    _, found = consult(tmp_path, cascade(server.url), seconds=0.5)
    assert found["cheap", "time"]["verdict"] == "bad"


@pytest.mark.parametrize(("fault", "why"), [("503", "answered 503"), ("silent", "within 1 s")])
def test_a_server_that_is_there_once_and_no_more_is_a_finding(
    fault: str, why: str, server: Upstream, tmp_path: Path
) -> None:
    server.forgets = fault
    code, out, err = command(tmp_path, cascade(server.url), "--json", "--seconds", "1")
    found = {(row["tier"], row["check"]): row for row in json.loads(out)}
    assert (code, "Traceback" in err) == (1, False)
    assert found["cheap", "calibrator"]["verdict"] == "unknown"
    assert why in found["cheap", "calibrator"]["told"]


@pytest.mark.parametrize("fault", ["503", "silent"])
def test_a_server_that_is_away_when_the_doctor_looks_does_not_keep_the_gateway_from_starting(
    fault: str, server: Upstream, tmp_path: Path
) -> None:
    server.forgets = fault
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(server.url)
    plan["server"]["doctor"] = "warn"
    with running(tmp_path, plan) as gateway:
        assert gateway.logged(lambda line: line["event"] == "the doctor found a fault")


def test_serving_refuses_to_start_with_what_the_doctor_found(server: Upstream, tmp_path: Path) -> None:
    server.raw = False
    write_artifact(tmp_path / "cheap.json")
    plan = cascade(server.url)
    plan["server"]["doctor"] = "refuse"
    (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
    code, out, err = confgate_ends("serve", "--config", str(tmp_path / "cascade.yaml"))
    assert code == 1
    assert not out
    assert "cheap: raw: " in err


def test_the_command_prints_a_table_or_json_and_its_exit_code_says_whether_all_is_well(
    server: Upstream, tmp_path: Path
) -> None:
    code, out, err = command(tmp_path, cascade(server.url))
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["tier", "check", "verdict", "told"]
    server.raw = False
    code, out, err = command(tmp_path, cascade(server.url), "--json")
    assert code == 1
    assert {row["verdict"] for row in json.loads(out) if row["check"] == "raw"} == {"bad"}
    assert "are bad" in err
