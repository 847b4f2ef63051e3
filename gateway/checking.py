"""`confgate check`: what a configuration file says, and whether everything it names is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibrators import artifact as artifacts
from gateway import confidence
from gateway import config as configs
from gateway.certificate import certificate_fault
from gateway.config import Config, Step, TierEntry
from gateway.errors import ConfigError
from gateway.http.auth import Keyring
from gateway.monitor import reference as references
from gateway.monitor import tested
from gateway.places import Place
from gateway.policy import first_tokens
from gateway.snapshot import check_early_abort, early_abort, open_cascade, source

Row = dict[str, Any]


def check(path: Path, *, live: bool) -> dict[str, list[Row]]:
    """Rows about tiers, policies and certificates. Raises ConfigError with one line per mistake.

    live: open the engines too, as serving would.
    """
    text = configs.text_of(path)
    config = configs.parse(text, path)
    mistakes: list[str] = []
    tiers: list[Row] = []
    labels: dict[str, str] = {}
    for position, entry in enumerate(config.tiers):
        row: Row = {"tier": entry.name, "engine": entry.engine.kind, "calibrator": "-", "prefix_calibrator": "-"}
        row["withheld"] = None
        for key, label in (("calibrator", label_of), ("prefix_calibrator", prefix_label_of)):
            try:
                row[key] = label(entry, config)
            except (artifacts.ArtifactError, ConfigError) as error:
                line, where = configs.locate(text, path, ("tiers", position, key))
                mistakes.append(f"{path}:{line}: {where}: {error}")
                row["withheld"] = str(error)
        if row["calibrator"] != "-":
            labels[entry.name] = row["calibrator"]
        tiers.append(row)
    if mistakes and config.on_bad_artifact == "refuse":
        raise ConfigError("\n".join(mistakes))
    for key, load in (("reference", references.load), ("card", tested.load)):
        there = getattr(config.monitors, key)
        try:
            if there is not None:
                load(there)
        except ConfigError as error:
            line, where = configs.locate(text, path, ("monitors", key))
            raise ConfigError(f"{path}:{line}: {where}: {error}") from None
    certificates = standings(config, labels)
    bad = [one for one in certificates if not one["holds"] and all(s.tier in labels for s in steps_of(config, one))]
    if bad and config.on_bad_certificate == "refuse":
        told = []
        for one in bad:
            line, where = configs.locate(text, path, ("policies", one["policy"], "certificate"))
            told.append(f"{path}:{line}: {where}: {one['why']}")
        raise ConfigError("\n".join(told))
    for name, why in (asyncio.run(open_once(config)) if live else {}).items():
        next(row for row in tiers if row["tier"] == name)["withheld"] = why
    return {"tiers": tiers, "policies": policies(config), "certificates": certificates}


def label_of(entry: TierEntry, config: Config) -> str:
    """The calibrator's id and hash, "none" without one. Raises ArtifactError, or ConfigError for an unknown feature and
    for what a policy wants of it that it has not learned."""
    if entry.calibrator is None:
        return "none"
    artifact = loaded(Place(entry.name, entry.name, entry.calibrator), config)
    known = early_abort(artifact)
    check_early_abort(config, entry.name, artifact.label, known, None if known is None else source(artifact))
    return artifact.label


def prefix_label_of(entry: TierEntry, config: Config) -> str:
    """The same of what judges first tokens, "none" without one."""
    if entry.prefix_calibrator is None:
        return "none"
    place = Place(first_tokens(entry.name), entry.name, entry.prefix_calibrator, first=True)
    return loaded(place, config).label


def loaded(place: Place, config: Config) -> artifacts.Artifact:
    """Raises ArtifactError, one for the other place's too, or ConfigError for an unknown feature."""
    artifact = artifacts.load(place.calibrator, config.signers)
    place.check(artifact)
    confidence.needs(artifact.features)
    artifact.calibrator()
    return artifact


async def open_once(config: Config) -> dict[str, str]:
    """Which tiers would run without their calibrator, and why. Raises ConfigError where serving would not start."""
    Keyring.of(config.keys)
    Keyring.of_admins(config)
    async with open_cascade(config) as snapshot:
        return dict(snapshot.withheld)


def standings(config: Config, labels: Mapping[str, str]) -> list[Row]:
    """Every certificate against the steps of its policy and the calibrators' files. labels: of the tiers whose
    calibrator can be read."""
    return [
        {
            "policy": name,
            "holds": not (why := certificate_fault(entry.certificate, served)),
            "why": why,
            "issued": str(entry.certificate.issued),
            "promises": [str(one) for one in entry.certificate.promises],
            "chosen": entry.certificate.chosen,
            "data": f"{entry.certificate.data.n:,} questions of {entry.certificate.data.split}, "
            f"sha256 {entry.certificate.data.sha256[:12]}",
            "assumptions": list(entry.certificate.assumptions),
        }
        for name, entry in config.policies.items()
        if entry.certificate is not None
        for served in [
            [(step.tier, step.accept_at, labels.get(step.tier, "one that cannot be read")) for step in entry.steps]
        ]
    ]


def steps_of(config: Config, row: Row) -> Sequence[Step]:
    return config.policies[row["policy"]].steps


def told(row: Row) -> str:
    """One certificate in words."""
    head = f"certificate of {row['policy']}, issued {row['issued']} on {row['data']}"
    if not row["holds"]:
        return f"{head}: withdrawn: {row['why']}"
    parts = [*row["promises"], f"chosen: {row['chosen']}", f"as long as {'; '.join(row['assumptions'])}"]
    return "\n".join([f"{head}: holds", *(f"  {part}" for part in parts)])


def policies(config: Config) -> list[Row]:
    return [
        {
            "policy": name,
            "steps": " -> ".join(
                step.tier if step.accept_at is None else f"{step.tier} (p >= {step.accept_at:g})"
                for step in entry.steps
            )
            or " | ".join(f"{part.share:.2%} {part.policy}" for part in entry.mix),
            "serve_fallback": entry.serve_fallback if entry.steps else None,
            "abstain_below": entry.abstain_below,
        }
        for name, entry in config.policies.items()
    ]
