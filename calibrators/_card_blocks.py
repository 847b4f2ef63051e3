"""What a card says and in which order: the twin as a list of blocks, which the Markdown and the page both print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from calibrators import _svg
from calibrators._blocks import Block, Bullets, Figure, Gallery, Heading, Table, Text

Json = Mapping[str, Any]
REGIONS = {
    "all": "all questions, reached or not",
    "reached": "questions that reached this tier",
    "accepted": "answers that this tier's threshold let through",
}


def blocks(twin: Json) -> list[Block]:
    """The whole card below its title."""
    method, order = twin["method"], twin["routing"]["tiers"]
    said: list[Block] = [
        Text(twin["intended_use"]),
        _facts(twin),
        Heading(2, "Where the claim ends"),
        Text("What is said here holds under these conditions. Outside any one of them it does not."),
        _bullets(twin["operating_conditions"]),
        Text("What the measurements say against it:"),
        Bullets(_failures(twin)),
        Heading(2, "The routed whole"),
        Text(
            "What a client sees: one served answer per question with the confidence that came with it, on "
            f"{twin['distributions']['evaluation']}, and beside it on every shift tested."
        ),
        _score_table({whole["name"]: whole["region"] for whole in (twin["routed"], *twin["shifts"])}),
        Heading(3, twin["routed"]["name"]),
        Text(f"{twin['routed']['description']} {_served(twin['routed'], order)}"),
        _gallery({twin["routed"]["name"]: twin["routed"]["region"]}, twin["routed"]["name"]),
        *_slice_blocks(twin["routed"]["slices"]),
        Heading(2, "Shifts tested"),
        *_shift_blocks(twin["shifts"], order),
    ]
    for tier in twin["tiers"]:
        said += _tier_blocks(tier)
    said += [
        Heading(2, "Guarantees"),
        _bullets([_guarantee(guarantee) for guarantee in twin["guarantees"]]),
        Heading(2, "Monitors"),
        _bullets(twin["monitors"]),
        Heading(2, "How to read the numbers"),
        Bullets(
            (
                f"Intervals are at {method['level']:.0%}: Wilson for shares, DeLong for AUROC, Wald for intercept and "
                f"slope, {method['resamples']:,} resamples by question for the rest.",
                f"Binning: {method['binning']}. Binned ECE has no interval of its own, because resampling adds noise "
                "and ECE counts noise as error: it stands beside its floor, what a perfectly calibrated model with the "
                f"same p would show ({method['floor_draws']:,} simulations of independent answers), with the share of "
                "simulations at or above the estimate as p-value.",
                "ECE is an average; local gaps may be far larger. It can be 0 for a useless constant: read AUROC too.",
                "Brier = miscalibration - discrimination + uncertainty, by isotonic regression (CORP). Uncertainty "
                "moves with the mix of questions alone.",
                f"Fewer than {method['rare_needed']} right or {method['rare_needed']} wrong answers give no number but "
                "the word insufficient.",
                f"The log loss clips p to {method['clip']:g} from 0 and 1; how often is said.",
                "The whole, a shift, or a tier on its own questions fails when one of four checks does: the KS error "
                "or the debiased ECE at a p-value below 0.05, or an interval of the calibration intercept without 0 "
                "or of the slope without 1. Each would be wrong about a perfect model one time in twenty, all four "
                "together at most one time in five: no failure weighs more than one check that just fails. A slice "
                "fails when its KS p-value is below 0.05 divided by the number of slices tested in its table.",
            )
        ),
        Heading(2, "Rebuild"),
        Text(f"`{twin['rebuild']}`"),
    ]
    return said


def _facts(twin: Json) -> Table:
    routing, task, distributions = twin["routing"], twin["task"], twin["distributions"]
    rows = [
        ("Task", task["task"]),
        ("Label", task["label"]),
        ("Grader", task["grader"]),
        ("Routing", routing["type"]),
        ("Tiers, cheapest first", ", ".join(_tier_word(tier) for tier in twin["tiers"])),
        ("Fitted on", distributions["fitting"]),
        ("Evaluated on", distributions["evaluation"]),
        *((f"Split: {name}", words) for name, words in distributions["splits"].items()),
        ("Post-processing", "; ".join(twin["post_processing"]) or "none"),
        ("Metric and binning", twin["method"]["binning"]),
        ("Made", twin["created"]),
    ]
    return Table(("", ""), tuple(rows), numbers=False)


def _failures(twin: Json) -> tuple[str, ...]:
    """Slices and shifts on which the claim was seen to fail, and how many had too few answers to tell."""
    wholes = [("the routed whole", twin["routed"]), *((shift["name"], shift) for shift in twin["shifts"])]
    tables = [(name, whole["slices"]) for name, whole in wholes]
    tables += [(f"tier {tier['tier']}", tier["slices"]) for tier in twin["tiers"]]
    failed = [f"{name}: {row['column']} = {row['slice']}" for name, rows in tables for row in rows if row["fails"]]
    untold = sum("insufficient" in row for _, rows in tables for row in rows)
    total = sum(len(rows) for _, rows in tables)
    said = [f"{name}: {_verdict(whole['region'])}" for name, whole in wholes]
    for tier in twin["tiers"]:
        told = "; ".join(f"{words}: {_in_short(region)}" for words, region in _held_to(tier))
        said.append(f"tier {tier['tier']}: {told}")
    slices = f"{len(failed)} of {total} slices fail" + (": " + "; ".join(failed) if failed else "")
    return (*said, f"{slices}; {untold} have too few answers to tell.")


CHECKS = {"ks_ce": "KS error", "debiased_ece": "debiased ECE", "intercept": "intercept", "slope": "slope"}


def _held_to(tier: Json) -> list[tuple[str, Json]]:
    """What a tier answers for: the questions that reached it and the answers it served, once where those are the same
    (a last tier), with the words for each."""
    reached, accepted = tier["regions"]["reached"], tier["regions"]["accepted"]
    if reached == accepted:
        return [("on the questions that reached it, all of which it serves", reached)]
    return [("on the questions that reached it", reached), ("on the answers it serves", accepted)]


def _in_short(region: Json) -> str:
    """The verdict in words alone, for where the numbers stand elsewhere."""
    if "insufficient" in region:
        return _verdict_on_the_mean(region)
    return f"calibration fails by {_failed(region)}" if region["failed"] else "no failure seen"


def _failed(region: Json) -> str:
    return " and ".join(CHECKS[name] for name in region["failed"])


def _verdict(region: Json) -> str:
    """Which of the four checks fail, and all four results."""
    if "insufficient" in region:
        return _verdict_on_the_mean(region)
    failed, n = region["failed"], f"n = {region['n']:,}"
    told = {
        name: f"{word} {region['floors'][name]['value']:.3f}, {_p_value(region['floors'][name])}"
        if name in region["floors"]
        else f"{word} {_outcome(region['scores'][name])}"
        for name, word in CHECKS.items()
    }
    against = "; ".join(told[name] for name in failed)
    rest = "; ".join(told[name] for name in told if name not in failed)
    if not failed:
        return f"no failure seen ({rest}; {n})"
    passed = f"; seen no failure: {rest}" if rest else ""
    return f"calibration fails by {_failed(region)} ({against}{passed}; {n})"


def _verdict_on_the_mean(region: Json) -> str:
    """Too few of one kind for a calibration error; but a mean claim far from the share right shows without one."""
    few, right = f"insufficient: {region['insufficient']}", region["scores"]["accuracy"]
    if "insufficient" in right or right["low"] <= region["mean_p"] <= right["high"]:
        return f"unknown, {few}"
    return f"calibration fails: {region['mean_p']:.3f} claimed on average, {_outcome(right)} right ({few})"


def _tier_word(tier: Json) -> str:
    threshold = tier["threshold"]
    return f"{tier['tier']} ({'last' if threshold is None else f'accepts at p ≥ {threshold:g}'})"


def _tier_blocks(tier: Json) -> list[Block]:
    calibrator = tier["calibrator"]
    fit = calibrator["fit"]
    rows = [
        ("Acts", "last tier, accepts all" if tier["threshold"] is None else f"accepts at p ≥ {tier['threshold']:g}"),
        ("Calibrator", f"{calibrator['label']}, family {calibrator['kind']}"),
        ("Features", ", ".join(calibrator["features"])),
        (
            "Fitted on",
            f"{fit['n']:,} answers, {fit['n_rare']:,} of the rarer kind; data sha256 {fit['data_sha256'][:12]}",
        ),
        (
            "Objective",
            f"{fit['objective']}, η = {_plain(fit['eta'])}, seed {fit['seed']}, slices {_plain(fit['slices'])}",
        ),
        ("Belongs to", ", ".join(f"{name} {value}" for name, value in sorted(calibrator["fingerprint"].items()))),
        ("Valid when", "; ".join(calibrator["conditions"]) or "nothing said"),
        ("Expires", calibrator["expires"] or "no date set"),
    ]
    return [
        Heading(2, f"Tier {tier['tier']}"),
        Table(("", ""), tuple(rows), numbers=False),
        Bullets(tuple(f"{_capital(words)}: {_verdict(region)}." for words, region in _held_to(tier))),
        Text("; ".join(f"{name}: {words}" for name, words in REGIONS.items()) + "."),
        _score_table(tier["regions"]),
        _gallery(tier["regions"], tier["tier"]),
        Heading(3, "Slices, on the questions that reached it"),
        *_slice_blocks(tier["slices"]),
        Heading(3, "Raw features, right against wrong, on all questions"),
        Gallery(tuple(_feature(told) for told in tier["features"])),
    ]


def _shift_blocks(shifts: Sequence[Json], order: Sequence[str]) -> list[Block]:
    if not shifts:
        return [Text("None. Nothing is claimed for any other distribution than the one evaluated.")]
    said: list[Block] = []
    for shift in shifts:
        said += [Heading(3, shift["name"]), Text(f"{shift['description']} {_served(shift, order)}")]
        said += [_gallery({shift["name"]: shift["region"]}, shift["name"]), *_slice_blocks(shift["slices"])]
    return said


# Numbers


ROWS: tuple[tuple[str, str], ...] = (
    ("Brier", "brier"),
    ("Log loss, nats", "nll"),
    ("ECE, equal mass", "ece_equal_mass"),
    ("ECE, equal width", "ece_equal_width"),
    ("ECE, debiased", "debiased_ece"),
    ("l2 error, debiased", "debiased_l2"),
    ("KS calibration error", "ks_ce"),
    ("smECE", "smece"),
    ("Largest gap (bins ≥ 50)", "mce"),
    ("Calibration intercept (0)", "intercept"),
    ("Calibration slope (1)", "slope"),
    ("AUROC", "auroc"),
    ("AUPRC, wrong is positive", "auprc_wrong"),
    ("AURC", "aurc"),
    ("AURC above the best order", "excess_aurc"),
    ("AUGRC", "augrc"),
)


def _score_table(regions: Json) -> Table:
    told = list(regions.values())
    rows = [
        ("Answers (right / wrong)", *(f"{r['n']:,} ({r['n_right']:,} / {r['n'] - r['n_right']:,})" for r in told)),
        ("Right", *(_outcome(r["scores"]["accuracy"]) for r in told)),
        ("Mean claimed", *("–" if r["mean_p"] is None else f"{r['mean_p']:.3f}" for r in told)),
    ]
    for label, name in ROWS:
        rows.append((label, *(_score(region, name) for region in told)))
        if any(name in region.get("floors", {}) for region in told):
            rows.append(("· chance alone gives", *(_chance(region, name) for region in told)))
    rows += [
        (f"Brier: {part}", *(f"{r['corp'][part]:.4f}" if "corp" in r else "–" for r in told))
        for part in ("miscalibration", "discrimination", "uncertainty")
    ]
    rows.append(("p clipped in the log loss", *(f"{r['clipped']:,}" if "clipped" in r else "–" for r in told)))
    return Table(("", *regions), tuple(rows))


def _score(region: Json, name: str) -> str:
    if "insufficient" in region:
        return f"insufficient: {region['insufficient']}"
    return _outcome(region["scores"][name])


def _outcome(outcome: Json) -> str:
    if "insufficient" in outcome:
        return f"insufficient: {outcome['insufficient']}"
    ends = "" if outcome["low"] is None else f" [{outcome['low']:.3f}, {outcome['high']:.3f}]"
    return f"{outcome['value']:.3f}{ends}".replace("-", "−")


def _chance(region: Json, name: str) -> str:
    if "floors" not in region:
        return "–"
    floor = region["floors"][name]
    return f"{floor['mean']:.3f}, 95% below {floor['p95']:.3f}; {_p_value(floor)}"


def _p_value(floor: Json) -> str:
    least = 1 / (1 + floor["draws"])
    return f"p ≤ {least:.3f}" if floor["p_value"] <= least else f"p = {floor['p_value']:.3f}"


def _slice_blocks(slices: Sequence[Json]) -> list[Block]:
    if not slices:
        return [Text("No slices were named.")]
    rows = []
    for told in slices:
        few = f"insufficient: {told['insufficient']}" if "insufficient" in told else None
        rows.append(
            (
                f"{told['column']} = {told['slice']}",
                f"{told['n']:,}",
                _outcome(told["scores"]["accuracy"]),
                f"{told['mean_p']:.3f}",
                few or _outcome(told["scores"]["auroc"]),
                few or f"{told['ks']['value']:.3f}, {_p_value(told['ks'])}",
                "unknown" if few else "fails" if told["fails"] else "no failure seen",
            )
        )
    return [Table(("Slice", "n", "right", "mean claimed", "AUROC", "KS error", "calibration"), tuple(rows))]


def _served(aggregate: Json, order: Sequence[str]) -> str:
    """order: the cascade's tiers; one that is none of them comes last."""
    by = aggregate["served_by"]
    names = [name for name in order if name in by] + [name for name in by if name not in order]
    total = sum(by.values())
    return "Served by " + ", ".join(f"{name} {by[name] / total:.0%} ({by[name]:,})" for name in names) + "."


def _guarantee(guarantee: Json) -> str:
    assumed = "; ".join(guarantee["assumptions"]) or "none stated"
    risk, unit = guarantee["risk"], guarantee["unit"]
    limit = f"{risk:.1%}" if unit == "share" else f"{risk:.4g} {unit}"
    return (
        f"{guarantee['claim']}: at most {limit} with probability {guarantee['confidence']:.0%}, from "
        f"n = {guarantee['n']:,}. Assumes: {assumed}."
    )


def _bullets(items: Sequence[str]) -> Block:
    return Bullets(tuple(items)) if items else Text("None.")


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


# Pictures


def _gallery(regions: Json, whose: str) -> Gallery:
    different = {
        name: region
        for i, (name, region) in enumerate(regions.items())
        if region not in list(regions.values())[:i]  # everything reaches a first tier: one picture says it
    }
    figures = [_reliability(region, name, whose) for name, region in different.items()]
    curves = [
        (name, f"curve {name}" if name in REGIONS else "curve", region["curve"])
        for name, region in different.items()
        if "curve" in region
    ]
    if curves:
        figures.append(_risk(curves, different, whose))
    return Gallery(tuple(figures))


def _reliability(region: Json, name: str, whose: str) -> Figure:
    title = f"Reliability, {whose}, {name}" if whose != name else f"Reliability, {whose}"
    if "insufficient" in region:
        return Figure(None, f"{title}: not drawn, insufficient: {region['insufficient']} of n = {region['n']:,}.")
    bins = region["reliability"]["bins"]
    rows = tuple(
        (
            f"{b['p_low']:.3f}–{b['p_high']:.3f}",
            f"{b['n']:,}",
            f"{b['p_mean']:.3f}",
            f"{b['rate']:.3f} [{b['low']:.3f}, {b['high']:.3f}]",
            f"{b['band_low']:.3f}–{b['band_high']:.3f}",
        )
        for b in bins
    )
    outside = sum(not b["band_low"] - 1e-9 <= b["rate"] <= b["band_high"] + 1e-9 for b in bins)
    caption = (
        f"{title}, n = {region['n']:,} in {len(bins)} bins. Points: share right with 95% Clopper–Pearson bars. Grey: "
        f"where 95% of a perfect forecaster's points fall; {outside} of {len(bins)} lie outside. Below: answers per "
        "claimed probability, right (blue) under wrong (orange)."
    )
    table = Table(("claimed", "n", "mean claimed", "share right", "perfect: 95% within"), rows)
    return Figure(_svg.reliability(region["reliability"], title), caption, table)


def _risk(curves: Sequence[tuple[str, str, Json]], regions: Json, whose: str) -> Figure:
    names = [name for name, _, _ in curves]
    strokes = {"all": "all: blue", "reached": "reached: orange", "accepted": "accepted: dotted"}
    shown = ", ".join(strokes[name] for name in names) if len(names) > 1 else whose
    caption = f"Error among the surest answers kept ({shown}). Dashed: the best order there could be, for {names[0]}."
    heads: list[str] = ["coverage"]
    for name in names:
        heads += [f"{name}: keep p ≥", f"{name}: error"]
    rows = []
    for i, first in enumerate(regions[names[0]]["risk_coverage"]):
        row = [f"{first['coverage']:.0%}"]
        for name in names:
            told = regions[name]["risk_coverage"][i]
            row += [f"{told['threshold']:.3f}{' (tied)' if told['tied'] else ''}", _outcome(told["error"])]
        rows.append(tuple(row))
    title = f"Risk and coverage, {whose}"
    return Figure(_svg.risk_coverage(curves, title), caption, Table(tuple(heads), tuple(rows)))


def _feature(told: Json) -> Figure:
    if "insufficient" in told:
        return Figure(None, f"{told['name']}: not drawn, insufficient: {told['insufficient']} of n = {told['n']:,}.")
    undefined = f"; undefined for {told['n_undefined']:,} more" if told["n_undefined"] else ""
    caption = (
        f"{told['name']}: AUROC {_outcome(told['auroc'])}; right n = {told['n_right']:,} (filled), wrong "
        f"n = {told['n_wrong']:,} (line), on shared edges{undefined}."
    )
    return Figure(_svg.histogram(told, f"Histogram of {told['name']}"), caption)
