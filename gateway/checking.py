"""`confgate check`: what a configuration file says, and whether everything it names is there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from calibrators import artifact as artifacts
from gateway import confidence
from gateway import config as configs
from gateway.config import Config, TierEntry
from gateway.errors import ConfigError
from gateway.http.auth import Keyring
from gateway.snapshot import open_cascade

Row = dict[str, Any]


def check(path: Path, *, live: bool) -> dict[str, list[Row]]:
    """Rows about tiers and policies. Raises ConfigError with one line per mistake.

    live: open the engines too, as serving would.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    config = configs.read(path)
    mistakes: list[str] = []
    tiers: list[Row] = []
    for position, entry in enumerate(config.tiers):
        row: Row = {"tier": entry.name, "engine": entry.engine.kind, "calibrator": "-", "withheld": None}
        try:
            row["calibrator"] = label_of(entry)
        except (artifacts.ArtifactError, ConfigError) as error:
            line, where = configs.locate(text, path, ("tiers", position, "calibrator"))
            mistakes.append(f"{path}:{line}: {where}: {error}")
            row["withheld"] = str(error)
        tiers.append(row)
    if mistakes and config.on_bad_artifact == "refuse":
        raise ConfigError("\n".join(mistakes))
    for name, why in (asyncio.run(open_once(config)) if live else {}).items():
        next(row for row in tiers if row["tier"] == name)["withheld"] = why
    return {"tiers": tiers, "policies": policies(config)}


def label_of(entry: TierEntry) -> str:
    """The calibrator's id and hash, "none" without one. Raises ArtifactError, or ConfigError for an unknown feature."""
    if entry.calibrator is None:
        return "none"
    artifact = artifacts.load(entry.calibrator)
    confidence.needs(artifact.features)
    artifact.calibrator()
    return artifact.label


async def open_once(config: Config) -> dict[str, str]:
    """Which tiers would run without their calibrator, and why. Raises ConfigError where serving would not start."""
    Keyring.of(config.keys)
    Keyring.of_admins(config)
    async with open_cascade(config) as snapshot:
        return dict(snapshot.withheld)


def policies(config: Config) -> list[Row]:
    return [
        {
            "policy": name,
            "steps": " -> ".join(
                step.tier if step.accept_at is None else f"{step.tier} (p >= {step.accept_at:g})"
                for step in entry.steps
            ),
            "serve_fallback": entry.serve_fallback,
            "abstain_below": entry.abstain_below,
        }
        for name, entry in config.policies.items()
    ]
