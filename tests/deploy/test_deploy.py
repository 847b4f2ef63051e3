"""What lies in deploy/, held against schemas, against itself and against the planner. No cluster, no Docker daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from gateway import checking, launching
from gateway import config as configs
from tests.faults.gateway import ROOT

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
COMPOSE = DEPLOY / "compose" / "compose.yaml"
VERSION = "1.34"
SECRETS = {"CONFGATE_CLIENT_KEY": "a", "CONFGATE_ADMIN_KEY": "b", "CONFGATE_TIER_KEY": "c"}

Document = dict[str, Any]


def documents() -> list[Document]:
    """Everything that kustomize would apply as it is."""
    wanted = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [document for name in wanted for document in yaml.safe_load_all((KUBERNETES / name).read_text())]


def of_kind(kind: str) -> list[Document]:
    return [document for document in documents() if document["kind"] == kind]


def workloads() -> list[Document]:
    return of_kind("Deployment") + of_kind("StatefulSet")


def label(document: Document) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.mark.parametrize("document", documents(), ids=label)
def test_every_manifest_is_what_its_schema_allows_and_no_more(document: Document) -> None:
    kubernetes_validate.validate(document, VERSION, strict=True)


def test_the_schemas_do_refuse() -> None:
    broken = yaml.safe_load(yaml.safe_dump(of_kind("Deployment")[0]))
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSION, strict=True)


def test_kustomization_lists_every_file_there_is() -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    files = {*listed["resources"], *(name for made in listed["configMapGenerator"] for name in made["files"])}
    assert files | {"kustomization.yaml"} == {path.name for path in KUBERNETES.iterdir()}
    used = {c["image"] for w in workloads() for c in w["spec"]["template"]["spec"]["containers"]}
    assert used == {image["name"] for image in listed["images"]}


def test_services_budgets_and_scalers_select_what_is_there() -> None:
    pods = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads()}
    for workload in workloads():
        assert workload["spec"]["selector"]["matchLabels"].items() <= pods[workload["metadata"]["name"]].items()
    for chosen in [s["spec"]["selector"] for s in of_kind("Service")] + [
        b["spec"]["selector"]["matchLabels"] for b in of_kind("PodDisruptionBudget")
    ]:
        assert any(chosen.items() <= labels.items() for labels in pods.values()), chosen
    for scaler in of_kind("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in {(w["kind"], w["metadata"]["name"]) for w in workloads()}
    for policy in of_kind("NetworkPolicy"):
        chosen = policy["spec"]["podSelector"].get("matchLabels", {})
        assert any(chosen.items() <= labels.items() for labels in pods.values()), chosen
    names = {
        port["name"] for w in workloads() for c in w["spec"]["template"]["spec"]["containers"] for port in c["ports"]
    }
    for service in of_kind("Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= names


def test_every_pod_is_locked_down_probed_and_bounded() -> None:
    for workload in workloads():
        pod = workload["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= {
                *(volume["name"] for volume in pod["volumes"]),
                *(claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())),
            }
        if workload["kind"] == "StatefulSet":
            assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        else:
            assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True


def test_pods_are_given_longer_to_end_than_the_gateway_takes() -> None:
    grace = configs.read(KUBERNETES / "cascade.yaml").server.grace_seconds
    (gateway,) = of_kind("Deployment")
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace
    spoken = yaml.safe_load(COMPOSE.read_text())["services"]["gateway"]["stop_grace_period"]
    assert int(spoken.removesuffix("s")) > configs.read(COMPOSE.with_name("cascade.yaml")).server.grace_seconds


@pytest.mark.parametrize("room", ["compose", "kubernetes"])
def test_the_cascade_is_good_and_reads_the_secrets_that_are_given(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DEPLOY / room / "cascade.yaml"
    checking.check(file, live=False)
    wanted = set(re.findall(r"env:(\w+)", file.read_text()))
    if room == "compose":
        given = yaml.safe_load(COMPOSE.read_text())["services"]["gateway"]["environment"]
    else:
        given = {e["name"] for e in of_kind("Deployment")[0]["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert wanted == set(given)


def servers_in(room: str) -> Iterator[tuple[str, list[str]]]:
    """Host name and flags of each model server."""
    if room == "compose":
        for name, service in yaml.safe_load(COMPOSE.read_text())["services"].items():
            if service["image"] == "confidence-gateway-vllm":
                yield name, service["command"]
    else:
        for workload in of_kind("StatefulSet"):
            yield workload["metadata"]["name"], workload["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize("room", ["compose", "kubernetes"])
def test_model_servers_have_the_flags_that_the_plan_says(room: str) -> None:
    launch = launching.plan(configs.read(DEPLOY / room / "cascade.yaml"), dry=True, logs=Path("logs"), environ={})
    planned = {server.host: [*server.argv[2:]] for server in launch.servers}
    for flags in planned.values():
        flags[flags.index("--host") + 1] = "0.0.0.0"  # a container listens on its own address, whatever that is
    assert dict(servers_in(room)) == planned


def test_compose_names_only_what_it_defines() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())
    services = compose["services"]
    assert {"gateway", "postgres", "prometheus", "grafana"} <= services.keys()
    for name, service in services.items():
        for wanted in service.get("depends_on", ()):
            assert wanted in services, name
            condition = service["depends_on"][wanted]["condition"] if isinstance(service["depends_on"], dict) else ""
            assert condition != "service_healthy" or "healthcheck" in services[wanted]
        assert set(service.get("secrets", ())) <= compose["secrets"].keys(), name
        assert set(service["networks"]) <= compose["networks"].keys(), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (COMPOSE.parent / source).exists() if source.startswith(".") else source in compose["volumes"], (
                volume
            )
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), "reached from outside only on purpose"
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    text = COMPOSE.read_text()
    variables = {*re.findall(r"\$\{(\w+)", text), *(secret["environment"] for secret in compose["secrets"].values())}
    assert variables == set(re.findall(r"^(\w+)=$", (COMPOSE.parent / "example.env").read_text(), re.M))


def has_compose() -> bool:
    docker = shutil.which("docker")
    return bool(docker) and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="needs docker compose")
def test_docker_compose_accepts_the_file() -> None:
    env = SECRETS | {"POSTGRES_PASSWORD": "d", "GRAFANA_PASSWORD": "e", "PATH": "/usr/bin:/bin:/usr/local/bin"}
    told = subprocess.run(["docker", "compose", "-f", COMPOSE, "config", "-q"], env=env, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_prometheus_scrapes_what_compose_runs() -> None:
    compose = yaml.safe_load(COMPOSE.read_text())["services"]
    for job in yaml.safe_load((COMPOSE.parent / "prometheus.yml").read_text())["scrape_configs"]:
        for target in job["static_configs"][0]["targets"]:
            assert target.split(":")[0] in compose


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").iterdir()), ids=lambda unit: unit.name)
@pytest.mark.parametrize("spoilt", [False, True])
def test_systemd_accepts_the_units_and_would_refuse_a_wrong_one(unit: Path, spoilt: bool, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = unit.read_text().replace("/opt/confgate/bin/confgate", sys.executable)
    if spoilt:
        text = text.replace("Type=exec", "Type=exek")
    (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", tmp_path / unit.name]
    told = subprocess.run(command, capture_output=True, text=True)
    assert ("exek" in told.stderr) == spoilt
    assert spoilt or told.stderr == "", told.stderr


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").iterdir()), ids=lambda unit: unit.name)
def test_units_run_commands_that_there_are(unit: Path) -> None:
    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    _, command, *options = line.removeprefix("ExecStart=").split()
    told = subprocess.run(
        [sys.executable, "-m", "gateway", command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert told.returncode == 0
    assert all(option in told.stdout for option in options if option.startswith("--"))


@pytest.mark.parametrize("file", sorted((DEPLOY / "docker").iterdir()), ids=lambda file: file.name)
def test_images_copy_what_is_there_and_run_as_nobody_special(file: Path) -> None:
    lines = file.read_text().splitlines()
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in kept, f"{source} is ignored"
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert int(users[-1].split(":")[0]) >= 10000


def test_the_pocket_cascade_that_is_watched_is_the_one_that_was_measured() -> None:
    measured, watched = (
        yaml.safe_load((DEPLOY / "pocket" / f"{name}.yaml").read_text()) for name in ("cascade", "live")
    )
    assert watched["tiers"] == measured["tiers"]
    assert watched["policies"]["default"] == measured["policies"]["default"]
    assert watched["monitors"].items() >= measured["monitors"].items()
    config = configs.read(DEPLOY / "pocket/live.yaml")
    assert None not in (config.admin, config.store, config.exploration, config.rollout, config.monitors.refit)
