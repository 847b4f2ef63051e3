"""What people write about the monitors, `monitors:`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from gateway.monitor.slo import Slos
from gateway.written import Written, resolve


class Monitors(Written):
    """Whether calibration still holds."""

    reference: Path | None = Field(
        default=None,
        description="what traffic looked like when calibrators were trusted, from `confgate monitors --write`; "
        "without it nothing is said about drift",
    )
    rows: int = Field(default=500, ge=200, le=20_000, description="of each tier, in one look at drift")
    every_seconds: float = Field(default=15, ge=1, le=3600, description="between two looks, if there is something new")
    slos: Slos = Slos()

    @field_validator("reference")
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else resolve(path, info)
