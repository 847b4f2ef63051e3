"""What holds for every test."""

from hypothesis import HealthCheck, settings

# An example is no stopwatch: a machine that stands still for a second in one of them has found nothing.
settings.register_profile(
    "unhurried", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
settings.load_profile("unhurried")
