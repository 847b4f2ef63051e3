"""The card: one twin, three forms, and words where there are too few answers for numbers."""

import datetime as dt
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from scipy.special import expit, logit

from calibrators import _markdown, _page, _svg, scores
from calibrators._card_schema import SCHEMA
from calibrators.artifact import Artifact
from calibrators.card import (
    AggregateEvidence,
    BadEvidence,
    Card,
    Facts,
    Guarantee,
    TierEvidence,
    build,
    failed_checks,
)

Floats = scores.Floats


def sealed(tier: str) -> Artifact:
    return Artifact.seal(
        id=f"{tier}-logistic",
        kind="logistic",
        features=["lp_mean", "deepconf_tail:32"],
        params={"slopes": [1.0, 0.5], "intercept": 0.1},
        fingerprint={"model": f"Qwen/Qwen2.5-{tier}-Instruct", "revision": "7ae557604a", "source": "plugin"},
        fit={
            "data_sha256": "ab" * 32,
            "n": 1200,
            "n_rare": 240,
            "objective": "group_tilt",
            "eta": 10.0,
            "seed": 7,
            "split": "fit",
            "slices": ["steps"],
        },
        metrics={},
        validity={"conditions": ["greedy answers", "raw log-probs"], "checks": {}},
        created=dt.datetime(2026, 3, 1, tzinfo=dt.UTC),
    )


def world(n: int, rng: np.random.Generator, bend: float = 1.0) -> tuple[list[TierEvidence], AggregateEvidence]:
    """Three tiers over shared difficulty; the middle one over-confident. A stand-in for records, not a result."""
    difficulty = rng.normal(size=n)
    steps = np.clip(np.round(4 + 1.5 * difficulty + rng.normal(0, 0.7, n)), 2, 9).astype(int)
    left = np.ones(n, dtype=bool)
    served, p_served, y_served = np.full(n, "32B", dtype=object), np.zeros(n), np.zeros(n)
    tiers = []
    for tier, skill, threshold, slope in (
        ("0.5B", 0.4, 0.8, 1.0),
        ("3B", 1.8, 0.85, 1.3 * bend),
        ("32B", 3.2, None, 1.0),
    ):
        seen = difficulty + rng.normal(0, 0.6, n)
        p_true = expit(skill - 1.6 * seen)
        y = (rng.random(n) < p_true).astype(float)
        p = expit(slope * logit(p_true) + 2 * (slope - 1))
        accepted = left & (p >= (threshold or 0))
        features = np.stack(
            [-0.15 * np.exp(0.4 * seen) + rng.normal(0, 0.02, n), 14 - 2 * seen + rng.normal(0, 2, n)], 1
        )
        tiers.append(
            TierEvidence(
                tier=tier,
                artifact=sealed(tier),
                p=p,
                y=y,
                reached=left.copy(),
                accepted=accepted,
                threshold=threshold,
                features=features,
                names=("lp_mean", "deepconf_tail:32"),
                slices={"steps": steps},
            )
        )
        served[accepted], p_served[accepted], y_served[accepted] = tier, p[accepted], y[accepted]
        left &= ~accepted
    routed = AggregateEvidence(
        name="routed",
        description="Held-out questions of the fitted kind.",
        p=p_served,
        y=y_served,
        served_by=served.astype(str),
        slices={"steps": steps},
    )
    return tiers, routed


FACTS = Facts(
    title="Qwen2.5 cascade <0.5B | 3B | 32B>",
    intended_use="Deciding whether a cheap answer to an English word problem may be served.",
    task="School arithmetic in words, answered greedily",
    label="1 when the graded answer equals the reference",
    grader="strict number match, version 3",
    routing_type="sequential cascade, hard thresholds on calibrated p",
    fitting_distribution="GSM8K train, 1,200 questions",
    evaluation_distribution="GSM8K test, 1,319 questions",
    splits={"fit": "1,200 questions, sha256 ab12", "test": "1,319 questions, sha256 cd34"},
    post_processing=("temperature refitted on the routed region",),
    operating_conditions=("Greedy sampling only.", "vLLM 0.22.0 with raw log-probs.", "Answers of at most 512 tokens."),
    monitors=("betting e-process on labelled answers, alarm at 1/20",),
    rebuild="confgate card --records test.parquet --cascade cascade.yaml",
    created=dt.datetime(2026, 3, 2, 9, tzinfo=dt.UTC),
    guarantees=(
        Guarantee(
            claim="Share of wrong answers among accepted ones",
            risk=0.08,
            confidence=0.95,
            n=1319,
            assumptions=("exchangeable questions",),
        ),
    ),
)


def example(n: int = 1319, seed: int = 5, resamples: int = 50) -> Card:
    rng = np.random.default_rng(seed)
    tiers, routed = world(n, rng)
    shifted = world(max(n // 2, 3), rng, bend=1.6)[1]
    shift = AggregateEvidence(
        name="larger numbers",
        description="Numbers to 500 instead of 300.",
        p=shifted.p,
        y=shifted.y,
        served_by=shifted.served_by,
        slices=shifted.slices,
    )
    return build(FACTS, tiers, routed, rng, shifts=[shift], resamples=resamples)


@pytest.fixture(scope="module")
def card() -> Card:
    return example()


# The twin


KINDS = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}


def faults(value: Any, schema: dict[str, Any], where: str = "$") -> list[str]:
    """What in `value` breaks `schema`: the part of JSON schema that ours uses, no more."""
    if "$ref" in schema:
        return faults(value, SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")], where)
    if "anyOf" in schema:
        tried = [faults(value, choice, where) for choice in schema["anyOf"]]
        return [] if [] in tried else min(tried, key=len)
    found = []
    if "const" in schema and value != schema["const"]:
        found.append(f"{where}: {value!r} is not {schema['const']!r}")
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if value is None:
            return found if "null" in kinds else [f"{where}: null"]
        right = any(isinstance(value, KINDS[kind]) for kind in kinds if kind != "null")
        if not right or (isinstance(value, bool) and "boolean" not in kinds):
            return [*found, f"{where}: {type(value).__name__} is not {kinds}"]
    if "minimum" in schema and value < schema["minimum"] - 1e-12:
        found.append(f"{where}: {value} is below {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"] + 1e-12:
        found.append(f"{where}: {value} is above {schema['maximum']}")
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        found += [f"{where}.{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, inner in value.items():
            if key not in properties and others is False:
                found.append(f"{where}.{key} is unknown")
            else:
                found += faults(inner, properties.get(key, others), f"{where}.{key}")
    if isinstance(value, list):
        for i, inner in enumerate(value):
            found += faults(inner, schema.get("items", {}), f"{where}[{i}]")
    return found


@pytest.mark.parametrize("n", [1319, 100, 5])
def test_the_twin_follows_its_schema(n: int) -> None:
    assert faults(json.loads(example(n, resamples=20).json()), SCHEMA) == []


def test_the_schema_sees_what_is_wrong(card: Card) -> None:
    for change in ({"extra": 1}, {"schema_version": 2}, {"tiers": [{}]}, {"rebuild": None}):
        assert faults(card.twin | change, SCHEMA)


def test_the_same_seed_gives_the_same_card() -> None:
    assert example(300, resamples=20).json() == example(300, resamples=20).json()


def test_regions_are_nested_and_the_whole_is_the_sum_of_what_was_served(card: Card) -> None:
    for tier in card.twin["tiers"]:
        n = {name: region["n"] for name, region in tier["regions"].items()}
        assert n["accepted"] <= n["reached"] <= n["all"] == 1319
    routed = card.twin["routed"]
    accepted = {tier["tier"]: tier["regions"]["accepted"]["n"] for tier in card.twin["tiers"]}
    assert routed["served_by"] == accepted
    assert routed["region"]["n"] == 1319


def test_numbers_are_those_of_scores(card: Card) -> None:
    tiers, _ = world(1319, np.random.default_rng(5))
    told = card.twin["tiers"][1]["regions"]["all"]
    assert told["scores"]["brier"]["value"] == pytest.approx(scores.brier(tiers[1].p, tiers[1].y))
    assert told["floors"]["ks_ce"]["value"] == scores.ks_ce(tiers[1].p, tiers[1].y)
    assert told["floors"]["ks_ce"]["p_value"] < 0.01
    assert sum(b["n"] for b in told["reliability"]["bins"]) == 1319
    assert sum(told["reliability"]["counts"]["right"] + told["reliability"]["counts"]["wrong"]) == 1319


def test_bands_hold_their_bins(card: Card) -> None:
    inside = total = 0
    for b in card.twin["tiers"][0]["regions"]["all"]["reliability"]["bins"]:
        assert b["low"] <= b["rate"] <= b["high"]
        assert b["p_low"] <= b["p_mean"] <= b["p_high"]
        inside, total = inside + (b["band_low"] <= b["rate"] <= b["band_high"]), total + 1
    assert inside >= total - 3  # the first tier is calibrated by construction


def test_histograms_share_edges_and_are_densities(card: Card) -> None:
    """Seed texts, defect 22: different bin widths make heights incomparable; defect 23: no AUROC."""
    for told in card.twin["tiers"][0]["features"]:
        width = np.diff(told["edges"])
        assert np.asarray(told["right"]) @ width == pytest.approx(1)
        assert np.asarray(told["wrong"]) @ width == pytest.approx(1)
        assert told["auroc"]["low"] < told["auroc"]["value"] < told["auroc"]["high"]


def test_an_overconfident_slice_fails_and_a_small_one_is_unknown() -> None:
    rng = np.random.default_rng(8)
    p = rng.uniform(0.5, 0.95, 1000)
    group = np.repeat(["fine", "bad", "tiny"], [600, 380, 20])
    y = (rng.random(1000) < np.where(group == "bad", p - 0.3, p)).astype(float)
    whole = AggregateEvidence(name="w", description="", p=p, y=y, served_by=np.full(1000, "t"), slices={"group": group})
    rows = {row["slice"]: row for row in build(FACTS, [], whole, rng, resamples=20).twin["routed"]["slices"]}
    assert rows["bad"]["fails"]
    assert not rows["fine"]["fails"]
    assert "insufficient" in rows["tiny"]
    assert "ks" not in rows["tiny"]


def test_repeated_questions_get_no_delong_interval() -> None:
    rng = np.random.default_rng(9)
    p = rng.uniform(0.3, 0.9, 400)
    y = (rng.random(400) < p).astype(float)
    whole = AggregateEvidence(
        name="w", description="", p=p, y=y, served_by=np.full(400, "t"), question=np.arange(400) // 2
    )
    told = build(FACTS, [], whole, rng, resamples=20).twin["routed"]["region"]["scores"]["auroc"]
    assert "bootstrap" in told["how"]


# Too few


def test_too_few_answers_are_said_in_words_and_never_drawn() -> None:
    small = example(60, resamples=20)
    assert "insufficient" in small.twin["routed"]["region"]
    assert "reliability" not in small.twin["routed"]["region"]
    for text in (small.markdown(), small.html()):
        assert re.search(r"not drawn, insufficient: \d+ (wrong|right) answers? of n = 60", text)
    assert "<svg" not in small.html().split("Tier 0.5B")[0]


def test_a_tier_that_nobody_reached_is_told_without_a_number() -> None:
    rng = np.random.default_rng(1)
    tiers, routed = world(300, rng)
    none = np.zeros(300, dtype=bool)
    unreached = TierEvidence(
        tier="spare",
        artifact=sealed("72B"),
        p=tiers[0].p,
        y=tiers[0].y,
        reached=none,
        accepted=none,
        threshold=None,
        features=tiers[0].features,
        names=tiers[0].names,
        slices=tiers[0].slices,
    )
    card = build(FACTS, [unreached], routed, rng, resamples=20)
    assert card.twin["tiers"][0]["regions"]["reached"]["scores"]["accuracy"] == {"insufficient": "no answers", "n": 0}
    assert "insufficient: no answers" in card.html()
    assert faults(card.twin, SCHEMA) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"reached": np.zeros(300, dtype=bool)}, "accepted only where reached"),
        ({"features": np.zeros((300, 1))}, "need features"),
        ({"features": np.full((300, 2), np.inf)}, "none infinite"),
        ({"slices": {"steps": np.zeros(7)}}, "column 'steps'"),
        ({"question": np.zeros(7)}, "column 'question'"),
    ],
)
def test_evidence_that_does_not_fit_together_is_refused(change: dict[str, Any], why: str) -> None:
    tier = world(300, np.random.default_rng(1))[0][0]
    told = {name: getattr(tier, name) for name in TierEvidence.__slots__}
    with pytest.raises(BadEvidence, match=why):
        TierEvidence(**(told | change))


def test_where_a_feature_is_undefined_is_counted_and_left_out_of_its_picture() -> None:
    rng = np.random.default_rng(1)
    tiers, routed = world(600, rng)
    told = {name: getattr(tiers[0], name) for name in TierEvidence.__slots__}
    told["features"] = told["features"].copy()
    told["features"][:100, 0], told["features"][:, 1] = np.nan, np.nan
    card = build(FACTS, [TierEvidence(**told)], routed, rng, resamples=20)
    partly, never = card.twin["tiers"][0]["features"]
    assert (partly["n_undefined"], partly["n_right"] + partly["n_wrong"]) == (100, 500)
    assert never == {"name": "deepconf_tail:32", "insufficient": "no answers", "n": 0}
    assert "undefined for 100 more" in card.html()
    assert faults(card.twin, SCHEMA) == []


def test_a_claim_far_from_the_truth_fails_even_with_too_few_right_answers_for_an_error() -> None:
    rng = np.random.default_rng(1)
    tiers, routed = world(600, rng)
    told = {name: getattr(routed, name) for name in AggregateEvidence.__slots__}
    hopeless = AggregateEvidence(**(told | {"name": "hopeless", "y": np.zeros(600)}))
    page = build(FACTS, tiers[:1], routed, rng, shifts=[hopeless], resamples=20).markdown()
    assert "hopeless: calibration fails: 0." in page
    assert "insufficient: 0 right answers" in page


# Markdown and page


def test_front_matter_is_yaml_and_says_what_was_measured(card: Card) -> None:
    header = yaml.safe_load(card.markdown().split("---\n")[1])
    assert header["title"] == FACTS.title
    assert header["n"] == 1319
    assert header["models"][0] == "Qwen/Qwen2.5-0.5B-Instruct"


def test_every_markdown_row_has_as_many_cells_as_its_head(card: Card) -> None:
    width = None
    for line in card.markdown().splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else None
        assert width is None or cells in (width, None)
        width = cells


def test_both_forms_say_every_required_thing(card: Card) -> None:
    for text in (card.markdown(), card.html()):
        for words in (
            *FACTS.operating_conditions,
            FACTS.routing_type,
            FACTS.fitting_distribution,
            FACTS.evaluation_distribution,
            FACTS.rebuild,
            "larger numbers",
            "equal mass, 15 bins",
            "temperature refitted on the routed region",
            "accepts at p ≥ 0.8",
            "steps = 4",
            "at most 8.0% with probability 95%",
            "chance alone gives",
        ):
            assert words in text


class Page(HTMLParser):
    """Remembers what a browser would fetch and which tags stay open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        if tag in ("script", "link", "iframe", "img", "object"):
            self.fetched.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass


def test_the_page_fetches_nothing_runs_nothing_and_closes_its_tags(card: Card) -> None:
    page = Page()
    page.feed(card.html())
    assert page.fetched == []
    assert page.open == []
    assert "url(" not in card.html()
    assert "@import" not in card.html()
    assert "prefers-color-scheme: dark" in card.html()


def test_every_picture_is_well_formed_has_a_title_and_stays_inside(card: Card) -> None:
    pictures = re.findall(r"<svg.*?</svg>", card.html(), re.DOTALL)
    assert len(pictures) > 10
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.find("title") is not None
        width, height = (float(side) for side in root.attrib["viewBox"].split()[2:])
        for rect in root.iter("rect"):
            x, y = float(rect.attrib["x"]), float(rect.attrib["y"])
            assert -1 <= x <= x + float(rect.attrib["width"]) <= width + 1
            assert -1 <= y <= y + float(rect.attrib["height"]) <= height + 1


def test_names_from_outside_cannot_become_markup() -> None:
    rng = np.random.default_rng(2)
    tiers, routed = world(400, rng)
    evil = AggregateEvidence(
        name="<script>alert(1)</script>",
        description="<img src=x onerror=alert(1)> [link](http://x)",
        p=routed.p,
        y=routed.y,
        served_by=np.full(400, "<b>|x"),
        slices={"<i>": np.full(400, "</svg><script>")},
    )
    card = build(FACTS, tiers[:1], evil, rng, resamples=20)
    assert "<script" not in card.html()
    assert "<img" not in card.html()
    assert "<i>" not in card.html()
    assert not re.search(r"(?<!\\)<script", card.markdown())
    assert "[link](" not in card.markdown()


def test_saving_writes_the_three_forms(card: Card, tmp_path: Path) -> None:
    markdown, twin, page = card.save(tmp_path / "made")
    assert json.loads(twin.read_text()) == json.loads(card.json())
    assert markdown.read_text() == card.markdown()
    assert page.read_text() == card.html()


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.8, 1, [0.8, 0.85, 0.9, 0.95, 1]),
        (-3, 17, [0, 5, 10, 15]),
        (0, 0.013, [0, 0.005, 0.01]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low: float, high: float, expected: list[float]) -> None:
    assert _svg.Axis(low, high, 0, 100).ticks() == pytest.approx(expected)


def test_a_region_that_is_another_is_measured_once_and_drawn_once(card: Card) -> None:
    first, last = card.twin["tiers"][0]["regions"], card.twin["tiers"][-1]["regions"]
    assert first["reached"] == first["all"]
    assert last["accepted"] == last["reached"]
    assert "Reliability, 0.5B, reached" not in card.html()
    assert "Reliability, 3B, reached" in card.html()


def test_failures_are_told_before_any_success(card: Card) -> None:
    text = card.markdown()
    told = text[text.index("Where the claim ends") : text.index("The routed whole")]
    assert "larger numbers: calibration fails by KS error" in told
    failing = [row["slice"] for row in card.twin["tiers"][1]["slices"] if row["fails"]]
    assert failing
    for name in failing:
        assert f"tier 3B: steps = {name}" in told
    assert "have too few answers to tell" in told


def test_every_tier_is_judged_on_what_reached_it_and_on_what_it_serves(card: Card) -> None:
    text = card.markdown()
    above = text[text.index("Where the claim ends") : text.index("The routed whole")]
    middle, last = text[text.index("## Tier 3B") : text.index("## Tier 32B")], text[text.index("## Tier 32B") :]
    failed = card.twin["tiers"][1]["regions"]["reached"]["failed"]
    assert "ks_ce" in failed  # the tier that `world` makes over-confident
    assert "- tier 3B: on the questions that reached it: calibration fails by KS error" in above
    assert "- On the questions that reached it: calibration fails by KS error" in middle
    assert "- On the answers it serves: " in middle
    assert "on the questions that reached it, all of which it serves: " in above
    assert "- On the questions that reached it, all of which it serves: " in last
    assert "- On the answers it serves" not in last


def bent(slope: float, shift: float, seed: int, n: int = 1000) -> Card:
    """The card of claims p about answers that are right with log-odds slope * logit p + shift."""
    rng = np.random.default_rng(seed)
    z = rng.normal(2.5, 1.2, n)
    y = (rng.random(n) < expit(slope * z + shift)).astype(float)
    whole = AggregateEvidence(name="w", description="", p=expit(z), y=y, served_by=np.full(n, "t"))
    return build(FACTS, [], whole, rng, resamples=20)


def test_a_slope_far_from_one_fails_where_ks_sees_nothing_and_the_card_says_which_check() -> None:
    card = bent(0.7, 0.65, seed=7)
    region = card.twin["routed"]["region"]
    assert region["floors"]["ks_ce"]["p_value"] > 0.05
    assert region["failed"] == ["slope"]
    assert "the routed whole: calibration fails by slope (slope 0." in card.markdown()


def test_a_true_confidence_fails_a_check_as_seldom_as_the_card_says() -> None:
    rng, failed = np.random.default_rng(3), 0
    tested = {"ks_ce": scores.ks_ce, "debiased_ece": scores.debiased_ece}
    for _ in range(40):
        p = expit(rng.normal(2.5, 1.2, 600))
        y = (rng.random(600) < p).astype(float)
        floors = {
            name: {"p_value": floor.p_value} for name, floor in scores.noise_floor(p, y, rng, tested, draws=200).items()
        }
        cox = scores.recalibration(p, y)
        failed += bool(failed_checks({"intercept": cox.intercept.as_json(), "slope": cox.slope.as_json()}, floors))
    assert 0 < failed <= 15  # at most one in five: 8; more than 15 of 40 would happen once in 250 times


@pytest.mark.parametrize("check", ["ks_ce", "debiased_ece", "intercept", "slope"])
def test_each_check_fails_by_itself(check: str) -> None:
    floors = {name: {"p_value": 0.04 if name == check else 0.05} for name in ("ks_ce", "debiased_ece")}
    fine = {"intercept": {"low": -0.1, "high": 0.1}, "slope": {"low": 0.9, "high": 1.1}}
    assert failed_checks(fine, {name: {"p_value": 0.05} for name in floors}) == []
    off = {name: {"low": 1.2, "high": 1.4} if name == check else told for name, told in fine.items()}
    assert failed_checks(off, floors) == [check]


def test_a_slope_that_cannot_be_told_is_no_failure() -> None:
    floors = {name: {"p_value": 0.5} for name in ("ks_ce", "debiased_ece")}
    measured = {"intercept": {"low": -0.1, "high": 0.1}, "slope": {"insufficient": "every p is the same"}}
    assert failed_checks(measured, floors) == []


def test_ticks_mark_code_and_open_no_door() -> None:
    assert _markdown._escaped("run `a_b|c` <now>") == r"run `a_b\|c` \<now\>"
    assert _markdown._escaped("one ` <b>") == r"one  \<b\>"
    assert _page._words("run `<a>` <b>") == "run <code>&lt;a&gt;</code> &lt;b&gt;"
    assert _page._words("one ` <b>") == "one ` &lt;b&gt;"
