"""Pictures as inline SVG: text in, text out, no library and no foreign host.

Colours are classes that the page's own style sheet fills, so one picture serves light and dark. Every picture has a
title for those who cannot see it. Coordinates are pixels, y downward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isclose, log10
from typing import Any

WIDTH, HEIGHT = 340, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 38
STRIP = 46  # height of the counts under a reliability diagram


@dataclass(frozen=True, slots=True)
class Axis:
    """A straight map from numbers in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round numbers inside the axis: multiples of 1, 2 or 5 times a power of ten."""
        rough = (self.high - self.low) / about
        power = 10.0 ** floor(log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first, last = ceil(self.low / step - 1e-9), floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def reliability(told: Mapping[str, Any], title: str) -> str:
    """Claimed against true, with both bands, over a strip of counts. told: the twin's `reliability`."""
    bins = told["bins"]
    low = min(min(cell["p_mean"], cell["low"], cell["band_low"]) for cell in bins)
    low, high = floor(low * 10 + 1e-9) / 10, 1.0
    x = Axis(low, high, LEFT, WIDTH - RIGHT)
    y = Axis(low, high, HEIGHT - BOTTOM - STRIP - 8, TOP)
    parts = [_frame(x, y), _line(x(low), y(low), x(high), y(high), "guide")]
    half = min(4.0, 0.4 * (x.end - x.start) / len(bins))
    parts += [
        _bar(x(cell["p_mean"]) - half, y(cell["band_high"]), 2 * half, y(cell["band_low"]), "band") for cell in bins
    ]
    for cell in bins:
        at = x(cell["p_mean"])
        ends = f"[{cell['low']:.3f}, {cell['high']:.3f}]"
        words = f"claimed {cell['p_mean']:.3f}, right {cell['rate']:.3f} {ends}, n = {cell['n']:,}"
        parts.append(_line(at, y(cell["low"]), at, y(cell["high"]), "whisker"))
        parts.append(
            f'<circle class="dot" cx="{at:.1f}" cy="{y(cell["rate"]):.1f}" r="3"><title>{words}</title></circle>'
        )
    parts += [_ticks_y(y, _share), _label_y(y, "share right"), _strip(told["counts"], x, HEIGHT - BOTTOM)]
    parts += [_ticks_x(x, HEIGHT - BOTTOM, _share), _label_x(x, "claimed probability")]
    return _picture(parts, title)


def _strip(counts: Mapping[str, Any], x: Axis, bottom: float) -> str:
    """Stacked counts of right and wrong answers over the same axis. What lies left of the axis is said as a number."""
    edges, right, wrong = counts["edges"], counts["right"], counts["wrong"]
    tallest = max(max(r + w for r, w in zip(right, wrong, strict=True)), 1)
    height = Axis(0, tallest, bottom, bottom - STRIP + 6)
    parts, beyond = [], 0
    for b, (r, w) in enumerate(zip(right, wrong, strict=True)):
        if edges[b + 1] <= x.low + 1e-9:
            beyond += r + w
            continue
        left, width = x(edges[b]) + 0.5, x(edges[b + 1]) - x(edges[b]) - 1
        parts.append(_bar(left, height(r), width, height(0), "right"))
        parts.append(_bar(left, height(r + w), width, height(r), "wrong"))
    said = (
        f'<text class="tick" text-anchor="end" x="{x.start - 5:.1f}" y="{height(tallest) + 4:.1f}">{tallest:,}</text>'
    )
    if beyond:
        said += f'<text class="tick" x="{x.start + 3:.1f}" y="{bottom - 5:.1f}">← {beyond:,} more</text>'
    zero = f'<text class="tick" text-anchor="end" x="{x.start - 5:.1f}" y="{bottom:.1f}">0</text>'
    return "".join(parts) + said + zero + _line(x.start, bottom, x.end, bottom, "axis")


def histogram(told: Mapping[str, Any], title: str) -> str:
    """Right filled, wrong outlined, on shared edges and as densities. told: one of the twin's `features`."""
    edges, tallest = told["edges"], max(*told["right"], *told["wrong"])
    x = Axis(edges[0], edges[-1], LEFT, WIDTH - RIGHT)
    y = Axis(0, tallest * 1.05, HEIGHT - 80 - BOTTOM, TOP)
    parts = [_frame(x, y)]
    for b, density in enumerate(told["right"]):
        parts.append(_bar(x(edges[b]), y(density), x(edges[b + 1]) - x(edges[b]), y(0), "right soft"))
    steps = [f"{x(edges[0]):.1f},{y(0):.1f}"]
    for b, density in enumerate(told["wrong"]):
        steps += [f"{x(edges[b]):.1f},{y(density):.1f}", f"{x(edges[b + 1]):.1f},{y(density):.1f}"]
    steps.append(f"{x(edges[-1]):.1f},{y(0):.1f}")
    parts.append(f'<polyline class="outline" points="{" ".join(steps)}"/>')
    parts += [
        _ticks_y(y, _short),
        _label_y(y, "density"),
        _ticks_x(x, y.start, _short),
        _label_x(x, told["name"], y.start),
    ]
    return _picture(parts, title, HEIGHT - 80)


def risk_coverage(curves: Sequence[tuple[str, str, Mapping[str, Any]]], title: str) -> str:
    """Error among the answers kept. curves: (name, class, the twin's `curve`); the first also shows its best order.

    class: goes into the markup as it is, so it must never hold a word from outside.
    """
    tallest = max(max(curve["error"][len(curve["error"]) // 50 :]) for _, _, curve in curves)
    x = Axis(0, 1, LEFT, WIDTH - RIGHT)
    y = Axis(0, max(tallest * 1.1, 0.01), HEIGHT - BOTTOM, TOP)
    parts = [_frame(x, y)]
    best = curves[0][2]
    parts.append(_path(best["coverage"], best["best"], x, y, "guide"))
    for _, kind, curve in curves:
        parts.append(_path(curve["coverage"], curve["error"], x, y, kind))
    parts += [_ticks_y(y, _percent), _label_y(y, "error"), _ticks_x(x, y.start, _percent), _label_x(x, "coverage")]
    return _picture(parts, title)


# Strokes


def _picture(parts: Sequence[str], title: str, height: int = HEIGHT) -> str:
    said = escape(title, quote=True)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{said}">'
        f"<title>{said}</title>{''.join(parts)}</svg>"
    )


def _frame(x: Axis, y: Axis) -> str:
    return f'<rect class="frame" x="{x.start}" y="{y.end}" width="{x.end - x.start}" height="{y.start - y.end}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bar(left: float, top: float, width: float, bottom: float, kind: str) -> str:
    return (
        f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top, 0):.1f}"/>'
    )


def _path(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis, kind: str) -> str:
    """A line that stays in its frame: the first few kept answers can err 100 % of the time."""
    points = " ".join(f"{x(a):.1f},{max(y(b), y.end):.1f}" for a, b in zip(xs, ys, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _ticks_x(x: Axis, bottom: float, write: Callable[[float], str]) -> str:
    return "".join(
        _line(x(tick), bottom, x(tick), bottom + 4, "axis")
        + f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{bottom + 16:.1f}">{write(tick)}</text>'
        for tick in x.ticks()
    )


def _ticks_y(y: Axis, write: Callable[[float], str]) -> str:
    return "".join(
        _line(LEFT - 4, y(tick), LEFT, y(tick), "axis")
        + f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{y(tick) + 4:.1f}">{write(tick)}</text>'
        for tick in y.ticks()
    )


def _label_x(x: Axis, words: str, bottom: float = HEIGHT - BOTTOM) -> str:
    at = (x.start + x.end) / 2
    return f'<text class="name" text-anchor="middle" x="{at:.1f}" y="{bottom + 32:.1f}">{escape(words)}</text>'


def _label_y(y: Axis, words: str) -> str:
    at = (y.start + y.end) / 2
    return (
        f'<text class="name" text-anchor="middle" transform="translate(11 {at:.1f}) rotate(-90)">{escape(words)}</text>'
    )


def _share(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _short(value: float) -> str:
    return "0" if isclose(value, 0, abs_tol=1e-12) else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
