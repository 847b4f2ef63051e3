"""The command, run as users run it."""

from __future__ import annotations

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import (
    PATIENCE,
    ROOT,
    Gateway,
    cascade,
    confgate,
    confgate_ends,
    running,
    until,
    write_artifact,
)
from tests.faults.upstream import Upstream


def write(folder: Path, url: str = "http://127.0.0.1:1/v1", **changes: object) -> str:
    path = folder / "cascade.yaml"
    path.write_text(json.dumps(cascade(url, **changes), indent=1))
    return str(path)


def test_help_costs_less_than_a_third_of_a_second_of_cpu() -> None:
    """CPU time, because a shared machine's clock says nothing about us; on a slower one as often a bare Python's."""

    def help_() -> None:
        code, out, _ = confgate_ends("--help")
        assert code == 0
        assert all(command in out for command in ("serve", "check", "route", "collect", "fit", "demo", "sweep", "card"))

    def bare() -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True)

    assert min(cpu_seconds(help_) for _ in range(3)) < max(0.3, 6 * cpu_seconds(bare))


def cpu_seconds(act: Callable[[], None]) -> float:
    """Of the processes that it runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    act()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_gateway_imports_no_torch() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'rich') if m in sys.modules]"
    program = f"import gateway.serving, sys; print({heavy})"
    told = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


def test_check_prints_what_the_file_says(tmp_path: Path) -> None:
    label = write_artifact(tmp_path / "cheap.json")
    code, out, _ = confgate_ends("check", "-c", write(tmp_path), "--json")
    assert code == 0
    told = json.loads(out)
    assert told["tiers"][0]["calibrator"] == label
    assert told["policies"][0]["steps"] == "cheap (p >= 0.8) -> dear"


def test_check_names_file_and_line_of_a_missing_artefact(tmp_path: Path) -> None:
    path = write(tmp_path)
    code, _, err = confgate_ends("check", "-c", path)
    assert code == 1
    line = next(n for n, row in enumerate(Path(path).read_text().splitlines(), 1) if '"calibrator"' in row)
    assert f"cascade.yaml:{line}: tiers[0].calibrator: " in err
    assert "cheap.json" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("span", ["answer", "prefix-3"])
def test_check_tells_what_judges_first_tokens_and_refuses_what_cannot(span: str, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    label = write_artifact(tmp_path / "first.json", span=span)
    tiers = cascade("http://127.0.0.1:1/v1")["tiers"]
    tiers[0]["prefix_calibrator"] = "first.json"
    path = write(tmp_path, tiers=tiers)
    code, out, err = confgate_ends("check", "-c", path, "--json")
    if span == "answer":
        line = next(n for n, row in enumerate(Path(path).read_text().splitlines(), 1) if '"prefix_calibrator"' in row)
        assert (code, out) == (1, "")
        assert f"cascade.yaml:{line}: tiers[0].prefix_calibrator: {label} was fitted on whole answers" in err
    else:
        assert code == 0
        assert json.loads(out)["tiers"][0]["prefix_calibrator"] == label


@pytest.mark.parametrize("key", ["reference", "card"])
def test_check_names_what_monitors_cannot_read_with_its_line(key: str, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    (tmp_path / "rubbish").write_text("{}")
    path = Path(write(tmp_path, monitors={key: "rubbish"}))
    line = next(n for n, row in enumerate(path.read_text().splitlines(), 1) if "rubbish" in row)
    code, _, err = confgate_ends("check", "-c", str(path))
    assert code == 1
    assert err.startswith(f"{path}:{line}: monitors.{key}: ")


def test_check_live_finds_an_artefact_of_another_model(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json", model="another")
    with Upstream() as upstream:
        path = write(tmp_path, upstream.url)
        assert confgate_ends("check", "-c", path)[0] == 0
        code, _, err = confgate_ends("check", "-c", path, "--live")
    assert code == 1
    assert "fitted on 'another', served 'small'" in err


def test_check_live_says_which_admins_secret_is_missing(tmp_path: Path) -> None:
    keys = {"allow_anonymous": True, "admins": [{"name": "root", "key": "env:NO_SUCH_KEY"}]}
    write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        code, _, err = confgate_ends("check", "-c", write(tmp_path, upstream.url, keys=keys), "--live")
    assert (code, "NO_SUCH_KEY is not set" in err) == (1, True)


def test_check_prints_the_schema() -> None:
    code, out, _ = confgate_ends("check", "--schema")
    assert code == 0
    assert "policies" in json.loads(out)["properties"]


def test_route_shows_the_way_to_the_answer(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with Upstream() as upstream:
        path = write(tmp_path, upstream.url)
        code, out, err = confgate_ends("route", json.dumps({"small": {"nats": -0.8}}), "-c", path, "--json")
        assert code == 0, err
        assert [hop["reason"] for hop in json.loads(out)["hops"]] == ["unsure", "last"]
        code, out, _ = confgate_ends("route", "hello", "-c", path)
        assert "served by cheap: confident" in out
        code, _, err = confgate_ends("route", "hello", "-c", path, "--model", "atuo")
        assert (code, "did you mean 'auto'" in err) == (1, True)


def test_serve_refuses_a_bad_file_with_its_line(tmp_path: Path) -> None:
    path = Path(write(tmp_path))
    path.write_text(path.read_text().replace('"accept_at"', '"acept_at"', 1))
    code, _, err = confgate_ends("serve", "-c", str(path))
    assert code == 1
    assert "no key 'acept_at'; did you mean 'accept_at'?" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["serve", "check"])
def test_a_file_that_is_not_utf_8_is_named(command: str, tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_bytes(b"# gr\xfcn\n")
    code, out, err = confgate_ends(command, "-c", str(path))
    assert (code, out) == (1, "")
    assert err.startswith(f"cannot read the configuration {path}: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "environment"), [(("--log-level", "loud"), {}), ((), {"CONFGATE_LOG_LEVEL": "loud"})]
)
def test_a_log_level_that_does_not_exist_is_answered_with_those_that_do(
    given: tuple[str, ...], environment: dict[str, str], tmp_path: Path
) -> None:
    code, out, err = confgate_ends("serve", "-c", write(tmp_path), *given, **environment)
    assert (code, out) == (2, "")
    assert all(level in err for level in ("debug", "info", "warning", "error"))
    assert "Traceback" not in err
    wanted = ("serve", "-c", str(tmp_path / "nowhere.yaml"), "--log-level", "WARNING")
    assert confgate_ends(*wanted)[0] == 1


def test_serve_says_which_port_is_taken_and_what_to_do(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    with socket.socket() as taken, Upstream() as upstream:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = confgate_ends("serve", "-c", write(tmp_path, upstream.url), "--port", str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is in use" in err
    assert "--port" in err
    assert "Traceback" not in err


def test_serve_says_which_secret_is_missing(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    path = write(tmp_path, keys={"clients": [{"name": "alice", "key": "env:NO_SUCH_KEY"}]})
    code, _, err = confgate_ends("serve", "-c", path)
    assert (code, "NO_SUCH_KEY is not set" in err) == (1, True)


def test_a_bad_artefact_stops_the_start_or_costs_the_confidence(tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json", model="another")
    with Upstream() as upstream:
        code, _, err = confgate_ends("serve", "-c", write(tmp_path, upstream.url))
        assert code == 1
        assert "on_bad_artifact" in err
        with running(tmp_path, cascade(upstream.url, on_bad_artifact="escalate")) as gateway:
            told = httpx2.post(
                f"{gateway.url}/v1/chat/completions", json=ask(route={"debug": True}), timeout=PATIENCE
            ).json()
            assert told["route"]["hops"][0]["null_reason"] == "uncalibrated"
            assert told["route"]["tier"] == "dear"
            assert (
                'calibrator_withheld{tier="cheap"} 1.0' in httpx2.get(f"{gateway.url}/metrics", timeout=PATIENCE).text
            )
            assert gateway.logged(lambda line: "another" in line.get("why", ""))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_request_in_flight_end(stop: signal.Signals, tmp_path: Path) -> None:
    write_artifact(tmp_path / "cheap.json")
    answers: list[httpx2.Response] = []
    with Upstream() as upstream, running(tmp_path, cascade(upstream.url)) as gateway:

        def post() -> None:
            answers.append(
                httpx2.post(f"{gateway.url}/v1/chat/completions", json=ask({"gate": "end"}), timeout=PATIENCE)
            )

        asking = threading.Thread(target=post)
        asking.start()
        until(lambda: upstream.asked("small"))
        gateway.process.send_signal(stop)
        until(lambda: refuses(gateway))
        upstream.opened.add("end")
        asking.join()
        assert gateway.process.wait(timeout=PATIENCE) == 0
    assert answers[0].status_code == 200


def refuses(gateway: Gateway) -> bool:
    """New connections."""
    try:
        return not httpx2.get(f"{gateway.url}/health", timeout=PATIENCE)
    except httpx2.TransportError:
        return True


def test_a_command_of_a_package_that_is_not_there_says_what_to_install() -> None:
    process = confgate("card", "--help")
    _, err = process.communicate(timeout=2 * PATIENCE)
    if process.returncode:
        assert "pip install" in err
        assert "Traceback" not in err
