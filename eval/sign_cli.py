"""`confgate sign`: put a maker's name under calibrators that travel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eval.cli import one_line
from gateway.cli import AsJson

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def sign(
    files: Annotated[list[Path], typer.Argument(help="Calibrators, each replaced by its signed self.")],
    key: Annotated[Path, typer.Option(envvar="CONFGATE_SIGNING_KEY", help="File of the private key, Ed25519 in PEM.")],
    as_json: AsJson = False,
) -> None:
    """Sign calibrators, and print the public key that gateways list under `signers` to take no others.

    Example:  openssl genpkey -algorithm ed25519 -out maker.pem && confgate sign calibrators/*.json --key maker.pem
    """
    from calibrators import artifact as artifacts

    with one_line():
        secret = artifacts.read_private_key(key)
        signed = [
            (artifacts.sign(artifacts.load(file), secret), file) for file in files
        ]  # all are sound, or none is written
        for artifact, file in signed:
            artifacts.dump(artifact, file)
    public = artifacts.public_key(secret)
    if as_json:
        typer.echo(json.dumps({"public_key": public, "signed": [artifact.label for artifact, _ in signed]}))
    else:
        typer.echo("\n".join([*(f"signed {artifact.label}" for artifact, _ in signed), f"signers: [{public}]"]))
