"""`confgate monitors`: the reference that drift is measured against, and how quiet and how loud the monitors are.

Recorded questions come as traffic would: in random order, through the policy, labelled as graded. Quiet: halves of
one held-out split, one as the reference and the other as traffic, and simulated streams of honest probabilities. Loud:
after such quiet traffic, a shifted split.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators.artifact import Artifact
from calibrators.scores import proportion
from eval import records
from eval.card import opened
from eval.records import MANIFEST
from eval.replay import replay
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.monitor import drift, labels
from gateway.monitor.betting import Honesty
from gateway.monitor.drift import Shift
from gateway.monitor.feed import PAGE, Readable
from gateway.monitor.reference import NOTHING, Marks, Reference, TierReference, row, tagged, telling, tier_reference
from gateway.monitor.slices import Slices, Slicing
from gateway.monitor.windows import Block
from gateway.nouns import Floats, Hop, Policy
from gateway.store.base import Cursor, DecisionRow, HopRow, Role

ROWS = 200  # of one look here: the shifted splits have 300 questions each; the gateway's default is larger
PAGES = 50  # of the log at most, for a calibrator's own reference: 10,000 decisions, from all over its time
Place = tuple[str, str]
UNSLICED = Slicing()
Row = tuple[Floats, float, str, str]  # features and p, prompt tokens, client, metadata as of `tagged`


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """policy: whose traffic.  reference: a split that fitted nothing.  home: the split that is quiet traffic.

    halves: random halves of home.  orders: random orders of each shift.  streams, stream_labels: simulated.
    gateways: whose reference and requests are drawn from home with replacement, each so many.
    slicing: by length; records know of no clients.
    """

    policy: str = "default"
    reference: str = "validation"
    home: str = "test"
    halves: int = 20
    orders: int = 20
    streams: int = 1_000
    stream_labels: int = 2_000
    gateways: int = 200
    gateway_requests: int = 2_000
    tolerance: float = 0.0
    seed: int = 0
    slicing: Slicing = UNSLICED


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One question's way: rows by place as the windows take them, and what labels are about.

    prompt_tokens: as its first tier counted them.
    """

    rows: tuple[tuple[Place, Floats], ...]
    tier: str
    p_correct: float | None
    right: bool
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Drifted:
    """at: after how many requests drift was found, None for never.  looks: taken until then; slices: judged in them.
    named: what had drifted.
    """

    at: int | None
    looks: int
    slices: int
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Quiet:
    """Of random halves. drift, labels: those with an alarm.  looks: in all; slices: judged in them."""

    drift: int
    labels: int
    looks: int
    slices: int


@dataclass(frozen=True, slots=True)
class Endless:
    """Of gateways whose traffic never shifts. alarms: gateways with one.  looks, slices: as of Quiet."""

    gateways: int
    alarms: int
    looks: int
    slices: int


@dataclass(frozen=True, slots=True)
class Delay:
    """Of one shift. labels, requests: of each order that raised an alarm, counted from the shift's first request.

    drift: the same without labels.  accuracy, claimed: of the answers served.
    """

    shift: str
    n: int
    accuracy: float
    claimed: float
    labels: tuple[int, ...]
    drift: tuple[int, ...]
    named: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Everything measured."""

    request: Request
    n_reference: Mapping[str, int]
    n_home: int
    quiet: Quiet
    endless: Endless
    false_alarms: int
    stream_delays: Mapping[float, tuple[float, float, int]] = field(default_factory=dict)
    delays: Sequence[Delay] = ()


def measure(config: Config, sources: Sequence[Path], request: Request) -> tuple[Found, Reference]:
    """Replay and measure. Raises ConfigError when a split is not there, and what reading records raises."""
    route, heard = listened(config, sources, request.policy)
    for split in (request.reference, request.home):
        if split not in heard:
            raise ConfigError(f"no split {split!r} in the records; have {', '.join(sorted(heard))}")
    known = reference_of(heard[request.reference], route)
    rng = np.random.default_rng(request.seed)
    home = heard[request.home]
    calm = quiet(home, route, request, rng)
    shifted = [split for split in heard if split not in (request.reference, request.home, *fitted(config))]
    return Found(
        request=request,
        n_reference={tier: len(one.rows) for (_, tier), one in known.tiers.items()},
        n_home=len(home),
        quiet=calm,
        endless=endless(home, route, request, rng),
        false_alarms=false_alarms(request, rng),
        stream_delays={over: stream_delay(over, request, rng) for over in (0.02, 0.05, 0.1)},
        delays=[loud(split, heard[split], home, known, request, rng) for split in sorted(shifted)],
    ), known


def whole_reference(config: Config, sources: Sequence[Path], request: Request, known: Reference) -> Reference:
    """The reference of the request's policy with those of all others that tiers with calibrators make up.

    known: of the request's policy.
    """
    tiers = dict(known.tiers)
    calibrated = {entry.name for entry in config.tiers if entry.calibrator is not None}
    for name, entry in config.policies.items():
        if name != request.policy and entry.steps and {step.tier for step in entry.steps} <= calibrated:
            route, heard = listened(config, sources, name)
            tiers |= reference_of(heard[request.reference], route).tiers
    return Reference(tiers)


def fitted(config: Config) -> set[str]:
    """Splits that a calibrator was fitted on."""
    from calibrators import artifact as artifacts

    return {str(artifacts.load(one.calibrator).fit["split"]) for one in config.tiers if one.calibrator is not None}


def listened(config: Config, sources: Sequence[Path], name: str) -> tuple[Policy, dict[str, list[Asked]]]:
    """The policy, and every question by split."""
    files = [records.file_of(source) for source in sources]
    manifests = [records.read_manifest(file.parent / MANIFEST) for file in files]
    route = asyncio.run(opened(config, name, manifests))
    heard: dict[str, list[Asked]] = defaultdict(list)
    for one in replay(chain.from_iterable(map(records.read, files)), route):
        way = one.hops[: one.at + 1]
        heard[one.first.split].append(
            Asked(
                _rows(name, way),
                one.served.tier,
                one.served.p_correct,
                one.right(one.served.tier),
                way[0].cost.prompt_tokens,
            )
        )
    return route, dict(heard)


def _rows(name: str, hops: Sequence[Hop]) -> tuple[tuple[Place, Floats], ...]:
    return tuple(((name, hop.tier), row(hop)) for hop in telling(hops))


def reference_of(asked: Iterable[Asked], route: Policy) -> Reference:
    """What every tier of the policy sees. Tiers that see too few are left out."""
    seen: dict[Place, list[Row]] = defaultdict(list)
    for one in asked:
        for place, values in one.rows:
            seen[place].append((values, one.prompt_tokens, "", ""))
    tiers = {tier.name: (tier.calibrator_id, tier.features) for tier in route.tiers}
    return Reference(
        {place: fitted_reference(*tiers[place[1]], rows) for place, rows in seen.items() if len(rows) >= ROWS}
    )


def fitted_reference(calibrator: str, names: Sequence[str], rows: Sequence[Row]) -> TierReference:
    block = blocked(rows)
    return tier_reference(calibrator, names, block.rows, block.marks)


def blocked(rows: Sequence[Row]) -> Block:
    values, tokens, *words = zip(*rows, strict=True)
    clients, metadata = (np.array(told, dtype=np.str_) for told in words)
    return Block(np.stack(values), Marks(np.array(tokens, dtype=np.float64), clients, metadata))


def logged(config: Config, store: Readable, since: float, until: float) -> Reference:
    """What every tier of every policy saw between two times that are known to be good, seconds since 1970.

    Raises ConfigError where none saw enough, StoreDown.
    """
    return observed(config, spread(store, since, until))


def brought(
    config: Config, store: Readable, tier: str, parent: Artifact, child: Artifact, since: float, until: float
) -> Reference:
    """What a tier saw while the labels came that a child was fitted on, as the child judges it: its own reference.

    NOTHING where the tier saw too little, or by another calibrator than the parent. Raises StoreDown.
    """
    try:
        found = observed(config, spread(store, since, until, (until - since) / PAGES)).tiers
    except ConfigError:
        return NOTHING
    predict = child.calibrator().predict
    mine = {
        place: known.under(child.label, child.features, predict)
        for place, known in found.items()
        if place[1] == tier and known.calibrator == parent.label
    }
    return Reference({place: replace(known, had_of="") for place, known in mine.items() if known is not None})


def spread(
    store: Readable, since: float, until: float, apart: float = 0.0
) -> Iterator[tuple[DecisionRow, tuple[HopRow, ...]]]:
    """The log between two times, page by page. apart: seconds between the beginnings of two pages, at least; what is
    between a page's end and the next one's beginning is left out."""
    after: Cursor = (since, "", "")
    while (page := store.decisions(after, PAGE)) and page[0][0].at < until:
        yield from (one for one in page if one[0].at < until)
        after = max((page[-1][0].at, page[-1][0].number, ""), (after[0] + apart, "", ""))


def observed(config: Config, decisions: Iterable[tuple[DecisionRow, tuple[HopRow, ...]]]) -> Reference:
    """What every tier of every policy saw in these decisions.

    As the windows take it: decisions by the policy as it is written, hops with evidence that no fault led to. Of a tier
    the calibrator of the latest row counts. Tiers that saw too little are left out.

    Raises ConfigError where none saw enough, StoreDown.
    """
    steps = {name: {step.tier: step.accept_at for step in entry.steps} for name, entry in config.policies.items()}
    seen: dict[Place, dict[tuple[str, tuple[str, ...]], list[Row]]] = defaultdict(dict)
    for decision, hops in decisions:
        if decision.status == 200:
            for hop, tokens in _evident(hops, steps.get(decision.policy, {})):
                of_tier = seen[decision.policy, hop.tier]
                kind = hop.calibrator, tuple(hop.features)
                rows = of_tier.pop(kind, [])
                of_tier[kind] = rows  # the latest is the last
                values = [np.nan if one is None else one for one in hop.features.values()]
                told = tagged(decision.metadata)
                rows.append((np.array([*values, hop.p_correct]), tokens, decision.client, told))
    latest = {place: next(reversed(kinds.items())) for place, kinds in seen.items()}
    found = {
        place: fitted_reference(*kind, rows)
        for place, (kind, rows) in latest.items()
        if len(rows) >= max(ROWS, 10 * (len(kind[1]) + 1))
    }
    if not found:
        counted = ", ".join(f"{policy}/{tier} {len(rows):,}" for (policy, tier), (_, rows) in latest.items())
        raise ConfigError(
            f"no tier has the {ROWS} rows in the log that a reference takes (there is: {counted or 'nothing'}); "
            "take a longer time, or write one from recorded answers with --records"
        )
    return Reference(found)


def _evident(hops: Sequence[HopRow], steps: Mapping[str, float | None]) -> Iterator[tuple[HopRow, int]]:
    """A decision's hops that may be compared, as `telling` has it, with the prompt tokens of the first."""
    way = [hop for hop in hops if hop.role is Role.HOP]
    for hop in way:
        if hop.error or hop.p_correct is None or not hop.features:
            return
        if hop.tier not in steps or hop.threshold != steps[hop.tier]:
            return  # by a threshold that the request asked for, or an earlier configuration
        yield hop, way[0].prompt_tokens


def quiet(home: Sequence[Asked], route: Policy, request: Request, rng: np.random.Generator) -> Quiet:
    """Halves of one split, one as the reference and the other as traffic."""
    by_drift = by_labels = looks = in_slices = 0
    for _ in range(request.halves):
        order = [home[i] for i in rng.permutation(len(home))]
        middle = len(order) // 2
        first, second = order[:middle], order[middle:]
        found = drift_alarm(second, reference_of(first, route), request.slicing)
        by_drift += found.at is not None
        looks += found.looks
        in_slices += found.slices
        by_labels += label_alarm((), second, request.tolerance) is not None
    return Quiet(by_drift, by_labels, looks, in_slices)


def endless(home: Sequence[Asked], route: Policy, request: Request, rng: np.random.Generator) -> Endless:
    """Gateways whose reference and traffic are drawn from the same questions, with replacement: no shift, ever."""
    alarms = looks = in_slices = 0
    for _ in range(request.gateways):
        first, traffic = (
            [home[i] for i in rng.integers(len(home), size=size)] for size in (len(home), request.gateway_requests)
        )
        found = drift_alarm(traffic, reference_of(first, route), request.slicing)
        alarms += found.at is not None
        looks += found.looks
        in_slices += found.slices
    return Endless(request.gateways, alarms, looks, in_slices)


def drift_alarm(traffic: Sequence[Asked], known: Reference, slicing: Slicing) -> Drifted:
    """The first alarm of drift, of a tier or of a slice of one."""
    waiting: dict[Place, list[Row]] = defaultdict(list)
    slices = Slices(known, slicing, ROWS)
    looks = judged = 0
    for n, one in enumerate(traffic, 1):
        for place, values in one.rows:
            if place in known.tiers:
                waiting[place].append((values, one.prompt_tokens, "", ""))
        full = {place: blocked(rows) for place, rows in waiting.items() if len(rows) == ROWS}
        if not full:
            continue
        for place in full:
            waiting[place] = []
        looks += 1
        parts = slices.take(full)
        judged += len(parts)
        wholes = {place: block.rows for place, block in full.items()}
        found = [shift for shift in drift.shifts(known, wholes, parts, look=looks) if shift.drifted]
        if found:
            named = sorted(
                {f"{shift.tier}{f' ({shift.slice})' if shift.slice else ''} {shift.what}" for shift in found}
            )
            return Drifted(n, looks, judged, tuple(named))
    return Drifted(None, looks, judged)


def _name(shift: Shift) -> str:
    return f"{shift.tier} ({shift.slice}) {shift.what}" if shift.slice else f"{shift.tier} {shift.what}"


def label_alarm(before: Sequence[Asked], after: Sequence[Asked], tolerance: float) -> int | None:
    """After how many labels of `after` the policy, or a tier, was proven over-confident, None for never.

    Every served answer with a p is labelled. An alarm in `before` is a false one and counts as 0.
    """
    states: dict[str, Honesty] = {}
    for n, one in enumerate(chain(before, after), 1 - len(before)):
        if one.p_correct is None:
            continue
        for tier in (one.tier, labels.ROUTED):
            state = states.get(tier) or Honesty.fresh(tolerance)
            states[tier] = state.after(one.p_correct, float(one.right))
            if bool(states[tier].overconfident(labels.ALPHA)):
                return max(n, 0)
    return None


def loud(
    split: str, asked: Sequence[Asked], home: Sequence[Asked], known: Reference, request: Request,
    rng: np.random.Generator,
) -> Delay:  # fmt: skip
    """Delays over random orders of one shift, each after half of home as quiet traffic for the labels."""
    by_labels, by_drift = [], []
    named: set[str] = set()
    for _ in range(request.orders):
        order = [asked[i] for i in rng.permutation(len(asked))]
        before = [home[i] for i in rng.permutation(len(home))[: len(home) // 2]]
        first = label_alarm(before, order, request.tolerance)
        if first is not None:
            by_labels.append(first)
        found = drift_alarm(order, known, request.slicing)
        if found.at is not None:
            by_drift.append(found.at)
            named |= set(found.named)
    p = [one.p_correct for one in asked if one.p_correct is not None]
    return Delay(
        split, len(asked), float(np.mean([one.right for one in asked])), float(np.mean(p)), tuple(by_labels),
        tuple(by_drift), tuple(sorted(named, key=lambda name: (" (" in name, name))),
    )  # fmt: skip


# Simulated streams, science 7.2


def _stream(over: float, request: Request, rng: np.random.Generator) -> tuple[Floats, npt.NDArray[np.bool_]]:
    p = rng.beta(9, 1, size=(request.stream_labels, request.streams))
    return p, rng.random(p.shape) < p - over


def false_alarms(request: Request, rng: np.random.Generator) -> int:
    """Honest streams that raised an alarm of either side, at any of their labels."""
    state = Honesty.fresh(0.0, (request.streams,))
    for p, right in zip(*_stream(0.0, request, rng), strict=True):
        state = state.after(p, right)
    limit = np.log(2 / labels.ALPHA)
    return int(((state.peak_over >= limit) | (state.peak_under >= limit)).sum())


def stream_delay(over: float, request: Request, rng: np.random.Generator) -> tuple[float, float, int]:
    """Median and 90th percentile of the labels until over-confidence is proven, and how many streams never were."""
    state, when = Honesty.fresh(0.0, (request.streams,)), np.full(request.streams, np.inf)
    for n, (p, right) in enumerate(zip(*_stream(over, request, rng), strict=True), 1):
        state = state.after(p, right)
        when = np.where(np.isinf(when) & (state.peak_over >= np.log(2 / labels.ALPHA)), n, when)
    low, high = np.quantile(when, [0.5, 0.9], method="higher")
    return float(low), float(high), int(np.isinf(when).sum())


# Words


def told(found: Found, rebuild: str) -> str:
    """The page."""
    request = found.request
    alarms = proportion("false alarms", found.false_alarms, request.streams)
    drifting = proportion("false alarms of drift", found.endless.alarms, found.endless.gateways)
    lines = [
        "# Monitors: how quiet, and how loud",
        "",
        f"Policy `{request.policy}`, replayed. Reference: split `{request.reference}`, rows per tier: "
        + ", ".join(f"{tier} {n:,}" for tier, n in found.n_reference.items())
        + ".",
        f"Made by `{rebuild}`.",
        "",
        "## Quiet on stationary traffic",
        "",
        f"- {request.halves} random halves of `{request.home}` ({found.n_home:,} questions), the other half as the "
        f"reference: drift alarms in {found.quiet.drift} of {request.halves} ({found.quiet.looks} looks at tiers, "
        f"{found.quiet.slices} at slices of them by the length of the prompt); alarms of labels (over-confident, any "
        f"tier or the whole) in {found.quiet.labels} of {request.halves}.",
        f"- {found.endless.gateways:,} simulated gateways, each with a reference of {found.n_home:,} and "
        f"{request.gateway_requests:,} requests drawn from the same split with replacement: drift alarms in "
        f"{found.endless.alarms}, {drifting.value:.2%} [{drifting.low:.2%}, {drifting.high:.2%}] "
        f"({found.endless.looks:,} looks at tiers, {found.endless.slices:,} at slices); alpha is {drift.ALPHA:.0%}.",
        f"- {request.streams:,} simulated honest streams of {request.stream_labels:,} labels, p ~ Beta(9, 1), looked "
        f"at after every label: {found.false_alarms} alarms, {alarms.value:.2%} [{alarms.low:.2%}, {alarms.high:.2%}]; "
        f"alpha is {labels.ALPHA:.0%}.",
        "",
        "## Loud on over-confidence (simulated)",
        "",
        "| claimed above truth by | labels until alarm, median | 90th percentile | never, of all |",
        "| --- | --- | --- | --- |",
    ]
    for over, (middle, late, never) in found.stream_delays.items():
        lines.append(f"| {over:.2f} | {_labels(middle)} | {_labels(late)} | {never:,} of {request.streams:,} |")
    lines += [
        "",
        "## Loud on shifts",
        "",
        f"Each in {request.orders} random orders. Labels: after {found.n_home // 2:,} quiet ones, every served answer "
        f"labelled. Requests: without labels, looked at whenever a tier has {ROWS} rows; a shifted split's questions "
        "are all there is, so one that raises no alarm within its n may do so later.",
        "",
        "| shift | n | right | claimed | labels until alarm, median [least, most] | orders | requests until drift "
        "alarm, median [least, most] | orders | what drifted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in found.delays:
        lines.append(
            f"| {one.shift} | {one.n:,} | {one.accuracy:.1%} | {one.claimed:.1%} | {_spread(one.labels)} | "
            f"{len(one.labels)}/{request.orders} | {_spread(one.drift)} | {len(one.drift)}/{request.orders} | "
            f"{_named(one.named)} |"
        )
    return "\n".join([*lines, ""])


def _labels(value: float) -> str:
    return f"{value:,.0f}" if np.isfinite(value) else "not reached"


def _spread(values: Sequence[int]) -> str:
    return f"{np.median(values):,.0f} [{min(values):,}, {max(values):,}]" if values else "none"


def _named(named: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(named) - most} more" if len(named) > most else ""
    return ", ".join(named[:most]) + rest if named else "nothing"


def as_json(found: Found) -> dict[str, Any]:
    return {
        "reference_rows": dict(found.n_reference),
        "home_n": found.n_home,
        "halves": found.request.halves,
        "halves_with_drift_alarm": found.quiet.drift,
        "halves_with_label_alarm": found.quiet.labels,
        "looks": found.quiet.looks,
        "looks_at_slices": found.quiet.slices,
        "gateways": found.endless.gateways,
        "gateways_with_drift_alarm": found.endless.alarms,
        "streams": found.request.streams,
        "streams_with_false_alarm": found.false_alarms,
        "shifts": {
            one.shift: {
                "n": one.n, "accuracy": one.accuracy, "claimed": one.claimed, "labels": one.labels,
                "requests": one.drift, "drifted": one.named,
            }
            for one in found.delays
        },
    }  # fmt: skip
