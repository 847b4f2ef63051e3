"""Every alert fires on what it is for and keeps silent otherwise, by Prometheus' own reckoning (promtool)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from gateway.monitor.slo import Slos
from tests.deploy.test_monitoring import RULES

Series = dict[str, str]
P = "confidence_gateway"
HOURS = 2  # of made-up series, a value a minute

TIER, PLACE = '{tier="small"}', '{policy="default",tier="small"}'


def flat(series: str, loud: float, quiet: float) -> tuple[Series, Series]:
    return {f"{P}_{series}": f"{loud}x120"}, {f"{P}_{series}": f"{quiet}x120"}


def rising(by: dict[str, tuple[float, float]]) -> tuple[Series, Series]:
    """Counters, and by how much each rises in a minute."""
    loud, quiet = ({f"{P}_{name}": f"0+{each[at]}x120" for name, each in by.items()} for at in (0, 1))
    return loud, quiet


# What is loud, and what looks most like it and is quiet.
ALERTS: dict[str, tuple[Series, Series]] = {
    "CalibrationBroken": flat('calibration_state{policy="default",state="broken"}', 1, 0),
    "TierOverconfident": flat('calibration_log_wealth{policy="default",tier="small",side="over"}', 5.4, 5.2),
    "TierUnderconfident": flat('calibration_log_wealth{policy="default",tier="small",side="under"}', 5.4, 5.2),
    "AcceptedErrorsAboveObjective": (
        {f"{P}_accepted_error_low": "0.06x120", f"{P}_accepted_error_objective": "0.05x120"},
        {f"{P}_accepted_error_low": "0.04x120", f"{P}_accepted_error_objective": "0.05x120"},
    ),
    "CertificateWithdrawn": flat('certificate_holds{policy="default"}', 0, 1),
    "LabelsNotRead": flat('alarms{kind="unread"}', 1, 0),
    "FitFailed": rising({'refits_total{outcome="failed"}': (1, 0), 'refits_total{outcome="started"}': (1, 1)}),
    "CalibratorWithheld": flat(f"calibrator_withheld{TIER}", 1, 0),
    "TrafficDrifted": flat(f"drifted{PLACE}", 1, 0),
    "SliceDrifted": flat('slice_drifted{policy="default",tier="small",slice="client a"}', 1, 0),
    "ManyOutOfDistribution": flat(f"out_of_distribution_share{PLACE}", 0.06, 0.04),
    "EvidenceMissing": rising({
        'null_confidence_total{tier="small",reason="no_evidence"}': (30, 10),
        'hops_total{tier="small",reason="confident"}': (100, 100),
    }),
    "AvailabilityBurnsFast": rising({
        'requests_total{status="503"}': (8, 0.5), 'requests_total{status="200"}': (92, 99),
        'requests_total{status="404"}': (0, 50),
    }),
    "LatencyBurnsFast": rising({
        'request_seconds_bucket{le="10.0"}': (20, 90), "request_seconds_count": (100, 100),
    }),
    "EscalationHigh": flat('slo_burning{objective="escalation",policy="default"}', 1, 0),
    "TierLeftAlone": flat(f"breaker_open{TIER}", 1, 0),
    "StoreDown": flat("store_up", 0, 1),
    "StoreBroken": flat("store_broken_total", 1, 0),
    "DecisionsDropped": rising({"dropped_decisions_total": (1, 0)}),
    "CalibratorRolledBack": rising({
        'rollout_steps_total{tier="small",action="rollback"}': (0.1, 0),
        'rollout_steps_total{tier="small",action="promote"}': (0, 0.1),
    }),
    "ServerIsAnother": flat(f"fingerprint_mismatch{TIER}", 1, 0),
    "AnotherModelAnswers": rising({f"other_model_hops_total{TIER}": (1, 0)}),
    "RolloutBroken": flat(f"rollout_broken{TIER}", 1, 0),
}  # fmt: skip


# What every gateway exports anyway.
BUDGETS = {
    f'{P}_slo_budget{{objective="{objective}",policy=""}}': f"{share:g}x120"
    for objective, share in Slos().budgets.items()
}


def case(name: str, series: Series, fires: float) -> dict[str, object]:
    told = [{"series": one, "values": values} for one, values in (BUDGETS | series).items()]
    expected = [{"labels": "{}", "value": fires}] if fires else []
    expr = f'count(ALERTS{{alertname="{name}",alertstate="firing"}})'
    return {
        "name": f"{name}, {'loud' if fires else 'quiet'}",
        "interval": "1m",
        "input_series": told,
        "promql_expr_test": [{"expr": expr, "eval_time": f"{HOURS}h", "exp_samples": expected}],
    }


def test_every_alert_is_tried() -> None:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule} == ALERTS.keys()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's package prometheus")
def test_alerts_fire_on_what_they_are_for_and_on_nothing_else(tmp_path: Path) -> None:
    tests = [case(name, series[0], 1) for name, series in ALERTS.items()]
    tests += [case(name, series[1], 0) for name, series in ALERTS.items()]
    file = tmp_path / "alerts.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
