"""`confgate card|objectives`: what was measured, written down. Each command imports for itself what is heavy."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eval.cli import listed, moment, one_line
from gateway import remote
from gateway.cli import AsJson, ConfigFile
from gateway.errors import ConfigError

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

Sources = Annotated[
    list[Path], typer.Option("--records", "-r", help="Folder of `collect`, or its records.parquet; may be repeated.")
]
MaybeSources = Annotated[
    list[Path] | None,
    typer.Option("--records", "-r", help="Folder of `collect`, or its records.parquet; may be repeated."),
]
Running = Annotated[str | None, typer.Option("--live", help="Ask this gateway's admin listener instead, http://...")]
Key = Annotated[str | None, typer.Option("--key", help="With --live: env:NAME or file:PATH of an admin's key.")]
Created = Annotated[str | None, typer.Option(help="ISO time to write down, to make the same again byte by byte.")]


@app.command()
def card(
    records: MaybeSources = None,
    config: ConfigFile = Path("cascade.yaml"),
    out: Annotated[Path, typer.Option(help="Folder for card.md, card.json and card.html.")] = Path("card"),
    policy: Annotated[str, typer.Option(help="Which policy of the configuration.")] = "default",
    home: Annotated[str, typer.Option(help="The held-out split that the claim is about.")] = "test",
    shifts: Annotated[
        str | None, typer.Option(help="Shifted splits, with commas between. Without it: all that were held out.")
    ] = None,
    title: Annotated[str, typer.Option(help="The card's title. Without it: the tiers' names.")] = "",
    resamples: Annotated[int, typer.Option(min=100, help="Of each bootstrap.")] = 2_000,
    created: Created = None,
    seed: Annotated[int, typer.Option(help="Of resamples and simulations.")] = 0,
    live: Running = None,
    key: Key = None,
    form: Annotated[str, typer.Option("--format", help="With --live: md, html or json.")] = "md",
    as_json: AsJson = False,
) -> None:
    """Replay the cascade over recorded answers and write its calibration card: what is claimed, and where that ends.

    With --live, print what a running gateway claims now, and on what evidence.

    Example:  confgate card -c deploy/pocket/cascade.yaml --records runs/pocket --out docs/results/pocket-card
    """
    if live is not None:
        wanted = "json" if as_json else form
        typer.echo(remote.ask(live, "/admin/card", key, {"policy": policy, "format": wanted}), nl=False)
        return
    records = given(records)
    with one_line():
        from eval import card as cards
        from gateway import config as configs

        request = cards.Request(
            policy=policy,
            home=home,
            shifts=None if shifts is None else listed(shifts),
            title=title,
            rebuild=shlex.join(["confgate", *sys.argv[1:]]),
            resamples=resamples,
            seed=seed,
        )
        made = cards.make(configs.read(config), records, request, moment(created))
        paths = made.save(out)
    typer.echo(
        json.dumps({"card": made.twin, "files": list(map(str, paths))}) if as_json else "\n".join(map(str, paths))
    )


@app.command()
def objectives(
    records: Sources,
    out: Annotated[Path, typer.Option(help="Folder for objectives.md and objectives.json.")] = Path("docs/results"),
    fit_on: Annotated[str, typer.Option(help="Split to fit on.")] = "calibration",
    home: Annotated[str, typer.Option(help="Held-out split of the same kind.")] = "test",
    tune: Annotated[str, typer.Option(help="Shifts that strengths are chosen on.")] = "more_steps,larger_numbers",
    unseen: Annotated[str, typer.Option(help="Shifts that only judge.")] = "new_names,reworded,extra_clause",
    slices: Annotated[str, typer.Option(help="Column that group objectives group by.")] = "steps",
    accept_at: Annotated[float, typer.Option(min=0, max=1, help="Threshold of every tier but the last.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Of folds and resamples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit calibrators under every robust objective and tell what each does in distribution and under unseen shifts.

    Example:  confgate objectives -r runs/pocket/calibration -r runs/pocket/test -r runs/pocket/shifted
    """
    with one_line():
        from importlib.metadata import version

        from eval import objectives as studies

        setting = studies.Setting(
            fit=fit_on, home=home, tune=listed(tune), unseen=listed(unseen), slices=slices, accept_at=accept_at,
            seed=seed,
        )  # fmt: skip
        about = {
            "command": shlex.join(["confgate", *sys.argv[1:]]),
            "machine": f"{os.cpu_count()} cores of {platform.machine()}",
            "versions": ", ".join(
                [f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in ("numpy", "scikit-learn"))]
            ),
        }
        page, told = studies.study(records, setting, about)
        out.mkdir(parents=True, exist_ok=True)
        (out / "objectives.md").write_text(page, encoding="utf-8")
        text = json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        (out / "objectives.json").write_text(text, encoding="utf-8")
    typer.echo(text if as_json else f"{out / 'objectives.md'}\n{out / 'objectives.json'}")


@app.command()
def monitors(
    records: MaybeSources = None,
    config: ConfigFile = Path("cascade.yaml"),
    out: Annotated[Path | None, typer.Option(help="File for the measured page, Markdown.")] = None,
    write: Annotated[
        Path | None, typer.Option(help="File for the reference that the gateway holds traffic against, .npz.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Which policy of the configuration.")] = "default",
    reference: Annotated[str, typer.Option(help="The split that drift is measured from; it fitted nothing.")] = (
        "validation"
    ),
    home: Annotated[str, typer.Option(help="The held-out split that is quiet traffic.")] = "test",
    halves: Annotated[int, typer.Option(min=1, help="Random halves of the quiet traffic.")] = 20,
    streams: Annotated[int, typer.Option(min=10, help="Simulated streams.")] = 1_000,
    tolerance: Annotated[float, typer.Option(min=0, max=0.5, help="A gap of confidence that is no alarm.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of orders and simulations.")] = 0,
    prompt_tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Edges of slices by length, instead of the configuration's.")
    ] = None,
    from_log: Annotated[
        bool, typer.Option("--from-log", help="Write the reference from the decision log instead of from records.")
    ] = False,
    since: Annotated[str | None, typer.Option(help="With --from-log: ISO time; only what came from then on.")] = None,
    until: Annotated[str | None, typer.Option(help="With --from-log: ISO time; only what came before.")] = None,
    live: Running = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded answers as traffic: write the reference for drift, and measure false alarms and delays.

    With --from-log, write the reference from what a gateway decided in a time that is known to be good.
    With --live, print what the monitors of a running gateway say; exits with 1 while an alarm is on.

    Example:  confgate monitors -c deploy/pocket/cascade.yaml -r runs/pocket/validation -r runs/pocket/test
    -r runs/pocket/shifted --out docs/results/monitors.md
    """
    if live is not None:
        from gateway.monitor import telling

        report = remote.ask(live, "/admin/monitors", key)
        typer.echo(report if as_json else telling.as_text(json.loads(report)))
        if json.loads(report)["alarms"]:
            raise typer.Exit(1)
        return
    if from_log:
        typer.echo(written_from_log(config, write, since, until, as_json=as_json))
        return
    records = given(records)
    with one_line():
        from eval import monitors as measuring
        from gateway import config as configs
        from gateway.monitor import reference as references
        from gateway.monitor.slices import Slicing

        settings = configs.read(config)
        request = measuring.Request(
            slicing=Slicing(  # records know neither clients nor what requests say of themselves
                edges=tuple(sorted(set(prompt_tokens))) if prompt_tokens else settings.monitors.slices.prompt_tokens
            ),
            policy=policy,
            reference=reference,
            home=home,
            halves=halves,
            streams=streams,
            tolerance=tolerance,
            seed=seed,
        )
        found, known = measuring.measure(settings, records, request)
        page = measuring.told(found, shlex.join(["confgate", *sys.argv[1:]]))
        if out is not None:
            out.write_text(page, encoding="utf-8")
        if write is not None:
            references.dump(measuring.whole_reference(settings, records, request, known), write)
    typer.echo(json.dumps(measuring.as_json(found)) if as_json else page)


def written_from_log(file: Path, write: Path | None, since: str | None, until: str | None, *, as_json: bool) -> str:
    """A reference of what a gateway decided; what to tell about it."""
    if write is None:
        raise typer.BadParameter("say where the reference is to be written with --write")
    with one_line():
        from eval import monitors as measuring
        from gateway import config as configs
        from gateway.monitor import reference as references

        settings = configs.read(file)
        if settings.store is None:
            raise ConfigError(f"{file} says nothing about a store, so there is no log")
        first = 0.0 if since is None else moment(since).timestamp()
        last = float("inf") if until is None else moment(until).timestamp()
        store = settings.store.look()
        try:
            found = measuring.logged(settings, store, first, last)
        finally:
            store.close()
        references.dump(found, write)
    rows = {f"{policy}/{tier}": len(known.rows) for (policy, tier), known in found.tiers.items()}
    return (
        json.dumps(rows) if as_json else "\n".join([f"{write}", *(f"{place}: {n:,} rows" for place, n in rows.items())])
    )


def given(records: list[Path] | None) -> list[Path]:
    """For a command that reads recorded answers or asks a running gateway, and was not told which gateway."""
    if not records:
        raise typer.BadParameter("name recorded answers with --records, or a running gateway with --live")
    return records
