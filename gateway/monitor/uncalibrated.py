"""The other arm of a trial that asks what calibrating is worth: the raw confidence taken for a probability.

It is exp of the mean log-prob of the answer's tokens, what one would threshold without any labels. As an artefact it
goes on trial like all others, and the paired comparison says what it would do, on the same traffic; but it stays in
shadow unless a person makes a canary of it, and is never promoted by evidence: the trial ends when enough was learned.
"""

from __future__ import annotations

import datetime as dt

import numpy as np

from calibrators._linear import Linear
from calibrators.artifact import Artifact
from calibrators.base import Missing, Preprocess
from calibrators.isotonic import Isotonic

ID = "uncalibrated"
FEATURE = "lp_mean"
LEAST_NATS = -20.0
KNOTS = np.concatenate([np.linspace(LEAST_NATS, -6.0, 57), np.linspace(-6.0, 0.0, 601)[1:]])  # off by 1.3e-5 at most


def uncalibrated(beside: Artifact, created: dt.datetime) -> Artifact:
    """An artefact of the raw confidence, bound to the server of another one. It was fitted on nothing, and says so."""
    pre = Preprocess((FEATURE,), (Missing.REFUSE,), np.zeros(1), np.ones(1), np.array([LEAST_NATS]), np.zeros(1))
    curve = Isotonic(Linear(pre, np.ones(1), 0.0), KNOTS, np.minimum(np.exp(KNOTS), 1 - 1e-9))
    return Artifact.seal(
        id=ID,
        kind=Isotonic.kind,
        features=[FEATURE],
        params=curve.to_params(),
        fingerprint=beside.fingerprint,
        fit={
            "data_sha256": "0" * 64, "n": 0, "n_rare": 0, "objective": "none", "eta": 0, "seed": 0, "split": "none",
            "slices": [],
        },
        metrics={},
        validity={"conditions": ["a raw confidence: no probability is claimed to be true"], "checks": {}},
        created=created,
    )  # fmt: skip
