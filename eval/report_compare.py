"""Two reports held together: what differs between the runs, and whether that is more than noise.

Questions that both runs tested on are compared one by one, each with itself; that cancels how hard they are. Runs that
share none are compared as two samples, and then a difference may be one of the questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrators import scores
from calibrators.scores import Insufficient, Outcome, Score
from eval.crossed import Floats, Ints
from eval.report_files import File, Questions, Read, Route
from eval.stats import interval, mcnemar, resampled_means
from eval.verdict import ends, percents, points

RESAMPLES = 10_000
RESAMPLES_BRIER = 2_000  # each sorts out rows anew
HASHED = {"records": "sha256", "questions": "questions_sha256", "prompt": "prompt_sha256"}


@dataclass(frozen=True, slots=True)
class Compared:
    """b against a. verdict: in words.  differs: (what, a, b) of the runs themselves.

    shared, only_a, only_b: questions.  changed: shared questions on which the two did not do the same.
    accuracy: b - a, share.  cost: 1 - b / a, share saved.  brier: b - a of the p that was told.
    p_value: exact McNemar, None where questions are not shared.
    """

    verdict: str
    differs: tuple[tuple[str, str, str], ...]
    shared: int
    only_a: int
    only_b: int
    changed: int
    accuracy: Score
    saving: Outcome
    brier: Outcome
    p_value: float | None

    def as_json(self) -> dict[str, Any]:
        return {
            "verdict": self.verdict,
            "differs": [dict(zip(("what", "a", "b"), row, strict=True)) for row in self.differs],
            "questions": {
                "shared": self.shared, "only_a": self.only_a, "only_b": self.only_b, "changed": self.changed,
            },
            "accuracy": self.accuracy.as_json(),
            "saving": self.saving.as_json(),
            "brier": self.brier.as_json(),
            "p_value": self.p_value,
        }  # fmt: skip


def compare(a: Read, b: Read, rng: np.random.Generator) -> Compared:
    """Whether b does better than a."""
    at = {name: place for place, name in enumerate(a.questions.id)}
    pairs = [(at[name], place) for place, name in enumerate(b.questions.id) if name in at]
    if len(pairs) < 2:
        return apart(a, b, rng)
    rows_a, rows_b = (np.array(rows) for rows in zip(*pairs, strict=True))
    ours, theirs = arrays(a.questions), arrays(b.questions)
    right_a, right_b = ours["right"][rows_a], theirs["right"][rows_b]
    cost_a, cost_b = ours["cost"][rows_a], theirs["cost"][rows_b]
    groups = families(b.questions, rows_b)
    columns = np.column_stack([right_b - right_a, cost_a, cost_b])
    means = resampled_means(columns, groups, rng, RESAMPLES)
    how, n = f"paired bootstrap of {RESAMPLES:,} by question", len(pairs)
    accuracy = interval("accuracy", float(columns[:, 0].mean()), means[:, 0], n, how)
    saving = saved(a, b, (float(cost_a.mean()), float(cost_b.mean())), (means[:, 1], means[:, 2]), n, how)
    served_a = np.array([a.models[place].tier for place in a.questions.served])[rows_a]
    served_b = np.array([b.models[place].tier for place in b.questions.served])[rows_b]
    priced = a.sweep.cost_unit == b.sweep.cost_unit
    changed = (served_a != served_b) | (right_a != right_b) | (priced & (cost_a != cost_b))
    only = len(a.questions.id) - n, len(b.questions.id) - n
    return Compared(
        tell(accuracy, saving, n, *only, int(changed.sum())),
        tuple(differences(a, b)),
        n,
        *only,
        int(changed.sum()),
        accuracy,
        saving,
        calibration(ours["p"][rows_a], right_a, theirs["p"][rows_b], right_b, groups, rng),
        mcnemar(right_b, right_a).p_value,
    )


def apart(a: Read, b: Read, rng: np.random.Generator) -> Compared:
    """Runs on different questions: both samples are drawn anew, each by itself."""
    means, counts = [], []
    for one in (a, b):
        asked = arrays(one.questions)
        columns = np.column_stack([asked["right"], asked["cost"]])
        groups = families(one.questions, np.arange(len(one.questions.id)))
        means.append((columns.mean(axis=0), resampled_means(columns, groups, rng, RESAMPLES)))
        counts.append(len(columns))
    (value_a, seen_a), (value_b, seen_b) = means
    how, n = f"two bootstraps of {RESAMPLES:,} by question, unpaired", min(counts)
    accuracy = interval("accuracy", float(value_b[0] - value_a[0]), seen_b[:, 0] - seen_a[:, 0], n, how)
    saving = saved(a, b, (float(value_a[1]), float(value_b[1])), (seen_a[:, 1], seen_b[:, 1]), n, how)
    nothing = Insufficient(name="brier", n=0, why="the runs share no questions")
    words = tell(accuracy, saving, 0, counts[0], counts[1], 0)
    return Compared(
        words, tuple(differences(a, b)), 0, counts[0], counts[1], 0, accuracy, saving, nothing, None
    )  # fmt: skip


def arrays(asked: Questions) -> Mapping[str, Floats]:
    """right, cost and p, (n,) each; NaN for no p."""
    p = [np.nan if one is None else one for one in asked.p]
    told = {"right": asked.right, "cost": asked.cost, "p": p}
    return {name: np.array(values, dtype=np.float64) for name, values in told.items()}


def families(asked: Questions, rows: Ints) -> Ints:
    """(n,) a number for each question's family, from 0 without gaps."""
    names = np.array(asked.family or asked.id)[rows]
    codes: Ints = np.unique(names, return_inverse=True)[1].astype(np.int64)
    return codes


def saved(a: Read, b: Read, cost: tuple[float, float], seen: tuple[Floats, Floats], n: int, how: str) -> Outcome:
    """1 - b / a. Words where costs are of two kinds, or a is free."""
    if a.sweep.cost_unit != b.sweep.cost_unit:
        why = f"costs are {a.sweep.cost_unit} in the one and {b.sweep.cost_unit} in the other"
        return Insufficient(name="saving", n=n, why=why)
    if cost[0] <= 0:
        return Insufficient(name="saving", n=n, why="the first costs nothing")
    return interval("saving", 1 - cost[1] / cost[0], 1 - seen[1] / np.maximum(seen[0], 1e-300), n, how)


def calibration(
    p_a: Floats, right_a: Floats, p_b: Floats, right_b: Floats, groups: Ints, rng: np.random.Generator
) -> Outcome:
    """Brier of b minus Brier of a, where both told a p."""
    known = ~np.isnan(p_a) & ~np.isnan(p_b)
    few = [scores.too_few("brier", right[known]) for right in (right_a, right_b)]
    for one in few:
        if one is not None:
            return one
    return scores.bootstrap_difference(
        scores.brier,
        (p_b[known], right_b[known]),
        (p_a[known], right_a[known]),
        rng,
        question=groups[known],
        resamples=RESAMPLES_BRIER,
    )


# Words


def tell(accuracy: Score, saving: Outcome, shared: int, only_a: int, only_b: int, changed: int) -> str:
    """What a reader should take home."""
    if shared and not changed and not only_a and not only_b:
        return f"no difference: both runs do the same with all {shared:,} questions"
    if not shared:
        where = f"the runs share no questions ({only_a:,} and {only_b:,}), so part of this may be theirs"
    else:
        rest = f"; {only_a:,} more in the first and {only_b:,} in the second were left out" if only_a or only_b else ""
        where = f"on {shared:,} shared questions, of which {changed:,} went another way{rest}"
    low, high = ends(accuracy)
    right = f"{points(accuracy)} right answers"
    better = "the second is right more often" if low > 0 else "the second is right less often" if high < 0 else ""
    if isinstance(saving, Insufficient):
        paid, cheaper = f"cost not compared, {saving.why}", ""
    else:
        low, high = ends(saving)
        paid = f"{percents(saving)} of the cost saved"
        cheaper = "the second is cheaper" if low > 0 else "the second is dearer" if high < 0 else ""
    found = " and ".join(word for word in (better, cheaper.removeprefix("the second ") if better else cheaper) if word)
    if not found:
        return f"no difference that is more than noise: {right}, {paid}, {where}"
    return f"{found}, which is more than noise: {right}, {paid}, {where}"


def differences(a: Read, b: Read) -> list[tuple[str, str, str]]:
    """(what, a, b) of everything that the two runs were made from, where it is not the same."""
    rows = [
        ("policy", route(a.sweep.served), route(b.sweep.served)),
        ("reference", route(a.sweep.reference), route(b.sweep.reference)),
        ("cost", a.sweep.cost_unit, b.sweep.cost_unit),
        ("models", ", ".join(m.tier for m in a.models), ", ".join(m.tier for m in b.models)),
        ("cascade file", hashed(a.provenance.config), hashed(b.provenance.config)),
        *((name, hashes(a, field), hashes(b, field)) for name, field in HASHED.items()),
        ("prices", hashed(a.provenance.prices), hashed(b.provenance.prices)),
        ("machine", a.provenance.machine, b.provenance.machine),
    ]
    sealed = [{one.tier: one.sha256[:12] for one in run.provenance.calibrators} for run in (a, b)]
    told: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = [
        ("calibrator of ", sealed[0], sealed[1]),
        ("wish ", a.provenance.wish, b.provenance.wish),
        ("version of ", a.provenance.versions, b.provenance.versions),
    ]
    for prefix, mine, theirs in told:
        rows += [
            (prefix + name, str(mine.get(name, "absent")), str(theirs.get(name, "absent")))
            for name in sorted(mine.keys() | theirs.keys())
        ]
    return [row for row in rows if row[1] != row[2]]


def hashes(run: Read, field: str) -> str:
    """The first digits of one hash of every file of records, in an order of no meaning."""
    return ", ".join(sorted(getattr(one, field)[:12] for one in run.provenance.records))


def hashed(file: File | None) -> str:
    return "none" if file is None else file.sha256[:12]


def route(told: Route) -> str:
    steps = [f"{tier} (>= {mark:g})" for tier, mark in zip(told.tiers, told.thresholds)]  # noqa: B905
    return " then ".join([*steps, told.tiers[-1]])
