"""`confgate up` with real processes; a small script stands in for vLLM."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.fleet import supervise
from gateway.fleet.supervise import Backoff, Job
from tests.faults.gateway import PATIENCE, ROOT

SECONDS = 120.0  # this machine may stand still
STAND_IN = str(ROOT / "tests" / "faults" / "vllm.py")
QWEN = ROOT / "deploy" / "qwen2.5" / "models"


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def until(true: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        if found := true():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come within {SECONDS:g} s")


def lives(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def config(tiers: int = 2, **fleet: Any) -> dict[str, Any]:
    """JSON is YAML, too."""
    names = [f"tier-{n}" for n in range(tiers)]
    return {
        "server": {"port": free_port(), "grace_seconds": 5},
        "keys": {"allow_anonymous": True},
        "fleet": {
            "gpus": [{"index": 0, "memory_gib": 79.1}],
            "command": [sys.executable, STAND_IN],
            "start_seconds": 120,
            "stop_seconds": 5,
            "kill_seconds": 1,
            "restart_seconds": 0.3,
        }
        | fleet,
        "tiers": [
            {
                "name": name,
                "engine": {"kind": "openai_http", "url": f"http://127.0.0.1:{free_port()}/v1", "model": name},
                "serve": {
                    "model": "Qwen/Qwen2.5-0.5B-Instruct",
                    "config": str(QWEN / "Qwen2.5-0.5B-Instruct" / "config.json"),
                    "context": 2048,
                    "concurrency": 4,
                },
            }
            for name in names
        ],
        "policies": {"default": {"steps": [{"tier": names[-1]}]}},
    }


@dataclass
class Up:
    """A running `confgate up`."""

    process: subprocess.Popen[str]
    told: Path
    err: Path
    written: dict[str, Any]

    def events(self) -> list[list[str]]:
        """[name, event, pid] in order."""
        return [line.split()[1:] for line in self.told.read_text().splitlines()] if self.told.exists() else []

    def pids(self, event: str = "start") -> list[int]:
        return [int(pid) for _, happened, pid in self.events() if happened == event]

    def said(self) -> str:
        return self.err.read_text()

    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.written['server']['port']}"

    def answers(self) -> bool:
        try:
            return httpx2.get(f"{self.gateway()}/health", timeout=2).status_code == 200
        except httpx2.HTTPError:
            return False


@contextlib.contextmanager
def up(folder: Path, written: dict[str, Any], *more: str, **env: str) -> Iterator[Up]:
    file = folder / "cascade.yaml"
    file.write_text(json.dumps(written, indent=1))
    told, err = folder / "told", folder / "err"
    command = [sys.executable, "-m", "gateway", "up", str(file), "--logs", str(folder / "logs"), *more]
    environ = os.environ | {"STAND_IN_TOLD": str(told), "PATH": str(folder)} | env  # PATH: no nvidia-smi
    with err.open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=errors, stderr=errors, text=True)
    running = Up(process, told, err, written)
    try:
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(SECONDS)


def test_servers_become_ready_then_the_gateway_serves_and_all_end_in_order(tmp_path: Path) -> None:
    written = config()
    written["tiers"][0]["engine"]["confidence"] = "engine"
    with up(tmp_path, written, STAND_IN_START="0.5", STAND_IN_DRAIN="0.5") as fleet:
        until(fleet.answers, "the gateway")
        assert len(fleet.pids("ready")) == 2
        plugin = str(tmp_path / "logs" / "python")
        found = {
            name: Path(f"/proc/{pid}/environ").read_text() for name, event, pid in fleet.events() if event == "start"
        }
        assert {name: f"PYTHONPATH={plugin}" in said for name, said in found.items()} == {
            "tier-0": True,
            "tier-1": False,
        }
        assert Path(plugin, "gateway", "vllm_plugin", "middleware.py").is_file()
        listed = httpx2.get(f"{fleet.gateway()}/v1/models", timeout=PATIENCE).json()
        assert {"tier-0", "tier-1"} <= {model["id"] for model in listed["data"]}
        fleet.process.send_signal(signal.SIGTERM)
        assert fleet.process.wait(SECONDS) == 0
        assert not fleet.answers()
        assert len(fleet.pids("end")) == 2, "each server was let finish"
        assert not any(map(lives, fleet.pids()))
        said = fleet.said()
        assert said.index("gateway: stopped") < said.index("tier-0: stopping")
        assert max(said.index(f"tier-{n}: ready") for n in (0, 1)) < said.index("gateway: starting")
    assert (tmp_path / "logs" / "tier-0.log").read_text().startswith("starting tier-0 on GPU 0")


def test_a_server_that_dies_is_started_again_and_the_others_are_left_alone(tmp_path: Path) -> None:
    with up(tmp_path, config()) as fleet:
        until(fleet.answers, "the gateway")
        first = {name: int(pid) for name, event, pid in fleet.events() if event == "start"}
        os.kill(first["tier-0"], signal.SIGKILL)
        until(lambda: len(fleet.pids("ready")) == 3, "the restart")
        assert lives(first["tier-1"])
        assert fleet.answers()
        until(lambda: "tier-0: ready" in fleet.said().split("died", 1)[1], "the word of it")
        assert "ended with 137; starting it again in 0.3 s" in fleet.said()


def test_the_gateway_reads_its_file_again_when_told_and_is_started_again_when_it_dies(tmp_path: Path) -> None:
    with up(tmp_path, config(1)) as fleet:
        until(fleet.answers, "the gateway")
        more = {"policies": fleet.written["policies"] | {"second": {"steps": [{"tier": "tier-0"}]}}}
        (tmp_path / "cascade.yaml").write_text(json.dumps(fleet.written | more))
        fleet.process.send_signal(signal.SIGHUP)
        until(lambda: "auto:second" in httpx2.get(f"{fleet.gateway()}/v1/models", timeout=PATIENCE).text, "the reload")
        keeper = re.findall(r"gateway: starting pid (\d+)", fleet.said())
        os.kill(int(keeper[0]), signal.SIGKILL)
        until(lambda: "gateway: ready" in fleet.said().partition("gateway: died")[2], "the gateway's restart")
        assert fleet.answers()
        assert len(fleet.pids()) == 1, "its server was left alone"


def test_starts_that_fail_are_tried_again_with_growing_pauses(tmp_path: Path) -> None:
    count = str(tmp_path / "count")
    with up(tmp_path, config(1), "--no-gateway", STAND_IN_CRASHES="2", STAND_IN_COUNT=count) as fleet:
        until(lambda: "tier-0: ready" in fleet.said(), "the third start")
        assert "again in 0.3 s" in fleet.said()
        assert "again in 0.6 s" in fleet.said()


def test_a_server_that_always_fails_ends_it_all_with_the_end_of_its_log(tmp_path: Path) -> None:
    count = str(tmp_path / "count")
    crash = {"STAND_IN_CRASHES": "99", "STAND_IN_COUNT": count, "STAND_IN_FAILING": "tier-1"}
    with up(tmp_path, config(), **crash) as fleet:
        assert fleet.process.wait(SECONDS) == 1
        assert "tier-1 ended with 1; the end of " in fleet.said()
        assert "| torch.OutOfMemoryError: CUDA out of memory." in fleet.said()
        assert "Traceback" not in fleet.said()
        assert not any(map(lives, fleet.pids())), "the healthy server goes with it"


def test_a_server_that_is_never_ready_is_given_up_in_time(tmp_path: Path) -> None:
    with up(tmp_path, config(1, start_seconds=1.5, stop_seconds=0), STAND_IN_START="300") as fleet:
        assert fleet.process.wait(SECONDS) == 1
        assert "tier-0 was not ready after 1.5 s" in fleet.said()
        assert "| starting tier-0" in fleet.said()
        assert not any(map(lives, fleet.pids()))


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path) -> None:
    written = config()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        written["tiers"][1]["engine"]["url"] = f"http://127.0.0.1:{port}/v1"
        with up(tmp_path, written) as fleet:
            assert fleet.process.wait(SECONDS) == 1
            assert f"tier-1 cannot listen on 127.0.0.1:{port}" in fleet.said()
            assert fleet.events() == []


def test_kill_9_leaves_no_process_behind_not_even_a_servers_own(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with up(tmp_path, config(1), STAND_IN_CHILD=str(child)) as fleet:
        until(fleet.answers, "the gateway")
        engine = int(child.read_text())
        assert lives(engine)
        fleet.process.kill()
        fleet.process.wait(SECONDS)
        until(lambda: not lives(engine), "the end of the engine core")
        until(lambda: not any(map(lives, fleet.pids())), "the end of the server")
        until(lambda: not fleet.answers(), "the end of the gateway")


def test_a_server_that_does_not_end_is_killed_when_its_time_is_up(tmp_path: Path) -> None:
    child = tmp_path / "child"
    written = config(1, stop_seconds=0.1)
    with up(tmp_path, written, "--no-gateway", STAND_IN_DRAIN="300", STAND_IN_CHILD=str(child)) as fleet:
        until(lambda: "tier-0: ready" in fleet.said(), "readiness")
        fleet.process.terminate()
        assert fleet.process.wait(SECONDS) == 0
        assert fleet.pids("sigterm")
        assert not fleet.pids("end")
        assert not any(map(lives, [*fleet.pids(), int(child.read_text())]))


def test_a_signal_while_servers_load_ends_them(tmp_path: Path) -> None:
    with up(tmp_path, config(1, stop_seconds=0.1), STAND_IN_START="300") as fleet:
        until(fleet.pids, "a server's start")
        fleet.process.send_signal(signal.SIGINT)
        assert fleet.process.wait(SECONDS) == 0
        assert not any(map(lives, fleet.pids()))


def test_a_program_that_is_not_there_is_told_at_once_with_what_to_do(tmp_path: Path) -> None:
    with up(tmp_path, config(command=["vllm", "serve"])) as fleet:
        assert fleet.process.wait(SECONDS) == 1
        assert "there is no program 'vllm' to serve with; install vLLM 0.22 or newer" in fleet.said()
        assert "starting" not in fleet.said()


def test_the_end_of_a_log_is_of_this_run(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "tier-0.log").write_text("what an earlier run said\n")
    crash = {"STAND_IN_CRASHES": "99", "STAND_IN_COUNT": str(tmp_path / "count")}
    with up(tmp_path, config(1), "--no-gateway", **crash) as fleet:
        assert fleet.process.wait(SECONDS) == 1
        assert "CUDA out of memory" in fleet.said()
        assert "earlier run" not in fleet.said()
    assert "earlier run" in (tmp_path / "logs" / "tier-0.log").read_text()


def kept(folder: Path, **env: str) -> Job:
    """A stand-in as `up` would keep it, for tests that must know what happens when."""
    port = free_port()
    flags = f"--model m --served-model-name m --host 127.0.0.1 --port {port}"
    flags += " --kv-cache-memory-bytes 1 --gpu-memory-utilization 0.1"
    return Job(
        name="tier-0",
        argv=(sys.executable, STAND_IN, *flags.split()),
        env=os.environ | env,
        log=folder / "log",
        host="127.0.0.1",
        port=port,
        path="/health",
        lists="m",
        key=None,
        start_seconds=SECONDS,
        stop_seconds=5,
    )


def test_whoever_takes_a_dead_servers_port_is_waited_for(tmp_path: Path) -> None:
    """Not the end of the others: the port is taken and given back in the very moments that the note speaks of."""
    told = tmp_path / "told"
    job = kept(tmp_path, STAND_IN_TOLD=str(told))
    stop, seen = asyncio.Event(), []
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)

    def note(_: str, event: str, detail: str) -> None:
        seen.append(f"{event} {detail}")
        if event == "ready" and len(seen) == 2:
            os.kill(int(told.read_text().split()[3]), signal.SIGKILL)
        elif event == "died" and "ended with" in detail:
            taken.bind(("127.0.0.1", job.port))
            taken.listen()
        elif event == "died":
            taken.close()
        elif event == "ready":
            stop.set()

    asyncio.run(supervise.run([job], None, backoff=Backoff(0.1, 0.1), note=note, stop=stop, hangup=asyncio.Event()))
    assert [line.split()[0] for line in seen] == [
        "starting", "ready", "died", "died", "starting", "ready", "stopping", "stopped"
    ]  # fmt: skip
    assert f"cannot listen on 127.0.0.1:{job.port}" in seen[3]


@pytest.mark.parametrize(("steady_seconds", "pauses"), [(0.0, ["0.1", "0.1", "0.1"]), (1e9, ["0.1", "0.2", "0.4"])])
def test_a_server_that_ran_for_long_is_started_again_without_the_delay_of_earlier_deaths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steady_seconds: float, pauses: list[str]
) -> None:
    monkeypatch.setattr(supervise, "STEADY_SECONDS", steady_seconds)
    told = tmp_path / "told"
    job, stop, seen = kept(tmp_path, STAND_IN_TOLD=str(told)), asyncio.Event(), []

    def note(_: str, event: str, detail: str) -> None:
        if event == "died":
            seen.append(detail.split()[-2])
        if event == "ready" and len(seen) < 3:
            os.kill(int(told.read_text().split()[-1]), signal.SIGKILL)
        elif event == "ready":
            stop.set()

    asyncio.run(supervise.run([job], None, backoff=Backoff(0.1, 9), note=note, stop=stop, hangup=asyncio.Event()))
    assert seen == pauses


def test_a_server_that_serves_another_model_is_not_ready(tmp_path: Path) -> None:
    job = replace(kept(tmp_path), lists="another", start_seconds=3.0, stop_seconds=0.1)
    stop, backoff = asyncio.Event(), Backoff(0.1, 0.1)

    def note(_: str, event: str, __: str) -> None:
        if event == "ready":
            stop.set()

    with pytest.raises(supervise.StartFailed, match="tier-0 was not ready after 3 s"):
        asyncio.run(supervise.run([job], None, backoff=backoff, note=note, stop=stop, hangup=asyncio.Event()))


def test_whoever_waits_hears_how_long_and_what_the_log_says_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "TELL_SECONDS", 0.0)
    job, stop, seen = kept(tmp_path, STAND_IN_START="300"), asyncio.Event(), []

    def note(_: str, event: str, detail: str) -> None:
        seen.append(f"{event} {detail}")
        if event == "waiting" and "starting m on GPU" in detail:
            stop.set()

    asyncio.run(supervise.run([job], None, backoff=Backoff(0.1, 0.1), note=note, stop=stop, hangup=asyncio.Event()))
    assert any(re.match(r"waiting \d+ s: starting m on GPU", line) for line in seen)


@pytest.mark.parametrize("given", [True, False])
def test_the_api_key_goes_through_the_environment_and_never_through_the_command_line(
    tmp_path: Path, given: bool
) -> None:
    written = config(1)
    written["tiers"][0]["engine"]["api_key"] = "env:TIER_KEY"
    key = {"TIER_KEY": "opensesame"} if given else {"TIER_KEY": ""}
    with up(tmp_path, written, "--no-gateway", **key) as fleet:
        if not given:
            assert fleet.process.wait(SECONDS) == 1
            assert "tier tier-0: the environment variable TIER_KEY is empty" in fleet.said()
            return
        until(lambda: "tier-0: ready" in fleet.said(), "readiness")
        url = written["tiers"][0]["engine"]["url"]
        assert httpx2.get(f"{url}/models", timeout=PATIENCE).status_code == 401
        assert (
            httpx2.get(f"{url}/models", headers={"Authorization": "Bearer opensesame"}, timeout=PATIENCE).status_code
            == 200
        )
        assert b"opensesame" not in Path(f"/proc/{fleet.pids()[0]}/cmdline").read_bytes()
