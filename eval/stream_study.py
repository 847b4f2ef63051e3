"""What the three ways to stream cost and are worth, by how many first tokens `prefix` decides on.

    python -m eval.stream_study --calibrators runs/pocket/first-tokens \
        --choose-on runs/pocket/validation --test-on runs/pocket/test --live 200 --out docs/results/streams.md

calibrators: those that `confgate fit --prefix K --out FOLDER` wrote, for several K. Recorded answers are replayed token
by token through the gateway's own streams and cascade, on a clock of their own. With --live the configuration's own
gateway is started, and the official client asks it the first questions of the test in every way.
"""

from __future__ import annotations

import asyncio
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from calibrators.scores import wilson
from eval import _questions, card, paired, records, stats
from eval._server import gateway
from eval.cli import as_command, share_cores
from eval.datasets import Question
from eval.grade import Grade, grade
from eval.paired import FALLS, RIGHT, sign
from eval.records import MANIFEST, RECORDS, Record
from eval.replay import Recorded, questions
from gateway import cascade, streaming
from gateway import config as configs
from gateway.config import Config
from gateway.errors import ConfigError, GatewayError
from gateway.nouns import Answer, Ask, Completion, Finish, Floats, Hear, Message, Opening, Piece, Policy, Tier
from gateway.resilience.guard import Guard

if TYPE_CHECKING:
    from openai import OpenAI

NAMED = re.compile(r"(?P<tier>.+)-prefix-(?P<tokens>\d+)\.json")  # as `confgate fit --prefix` calls them
FIRST, USD = "first token", "usd"
COLUMNS = (RIGHT, USD, FIRST, "last token")
BUFFER, COMMIT = "buffer", "commit"
ASK_SECONDS = 3600.0  # on the loop's clock; nothing here waits for anybody
ANSWER_SECONDS = 120.0
Mode = Callable[[Ask, Policy, streaming.Listener], Awaitable[Answer]]


@dataclass(slots=True)
class Clock:
    """Goes on when it is told to. seconds: since the request came."""

    seconds: float = 0.0


@dataclass(slots=True)
class Watch:
    """A listener that looks at the clock when the first piece comes."""

    clock: Clock
    first: float | None = None
    begun: bool = False

    async def begin(self, _: Opening) -> None:
        self.begun = True

    async def hear(self, _: Piece) -> None:
        if self.first is None:
            self.first = self.clock.seconds


class Paced(Recorded):
    """A recorded answer that takes its time: that of the record, shared evenly by its tokens."""

    def __init__(self, record: Record, clock: Clock) -> None:
        super().__init__(record)
        self._seconds, self._clock = record.seconds, clock

    async def complete(self, ask: Ask) -> Completion:
        completion = await super().complete(ask)
        self._clock.seconds += self._seconds
        return completion

    async def stream(self, ask: Ask, hear: Hear) -> Completion:
        began = self._clock.seconds
        whole = await super().complete(ask)

        async def heard(piece: Piece) -> None:
            self._clock.seconds = began + self._seconds * piece.tokens / max(1, whole.completion_tokens)
            await hear(piece)

        completion = await super().stream(ask, heard)
        self._clock.seconds = began + self._seconds
        return completion


@dataclass(frozen=True, slots=True)
class Way:
    """One way to stream. tokens: how many `prefix` decides on, None for the others."""

    name: str
    mode: Mode
    route: Policy
    tokens: int | None = None


@dataclass(slots=True)
class Seen:
    """One way over n questions. rows: (n, 4), as COLUMNS; seconds, and money of all tiers that were asked.

    served: by tier, how many answers were its own.
    """

    name: str
    tokens: int | None = None
    rows: list[tuple[float, float, float, float]] = field(default_factory=list)
    served: Counter[str] = field(default_factory=Counter)

    @property
    def table(self) -> Floats:
        return np.array(self.rows)


@dataclass(frozen=True, slots=True)
class Study:
    """Every way over the same questions, `buffer` first. families: of each question; resampled as a whole."""

    seen: tuple[Seen, ...]
    families: tuple[str, ...]

    def change(self, one: Seen) -> dict[str, paired.Change]:
        """Against `buffer`, by column."""
        return paired.differences(self.seen[0].table, one.table, self.families, COLUMNS)


# Replayed


def lengths(folder: Path) -> dict[int, dict[str, Path]]:
    """Calibrators by number of first tokens, then by tier. Raises ConfigError when there are none."""
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        if name := NAMED.fullmatch(path.name):
            found.setdefault(int(name["tokens"]), {})[name["tier"]] = path.resolve()
    if not found:
        raise ConfigError(f"{folder} holds no calibrators of first tokens; `confgate fit --prefix` makes them")
    return dict(sorted(found.items()))


def deciding_on(config: Config, calibrators: Mapping[str, Path]) -> Config:
    """The configuration whose streams in prefix mode are decided on by these."""
    tiers = (entry.model_copy(update={"prefix_calibrator": calibrators.get(entry.name)}) for entry in config.tiers)
    return config.model_copy(update={"tiers": tuple(tiers)})


def ways(config: Config, policy: str, folder: Path, collected: Path) -> list[Way]:
    """Every way to stream that policy, `buffer` first, held against the engines that were recorded.

    Raises ConfigError, ArtifactError.
    """
    known = lengths(folder)
    manifests = [records.read_manifest(collected / MANIFEST)]
    found: list[Way] = []
    for tokens, calibrators in known.items():
        route = asyncio.run(card.opened(deciding_on(config, calibrators), policy, manifests))
        if lacking := [tier.name for tier in route.tiers[:-1] if tier.prefix is None]:
            raise ConfigError(f"{folder} has no calibrator of {tokens} first tokens for {', '.join(lacking)}")
        found.append(Way(f"prefix, {tokens} tokens", streaming.prefix, route, tokens))
    return [Way(BUFFER, buffered, route), *found, Way(COMMIT, streaming.commit, route)]


async def buffered(ask: Ask, route: Policy, _: streaming.Listener) -> Answer:
    """Nothing is passed on before all is decided."""
    return await cascade.answer(ask, route)


def replayed(collected: Path, every: Sequence[Way]) -> Study:
    """All questions in all ways."""
    seen = tuple(Seen(way.name, way.tokens) for way in every)
    families: list[str] = []
    names = {tier.name for way in every for tier in way.route.tiers}
    with asyncio.Runner() as runner:
        for told in questions(records.read(collected / RECORDS), names):
            for way, one in zip(every, seen, strict=True):
                runner.run(add(one, way, told))
            families.append(next(iter(told.values())).family)
    return Study(seen, tuple(families))


async def add(seen: Seen, way: Way, told: Mapping[str, Record]) -> None:
    """One question, one way."""
    clock = Clock()
    watch = Watch(clock)
    tiers = tuple(recorded(tier, told[tier.name], clock) for tier in way.route.tiers)
    deadline = asyncio.get_running_loop().time() + ASK_SECONDS
    ask = Ask((Message("user", "recorded"),), deadline, top_k=max(tier.top_k for tier in tiers))
    answer = await way.mode(ask, replace(way.route, tiers=tiers), watch)
    tier = answer.served.tier
    first = clock.seconds if watch.first is None else watch.first
    seen.rows.append((float(told[tier].grade is Grade.RIGHT), answer.cost.usd, first, clock.seconds))
    seen.served[tier] += 1


def recorded(tier: Tier, record: Record, clock: Clock) -> Tier:
    """The tier, and what decides on its first tokens, with a record in place of its engine."""
    engine, guard = Paced(record, clock), Guard()
    first = tier.prefix and replace(tier.prefix, tier=replace(tier.prefix.tier, engine=engine, guard=guard))
    return replace(tier, engine=engine, guard=guard, prefix=first)


# Live


def live(config: Path, policy: str, asked: Sequence[Question]) -> Study:
    """What the configuration's own gateway answers to the official client. Raises NotServing, OpenAIError."""
    from openai import OpenAI

    with (
        gateway(config) as url,
        OpenAI(base_url=f"{url}/v1", api_key="anonymous", max_retries=0, timeout=ANSWER_SECONDS) as client,
    ):
        return listened(client, policy, asked)


def listened(client: OpenAI, policy: str, asked: Sequence[Question]) -> Study:
    """Every question in every way, one at a time; the ways take turns at being first, so that what else the machine
    does slows all of them."""
    modes = (BUFFER, "prefix", COMMIT)
    seen = {mode: Seen(mode) for mode in modes}
    for place, question in enumerate(asked):
        turn = place % len(modes)
        for mode in (*modes[turn:], *modes[:turn]):
            hear(client, f"auto:{policy}", question, mode, seen[mode])
    return Study(tuple(seen.values()), tuple(question.family or question.id for question in asked))


def hear(client: OpenAI, model: str, question: Question, mode: str, seen: Seen) -> None:
    """One question, one way, as any user of the client would ask it, but for the wish to see the route."""
    began, first, text, finish = time.monotonic(), None, [], Finish.STOP
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question.text}],
        stream=True,
        extra_body={"route": {"stream_mode": mode, "debug": True}},
    )
    route = None
    for chunk in stream:
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.monotonic()
                text.append(choice.delta.content)
            finish = Finish(choice.finish_reason) if choice.finish_reason else finish
        route = (chunk.model_extra or {}).get("route", route)
    ended = time.monotonic()
    if route is None:
        raise GatewayError("the stream does not say how it came about; does the configuration allow overrides.debug?")
    right = grade("".join(text), question.target, finish).grade is Grade.RIGHT
    seen.rows.append((float(right), float(route["cost"]["usd"]), (first or ended) - began, ended - began))
    seen.served[route["hops"][-1]["tier"]] += 1


def first(collected: Path, n: int) -> list[Question]:
    """The first n questions that a collection of one split asked. Raises ConfigError, BadRecords."""
    manifest = records.read_manifest(collected / MANIFEST)
    return _questions.questions(manifest.dataset, list(manifest.splits), data=None, n=n, seed=None)


# The page


def chosen(study: Study) -> Seen:
    """The cheapest number of first tokens among those that are not measurably less often right than `buffer`.

    Where all are, the most often right.
    """
    every = [one for one in study.seen if one.tokens is not None]
    good = [one for one in every if sign(study.change(one)[RIGHT]) != FALLS]
    if good:
        return min(good, key=lambda one: one.table[:, COLUMNS.index(USD)].mean())
    return max(every, key=lambda one: one.table[:, 0].mean())


def page(choice: Study, test: Study, heard: Study | None, facts: Mapping[str, str]) -> str:
    """The study as Markdown. facts: config, policy (its steps) and command."""
    best = next(one for one in test.seen if one.name == chosen(choice).name)
    lines = [
        "# What streaming costs, in its three modes",
        "",
        f"Made by `{facts['command']}`.",
        "",
        f"{facts['policy']}; prices of {facts['config']}. `prefix, k tokens`: calibrators of each tier's first k "
        "tokens decide, at the same thresholds; `commit`: the last tier, at once. Recorded answers are replayed token "
        "by token through the gateway's own streams; seconds are the recorded ones, shared evenly by an answer's "
        "tokens: an estimate, of models that answered many questions side by side, so ratios tell and not sizes. "
        "Differences are to `buffer` on the same questions, with 95 % intervals: Wilson's for accuracy, else a paired "
        f"bootstrap of {stats.RESAMPLES:,} by question.",
        "",
        f"## Unseen: {len(test.families):,} questions that nothing was fitted or chosen on",
        "",
        *table(test),
        "",
        f"## Chosen on {len(choice.families):,} other questions",
        "",
        f"{best.name}: the cheapest that is not measurably less often right than `buffer`.",
        "",
        *table(choice),
    ]
    if heard is not None:
        lines += [
            "",
            f"## Over HTTP: {len(heard.families):,} of the unseen questions, one at a time",
            "",
            f"The gateway of {facts['config']} as it stands, asked by the official Python client in every mode by "
            "turns; seconds are the client's, on a machine that had other work, so again ratios tell.",
            "",
            *table(heard),
        ]
    return "\n".join([*lines, "", "## Does it pay?", "", verdict(test, best), ""])


def table(study: Study) -> list[str]:
    every = list(dict.fromkeys(tier for one in study.seen for tier in one.served))
    lines = [
        "| mode | accuracy | difference, points | USD per 1,000 | difference | first token, s | difference "
        f"| last token, s | difference | answered by {', '.join(every)} |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for one in study.seen:
        right, usd, first, last = one.table.mean(axis=0)
        score = wilson("accuracy", float(one.table[:, 0].sum()), len(one.rows))
        change = {} if one is study.seen[0] else paired.told(study.change(one))
        told = [change.get(name, "") for name in COLUMNS]
        shares = ", ".join(f"{one.served[tier] / len(one.rows):.0%}" for tier in every)
        lines.append(
            f"| {one.name} | {right:.3f} [{score.low:.3f}, {score.high:.3f}] | {told[0]} | {1000 * usd:.4f} "
            f"| {told[1]} | {first:.2f} | {told[2]} | {last:.2f} | {told[3]} | {shares} |"
        )
    return lines


def verdict(test: Study, best: Seen) -> str:
    """What the unseen questions say of the chosen number, and whether drawing lots between the two other modes would
    have bought as much."""
    change = test.change(best)
    off, commit = test.seen[0].table.mean(axis=0), test.seen[-1].table.mean(axis=0)
    mine = best.table.mean(axis=0)
    usd, first = COLUMNS.index(USD), COLUMNS.index(FIRST)
    said = (
        f"Unseen, {best.name} brings the first token {-change[FIRST][0]:.0f} % sooner than `buffer` "
        f"({paired.told(change)[FIRST]}) for {paired.told(change)[USD]} of the money; accuracy {sign(change[RIGHT])}."
    )
    if not off[usd] < mine[usd] < commit[usd]:
        return said
    share = (mine[usd] - off[usd]) / (commit[usd] - off[usd])
    lots = off[first] + share * (commit[first] - off[first])
    better = [
        one.name
        for one in test.seen[1:-1]
        if one.table[:, first].mean() < off[first] + (commit[first] - off[first]) * spent(one, off[usd], commit[usd])
    ]
    return said + (
        f" For the same money `commit` for {share:.0%} of the questions and `buffer` for the rest would bring it after "
        f"{lots:.2f} s on average, where this takes {mine[first]:.2f} s. Sooner than such a mix of the same cost: "
        f"{', '.join(better) or 'none'}."
    )


def spent(one: Seen, least: float, most: float) -> float:
    """Where its cost stands between two others."""
    return float((one.table[:, COLUMNS.index(USD)].mean() - least) / (most - least))


def main(
    calibrators: Annotated[Path, typer.Option(help="Folder of `confgate fit --prefix K`, for several K.")],
    choose_on: Annotated[Path, typer.Option(help="Folder of `collect` to choose the number of tokens on.")],
    test_on: Annotated[Path, typer.Option(help="Folder of `collect` to tell of.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The cascade.")] = Path("deploy/pocket/cascade.yaml"),
    policy: Annotated[str, typer.Option(help="One of its policies.")] = "default",
    ask: Annotated[int, typer.Option("--live", min=0, help="So many questions over HTTP, too.")] = 0,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("docs/results/streams.md"),
) -> None:
    """Tell what streaming a policy costs and is worth, by mode and number of first tokens."""
    settings = configs.read(config)
    choice, test = (
        replayed(collected, ways(settings, policy, calibrators, collected)) for collected in (choose_on, test_on)
    )
    share_cores(settings)
    heard = live(config, policy, first(test_on, ask)) if ask else None
    steps = ", then ".join(
        step.tier + ("" if step.accept_at is None else f" (p >= {step.accept_at:g})")
        for step in settings.policies[policy].steps
    )
    command = shlex.join(["python", "-m", "eval.stream_study", *sys.argv[1:]])
    told = page(choice, test, heard, {"command": command, "policy": steps, "config": config.name})
    out.write_text(told, encoding="utf-8")
    typer.echo(told)


if __name__ == "__main__":
    as_command(main)
