"""Bins of about equal mass."""

from __future__ import annotations

import numpy as np

from calibrators.base import BadParams, Floats

PER_BIN = 100  # answers; a bin of fewer has an error over 0.14 at 95 % (science 2.2)
BINS_MAX = 15


def bin_count(n: int) -> int:
    """As many bins as leave PER_BIN answers in each, 2 to BINS_MAX."""
    return int(np.clip(n // PER_BIN, 2, BINS_MAX))


def equal_mass_edges(z: Floats, bins: int) -> Floats:
    """Rising cut points between distinct values of z (N,), at most bins - 1: equal values are never parted."""
    ordered = np.sort(z)
    cuts = ordered[np.arange(1, bins) * len(z) // bins]
    distinct = np.unique(ordered)
    above = np.unique(np.searchsorted(distinct, cuts))
    above = above[above > 0]  # a cut at the smallest value would leave the first bin empty
    edges: Floats = (distinct[above - 1] + distinct[above]) / 2
    return np.unique(edges)


def check_bins(edges: Floats, p: Floats) -> None:
    """Raises BadParams unless edges rise, number one fewer than p, and p lies inside (0, 1)."""
    if len(edges) + 1 != len(p) or bool((np.diff(edges) <= 0).any()):
        raise BadParams(f"need rising edges, one fewer than bins; got {len(edges)} edges and {len(p)} bins")
    if bool((p <= 0).any()) or bool((p >= 1).any()):
        raise BadParams("a bin's p must lie inside (0, 1)")
