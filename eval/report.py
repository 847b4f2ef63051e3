"""`confgate report`: everything that a sweep found and what it stands on, as one document of numbers and words.

The twin is that document; the page, the Markdown and the pictures are drawn from it, so no two of them can disagree.
Its part `sweep` is what `confgate sweep --json` prints for the same wish. Its schema is eval.report_schema.SCHEMA.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from calibrators import artifact as artifacts
from calibrators import scores
from calibrators.card import Ruler
from eval import guarantees, recommend, records, tables
from eval.choice import NothingFits, choose, mix, target
from eval.crossed import Bools, Crossed, Floats, group_codes
from eval.crossing import Crossing
from eval.material import Material, Wish
from eval.recommend import SHARES, Recommendation
from eval.records import MANIFEST, RECORDS
from eval.stats import interval, mix_accuracies, resampled_means
from eval.sweep import Played, Route, grid, reached, replay
from eval.verdict import measure
from gateway.errors import ConfigError

SCHEMA_NAME = "confidence-gateway/report"
SCHEMA_VERSION = 1
RESAMPLES = 10_000  # of the curve, the parities and the budgets: what goes to print (science 6.4)
BAND_POINTS = 60
MARGINS = (0.0, 0.005)  # how much less accurate than the reference still counts as parity (science 6.1)
RISKS = (0.1, 0.05, 0.02)  # shares of wrong answers that thresholds are held against
BARS = 20  # of a histogram of p
PACKAGES = ("confidence-gateway", "numpy", "scipy", "scikit-learn", "pyarrow", "matplotlib")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What no number can tell. command: that makes the report again.  created: when.  answers: the files.
    config: the cascade file, None for tables of the user's own.  prices: the file that the costs came from, None where
    the cascade file or the answers tell them."""

    command: str
    created: dt.datetime
    answers: tuple[Path, ...]
    config: Path | None = None
    prices: Path | None = None


def make(material: Material, wish: Wish, about: About, *, note: Callable[[str], None] = lambda _: None) -> Json:
    """The twin. note: told what is being done.  Raises GatewayError leaves, ArtifactError, and BadComparison."""
    check_calibrators(material)
    check_confidence(material)
    return {
        "schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "created": about.created.isoformat(),
        **findings(material, wish, note),
        "provenance": provenance(material, wish, about),
    }


def findings(material: Material, wish: Wish, note: Callable[[str], None] = lambda _: None) -> Json:
    """All that is measured. Raises GatewayError leaves, and BadComparison."""
    note(f"trying policies on {material.chosen_on.table.n:,} questions, judging on {material.test.table.n:,}")
    found = recommend.decide(material, wish)
    note(f"drawing {RESAMPLES:,} resamples")
    rng = np.random.default_rng([wish.seed, 1])  # a stream of its own: the sweep's numbers stay the sweep's
    return {
        "verdict": found.verdict.sentence,
        "sweep": recommend.as_json(found),
        "method": {"resamples": RESAMPLES, "level": scores.LEVEL, "bars": BARS, "rare_needed": scores.RARE_NEEDED},
        "curve": curve(found, rng),
        "parity": [parity(found, margin, rng) for margin in MARGINS],
        "budgets": [at_budget(found, share, rng) for share in SHARES],
        "models": models(material.test, rng),
        "chosen": whole(material.test, found.verdict.choice.route, rng),
        "steps": steps(material.test, found.verdict.choice.route, rng),
        "slices": slices(found, material.test, rng),
        "guarantees": promised(found),
        "questions": questions(found),
    }


def check_calibrators(material: Material) -> None:
    """Raises ConfigError when no candidate has a calibrator: without one there is no confidence to report on."""
    names = material.test.table.tiers
    if not material.calibrators.keys() & set(names):
        raise ConfigError(
            f"none of {', '.join(names)} has a calibrator, so no answer has a confidence; fit them with `confgate fit` "
            "and name the artefacts in the cascade file"
        )


def check_confidence(material: Material) -> None:
    """Raises ConfigError when no recorded answer of any tier has a confidence."""
    for one in (material.chosen_on, material.test):
        table = one.table
        every = [tuple(range(tier + 1)) for tier in range(len(table.tiers))]
        if all(bool(np.isnan(table.p_of(path)).all()) for path in every):
            if one.silent is None:
                raise ConfigError("no answer has a confidence: all of them lack what the calibrators were fitted on")
            silent = f"{int(one.silent.sum()):,} of {one.silent.size:,} answers came without log-probs"
            raise ConfigError(
                f"no recorded answer has a confidence ({silent}); collect anew from servers that send log-probs "
                "(`confgate check --live` tells)"
            )


# The curve


def curve(found: Recommendation, rng: np.random.Generator) -> Json:
    """The efficient policies with intervals, and a band around the line that mixing neighbours draws."""
    test, played = found.test, [one for _, one in found.curve]
    columns = np.column_stack([array for one in played for array in (one.right, one.cost)])
    means = resampled_means(columns, group_codes(test), rng, RESAMPLES)
    right, cost = means[:, ::2], means[:, 1::2]
    swept = found.swept
    before = {route: place for place, route in enumerate(swept.routes)}
    policies = []
    for level, (route, one) in enumerate(found.curve):
        place = before[route]
        told = guarantees.told(test, route) | {
            "accuracy": bootstrapped("accuracy", one.accuracy, right[:, level], test.n),
            "cost": bootstrapped("cost", one.mean_cost, cost[:, level], test.n),
            "chosen_accuracy": float(swept.accuracy[place]),
            "chosen_cost": float(swept.cost[place]),
            "optimism": float(swept.accuracy[place]) - one.accuracy,
        }
        policies.append(told)
    return {"policies": policies, "band": band(played, right, cost)}


def band(played: Sequence[Played], right: Floats, cost: Floats) -> list[Json]:
    """Points of the line through the policies with the interval of its height there, pointwise.

    right, cost: (B, P) resampled means of the P policies. A resample has a line of its own, flat beyond its ends.
    """
    own = np.array([one.mean_cost for one in played]), np.array([one.accuracy for one in played])
    at = np.unique(np.concatenate([own[0], np.linspace(own[0].min(), own[0].max(), BAND_POINTS)]))
    heights = np.array([_line(at, *one) for one in zip(cost, right, strict=True)])
    low, high = np.quantile(heights, [(1 - scores.LEVEL) / 2, (1 + scores.LEVEL) / 2], axis=0)
    columns = zip(at, _line(at, *own), low, high, strict=True)
    return [dict(zip(("cost", "accuracy", "low", "high"), map(float, one), strict=True)) for one in columns]


def _line(at: Floats, cost: Floats, accuracy: Floats) -> Floats:
    order = np.argsort(cost)
    return np.interp(at, cost[order], accuracy[order])


def bootstrapped(name: str, value: float, seen: Floats, n: int) -> Json:
    return dict(interval(name, value, seen, n, f"bootstrap of {RESAMPLES:,} by question, policy fixed").as_json())


# What others ask for


def parity(found: Recommendation, margin: float, rng: np.random.Generator) -> Json:
    """The cheapest policy that is as accurate as the reference but for a margin, where chosen; and what it costs on
    the test."""
    verdict, test = found.verdict, found.test
    wanted = replay(found.chosen_on, verdict.reference).accuracy - margin
    try:
        route = choose(found.swept, target(wanted)).route
    except NothingFits:
        route = verdict.reference
    numbers = measure(test, replay(test, route), replay(test, verdict.reference), rng, RESAMPLES)
    shown = {name: dict(numbers[name].as_json()) for name in ("accuracy", "cost_share", "saving", "gain")}
    return {"margin": margin, **guarantees.told(test, route), **shown}


def at_budget(found: Recommendation, share: float, rng: np.random.Generator) -> Json:
    """Accuracy at a share of the reference's cost, spent exactly by mixing two efficient policies, with its interval
    and what it gains over a random mix of models of the same cost. Empty numbers where nothing is so cheap."""
    test, swept = found.test, found.swept
    told: Json = {"share": share, "low": None, "high": None, "share_high": None, "accuracy": None, "cost": None}
    told |= {"random": None, "gain": None}
    try:
        mixed = mix(swept, share * replay(swept.table, found.verdict.reference).mean_cost)
    except NothingFits:
        return told
    low, high = replay(test, mixed.low), replay(test, mixed.high)
    right = (1 - mixed.share) * low.right + mixed.share * high.right
    cost = (1 - mixed.share) * low.cost + mixed.share * high.cost
    columns = np.column_stack([right, cost, test.cost, test.right])
    means = resampled_means(columns, group_codes(test), rng, RESAMPLES)
    own, mixes = (
        mix_accuracies(one[:, 1], one[:, 2 : 2 + len(test.tiers)], one[:, 2 + len(test.tiers) :])
        for one in (columns.mean(axis=0)[np.newaxis], means)
    )
    random = float(own[0])
    return told | {
        "low": guarantees.told(test, mixed.low),
        "high": guarantees.told(test, mixed.high),
        "share_high": mixed.share,
        "accuracy": bootstrapped("accuracy", float(right.mean()), means[:, 0], test.n),
        "cost": float(cost.mean()),
        "random": random,
        "gain": bootstrapped("gain", float(right.mean()) - random, means[:, 0] - mixes, test.n),
    }


# How true the confidence is


def models(test: Crossing, rng: np.random.Generator) -> list[Json]:
    """Every model on all questions: how often right, cut or unreadable, and how its p lies on right and wrong answers.

    p of a tier that looks at those before it is the one after all of them, as in the AUROC of the sweep.
    """
    table, told = test.table, []
    for tier, name in enumerate(table.tiers):
        p = table.p_of(tuple(range(tier + 1)))
        counts = {"cut": test.cut, "unreadable": test.unreadable, "silent": test.silent}
        told.append(
            {
                "tier": name,
                "n": table.n,
                "accuracy": share("accuracy", table.right[:, tier]),
                "cost": float(table.cost[:, tier].mean()),
                "seconds": _known(float(table.seconds[:, tier].mean())),
                **{kind: None if marked is None else int(marked[:, tier].sum()) for kind, marked in counts.items()},
                "without_p": int(np.isnan(p).sum()),
                "confidence": confidence(p, table.right[:, tier], rng),
            }
        )
    return told


def steps(test: Crossing, route: Route, rng: np.random.Generator) -> list[Json]:
    """Each tier of a route on the questions that reach it: how many it answers, and how true its p is there."""
    table, told = test.table, []
    marks = (*route.thresholds, None)
    for level, (tier, here, accepted) in enumerate(reached(table, route)):
        p, right = table.p_of(route.chain[: level + 1]), table.right[:, tier]
        known = accepted & ~np.isnan(p)
        told.append(
            {
                "tier": table.tiers[tier],
                "threshold": marks[level],
                "reached": int(here.sum()),
                "answered": int(accepted.sum()),
                "right": share("share right", right[accepted]),
                "claimed": float(p[known].mean()) if known.any() else None,
                "cost": float(table.cost[here, tier].sum() / table.n),
                "cut": None if test.cut is None else int((test.cut[:, tier] & here).sum()),
                "without_p": int((np.isnan(p) & here).sum()),
                "confidence": confidence(p[here], right[here], rng),
            }
        )
    return told


def whole(test: Crossing, route: Route, rng: np.random.Generator) -> Json:
    """The routed whole: the p that came with the answer that was served."""
    table = test.table
    played = replay(table, route)
    seconds = [played.seconds.mean(), *np.quantile(played.seconds, [0.5, 0.95])]
    return {
        **guarantees.told(table, route),
        "n": table.n,
        "accuracy": share("accuracy", played.right),
        "tiers_asked": float(played.asked.mean()),
        "seconds": {name: _known(float(one)) for name, one in zip(("mean", "p50", "p95"), seconds, strict=True)},
        "confidence": confidence(served_p(table, route), played.right, rng),
    }


def _known(seconds: float) -> float | None:
    """Nobody has to measure them."""
    return None if np.isnan(seconds) else seconds


def served_p(table: Crossed, route: Route) -> Floats:
    """(n,) p of the answer that is served, NaN where it has none."""
    p = np.full(table.n, np.nan)
    for level, (_, _, accepted) in enumerate(reached(table, route)):
        p[accepted] = table.p_of(route.chain[: level + 1])[accepted]
    return p


def confidence(p: Floats, right: Floats, rng: np.random.Generator) -> Json:
    """Counts by p, right and wrong, and where there are enough of both the reliability bins. NaN counts nowhere.

    p, right: (n,)."""
    known = ~np.isnan(p)
    p, right = p[known], right[known]
    edges = np.linspace(0, 1, BARS + 1)
    told: Json = {
        "n": int(p.size),
        "claimed": float(p.mean()) if p.size else None,
        "right": share("share right", right),
        "histogram": {
            "edges": edges.tolist(),
            "right": np.histogram(p[right == 1], edges)[0].tolist(),
            "wrong": np.histogram(p[right == 0], edges)[0].tolist(),
        },
    }
    few = scores.too_few("confidence", right)
    if few is not None:
        return told | {"insufficient": few.why}
    floor = scores.noise_floor(p, right, rng, {"ks": scores.ks_ce})["ks"]
    return told | {
        "auroc": dict(scores.auroc_delong(p, right).as_json()),
        "ks": {name: getattr(floor, name) for name in ("value", "mean", "p95", "p_value")},
        "reliability": Ruler(rng, RESAMPLES).reliability(p, right),
    }


def share(name: str, right: Floats) -> Json:
    """With Wilson's interval; in words where there is nothing to count."""
    if right.size == 0:
        return {"insufficient": "no answers", "n": 0}
    return dict(scores.wilson(name, int(right.sum()), right.size).as_json())


def slices(found: Recommendation, test: Crossing, rng: np.random.Generator) -> list[Json]:
    """The chosen policy beside the reference on every slice of the questions; what never varies is no slice."""
    ours, theirs = (replay(found.test, route) for route in (found.verdict.choice.route, found.verdict.reference))
    p = served_p(found.test, found.verdict.choice.route)
    groups = group_codes(found.test)
    told = []
    for column, values in test.slices.items():
        code, labels = tables.codes([values], [column])
        if len(labels) < 2:
            continue
        for place in sorted(range(len(labels)), key=lambda one: _first(values, code == one)):
            here = code == place
            columns = np.column_stack([ours.right, theirs.right, ours.cost, theirs.cost])[here]
            families = np.unique(groups[here], return_inverse=True)[1].astype(np.int64)
            means = resampled_means(columns, families, rng, RESAMPLES)
            paid, theirs_paid = float(columns[:, 2].mean()), float(columns[:, 3].mean())
            n = int(here.sum())
            known = here & ~np.isnan(p)
            told.append(
                {
                    "column": column,
                    "slice": labels[place].removeprefix(column).removeprefix("="),
                    "n": n,
                    "accuracy": share("accuracy", ours.right[here]),
                    "reference_accuracy": share("accuracy", theirs.right[here]),
                    "gain": bootstrapped("gain", float((columns[:, 0] - columns[:, 1]).mean()),
                                         means[:, 0] - means[:, 1], n),
                    "cost_share": bootstrapped("cost share", paid / max(theirs_paid, 1e-300),
                                               means[:, 2] / np.maximum(means[:, 3], 1e-300), n),
                    "claimed": float(p[known].mean()) if known.any() else None,
                }
            )  # fmt: skip
    return told


def _first(values: Sequence[Any], chosen: Bools) -> tuple[bool, float, str]:
    """Where a slice belongs among its neighbours: by its smallest number, or by its word."""
    inside = [value for value, keep in zip(values, chosen, strict=True) if keep]
    numbers = [value for value in inside if isinstance(value, int | float)]
    return (False, float(min(numbers)), "") if len(numbers) == len(inside) else (True, 0.0, str(inside[0]))


# Promises


def promised(found: Recommendation) -> Json:
    """Per tier the thresholds that can be trusted on the test, the policies with a proven error, and labels to plan by.

    Candidate thresholds come from the questions that chose the policy, so the test has not seen them.
    """
    thresholds: list[Json] = []
    test = guarantees.one_per_family(found.test)
    for tier, name in enumerate(test.tiers):
        path = tuple(range(tier + 1)) if bool(np.isnan(test.p_of((tier,))).all()) else (tier,)
        p, right, candidates = test.p_of(path), test.right[:, tier], grid(found.chosen_on, path, 100)
        for risk in RISKS:
            trusted = guarantees.trusted_threshold(p, right, candidates, risk)
            controlled = guarantees.controlled_threshold(p, right, candidates, risk)
            thresholds.append(
                {
                    "tier": name,
                    "after": [test.tiers[before] for before in path[:-1]],
                    "risk": risk,
                    "confidence": 0.95,
                    "n": test.n,
                    "trusted": _at(trusted, p, right),
                    "controlled": _at(controlled, p, right),
                }
            )
    path_down = [route for route, _ in found.curve][::-1]
    proven = [(risk, guarantees.final_error(found.test, path_down, risk)) for risk in (*RISKS, 0.15, 0.2)]
    return {
        "thresholds": thresholds,
        "proven": [
            {"risk": risk, "certificate": one.as_json()}
            if isinstance(one, guarantees.Certificate)
            else {"risk": risk, "refused": one.why}
            for risk, one in sorted(proven, key=lambda row: row[0])
        ],
        "labels": guarantees.labels_table(),
        "assumptions": [guarantees.EXCHANGEABLE, guarantees.UNTOUCHED, guarantees.INDEPENDENT],
    }


def _at(threshold: float | guarantees.Refused, p: Floats, right: Floats) -> Json:
    if isinstance(threshold, guarantees.Refused):
        return {"refused": threshold.why}
    accepted = p >= threshold
    return {"threshold": threshold, "accepted": int(accepted.sum()), "wrong": int((accepted & (right == 0)).sum())}


# For comparing


def questions(found: Recommendation) -> Json:
    """What the policy to serve did with every question of the test, so that two reports can be held together."""
    table, route = found.test, found.promised.route
    played, p = replay(table, route), served_p(table, route)
    return {
        "id": list(table.questions),
        "family": list(table.families),
        "right": played.right.astype(int).tolist(),
        "cost": played.cost.tolist(),
        "served": played.served.tolist(),
        "p": [None if np.isnan(one) else float(one) for one in p],
    }


# Where it all comes from


def provenance(material: Material, wish: Wish, about: About) -> Json:
    files = [place / RECORDS if place.is_dir() else place for place in about.answers]
    tiers = material.test.table.tiers
    return {
        "command": about.command,
        "config": _file(about.config),
        "prices": _file(about.prices),
        "wish": asdict(wish) | {"tiers": list(wish.tiers)},
        "versions": {"python": platform.python_version(), **versions()},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "records": [_collected(file) if tables.collected(file) else _file(file) for file in files],
        "calibrators": [_artifact(tier, material.calibrators[tier]) for tier in tiers if tier in material.calibrators],
    }


def _file(path: Path | None) -> Json | None:
    return None if path is None else {"path": str(path), "sha256": sha256(path)}


def _collected(file: Path) -> Json:
    manifest = records.read_manifest(file.parent / MANIFEST)
    return {
        "path": str(file),
        "sha256": sha256(file),
        "dataset": manifest.dataset,
        "splits": dict(manifest.splits),
        "questions_sha256": manifest.data_sha256,
        "prompt_sha256": manifest.prompt,
        "seed": manifest.seed,
        "max_tokens": manifest.max_tokens,
        "command": manifest.command,
        "created": manifest.created,
        "versions": dict(manifest.versions),
        "models": {one.name: dict(one.fingerprint) for one in manifest.tiers},
    }


def _artifact(tier: str, path: Path) -> Json:
    loaded = artifacts.load(path)
    fit: Mapping[str, Any] = loaded.fit
    here = Path.cwd()
    return {
        "tier": tier,
        "path": str(path.relative_to(here) if path.is_relative_to(here) else path),
        "label": loaded.label,
        "sha256": loaded.sha256,
        "kind": loaded.kind,
        "features": list(loaded.features),
        "split": str(fit.get("split", "")),
        "n": int(fit["n"]),
        "created": loaded.created,
        "expires": loaded.expires,
    }


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
