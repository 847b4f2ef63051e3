"""The crossed table: every model's answer to every question, as arrays. What sweeps, baselines and guarantees work on.

Where the numbers come from is no concern of this file: recorded answers, somebody's spreadsheet, a simulation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from gateway.errors import GatewayError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Path = tuple[int, ...]  # tiers in the order asked, by their position in the table


class BadTable(GatewayError):
    """Arrays that do not make a crossed table. The message says which, what was expected and what came."""


@dataclass(frozen=True, slots=True, eq=False)
class Crossed:
    """n questions answered by each of K tiers, cheapest first as a rule, though nothing depends on it.

    questions: n distinct ids.  tiers: K distinct names.
    p: (n, K) calibrated probabilities in [0, 1]; NaN where there is no evidence, which no threshold accepts.
    right: (n, K), 1 right, 0 not.  cost: (n, K) >= 0, what asking this tier adds, in `cost_unit`.
    seconds: (n, K) >= 0, from the call to the last token; NaN where nobody measured.
    given: p of a tier whose calibrator looks at the tiers asked before it. given(path) -> (n,), the p of path[-1] when
    exactly path[:-1] were asked before, in that order; tiers that were skipped are simply not in the path, and the
    calibrator's missing-value indicators see that. None: p[:, tier] holds whatever came before.
    families: n names; questions of one family are resampled together. Empty: each is its own.
    answers: n rows of K final answers in canonical spelling, "" for none. Empty: not known; only agreement needs them.
    scores: other scores by name, each (n, K) in [0, 1] or NaN, higher = surer: what baselines threshold instead of p.
    raw: what the score that came without any calibration is, in words.
    signals: single features by name, each (n, K) in its own unit, NaN where a tier has none.
    prompts: what is known before anybody answers, by name, each (n,).
    """

    questions: tuple[str, ...]
    tiers: tuple[str, ...]
    p: Floats
    right: Floats
    cost: Floats
    seconds: Floats
    cost_unit: str = "tokens"
    given: Callable[[Path], Floats] | None = None
    families: tuple[str, ...] = ()
    answers: tuple[tuple[str, ...], ...] = ()
    scores: Mapping[str, Floats] = field(default_factory=dict)
    signals: Mapping[str, Floats] = field(default_factory=dict)
    prompts: Mapping[str, Floats] = field(default_factory=dict)
    raw: str = "mean log-prob"

    def __post_init__(self) -> None:
        shape = (len(self.questions), len(self.tiers))
        if 0 in shape:
            raise BadTable(f"need at least one question and one tier, got {shape[0]} and {shape[1]}")
        if len(set(self.questions)) < shape[0] or len(set(self.tiers)) < shape[1]:
            raise BadTable("every question id and every tier's name may stand there only once")
        for name in ("p", "right", "cost", "seconds"):
            array = np.array(getattr(self, name), dtype=np.float64)
            if array.shape != shape:
                raise BadTable(f"{name} must have the shape {shape} (questions, tiers), got {array.shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        _check_p(self.p, "p")
        for name, score in self.scores.items():
            if score.shape != shape:
                raise BadTable(f"the score {name!r} must have the shape {shape} (questions, tiers), got {score.shape}")
            _check_p(score, name)
        for kind, arrays, wanted in (("signal", self.signals, shape), ("prompt feature", self.prompts, shape[:1])):
            for name, values in arrays.items():
                if values.shape != wanted:
                    raise BadTable(f"the {kind} {name!r} must have the shape {wanted}, got {values.shape}")
        if not bool(np.isin(self.right, (0.0, 1.0)).all()):
            raise BadTable("right must be 1 or 0 for every question and tier")
        for name, array in (("cost", self.cost), ("seconds", self.seconds)):
            unknown = np.isnan(array) & (name == "seconds")
            if not bool((unknown | (np.isfinite(array) & (array >= 0))).all()):
                raise BadTable(f"{name} must be finite and >= 0 everywhere")
        for name, rows in (("families", self.families), ("answers", self.answers)):
            if rows and len(rows) != shape[0]:
                raise BadTable(f"need {shape[0]} {name} or none, got {len(rows)}")

    @property
    def n(self) -> int:
        return len(self.questions)

    def p_of(self, path: Path) -> Floats:
        """(n,) probability that path[-1] is right, given that exactly path[:-1] were asked before. Raises BadTable."""
        if self.given is None:
            return self.p[:, path[-1]]
        p = np.asarray(self.given(path), dtype=np.float64)
        if p.shape != (self.n,):
            raise BadTable(f"given({path}) must have the shape ({self.n},), got {p.shape}")
        _check_p(p, f"given({path})")
        return p

    def tier(self, name: str) -> int:
        """Position of a tier. Raises BadTable and names those there are."""
        if name not in self.tiers:
            raise BadTable(f"no tier {name!r} in this table; have {', '.join(self.tiers)}")
        return self.tiers.index(name)

    def rows(self, chosen: Bools | Ints) -> Crossed:
        """The same for some of the questions. chosen: a mask (n,), or distinct row numbers."""
        kept = np.arange(self.n)[chosen]
        given = self.given
        return replace(
            self,
            questions=tuple(self.questions[i] for i in kept),
            p=self.p[kept],
            right=self.right[kept],
            cost=self.cost[kept],
            seconds=self.seconds[kept],
            given=None if given is None else lambda path: given(path)[kept],
            families=tuple(self.families[i] for i in kept) if self.families else (),
            answers=tuple(self.answers[i] for i in kept) if self.answers else (),
            scores={name: score[kept] for name, score in self.scores.items()},
            signals={name: values[kept] for name, values in self.signals.items()},
            prompts={name: values[kept] for name, values in self.prompts.items()},
        )

    def costing(self, cost: Floats, unit: str) -> Crossed:
        """The same under another cost model. cost: (n, K), see eval.costs."""
        return replace(self, cost=cost, cost_unit=unit)

    def by(self, score: str) -> Crossed:
        """The same with another of its scores in place of p. Raises BadTable when there is none of that name."""
        if score not in self.scores:
            raise BadTable(f"no score {score!r} in this table; have {', '.join(self.scores) or 'none'}")
        return replace(self, p=self.scores[score], given=None)

    @property
    def sha256(self) -> str:
        """Hash of the questions and of what is known about them, for certificates."""
        digest = hashlib.sha256()
        for names in (self.questions, self.tiers, (self.cost_unit,)):
            digest.update("\0".join(names).encode() + b"\1")
        for array in (self.p, self.right, self.cost):
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()


def group_codes(table: Crossed) -> Ints:
    """(n,) a number for each question's family, from 0 without gaps."""
    if not table.families:
        return np.arange(table.n)
    codes: Ints = np.unique(np.array(table.families), return_inverse=True)[1].astype(np.int64)
    return codes


def check_same_tiers(one: Crossed, other: Crossed) -> None:
    """Raises BadTable when two tables cannot be compared."""
    mine: Sequence[Any] = (one.tiers, one.cost_unit)
    theirs: Sequence[Any] = (other.tiers, other.cost_unit)
    if mine != theirs:
        raise BadTable(f"two tables of different tiers or cost units: {mine} and {theirs}")


def _check_p(p: Floats, name: str) -> None:
    known = p[~np.isnan(p)]
    if not bool(((known >= 0) & (known <= 1)).all()):
        raise BadTable(f"{name} must lie in [0, 1], or be NaN where there is no evidence")
