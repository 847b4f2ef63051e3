"""`confgate report`: the sweep's findings as a page, Markdown, JSON and pictures; or two of them held together."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from eval.cli import Columns, Divide, Implausible, moment, one_line, plausible
from eval.sweep_cli import (
    ANSWERS,
    Budget,
    Calibrators,
    Candidates,
    Certify,
    ChooseOn,
    CostModel,
    Levels,
    Prices,
    Rate,
    Seed,
    Slices,
    Steps,
    Target,
    TestOn,
    comparable,
    loaded,
    own,
    wished,
)
from gateway.cli import AsJson, ConfigFile, table
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from eval.material import Own, Wish
    from eval.records import Record
    from eval.report_files import Read

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

ON_TERMINAL, ELSEWHERE = 0.2, 15.0  # seconds between two counts


@app.command()
def report(
    records: Annotated[
        list[Path] | None,
        typer.Option("--records", "-r", help=ANSWERS),
    ] = None,
    config: ConfigFile = Path("cascade.yaml"),
    out: Annotated[Path, typer.Option(help="Folder for the report; an old report there is replaced.")] = Path("report"),
    budget: Budget = None,
    target: Target = None,
    rate: Rate = None,
    cost: CostModel = None,
    prices: Prices = None,
    choose_on: ChooseOn = None,
    test_on: TestOn = None,
    tiers: Candidates = None,
    levels: Levels = 4,
    steps: Steps = 24,
    certify: Certify = None,
    calibrators: Calibrators = None,
    columns: Columns = None,
    divide: Divide = None,
    slices: Slices = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(help="Two reports (folders), or two folders of records: is the second better, and by how much?"),
    ] = None,
    created: Annotated[str | None, typer.Option(help="ISO time to write down, to make the same again.")] = None,
    implausible: Implausible = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Choose a policy as `confgate sweep` does and write all of it down: report.html, .md, .json, curve.png and .svg.

    Example:  confgate report -r runs/calibration -r runs/test -c cascade.yaml --out report

    Example:  confgate report -r answers.csv --out report

    Example:  confgate report --compare report-monday report-tuesday
    """
    wish = wished(
        tiers=tiers, choose_on=choose_on, test_on=test_on, cost=cost, budget=budget, target=target, rate=rate,
        certify=certify, levels=levels, steps=steps, seed=seed,
    )  # fmt: skip
    stages = Stages(sys.stderr)
    with one_line():
        source = Answers(config, calibrators, prices, own(columns, divide, slices, seed))
    recorded = records or [place for place in compare or () if holds_records(place)]
    plausible(recorded, implausible=implausible)
    with one_line(), comparable():
        if compare is not None:
            if records:
                raise ConfigError("take --compare or --records, not both: --compare names what it compares")
            told = compared(compare, source, wish, stages)
        elif records:
            told = written(records, source, out, wish, created, stages)
        else:
            raise ConfigError("name the recorded answers with --records, or two reports with --compare")
    typer.echo(json.dumps(told["json"], indent=2, allow_nan=False) if as_json else told["words"])


@dataclass(frozen=True, slots=True)
class Answers:
    """Where tiers, calibrators and prices stand. folder: of the calibrators of tables.  own: how to read those."""

    config: Path
    folder: Path | None
    prices: Path | None
    own: Own


def written(
    places: list[Path], source: Answers, out: Path, wish: Wish, created: str | None, stages: Stages
) -> dict[str, Any]:
    """Make and save; {"json": ..., "words": ...}."""
    from eval import report_curve, report_files

    report_files.check_free(out)  # before minutes of work
    report_curve.check_installed()
    twin = made(places, source, wish, created, stages)
    stages("drawing")
    paths = report_files.save(out, twin, report_curve.draw(twin))
    stages.close()
    files = [str(out / path.name) for path in paths]
    return {"json": {"report": twin, "files": files}, "words": "\n".join([twin["verdict"], "", *files])}


def made(places: list[Path], source: Answers, wish: Wish, created: str | None, stages: Stages) -> dict[str, Any]:
    from eval import report, tables

    tabled = not any(map(tables.collected, places))
    about = report.About(
        command=shlex.join(["confgate", *sys.argv[1:]]),
        created=moment(created),
        answers=tuple(places),
        config=None if tabled else source.config,
        prices=source.prices,
    )
    stages("reading the answers and measuring how sure each was")
    found = loaded(places, source.config, source.folder, wish, source.prices, source.own, stages.counting)
    return report.make(found, wish, about, note=stages)


# Comparing


def compared(pair: tuple[Path, Path], source: Answers, wish: Wish, stages: Stages) -> dict[str, Any]:
    import numpy as np

    from eval import report_compare

    first, second = (opened(place, source, wish, stages) for place in pair)
    found = report_compare.compare(first, second, np.random.default_rng(wish.seed))
    stages.close()
    numbers = [
        {"b against a": "right answers", "value": str(found.accuracy), "how": found.accuracy.how},
        {"b against a": "share of cost saved", "value": str(found.saving), "how": getattr(found.saving, "how", "")},
        {"b against a": "Brier of the p told", "value": str(found.brier), "how": getattr(found.brier, "how", "")},
    ]
    if found.p_value is not None:
        numbers.append(
            {"b against a": "McNemar, exact", "value": f"p = {found.p_value:.3g}", "how": "shared questions"}
        )
    parts = [
        found.verdict,
        f"a  {pair[0]}: {first.verdict}\nb  {pair[1]}: {second.verdict}",
        table(numbers),
        "what differs between the runs\n"
        + (table([{"what": what, "a": a, "b": b} for what, a, b in found.differs]) if found.differs else "nothing"),
    ]
    return {"json": {"a": str(pair[0]), "b": str(pair[1]), **found.as_json()}, "words": "\n\n".join(parts)}


def opened(place: Path, source: Answers, wish: Wish, stages: Stages) -> Read:
    """A report, or one made on the spot of recorded answers."""
    from eval import report_files

    if not holds_records(place):
        return report_files.read(place)
    twin = made([place], source, wish, None, stages)
    return report_files.checked(place, json.dumps(twin).encode())


def holds_records(place: Path) -> bool:
    from eval.records import RECORDS
    from eval.rows import READERS

    return place.suffix in READERS or (place / RECORDS).exists()


# How far it is


class Stages:
    """What is being done, on standard error: one line that rewrites itself on a terminal, one per stage elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._terminal = stream, stream.isatty()
        self._words = ""

    def __call__(self, words: str) -> None:
        self._words = words
        self._tell(words)

    def counting(self, rows: Iterable[Record]) -> Iterator[Record]:
        """The rows, with a count now and then."""
        pause = ON_TERMINAL if self._terminal else ELSEWHERE
        last = time.monotonic()
        for number, row in enumerate(rows, 1):
            yield row
            if time.monotonic() - last >= pause:
                last = time.monotonic()
                self._tell(f"{self._words}: {number:,} answers")

    def close(self) -> None:
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _tell(self, words: str) -> None:
        self._stream.write(f"\r{words}\x1b[K" if self._terminal else f"{words}\n")
        self._stream.flush()
