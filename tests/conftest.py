"""What holds for every test."""

import os

from hypothesis import HealthCheck, settings

# An example is no stopwatch: a machine that stands still for a second in one of them has found nothing.
settings.register_profile(
    "unhurried", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
settings.load_profile("unhurried")

# A process that a test starts may keep what it compiled: hundreds of gateways start here, each of them as users' do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
