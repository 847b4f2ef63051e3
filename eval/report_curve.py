"""The cost-accuracy curve as a picture, drawn with matplotlib from a report's twin: for print, for pages, for a README.

Colours are Okabe and Ito's, which colour-blind readers tell apart, and every line has a marker or a dash of its own.
In the SVG for pages the colours are names that the page's style sheet fills, so that one picture serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]

WIDTH, HEIGHT, DPI = 10.6, 5.8, 150  # inches, and dots per inch of the PNG
WIDE = 20.0  # from this ratio of the dearest to the cheapest on, costs are drawn on a logarithmic axis
ZOOMED = (0.2, 1.12)  # the part drawn larger, in shares of the reference's cost
WORTH_A_ZOOM = 1.5  # times taller than on the whole, or there is no second panel
LETTER, LINE = 5.6, 12.0  # points: mean width and height of a letter of a label
MIX_POINTS = 60  # a straight line between two models bends on a logarithmic axis

# name: (on white, on dark).  The first of each is unique, for it is what is replaced.
COLOURS = {
    "ink": ("#1b1f24", "#e4e8ec"),
    "dim": ("#59636e", "#9aa5b1"),
    "rule": ("#d5dae0", "#363d45"),
    "page": ("#ffffff", "#14171b"),
    "ours": ("#0072b2", "#56b4e9"),
    "chosen": ("#d55e00", "#ff9d4d"),
    "raw": ("#e69f00", "#f0c04a"),
    "length": ("#cc79a7", "#e6a5c8"),
    "feature": ("#8c564b", "#c99d92"),
    "prompt": ("#7a7a00", "#c5c54a"),
    "agreement": ("#009e73", "#3fd0a4"),
    "ahead": ("#7a5cc4", "#b7a2f0"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}


class NoPictures(GatewayError):
    """matplotlib is not there. The message says how to get it."""

    def __init__(self, why: object) -> None:
        super().__init__(f"a report draws its curve with matplotlib: pip install 'confidence-gateway[report]' ({why})")


@dataclass(frozen=True, slots=True)
class Style:
    """How one reference line is drawn. marker, dash: as matplotlib spells them."""

    label: str
    colour: str
    marker: str
    dash: str


# Our own names for the lines of eval.baselines, in the order of the legend.
STYLES = {
    "random mix": Style("random mix of models (no skill)", "dim", "", "--"),
    "random escalation": Style("random escalation", "dim", "", ":"),
    "raw": Style("raw confidence, uncalibrated", "raw", "v", "-"),
    "length": Style("answer length only", "length", "s", "-"),
    "best feature": Style("best single feature, calibrated", "feature", "^", "-."),
    "before answering": Style("router that reads the prompt alone", "prompt", "<", "-"),
    "agreement": Style("two models agree, else a third", "agreement", "D", ""),
    "look-ahead": Style("look-ahead (not served)", "ahead", "x", ""),
    "router oracle": Style("router oracle (knows who is right)", "ink", "P", ""),
    "cascade oracle": Style("cascade oracle (pays all it tries)", "ink", "X", ""),
}

# unit of the crossed table: (factor, words on the axis)
UNITS = {
    "tokens": (1.0, "tokens per question"),
    "usd": (1_000.0, "US dollars per 1,000 questions"),
    "flops": (1e-12, "teraFLOPs per question"),
    "gpu-seconds": (1.0, "GPU-seconds per question"),
    "seconds": (1.0, "seconds per question"),
    "cost": (1.0, "cost per question, in the table's own unit"),
}


@dataclass(frozen=True, slots=True)
class Pictures:
    """png: bytes.  svg: a file of its own, in light colours.  inline: for a page that fills `--curve-<name>`."""

    png: bytes
    svg: str
    inline: str


def check_installed() -> None:
    """Raises NoPictures without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise NoPictures(error) from error


def draw(twin: Json) -> Pictures:
    """Raises NoPictures without matplotlib."""
    check_installed()
    import matplotlib as mpl
    from matplotlib.figure import Figure

    look: Any = {
        "svg.fonttype": "none",  # text stays text: small, searchable, and read aloud
        "svg.hashsalt": "confidence-gateway",  # the same report, the same bytes
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 10,
        "axes.linewidth": 0.8,
        "text.parse_math": False,  # a tier may have a dollar in its name
    }
    with mpl.rc_context(look):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor=LIGHT["page"])
        panels(figure, twin)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", svg.getvalue(), flags=re.DOTALL)  # who made it is nobody's news
    return Pictures(png.getvalue(), text, inlined(text, twin))


def inlined(svg: str, twin: Json) -> str:
    """The SVG to be put into a page: without its prologue, with names for colours, and with words for those who
    cannot see it."""
    body = svg[svg.index("<svg") :].replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
    for name, light in LIGHT.items():
        body = body.replace(light, f"var(--curve-{name})")
    start = body.index(">") + 1
    fill = "".join(f"--curve-{name}:{light};" for name, light in LIGHT.items())
    dark = "".join(f"--curve-{name}:{dark};" for name, (_, dark) in COLOURS.items())
    said = escape(f"Cost and accuracy. {twin['verdict']}")
    style = f"<style>:root{{{fill}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    head = body[: start - 1] + f' class="drawn" role="img" aria-label="{said}">'
    body = body.replace('<style type="text/css">*{', "<style>.drawn *{")  # in a page a style is everybody's
    return head + style + body[start:]


# Panels


def panels(figure: Figure, twin: Json) -> None:
    """All of it, and beside it the part where the decision is made, larger, if that part is small."""
    whole = figure.add_subplot(1, 2, 1)
    factor, words = UNITS[twin["sweep"]["cost_unit"]]
    plot(whole, twin, factor)
    dress(whole, twin, f"cost, {words}", factor)
    every = [whole]
    low, high = whole.get_ylim()
    x, y = part(twin, factor)
    if (high - low) >= WORTH_A_ZOOM * (y[1] - y[0]):
        zoom = figure.add_subplot(1, 2, 2)
        plot(zoom, twin, factor)
        zoom.set(xlim=x, ylim=y)
        dress(zoom, twin, f"cost, {words}; the upper part, larger", factor)
        zoom.set_ylabel("")
        every.append(zoom)
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8.5,
                  labelcolor=LIGHT["ink"], handlelength=2.4, columnspacing=1.6)  # fmt: skip
    figure.draw_without_rendering()  # only now is it known where on the paper a point lies,
    figure.set_layout_engine("none")  # and there it shall stay
    for axes in every:
        name_points(axes, twin, factor, policy=axes is every[-1])


def part(twin: Json, factor: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """(x, y) limits of the part between a fifth of the reference's cost and a little more than it."""
    sweep, models = twin["sweep"], twin["models"]
    cost = next(m["cost"] for m in models if m["tier"] == sweep["reference"]["tiers"][0])
    left, right = (share * cost for share in ZOOMED)
    mixed = next(line for line in sweep["baselines"] if line["name"] == "random mix")
    floor = float(np.interp(left, mixed["cost"], mixed["accuracy"]))
    tops = [max(line["accuracy"]) for line in sweep["baselines"]] + [p["high"] for p in twin["curve"]["band"]]
    room = 0.06 * (max(tops) - floor)
    return (factor * left, factor * right), (100 * (floor - 2 * room), min(100 * (max(tops) + room), 100.4))


def plot(axes: Axes, twin: Json, factor: float) -> None:
    """Everything but words."""
    lines = {one["name"]: one for one in twin["sweep"]["baselines"]}
    costs = [model["cost"] for model in twin["models"] if model["cost"] > 0]
    if costs and max(costs) >= WIDE * min(costs):
        axes.set_xscale("log")
    band = twin["curve"]["band"]
    x = [point["cost"] * factor for point in band]
    low, high = ([100 * point[end] for point in band] for end in ("low", "high"))
    axes.fill_between(
        x, low, high,
        color=LIGHT["ours"], alpha=0.18, linewidth=0, label="95 % interval, by question",
    )  # fmt: skip
    axes.plot(x, [100 * point["accuracy"] for point in band], color=LIGHT["ours"], linewidth=2)
    axes.plot([], [], color=LIGHT["ours"], linewidth=2, marker="o", markersize=4.5, label="ours; two neighbours mixed")
    policies = twin["curve"]["policies"]
    axes.plot(
        [one["cost"]["value"] * factor for one in policies], [100 * one["accuracy"]["value"] for one in policies],
        color=LIGHT["ours"], marker="o", markersize=4.5, linestyle="none",
    )  # fmt: skip
    axes.plot(
        [model["cost"] * factor for model in twin["models"]],
        [100 * model["accuracy"]["value"] for model in twin["models"]],
        color=LIGHT["ink"], marker="o", markersize=7, linestyle="none", markerfacecolor=LIGHT["page"],
        markeredgewidth=1.6, label="one model alone", zorder=5,
    )  # fmt: skip
    for name, style in STYLES.items():
        if name in lines:
            reference(axes, lines[name], style, factor)
    chosen(axes, twin, factor)


def reference(axes: Axes, line: Json, style: Style, factor: float) -> None:
    cost, right = np.array(line["cost"]) * factor, 100 * np.array(line["accuracy"])
    if not style.marker:
        at = np.unique(np.concatenate([cost, np.linspace(cost.min(), cost.max(), MIX_POINTS)]))
        order = np.argsort(cost)
        cost, right = at, np.interp(at, cost[order], right[order])
    small = 8 if line["oracle"] else 4.5
    axes.plot(
        cost, right, color=LIGHT[style.colour], marker=style.marker or None, linestyle=style.dash or "none",
        linewidth=1.2, markersize=small, label=style.label, zorder=3, markeredgewidth=1.2,
        markerfacecolor="none" if line["oracle"] else LIGHT[style.colour],
    )  # fmt: skip


def chosen(axes: Axes, twin: Json, factor: float) -> None:
    """The chosen policy with both of its intervals."""
    told = twin["sweep"]["chosen"]
    point = next((one for one in twin["curve"]["policies"] if same(one, told)), None)
    cost = twin["sweep"]["held_out"]["test_cost"] * factor
    accuracy = twin["sweep"]["numbers"]["accuracy"]
    bars: dict[str, Any] = {"yerr": _arms(accuracy, 100)}
    if point is not None:
        bars["xerr"] = _arms(point["cost"], factor)
    sold = twin["sweep"]["sells"] or len(told["tiers"]) == 1
    label = "the policy chosen" if sold else "the policy chosen, not recommended"
    axes.errorbar(
        [cost], [100 * accuracy["value"]], **bars, color=LIGHT["chosen"], marker="*", markersize=15, capsize=3,
        markeredgecolor=LIGHT["page"], markeredgewidth=0.8, elinewidth=1.3, linestyle="none", label=label, zorder=6,
    )  # fmt: skip


def same(one: Json, other: Json) -> bool:
    return bool(one["tiers"] == other["tiers"] and one["thresholds"] == other["thresholds"])


def route_words(told: Json) -> str:
    """One step per line."""
    steps = [f"{tier} if p ≥ {mark:g}" for tier, mark in zip(told["tiers"], told["thresholds"])]  # noqa: B905
    return ",\n".join([*steps, f"else {told['tiers'][-1]}" if steps else told["tiers"][-1]])


def _arms(score: Json, factor: float) -> list[list[float]]:
    """Distances from a value to both ends of its interval, as matplotlib wants them."""
    return [[factor * max(score["value"] - score["low"], 0.0)], [factor * max(score["high"] - score["value"], 0.0)]]


def name_points(axes: Axes, twin: Json, factor: float, *, policy: bool) -> None:
    """The models' names, and with `policy` the chosen policy's, each where it covers the fewest points."""
    taken = [point for line in axes.get_lines() for point in _inked(axes, line)]
    labels = [(m["tier"], m["cost"], m["accuracy"]["value"], "ink", "normal") for m in twin["models"]]
    sweep = twin["sweep"]
    if policy and len(sweep["chosen"]["tiers"]) > 1:
        at = sweep["held_out"]["test_cost"], sweep["numbers"]["accuracy"]["value"]
        labels.insert(0, (route_words(sweep["chosen"]), *at, "chosen", "bold"))
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for words, cost, accuracy, colour, weight in labels:
        x, y = cost * factor, 100 * accuracy
        if not (left <= x <= right and bottom <= y <= top):
            continue
        size = (
            LETTER * max(map(len, words.split("\n"))) * (1.12 if weight == "bold" else 1),
            LINE * (1 + words.count("\n")),
        )
        at = _on_paper(axes, x, y)
        places = [(dx, dy) for far in (1.0, 2.5, 4.5) for dy in (-8.0 * far, 8.0 * far) for dx in (8.0, -8.0, 0.0)]
        dx, dy = min(places, key=lambda place: _covered(axes, _box(at, place, size), taken))
        box = _box(at, (dx, dy), size)
        taken += [(px, py) for px in np.linspace(box[0], box[2], 12) for py in np.linspace(box[1], box[3], 4)]
        axes.annotate(
            words, (x, y), xytext=(dx, dy), textcoords="offset points", ha=_side(dx), va="top" if dy < 0 else "bottom",
            color=LIGHT[colour], fontsize=9, fontweight=weight, zorder=8, in_layout=False,
            arrowprops={"arrowstyle": "-", "color": LIGHT[colour], "linewidth": 0.8, "shrinkA": 1, "shrinkB": 7}
            if abs(dy) > 10 else None,
        )  # fmt: skip


Box = tuple[float, float, float, float]


def _side(dx: float) -> str:
    return "left" if dx > 0 else "right" if dx < 0 else "center"


def _box(at: tuple[float, float], place: tuple[float, float], size: tuple[float, float]) -> Box:
    """(left, bottom, right, top) of a label in points."""
    (x, y), (dx, dy), (width, height) = at, place, size
    left = x + dx - {"left": 0.0, "right": width, "center": width / 2}[_side(dx)]
    bottom = y + dy - (height if dy < 0 else 0.0)
    return left, bottom, left + width, bottom + height


def _covered(axes: Axes, box: Box, taken: Sequence[tuple[float, float]]) -> int:
    """How many points a label hides; out of the frame is worse than any."""
    left, bottom, right, top = box
    frame = axes.get_window_extent()
    scale = 72 / axes.figure.dpi
    inside = (
        frame.x0 * scale <= left
        and right <= frame.x1 * scale
        and frame.y0 * scale <= bottom
        and top <= frame.y1 * scale
    )
    hidden = sum(left - 3 <= x <= right + 3 and bottom - 3 <= y <= top + 3 for x, y in taken)
    return hidden + (0 if inside else 10_000)


def _on_paper(axes: Axes, x: float, y: float) -> tuple[float, float]:
    """In points from the lower left corner of the figure."""
    px, py = axes.transData.transform((x, y)) * 72 / axes.figure.dpi
    return float(px), float(py)


def _inked(axes: Axes, line: Any) -> list[tuple[float, float]]:
    """Points along a line, so near to each other that no label fits between; its markers alone if it has no dash."""
    points = [_on_paper(axes, x, y) for x, y in zip(*line.get_data(), strict=True)]
    if line.get_linestyle() == "None":
        return points
    found = points[:1]
    for (x0, y0), (x1, y1) in pairwise(points):
        n = max(int(np.hypot(x1 - x0, y1 - y0) / 4), 1)
        found += [(x0 + (x1 - x0) * k / n, y0 + (y1 - y0) * k / n) for k in range(1, n + 1)]
    return found


def dress(axes: Axes, twin: Json, words: str, factor: float) -> None:
    sweep = twin["sweep"]
    axes.set_xlabel(words, color=LIGHT["ink"])
    axes.set_ylabel(f"right answers, % of {sweep['n']['test']:,} held-out questions", color=LIGHT["ink"])
    axes.grid(color=LIGHT["rule"], linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_facecolor(LIGHT["page"])
    axes.tick_params(colors=LIGHT["dim"], labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_color(LIGHT["rule"])
        spine.set_visible(name in ("left", "bottom"))
    axes.margins(0.04)
    reference = next(m for m in twin["models"] if m["tier"] == sweep["reference"]["tiers"][0])
    base = reference["cost"] * factor
    if base > 0:

        def to_share(cost: Any) -> Any:
            return 100 * cost / base

        def from_share(percent: Any) -> Any:
            return percent * base / 100

        above = axes.secondary_xaxis("top", functions=(to_share, from_share))
        above.set_xlabel(f"% of the cost of {reference['tier']} alone", color=LIGHT["dim"], fontsize=9)
        above.tick_params(colors=LIGHT["dim"], labelsize=8.5)
        above.spines["top"].set_color(LIGHT["rule"])
