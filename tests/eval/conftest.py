from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import settings

from eval.crossed import Crossed

# A busy machine is no failure; what must be fast has a test of its own.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def world() -> Callable[..., Crossed]:
    """Simulated models on simulated questions that share one difficulty."""
    return simulated


def simulated(
    n: int,
    seed: int,
    *,
    skills: Sequence[float] = (0.0, 1.0, 2.0),
    costs: Sequence[float] = (1.0, 4.0, 16.0),
    signal: float = 1.0,
) -> Crossed:
    """skills: log-odds of a right answer on a question of mean difficulty.  signal: 1, p knows all that can be known;
    0, p knows nothing but the model."""
    rng = np.random.default_rng(seed)
    skill = np.array(skills)
    margin = skill - 1.5 * rng.normal(size=(n, 1)) + rng.normal(size=(n, len(skill)))
    right = (rng.random(margin.shape) < 1 / (1 + np.exp(-margin))).astype(float)
    seen = signal * margin + (1 - signal) * (skill + 1.8 * rng.normal(size=margin.shape))
    tokens = rng.integers(50, 150, size=margin.shape) / 100
    return Crossed(
        tuple(f"s{seed}-{i}" for i in range(n)),
        tuple("abcdef"[: len(skill)]),
        1 / (1 + np.exp(-seen)),
        right,
        tokens * np.array(costs),
        tokens,
    )


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path, secret = tmp_path / "maker.pem", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(secret.private_bytes(*pkcs8))
    return path
