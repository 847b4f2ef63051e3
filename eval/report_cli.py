"""`confgate report`: the sweep's findings as a page, Markdown, JSON and pictures; or two of them held together."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from eval.cli import Implausible, moment, one_line, plausible
from eval.sweep_cli import (
    Budget,
    Candidates,
    Certify,
    ChooseOn,
    CostModel,
    Levels,
    Prices,
    Rate,
    Seed,
    Steps,
    Target,
    TestOn,
    comparable,
    wished,
)
from gateway.cli import AsJson, ConfigFile, table
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from eval.material import Wish
    from eval.records import Record
    from eval.report_files import Read

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

ON_TERMINAL, ELSEWHERE = 0.2, 15.0  # seconds between two counts


@app.command()
def report(
    records: Annotated[
        list[Path] | None,
        typer.Option("--records", "-r", help="Folder of `collect`, or its Parquet file; may be repeated."),
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
    Example:  confgate report --compare report-monday report-tuesday
    """
    wish = wished(
        tiers=tiers, choose_on=choose_on, test_on=test_on, cost=cost, budget=budget, target=target, rate=rate,
        certify=certify, levels=levels, steps=steps, seed=seed,
    )  # fmt: skip
    stages = Stages(sys.stderr)
    recorded = records or [place for place in compare or () if holds_records(place)]
    plausible(recorded, implausible=implausible)
    with one_line(), comparable():
        if compare is not None:
            if records:
                raise ConfigError("take --compare or --records, not both: --compare names what it compares")
            told = compared(compare, config, wish, prices, stages)
        elif records:
            told = written(records, config, out, wish, prices, created, stages)
        else:
            raise ConfigError("name the recorded answers with --records, or two reports with --compare")
    typer.echo(json.dumps(told["json"], indent=2, allow_nan=False) if as_json else told["words"])


def written(
    places: list[Path],
    config: Path,
    out: Path,
    wish: Wish,
    prices: Path | None,
    created: str | None,
    stages: Stages,
) -> dict[str, Any]:
    """Make and save; {"json": ..., "words": ...}."""
    from eval import report_curve, report_files

    report_files.check_free(out)  # before minutes of work
    report_curve.check_installed()
    twin = made(places, config, wish, prices, created, stages)
    stages("drawing")
    paths = report_files.save(out, twin, report_curve.draw(twin))
    stages.close()
    files = [str(out / path.name) for path in paths]
    return {"json": {"report": twin, "files": files}, "words": "\n".join([twin["verdict"], "", *files])}


def made(
    places: list[Path], config: Path, wish: Wish, prices: Path | None, created: str | None, stages: Stages
) -> dict[str, Any]:
    from eval import costs, report
    from gateway import config as configs

    about = report.About(
        command=shlex.join(["confgate", *sys.argv[1:]]), created=moment(created), config=config, prices=prices
    )
    listed = None if prices is None else costs.read(prices)
    return report.make(places, configs.read(config), wish, about, prices=listed, note=stages, watch=stages.counting)


# Comparing


def compared(pair: tuple[Path, Path], config: Path, wish: Wish, prices: Path | None, stages: Stages) -> dict[str, Any]:
    import numpy as np

    from eval import report_compare

    first, second = (opened(place, config, wish, prices, stages) for place in pair)
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


def opened(place: Path, config: Path, wish: Wish, prices: Path | None, stages: Stages) -> Read:
    """A report, or one made on the spot of recorded answers."""
    from eval import report_files

    if not holds_records(place):
        return report_files.read(place)
    twin = made([place], config, wish, prices, None, stages)
    return report_files.checked(place, json.dumps(twin).encode())


def holds_records(place: Path) -> bool:
    from eval.records import RECORDS

    return place.suffix == ".parquet" or (place / RECORDS).exists()


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
