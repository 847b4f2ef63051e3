from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from calibrators import artifact as artifacts
from gateway.monitor.uncalibrated import uncalibrated

LIVE = artifacts.load(Path(__file__).parents[2] / "deploy/pocket/calibrators/pocket-nano.json")
AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def test_it_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    nats = np.linspace(-12.0, -1e-6, 997)
    p = uncalibrated(LIVE, AT).calibrator().predict(nats[:, None])
    assert p == pytest.approx(np.exp(nats), abs=2e-5)


def test_it_can_be_kept_read_and_held_against_the_same_server(tmp_path: Path) -> None:
    made = uncalibrated(LIVE, AT)
    artifacts.dump(made, tmp_path / "raw.json")
    assert artifacts.load(tmp_path / "raw.json").sha256 == made.sha256
    assert made.fingerprint == LIVE.fingerprint
    with pytest.raises(artifacts.ArtifactMismatch):
        made.check({"model": "another"}, AT.date())
