"""`confgate rollout`: a tier's calibrators, by the folder that running gateways follow within seconds."""

from __future__ import annotations

import datetime as dt
import getpass
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from calibrators import artifact as artifacts
from calibrators.artifact import ArtifactError
from gateway import config as configs
from gateway.cli import table
from gateway.config import Config
from gateway.errors import GatewayError
from gateway.monitor.rollout import State
from gateway.monitor.rollouts import Rollouts, Wish, of
from gateway.monitor.uncalibrated import uncalibrated
from gateway.places import places
from gateway.rolling import Json, listed, told_of

steps = typer.Typer(
    name="rollout",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Put calibrators on trial, promote them, and take them back; running gateways follow within seconds.",
    epilog="Example:  confgate rollout offer pocket-small new.json --why 'fitted on March' -c cascade.yaml",
)
app = typer.Typer()
app.add_typer(steps, name="rollout")

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="CONFGATE_CONFIG", help="The cascade's configuration file.")
]
TierName = Annotated[str, typer.Argument(metavar="TIER")]
Why = Annotated[str, typer.Option("--why", help="For the audit log.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Artefact = Annotated[str, typer.Argument(metavar="ARTEFACT", help="Its label, its hash, or the first digits of it.")]
DEFAULT_FILE = Path("cascade.yaml")


@steps.command("list")
def list_(config: ConfigFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Every tier's rollout, and the artefacts there are."""
    _, rollouts = opened(config)
    tiers = {tier: told_of(rollouts, tier, rollouts.state(tier)) for tier in rollouts.tiers()}
    artefacts = listed(rollouts)
    if as_json:
        typer.echo(json.dumps({"tiers": tiers, "artefacts": artefacts}, indent=2))
        return
    rows: list[Json] = [
        {"tier": tier} | {name: told[name] for name in ("live", "stage", "candidate", "share")}
        for tier, told in tiers.items()
    ]
    typer.echo(table(rows) or "no tier has a rollout yet; a gateway that serves begins one")
    typer.echo("")
    names = ("label", "kind", "who", "at", "why", "error")
    typer.echo(table([{name: row.get(name) for name in names} for row in artefacts]) or "no artefacts")


@steps.command()
def offer(
    tier: TierName,
    file: Annotated[Path, typer.Argument(help="The artefact, as `confgate fit` writes it.")],
    why: Why,
    config: ConfigFile = DEFAULT_FILE,
) -> None:
    """Put a new artefact into the registry, and on trial in shadow: computed and logged, not used."""
    given, rollouts = opened(config)
    begun(given, rollouts, tier)
    artifact = load(file)
    fits(given, tier, artifact)
    state = rollouts.offer(tier, artifact, who=who(), at=time.time(), why=why)
    typer.echo(f"{tier}: {state.stage}")


@steps.command()
def ab(tier: TierName, why: Why, config: ConfigFile = DEFAULT_FILE) -> None:
    """Put the raw confidence on trial against the calibrated one: what is calibrating worth on this traffic?"""
    given, rollouts = opened(config)
    begun(given, rollouts, tier)
    live = of((rollouts.state(tier) or State(live=None)).live, tier)
    if live is None:
        raise GatewayError(f"{tier} has no calibrator in service that another could be compared with")
    raw = uncalibrated(rollouts.registry.get(live).artifact, dt.datetime.now(dt.UTC))
    state = rollouts.offer(tier, raw, who=who(), at=time.time(), why=why)
    typer.echo(f"{tier}: {raw.label} in {state.stage}")


@steps.command()
def shadow(tier: TierName, artefact: Artefact, why: Why, config: ConfigFile = DEFAULT_FILE) -> None:
    """Put an artefact of the registry on trial in shadow."""
    act(config, tier, Wish.SHADOW, why, artefact=artefact)


@steps.command()
def canary(
    tier: TierName,
    why: Why,
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of conversations; else the configuration's.")
    ] = None,
    config: ConfigFile = DEFAULT_FILE,
) -> None:
    """Let the artefact on trial decide for a share of conversations; again, for another share."""
    act(config, tier, Wish.CANARY, why, share=share)


@steps.command()
def promote(
    tier: TierName,
    why: Why,
    artefact: Annotated[str, typer.Argument(metavar="[ARTEFACT]", help="Where none is on trial: without any.")] = "",
    config: ConfigFile = DEFAULT_FILE,
) -> None:
    """Put the artefact on trial in service for everybody, whatever its evidence says."""
    act(config, tier, Wish.PROMOTE, why, artefact=artefact)


@steps.command()
def rollback(tier: TierName, why: Why, config: ConfigFile = DEFAULT_FILE) -> None:
    """Take the one in service out, and put the one before it back."""
    act(config, tier, Wish.ROLLBACK, why)


@steps.command()
def stop(tier: TierName, why: Why, config: ConfigFile = DEFAULT_FILE) -> None:
    """End the trial; what is in service stays."""
    act(config, tier, Wish.STOP, why)


@steps.command()
def evidence(tier: TierName, config: ConfigFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """What the trial at a tier has shown by now, or the last one did: the candidate's differences from what is live."""
    _, rollouts = opened(config)
    told = told_of(rollouts, tier, rollouts.state(tier))
    shown = trial(told)
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
        return
    if shown is None:
        typer.echo(f"nothing was on trial at {tier} yet, or nothing of it was labelled")
        return
    mean, interval = (shown[name] for name in ("mean_difference", "interval"))
    rows: list[Json] = [
        {"measure": name.replace("_", " "), "new minus old": span(mean[name]), "95 %": span(interval.get(name))}
        for name in mean
    ]
    typer.echo(f"{tier}: {shown['candidate']} against {shown['against']}, {shown['stage']}")
    typer.echo(f"{shown['seen']:,} decisions seen, {shown['flipped']:,} of them otherwise; {shown['labels']:,} labels")
    typer.echo(table(rows) or "no labels of both yet")
    typer.echo("\n".join(shown["why"]))


def trial(told: Json) -> Json | None:
    """The one that goes on, else the last one that ended with evidence. told: of told_of."""
    if told["candidate"] is not None:
        found = told["evidence"]
        if not found:
            return None
        unknown = [
            name for name in found["mean_difference"] if name not in found["harm_excluded_in"] + found["harm_proven_in"]
        ]
        kinds = (
            ("worse in", found["harm_proven_in"]),
            ("no worse in", found["harm_excluded_in"]),
            ("not known yet:", unknown),
        )
        names = {"candidate": told["candidate"], "against": told["live"], "stage": told["stage"]}
        why = [f"{words} {', '.join(some)}" for words, some in kinds if some]
        figures = {name: found[name] for name in ("seen", "flipped", "mean_difference", "interval")}
        return names | figures | {"labels": found["paired_labels"], "why": why}
    events = [event for event in told["history"] if "interval" in event]
    if not events:
        return None
    last = events[-1]
    names = {"candidate": last["tried"], "against": last["against"], "stage": f"ended by {last['action']}"}
    figures = {name: last[name] for name in ("seen", "flipped", "labels", "interval", "why")}
    return names | figures | {"mean_difference": last["mean"]}


def span(ends: Sequence[float] | None) -> str:
    """One number, or two where there is something between them."""
    if ends is None:
        return "-"
    low, high = (f"{end:+.4f}" for end in ends)
    return low if low == high else f"{low} to {high}"


@steps.command()
def history(tier: TierName, config: ConfigFile = DEFAULT_FILE, as_json: AsJson = False) -> None:
    """Every step of a tier's rollout: when, who, what and why. The log's chain of hashes is checked."""
    _, rollouts = opened(config)
    rows = told_of(rollouts, tier, rollouts.state(tier))["history"]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    lines = [
        {name: row[name] for name in ("at", "who", "action")} | {"why": "; ".join(map(str, row["why"]))} for row in rows
    ]
    typer.echo(table(lines) or f"{tier} has no rollout")


def act(path: Path, tier: str, wish: Wish, why: str, *, artefact: str = "", share: float | None = None) -> None:
    given, rollouts = opened(path)
    begun(given, rollouts, tier)
    assert given.rollout is not None, "opened above"
    share = given.rollout.share if share is None else share
    try:
        if artefact:
            fits(given, tier, rollouts.find(artefact).artifact)
        state = rollouts.act(tier, wish, who=who(), at=time.time(), why=why, artefact=artefact, share=share)
    except ArtifactError as error:
        raise GatewayError(str(error)) from error
    told = told_of(rollouts, tier, state)
    on_trial = f", {told['stage']}: {told['candidate']}" if told["candidate"] else ""
    typer.echo(f"{tier}: live {told['live'] or 'nothing, everything escalates'}{on_trial}")


def opened(path: Path) -> tuple[Config, Rollouts]:
    """Raises GatewayError for a configuration without a rollout."""
    given = configs.read(path)
    if given.rollout is None:
        raise GatewayError(f"{path} says nothing about a rollout; say where to keep it: rollout: {{folder: rollout}}")
    return given, Rollouts(given.rollout.folder)


def begun(given: Config, rollouts: Rollouts, tier: str) -> None:
    """The tier's rollout begins with its configured calibrator. Raises GatewayError for a tier without one."""
    known = {place.name: place for place in places(given)}
    if tier not in known:
        raise GatewayError(f"no tier {tier!r} with a calibrator; have {', '.join(known)}")
    if rollouts.state(tier) is None:
        rollouts.begin(tier, load(known[tier].calibrator), who=who(), at=time.time())


def fits(given: Config, tier: str, artifact: artifacts.Artifact) -> None:
    """Raises GatewayError for an artefact that no gateway would put on trial there."""
    try:
        next(place for place in places(given) if place.name == tier).check(artifact)
    except ArtifactError as error:
        raise GatewayError(str(error)) from error


def load(path: Path) -> artifacts.Artifact:
    try:
        return artifacts.load(path)
    except ArtifactError as error:
        raise GatewayError(str(error)) from error


def who() -> str:
    """For the audit log."""
    try:
        return f"{getpass.getuser()}@terminal"
    except (KeyError, OSError):
        return "terminal"
