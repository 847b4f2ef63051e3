"""The command `confgate`. Everything heavy is imported by the command that needs it, so that --help is immediate."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.config import Config
    from gateway.store.base import Store


class Elsewhere(NamedTuple):
    """A command that another package brings. module: exports a typer `app` with it.  extra: what to install."""

    module: str
    extra: str
    told: str


ELSEWHERE = {
    "collect": Elsewhere("eval.cli", "eval", "Ask every model every question and record answers with their log-probs."),
    "fit": Elsewhere("eval.cli", "eval,calibrate", "Fit one calibrator per tier from collected records."),
    "demo": Elsewhere("eval.cli", "eval,local,demo", "Run the pocket cascade on held-out questions; no GPU needed."),
    "sweep": Elsewhere("eval.sweep_cli", "eval,calibrate", "Choose tiers and thresholds, and say whether that pays."),
    "batch": Elsewhere("eval.data_cli", "eval", "Write questions as a batch for vllm run-batch or OpenAI's batch API."),
    "import": Elsewhere("eval.data_cli", "eval", "Make records of a batch's replies."),
    "export": Elsewhere("eval.data_cli", "eval,calibrate", "Write records for lm-evaluation-harness and inspect."),
    "report": Elsewhere("eval.report_cli", "eval,calibrate,report", "Write down what a sweep finds, with pictures."),
    "labels": Elsewhere("eval.labels_cli", "eval", "Labels of decisions: import, export, those wanted."),
    "log": Elsewhere("eval.labels_cli", "eval", "Write the decision log as Parquet."),
    "verify": Elsewhere("eval.verify_cli", "eval,calibrate", "Compare what the gateway serves with what was scored."),
    "sign": Elsewhere("eval.sign_cli", "sign", "Sign calibrators that travel with an Ed25519 key."),
    "card": Elsewhere("eval.reports_cli", "eval,calibrate", "Write the cascade's calibration card from its records."),
    "rollout": Elsewhere("gateway.rollout_cli", "cli", "Calibrators on trial, promoted and taken back, while serving."),
    "refit": Elsewhere("eval.refit_cli", "eval,calibrate", "Put a calibrator right by the labels of what it decided."),
    "objectives": Elsewhere("eval.reports_cli", "eval,calibrate", "Compare robust objectives on unseen shifts."),
    "monitors": Elsewhere("eval.reports_cli", "eval,calibrate", "Measure how quiet and how loud the monitors are."),
}


class Commands(TyperGroup):
    """Our commands and those of ELSEWHERE, whose modules are imported only when they run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *ELSEWHERE]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in ELSEWHERE:  # enough for the help page
            return TyperCommand(cmd_name, help=ELSEWHERE[cmd_name].told)
        return super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in ELSEWHERE:
            return args[0], fetch(args[0], ctx), args[1:]
        return super().resolve_command(ctx, args)


def fetch(name: str, ctx: Any) -> Any:
    """The real command. Raises GatewayError that says what to install."""
    where = ELSEWHERE[name]
    try:
        app = importlib.import_module(where.module).app
    except ImportError as error:
        install = f"pip install 'confidence-gateway[{where.extra}]'"
        raise GatewayError(f"confgate {name} is not installed here ({error}); try: {install}") from error
    found = typer.main.get_command(app)
    command = found.get_command(ctx, name) if isinstance(found, TyperGroup) else found
    if command is None:
        raise GatewayError(f"{where.module} has no command {name!r}")
    return command


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,  # rendering the help page with rich takes longer than everything else together
    pretty_exceptions_enable=False,
    help="Answer with the cheapest language model whose calibrated confidence is high enough.",
    epilog="Example:  confgate serve --config deploy/pocket/cascade.yaml",
)

ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", envvar="CONFGATE_CONFIG", help="The cascade's configuration file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DEFAULT_FILE = Path("cascade.yaml")


class LogLevel(StrEnum):
    DEBUG, INFO, WARNING, ERROR = "debug", "info", "warning", "error"


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(version("confidence-gateway"))
        except PackageNotFoundError:
            typer.echo("not installed, run from its source")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shown by confgate --help."""


@app.command()
def serve(
    config: ConfigFile = DEFAULT_FILE,
    host: Annotated[
        str | None, typer.Option(envvar="CONFGATE_HOST", help="Listen here, not where the file says.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(envvar="CONFGATE_PORT", min=0, max=65535, help="As --host. 0: any free port.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(envvar="CONFGATE_WORKERS", min=1, max=64, help="Processes; about one per core.")
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(envvar="CONFGATE_LOG_LEVEL", case_sensitive=False, help="How much to log, as JSON on stderr."),
    ] = LogLevel.INFO,
) -> None:
    """Serve the cascade over HTTP until SIGTERM or Ctrl-C.

    Example:  confgate serve -c deploy/pocket/cascade.yaml --port 8080
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it means a reload; it would kill

    from gateway import serving
    from gateway import workers as fleet
    from gateway.telemetry import log_to_stderr

    log_to_stderr(log_level)
    options = {"host": host, "port": port, "workers": workers}
    given = {key: value for key, value in options.items() if value is not None}
    if fleet.written(config, given).server.workers > 1:
        fleet.supervise(config, given, log_level)
    else:
        serving.run(lambda: fleet.written(config, given))


@app.command()
def up(
    file: Annotated[
        Path,
        typer.Argument(envvar="CONFGATE_CONFIG", help="A configuration whose tiers say how to serve them."),
    ] = DEFAULT_FILE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the commands; start nothing.")] = False,
    no_gateway: Annotated[bool, typer.Option("--no-gateway", help="Start the model servers only.")] = False,
    logs: Annotated[Path, typer.Option(envvar="CONFGATE_LOGS", help="The folder for one log per server.")] = Path(
        "fleet-logs"
    ),
    as_json: AsJson = False,
) -> None:
    """Plan GPU memory for all tiers, start their model servers and the gateway, and keep them running.

    Example:  confgate up deploy/qwen2.5/one-80gb.yaml --dry-run
    """
    from gateway import launching

    config = read(file)
    plan = launching.plan(config, dry=dry_run, logs=logs)
    if as_json:
        typer.echo(json.dumps(plan.told(), indent=2))
    else:
        for rows in (plan.told()["servers"], plan.told()["gpus"], plan.told()["in_process"]):
            if rows:
                typer.echo(table(rows) + "\n")
    if not dry_run:
        note = launching.note_json if as_json else launching.note_line
        launching.launch(file, config, plan, logs=logs, with_gateway=not no_gateway, note=note)
    elif not as_json:
        for command in plan.told()["commands"]:
            typer.echo(command)


@app.command()
def check(
    config: ConfigFile = DEFAULT_FILE,
    live: Annotated[
        bool, typer.Option("--live", help="Open the engines too, and hold the calibrators against them.")
    ] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the file's JSON Schema, for editors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a configuration file; exits with 1 and file:line for each mistake.

    Example:  confgate check -c cascade.yaml --live
    """
    from gateway import checking
    from gateway import config as configs

    if schema:
        typer.echo(json.dumps(configs.schema(), indent=2))
        return
    summary = checking.check(config, live=live)
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    typer.echo(table(summary["tiers"]))
    typer.echo(table(summary["policies"]))
    for certificate in summary["certificates"]:
        typer.echo(checking.told(certificate))
    typer.echo(f"{config}: good")


@app.command()
def keys(
    name: Annotated[str, typer.Option(help="Whose it is; logs and labels go by it.")] = "me",
    admin: Annotated[bool, typer.Option("--admin", help="For the admin listener, and for nothing else.")] = False,
    file: Annotated[
        Path | None, typer.Option(help="Write the key to this new file, for you alone, instead of printing it.")
    ] = None,
    given: Annotated[
        str | None, typer.Option("--from", help="Hash the key in env:NAME or file:PATH instead of making one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, print it this once, and the lines for the configuration, which hold its SHA-256 alone.

    Exits with 1 when --file is there already, or --from leads to no key.  Example:  confgate keys --name alice
    """
    from gateway import keys as making
    from gateway.written import given_key

    if given is not None and file is not None:
        raise typer.BadParameter("--from names a key that is kept already, --file keeps a new one")
    key = making.new() if given is None else given_key("--from", given)
    entry = making.entry(name, key)
    if file is not None:
        making.keep(key, file)
    shown = given is None and file is None
    if as_json:
        told = {"kind": "admin" if admin else "client"} | entry
        typer.echo(json.dumps(told | {"key": key} if shown else told, indent=2))
        return
    if given is None:
        typer.echo(f"the key, told this once: {key}\n" if shown else f"the key is in {file}\n")
    typer.echo(making.lines(entry, admin=admin), nl=False)


@app.command()
def openapi() -> None:
    """Print the API's description (OpenAPI 3.1), for client generators and gateways in front.

    Example:  confgate openapi > openapi.json
    """
    from gateway.http import openapi as described

    typer.echo(json.dumps(described.printed(), indent=2))


@app.command()
def doctor(
    config: ConfigFile = DEFAULT_FILE,
    seconds: Annotated[float, typer.Option(min=0.1, help="For all questions to one server together.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Ask every model server whether it will do: reachable, log-probs allowed and raw, the calibrator's own model.

    Exits with 1 when something is wrong.  Example:  confgate doctor -c cascade.yaml
    """
    import asyncio

    from gateway import doctor as doctors

    findings = asyncio.run(doctors.examine_config(read(config), seconds))
    rows = [finding.row() for finding in findings]
    typer.echo(json.dumps(rows, indent=2) if as_json else table([shown(row) for row in rows]))
    wrong = doctors.faults(findings)
    if wrong:
        typer.echo(f"\n{len(wrong)} of {len(rows)} are bad", err=True)
        raise typer.Exit(1)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A finding as a line of a table; the address only where there is one."""
    return {"tier": f"{row['tier']} {row['server']}".strip()} | {
        name: row[name] for name in ("check", "verdict", "told")
    }


@app.command()
def route(
    prompt: Annotated[str, typer.Argument(help="One question; - reads it from standard input.")],
    config: ConfigFile = DEFAULT_FILE,
    model: Annotated[str, typer.Option(help="auto, auto:<policy>, or a tier's name.")] = "auto",
    system: Annotated[str | None, typer.Option(help="A system message to go before it.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question and show which tiers were tried, how sure each was, and why the answer was served.

    Example:  confgate route "Mia has 12 apples. She buys 5 more. How many?" -c deploy/pocket/cascade.yaml
    """
    from gateway import trying

    question = sys.stdin.read() if prompt == "-" else prompt
    told = trying.try_one(read(config), question, model=model, system=system, max_tokens=max_tokens)
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(table(told["hops"]))
    typer.echo(f"\n{told['text']}\n\nserved by {told['tier']}: {told['reason']}")


@app.command("route-log")
def route_log(
    id_: Annotated[
        str, typer.Argument(metavar="ID", help="x-route-id, the completion's id, or the number in a log line.")
    ],
    config: ConfigFile = DEFAULT_FILE,
    as_json: AsJson = False,
) -> None:
    """Show everything that is known of one decision: its hops with their features, its labels, what it cost.

    Exits with 1 when nothing is known.  Example:  confgate route-log chatcmpl-AQGX... -c cascade.yaml
    """
    from calibrators.artifact import ArtifactError
    from gateway import ids
    from gateway.monitor import reference as references
    from gateway.monitor.outlying import distances
    from gateway.monitor.renewal import in_service, renewed
    from gateway.monitor.rollouts import Rollouts
    from gateway.store import telling

    number = ids.number_of(id_)
    store = kept(config)
    try:
        whole = store.whole(number)
    finally:
        store.close()
    if not whole.known:
        raise GatewayError(f"nothing is known of decision {number}: it was never asked here, dropped, or is too old")
    wanted = read(config)
    seen = wanted.monitors.reference
    known = references.NOTHING if seen is None else references.load(seen)
    if wanted.rollout is not None:
        rollouts = Rollouts(wanted.rollout.folder)
        with contextlib.suppress(GatewayError, ArtifactError):  # how far out an answer lies is left out then
            known = renewed(known, in_service(rollouts), rollouts.registry)
    far = distances(known, whole)
    typer.echo(json.dumps(telling.as_json(whole, far), indent=2) if as_json else telling.as_text(whole, far))


def kept(path: Path) -> Store:
    """The store that a configuration names, to look into. Raises ConfigError."""
    entry = read(path).store
    if entry is None:
        raise GatewayError(f"{path} says nothing about a store, so nothing is kept")
    return entry.look()


def read(path: Path) -> Config:
    from gateway import config

    return config.read(path)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows with the same keys as aligned text; absent values as a dash."""
    names = list(rows[0]) if rows else []
    cells = [names, *([cell(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    padded = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in padded)


def cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Exit codes: 0 done, 1 a mistake told on stderr, 2 wrong usage, 130 interrupted."""
    try:
        app()
    except GatewayError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)
