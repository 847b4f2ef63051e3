"""Two ways over the same questions, and how they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval import stats
from gateway.nouns import Floats

RIGHT = "right"  # the one column that is told in points; others in per cent of what they are without the change
FALLS = "falls"
Change = tuple[float, float, float]  # value, low, high


def differences(here: Floats, there: Floats, families: Sequence[str], columns: Sequence[str]) -> dict[str, Change]:
    """From here to there by column (value, low, high): accuracy in points, the others in per cent of what they were.

    here, there: (n, M), question by question.  families: (n,), resampled as a whole.  Intervals: 95 %, paired
    bootstrap.
    """
    groups = np.unique(families, return_inverse=True)[1]
    seen = stats.resampled_means(np.hstack([there - here, here]), groups, np.random.default_rng(0))
    found = {}
    for at, name in enumerate(columns):
        change, base = seen[:, at], seen[:, at + len(columns)]
        value = (there - here)[:, at].mean()
        if name == RIGHT:
            drawn = 100 * change
        else:
            drawn, value = 100 * change / base, value / here[:, at].mean()
        low, high = (float(end) for end in np.quantile(drawn, [0.025, 0.975]))
        found[name] = (100 * float(value), low, high)
    return found


def told(found: dict[str, Change]) -> dict[str, str]:
    """The differences in words: points of accuracy, and shares of the rest."""
    return {
        name: f"{value:+.1f}{'' if name == RIGHT else ' %'} [{low:+.1f}, {high:+.1f}]"
        for name, (value, low, high) in found.items()
    }


def sign(found: Change) -> str:
    _, low, high = found
    if low > 0:
        return "rises"
    return FALLS if high < 0 else "does not differ measurably"
