"""What every calibrator shares: the data a fit is given, the errors it raises, preprocessing, folds, and the registry.

A family is one file of this package. It exports

    def fit(data: FitData, *, objective: Objective | None = None, ...) -> a frozen dataclass
    def from_params(params: Mapping[str, Any]) -> the same dataclass

and the dataclass has `kind`, `margin(X) -> logit (N,)`, `predict(X) -> p (N,)` and `to_params() -> dict` of plain JSON
values. Prediction needs NumPy only; SciPy and scikit-learn are imported inside the fits that use them, because a
serving gateway does not install them.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
A = TypeVar("A", bound=npt.NDArray[Any])

LOGIT_MAX = 36.0  # from 36.8 on, float64 rounds the sigmoid to 1.0 and log(1 - p) is -inf
WINSOR = (0.005, 0.995)  # outside these quantiles one odd answer would steer a slope
CONSTANT = 1e-12  # of a column's mean: a constant's spread is rounding noise, not 0
MIN_RARE = 30  # fewer of the rare class do not carry even a slope and an intercept; science 2.2
NOT_FAMILIES = frozenset({"base", "minimise", "choose", "scores", "artifact", "card", "cli", "sampling"})


# Errors


class CalibrationError(Exception):
    """Base of everything a fit, a saved calibrator or a prediction refuses. The message says what to do."""


class BadFeatures(CalibrationError):
    """A feature matrix of the wrong shape, or with NaN or infinity where none is allowed."""


class ConstantFeature(CalibrationError):
    """A column that never varies: no slope can be fitted to it."""

    def __init__(self, name: str, value: float) -> None:
        super().__init__(f"feature {name!r} is {value:.6g} in every row; drop it, or check how it was measured")
        self.name, self.value = name, value


class BadLabels(CalibrationError):
    """Labels that are not 0 and 1, or not one per row."""


class BadWeights(CalibrationError):
    """Sample weights that are negative, not finite, all zero, or not one per row."""


class BadSlices(CalibrationError):
    """Slice codes that are missing where an objective needs them, or are not one whole number >= 0 per row."""


class OneClass(CalibrationError):
    """Every answer is right, or every answer is wrong."""

    def __init__(self, n: int, label: int) -> None:
        word = "right" if label else "wrong"
        super().__init__(
            f"all {n} answers are {word}; collect answers until there are at least {MIN_RARE} of the other"
        )
        self.n, self.label = n, label


class TooFewRare(CalibrationError):
    """Too few of the rarer class for this family."""

    def __init__(self, n_rare: int, needed: int, kind: str) -> None:
        super().__init__(
            f"{n_rare} answers of the rarer class, {kind} needs {needed}: "
            f"collect {needed - n_rare} more, or adjust an earlier calibrator with the family 'intercept'"
        )
        self.n_rare, self.needed, self.kind = n_rare, needed, kind


class TooFewRows(CalibrationError):
    """Too few answers altogether for this family."""

    def __init__(self, n: int, needed: int, kind: str) -> None:
        super().__init__(f"{n} answers, {kind} needs {needed}: collect more, or use the family 'platt'")
        self.n, self.needed, self.kind = n, needed, kind


class DuplicateQuestion(CalibrationError):
    """The same question in two splits that must not share any."""

    def __init__(self, question: Hashable, count: int) -> None:
        super().__init__(
            f"{count} questions are in more than one split, {question!r} among them; "
            "split by question, and keep rewordings of one question together"
        )
        self.question, self.count = question, count


class NotConverged(CalibrationError):
    """The optimiser stopped before the gradient vanished. No half-fitted calibrator is returned."""


class BadObjective(CalibrationError):
    """An objective, a parameter of one, or a family that cannot be fitted with it."""


class BadParams(CalibrationError):
    """Saved parameters that are incomplete, not finite, or contradict each other."""


class UnknownFamily(CalibrationError):
    """A name that no calibrator file has. The message lists the right ones."""


# Numbers


# NumPy converts a plain number anew in every call, which for one answer takes as long as the arithmetic
_ONE, _LOWEST, _HIGHEST = np.array(1.0), np.array(-LOGIT_MAX), np.array(LOGIT_MAX)


def sigmoid(logits: Floats) -> Floats:
    """p in (0, 1), never 0 or 1 exactly. logits: any shape, nats; beyond +-LOGIT_MAX they count as that."""
    p: Floats = _ONE / (_ONE + np.exp(np.minimum(np.maximum(-logits, _LOWEST), _HIGHEST)))
    return p


def sigmoid_of_one(logit: float) -> float:
    """sigmoid of a single number, without NumPy; equal to within 1e-15."""
    return 1.0 / (1.0 + math.exp(-min(max(logit, -LOGIT_MAX), LOGIT_MAX)))


def logit(p: Floats) -> Floats:
    """Inverse of sigmoid, in nats, within +-LOGIT_MAX. p: any shape, in [0, 1]."""
    with np.errstate(divide="ignore"):
        z: Floats = np.clip(np.log(p) - np.log1p(-p), -LOGIT_MAX, LOGIT_MAX)
    return z


def log_losses(logits: Floats, targets: Floats) -> Floats:
    """Log-loss of each row, nats. targets: (N,) in [0, 1]. Stable: -log(sigmoid(z)) is inf from z = -746 on."""
    losses: Floats = np.logaddexp(0.0, logits) - targets * logits
    return losses


# Fit data


class Missing(StrEnum):
    """What a NaN in a column means: an error, the column's mean, or the mean plus a column that says so."""

    REFUSE = "refuse"
    IMPUTE = "impute"
    INDICATE = "indicate"


@dataclass(frozen=True, slots=True, eq=False)
class FitData:
    """What a calibrator is fitted on, checked once and then locked.

    X: (N, F), raw feature values; NaN only in columns whose `missing` policy covers it, never infinite.
    y: (N,), 1 right, 0 wrong.  names: F feature names, made up when not given.  weights: (N,) >= 0, or None for equal.
    slices: (N,) whole numbers >= 0, the slice a row belongs to, or None.  slice_names: one per code, or empty.
    groups: (N,) question ids (any hashable kind), or None when every row is its own question.
    Raises BadFeatures, BadLabels, BadWeights, BadSlices.
    """

    X: Floats
    y: Floats
    names: tuple[str, ...] = ()
    weights: Floats | None = None
    slices: Ints | None = None
    slice_names: tuple[str, ...] = ()
    groups: npt.NDArray[Any] | None = None
    missing: tuple[Missing, ...] = ()

    def __post_init__(self) -> None:
        X = _numbers("features", self.X, BadFeatures)
        if X.ndim != 2 or 0 in X.shape:
            raise BadFeatures(f"need features of shape (N >= 1, F >= 1), got {X.shape}")
        rows, columns = X.shape
        names = tuple(self.names) or tuple(f"x{j}" for j in range(columns))
        if len(names) != columns or len(set(names)) != columns:
            raise BadFeatures(f"need {columns} distinct feature names, got {', '.join(names)}")
        missing = tuple(Missing(m) for m in self.missing) or (Missing.REFUSE,) * columns
        if len(missing) != columns:
            raise BadFeatures(f"need {columns} missing-value policies, got {len(missing)}")
        check_columns(X, names, missing)
        _set(self, X=_lock(X), y=_lock(_labels(self.y, rows)), names=names, missing=missing)
        if self.weights is not None:
            _set(self, weights=_lock(_weights(self.weights, rows)))
        if self.slices is not None:
            _set(self, slices=_lock(_slices(self.slices, rows, len(self.slice_names))))
        if self.groups is not None:
            groups = np.array(self.groups)
            if groups.shape != (rows,):
                raise BadFeatures(f"need one question id per row, ({rows},), got {groups.shape}")
            _set(self, groups=_lock(groups))

    @property
    def n(self) -> int:
        return len(self.y)

    @property
    def n_rare(self) -> int:
        right = int(self.y.sum())
        return min(right, self.n - right)

    @property
    def base(self) -> Floats:
        """The empirical distribution: weights that sum to 1, shape (N,)."""
        if self.weights is None:
            return np.full(self.n, 1.0 / self.n)
        share: Floats = self.weights / self.weights.sum()
        return share

    def rows(self, chosen: Bools | Ints) -> FitData:
        """The same columns for some rows. chosen: a mask (N,) or row numbers."""
        return FitData(
            self.X[chosen],
            self.y[chosen],
            self.names,
            None if self.weights is None else self.weights[chosen],
            None if self.slices is None else self.slices[chosen],
            self.slice_names,
            None if self.groups is None else self.groups[chosen],
            self.missing,
        )

    def columns(self, chosen: Sequence[int] | Ints) -> FitData:
        """The same rows with some of the columns. chosen: their numbers."""
        return replace(
            self,
            X=self.X[:, chosen],
            names=tuple(self.names[j] for j in chosen),
            missing=tuple(self.missing[j] for j in chosen),
        )

    def check_rare(self, needed: int, kind: str) -> None:
        """Raises OneClass, or TooFewRare when the rarer class has fewer than `needed` rows."""
        if self.n_rare == 0:
            raise OneClass(self.n, int(self.y[0]))
        if self.n_rare < needed:
            raise TooFewRare(self.n_rare, needed, kind)


def check_columns(X: Floats, names: Sequence[str], missing: Sequence[Missing]) -> None:
    """Raises BadFeatures that names the first column with infinity, or with NaN that no policy covers."""
    if bool(np.isfinite(X).all()):
        return
    for name, column, policy in zip(names, X.T, missing, strict=True):
        if bool(np.isinf(column).any()):
            raise BadFeatures(
                f"feature {name!r} is infinite in {int(np.isinf(column).sum())} rows; leave those rows out"
            )
        nans = int(np.isnan(column).sum())
        if nans and policy is Missing.REFUSE:
            raise BadFeatures(
                f"feature {name!r} is NaN in {nans} of {len(column)} rows; "
                "leave those rows out, or give the column the missing policy 'impute' or 'indicate'"
            )


def varying(X: Floats) -> Ints:
    """Numbers of the columns that hold at least two different values besides NaN. X: (N, F), N >= 1."""
    present = np.isfinite(X)
    low, high = np.where(present, X, np.inf).min(axis=0), np.where(present, X, -np.inf).max(axis=0)
    size = np.maximum(np.abs(low), np.abs(high))
    told: Ints = np.flatnonzero(present.any(axis=0) & (high - low > CONSTANT * size))
    return told


def check_disjoint(*splits: Iterable[Hashable]) -> None:
    """Raises DuplicateQuestion when two splits share a question id."""
    seen: set[Hashable] = set()
    shared: set[Hashable] = set()
    for split in splits:
        ids = set(split)
        shared |= seen & ids
        seen |= ids
    if shared:
        raise DuplicateQuestion(min(shared, key=str), len(shared))


def folds(data: FitData, k: int = 5, seed: int = 0) -> Ints:
    """Fold number of each row, (N,) in 0..k-1: rows of a question stay together, the rare class is spread evenly.

    Raises TooFewRows when there are fewer than k questions.
    """
    groups = np.arange(data.n) if data.groups is None else data.groups
    _, code = np.unique(groups, return_inverse=True)
    share_right = np.bincount(code, data.y) / np.bincount(code)
    if len(share_right) < k:
        raise TooFewRows(len(share_right), k, f"splitting questions into {k} folds")
    shuffled = np.random.default_rng(seed).permutation(len(share_right))
    dealt = shuffled[np.argsort(share_right[shuffled], kind="stable")]
    fold_of_group = np.empty(len(dealt), dtype=np.int64)
    fold_of_group[dealt] = np.arange(len(dealt)) % k
    return fold_of_group[code]


# Preprocessing


@dataclass(frozen=True, slots=True, eq=False)
class Preprocess:
    """Raw features to the columns a family sees: fill, winsorise, standardise, append missing-value indicators.

    names, missing: F.  mean, sd, low, high: (F,), in the feature's own unit; mean and sd are of the winsorised values.
    Output columns: the F features, then one 0/1 column per feature with the policy `indicate`, in feature order.
    """

    names: tuple[str, ...]
    missing: tuple[Missing, ...]
    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    indicated: tuple[str, ...] = field(init=False)  # features that have an indicator column

    def __post_init__(self) -> None:
        for part in (self.mean, self.sd, self.low, self.high):
            if part.shape != (len(self.names),) or not bool(np.isfinite(part).all()):
                raise BadParams(f"preprocessing needs {len(self.names)} finite numbers each for mean, sd, low and high")
            part.setflags(write=False)
        if len(self.missing) != len(self.names):
            raise BadParams(f"preprocessing needs {len(self.names)} missing-value policies, got {len(self.missing)}")
        if bool((self.sd <= 0).any()) or bool((self.low >= self.high).any()):
            raise BadParams("preprocessing needs sd > 0 and low < high")
        flagged = zip(self.names, self.missing, strict=True)
        _set(self, indicated=tuple(name for name, policy in flagged if policy is Missing.INDICATE))

    @classmethod
    def fit(cls, data: FitData) -> Self:
        """Raises ConstantFeature, and BadFeatures for a column that is NaN in every row.

        A column that only its outermost 1 % makes vary keeps its full range.
        """
        if empty := [name for name, column in zip(data.names, data.X.T, strict=True) if np.isnan(column).all()]:
            raise BadFeatures(f"feature {empty[0]!r} is NaN in every row; drop it")
        # observed values, never between two: interpolating would let an outlier into its own bound
        low = np.nanquantile(data.X, WINSOR[0], axis=0, method="higher")
        high = np.nanquantile(data.X, WINSOR[1], axis=0, method="lower")
        flat = low >= high
        low, high = (
            np.where(flat, np.nanmin(data.X, axis=0), low),
            np.where(flat, np.nanmax(data.X, axis=0), high),
        )
        clipped = np.clip(data.X, low, high)
        mean, sd = np.nanmean(clipped, axis=0), np.nanstd(clipped, axis=0)
        for name, lowest, spread, centre in zip(data.names, low, sd, mean, strict=True):
            if spread <= CONSTANT * abs(centre) or spread == 0:
                raise ConstantFeature(name, float(lowest))
        return cls(data.names, data.missing, mean, sd, low, high)

    def unwinsorised(self) -> Self:
        """The same, with bounds so wide (1e9 sd) that none is met: for families that look at ranks only."""
        reach = 1e9 * self.sd
        return type(self)(self.names, self.missing, self.mean, self.sd, self.mean - reach, self.mean + reach)

    @classmethod
    def identity(cls, name: str) -> Self:
        """For one column that is a logit already: passed on as it is, within +-LOGIT_MAX."""
        edge = np.array([LOGIT_MAX])
        return cls((name,), (Missing.REFUSE,), np.zeros(1), np.ones(1), -edge, edge)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the output columns."""
        return self.names + tuple(f"{name} missing" for name in self.indicated)

    def fill(self, X: Floats) -> tuple[Floats, Floats]:
        """(X with NaN replaced by the mean (N, F), indicators (N, I)). Raises BadFeatures."""
        check_columns(X, self.names, self.missing)
        absent = np.isnan(X)
        flags = absent[:, [policy is Missing.INDICATE for policy in self.missing]].astype(np.float64)
        return np.where(absent, self.mean, X), flags

    def apply(self, X: Floats) -> Floats:
        """(N, F) raw -> (N, columns) winsorised, standardised, indicators appended."""
        filled, flags = self.fill(check_width(X, len(self.names)))
        standard = (np.clip(filled, self.low, self.high) - self.mean) / self.sd
        return np.hstack([standard, flags])

    def to_dict(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "missing": [str(policy) for policy in self.missing],
            "mean": self.mean.tolist(),
            "sd": self.sd.tolist(),
            "low": self.low.tolist(),
            "high": self.high.tolist(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Self:
        """Raises BadParams."""
        check_keys(saved, {"names", "missing", "mean", "sd", "low", "high"}, "preprocessing")
        try:
            missing = tuple(Missing(policy) for policy in saved["missing"])
        except ValueError as unknown:
            raise BadParams(f"{unknown}; policies are {', '.join(Missing)}") from None
        mean, sd, low, high = (saved_floats(saved, key) for key in ("mean", "sd", "low", "high"))
        return cls(tuple(saved["names"]), missing, mean, sd, low, high)


def check_width(X: Floats, width: int) -> Floats:
    """X as (N, width) float64. Raises BadFeatures."""
    X = np.asarray(X, dtype=np.float64)
    if X.ndim != 2 or X.shape[1] != width:
        raise BadFeatures(f"need features of shape (N, {width}), got {X.shape}")
    return X


# Saved parameters


def check_keys(saved: Mapping[str, Any], expected: set[str], what: str) -> None:
    """Raises BadParams unless `saved` is an object with exactly the expected keys."""
    if not isinstance(saved, Mapping):
        raise BadParams(f"{what} must be an object with {', '.join(sorted(expected))}; got {type(saved).__name__}")
    if set(saved) != expected:
        raise BadParams(
            f"{what} needs exactly {', '.join(sorted(expected))}; got {', '.join(sorted(saved)) or 'nothing'}"
        )


def saved_floats(saved: Mapping[str, Any], key: str) -> Floats:
    """A saved list as a locked (M,) array. Raises BadParams when it is not a list of finite numbers."""
    try:
        numbers = np.array(saved[key], dtype=np.float64)
    except (TypeError, ValueError):
        raise BadParams(f"{key} must be a list of numbers") from None
    if numbers.ndim != 1 or not bool(np.isfinite(numbers).all()):
        raise BadParams(f"{key} must be a flat list of finite numbers, got shape {numbers.shape}")
    return _lock(numbers)


def saved_float(saved: Mapping[str, Any], key: str) -> float:
    """Raises BadParams when it is not one finite number."""
    value = saved[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise BadParams(f"{key} must be a finite number, got {value!r}")
    return float(value)


# Families


class Fitted(Protocol):
    """A finished calibrator. margin: logit of the calibrated p, (N,), nats.  predict: p (N,) in (0, 1)."""

    kind: ClassVar[str]

    def margin(self, X: Floats, /) -> Floats: ...

    def predict(self, X: Floats, /) -> Floats: ...

    def to_params(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Family:
    """A calibrator file: its name, how to fit it and how to read it back."""

    name: str
    fit: Callable[..., Fitted] = field(repr=False)
    from_params: Callable[[Mapping[str, Any]], Fitted] = field(repr=False)


def names() -> list[str]:
    """Every family there is: the public modules of this package that are not its tools."""
    found = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if not m.ispkg)
    return sorted(name for name in found if not name.startswith("_") and name not in NOT_FAMILIES)


@lru_cache(maxsize=64)
def find(name: str) -> Family:
    """The family of that name. Raises UnknownFamily that lists the right ones."""
    if name not in names():
        raise UnknownFamily(f"no calibrator {name!r}; have {', '.join(names())}")
    module = importlib.import_module(f"calibrators.{name}")
    return Family(name, module.fit, module.from_params)


def _numbers(what: str, given: Any, error: type[CalibrationError]) -> Floats:
    try:
        return np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise error(f"{what} must be numbers; text or ragged rows came") from None


def _labels(given: Any, rows: int) -> Floats:
    y = _numbers("labels", given, BadLabels)
    if y.shape != (rows,):
        raise BadLabels(f"need one label per row, ({rows},), got {y.shape}")
    odd = y[(y != 0) & (y != 1)]
    if odd.size:
        raise BadLabels(f"labels must be 1 (right) or 0 (wrong); {odd.size} are not, the first is {odd[0]:g}")
    return y


def _weights(given: Any, rows: int) -> Floats:
    weights = _numbers("weights", given, BadWeights)
    if weights.shape != (rows,) or not bool(np.isfinite(weights).all()) or bool((weights < 0).any()):
        raise BadWeights(f"need one finite weight >= 0 per row, ({rows},), got shape {weights.shape}")
    if not weights.any():
        raise BadWeights("all weights are 0")
    return weights


def _slices(given: Any, rows: int, named: int) -> Ints:
    slices = np.array(given)
    if slices.shape != (rows,) or slices.dtype.kind not in "iu" or bool((slices < 0).any()):
        raise BadSlices(f"need one whole number >= 0 per row, ({rows},), got {slices.dtype} of shape {slices.shape}")
    if named and int(slices.max()) >= named:
        raise BadSlices(f"slice code {int(slices.max())} has no name; {named} names were given")
    return slices.astype(np.int64)


def _lock(array: A) -> A:
    array.setflags(write=False)
    return array


def _set(frozen: object, **fields: object) -> None:
    """Only for __post_init__: put the checked copy in the place of what was given."""
    for name, value in fields.items():
        object.__setattr__(frozen, name, value)
