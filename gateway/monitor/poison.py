"""How much each client's labels may weigh in a fit. A label is an instruction from outside: failure-model 6.

Three limits. No client's key has more than 5 % of a fit's weight. In a bin of p, a key that contradicts the median of
all keys by more than chance allows is not heard. And none that is heard moves the share of right answers there by more
than .02 from what all others say. Where only one untrusted key speaks, it is not heard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gateway.errors import ConfigError
from gateway.nouns import Floats

KEY_SHARE = 0.05  # of a fit; failure-model 6
MAX_MOVE = 0.02  # of any bin; failure-model 8
CHANCE = 3.0  # standard errors from the median; an honest key loses a bin in 370 by it
BINS = 10


def weights(p: Floats, right: Floats, authors: Sequence[str], trusted: frozenset[str] = frozenset()) -> Floats:
    """(N,) in [0, 1], to be multiplied into the sample weights of a fit.

    p: what the calibrator in service said.  right: 0 or 1.  authors: the key each label came by.  trusted: keys of
    operators, which are limited in nothing. Where fewer than 20 keys speak and nobody trusted does, 5 % for each cannot
    be, and only the limits per bin hold: to make all alike would give a small bad key more.
    """
    if not (p.shape == right.shape == (len(authors),)):
        raise ConfigError(f"need one label and one author per p, got {p.shape}, {right.shape} and {len(authors)}")
    names, who = np.unique(np.asarray(authors, dtype=object).astype(str), return_inverse=True)
    limited = np.array([name not in trusted for name in names], dtype=bool)
    scale = _shares(np.bincount(who, minlength=len(names)).astype(np.float64), limited)
    weight: Floats = scale[who]
    cell = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    factor = np.ones_like(weight)
    for one in np.unique(cell):
        inside = cell == one
        keys = np.unique(who[inside])
        odd = {key for key in keys if limited[key] and _contradicts(right, who, inside, key, keys)}
        heard = inside & ~np.isin(who, list(odd))
        factor[inside & ~heard] = 0.0
        for key in keys:
            if limited[key] and key not in odd:
                own = inside & (who == key)
                factor[own] = _factor(weight, right, own, heard & (who != key))
    weighed: Floats = weight * factor
    return weighed


def _shares(count: Floats, limited: npt.NDArray[np.bool_]) -> Floats:
    """Factors per key, so that none that is limited has more than its share of what is left. count: (K,)."""
    if not limited.any():
        return np.ones_like(count)
    free, share = float(count[~limited].sum()), KEY_SHARE
    if free == 0 and share * int(limited.sum()) < 1:
        return np.ones_like(count)
    most = float(count[limited].max())
    for _ in range(200):  # lowering the cap lowers the whole as well, so it is found step by step
        whole = free + float(np.minimum(count[limited], most).sum())
        if most <= share * whole * (1 + 1e-9):
            break
        most = share * whole
    kept: Floats = np.where(limited, np.minimum(1.0, most / np.maximum(count, 1e-12)), 1.0)
    return kept


def _contradicts(
    right: Floats, who: npt.NDArray[np.int64], inside: npt.NDArray[np.bool_], key: int, keys: npt.NDArray[np.int64]
) -> bool:
    """Whether a key's share of right answers in a bin is farther from the keys' median than chance takes it."""
    if keys.size < 3:
        return False  # of two that differ nobody knows which one is right; both are limited by their move
    count = np.array([(inside & (who == each)).sum() for each in keys], dtype=np.float64)
    rate = np.array([right[inside & (who == each)].mean() for each in keys])
    middle = float(np.median(rate))  # a vote each: one loud key must not be its own witness
    own = int(np.flatnonzero(keys == key)[0])
    smooth = (middle * count[own] + 0.5) / (count[own] + 1)  # a median of 0 or 1 has chance as well
    return bool(abs(rate[own] - middle) > CHANCE * np.sqrt(smooth * (1 - smooth) / count[own]))


def _factor(weight: Floats, right: Floats, own: npt.NDArray[np.bool_], others: npt.NDArray[np.bool_]) -> float:
    """What a key's weight in a bin is multiplied by: its share there times its distance from the others is MAX_MOVE."""
    rest, mine = float(weight[others].sum()), float(weight[own].sum())
    if rest == 0 or mine == 0:
        return 0.0
    apart = abs(float(weight[own] @ right[own]) / mine - float(weight[others] @ right[others]) / rest)
    if apart <= MAX_MOVE:
        return 1.0
    return float(min(1.0, rest * MAX_MOVE / ((apart - MAX_MOVE) * mine)))
