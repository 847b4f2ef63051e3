"""`confgate export`: answers on their way out to other tools. Heavy imports happen inside the command."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.cli import listed, moment, one_line, one_of
from gateway.cli import AsJson

if TYPE_CHECKING:
    from eval.records import Manifest
    from gateway.nouns import Policy

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

SPARE = 1_000  # questions of a generated dataset that collecting may have left out

Dataset = Annotated[str | None, typer.Option(help="The dataset that was asked. Without it: the one the records name.")]
Data = Annotated[
    Path | None, typer.Option(envvar="CONFGATE_DATA", help="Folder or file of the dataset, where it has one.")
]


@app.command()
def export(
    records: Annotated[Path, typer.Option("--records", "-r", help="Folder of `collect`.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    to: Annotated[str, typer.Option(help="lm-eval, inspect, or both with a comma between.")] = "lm-eval,inspect",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Export what this cascade would have served, too.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Which policy of the configuration.")] = "default",
    dataset: Dataset = None,
    split: Annotated[
        str | None, typer.Option(help="Splits of the dataset, with commas between. Without it: those of the records.")
    ] = None,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(help="For datasets that are generated, as when collecting.")] = None,
    created: Annotated[str | None, typer.Option(help="ISO time, to write the same files again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write recorded answers as lm-evaluation-harness results and samples, and as inspect logs.

    Example:  confgate export -r runs/pocket/test -c deploy/pocket/cascade.yaml --out runs/exported
    """
    with one_line():
        from eval import _questions
        from eval import records as answers
        from eval.export import Format
        from eval.export import export as write

        formats = [one_of(Format, word, "--to") for word in listed(to)]
        manifest = answers.read_manifest(records / answers.MANIFEST)
        name = dataset or manifest.dataset
        file = records / answers.RECORDS
        keys = answers.asked(file)
        wanted = listed(split) or tuple(dict.fromkeys(one for one, _ in keys))
        known = _questions.questions(name, wanted, data=data, n=len(keys) + SPARE, seed=seed)
        questions = _questions.asked(file, keys, known)
        paths = write(
            records,
            questions,
            _questions.prompt_of(manifest, name, data),
            out,
            formats,
            moment(created).astimezone(dt.UTC),
            None if config is None else opened(config, policy, manifest),
        )
    typer.echo(json.dumps({"files": list(map(str, paths))}) if as_json else "\n".join(map(str, paths)))


def opened(config: Path, policy: str, manifest: Manifest) -> Policy:
    """The policy with its calibrators, held against the engines that the answers came from."""
    from eval import card
    from gateway import config as configs

    return asyncio.run(card.opened(configs.read(config), policy, [manifest]))
