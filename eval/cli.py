"""`confgate collect|fit|demo`. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from eval import _report
from gateway.cli import AsJson, ConfigFile
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from eval.fit import How
    from eval.records import Row
    from gateway.config import Config

Word = TypeVar("Word", bound=StrEnum)

Implausible = Annotated[bool, typer.Option("--implausible", help="Go on with answers that look broken.")]

# Of a table of the user's own, here and of `confgate sweep` and `report`
Columns = Annotated[
    str | None,
    typer.Option(help="What columns are called in your own table: question=id,correct=is_right,completion_tokens=n."),
]
Divide = Annotated[
    str | None, typer.Option(help="Deal the questions of your own table out: all:fit=0.6,test=0.4; in every command.")
]

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Whatever a file, a fit or a disk finds wrong is told in one line, as the gateway's own errors are."""
    from calibrators.artifact import ArtifactError
    from calibrators.base import CalibrationError
    from calibrators.scores import BadScores

    try:
        yield
    except (CalibrationError, ArtifactError, BadScores) as error:
        raise GatewayError(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise GatewayError(f"{where}{error.strerror or error}") from error


def as_command(main: Callable[..., None]) -> None:
    """Run a study that is a module of its own: `python -m eval.x`. What is wrong is told in one line, on stderr."""
    study = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    study.command()(main)
    try:
        with one_line():
            study()
    except GatewayError as error:
        typer.echo(str(error), err=True)
        sys.exit(1)


def listed(words: str | None) -> tuple[str, ...]:
    """ "a,b(c=1,d=2)" as ("a", "b(c=1,d=2)")."""
    return tuple(part.strip() for part in re.split(r",(?![^()]*\))", words or "") if part.strip())


def called(columns: str | None) -> dict[str, str]:
    """By our name of a column, what it is called in a table. Raises ConfigError."""
    parts = [part.partition("=") for part in (columns or "").split(",") if part.strip()]
    if not all(mark and theirs.strip() for _, mark, theirs in parts):
        raise ConfigError(f"--columns is written like question=id,correct=is_right, got {columns!r}")
    return {ours.strip(): theirs.strip() for ours, _, theirs in parts}


# collect


@app.command()
def collect(
    config: ConfigFile = Path("cascade.yaml"),
    dataset: Annotated[str, typer.Option(help="A dataset's name; a wrong one lists them.")] = "pocket",
    split: Annotated[str, typer.Option(help="One split, or several with commas between.")] = "calibration",
    n: Annotated[int | None, typer.Option("--n", min=1, help="Questions per split. Without it: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the records; named again, the collection goes on.")] = Path(
        "records"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="CONFGATE_DATA", help="Folder or file of the dataset; or hf:owner/name:config, of the hub."
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="plain, boxed, shots (examples from the split train), or a text file with {question}.")
    ] = "plain",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Per answer. Without it: the engine's limit.")] = None,
    top_k: Annotated[int, typer.Option(min=0, help="Most likely tokens to record per position.")] = 20,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions in flight per tier.")] = 32,
    attempts: Annotated[int, typer.Option(min=1, help="Per answer and run, before it counts as failed.")] = 3,
    patience: Annotated[float, typer.Option(min=0.1, help="Seconds that one attempt may take.")] = 600,
    seed: Annotated[int | None, typer.Option(help="For datasets that are generated, and for --divide.")] = None,
    divide: Annotated[
        str | None, typer.Option(help="Deal a split out to others: train:calibration=0.7,validation=0.3")
    ] = None,
    variants: Annotated[
        str, typer.Option(help="drop, keep or refuse: questions that vary a question of a later split.")
    ] = "drop",
    cluster: Annotated[
        str | None, typer.Option(help="ray: ask on the nodes of the Ray cluster that runs here.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Per tier, on a cluster. Without it: one a node.")] = None,
    start_servers: Annotated[
        bool,
        typer.Option("--start-servers", help="On a cluster: each worker starts its model server, on its own GPUs."),
    ] = False,
    implausible: Implausible = False,
    as_json: AsJson = False,
) -> None:
    """Ask every tier every question and record the answers with their log-probs. Stopped, it goes on when run again.

    Example:  confgate collect -c deploy/pocket/cascade.yaml --dataset pocket --n 1500 --out runs/calibration
    """
    from eval import _questions, sanity
    from eval import collect as collecting
    from gateway import config as configs

    with one_line():
        settings = configs.read(config)
        share_cores(settings)
        plan = collecting.Plan(
            prompt=_questions.prompt(prompt, dataset, data),
            max_tokens=max_tokens,
            top_k=top_k,
            seed=seed or 0,
            concurrency=concurrency,
            attempts=attempts,
            patience_seconds=patience,
            command=shlex.join(["confgate", *sys.argv[1:]]),
            created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        )
        asked, notes = _questions.chosen(
            dataset, listed(split), data=data, n=n, seed=seed, divided=divide,
            variants=one_of(_questions.Variants, variants, "--variants"), shown=[shot.id for shot in plan.prompt.shots],
        )  # fmt: skip
        for note in notes:
            typer.echo(f"note: {note}", err=True)
        gate = None if implausible else sanity.Gate(out)
        if cluster is None:
            path = run(lambda watch: asyncio.run(collecting.collect(settings, asked, out, plan, watch)), out, gate)
        else:
            path = run(on_cluster(cluster, settings, asked, out, plan, workers, start_servers=start_servers), out, gate)
        rows = collecting.summary(path)
    typer.echo(
        json.dumps({"records": str(path), "tiers": rows}, indent=2) if as_json else _report.collected(rows, path)
    )
    plausible([out], implausible=implausible)


def plausible(sources: Sequence[Path], *, implausible: bool) -> None:
    """Say what looks odd about recorded answers. Raises eval.sanity.Implausible, unless people want to go on."""
    from eval import sanity

    with one_line():
        try:
            notes = sanity.check(sources)
        except sanity.Implausible as error:
            if not implausible:
                raise
            notes = list(error.problems)
    for note in notes:
        typer.echo(f"warning: {note}", err=True)


def on_cluster(
    kind: str, settings: Config, asked: Sequence[Any], out: Path, plan: Any, workers: int | None, *, start_servers: bool
) -> Callable[[Any], Path]:
    """The same collection on a cluster. Raises ConfigError when there is none, or none of that kind."""
    from eval import cluster as clusters

    if kind != "ray":
        raise ConfigError(f"no cluster {kind!r}; have ray")
    clusters.connect()
    return lambda watch: clusters.collect(
        settings, asked, out, plan, watch, workers=workers, start_servers=start_servers
    )


def run(collect_all: Callable[[Any], Path], out: Path, gate: Callable[[Row], None] | None) -> Path:
    """Collect, showing how far it is; Ctrl-C says how to go on. gate: sees every row, and may stop everything."""
    from eval._progress import Progress

    shown: list[Progress] = []

    def watch(total: int, done: int) -> Callable[[Row], None]:
        progress = Progress(total, done, sys.stderr, time.monotonic)
        shown.append(progress)

        def note(row: Row) -> None:
            progress(row)
            if gate is not None:
                gate(row)

        return note

    try:
        return collect_all(watch)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped; {out} keeps what is done, and the same command goes on from there", err=True)
        raise typer.Exit(130) from None
    finally:
        for progress in shown:
            progress.close()


def share_cores(settings: Config) -> None:
    """In-process tiers compute side by side. Each gets its share of the cores, for threads of torch that wait for each
    other on a busy core are ten times slower than one; and no progress bar of theirs comes between our lines."""
    local = sum(entry.engine.kind == "local" for entry in settings.tiers)
    if local:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local)))
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


# fit


@app.command()
def fit(
    records: Annotated[
        list[Path],
        typer.Option(
            "--records", "-r", help="Folder of `collect`, or your own .parquet, .jsonl or .csv table; may be repeated."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the artefacts. Without it: calibrators, beside.")] = None,
    features: Annotated[str | None, typer.Option(help="Specs with commas between; columns, of your own table.")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="For every feature that has a window.")] = None,
    cut: Annotated[
        bool,
        typer.Option("--cut-after-answer", help="Measure answers up to their final number, then and when serving."),
    ] = False,
    prefix: Annotated[
        int | None,
        typer.Option(min=1, help="Measure this many first tokens only: for deciding on streams in prefix mode."),
    ] = None,
    early_abort: Annotated[
        bool,
        typer.Option("--early-abort", help="Learn, too, which answers may be given up before their end."),
    ] = False,
    family: Annotated[str, typer.Option(help="auto, or a calibrator family; a wrong one lists them.")] = "auto",
    objective: Annotated[str, typer.Option(help="erm, tilt, group_tilt, ...; a wrong one lists them.")] = "erm",
    eta: Annotated[float | None, typer.Option(help="Strength of the objective.")] = None,
    tune: Annotated[str | None, typer.Option(help="Shifted splits to choose eta on, with commas between.")] = None,
    slices: Annotated[str | None, typer.Option(help="Columns that a group objective groups by.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to fit on, when the records hold several.")] = None,
    upstream: Annotated[str, typer.Option(help="auto, on or off: do later tiers see earlier confidences?")] = "auto",
    pool: Annotated[
        str, typer.Option(help="auto, on or off: do tiers share slopes? auto: where few answers gain by it.")
    ] = "auto",
    tiers: Annotated[str | None, typer.Option(help="Tiers to fit, in the cascade's order. Without it: all.")] = None,
    columns: Columns = None,
    divide: Divide = None,
    missing: Annotated[str | None, typer.Option(help="refuse, impute or indicate: an undefined feature.")] = None,
    days: Annotated[int, typer.Option("--expires-days", min=1, help="How long the artefacts are good.")] = 90,
    no_expiry: Annotated[bool, typer.Option("--no-expiry", help="They do not expire.")] = False,
    created: Annotated[
        str | None, typer.Option(help="ISO time for the artefacts, to make them again byte by byte.")
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option(help="Splits that no model can have seen, to compare with. Without it: test, where there is one."),
    ] = None,
    implausible: Implausible = False,
    seed: Annotated[int, typer.Option(help="Of folds and intervals.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Fit one calibrator per tier and measure it out of fold. A time in SOURCE_DATE_EPOCH works like --created.

    Example:  confgate fit --records runs/calibration --objective group_tilt --eta 10 --slices steps
    """
    plausible(records, implausible=implausible)
    with one_line():
        from eval import early_abort as aborting
        from eval import fit as fits
        from eval import held_out, sanity, seal, tables

        if prefix is not None:
            upstream = alone(upstream, cut=cut)
        if prefix is not None and early_abort:
            raise ConfigError("--early-abort is about answers that are decided on as a whole: leave out --prefix")
        how = choices(
            family=family, objective=objective, eta=eta, tune=listed(tune), slices=listed(slices), split=split,
            upstream=upstream, pool=pool, missing=missing, chosen=bool(features), seed=seed,
        )  # fmt: skip
        specs = tables.windowed(listed(features) or tables.FEATURES, window) if features or window else None
        every, manifest = tables.read_all(records, specs, how.slices, called=called(columns), cut=cut, prefix=prefix)
        if divide is not None:
            if manifest is not None:
                raise ConfigError("--divide is about a table of your own; what is collected is dealt out by `collect`")
            every = tables.dealt_out(every, divide, seed=seed)
        if manifest is None and not tiers and how.upstream is fits.Upstream.AUTO:
            how = replace(how, upstream=fits.Upstream.OFF)  # a table does not say which model is asked first
        done = fits.fit(tables.ordered(every, listed(tiers)), how)
        terms = seal.Terms(
            manifest=manifest,
            split=fits.the_split(every, how),
            seed=seed,
            created=moment(created),
            days=None if no_expiry else days,
        )
        folder = out or (records[0] if records[0].is_dir() else records[0].parent) / "calibrators"
        for note in sanity.seen_before(every, terms.split, listed(clean)):
            typer.echo(f"note: {note}", err=True)
        fitted = [one for one in done if isinstance(one, fits.Fitting)]
        learned = aborting.learn(done, records) if early_abort else {}
        paths = seal.save([seal.seal(one, terms, learned.get(one.tier)) for one in fitted], folder)
        held_out.save(fitted, paths)
    rows = [_report.row(one) for one in done]
    typer.echo(json.dumps({"tiers": rows, "artifacts": list(map(str, paths))}, indent=2) if as_json else
               _report.fitted(rows, paths))  # fmt: skip
    if len(paths) < len(done):
        raise typer.Exit(1)


def alone(upstream: str, *, cut: bool) -> str:
    """First tokens are decided on before earlier tiers' whole answers are known, so nothing of those is looked at."""
    if upstream == "on" or cut:
        raise ConfigError("--prefix measures the first tokens alone: leave out --upstream on and --cut-after-answer")
    return "off"


def choices(
    *,
    family: str,
    objective: str,
    eta: float | None,
    tune: tuple[str, ...],
    upstream: str,
    pool: str,
    missing: str | None,
    **rest: Any,
) -> How:
    """The fit's choices from the words on the command line. Raises ConfigError for words that do not go together."""
    from calibrators.base import Missing
    from eval.fit import How, Pool, Upstream

    if pool == Pool.ON and (tune or family not in ("auto", "logistic")):
        raise ConfigError("--pool on is a logistic fit of one strength: leave out --tune and other families")
    if tune and (eta is not None or "(" in objective or objective == "erm"):
        raise ConfigError("--tune chooses eta itself: give it --objective tilt or group_tilt, and no --eta")
    if eta is not None:
        objective = f"{objective}(eta={eta!r})"
    return How(
        family=family,
        objective=objective,
        tune=tune,
        upstream=one_of(Upstream, upstream, "--upstream"),
        pool=one_of(Pool, pool, "--pool"),
        missing=None if missing is None else one_of(Missing, missing, "--missing"),
        **rest,
    )


def one_of(words: type[Word], given: str, option: str) -> Word:
    try:
        return words(given)
    except ValueError:
        raise ConfigError(f"{option} is one of {', '.join(words)}, got {given!r}") from None


def moment(created: str | None) -> dt.datetime:
    """When the artefacts are made: as told, as SOURCE_DATE_EPOCH says, or now."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        if created is not None:
            told = dt.datetime.fromisoformat(created)
            return told if told.tzinfo else told.replace(tzinfo=dt.UTC)
        return dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    except ValueError:
        raise ConfigError(f"no time: {created or epoch!r}; write it like 2026-05-17T12:00:00+00:00") from None


# demo


@app.command()
def demo(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", envvar="CONFGATE_CONFIG", help="Without it: the pocket cascade.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=10, help="Questions, half of them shifted.")] = 48,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 16,
    serve: Annotated[bool, typer.Option("--serve", help="Keep the gateway running afterwards.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start the pocket cascade, ask it held-out questions over HTTP, and show what it answers and what that costs.

    Exit code 0 only when all of it worked: every request answered, confidences there, one question accepted early and
    one escalated.

    Example:  confgate demo --n 100
    """
    from eval import _demo_report, _server
    from eval import demo as demonstration
    from gateway import config as configs

    with one_line():
        path = config or pocket_config()
        settings = configs.read(path)
        models = [demonstration.CASCADE, *(step.tier for step in settings.policies["default"].steps)]
        asked = demonstration.held_out(n)
        share_cores(settings)
        with _server.gateway(path) as url:
            replies = converse(url, asked, models, concurrency)
            wrong = demonstration.mistakes(replies)
            summed = _demo_report.summary(replies, models)
            if as_json:
                typer.echo(json.dumps(_demo_report.as_json(replies, summed, wrong), indent=2))
            else:
                width = shutil.get_terminal_size((120, 24)).columns
                typer.echo(_demo_report.questions(replies, width=width, colour=sys.stdout.isatty()))
                typer.echo(f"\n{_demo_report.told(summed, width=width)}")
            if serve:
                stay(url, asked[0].text)
    for line in wrong:
        typer.echo(f"not as it should be: {line}", err=True)
    if wrong:
        raise typer.Exit(1)


def pocket_config() -> Path:
    """The pocket cascade's file: in the checkout that this package was installed from, or where we are."""
    for folder in (Path(__file__).parents[1], Path.cwd()):
        if (path := folder / "deploy/pocket/cascade.yaml").is_file():
            return path
    raise ConfigError("no deploy/pocket/cascade.yaml here; run this in the repository, or name a file with --config")


def converse(url: str, asked: Sequence[Any], models: Sequence[str], concurrency: int) -> list[Any]:
    """Every question to every model, showing how far it is. Raises ConfigError without the client."""
    from eval.demo import ANSWER_SECONDS, Reply, ask_all

    try:
        from openai import AsyncOpenAI
    except ImportError as error:
        raise ConfigError(f"the demo needs: pip install 'confidence-gateway[demo]' ({error})") from error
    total, done = len(asked) * len(models), 0

    def note(_reply: Reply) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            typer.echo(f"\r{done}/{total} answers\x1b[K" + ("\r\x1b[K" if done == total else ""), nl=False, err=True)

    async def talk() -> list[Reply]:
        key = os.environ.get("OPENAI_API_KEY", "anonymous")
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=ANSWER_SECONDS) as client:
            return await ask_all(client, asked, models, concurrency=concurrency, note=note)

    return asyncio.run(talk())


def stay(url: str, question: str) -> None:
    """Say how to try it, and wait for Ctrl-C."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": question}], "route": {"debug": True}})
    typer.echo(f"\nserving on {url}; Ctrl-C stops it. Try:\n")
    typer.echo(f"curl -s {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
