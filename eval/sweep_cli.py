"""`confgate sweep`: which chain of tiers and which thresholds, what that saves, and whether it is worth having."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from eval.cli import Implausible, listed, moment, one_line, plausible
from gateway.cli import AsJson, ConfigFile, table
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from eval.material import Wish
    from eval.recommend import Recommendation

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


# What may be wished for, here and of `confgate report`
Records = Annotated[
    list[Path], typer.Option("--records", "-r", help="Folder of `collect`, or its Parquet file; may be repeated.")
]
Budget = Annotated[
    str | None, typer.Option(help="Most to spend per question, in the cost's unit; 40% is of the best model's.")
]
Target = Annotated[float | None, typer.Option(help="Least share of right answers, such as 0.94.")]
Rate = Annotated[float | None, typer.Option("--lambda", min=0, help="Right answers that one unit of cost is worth.")]
CostModel = Annotated[str | None, typer.Option(help="tokens, usd, flops, gpu-seconds or seconds.")]
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

    Example:  confgate sweep -r runs/calibration -r runs/test -c cascade.yaml --budget 40% --write cascade.yaml
    """
    from eval import costs, policy_file, recommend
    from gateway import config as configs

    wish = wished(
        tiers=tiers, choose_on=choose_on, test_on=test_on, cost=cost, budget=budget, target=target, rate=rate,
        certify=certify, confidence=confidence, levels=levels, steps=steps, seed=seed,
    )  # fmt: skip
    check_form(form, writes=write is not None)
    plausible(records, implausible=implausible)
    with one_line(), comparable():
        settings = configs.read(config)
        found = recommend.recommend(records, settings, wish, None if prices is None else costs.read(prices))
        certificate = recommend.certificate(found, settings, moment(None).date())
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
        "held against, each chosen like ours\n" + table(baselines(found)),
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


def baselines(found: Recommendation) -> list[dict[str, Any]]:
    """One row per reference line: what the goal would have taken of it, or its best point where it has no choice."""
    rows = []
    for line in found.lines:
        place = int(line.accuracy.argmax())
        right = line.accuracy[place] if line.picked is None else line.picked.accuracy
        paid = line.cost[place] if line.picked is None else line.picked.mean_cost
        rows.append({"baseline": line.name, "right": f"{right:.1%}", "cost": float(paid), "what": line.told})
    return rows
