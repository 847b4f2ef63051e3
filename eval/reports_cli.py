"""`confgate card|objectives`: what was measured, written down. Each command imports for itself what is heavy."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from eval.cli import listed, moment, one_line
from gateway.cli import AsJson, ConfigFile

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

Sources = Annotated[
    list[Path], typer.Option("--records", "-r", help="Folder of `collect`, or its records.parquet; may be repeated.")
]
Created = Annotated[str | None, typer.Option(help="ISO time to write down, to make the same again byte by byte.")]


@app.command()
def card(
    records: Sources,
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
    as_json: AsJson = False,
) -> None:
    """Replay the cascade over recorded answers and write its calibration card: what is claimed, and where that ends.

    Example:  confgate card -c deploy/pocket/cascade.yaml --records runs/pocket --out docs/results/pocket-card
    """
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
