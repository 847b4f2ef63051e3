"""`confgate labels import|export|wanted` and `confgate log export`."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway import cli, remote
from gateway.cli import AsJson, ConfigFile
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from gateway.ids import Seal

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
labels_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Labels of decisions, in and out.")
log_app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="The decision log.")
app.add_typer(labels_app, name="labels")
app.add_typer(log_app, name="log")

Since = Annotated[str | None, typer.Option(help="ISO time; only what came from then on.")]
DEFAULT = Path("cascade.yaml")


@contextmanager
def one_line() -> Iterator[None]:
    """What a disk finds wrong is told in one line, as our own errors are."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise GatewayError(f"{where}{error.strerror or error}") from error


@labels_app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="CSV, JSONL or Parquet with id and label; source and comment if wanted.")
    ],
    config: ConfigFile = DEFAULT,
    source: Annotated[
        str, typer.Option(help="Of rows that name none: operator, user, verifier or proxy.")
    ] = "operator",
    author: Annotated[str, typer.Option(help="In whose name.")] = "import",
    revise: Annotated[bool, typer.Option("--revise", help="Replace labels that say the contrary.")] = False,
    url: Annotated[
        str | None, typer.Option(help="Send them to a running gateway: a SQLite store has one writer, and that is it.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="With --url: env:NAME or file:PATH of the key; an admin's for operator.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Store labels from a file. Sending it again does no harm.

    Example:  confgate labels import reviewed.csv -c cascade.yaml --url http://127.0.0.1:8080 --key env:ADMIN_KEY
    """
    with one_line():
        from eval import labels
        from gateway import config as configs
        from gateway.store.base import Source

        if source not in tuple(Source):
            raise ConfigError(f"no source {source!r} (there is: {', '.join(Source)})")
        items = labels.read(file, Source(source))
        if url is not None:
            done = posted(items, url, key, revise=revise)
        else:
            settings = configs.read(config)
            if settings.store is None:
                raise ConfigError(f"{config} says nothing about a store; where should labels go?")
            seal = sealed(settings)
            store = settings.store.open()
            try:
                rows = labels.wishes(file, items, seal, store, author=author, now=time.time(), revise=revise)
                done = Counter(map(str, labels.put(file, store, rows).elements()))
            finally:
                store.close()
    told = {"rows": len(items)} | {name: done[name] for name in ("created", "revised", "unchanged")}
    typer.echo(json.dumps(told) if as_json else ", ".join(f"{count} {name}" for name, count in told.items()))


def sealed(settings: Any) -> Seal:
    """What proves ids. Raises ConfigError where no secret outlives the process that made them."""
    from gateway.config import Ids

    if settings.ids == Ids():
        raise ConfigError("ids of this configuration end with their process: name a secret under ids, or a file (keep)")
    seal: Seal = settings.ids.seal(os.urandom(32))
    return seal


def posted(items: list[dict[str, Any]], url: str, key: str | None, *, revise: bool) -> Counter[str]:
    """The same through POST /v1/feedback. Raises ConfigError with the gateway's words."""
    import httpx2

    from eval.labels import BATCH

    done: Counter[str] = Counter()
    with remote.client(url, key) as client:
        for start in range(0, len(items), BATCH):
            some = [{**one, "revise": revise} for one in items[start : start + BATCH]]
            try:
                told = client.post("/v1/feedback", json={"items": some})
            except httpx2.HTTPError as error:
                raise ConfigError(f"{url} does not answer: {error}; the first {start} rows are stored") from None
            if told.status_code not in (200, 201):
                said = told.json().get("error", {}) if "json" in told.headers.get("content-type", "") else {}
                why = f"{told.status_code} {said.get('message', '')} {said.get('param') or ''}".strip()
                raise ConfigError(f"{url} refused rows from {start + 1} on ({why}); the first {start} are stored")
            done.update(row["status"] for row in told.json()["data"])
    return done


@labels_app.command()
def export(
    out: Annotated[Path, typer.Option(help="The Parquet file.")],
    config: ConfigFile = DEFAULT,
    tier: Annotated[str | None, typer.Option(help="Answers of this tier only.")] = None,
    since: Since = None,
    trusted: Annotated[bool, typer.Option("--trusted", help="Operators' labels only.")] = False,
    key_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Most of the rows that one key may be; operators may be all. [.05]"),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Name of a key whose labels are left out; again for more.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write labelled answers with their features as a table that `confgate fit --records` takes.

    Example:  confgate labels export --tier small --out live.parquet && confgate fit --records live.parquet --out fitted
    """
    with one_line():
        from eval import labels

        store = cli.kept(config)
        try:
            rows, left_out = labels.usable(
                labels.everything(store, started(since)), trusted=trusted, without=without or ()
            )
        finally:
            store.close()
        labels.check_cut(without or (), left_out)
        rows = [row for row in rows if tier in (None, row.tier)]
        share = labels.KEY_SHARE if key_share is None else key_share
        kept = labels.capped(rows, share)
        left_out["over the share of its key"] = len(rows) - len(kept)
        if not kept:
            why = ", ".join(f"{count} {name}" for name, count in left_out.items() if count) or "there are no labels"
            raise ConfigError(f"nothing to write ({why}); --key-share 1 takes all of a single key's labels")
        labels.write_table(kept, out)
    told: dict[str, Any] = {"rows": len(kept), "right": sum(row.correct for row in kept), "out": str(out)}
    told["left_out"] = {name: count for name, count in left_out.items() if count}
    said = ", ".join(f"{count} {name}" for name, count in told["left_out"].items()) or "none"
    typer.echo(json.dumps(told) if as_json else f"{out}: {told['rows']} rows, {told['right']} right; left out: {said}")


@labels_app.command()
def wanted(
    config: ConfigFile = DEFAULT,
    limit: Annotated[int, typer.Option(min=1, help="At most so many, the latest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List explored decisions that still want a label, by the numbers that `confgate labels import` takes.

    Example:  confgate labels wanted -c cascade.yaml --json
    """
    with one_line():
        from gateway.store import telling

        store = cli.kept(config)
        try:
            rows = [telling.decision_json(row) for row in store.recent(limit, wanting=True)]
        finally:
            store.close()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    else:
        shown = ("number", "time", "client", "tier", "reason", "p_correct", "inclusion", "prompt_sha256")
        typer.echo(cli.table([{name: row[name] for name in shown} for row in rows]) or "none")


@log_app.command("export")
def export_log(
    out: Annotated[Path, typer.Option(help="The Parquet file: one row per hop.")],
    config: ConfigFile = DEFAULT,
    since: Since = None,
    until: Annotated[str | None, typer.Option(help="ISO time; only what came before.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the decision log, all hops with their features, and what each answer was found to be.

    Example:  confgate log export --since 2026-11-01 --out november.parquet
    """
    with one_line():
        from eval import labels

        store = cli.kept(config)
        try:
            ends = float("inf") if until is None else started(until)
            count = labels.write_log(store, out, since=started(since), until=ends)
        finally:
            store.close()
    typer.echo(json.dumps({"decisions": count, "out": str(out)}) if as_json else f"{out}: {count} decisions")


def started(told: str | None) -> float:
    """An ISO time as seconds since 1970; UTC where it does not say. Raises ConfigError."""
    try:
        when = dt.datetime.fromisoformat(told) if told is not None else dt.datetime.fromtimestamp(0, dt.UTC)
    except ValueError:
        raise ConfigError(f"no time: {told!r}; write it like 2026-05-17T12:00:00+00:00") from None
    return (when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp()
