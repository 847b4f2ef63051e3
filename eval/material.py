"""What a policy is chosen from and judged on: recorded answers with the gateway's own p, split and priced."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from calibrators import artifact as artifacts
from eval import costs, held_out, records
from eval.card import Absent, identity
from eval.costs import CostFile, Model, TierCost
from eval.crossed import Crossed, group_codes
from eval.crossing import Crossing, cross
from eval.held_out import HeldOut
from eval.records import MANIFEST, RECORDS, Manifest, Record
from eval.sweep import STEPS
from eval.verdict import LEVELS
from gateway import snapshot
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.nouns import Tier

TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What people may choose.

    tiers: candidates, all of the configuration's when empty.  choose_on, test_on: splits; None finds them.
    cost: None takes money where there are prices and tokens where there are none.  budget: mean cost per question, or
    a share of the most accurate model's as "40%".  target: share right.  rate: lambda.  certify: error rate to prove.
    confidence: of every promise.
    """

    tiers: tuple[str, ...] = ()
    choose_on: str | None = None
    test_on: str | None = None
    cost: Model | None = None
    budget: str | None = None
    target: float | None = None
    rate: float | None = None
    certify: float | None = None
    confidence: float = 0.95
    levels: int = LEVELS
    steps: int = STEPS
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """What a recommendation is made from: recorded answers with the gateway's own p, priced.

    chosen_on, test: what chooses and what judges.  notes: what a reader must know of them.  named: the splits of both.
    """

    chosen_on: Crossing
    test: Crossing
    notes: tuple[str, ...]
    named: tuple[str, str]


def gather(
    places: Sequence[Path],
    config: Config,
    wish: Wish,
    prices: CostFile | None = None,
    *,
    watch: Callable[[Iterable[Record]], Iterable[Record]] = lambda rows: rows,
) -> Material:
    """Read, calibrate, split and price. watch: the records pass through it while they are read.

    Raises GatewayError leaves and ArtifactError.
    """
    folders = [place if place.is_dir() else place.parent for place in places]
    files = [place / RECORDS if place.is_dir() else place for place in places]
    manifests = [records.read_manifest(folder / MANIFEST) for folder in folders]
    tiers, notes = open_tiers(config, manifests, wish.tiers)
    unseen = held_out.of(config)
    crossings = cross(watch(chain.from_iterable(records.read(file) for file in files)), tiers, unseen)
    chosen_on, test, named, told = divided(crossings, config, wish)
    told += fitted_questions(chosen_on.table, test.table, unseen)
    notes += told
    notes += [
        f"{one.unasked} questions of {split} left out: some tier gave no answer"
        for split, one in crossings.items()
        if one.unasked
    ]
    notes += bound(chosen_on.table)
    model = wish.cost or ("usd" if any(entry.prices.usd_per_mtok_out for entry in config.tiers) else "tokens")
    listed = prices or own_prices(config)
    chosen_on, test = (priced(one, model, listed) for one in (chosen_on, test))
    return Material(chosen_on, test, tuple(notes), named)


# Tiers and questions


def open_tiers(config: Config, manifests: Sequence[Manifest], wanted: Sequence[str]) -> tuple[list[Tier], list[str]]:
    """The config's tiers that were collected, each calibrator held against every engine its answers came from.

    A tier without a calibrator can only be the last of a chain. wanted: these alone. Raises ConfigError, ArtifactError.
    """
    entries = [entry for entry in config.tiers if not wanted or entry.name in wanted]
    for name in wanted:
        if name not in {entry.name for entry in entries}:
            raise ConfigError(f"no tier {name!r}; have {', '.join(entry.name for entry in config.tiers)}")
    tiers, notes = [], []
    for entry in entries:
        for manifest in manifests:
            bare = snapshot.bare_tier(entry, Absent(entry.name, identity(manifest, entry.name)))
            tier = asyncio.run(snapshot.calibrated(bare, entry, 0.0, config.signers))
        tiers.append(tier)
        if entry.calibrator is None:
            notes.append(f"{entry.name} has no calibrator, so no answer of it is accepted before the last step")
    return tiers, notes


def bound(table: Crossed) -> list[str]:
    """A note for each tier that has a confidence only after the tiers it was fitted after: no chain can skip those."""
    return [
        f"{name} has no confidence unless {', '.join(table.tiers[:tier])} were asked before, so a chain that skips one "
        "of them cannot stop there; fit with --upstream off to try those too"
        for tier, name in enumerate(table.tiers)
        if bool(np.isnan(table.p_of((tier,))).all()) and not np.isnan(table.p_of(tuple(range(tier + 1)))).all()
    ]


def divided(
    crossings: Mapping[str, Crossing], config: Config, wish: Wish
) -> tuple[Crossing, Crossing, tuple[str, str], list[str]]:
    """(what chooses, what tests, their names, notes). One split, alone or named twice, is halved by question family.

    Raises ConfigError where it is not clear which split is which, or calibrators were fitted or tuned on the test, or
    fitted on what chooses and nobody knows what they say out of fold.
    """
    have = list(crossings)
    for name in (wish.choose_on, wish.test_on):
        if name is not None and name not in crossings:
            raise ConfigError(f"no split {name!r} in these records; have {', '.join(have)}")
    fitted, tuned = fitted_on(config), tuned_on(config)
    test_on = wish.test_on or (TEST if TEST in have and len(have) > 1 and wish.choose_on != TEST else None)
    rest = [name for name in have if name != test_on]
    choose_on = wish.choose_on or (rest[0] if len(rest) == 1 else None)
    if len(have) == 1 or (choose_on is not None and choose_on == test_on):
        only = choose_on or have[0]
        if only in fitted | tuned:
            raise ConfigError(f"calibrators were fitted on {only!r}, so no part of it can test; collect another split")
        notes = [f"one half of the questions of {only} chose the policy, the other half tests it"]
        return (*_halves(crossings[only], wish.seed), (f"one half of {only}", f"the other half of {only}"), notes)
    if choose_on is None or test_on is None:
        raise ConfigError(f"say with --choose-on and --test-on which splits choose and test; have {', '.join(have)}")
    if test_on in fitted | tuned:
        raise ConfigError(f"calibrators were fitted on {test_on!r}: a test there shows nothing; take another split")
    notes = [f"policies chosen on {choose_on}, scored on {test_on}"]
    if choose_on in fitted:
        blind = [
            entry.name
            for entry in config.tiers
            if entry.calibrator is not None
            and artifacts.load(entry.calibrator).fit.get("split") == choose_on
            and not held_out.beside(entry.calibrator).is_file()
        ]
        if blind:
            raise ConfigError(
                f"the calibrators of {', '.join(blind)} were fitted on {choose_on!r}, where their p is too good to "
                "choose by, and there are no out-of-fold probabilities beside their artefacts: run `confgate fit` "
                "again, which writes them, or choose on another split with --choose-on"
            )
        notes.append(f"calibrators were fitted on {choose_on} too; there p is out of fold")
    return crossings[choose_on], crossings[test_on], (choose_on, test_on), notes


def fitted_questions(chosen_on: Crossed, test: Crossed, unseen: Mapping[str, HeldOut]) -> list[str]:
    """A note on which questions of the fit choose. Raises ConfigError when some of them would test, however called."""
    known = {question for one in unseen.values() for question in one.p}
    shared = known & set(test.questions)
    if shared:
        raise ConfigError(
            f"calibrators were fitted on {len(shared)} of the questions that test ({min(shared)}, ...): a test there "
            "shows nothing; take another split"
        )
    inside = len(known & set(chosen_on.questions))
    return [f"{inside:,} of the {chosen_on.n:,} questions that choose take their p out of fold"] if inside else []


def fitted_on(config: Config) -> set[str]:
    """The splits that the configuration's calibrators were fitted on, as their artefacts say."""
    return {str(one.fit["split"]) for one in _artifacts(config) if "split" in one.fit}


def tuned_on(config: Config) -> set[str]:
    """The splits that the strength of their objectives was chosen on."""
    tuned = [one.fit.get("tune") for one in _artifacts(config)]
    return {str(split) for splits in tuned if isinstance(splits, list | tuple) for split in splits}


def _artifacts(config: Config) -> list[artifacts.Artifact]:
    return [artifacts.load(entry.calibrator) for entry in config.tiers if entry.calibrator is not None]


def _halves(whole: Crossing, seed: int) -> tuple[Crossing, Crossing]:
    codes = group_codes(whole.table)
    coin = np.random.default_rng(seed).permutation(int(codes.max()) + 1) % 2
    first = coin[codes] == 0
    return whole.rows(first), whole.rows(~first)


# Costs


def own_prices(config: Config) -> CostFile:
    """The prices that the cascade file holds."""
    return CostFile(
        tiers={
            entry.name: TierCost(
                usd_per_mtok_in=entry.prices.usd_per_mtok_in, usd_per_mtok_out=entry.prices.usd_per_mtok_out
            )
            for entry in config.tiers
        }
    )


def priced(one: Crossing, model: Model, prices: CostFile) -> Crossing:
    cost = costs.cost(model, one.usage, prices)
    costs.check_unit(model, one.table.tiers, cost)
    return replace(one, table=one.table.costing(cost, model))
