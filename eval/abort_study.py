"""What giving answers up early saves and costs, measured with the gateway's own cascade over recorded answers.

    python -m eval.abort_study --fit runs/pocket/calibration --test runs/pocket/test --out docs/results/early-abort.md

Calibrators and bounds are learned as `confgate fit --early-abort` does, on one collection; another one is replayed
through the policy, token by token, once for every epsilon.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from calibrators.scores import clopper_pearson
from eval import card, early_abort, fit, paired, records, seal, stats, tables
from eval.cli import as_command
from eval.early_abort import CONFIDENCE
from eval.fit import Fitting, How
from eval.grade import Grade
from eval.paired import FALLS, Change, sign
from eval.prefixes import the_split
from eval.records import MANIFEST, RECORDS, Record
from eval.replay import Recorded, answers
from gateway import cascade
from gateway import config as configs
from gateway.config import Config
from gateway.nouns import Answer, Ask, Floats, Hop, Message, Policy

ASK = Ask((Message("user", "recorded"),), deadline=0.0)  # judging looks at its sampler alone, and that is greedy
COLUMNS = ("right", "completion tokens", "usd", "seconds")


@dataclass(slots=True)
class Run:
    """One policy over n questions. rows: (n, 4), as COLUMNS; all tiers that were asked together.

    turns, given_up, lost, saved_tokens: by tier; lost: given up, though the whole answer would have been accepted.
    """

    name: str
    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    turns: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    saved_tokens: Counter[str] = field(default_factory=Counter)

    @property
    def table(self) -> Floats:
        return np.array(self.rows)


def study(config: Config, name: str, fit_on: Path, test_on: Path, epsilons: Sequence[float]) -> list[Run]:
    """The policy without early abort, with each epsilon, and without each of its tiers that it could skip instead."""
    with tempfile.TemporaryDirectory() as folder:
        route = learned(config, name, fit_on, test_on, Path(folder))
    runs = [played("off", test_on, route)]
    for epsilon in epsilons:
        tiers = tuple(replace(tier, abort_epsilon=epsilon) for tier in route.tiers)
        runs.append(played(f"{epsilon:g}", test_on, replace(route, tiers=tiers)))
    for start in range(1, len(route.tiers) - 1):
        left_out = ", ".join(tier.name for tier in route.tiers[:start])
        runs.append(played(f"off, without {left_out}", test_on, replace(route, tiers=route.tiers[start:])))
    return runs


def learned(config: Config, name: str, fit_on: Path, test_on: Path, folder: Path) -> Policy:
    """The policy with calibrators and bounds of `fit_on`, held against the engines of `test_on`."""
    every, manifest = tables.read(fit_on)
    order = [step.tier for step in config.policies[name].steps]
    split = the_split(fit_on)
    done = fit.fit(tables.ordered(every, order), How(split=split))
    known = early_abort.learn(done, [fit_on])
    terms = seal.Terms(manifest=manifest, split=split, seed=0, created=dt.datetime.now(dt.UTC), days=None)
    fitted = [one for one in done if isinstance(one, Fitting)]
    paths = seal.save([seal.seal(one, terms, known.get(one.tier)) for one in fitted], folder)
    where = {one.tier: path for one, path in zip(fitted, paths, strict=True)}
    tiers = tuple(entry.model_copy(update={"calibrator": where.get(entry.name)}) for entry in config.tiers)
    told = config.model_copy(update={"tiers": tiers})
    return asyncio.run(card.opened(told, name, [records.read_manifest(test_on / MANIFEST)]))


def played(name: str, test_on: Path, route: Policy) -> Run:
    """The policy over every question."""
    run = Run(name)
    chain = {tier.name: tier for tier in route.tiers}
    last = route.tiers[-1].name
    route = replace(route, tiers=(*route.tiers[:-1], replace(route.tiers[-1], threshold=None)))
    for told, answer in answers(records.read(test_on / RECORDS), route):
        right = float(told[answer.served.tier].grade is Grade.RIGHT)
        seconds = sum(lasted(hop, told[hop.tier]) for hop in answer.hops)
        run.rows.append((right, answer.cost.completion_tokens, answer.cost.usd, seconds))
        run.families.append(told[last].family)
        for place, hop in enumerate(answer.hops):
            run.turns[hop.tier] += 1
            if hop.given_up:
                record = told[hop.tier]
                run.given_up[hop.tier] += 1
                run.saved_tokens[hop.tier] += record.completion_tokens - hop.cost.completion_tokens
                run.lost[hop.tier] += accepted(answer, place, record, chain[hop.tier].threshold or 0.0, route)
    return run


def lasted(hop: Hop, record: Record) -> float:
    """Seconds of one turn: those of the record, by the share of its tokens that were made."""
    made = hop.cost.completion_tokens / max(1, record.completion_tokens) if hop.given_up else 1.0
    return record.seconds * min(1.0, made)


def accepted(answer: Answer, place: int, record: Record, threshold: float, route: Policy) -> bool:
    """Whether an answer that was given up would have been accepted as a whole, after the very same hops."""
    tier = next(tier for tier in route.tiers if tier.name == record.tier)
    whole = asyncio.run(Recorded(record).complete(ASK))
    verdict = cascade.judge(whole, tier, ASK, cascade.earlier_answers(answer.hops[:place]))
    return verdict.p_correct is not None and verdict.p_correct >= threshold


# The page


def page(runs: Sequence[Run], config: Path, policy: Mapping[str, float | None], command: str) -> str:
    """The study as Markdown. policy: threshold by tier, None for the last."""
    off, n, last = runs[0], len(runs[0].rows), list(policy)[-1]
    steps = ", then ".join(
        f"{tier} (p >= {accept_at:g})" if accept_at is not None else tier for tier, accept_at in policy.items()
    )
    lines = [
        "# Giving answers up early",
        "",
        f"Made by `{command}`.",
        "",
        f"{steps}; prices of {config.name}. {n:,} questions that nothing was learned from, replayed token by token "
        "through the gateway's cascade. `epsilon`: the share of answers worth accepting that a step bears among those "
        f"it gives up, as its upper limit ({CONFIDENCE:.0%}, all numbers of tokens at once) on the answers that were "
        "learned from. Differences are to the same questions without early abort, with 95 % intervals of a paired "
        f"bootstrap of {stats.RESAMPLES:,} by question. Seconds are the recorded ones, by the share of tokens that "
        "were made: an estimate, of models that answered side by side.",
        "",
        "| epsilon | accuracy | difference, points | completion tokens | difference | cost, USD per 1,000 | difference "
        "| seconds | difference | last tier asked |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        right, tokens, usd, seconds = run.table.mean(axis=0)
        change = {} if run is off else paired.told(differences(off, run))
        lines.append(
            f"| {run.name} | {right:.3f} | {change.get('right', '')} | {tokens:.1f} | "
            f"{change.get('completion tokens', '')} | {1000 * usd:.4f} | {change.get('usd', '')} | {seconds:.3f} | "
            f"{change.get('seconds', '')} | {run.turns[last] / n:.1%} |"
        )
    lines += [
        "",
        "## What was given up",
        "",
        "`worth accepting`: of the answers given up, those that would have met their tier's threshold, judged whole "
        "after the very same hops; exact 95 % intervals.",
        "",
        "| epsilon | tier | turns | given up | worth accepting, of those | tokens saved |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        for tier in run.given_up:
            lines.append(f"| {run.name} | {tier} | {run.turns[tier]} | {given_up(run, tier)} |")
    lines += ["", "## Does it pay?", "", *verdicts(runs), ""]
    return "\n".join(lines)


def differences(off: Run, run: Run) -> dict[str, Change]:
    """By column (value, low, high): accuracy in points, the others in per cent of what they are without early abort."""
    return paired.differences(off.table, run.table, off.families, COLUMNS)


def given_up(run: Run, tier: str) -> str:
    """How often, how often in vain, and how many tokens less."""
    n, lost = run.given_up[tier], run.lost[tier]
    low, high = (float(end[0]) for end in clopper_pearson(np.array([lost]), np.array([n])))
    worth = f"{lost} = {lost / n:.3f} [{low:.3f}, {high:.3f}]"
    return f"{n} ({n / run.turns[tier]:.0%}) | {worth} | {run.saved_tokens[tier]:,}"


def verdicts(runs: Sequence[Run]) -> list[str]:
    """A sentence for each way, by its intervals alone, and what follows from them."""
    off, told = runs[0], []
    cheaper: list[str] = []
    for run in runs[1:]:
        found = {name: sign(change) for name, change in differences(off, run).items()}
        told.append(f"- {run.name}: cost {found['usd']}, time {found['seconds']}, accuracy {found['right']}.")
        if found["usd"] == FALLS and found["right"] != FALLS:
            cheaper.append(run.name)
    early = [name for name in cheaper if not name.startswith("off")]
    instead = [name for name in cheaper if name.startswith("off")]
    if early:
        verdict = f"It pays here in money at {', '.join(early)}, at no measurable loss of accuracy."
    else:
        verdict = (
            "It does not pay here in money: no epsilon makes the cascade measurably cheaper at the same accuracy. What "
            "was given up tells the calibrators of later tiers nothing, so those are less often sure, and the last "
            "tier is asked more often."
        )
    if instead:
        verdict += f" What does: {'; '.join(instead)}."
    return [*told, "", verdict]


def main(
    fit_on: Annotated[Path, typer.Option("--fit", help="Folder of `collect` to learn from.")],
    test_on: Annotated[Path, typer.Option("--test", help="Folder of `collect` to replay.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The cascade.")] = Path("deploy/pocket/cascade.yaml"),
    policy: Annotated[str, typer.Option(help="One of its policies.")] = "default",
    epsilons: Annotated[str, typer.Option(help="With commas between.")] = "0.01,0.02,0.05,0.1,0.2",
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/results/early-abort.md"),
) -> None:
    """Tell what giving answers up early saves and costs."""
    settings = configs.read(config)
    runs = study(settings, policy, fit_on, test_on, [float(one) for one in epsilons.split(",")])
    command = shlex.join(["python", "-m", "eval.abort_study", *sys.argv[1:]])
    steps = {step.tier: step.accept_at for step in settings.policies[policy].steps}
    told = page(runs, config, steps, command)
    out.write_text(told, encoding="utf-8")
    typer.echo(told)


if __name__ == "__main__":
    as_command(main)
