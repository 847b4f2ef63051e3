"""`confgate card`: replay a cascade over recorded answers and say how true its confidence is, as a calibration card.

Each tier is judged on all questions, on those that reach it and on those it answers; the routed whole on every split.
The decisions are the gateway's own (eval.replay), and so are the checks that a calibrator belongs to its model.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact
from calibrators.base import check_disjoint
from calibrators.card import AggregateEvidence, Card, Facts, Guarantee, TierEvidence, build
from eval import records, tables
from eval.datasets import Slice
from eval.records import MANIFEST, Manifest, Record
from eval.replay import Replayed, replay
from gateway.certificate import Standing, standing
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.nouns import Ask, Completion, Hop, Policy
from gateway.snapshot import bare_tier, calibrated, policy

INTENDED = (
    "Deciding, answer by answer, whether a cheaper tier's answer may be served or the next tier has to be asked, and "
    "telling clients how likely the served answer is right. It says nothing about why an answer is right or wrong."
)
LABEL = "1 when the answer's final number equals the reference as an exact rational, else 0"
GRADER = "eval.grade, strict: one final number, read as the gateway itself reads it; unreadable counts as wrong"
ROUTING = "hard cascade: the first tier with p >= its threshold is served, the last tier whatever its p"
MONITORS = (
    "at load: each artefact is held against the live engine's fingerprint and its own expiry; a tier whose artefact "
    "does not fit runs without a confidence and escalates (metric confidence_gateway_calibrator_withheld)",
    "in service: confidence_gateway_confidence (distribution of p by tier), confidence_gateway_null_confidence (why "
    "answers had no confidence), confidence_gateway_hops (decisions by tier and reason)",
)
ANSWER_TOKENS = "answer tokens"  # a slice that every tier has: how long its own answer is


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What people may choose. home: the split the claim is about.  shifts: None takes every further held-out split.

    rebuild: the command that makes the card again.  resamples: of each bootstrap.
    """

    policy: str = "default"
    home: str = "test"
    shifts: tuple[str, ...] | None = None
    title: str = ""
    rebuild: str = ""
    resamples: int = 2_000
    seed: int = 0


def make(config: Config, sources: Sequence[Path], request: Request, created: dt.datetime) -> Card:
    """The card of one policy.

    sources: files of records, or folders that were collected into, with their manifests.
    Raises ConfigError, BadRecords, ArtifactError, and DuplicateQuestion when a held-out split shares a question with
    the split that a calibrator was fitted on.
    """
    files = [records.file_of(source) for source in sources]
    manifests = [records.read_manifest(file.parent / MANIFEST) for file in files]
    route = asyncio.run(opened(config, request.policy, manifests))
    sealed = {entry.name: artifacts.load(entry.calibrator) for entry in config.tiers if entry.calibrator is not None}
    sealed = {tier.name: sealed[tier.name] for tier in route.tiers}
    fitted = {str(artifact.fit["split"]) for artifact in sealed.values()}
    families: dict[str, set[str]] = defaultdict(set)
    rows = noting(chain.from_iterable(map(records.read, files)), families)
    heard = listen((row for row in rows if row.split not in fitted), route)
    for split in heard:
        for other in fitted & families.keys():
            check_disjoint(families[other], families[split])
    splits = held_out(heard, sealed, request)
    rng = np.random.default_rng(request.seed)
    home = heard[request.home]
    known = facts(route, sealed, manifests, heard, splits, request, created)
    certificate = config.policies[request.policy].certificate
    return build(
        known if certificate is None else certified(known, standing(certificate, route)),
        [home.tier(name, sealed[name], route) for name in sealed],
        home.whole(request.home, told(home, "held-out questions of the kind the calibrators were fitted on")),
        rng,
        shifts=[heard[split].whole(split, told(heard[split], purpose(split, sealed))) for split in splits],
        resamples=request.resamples,
    )


def certified(known: Facts, found: Standing) -> Facts:
    """The facts with what the policy's certificate promises, or with why it promises nothing any more."""
    certificate = found.certificate
    if not found.holds:
        lost = f"No guarantee is given: the policy's certificate does not hold, {found.why}."
        return replace(known, operating_conditions=(*known.operating_conditions, lost))
    whence = f"issued {certificate.issued} on {certificate.data.split}"
    assumed = (whence, certificate.chosen, *certificate.assumptions)
    return replace(
        known,
        guarantees=tuple(
            Guarantee(
                claim=one.what[0].upper() + one.what[1:],
                risk=one.limit,
                unit=one.unit,
                confidence=one.confidence,
                n=one.n,
                assumptions=("as above",) if place else assumed,
            )
            for place, one in enumerate(certificate.promises)
        ),
    )


# The cascade, without its engines


class Absent:
    """Stands for an engine that nobody will ask, so that its tier can be opened: it only says who it is."""

    def __init__(self, name: str, fingerprint: Mapping[str, str]) -> None:
        self._name, self._fingerprint = name, fingerprint

    @property
    def name(self) -> str:
        return self._name

    async def complete(self, _ask: Ask) -> Completion:
        raise AssertionError("a tier of recorded answers is never asked")

    async def ready(self) -> bool:
        return False

    async def fingerprint(self) -> Mapping[str, str]:
        return self._fingerprint

    async def close(self) -> None:
        return None


async def opened(config: Config, name: str, manifests: Sequence[Manifest]) -> Policy:
    """The policy with its calibrators, each held against every engine that the answers came from."""
    if name not in config.policies:
        raise ConfigError(f"no policy {name!r}; have {', '.join(config.policies)}")
    if config.policies[name].mix:
        parts = ", ".join(part.policy for part in config.policies[name].mix)
        raise ConfigError(f"policy {name!r} is a mix; a card is about one chain of tiers: make one for each of {parts}")
    wanted = {step.tier for step in config.policies[name].steps}
    tiers = {}
    for entry in config.tiers:
        if entry.name not in wanted:
            continue
        if entry.calibrator is None:
            raise ConfigError(f"tier {entry.name} has no calibrator, so there is no confidence to make a card of")
        for manifest in manifests:
            engine = Absent(entry.name, identity(manifest, entry.name))
            tiers[entry.name] = await calibrated(bare_tier(entry, engine), entry, 0.0, config.signers)
    return policy(name, config.policies[name], tiers)


def identity(manifest: Manifest, tier: str) -> dict[str, str]:
    """What the engine behind the recorded answers said of itself, and how it was asked."""
    for collected in manifest.tiers:
        if collected.name == tier:
            return {**collected.fingerprint, "prompt_template": manifest.prompt}
    raise ConfigError(f"the records have no tier {tier!r}; have {', '.join(one.name for one in manifest.tiers)}")


# What was heard


@dataclass(slots=True)
class Heard:
    """One split, question by question, while it is replayed. hops: per tier, in the policy's order."""

    questions: list[str] = field(default_factory=list)
    families: list[str] = field(default_factory=list)
    slices: dict[str, list[Slice]] = field(default_factory=lambda: defaultdict(list))
    hops: dict[str, list[Hop]] = field(default_factory=lambda: defaultdict(list))
    right: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    reached: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    served: list[Hop] = field(default_factory=list)
    served_right: list[bool] = field(default_factory=list)

    def add(self, one: Replayed) -> None:
        first = one.first
        self.questions.append(first.question)
        self.families.append(first.family)
        for name, value in first.slices.items():
            self.slices[name].append(value)
        for position, hop in enumerate(one.hops):
            self.hops[hop.tier].append(light(hop))
            self.right[hop.tier].append(one.right(hop.tier))
            self.reached[hop.tier].append(position <= one.at)
        self.served.append(light(one.served))
        self.served_right.append(one.right(one.served.tier))

    def tier(self, name: str, artifact: Artifact, route: Policy) -> TierEvidence:
        """One tier on the answers that it has a confidence in."""
        hops = self.hops[name]
        has_p = np.array([hop.p_correct is not None for hop in hops])
        if not has_p.any():
            raise ConfigError(f"tier {name} has no confidence in any recorded answer: {hops[0].note}")
        served = np.array([hop.tier == name for hop in self.served])
        shown = [hop for hop, keep in zip(hops, has_p, strict=True) if keep]
        return TierEvidence(
            tier=name,
            artifact=artifact,
            p=np.array([hop.p_correct for hop in shown], dtype=np.float64),
            y=np.array(self.right[name], dtype=np.float64)[has_p],
            reached=np.array(self.reached[name])[has_p],
            accepted=served[has_p],
            threshold=next(tier.threshold for tier in route.tiers if tier.name == name),
            features=np.array([hop.features.values for hop in shown if hop.features is not None]),
            names=artifact.features,
            slices=self._slices(hops, has_p),
            question=np.array(self.families)[has_p],
        )

    def whole(self, split: str, description: str) -> AggregateEvidence:
        """What clients were told, where they were told a confidence."""
        has_p = np.array([hop.p_correct is not None for hop in self.served])
        if not has_p.any():
            raise ConfigError(f"split {split!r}: no served answer has a confidence")
        return AggregateEvidence(
            name=split,
            description=description,
            p=np.array([hop.p_correct for hop in self.served if hop.p_correct is not None], dtype=np.float64),
            y=np.array(self.served_right, dtype=np.float64)[has_p],
            served_by=np.array([hop.tier for hop in self.served])[has_p],
            slices=self._slices(self.served, has_p),
            question=np.array(self.families)[has_p],
        )

    def _slices(self, hops: Sequence[Hop], kept: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
        """The questions' slices and the length of these answers, as words; what never varies is no slice."""
        columns: dict[str, Sequence[Slice]] = {
            **self.slices,
            ANSWER_TOKENS: [hop.cost.completion_tokens for hop in hops],
        }
        found = {}
        for name, values in columns.items():
            code, labels = tables.codes([[v for v, keep in zip(values, kept, strict=True) if keep]], [name])
            if len(labels) > 1:
                words = [label.removeprefix(name).removeprefix("=") for label in labels]
                whole = all(word.isdecimal() for word in words)  # so that 10 steps come after 9
                found[name] = np.array([int(word) for word in words] if whole else words)[code]
        return found


def light(hop: Hop) -> Hop:
    """A hop without its trace: thousands of those would fill the memory."""
    return Hop(
        hop.tier, hop.reason, hop.seconds, hop.threshold, hop.p_correct, hop.features, cost=hop.cost, note=hop.note
    )


def listen(rows: Iterable[Record], route: Policy) -> dict[str, Heard]:
    """Every split of the records, replayed."""
    heard: dict[str, Heard] = defaultdict(Heard)
    for one in replay(rows, route):
        heard[one.first.split].add(one)
    return dict(heard)


def noting(rows: Iterable[Record], families: dict[str, set[str]]) -> Iterator[Record]:
    """The rows as they come; on the way `families` learns which are in which split."""
    for row in rows:
        families[row.split].add(row.family)
        yield row


# Which splits


def held_out(heard: Mapping[str, Heard], sealed: Mapping[str, Artifact], request: Request) -> list[str]:
    """The shifts to tell about. Raises ConfigError for a split that was not held out, or is not there."""
    fitted = {str(artifact.fit["split"]) for artifact in sealed.values()}
    shifts = [name for name in heard if name != request.home] if request.shifts is None else list(request.shifts)
    for name in (request.home, *shifts):
        if name in fitted:
            raise ConfigError(f"a calibrator was fitted on split {name!r}; a card needs answers it has not seen")
        if name not in heard:
            raise ConfigError(f"no split {name!r} held out in these records; have {', '.join(sorted(heard)) or 'none'}")
    return shifts


def tuned_on(sealed: Mapping[str, Artifact]) -> set[str]:
    """Splits that an objective's strength was chosen on."""
    tuned: set[str] = set()
    for artifact in sealed.values():
        named = artifact.fit.get("tune", ())
        tuned |= {str(name) for name in named} if isinstance(named, Sequence) and not isinstance(named, str) else set()
    return tuned


def purpose(split: str, sealed: Mapping[str, Artifact]) -> str:
    if split in tuned_on(sealed):
        return "the strength of the robust objective was chosen on this split, so it is no independent test of it"
    return "neither calibrators nor thresholds were chosen on it"


def told(heard: Heard, what: str) -> str:
    """A distribution in a sentence or two, unanswerable questions included."""
    n, right = len(heard.served), sum(heard.served_right)
    without = sum(hop.p_correct is None for hop in heard.served)
    missing = f" {without:,} of them came without a confidence and are not in the table." if without else ""
    return f"{n:,} questions: {what}. {right:,} of the answers served are right ({right / n:.1%}).{missing}"


# Words


def facts(
    route: Policy,
    sealed: Mapping[str, Artifact],
    manifests: Sequence[Manifest],
    heard: Mapping[str, Heard],
    shifts: Sequence[str],
    request: Request,
    created: dt.datetime,
) -> Facts:
    """What no array can tell."""
    dataset = ", ".join(dict.fromkeys(manifest.dataset for manifest in manifests))
    fitted = Counter(f"split {artifact.fit['split']}" for artifact in sealed.values())
    sizes = sorted({int(str(artifact.fit["n"])) for artifact in sealed.values()})
    span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    return Facts(
        title=request.title or f"{' | '.join(sealed)}: calibration of the cascade",
        intended_use=INTENDED,
        task=f"{dataset}: questions with one number as the answer, asked greedily as {manifests[0].template!r}",
        label=LABEL,
        grader=GRADER,
        routing_type=ROUTING,
        fitting_distribution=f"{dataset}, {', '.join(fitted)}; {span} answers per tier",
        evaluation_distribution=f"{dataset}, split {request.home} (n = {len(heard[request.home].served):,})",
        splits={split: split_words(heard[split]) for split in (request.home, *shifts)},
        post_processing=tuple(processed(name, artifact) for name, artifact in sealed.items()),
        operating_conditions=conditions(route, sealed, request, shifts),
        monitors=MONITORS,
        rebuild=request.rebuild,
        created=created,
    )


def split_words(heard: Heard) -> str:
    digest = records.sha256_of(sorted(heard.questions))
    families = len(set(heard.families))
    return f"{len(heard.questions):,} questions in {families:,} families; sha256 of their ids {digest[:12]}"


def processed(name: str, artifact: Artifact) -> str:
    """What happens between a tier's features and its p."""
    objective, eta = artifact.fit["objective"], artifact.fit["eta"]
    strength = f" (η = {eta})" if eta else ""
    looks = [feature for feature in artifact.features if feature.startswith("upstream_")]
    upstream = ", looks at earlier tiers" if looks else ""
    return f"{name}: {artifact.kind} fitted under {objective}{strength}{upstream}"


def conditions(
    route: Policy, sealed: Mapping[str, Artifact], request: Request, shifts: Sequence[str]
) -> tuple[str, ...]:
    """Outside which the claim does not hold: the cascade as described, and what each artefact says for itself."""
    steps = ", then ".join(
        tier.name if tier.threshold is None else f"{tier.name} (p >= {tier.threshold:g})" for tier in route.tiers
    )
    said: dict[str, list[str]] = defaultdict(list)
    for name, artifact in sealed.items():
        words = artifact.validity["conditions"]
        assert isinstance(words, Sequence), "the artefact's own checks see to it"
        for condition in words:
            said[str(condition)].append(name)
    every = [
        condition if len(names) == len(sealed) else f"{', '.join(names)}: {condition}"
        for condition, names in said.items()
    ]
    return (
        f"The tiers in this order with these thresholds: {steps}. What reaches a later tier changes with them.",
        "The very models, engines, tokenizers and prompt template of the fingerprints below.",
        f"Questions like those of split {request.home}; of other kinds, as far as the table of shifts says"
        + (f" ({', '.join(shifts)})." if shifts else " (none was tested)."),
        *(f"{condition[0].upper()}{condition[1:]}." for condition in every),
    )
