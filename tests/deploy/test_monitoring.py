"""Alert rules and the dashboard, held against what the code exports."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.monitor.metrics import MonitorMetrics
from gateway.monitor.rollout_metrics import RolloutMetrics
from gateway.monitor.slo import PAIRS, Slos
from gateway.telemetry import SECONDS, Telemetry

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "compose/rules/confidence-gateway.yml"
DASHBOARD = DEPLOY / "grafana/confidence-gateway.json"
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
SERIES = re.compile(r"confidence_gateway[a-z0-9_:]*")
LABELLED = re.compile(r"(confidence_gateway[a-z0-9_:]*)\{([^}]*)\}")


def exported() -> dict[str, set[str]]:
    """Every series' name, and the labels it has."""
    telemetry = Telemetry()
    MonitorMetrics(telemetry.registry)
    RolloutMetrics(telemetry.registry)
    found = {}
    for collector, names in telemetry.registry._collector_to_names.items():
        for family in collector.describe():
            told = family if hasattr(family, "_labelnames") else collector  # our own collectors tell whole families
            for suffix in SUFFIXES[family.type]:
                found[family.name + suffix] = {*told._labelnames, *({"le"} if suffix == "_bucket" else ())}  # type: ignore[union-attr]
        assert names
    return found


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    targets = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    return [rule["expr"] for rule in rules()] + targets


def test_every_series_that_is_asked_for_is_exported() -> None:
    known = exported().keys() | {rule["record"] for rule in rules() if "record" in rule}
    asked = {name for text in expressions() for name in SERIES.findall(text)}
    assert asked
    assert asked - known == set()


def test_every_label_that_is_asked_for_is_there() -> None:
    known = exported()
    for text in expressions():
        for name, matchers in LABELLED.findall(text):
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name], text


def test_limits_in_the_rules_are_those_of_the_code() -> None:
    slos = Slos()
    assert slos.fast_seconds in SECONDS
    by_name = {rule["alert"]: rule["expr"] for rule in rules() if "alert" in rule}
    assert f'le="{slos.fast_seconds}"' in by_name["LatencyBurnsFast"]
    for alert, objective in (("AvailabilityBurnsFast", "availability"), ("LatencyBurnsFast", "latency")):
        budget = f'scalar(max(confidence_gateway_slo_budget{{objective="{objective}"}}))'
        factors = {factor.split("*")[0].strip() for factor in by_name[alert].split("> ")[1:] if budget in factor}
        assert factors <= {f"{pair.burn:g}" for pair in PAIRS}
        assert by_name[alert].count("> ") == by_name[alert].count(budget), "no limit but the budget that is exported"


def test_every_alert_says_how_urgent_it_is_and_what_happened() -> None:
    for rule in rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's package prometheus")
def test_promtool_takes_rules_and_every_expression(tmp_path: Path) -> None:
    panels = [text for text in expressions() if text]
    made = {"groups": [{"name": "panels", "rules": [{"record": f"a:b{n}", "expr": e} for n, e in enumerate(panels)]}]}
    (tmp_path / "panels.yml").write_text(yaml.safe_dump(made))
    for file in (RULES, tmp_path / "panels.yml"):
        done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
