"""What a report says and in which order: the twin as a list of blocks, which the page and the Markdown both print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calibrators import _svg
from calibrators._blocks import Block, Bullets, Figure, Gallery, Heading, Table, Text
from eval.report_curve import STYLES, UNITS
from eval.stats import DEFINITIONS

Json = Mapping[str, Any]


def title(twin: Json) -> str:
    """The verdict, which is the first line of every form."""
    words: str = twin["verdict"]
    return words[0].upper() + words[1:] + "."


def blocks(twin: Json, curve: str) -> list[Block]:
    """Everything below the title. curve: the SVG of the cost-accuracy curve for a page."""
    return [
        *_verdict(twin),
        Heading(2, "Cost and accuracy"),
        _curve(twin, curve),
        Text("Efficient policies: chosen on one set of questions, scored on the other, which chose nothing."),
        _policies(twin),
        Heading(2, "Held against"),
        Text("Each with thresholds chosen like ours, where it has any, and scored on the same questions. What the goal "
             "would have taken of each is shown; an oracle knows the right answers, so no router can be it."),
        _baselines(twin),
        *([Text("Not drawn: " + "; ".join(f"{STYLES[name].label} ({why})" for name, why in absent.items()) + ".")]
          if (absent := twin["sweep"]["absent"]) else []),
        Heading(3, "Models alone"),
        Text("Exact McNemar tests of the chosen policy against each model, adjusted for their number by Holm."),
        _against(twin),
        Heading(2, "Numbers and what they mean"),
        *_metrics(twin),
        Heading(2, "Where questions were answered"),
        *_where(twin),
        Heading(2, "How true the confidence is"),
        *_confidence(twin),
        Heading(2, "Slices"),
        *_slices(twin),
        Heading(2, "What can be promised"),
        *_promises(twin),
        Heading(2, "What a reader must know"),
        Bullets(tuple(twin["sweep"]["notes"]) or ("Nothing beyond what stands above.",)),
        Heading(2, "How this was made"),
        *_provenance(twin),
    ]  # fmt: skip


# Verdict


def _verdict(twin: Json) -> list[Block]:
    sweep = twin["sweep"]
    numbers, anew, held = sweep["numbers"], sweep["anew"], sweep["held_out"]
    rows = [
        ("Serve", route(sweep["served"])),
        ("Chosen by the goal", route(sweep["chosen"])),
        ("Compared with", f"{sweep['reference']['tiers'][0]} alone, {percent(numbers['reference_accuracy'])} right"),
        ("Right", percent(numbers["accuracy"])),
        ("Cost", f"{percent(numbers['cost_share'])} of that of {sweep['reference']['tiers'][0]} alone"),
        ("Gain in accuracy", points(numbers["gain"])),
        ("Above a random mix of the same cost", points(numbers["skill"])),
        ("Optimism of choosing", f"{100 * held['optimism']:+.1f} points: {held['chosen_accuracy']:.1%} where chosen, "
                                 f"{held['test_accuracy']:.1%} on the test".replace("-", "−")),
        ("Saving, policy chosen anew in every resample", percent(anew["saving"])),
        ("Gain, policy chosen anew in every resample", points(anew["gain"])),
        ("Questions", f"{sweep['n']['chosen_on']:,} chose among {sweep['policies_tried']:,} policies, "
                      f"{sweep['n']['test']:,} others judged"),
    ]  # fmt: skip
    return [Table(("", ""), tuple(rows), numbers=False)]


# Curve


def _curve(twin: Json, svg: str) -> Figure:
    unit = UNITS[twin["sweep"]["cost_unit"]][1]
    caption = (
        f"Share of right answers against cost in {unit}, every model that was asked included. Band: 95 % interval of "
        f"our line by {twin['method']['resamples']:,} resamples of questions, pointwise. Star: the policy chosen, with "
        "both intervals. Circles: one model alone. Dashed: what sending each request to one of two models at random "
        "reaches; a confidence that knows nothing lies there."
    )
    band = twin["curve"]["band"]
    rows = tuple(
        (money(twin, p["cost"]), f"{p['accuracy']:.1%}", f"{p['low']:.1%} to {p['high']:.1%}")
        for p in band[:: max(len(band) // 20, 1)]
    )
    return Figure(svg, caption, Table((f"cost, {unit}", "right", "95 % interval"), rows), wide=True, file="curve.svg")


def _policies(twin: Json) -> Table:
    rows = tuple(
        (
            route(one),
            percent(one["accuracy"]),
            money(twin, one["cost"]["value"]),
            f"{one['chosen_accuracy']:.1%}",
            minus(f"{100 * one['optimism']:+.1f}"),
        )
        for one in twin["curve"]["policies"]
    )
    heads = ("policy", "right on the test", _cost(twin), "right where chosen", "optimism, points")
    return Table(heads, rows, words=frozenset({0}))


def _baselines(twin: Json) -> Table:
    sweep = twin["sweep"]
    ours = (
        "ours, as chosen",
        f"{sweep['held_out']['test_accuracy']:.1%}",
        money(twin, sweep["held_out"]["test_cost"]),
        route(sweep["chosen"]),
    )
    rows = [ours]
    for line in sweep["baselines"]:
        best = max(range(len(line["accuracy"])), key=lambda place: line["accuracy"][place])
        picked = line["picked"] or {"accuracy": line["accuracy"][best], "cost": line["cost"][best]}
        rows.append((_named(line), f"{picked['accuracy']:.1%}", money(twin, picked["cost"]), line["told"]))
    return Table(("", "right", _cost(twin), "what it is"), tuple(rows), words=frozenset({0, 3}))


def _named(line: Json) -> str:
    """What is shown of a line: what the goal took, or its best point where it offers no choice or none was good."""
    name = STYLES[line["name"]].label if line["name"] in STYLES else line["name"]
    if line["picked"] is not None:
        return name
    offers = line["name"] not in ("random mix", "random escalation") and not line["oracle"]
    return f"{name}: {'misses the goal, ' if offers else ''}its best point"


def _against(twin: Json) -> Table:
    signals = twin["sweep"]["signals"]
    rows = tuple(
        (
            one["tier"],
            f"{one['accuracy']:.1%}",
            money(twin, one["cost"]),
            f"{one['only_policy']:,}",
            f"{one['only_model']:,}",
            f"{one['p_value']:.3f}" if one["p_value"] >= 0.001 else "< 0.001",
            outcome(signals[one["tier"]]),
        )
        for one in twin["sweep"]["against"]
    )
    return Table(
        ("model", "right", _cost(twin), "only ours right", "only it right", "p", "AUROC of its confidence"), rows
    )


# Metrics


def _metrics(twin: Json) -> list[Block]:
    sweep, reference = twin["sweep"], twin["sweep"]["reference"]["tiers"][0]
    parity = tuple(
        (
            f"as accurate as {reference}" + (f" but for {100 * one['margin']:g} points" if one["margin"] else ""),
            route(one),
            percent(one["cost_share"]),
            points(one["gain"]),
        )
        for one in twin["parity"]
    )
    budgets = tuple(
        (
            f"{one['share']:.0%} of {reference}",
            "not to be had" if one["accuracy"] is None else percent(one["accuracy"]),
            "–" if one["random"] is None else f"{one['random']:.1%}",
            "–" if one["gain"] is None else points(one["gain"]),
            "–" if one["low"] is None else _mixture(one),
        )
        for one in twin["budgets"]
    )
    rows = tuple((name, outcome(one)) for name, one in sweep["metrics"].items())
    said: list[Block] = [
        Heading(3, "Cost at parity"),
        Text(f"The cheapest policy that was as accurate as {reference} where it was chosen, on the test; paired "
             "bootstrap by question. Its accuracy there may differ: see the last column."),
        Table(("asked to be", "policy", f"cost, share of {reference}'s", "gain on the test"), parity,
              words=frozenset({0, 1})),
        Heading(3, "Accuracy at budgets"),
        Text("Two efficient policies are mixed so that the budget is spent exactly; which of them a request follows is "
             "drawn from its id."),
        Table(("budget", "right", "random mix", "gain over it", "how"), budgets, words=frozenset({4})),
    ]  # fmt: skip
    if sweep["mix"] is not None:
        mixed = sweep["mix"]
        said.append(
            Text(f"To spend the wished budget exactly: {mixed['share_high']:.1%} of requests to "
                 f"{route(mixed['high'])}, the rest to {route(mixed['low'])}.")
        )  # fmt: skip
    return [
        *said,
        Heading(3, "Figures that others report"),
        Table(("metric", "value"), rows),
        Heading(3, "Definitions"),
        Table(("", ""), tuple(DEFINITIONS.items()), numbers=False),
    ]


def _mixture(one: Json) -> str:
    if one["low"] == one["high"] or one["share_high"] >= 1:
        return route(one["high"])
    if one["share_high"] <= 0:
        return route(one["low"])
    return f"{one['share_high']:.0%} {route(one['high'])}; else {route(one['low'])}"


# Where questions were answered


def _where(twin: Json) -> list[Block]:
    chosen, n = twin["chosen"], twin["chosen"]["n"]
    seconds = chosen["seconds"]
    rows = tuple(
        (
            one["tier"],
            "last: answers all" if one["threshold"] is None else f"p ≥ {one['threshold']:g}",
            f"{one['reached']:,} ({one['reached'] / n:.0%})",
            f"{one['answered']:,} ({one['answered'] / n:.0%})",
            outcome(one["right"]),
            "–" if one["claimed"] is None else f"{one['claimed']:.3f}",
            money(twin, one["cost"]),
            "–" if one["cut"] is None else f"{one['cut']:,}",
            f"{one['without_p']:,}",
        )
        for one in twin["steps"]
    )
    heads = ("tier", "accepts", "reached", "answered", "right of these", "claimed on average", _cost(twin),
             "cut, of reached", "without a confidence")  # fmt: skip
    models = tuple(
        (
            one["tier"],
            outcome(one["accuracy"]),
            money(twin, one["cost"]),
            "–" if one["seconds"] is None else f"{one['seconds']:.2f}",
            *(
                "–" if one[kind] is None else f"{one[kind]:,} ({one[kind] / one['n']:.1%})"
                for kind in ("cut", "unreadable", "silent")
            ),
        )
        for one in twin["models"]
    )
    return [
        Text(f"The policy chosen ({route(chosen)}) on {n:,} test questions: {chosen['tiers_asked']:.2f} models asked "
             f"per question; " + ("how long they took is not known." if seconds["mean"] is None else
             f"seconds as recorded, one after another: {seconds['mean']:.2f} on average, "
             f"{seconds['p50']:.2f} in the middle, {seconds['p95']:.2f} for the slowest 5 %.")),
        Table(heads, rows),
        Heading(3, "Every model on every question"),
        Text("Cut: met its token limit, which counts as wrong. Unreadable: no final number, which does too."),
        Table(("model", "right", _cost(twin), "seconds", "cut", "unreadable", "without log-probs"), models),
    ]  # fmt: skip


# Confidence


def _confidence(twin: Json) -> list[Block]:
    reached = {one["tier"]: one["confidence"] for one in twin["steps"]}
    return [
        Text(f"Held-out questions alone. Fewer than {twin['method']['rare_needed']} right or wrong answers give no "
             "number but the word insufficient."),
        _scores({"routed whole": twin["chosen"]["confidence"]}
                | {f"{tier}, where asked": one for tier, one in reached.items()}
                | {f"{one['tier']}, all questions": one["confidence"] for one in twin["models"]}),
        Heading(3, "Confidence of right and of wrong answers"),
        Gallery(tuple(_histogram(one["tier"], one["confidence"]) for one in twin["models"])),
        Heading(3, "Claimed against true"),
        Text("Points: share right in bins of equal mass, with 95 % Clopper–Pearson bars. Grey bands: where 95 % of a "
             "perfect forecaster's points fall. Below: answers per claimed probability, right (blue) under wrong "
             "(orange)."),
        Gallery((
            _reliability("the routed whole", twin["chosen"]["confidence"]),
            *(_reliability(f"{tier}, on questions that reach it", one) for tier, one in reached.items()),
            *(_reliability(f"{one['tier']}, on all questions", one["confidence"]) for one in twin["models"]
              if one["tier"] not in reached),
        )),
    ]  # fmt: skip


def _scores(told: Mapping[str, Json]) -> Table:
    rows = []
    for name, one in told.items():
        rows.append(
            (
                name,
                f"{one['n']:,}",
                "–" if one["claimed"] is None else f"{one['claimed']:.3f}",
                outcome(one["right"]),
                *(
                    (f"insufficient: {one['insufficient']}", "–", "–", "–")
                    if "insufficient" in one
                    else (outcome(one["auroc"]), *_ks(one["ks"]))
                ),
            )
        )
    heads = ("", "n", "claimed on average", "right", "AUROC", "KS calibration error", "by chance alone", "p")
    return Table(heads, tuple(rows))


def _ks(told: Json) -> tuple[str, str, str]:
    """The largest drift of right answers from p, what chance alone would show, and the share of chances as large."""
    chance = f"{told['mean']:.3f}, 95 % below {told['p95']:.3f}"
    return f"{told['value']:.3f}", chance, f"{told['p_value']:.3f}" if told["p_value"] >= 0.001 else "< 0.001"


def _histogram(name: str, told: Json) -> Figure:
    histogram = told["histogram"]
    right, wrong = sum(histogram["right"]), sum(histogram["wrong"])
    if not right or not wrong:
        return Figure(None, f"{name}: {right:,} right and {wrong:,} wrong answers with a confidence: nothing to tell.")
    caption = f"{name}: {right:,} right answers (filled), {wrong:,} wrong ones (line), each as a density."
    drawn = {"edges": histogram["edges"], "name": "calibrated probability p"}
    for kind, n in (("right", right), ("wrong", wrong)):
        widths = [b - a for a, b in zip(histogram["edges"][:-1], histogram["edges"][1:], strict=True)]
        drawn[kind] = [count / n / width for count, width in zip(histogram[kind], widths, strict=True)]
    rows = tuple(
        (f"{low:.2f}–{high:.2f}", f"{r:,}", f"{w:,}")
        for low, high, r, w in zip(
            histogram["edges"][:-1], histogram["edges"][1:], histogram["right"], histogram["wrong"], strict=True
        )
    )
    return Figure(_svg.histogram(drawn, f"Confidence of {name}"), caption, Table(("p", "right", "wrong"), rows))


def _reliability(name: str, told: Json) -> Figure:
    if "insufficient" in told:
        return Figure(None, f"{name}: not drawn, insufficient: {told['insufficient']} of n = {told['n']:,}.")
    bins = told["reliability"]["bins"]
    outside = sum(not b["band_low"] - 1e-9 <= b["rate"] <= b["band_high"] + 1e-9 for b in bins)
    caption = f"{name}, n = {told['n']:,}; {outside} of {len(bins)} bins lie outside their band."
    rows = tuple(
        (
            f"{b['p_low']:.3f}–{b['p_high']:.3f}",
            f"{b['n']:,}",
            f"{b['p_mean']:.3f}",
            f"{b['rate']:.3f} [{b['low']:.3f}, {b['high']:.3f}]",
        )
        for b in bins
    )
    table = Table(("claimed", "n", "mean claimed", "share right"), rows)
    return Figure(_svg.reliability(told["reliability"], f"Reliability of {name}"), caption, table)


# Slices


def _slices(twin: Json) -> list[Block]:
    if not twin["slices"]:
        return [Text("The questions come without slices that differ.")]
    reference = twin["sweep"]["reference"]["tiers"][0]
    rows = tuple(
        (
            f"{one['column']} {one['slice']}".replace("<=", "≤ ").replace(" >", " > "),
            f"{one['n']:,}",
            outcome(one["accuracy"]),
            "–" if one["claimed"] is None else f"{one['claimed']:.3f}",
            outcome(one["reference_accuracy"]),
            points(one["gain"]),
            percent(one["cost_share"]),
        )
        for one in twin["slices"]
    )
    heads = ("slice", "n", "right", "claimed on average", f"{reference} right", "gain", f"cost, share of {reference}'s")
    told = (
        "The policy chosen beside the reference on the same questions. Many slices are looked at: where nothing "
        "differs, one interval in twenty still lies off zero."
    )
    return [Text(told), Table(heads, rows)]


# Promises


def _promises(twin: Json) -> list[Block]:
    promised = twin["guarantees"]
    certificates = tuple(
        (one["what"], one["why"], "–", "–", "–")
        if "why" in one
        else (
            one["what"],
            f"at most {_limit(twin, one, one['limit'])}",
            f"{one['confidence']:.0%}",
            f"{_limit(twin, one, one['seen'])}, n = {one['n']:,}",
            f"{one['method']}; {route(one['policy'])}",
        )
        for one in twin["sweep"]["certificates"]
    )
    proven = tuple(
        (f"{one['risk']:.0%}", f"none: {one['refused']}", "–", "–")
        if "refused" in one
        else (
            f"{one['risk']:.0%}",
            route(one["certificate"]["policy"]),
            f"{one['certificate']['confidence']:.0%}",
            f"{one['certificate']['seen']:.2%}, n = {one['certificate']['n']:,}",
        )
        for one in promised["proven"]
    )
    thresholds = tuple(
        (
            one["tier"] + (f" after {', '.join(one['after'])}" if one["after"] else ""),
            f"{one['risk']:.0%}",
            f"{one['n']:,}",
            _threshold(one["trusted"]),
            _threshold(one["controlled"]),
        )
        for one in promised["thresholds"]
    )
    labels = tuple((f"{one['certify']:.0%}", f"{one['truth']:.0%}", f"{one['labels']:,}") for one in promised["labels"])
    return [
        Text("All of it under these assumptions; where one fails, and under any shift, nothing is promised:"),
        Bullets(tuple(promised["assumptions"])),
        Heading(3, "For the policy to serve"),
        Table(("what", "promise", "confidence", "seen", "method and policy"), certificates, numbers=False),
        Heading(3, "Cheapest policy with a proven error"),
        Text("Learn then Test: from the dearest efficient policy down, each is tested exactly at 5 %, and the first "
             "that fails ends the walk. Each row holds by itself with its confidence."),
        Table(("final answers wrong at most", "policy", "confidence", "seen"), proven, words=frozenset({1})),
        Heading(3, "Thresholds that can be trusted, tier by tier"),
        Text("Trusted: of the answers accepted, at most this share is wrong, with 95 % confidence (Clopper and "
             "Pearson, at least 30 accepted). Controlled: of all answers, at most this share is accepted and wrong, in "
             "expectation (conformal risk control). Candidates come from the questions that chose; each row holds by "
             "itself, not all at once."),
        Table(("tier", "share", "n", "trusted", "controlled"), thresholds, numbers=False),
        Heading(3, "How many labels a promise takes"),
        Table(("to prove at most", "when the truth is", "accepted answers"), labels),
        Text("At 95 % confidence, with a chance of 80 % to succeed."),
    ]  # fmt: skip


def _limit(twin: Json, one: Json, value: float) -> str:
    """A certificate is of a share, or of a cost in the sweep's unit."""
    if one["unit"] != "share":
        return f"{money(twin, value)} {UNITS[twin['sweep']['cost_unit']][1]}"
    return f"{value:.2%}"


def _threshold(told: Json) -> str:
    if "refused" in told:
        return f"none: {told['refused']}"
    return f"p ≥ {told['threshold']:g}: {told['wrong']:,} wrong of {told['accepted']:,} accepted"


# Provenance


def _provenance(twin: Json) -> list[Block]:
    made = twin["provenance"]
    wish = {name: value for name, value in made["wish"].items() if value not in (None, [], ())}
    facts = [
        ("Made", twin["created"]),
        *([("Cascade file", f"{made['config']['path']}, sha256 {made['config']['sha256']}")] if made["config"] else []),
        *([("Prices", f"{made['prices']['path']}, sha256 {made['prices']['sha256']}")] if made["prices"] else []),
        ("Wish", ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in wish.items())),
        ("Seed", str(made["wish"]["seed"])),
        ("Machine", made["machine"]),
        ("Versions", ", ".join(f"{name} {number}" for name, number in made["versions"].items())),
    ]
    collected = [Table(("", ""), _collected(one), numbers=False) for one in made["records"]]
    sealed = tuple(
        (one["tier"], f"{one['label']}, sha256 {one['sha256']}", one["kind"], f"{one['n']:,} of {one['split']}",
         ", ".join(one["features"]))
        for one in made["calibrators"]
    )  # fmt: skip
    return [
        Text(f"`{made['command']}`"),
        Table(("", ""), tuple(facts), numbers=False),
        Heading(3, "Calibrators"),
        Table(("tier", "artefact", "family", "fitted on", "features"), sealed, numbers=False),
        Heading(3, "Records"),
        *collected,
    ]


def _collected(one: Json) -> tuple[tuple[str, str], ...]:
    if "dataset" not in one:
        return (("Table", f"{one['path']}, sha256 {one['sha256']}"),)
    splits = ", ".join(f"{n:,} of {split}" for split, n in one["splits"].items())
    limit = f"at most {one['max_tokens']} tokens" if one["max_tokens"] else "as many tokens as the engine allows"
    return (
        ("Records", f"{one['path']}, sha256 {one['sha256']}"),
        ("Questions", f"{one['dataset']}: {splits}; sha256 {one['questions_sha256']}"),
        ("Prompt", f"sha256 {one['prompt_sha256']}"),
        ("Asked with", f"seed {one['seed']}, {limit}; begun {one['created'] or 'at no recorded time'}"),
        ("Command", f"`{one['command']}`" if one["command"] else "not recorded"),
        *(
            (f"Model {name}", ", ".join(f"{key} {value}" for key, value in sorted(who.items())))
            for name, who in one["models"].items()
        ),
    )


# Words


def route(told: Json) -> str:
    accepts = (f"(p\N{NO-BREAK SPACE}≥\N{NO-BREAK SPACE}{mark:g})" for mark in told["thresholds"])
    steps = [f"{tier} {mark}" for tier, mark in zip(told["tiers"], accepts)]  # noqa: B905
    return " then ".join([*steps, told["tiers"][-1]])


def money(twin: Json, value: float) -> str:
    return f"{value * UNITS[twin['sweep']['cost_unit']][0]:.4g}"


def _cost(twin: Json) -> str:
    return f"cost, {UNITS[twin['sweep']['cost_unit']][1]}"


def outcome(told: Json) -> str:
    if "insufficient" in told:
        return f"insufficient: {told['insufficient']}"
    ends = "" if told["low"] is None else f" [{told['low']:.3f}, {told['high']:.3f}]"
    return minus(f"{told['value']:.3f}{ends}")


def percent(told: Json) -> str:
    return minus(f"{100 * told['value']:.1f} % [{100 * told['low']:.1f}, {100 * told['high']:.1f}]")


def points(told: Json) -> str:
    return minus(f"{100 * told['value']:+.1f} points [{100 * told['low']:+.1f}, {100 * told['high']:+.1f}]")


def minus(number: str) -> str:
    return number.replace("-", "−")
