"""What a policy is chosen from and judged on: answers with the gateway's own p, split and priced.

Two doors: records of `confgate collect`, whose tiers stand in a cascade file, and tables of the user's own, whose
models have the calibrators that `confgate fit` made of such a table. Behind them all is the same.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact
from eval import costs, held_out, records, tables
from eval.card import Absent, identity
from eval.costs import CostFile, Model, TierCost, Usage
from eval.crossed import Crossed, group_codes
from eval.crossing import Crossing, cross, cross_tables
from eval.held_out import HeldOut
from eval.records import MANIFEST, Manifest, Record
from eval.seal import EXTERNAL
from eval.sweep import STEPS
from eval.tables import Table
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
    calibrators: the artefacts' files by tier.
    """

    chosen_on: Crossing
    test: Crossing
    notes: tuple[str, ...]
    named: tuple[str, str]
    calibrators: Mapping[str, Path] = field(default_factory=dict)


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
    files = [records.file_of(place) for place in places]
    manifests = [records.read_manifest(file.parent / MANIFEST) for file in files]
    tiers, notes = open_tiers(config, manifests, wish.tiers)
    calibrators = of_config(config)
    unseen = held_out.of(calibrators)
    crossings = cross(watch(chain.from_iterable(records.read(file) for file in files)), tiers, unseen)
    model = wish.cost or ("usd" if any(entry.prices.usd_per_mtok_out for entry in config.tiers) else "tokens")
    return _made(crossings, calibrators, unseen, wish, model, prices or own_prices(config), notes)


def gather_tables(
    places: Sequence[Path], folder: Path, wish: Wish, prices: CostFile | None = None, own: Own | None = None
) -> Material:
    """The same from tables of the user's own. folder: of the artefacts that `confgate fit` made of such tables.

    A model without one can only be the last of a chain. Models are asked in the order of the wish, or cheapest first.
    Raises GatewayError leaves, CalibrationError and ArtifactError.
    """
    how = own or Own()
    sealed = of_folder(folder)
    columns = [name for artifact, _ in sealed.values() for name in artifact.features if not tables.looks_back(name)]
    every = how.read(places, list(dict.fromkeys(columns)))
    if not sealed.keys() & every.keys():
        raise ConfigError(
            f"no calibrator in {folder} is of {', '.join(every)}, but of {', '.join(sealed)}: make them with "
            "`confgate fit` on the table, and name their folder with --calibrators"
        )
    every = tables.ordered(every, wish.tiers)
    spent = {tier: _spent(table) for tier, table in every.items()}
    model = wish.cost or costs.likeliest(next(iter(spent.values())), prices)
    if not wish.tiers:
        mean = {tier: float(costs.cost(model, usage, prices).mean()) for tier, usage in spent.items()}
        every = tables.ordered(every, sorted(every, key=lambda tier: mean[tier]))
    tiers = [_of_table(table, *sealed.get(tier, (None, folder))) for tier, table in every.items()]
    calibrators = {tier: path for tier, (_, path) in sealed.items() if tier in every}
    unseen = held_out.of(calibrators)
    notes = [uncalibrated(tier) for tier in every if tier not in calibrators]
    order = ", ".join(every)
    notes += [] if wish.tiers else [f"chains go from cheaper to dearer models: {order}; --tiers names another order"]
    return _made(cross_tables(every, tiers, unseen), calibrators, unseen, wish, model, prices, notes)


def _made(
    crossings: Mapping[str, Crossing],
    calibrators: Mapping[str, Path],
    unseen: Mapping[str, HeldOut],
    wish: Wish,
    model: Model,
    prices: CostFile | None,
    notes: Sequence[str],
) -> Material:
    """Split and priced."""
    chosen_on, test, named, told = divided(crossings, calibrators, wish)
    told += fitted_questions(chosen_on.table, test.table, unseen)
    told += [
        f"{one.unasked} questions of {split} left out: some tier gave no answer"
        for split, one in crossings.items()
        if one.unasked
    ]
    told += bound(chosen_on.table)
    chosen_on, test = (priced(one, model, prices) for one in (chosen_on, test))
    return Material(chosen_on, test, (*notes, *told), named, calibrators)


# Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """How a table of the user's own is read. columns: what ours are called there.  divide: "all:fit=0.6,test=0.4".

    slices: columns to break results down by.  seed: of the dealing out.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    divide: str | None = None
    slices: tuple[str, ...] = ()
    seed: int = 0

    def read(self, places: Sequence[Path], features: Sequence[str]) -> dict[str, Table]:
        """By model. features: columns, of which a model may lack some.

        Raises BadRecords, BadLabels, BadSplit and ConfigError.
        """
        every, _ = tables.read_all(places, features, self.slices, called=self.columns, some=True)
        return every if self.divide is None else tables.dealt_out(every, self.divide, seed=self.seed)


def of_folder(folder: Path) -> dict[str, tuple[Artifact, Path]]:
    """By model, the artefacts in a folder that were fitted on tables. Raises ConfigError and ArtifactError."""
    found: dict[str, tuple[Artifact, Path]] = {}
    for path in sorted(folder.glob("*.json")):
        artifact = artifacts.load(path)
        if artifact.fingerprint["source"] == EXTERNAL:
            found[artifact.fingerprint["model"]] = artifact, path
    if not found:
        raise ConfigError(
            f"no calibrator of a table in {folder}: make them with `confgate fit` on the table, and name their folder "
            "with --calibrators"
        )
    return found


def _of_table(table: Table, artifact: Artifact | None, path: Path) -> Tier:
    """A model that answered elsewhere, as far as deciding on its answers needs it."""
    identity = {"model": table.tier, "source": EXTERNAL}
    tier = Tier(table.tier, Absent(table.tier, identity))
    if artifact is None:
        return tier
    artifact.check(identity, dt.datetime.now(dt.UTC).date())
    absent = [name for name in artifact.features if name not in table.names and not tables.looks_back(name)]
    if absent:
        raise ConfigError(f"{path} was fitted on the column {', '.join(absent)}, which {table.tier} does not have")
    return replace(
        tier,
        features=artifact.features,
        calibrator=artifact.calibrator(),
        calibrator_id=artifact.label,
        after=snapshot.after(artifact),
    )


def _spent(table: Table) -> Usage:
    """What one model's answers took, (n, 1) each."""
    unknown = np.full(len(table.y), np.nan)
    columns = {name: table.spent.get(name, unknown)[:, np.newaxis] for name in tables.COUNTED}
    counted = (columns["prompt_tokens"], columns["completion_tokens"], columns["seconds"])
    return Usage((table.tier,), *counted, {model: columns[model] for model in costs.PAID if model in table.spent})


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
            notes.append(uncalibrated(entry.name))
    return tiers, notes


def uncalibrated(tier: str) -> str:
    return f"{tier} has no calibrator, so no answer of it is accepted before the last step"


def bound(table: Crossed) -> list[str]:
    """A note for each tier that has a confidence only after the tiers it was fitted after: no chain can skip those."""
    return [
        f"{name} has no confidence unless {', '.join(table.tiers[:tier])} were asked before, so a chain that skips one "
        "of them cannot stop there; fit with --upstream off to try those too"
        for tier, name in enumerate(table.tiers)
        if bool(np.isnan(table.p_of((tier,))).all()) and not np.isnan(table.p_of(tuple(range(tier + 1)))).all()
    ]


def divided(
    crossings: Mapping[str, Crossing], calibrators: Mapping[str, Path], wish: Wish
) -> tuple[Crossing, Crossing, tuple[str, str], list[str]]:
    """(what chooses, what tests, their names, notes). One split, alone or named twice, is halved by question family.

    Raises ConfigError where it is not clear which split is which, or calibrators were fitted or tuned on the test, or
    fitted on what chooses and nobody knows what they say out of fold.
    """
    have = list(crossings)
    for name in (wish.choose_on, wish.test_on):
        if name is not None and name not in crossings:
            raise ConfigError(f"no split {name!r} in these records; have {', '.join(have)}")
    fitted, tuned = fitted_on(calibrators), tuned_on(calibrators)
    test_on = wish.test_on or (TEST if TEST in have and len(have) > 1 and wish.choose_on != TEST else None)
    rest = [name for name in have if name != test_on]
    choose_on = wish.choose_on or (rest[0] if len(rest) == 1 else None)
    if len(have) == 1 or (choose_on is not None and choose_on == test_on):
        only = choose_on or have[0]
        if only in fitted | tuned:
            told = "collect another split, or deal a table of your own out with --divide, here and where you fit"
            raise ConfigError(f"calibrators were fitted on {only!r}, so no part of it can test; {told}")
        notes = [f"one half of the questions of {only} chose the policy, the other half tests it"]
        return (*_halves(crossings[only], wish.seed), (f"one half of {only}", f"the other half of {only}"), notes)
    if choose_on is None or test_on is None:
        raise ConfigError(f"say with --choose-on and --test-on which splits choose and test; have {', '.join(have)}")
    if test_on in fitted | tuned:
        raise ConfigError(f"calibrators were fitted on {test_on!r}: a test there shows nothing; take another split")
    notes = [f"policies chosen on {choose_on}, scored on {test_on}"]
    if choose_on in fitted:
        blind = [
            tier
            for tier, path in calibrators.items()
            if artifacts.load(path).fit.get("split") == choose_on and not held_out.beside(path).is_file()
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
            "shows nothing; take another split, or deal a table out with --divide as it was for the fit"
        )
    inside = len(known & set(chosen_on.questions))
    return [f"{inside:,} of the {chosen_on.n:,} questions that choose take their p out of fold"] if inside else []


def of_config(config: Config) -> dict[str, Path]:
    """The artefacts' files by tier."""
    return {entry.name: entry.calibrator for entry in config.tiers if entry.calibrator is not None}


def fitted_on(calibrators: Mapping[str, Path]) -> set[str]:
    """The splits that the calibrators were fitted on, as their artefacts say."""
    return {str(one.fit["split"]) for one in map(artifacts.load, calibrators.values()) if "split" in one.fit}


def tuned_on(calibrators: Mapping[str, Path]) -> set[str]:
    """The splits that the strength of their objectives was chosen on."""
    tuned = [one.fit.get("tune") for one in map(artifacts.load, calibrators.values())]
    return {str(split) for splits in tuned if isinstance(splits, list | tuple) for split in splits}


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


def priced(one: Crossing, model: Model, prices: CostFile | None) -> Crossing:
    cost = costs.cost(model, one.usage, prices)
    costs.check_unit(model, one.table.tiers, cost)
    return replace(one, table=one.table.costing(cost, model))
