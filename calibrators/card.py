"""The calibration card: what was claimed, on what evidence, and where the claim ends.

`build` measures plain arrays into one document of numbers and words, the JSON twin; the Markdown and the HTML page are
both written from the twin, so no two of them can disagree. The twin's schema is `_card_schema.SCHEMA`.
Every number carries n and an interval; with fewer than 30 answers of the rarer kind there are words in its place.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from calibrators import _markdown, _page, scores
from calibrators._card_blocks import blocks
from calibrators.artifact import Artifact
from calibrators.scores import Insufficient, Outcome, Score, ScoreFunction

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Json = dict[str, Any]

SCHEMA_NAME = "confidence-gateway/calibration-card"
SCHEMA_VERSION = 1
SHARE_EDGES = 20  # bars of the count strip under a reliability diagram
CURVE_POINTS = 200
HISTOGRAM_BARS = (8, 40)
TAIL = (0.005, 0.995)  # a histogram's outermost bars hold what lies beyond, or one odd answer would flatten the rest
ALPHA = 0.05


class BadEvidence(ValueError):
    """Evidence whose arrays do not fit together. The message says which."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TierEvidence:
    """What one tier's calibrator said about held-out questions, every one of the N asked whether reached or not.

    p, y: (N,), calibrated probability and 0/1 correctness.  reached, accepted: (N,) of the cascade that is described;
    accepted is inside reached.  threshold: accept at p >= threshold, None on a last tier.
    features: (N, F) raw values, NaN where undefined, columns named by `names`.
    slices: by column name, (N,) labels of any kind.  question: (N,) ids, None when every row is its own question.
    """

    tier: str
    artifact: Artifact
    p: Floats
    y: Floats
    reached: Bools
    accepted: Bools
    threshold: float | None
    features: Floats
    names: tuple[str, ...]
    slices: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    question: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        n = _size(self.tier, self.p, self.y, self.slices, self.question)
        if self.reached.shape != (n,) or self.accepted.shape != (n,) or bool((self.accepted & ~self.reached).any()):
            raise BadEvidence(f"{self.tier}: need reached and accepted of shape ({n},), accepted only where reached")
        if self.features.shape != (n, len(self.names)) or bool(np.isinf(self.features).any()):
            raise BadEvidence(
                f"{self.tier}: need features ({n}, {len(self.names)}), none infinite, got {self.features.shape}"
            )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AggregateEvidence:
    """What the routed whole told its clients: one served answer per row.

    p, y: (N,).  served_by: (N,) tier names.  name, description: the distribution that these questions come from.
    """

    name: str
    description: str
    p: Floats
    y: Floats
    served_by: npt.NDArray[Any]
    slices: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    question: npt.NDArray[Any] | None = None

    def __post_init__(self) -> None:
        n = _size(self.name, self.p, self.y, self.slices, self.question)
        if self.served_by.shape != (n,):
            raise BadEvidence(f"{self.name}: need served_by of shape ({n},), got {self.served_by.shape}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """A proved bound: with probability `confidence` over n answers, the risk named by `claim` is at most `risk`.

    unit: share, or what a cost is counted in.
    """

    claim: str
    risk: float
    confidence: float
    n: int
    assumptions: tuple[str, ...]
    unit: str = "share"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What no array can tell. All words; an empty tuple is printed as "none"."""

    title: str
    intended_use: str
    task: str
    label: str
    grader: str
    routing_type: str
    fitting_distribution: str
    evaluation_distribution: str
    splits: Mapping[str, str]
    post_processing: tuple[str, ...]
    operating_conditions: tuple[str, ...]
    monitors: tuple[str, ...]
    rebuild: str
    created: dt.datetime
    guarantees: tuple[Guarantee, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Card:
    """A finished card. twin: the JSON document that the other two forms are written from."""

    twin: Json

    def json(self) -> str:
        return json.dumps(self.twin, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def markdown(self) -> str:
        return _front_matter(self.twin) + "\n\n" + _markdown.write(self.twin["title"], blocks(self.twin))

    def html(self) -> str:
        return _page.write(self.twin["title"], blocks(self.twin))

    def save(self, folder: Path) -> tuple[Path, Path, Path]:
        """card.md, card.json and card.html in `folder`, which is made when missing."""
        folder.mkdir(parents=True, exist_ok=True)
        forms = {"card.md": self.markdown(), "card.json": self.json(), "card.html": self.html()}
        for name, text in forms.items():
            (folder / name).write_text(text, encoding="utf-8")
        return folder / "card.md", folder / "card.json", folder / "card.html"


def _front_matter(twin: Json) -> str:
    """A JSON string is a YAML string, so nothing in a title can break the header."""
    told = {
        "schema": twin["schema"],
        "schema_version": twin["schema_version"],
        "title": twin["title"],
        "created": twin["created"],
        "routing": twin["routing"]["type"],
        "calibrators": [tier["calibrator"]["label"] for tier in twin["tiers"]],
        "models": [tier["calibrator"]["fingerprint"]["model"] for tier in twin["tiers"]],
        "evaluated_on": twin["distributions"]["evaluation"],
        "n": twin["routed"]["region"]["n"],
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in told.items()]
    return "\n".join(["---", *lines, "---"])


def build(
    facts: Facts,
    tiers: Sequence[TierEvidence],
    routed: AggregateEvidence,
    rng: np.random.Generator,
    *,
    shifts: Sequence[AggregateEvidence] = (),
    resamples: int = scores.RESAMPLES,
) -> Card:
    """Measure everything. shifts: the routed whole on distributions that chose neither calibrators nor thresholds."""
    ruler = Ruler(rng, resamples)
    return Card(
        {
            "schema": SCHEMA_NAME,
            "schema_version": SCHEMA_VERSION,
            "title": facts.title,
            "created": facts.created.isoformat(),
            "intended_use": facts.intended_use,
            "task": {"task": facts.task, "label": facts.label, "grader": facts.grader},
            "routing": {
                "type": facts.routing_type,
                "tiers": [evidence.tier for evidence in tiers],
                "thresholds": {evidence.tier: evidence.threshold for evidence in tiers},
            },
            "distributions": {
                "fitting": facts.fitting_distribution,
                "evaluation": facts.evaluation_distribution,
                "splits": dict(facts.splits),
            },
            "method": {
                "binning": f"equal mass, {scores.BINS} bins, equal p together",
                "level": scores.LEVEL,
                "resamples": resamples,
                "floor_draws": scores.DRAWS,
                "rare_needed": scores.RARE_NEEDED,
                "clip": scores.P_CLIP,
            },
            "routed": _aggregate(routed, ruler),
            "tiers": [_tier(evidence, ruler) for evidence in tiers],
            "shifts": [_aggregate(shift, ruler) for shift in shifts],
            "post_processing": list(facts.post_processing),
            "guarantees": [
                {
                    "claim": guarantee.claim,
                    "risk": guarantee.risk,
                    "unit": guarantee.unit,
                    "confidence": guarantee.confidence,
                    "n": guarantee.n,
                    "assumptions": list(guarantee.assumptions),
                }
                for guarantee in facts.guarantees
            ],
            "operating_conditions": list(facts.operating_conditions),
            "monitors": list(facts.monitors),
            "rebuild": facts.rebuild,
        }
    )


def _tier(evidence: TierEvidence, ruler: Ruler) -> Json:
    artifact = evidence.artifact
    regions = {"all": np.ones(evidence.p.size, dtype=bool), "reached": evidence.reached, "accepted": evidence.accepted}
    told: dict[str, Json] = {}
    for name, rows in regions.items():
        same = [other for other in told if np.array_equal(rows, regions[other])]  # measured once, so told the same
        told[name] = told[same[0]] if same else ruler.region(evidence.p, evidence.y, evidence.question, rows)
    return {
        "tier": evidence.tier,
        "threshold": evidence.threshold,
        "calibrator": {
            "label": artifact.label,
            "sha256": artifact.sha256,
            "kind": artifact.kind,
            "features": list(artifact.features),
            "fingerprint": dict(artifact.fingerprint),
            "fit": json.loads(json.dumps(artifact.fit)),
            "conditions": list(cast(Sequence[str], artifact.validity["conditions"])),
            "created": artifact.created,
            "expires": artifact.expires,
        },
        "regions": told,
        "slices": ruler.slices(evidence.p, evidence.y, evidence.question, evidence.slices, evidence.reached),
        "features": [
            _histogram(name, evidence.features[:, column], evidence.y) for column, name in enumerate(evidence.names)
        ],
    }


def _aggregate(evidence: AggregateEvidence, ruler: Ruler) -> Json:
    whole = np.ones(evidence.p.size, dtype=bool)
    names, count = np.unique(evidence.served_by.astype(str), return_counts=True)
    return {
        "name": evidence.name,
        "description": evidence.description,
        "served_by": {str(name): int(n) for name, n in zip(names, count, strict=True)},
        "region": ruler.region(evidence.p, evidence.y, evidence.question, whole),
        "slices": ruler.slices(evidence.p, evidence.y, evidence.question, evidence.slices, whole),
    }


@dataclass(frozen=True, slots=True, eq=False)
class Ruler:
    """Measures one set of answers after another, all from one stream of chance."""

    rng: np.random.Generator
    resamples: int

    def region(self, p: Floats, y: Floats, question: npt.NDArray[Any] | None, rows: Bools) -> Json:
        """Everything there is to say about some rows."""
        p, y = p[rows], y[rows]
        question = None if question is None else question[rows]
        told = _counts(p, y)
        few = scores.too_few("region", y)
        if few is not None:
            return told | {"insufficient": few.why}
        measured = {name: score.as_json() for name, score in self._scores(p, y, question).items()}
        floors = {name: _floor(floor) for name, floor in scores.noise_floor(p, y, self.rng).items()}
        parts, corp = scores.brier_parts(p, y), scores.corp(p, y)
        return told | {
            "scores": told["scores"] | measured,
            "floors": floors,
            "failed": failed_checks(measured, floors),
            "brier_parts": {
                name: getattr(parts, name) for name in ("reliability", "resolution", "uncertainty", "within")
            },
            "corp": {name: getattr(corp, name) for name in ("miscalibration", "discrimination", "uncertainty")},
            "clipped": scores.clip_count(p),
            "risk_coverage": [
                {
                    "coverage": row.coverage,
                    "threshold": row.threshold,
                    "tied": row.tied,
                    "error": row.error.as_json(),
                }
                for row in scores.risk_coverage(p, y)
            ],
            "reliability": self.reliability(p, y),
            "curve": _curve(p, y),
        }

    def _scores(self, p: Floats, y: Floats, question: npt.NDArray[Any] | None) -> dict[str, Outcome]:
        def wrong_found(p: Floats, y: Floats) -> float:
            return scores.auprc(p, y, positive="wrong")

        drawn: dict[str, ScoreFunction] = {
            "brier": scores.brier,
            "nll": scores.nll,
            "debiased_ece": scores.debiased_ece,
            "ks_ce": scores.ks_ce,
            "auprc_wrong": wrong_found,
            "aurc": scores.aurc,
            "excess_aurc": scores.excess_aurc,
            "augrc": scores.augrc,
        }
        found: dict[str, Outcome] = dict(
            scores.bootstrap_all(drawn, p, y, self.rng, question=question, resamples=self.resamples)
        )
        found["auroc"] = self._auroc(p, y, question)
        floor_says = "none: read it beside its noise floor"
        for name, score in (("ece_equal_mass", scores.ece_equal_mass), ("ece_equal_width", scores.ece_equal_width)):
            found[name] = Score(name=name, value=float(score(p, y)), n=p.size, how=floor_says)
        found["debiased_l2"] = Score(
            name="debiased_l2", value=float(scores.debiased_l2(p, y)), n=p.size, how=floor_says
        )
        found["smece"] = Score(name="smece", value=float(scores.smece(p, y)), n=p.size, how="none: biased upward")
        found["mce"] = scores.mce(p, y)
        cox = scores.recalibration(p, y)
        return found | {"intercept": cox.intercept, "slope": cox.slope}

    def _auroc(self, p: Floats, y: Floats, question: npt.NDArray[Any] | None) -> Score:
        """DeLong takes rows as independent, so repeated questions get the bootstrap."""
        if question is None or len(np.unique(question)) == p.size:
            return scores.auroc_delong(p, y)
        return scores.bootstrap(scores.auroc, p, y, self.rng, question=question, resamples=self.resamples)

    def reliability(self, p: Floats, y: Floats) -> Json:
        """Bins with both bands: where the truth may lie (Clopper-Pearson), where a perfect forecaster's rates would."""
        bins = scores.equal_mass(p, y)
        low, high = scores.clopper_pearson(bins.rate * bins.n, bins.n)
        labels = (self.rng.random((scores.DRAWS, p.size)) < p).astype(np.float64)
        band = np.quantile(scores.equal_mass(p, labels).rate, [(1 - scores.LEVEL) / 2, (1 + scores.LEVEL) / 2], axis=0)
        columns = {
            "p_mean": bins.p_mean,
            "p_low": bins.p_low,
            "p_high": bins.p_high,
            "rate": bins.rate,
            "low": low,
            "high": high,
            "band_low": band[0],
            "band_high": band[1],
        }
        edges = np.linspace(0, 1, SHARE_EDGES + 1)
        return {
            "bins": [
                {"n": int(bins.n[b])} | {name: float(column[b]) for name, column in columns.items()}
                for b in range(len(bins.n))
            ],
            "counts": {
                "edges": edges.tolist(),
                "right": np.histogram(p[y == 1], edges)[0].tolist(),
                "wrong": np.histogram(p[y == 0], edges)[0].tolist(),
            },
        }

    def slices(
        self,
        p: Floats,
        y: Floats,
        question: npt.NDArray[Any] | None,
        slices: Mapping[str, npt.NDArray[Any]],
        rows: Bools,
    ) -> list[Json]:
        """One row per slice. `fails`: its KS p-value is below 0.05 divided by the number of slices that have one."""
        told: list[Json] = []
        for column, labels in slices.items():
            for label in np.unique(labels[rows]):
                chosen = rows & (labels == label)
                asked = None if question is None else question[chosen]
                told.append({"column": column, "slice": str(label)} | self._slice(p[chosen], y[chosen], asked))
        tested = sum("ks" in row for row in told)
        return [row | {"fails": "ks" in row and row["ks"]["p_value"] < ALPHA / tested} for row in told]

    def _slice(self, p: Floats, y: Floats, question: npt.NDArray[Any] | None) -> Json:
        told = _counts(p, y)
        few = scores.too_few("slice", y)
        if few is not None:
            return told | {"insufficient": few.why}
        floor = scores.noise_floor(p, y, self.rng, {"ks_ce": scores.ks_ce})["ks_ce"]
        brier = scores.bootstrap(scores.brier, p, y, self.rng, question=question, resamples=self.resamples)
        measured = {"brier": brier.as_json(), "auroc": self._auroc(p, y, question).as_json()}
        return told | {"scores": told["scores"] | measured, "ks": _floor(floor)}


def failed_checks(measured: Mapping[str, Json], floors: Mapping[str, Json]) -> list[str]:
    """Which of the four checks on a calibration say that it is off, each at 5 %.

    KS sees a bend anywhere, the debiased ECE what bins see; each fails when chance alone rarely gives as much. Cox's
    intercept and slope fail when their intervals leave out 0 and 1: a wrong slope over a right mean, which is what an
    over-confident model with good luck on average shows, escapes KS at a few hundred wrong answers.
    measured: scores, and floors: noise floors, as `region` tells them.
    """
    failed = [name for name in ("ks_ce", "debiased_ece") if floors[name]["p_value"] < ALPHA]
    for name, truth in (("intercept", 0.0), ("slope", 1.0)):
        low, high = measured[name].get("low"), measured[name].get("high")
        if low is not None and high is not None and not low <= truth <= high:
            failed.append(name)
    return failed


def _counts(p: Floats, y: Floats) -> Json:
    """What any number of answers can tell: how many, and the share right with its interval."""
    n, right = int(p.size), int(y.sum())
    accuracy: Outcome = (
        scores.wilson("accuracy", right, n) if n else Insufficient(name="accuracy", n=0, why="no answers")
    )
    return {
        "n": n,
        "n_right": right,
        "n_rare": min(right, n - right),
        "mean_p": float(p.mean()) if n else None,
        "scores": {"accuracy": accuracy.as_json()},
    }


def _floor(floor: scores.NoiseFloor) -> Json:
    return {name: getattr(floor, name) for name in ("value", "n", "mean", "p95", "p_value", "draws")}


def _curve(p: Floats, y: Floats) -> Json:
    """Risk against coverage, thinned: of the answers' own order and of a perfect one."""
    kept = np.unique(np.linspace(0, p.size - 1, CURVE_POINTS).astype(int))
    coverage, error = scores.risk_curve(p, y)
    return {
        "coverage": coverage[kept].tolist(),
        "error": error[kept].tolist(),
        "best": scores.risk_curve(y, y)[1][kept].tolist(),
    }


def _histogram(name: str, values: Floats, y: Floats) -> Json:
    """Right and wrong on shared edges, as densities, so that heights compare. Beyond 0.5 % and 99.5 %: end bars.

    Answers for which the feature is undefined (NaN) are only counted.
    """
    undefined = np.isnan(values)
    values, y = values[~undefined], y[~undefined]
    few = scores.too_few(name, y)
    if few is not None:
        return {"name": name, "insufficient": few.why, "n": few.n}
    low, high = np.quantile(values, TAIL)
    if low == high:
        return {"name": name, "insufficient": "the feature is constant", "n": int(values.size)}
    inside = np.clip(values, low, high)
    bars = int(np.clip(len(np.histogram_bin_edges(inside, "fd")) - 1, *HISTOGRAM_BARS))
    edges = np.linspace(low, high, bars + 1)
    ranks = np.unique(values, return_inverse=True)[1]
    return {
        "name": name,
        "n_right": int(y.sum()),
        "n_wrong": int(y.size - y.sum()),
        "n_undefined": int(undefined.sum()),
        "edges": edges.tolist(),
        "right": np.histogram(inside[y == 1], edges, density=True)[0].tolist(),
        "wrong": np.histogram(inside[y == 0], edges, density=True)[0].tolist(),
        "auroc": scores.auroc_delong(ranks / max(1, ranks.max()), y).as_json(),
    }


def _size(
    whose: str, p: Floats, y: Floats, slices: Mapping[str, npt.NDArray[Any]], question: npt.NDArray[Any] | None
) -> int:
    """N, after every column was seen to have it. Raises BadEvidence or scores.BadScores."""
    scores.check(p, y)
    columns = dict(slices) | ({} if question is None else {"question": question})
    for name, column in columns.items():
        if np.shape(column) != p.shape:
            raise BadEvidence(f"{whose}: column {name!r} has shape {np.shape(column)}, p has {p.shape}")
    return int(p.size)
