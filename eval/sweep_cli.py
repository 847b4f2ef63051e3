"""`confgate sweep`: which chain of tiers and which thresholds, what that saves, and whether it is worth having."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from eval.cli import Columns, Divide, Implausible, called, listed, moment, one_line, plausible
from gateway.cli import AsJson, ConfigFile, table
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from eval.material import Material, Own, Wish
    from eval.recommend import Recommendation
    from eval.records import Record

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


# What may be wished for, here and of `confgate report`
ANSWERS = "Folder of `collect`, or your own .parquet, .jsonl or .csv table; may be repeated."
Records = Annotated[list[Path], typer.Option("--records", "-r", help=ANSWERS)]
Budget = Annotated[
    str | None, typer.Option(help="Most to spend per question, in the cost's unit; 40% is of the best model's.")
]
Target = Annotated[float | None, typer.Option(help="Least share of right answers, such as 0.94.")]
Rate = Annotated[float | None, typer.Option("--lambda", min=0, help="Right answers that one unit of cost is worth.")]
CostModel = Annotated[
    str | None, typer.Option(help="tokens, usd, flops, gpu-seconds, seconds, or cost: that column of your own table.")
]
Prices = Annotated[Path | None, typer.Option(help="YAML file of prices and machines. Without it: those of --config.")]
ChooseOn = Annotated[str | None, typer.Option(help="Split that chooses the policy.")]
TestOn = Annotated[str | None, typer.Option(help="Split that judges it; no calibrator may know it.")]
Candidates = Annotated[str | None, typer.Option(help="Candidates, with commas between. Without it: all.")]
Levels = Annotated[int, typer.Option(min=1, max=6, help="Longest chain to try.")]
Steps = Annotated[int, typer.Option(min=1, max=1000, help="Thresholds to try per level.")]
Certify = Annotated[
    float | None, typer.Option(help="Take the cheapest policy proven to err no more often than this, such as 0.05.")
]
Confidence = Annotated[float, typer.Option(help="Of every promise of the certificate.")]
Seed = Annotated[int, typer.Option(help="Of halves and intervals.")]
Calibrators = Annotated[
    Path | None,
    typer.Option(help="Of your own table: folder that `fit` wrote. Without it: calibrators, beside the table."),
]
Slices = Annotated[str | None, typer.Option(help="Of your own table: columns to break results down by.")]


@app.command()
def sweep(
    records: Records,
    config: ConfigFile = Path("cascade.yaml"),
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
    confidence: Confidence = 0.95,
    calibrators: Calibrators = None,
    columns: Columns = None,
    divide: Divide = None,
    write: Annotated[
        Path | None, typer.Option(help="Put the policy and its certificate into this cascade file; comments stay.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Which policy of the file --write changes.")] = "default",
    form: Annotated[
        str, typer.Option("--as", help="What --write writes: recommended, or the mix that spends --budget exactly.")
    ] = "recommended",
    implausible: Implausible = False,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Find the best policy for recorded answers and judge it on questions that did not choose it.

    Without a budget, target or lambda: as accurate as the best single model, for the least cost.
    Of a table of your own no cascade file is needed: `confgate fit` on it, then this.

    Example:  confgate sweep -r runs/calibration -r runs/test -c cascade.yaml --budget 40% --write cascade.yaml

    Example:  confgate sweep -r answers.csv
    """
    from eval import policy_file, recommend

    wish = wished(
        tiers=tiers, choose_on=choose_on, test_on=test_on, cost=cost, budget=budget, target=target, rate=rate,
        certify=certify, confidence=confidence, levels=levels, steps=steps, seed=seed,
    )  # fmt: skip
    check_form(form, writes=write is not None)
    plausible(records, implausible=implausible)
    with one_line(), comparable():
        if write is not None:
            check_served(records, write)
        how = own(columns, divide, None, seed)
        found = recommend.decide(loaded(records, config, calibrators, wish, prices, how), wish)
        certificate = recommend.certificate(found, moment(None).date())
        if write is not None and form == "mix":
            parts = recommend.parts_of(found, policy)
            policy_file.write_mix(write, policy, parts)
        elif write is not None:
            if found.promised.refused is not None:
                raise ConfigError(f"nothing was written to {write}: {found.promised.refused}")
            steps_wanted = recommend.steps_of(found.test, found.promised.route)
            policy_file.write(write, policy, steps_wanted, certificate)
    typer.echo(json.dumps(recommend.as_json(found), indent=2) if as_json else told(found))
    if as_json or write is None:
        return
    if form == "mix":
        shares = " and ".join(f"{share:.1%} of decisions follow {name}" for name, (_, share) in parts.items())
        typer.echo(f"\n{write}: policy {policy} is now a mix: {shares}")
        typer.echo("without a certificate: what was promised is about one policy, not about a mix")
    else:
        typer.echo(f"\n{write}: policy {policy} is now {found.promised.route.told(found.test.tiers)}")
        typer.echo(
            "its certificate stands there too" if certificate else "without a certificate: nothing can be promised"
        )


def check_form(form: str, *, writes: bool) -> None:
    """Raises ConfigError for what cannot be written, before anything is computed."""
    if form == "look-ahead":
        raise ConfigError(
            "look-ahead cannot be written: the gateway asks the tiers of a policy in order, and look-ahead skips tiers "
            "question by question; it is shown to say what that would gain. Take --as recommended or mix"
        )
    if form not in ("recommended", "mix"):
        raise ConfigError(f"--as is recommended or mix, got {form!r}")
    if form == "mix" and not writes:
        raise ConfigError("--as mix says what --write writes: name the cascade file with --write")


def check_served(places: Sequence[Path], write: Path) -> None:
    """Raises ConfigError for what a gateway could not serve, before anything is computed."""
    from eval import tables

    if not all(map(tables.collected, places)):
        raise ConfigError(
            f"nothing was written to {write}: calibrators of a table say what another system's confidences are worth, "
            "and the gateway measures its own on the log-probs of its engines; collect answers with `confgate collect` "
            "and fit on those to serve a policy, or decide by these thresholds where the confidences come from"
        )


def own(columns: str | None, divide: str | None, slices: str | None, seed: int) -> Own:
    """How to read a table of the user's own. Raises ConfigError."""
    from eval import material

    return material.Own(columns=called(columns), divide=divide, slices=listed(slices), seed=seed)


def loaded(
    places: Sequence[Path],
    config: Path,
    folder: Path | None,
    wish: Wish,
    prices: Path | None,
    how: Own,
    watch: Callable[[Iterable[Record]], Iterable[Record]] = lambda rows: rows,
) -> Material:
    """What to decide on, from records and a cascade file or from tables and their calibrators."""
    from eval import costs, material, tables
    from gateway import config as configs

    listed_prices = None if prices is None else costs.read(prices)
    kinds = {tables.collected(place) for place in places}
    if len(kinds) > 1:
        raise ConfigError("take what `confgate collect` recorded or tables of your own, not both at once")
    if True in kinds:
        if folder is not None or how.columns or how.divide or how.slices:
            raise ConfigError(
                "--calibrators, --columns, --divide and --slices are about tables of your own; of what was collected "
                "the cascade file names the calibrators"
            )
        return material.gather(places, configs.read(config), wish, listed_prices, watch=watch)
    return material.gather_tables(places, folder or places[0].parent / "calibrators", wish, listed_prices, how)


def wished(*, tiers: str | None, cost: str | None, **rest: Any) -> Wish:
    """The wish from the words on the command line. Raises ConfigError."""
    from eval import costs, material

    if cost is not None and cost not in costs.MODELS:
        raise ConfigError(f"no cost model {cost!r}; have {', '.join(costs.MODELS)}")
    return material.Wish(tiers=listed(tiers), cost=cast(Any, cost), **rest)


@contextlib.contextmanager
def comparable() -> Iterator[None]:
    """Numbers that cannot be compared are told like everything else that is wrong with the input."""
    from eval.stats import BadComparison

    try:
        yield
    except BadComparison as error:
        raise GatewayError(str(error)) from error


def told(found: Recommendation) -> str:
    """The verdict first, then the numbers it stands on."""
    from eval.stats import DEFINITIONS

    verdict, test, unit = found.verdict, found.test, found.test.cost_unit
    held_out = verdict.held_out
    numbers = {name: getattr(verdict, name) for name in ("saving", "gain", "skill")}
    parts = [
        verdict.sentence,
        f"chosen on {found.chosen_on.n:,} questions among {found.swept.combinations:,} policies: "
        f"{verdict.choice.route.told(test.tiers)}\n"
        f"there {held_out.chosen_accuracy:.1%} right at {held_out.chosen_cost:.4g} {unit} a question, "
        f"on the test {held_out.test_accuracy:.1%} at {held_out.test_cost:.4g}; optimism {held_out.optimism:+.1%}",
        table([{"number": name, "value": str(score), "how": score.how} for name, score in numbers.items()])
        + "\n"
        + table([{"chosen anew": name, "value": str(score), "how": score.how} for name, score in verdict.anew.items()]),
        f"frontier, chosen there and scored on the test ({unit} a question)\n"
        + table(
            [
                {"policy": route.told(test.tiers), "right": f"{played.accuracy:.1%}", "cost": played.mean_cost}
                for route, played in found.curve
            ]
        ),
        f"accuracy at shares of the cost of {test.tiers[verdict.reference.chain[0]]}, two efficient policies mixed\n"
        + table(
            [
                {"budget": f"{one.share:.0%}", "right": one.accuracy, "random mix": one.random, "cost": one.cost}
                for one in found.budgets
            ]
        ),
        table([{"metric": name, "value": str(one)} for name, one in found.metrics.items()]),
        "held against, each chosen like ours\n" + "\n".join([table(baselines(found)), *not_drawn(found)]),
        "models alone (exact McNemar, Holm)\n"
        + table(
            [
                {
                    "model": one.tier,
                    "right": f"{one.accuracy:.1%}",
                    "cost": one.cost,
                    "only ours right": one.only_policy,
                    "only it right": one.only_model,
                    "p": one.p_value,
                    "AUROC of its p": str(verdict.signals[one.tier]),
                }
                for one in verdict.against
            ]
        ),
        f"promises about {found.promised.route.told(test.tiers)}\n"
        + "\n".join(f"- {one}" for one in found.certificates)
        + f"\nhow it was chosen: {found.promised.chosen}",
        "words\n" + "\n".join(f"- {name}: {meaning}" for name, meaning in DEFINITIONS.items()),
    ]
    if found.mixed is not None:
        low, high = (route.told(test.tiers) for route in (found.mixed.low, found.mixed.high))
        parts.insert(
            3, f"to spend the budget exactly: {found.mixed.share:.1%} of requests to {high}, the rest to {low}"
        )
    return "\n\n".join([*parts, *[f"note: {note}" for note in found.notes]])


def not_drawn(found: Recommendation) -> list[str]:
    return [f"{name} is not among them: {why}" for name, why in found.absent.items()]


def baselines(found: Recommendation) -> list[dict[str, Any]]:
    """One row per reference line: what the goal would have taken of it, or its best point where it has no choice."""
    rows = []
    for line in found.lines:
        place = int(line.accuracy.argmax())
        right = line.accuracy[place] if line.picked is None else line.picked.accuracy
        paid = line.cost[place] if line.picked is None else line.picked.mean_cost
        rows.append({"baseline": line.name, "right": f"{right:.1%}", "cost": float(paid), "what": line.told})
    return rows
