"""From a configuration to a cascade."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from calibrators import artifact as artifacts
from gateway import config
from gateway.errors import ConfigError
from gateway.nouns import Source
from gateway.snapshot import Snapshot, healed, open_cascade, open_engines
from tests.faults.gateway import cascade, write_artifact
from tests.faults.upstream import Upstream


def opened(folder: Path, plan: dict[str, Any]) -> Snapshot:
    async def work() -> Snapshot:
        async with open_cascade(config.parse(json.dumps(plan), folder / "cascade.yaml")) as snapshot:
            return snapshot

    return asyncio.run(work())


def test_tiers_carry_what_their_artefact_says(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        snapshot = opened(tmp_path, cascade(upstream.url))
    tier = snapshot.tiers["cheap"]
    assert (tier.calibrator_id, tier.features, tier.source, tier.top_k) == (label, ("lp_mean",), Source.CHOSEN, 0)
    assert tier.threshold is None
    assert [step.threshold for step in snapshot.policies["default"].tiers] == [0.8, None]
    assert snapshot.withheld == {}


@pytest.mark.parametrize(
    ("fingerprint", "words"),
    [
        ({"model": "another"}, "fitted on 'another', served 'small'"),
        ({"engine_version": "0.22.0"}, "fitted on '0.22.0', served '0.33.0'"),
        ({"sampling": "temperature=1"}, "sampler"),
        ({"source": "tea_leaves"}, "top_logprobs"),
    ],
)
def test_an_artefact_of_something_else_is_refused_or_withheld(
    fingerprint: dict[str, str], words: str, tmp_path: Path
) -> None:
    write_artifact(tmp_path / "cheap.json", **fingerprint)
    with Upstream() as upstream:
        with pytest.raises(ConfigError, match=words):
            opened(tmp_path, cascade(upstream.url))
        snapshot = opened(tmp_path, cascade(upstream.url, on_bad_artifact="escalate"))
    assert snapshot.tiers["cheap"].calibrator is None
    assert words in snapshot.withheld["cheap"]


def test_where_signers_are_named_only_their_calibrators_are_used(tmp_path: Path) -> None:
    path, maker, stranger = tmp_path / "cheap.json", bytes([1]) * 32, bytes([2]) * 32
    write_artifact(path)
    named = {"signers": [artifacts.public_key(maker)]}
    with Upstream() as upstream:
        for signed, said in ((None, "is not signed"), (stranger, "not signed by"), (maker, None)):
            if signed is not None:
                artifacts.dump(artifacts.sign(artifacts.load(path), signed), path)
            if said is None:
                assert opened(tmp_path, cascade(upstream.url, **named)).withheld == {}
                continue
            with pytest.raises(ConfigError, match=f"tier cheap: .*{said}"):
                opened(tmp_path, cascade(upstream.url, **named))
            snapshot = opened(tmp_path, cascade(upstream.url, on_bad_artifact="escalate", **named))
            assert snapshot.tiers["cheap"].calibrator is None
            assert said in snapshot.withheld["cheap"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\x80\x04pickle", b"[]"])
def test_a_broken_or_missing_artefact_is_named(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "cheap.json").write_bytes(content)
    with Upstream() as upstream:
        with pytest.raises(ConfigError, match=r"tier cheap: .*cheap\.json"):
            opened(tmp_path, cascade(upstream.url))
        assert "cheap" in opened(tmp_path, cascade(upstream.url, on_bad_artifact="escalate")).withheld


def test_a_server_that_is_away_cannot_vouch_for_its_model(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with pytest.raises(ConfigError, match="nobody answers"):
        opened(tmp_path, cascade("http://127.0.0.1:1/v1"))
    assert "cheap" in opened(tmp_path, cascade("http://127.0.0.1:1/v1", on_bad_artifact="escalate")).withheld


def test_a_server_that_is_still_loading_is_waited_for(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    plan = cascade(f"http://127.0.0.1:{port}/v1")
    plan["server"]["start_seconds"] = 60

    async def work() -> bool:
        async with asyncio.TaskGroup() as group:
            late = group.create_task(start_late())
            async with open_cascade(config.parse(json.dumps(plan), tmp_path / "cascade.yaml")) as snapshot:
                (await late).__exit__()
                return snapshot.tiers["cheap"].calibrator is not None

    async def start_late() -> Upstream:
        await asyncio.sleep(0.3)
        return await asyncio.to_thread(Upstream(port=port).__enter__)

    assert asyncio.run(work())


def test_a_file_that_is_missing_for_a_moment_while_its_server_is_away_is_looked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cheap.json"
    label = write_artifact(path)

    async def work() -> None:
        with Upstream() as upstream:
            plan = cascade(upstream.url, on_bad_artifact="escalate")
            upstream.__exit__()
            async with open_cascade(config.parse(json.dumps(plan), tmp_path / "cascade.yaml")) as snapshot:
                path.rename(tmp_path / "elsewhere.json")
                for _ in range(3):
                    snapshot = await healed(snapshot)
                assert "No such file" in snapshot.withheld["cheap"]
                upstream.__enter__()
                snapshot = await healed(snapshot)
                assert "No such file" in snapshot.withheld["cheap"]
                (tmp_path / "elsewhere.json").rename(path)
                snapshot = await healed(snapshot)
                assert (snapshot.tiers["cheap"].calibrator_id, snapshot.withheld) == (label, {})
                assert await healed(snapshot) is snapshot

    asyncio.run(work())
    told = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 2, "once for each reason"


def test_engines_can_be_opened_before_any_artefact_exists(tmp_path: Path) -> None:
    async def work() -> list[str]:
        plan = cascade("http://127.0.0.1:1/v1")
        async with open_engines(config.parse(json.dumps(plan), tmp_path / "cascade.yaml")) as engines:
            return [engine.name for engine in engines.values()]

    assert asyncio.run(work()) == ["cheap", "dear"]
