"""`confgate verify`: ask a gateway of this configuration what was recorded, and compare every decision."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated

import typer

from eval.cli import one_line
from gateway.cli import AsJson, ConfigFile

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

SHOWN = 10  # differences in full


@app.command()
def verify(
    records: Annotated[Path, typer.Option("--records", "-r", help="Folder of `collect`.")],
    config: ConfigFile = Path("cascade.yaml"),
    policy: Annotated[str, typer.Option(help="Which policy of the configuration.")] = "default",
    split: Annotated[str, typer.Option(help="Which split of the records.")] = "test",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Questions. Without it: all that were recorded.")] = None,
    data: Annotated[Path | None, typer.Option(envvar="CONFGATE_DATA", help="Of a dataset that has files.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of a dataset that is generated.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 32,
    as_json: AsJson = False,
) -> None:
    """Start the gateway, ask it every recorded question, and hold each decision against the replay of the records.

    Exits with 1 where one decision differs: in tier, answer, threshold or reason, or in confidence beyond rounding.

    Example:  confgate verify -r runs/pocket/test -c deploy/pocket/cascade.yaml --policy parity
    """
    from itertools import islice

    from eval import _questions, agreement
    from eval import records as recorded
    from eval._server import gateway
    from gateway import config as configs

    with one_line():
        settings = configs.read(config)
        manifest = recorded.read_manifest(records / recorded.MANIFEST)
        route = agreement.opened(settings, policy, [manifest])
        asked = _questions.questions(manifest.dataset, [split], data=data, n=n or manifest.splits.get(split), seed=seed)
        prompt = _questions.prompt_of(manifest, manifest.dataset, data)
        began = time.monotonic()
        with gateway(config) as address:
            model = f"auto:{policy}"
            told = asyncio.run(
                agreement.served(address, model, asked, prompt, manifest.max_tokens, concurrency=concurrency)
            )
        seconds = time.monotonic() - began
        rows = (row for row in recorded.read(records / recorded.RECORDS) if row.split == split and row.question in told)
        offline = agreement.scored(rows, route, {question: number for question, (number, _) in told.items()})
        found = agreement.compare(offline, {question: decided for question, (_, decided) in told.items()})
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "policy": policy,
                    "n": found.n,
                    "differing": found.differing,
                    "largest_gap_of_p": found.largest_gap,
                    "tolerance": agreement.TOLERANCE,
                    "seconds": round(seconds, 1),
                    "differences": [str(one) for one in found.differences],
                },
                indent=2,
            )
        )
    else:
        typer.echo(
            f"{policy}: {found.n - found.differing:,} of {found.n:,} decisions over HTTP are those of the replay; "
            f"confidences differ by {found.largest_gap:.2g} at most ({seconds:.0f} s)"
        )
        for one in islice(found.differences, SHOWN):
            typer.echo(f"- {one}")
    if found.differing:
        raise typer.Exit(1)
