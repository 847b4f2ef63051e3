"""`confgate refit`."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.cli import one_line
from gateway import cli
from gateway.cli import AsJson, ConfigFile
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from calibrators.artifact import Artifact
    from gateway.config import Config

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

WHO = "confgate refit"
SIGNING_KEY = "CONFGATE_SIGNING_KEY"  # as of `confgate sign`


class How(StrEnum):
    """The rungs of the ladder."""

    AUTO, INTERCEPT, PLATT, REFIT = "auto", "intercept", "platt", "refit"


@app.command()
def refit(
    tier: Annotated[str, typer.Option(help="Whose calibrator.")],
    config: ConfigFile = Path("cascade.yaml"),
    how: Annotated[
        How, typer.Option(help="Shift, shift and stretch, or fit anew. auto: what labels allow.")
    ] = How.AUTO,
    why: Annotated[str, typer.Option(help="For its lineage and the audit log.")] = "by hand",
    latest: Annotated[int, typer.Option(min=30, help="Labels, the newest.")] = 2_000,
    offer: Annotated[bool, typer.Option("--offer", help="Put it on trial by the configured rollout.")] = False,
    out: Annotated[Path | None, typer.Option(help="File for the artefact.")] = None,
    questions: Annotated[
        bool,
        typer.Option(
            "--questions",
            help="For another model: ask monitors.refit.questions of all tiers, and fit on their answers.",
        ),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(envvar=SIGNING_KEY, help="File of the private key to sign it with, Ed25519 in PEM."),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Name of a key whose labels are left out; again for more.")
    ] = None,
    nice: Annotated[int, typer.Option(min=0, max=19, help="Give way to other processes, by so much.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Put a calibrator right by the labels of what it decided; never puts anything in service.

    Exits with 1, and says why, when labels do not allow it or the child would be no better.

    Example:  confgate refit --tier small -c cascade.yaml --why "over-confident since Monday" --offer
    """
    os.nice(nice)
    with one_line():
        wanted = cli.read(config)
        if offer and wanted.rollout is None:
            raise ConfigError(f"{config} configures no rollout, so nothing can be offered; say where under rollout")
        if not offer and out is None:
            raise ConfigError("say what becomes of it: --offer, or --out FILE, or both")
        secret = signer(wanted, key, offer=offer)
        if questions:
            typer.echo(by_questions(config, wanted, tier, secret, why=why, offer=offer, out=out, as_json=as_json))
            return
        parent = worn(wanted, tier)
        from eval import refit as refitting  # here, so that a wrong name is told at once
        from eval.labels import check_cut
        from eval.monitors import brought
        from gateway.monitor.reference import NOTHING
        from gateway.monitor.rollouts import Rollouts

        store = cli.kept(config)
        try:
            found, left_out = refitting.rows(
                store,
                tier,
                parent,
                trusted=wanted.monitors.labels_by == "operators",
                drawn=wanted.monitors.labels_of == "explored",
                without=without or (),
            )
            check_cut(without or (), left_out)
            now = time.time()
            made = refitting.refit(
                parent, found, why=why, created=dt.datetime.fromtimestamp(now, dt.UTC), how=how, latest=latest
            )
            artifact = signed(made.artifact, secret)
            reference = brought(wanted, store, tier, parent, artifact, made.since, now) if offer else NOTHING
        finally:
            store.close()
        if out is not None:
            from calibrators import artifact as artifacts

            artifacts.dump(artifact, out)
        if offer and wanted.rollout is not None:
            fits_policies(wanted, tier, artifact)
            Rollouts(wanted.rollout.folder).offer(
                tier, artifact, who=WHO, at=now, why=f"{why}: {made}", labels=made.numbers,
                reference=reference,
            )  # fmt: skip
    told = {
        "artefact": made.artifact.label, "how": made.how, "labels": made.n, "rare": made.n_rare, "gain": made.gain,
        "se": made.se, "offered": offer, "signed": secret is not None, "notes": list(made.notes),
        "left_out": dict(left_out),
    }  # fmt: skip
    typer.echo(json.dumps(told) if as_json else f"{made}{'; offered' if offer else ''}")


def signer(config: Config, key: Path | None, *, offer: bool) -> bytes | None:
    """The private key; None where none is named. Raises ConfigError where what is offered would be refused for it."""
    from calibrators import artifact as artifacts

    secret = None if key is None else artifacts.read_private_key(key)
    if offer and config.signers:
        instead = (
            "or write it with --out FILE, sign that elsewhere (`confgate sign`) and offer it (`confgate rollout offer`)"
        )
        if secret is None:
            told = f"signers takes signed calibrators alone: name the key with --key FILE or {SIGNING_KEY}"
            raise ConfigError(f"{told}, {instead}")
        if artifacts.public_key(secret) not in config.signers:
            raise ConfigError(
                f"{key} is the key of {artifacts.public_key(secret)}, which is not under signers; {instead}"
            )
    return secret


def signed(artifact: Artifact, secret: bytes | None) -> Artifact:
    from calibrators import artifact as artifacts

    return artifact if secret is None else artifacts.sign(artifact, secret)


def fits_policies(config: Config, tier: str, artifact: Artifact) -> None:
    """Raises ConfigError for what every policy that gives its answers up early would refuse."""
    from gateway.snapshot import check_early_abort, early_abort, source

    check_early_abort(config, tier, artifact.label, early_abort(artifact), source(artifact))


def by_questions(
    file: Path,
    config: Config,
    tier: str,
    secret: bytes | None,
    *,
    why: str,
    offer: bool,
    out: Path | None,
    as_json: bool,
) -> str:
    """Collect, fit and offer, as people would do it for another model. What to tell about it.

    Records stay in the rollout's folder, so a fit that was ended goes on where it was. Raises ConfigError.
    """
    from urllib.parse import quote

    from calibrators import artifact as artifacts
    from eval import cli as commands
    from gateway.monitor.rollouts import Rollouts

    rules = None if config.monitors.refit is None else config.monitors.refit.questions
    if rules is None or config.rollout is None:
        raise ConfigError(f"{file} names no questions to ask; say which under monitors.refit.questions")
    known = worn(config, tier)
    if prefixed(known):
        raise ConfigError(f"{known.label} was fitted on first tokens; collect and fit by hand, with --prefix")
    now = time.time()
    day = dt.datetime.fromtimestamp(now, dt.UTC).date().isoformat()
    folder = config.rollout.folder / "fits" / f"{quote(tier, safe='')}-{day}"
    with contextlib.redirect_stdout(sys.stderr):
        commands.collect(
            config=file, dataset=rules.dataset, split=rules.split, n=rules.n, out=folder / "records",
            data=None if rules.data is None else Path(rules.data), prompt=rules.prompt, concurrency=rules.concurrency,
        )  # fmt: skip
        with contextlib.suppress(typer.Exit):  # of some tier too little is known
            commands.fit(
                records=[folder / "records"], out=folder / "fitted", split=rules.split,
                cut=known.fingerprint.get("span") == "answer",
            )  # fmt: skip
    made = next(
        (one for one in map(artifacts.load, sorted((folder / "fitted").glob("*.json"))) if one.id == tier), None
    )
    if made is None:
        raise ConfigError(f"{rules.n:,} questions do not tell enough of {tier} to fit on; see {folder}")
    made = signed(made, secret)
    if out is not None:
        artifacts.dump(made, out)
    if offer:
        fits_policies(config, tier, made)
        Rollouts(config.rollout.folder).offer(tier, made, who=WHO, at=now, why=why)
    told = {"artefact": made.label, "how": "questions", "labels": made.fit["n"], "rare": made.fit["n_rare"],
            "offered": offer}  # fmt: skip
    return json.dumps(told) if as_json else f"{made.label}: fitted on {made.fit['n']:,} questions"


def prefixed(artifact: Artifact) -> bool:
    return str(artifact.fingerprint.get("span", "")).startswith("prefix-")


def worn(config: Config, name: str) -> Artifact:
    """The calibrator that a tier wears, or wore before it was taken out: its rollout's, else the configured one.

    Raises ConfigError.
    """
    from calibrators import artifact as artifacts
    from gateway.monitor.rollouts import Rollouts
    from gateway.written import unknown

    entries = {entry.name: entry for entry in config.tiers}
    if name.endswith(":prefix"):
        told = "labels tell only of beginnings that were passed on"
        raise ConfigError(
            f"{name} is not put right by labels: {told}; fit it with `confgate fit --prefix` and offer that"
        )
    if name not in entries:
        raise ConfigError(unknown("tier", name, entries))
    if config.rollout is not None:
        rollouts = Rollouts(config.rollout.folder)
        state = rollouts.state(name)
        if state is not None:
            return rollouts.registry.get(rollouts.last_live(name) or "").artifact
    path = entries[name].calibrator
    if path is None:
        raise ConfigError(f"tier {name} has no calibrator to put right; fit one with `confgate fit`")
    return artifacts.load(path)
