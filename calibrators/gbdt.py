"""A small ensemble of boosted trees with monotone constraints, then Platt. For thousands of answers, hundreds wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from calibrators._linear import smoothed_targets, task, with_ones
from calibrators.base import (
    BadFeatures,
    BadParams,
    FitData,
    Floats,
    Ints,
    Preprocess,
    TooFewRows,
    check_keys,
    check_width,
    folds,
    saved_float,
    saved_floats,
    sigmoid,
)
from calibrators.objectives import Objective

MIN_ROWS, MIN_RARE = 2000, 300  # science 2.2
DEPTH_MAX = 3
CHUNK = 1024  # rows predicted together: some ten MB of node decisions


@dataclass(frozen=True, slots=True, eq=False)
class Trees:
    """Binary trees as flat arrays over all nodes. x[feature] <= threshold goes left; a leaf points to itself.

    root: (T,) node number of each tree's root.  feature, left, right: (M,) whole numbers.  threshold, value: (M,);
    value, in nats, counts at leaves.  baseline: nats.  depth: the longest way from a root to a leaf.

    For prediction every tree is padded to a full tree of that depth, at most 3, so it has at most 7 tests. Their
    outcomes are bits, of as many whole trees as go into a byte, and a table says what each byte is worth: one
    comparison decides every node, one look-up every byte.
    """

    root: Ints
    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    value: Floats
    baseline: float
    depth: int = field(init=False)
    _tests: Ints = field(init=False, repr=False)  # (8 G,) the feature that each bit of the G bytes tests
    _cuts: Floats = field(init=False, repr=False)  # (8 G,) inf where a bit is spare
    _table: Floats = field(
        init=False, repr=False
    )  # (256 G,) nats of each byte by what its bits came to; the baseline is in the first
    _start: Ints = field(init=False, repr=False)  # (G,) where each byte's part of the table begins

    def __post_init__(self) -> None:
        self._check()
        levels = [self.root[None, :]]  # each (2^d, T): the node at each place of that level
        while not bool((self.left[levels[-1]] == levels[-1]).all() and (self.right[levels[-1]] == levels[-1]).all()):
            if len(levels) > DEPTH_MAX:
                raise BadParams(f"trees deeper than {DEPTH_MAX}, or with a cycle")
            children = np.stack([self.left[levels[-1]], self.right[levels[-1]]], axis=1)
            levels.append(children.reshape(-1, len(self.root)))
        depth, places = len(levels) - 1, 2 ** (len(levels) - 1) - 1
        tests, worth = (
            np.concatenate(levels[:-1] or [levels[0][:0]]),
            self.value[levels[-1]],
        )  # (places, T), (leaves, T)
        trees, together = len(self.root), 8 // max(places, 1)
        count = -(-trees // together)
        bits, cuts = np.zeros((count, 8), dtype=np.int64), np.full((count, 8), np.inf)
        table, outcome = np.zeros((count, 256)), np.arange(256)
        for tree in range(trees):
            byte, first = tree // together, tree % together * places
            bits[byte, first : first + places] = self.feature[tests[:, tree]]
            cuts[byte, first : first + places] = self.threshold[tests[:, tree]]
            leaf = np.zeros_like(outcome)
            for level in range(depth):
                leaf = 2 * leaf + (outcome >> (first + 2**level - 1 + leaf) & 1)
            table[byte] += worth[leaf, tree]
        table[0] += self.baseline
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "_tests", bits.ravel())
        object.__setattr__(self, "_cuts", cuts.ravel())
        object.__setattr__(self, "_table", table.ravel())
        object.__setattr__(self, "_start", np.arange(count) * 256)

    def _check(self) -> None:
        nodes = len(self.feature)
        whole = (self.root, self.feature, self.left, self.right)
        if len({len(part) for part in (self.feature, self.threshold, self.left, self.right, self.value)}) != 1:
            raise BadParams("tree arrays differ in length")
        if not len(self.root) or any(bool((part < 0).any()) for part in whole):
            raise BadParams("need at least one tree, and no negative numbers in root, feature, left or right")
        if any(bool((part >= nodes).any()) for part in (self.root, self.left, self.right)):
            raise BadParams(f"a tree points past its {nodes} nodes")

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) finite -> sum of the trees' values (N,), nats."""
        if len(X) > CHUNK:
            return np.concatenate([self.margin(X[i : i + CHUNK]) for i in range(0, len(X), CHUNK)])
        outcome = np.packbits(X.take(self._tests, axis=1) > self._cuts, axis=1, bitorder="little")
        z: Floats = self._table.take(outcome + self._start).sum(axis=1)
        return z

    def to_params(self) -> dict[str, Any]:
        whole = {
            name: getattr(self, name).tolist() for name in ("root", "feature", "threshold", "left", "right", "value")
        }
        return {**whole, "baseline": self.baseline}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> Trees:
        """Raises BadParams."""
        check_keys(params, {"root", "feature", "threshold", "left", "right", "value", "baseline"}, "trees")
        root, feature, left, right = (_whole(params, key) for key in ("root", "feature", "left", "right"))
        threshold, value = saved_floats(params, "threshold"), saved_floats(params, "value")
        return cls(root, feature, threshold, left, right, value, saved_float(params, "baseline"))


@dataclass(frozen=True, slots=True, eq=False)
class Gbdt:
    """logit p = slope * trees(x) + intercept.  Trees see raw features, NaN filled, and missing-value indicators."""

    kind: ClassVar[str] = "gbdt"
    preprocess: Preprocess
    trees: Trees
    slope: float
    intercept: float

    def __post_init__(self) -> None:
        if int(self.trees.feature.max()) >= len(self.preprocess.columns):
            raise BadParams(f"a tree tests column {int(self.trees.feature.max())} of {len(self.preprocess.columns)}")
        if not self.slope >= 0:
            raise BadParams(f"need a Platt slope >= 0, got {self.slope}")

    def margin(self, X: Floats) -> Floats:
        """X: (N, F) -> logit p (N,), nats."""
        return self.slope * self.trees.margin(_filled(self.preprocess, X)) + self.intercept

    def predict(self, X: Floats) -> Floats:
        """X: (N, F) -> p (N,) in (0, 1)."""
        return sigmoid(self.margin(X))

    def to_params(self) -> dict[str, Any]:
        return {
            "preprocess": self.preprocess.to_dict(),
            "trees": self.trees.to_params(),
            "slope": self.slope,
            "intercept": self.intercept,
        }


def fit(
    data: FitData,
    *,
    objective: Objective | None = None,
    ridge: float = 1.0,
    signs: Sequence[int] | None = None,
    trees: int = 100,
    depth: int = 2,
    rate: float = 0.1,
    min_rare: int = MIN_RARE,
    min_rows: int = MIN_ROWS,
    seed: int = 0,
) -> Gbdt:
    """Boost by scikit-learn on log-loss, then Platt on the out-of-fold sums of trees grown without each fold.

    ridge: on leaf values.  signs: one of +1, 0, -1 per feature: p may only rise, do anything, only fall along it.
    depth: 1 to 3.  The objective shapes the Platt step, not the trees.
    Raises OneClass, TooFewRare, TooFewRows, BadFeatures, ConstantFeature.
    """
    data.check_rare(min_rare, Gbdt.kind)
    if data.n < min_rows:
        raise TooFewRows(data.n, min_rows, Gbdt.kind)
    if signs is not None and (len(signs) != data.X.shape[1] or not set(signs) <= {-1, 0, 1}):
        raise BadFeatures(f"need one sign of -1, 0 or 1 for each of {data.X.shape[1]} features, got {list(signs)}")
    if depth not in range(1, DEPTH_MAX + 1):
        raise BadParams(f"depth must be 1 to {DEPTH_MAX}, got {depth}")
    pre = Preprocess.fit(data)
    columns = _filled(pre, data.X)
    directions = None if signs is None else [*signs, *[0] * len(pre.indicated)]
    options = {"max_iter": trees, "max_depth": depth, "learning_rate": rate, "l2_regularization": ridge}

    def grow(rows: Any) -> Trees:
        weights = None if data.weights is None else data.weights[rows]  # equal ones given cost ten times the whole fit
        return _grow(columns[rows], data.y[rows], weights, directions, seed, options)

    fold, held_out = folds(data, 5, seed), np.empty(data.n)
    for k in range(5):
        held_out[fold == k] = grow(fold != k).margin(columns[fold == k])
    slope, intercept = task(
        data, with_ones(held_out), targets=smoothed_targets(data), lower=np.array([0.0, -np.inf])
    ).solve(objective)
    return Gbdt(pre, grow(slice(None)), float(slope), float(intercept))


def from_params(params: Mapping[str, Any]) -> Gbdt:
    """Raises BadParams."""
    check_keys(params, {"preprocess", "trees", "slope", "intercept"}, Gbdt.kind)
    pre, trees = Preprocess.from_dict(params["preprocess"]), Trees.from_params(params["trees"])
    return Gbdt(pre, trees, saved_float(params, "slope"), saved_float(params, "intercept"))


def _filled(pre: Preprocess, X: Floats) -> Floats:
    """(N, F) -> (N, columns), raw values: trees do not care about scale, nor how far outside a value lies."""
    X = check_width(X, len(pre.names))
    if not pre.indicated and np.isfinite(X).all():
        return X
    return np.hstack(pre.fill(X))


def _grow(
    columns: Floats,
    y: Floats,
    weights: Floats | None,
    directions: Sequence[int] | None,
    seed: int,
    options: dict[str, Any],
) -> Trees:
    from sklearn.ensemble import HistGradientBoostingClassifier  # a serving gateway has no scikit-learn
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    model = HistGradientBoostingClassifier(monotonic_cst=directions, early_stopping=False, random_state=seed, **options)
    with threadpool_limits(1):  # on shared cores OpenMP's threads wait for each other: 3 s of work took 87
        return _exported(model.fit(columns, y, sample_weight=weights))


def _exported(model: Any) -> Trees:
    """scikit-learn's trees as flat arrays. It has no public way to read them, so a test compares the predictions."""
    parts, roots, start = [], [], 0
    for (predictor,) in model._predictors:
        nodes, own = predictor.nodes, start + np.arange(len(predictor.nodes))
        leaf = nodes["is_leaf"].astype(bool)
        parts.append(
            (
                np.where(leaf, 0, nodes["feature_idx"]).astype(np.int64),
                np.where(leaf, 0.0, nodes["num_threshold"]),
                np.where(leaf, own, start + nodes["left"].astype(np.int64)),
                np.where(leaf, own, start + nodes["right"].astype(np.int64)),
                np.where(leaf, nodes["value"], 0.0),
            )
        )
        roots.append(start)
        start += len(nodes)
    feature, threshold, left, right, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    baseline = float(np.asarray(model._baseline_prediction).item())
    return Trees(np.array(roots), feature, threshold, left, right, value, baseline)


def _whole(params: Mapping[str, Any], key: str) -> Ints:
    numbers = saved_floats(params, key)
    if bool((numbers != np.floor(numbers)).any()):
        raise BadParams(f"{key} must be whole numbers")
    return numbers.astype(np.int64)
