"""What a calibration card measured offline, as far as a live card repeats it: the shifts that were tested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError

Json = dict[str, Any]

SCHEMA = "confidence-gateway/calibration-card"


def load(path: Path) -> Json:
    """The twin of a card that was measured offline. Raises ConfigError."""
    try:
        twin = json.loads(path.read_bytes())
        if twin["schema"] != SCHEMA:
            raise ValueError(f"its schema is {twin['schema']!r}")
        found: Json = {
            "routing": twin["routing"],
            "distribution": twin["distributions"]["evaluation"],
            "created": twin["created"],
            "calibrators": {tier["tier"]: tier["calibrator"]["label"] for tier in twin["tiers"]},
            "wholes": [
                {name: whole[name] for name in ("name", "description")} | _measured(whole["region"])
                for whole in (twin["routed"], *twin["shifts"])
            ],
        }
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"{path} is no card.json of `confgate card` ({error})"
        raise ConfigError(f"{told}; write one, or leave monitors.card out") from None


def _measured(region: Mapping[str, Any]) -> Json:
    right = region["scores"]["accuracy"]
    return {
        "n": region["n"],
        "right": {name: right.get(name) for name in ("value", "low", "high")},
        "claimed": region["mean_p"],
        "failed": region.get("failed"),
        "insufficient": region.get("insufficient"),
    }
