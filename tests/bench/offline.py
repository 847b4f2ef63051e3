"""How fast the offline half is, each figure beside its bar: fits, predictions, grades, sweeps.

    python -m tests.bench.offline --out docs/results

CPU seconds of this process and its threads, for other work on the machine would count in wall time; a quiet machine
takes no longer than that. Data are simulated: nothing here says how good anything is.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from calibrators import base, logistic
from eval.grade import Grade, grade
from eval.sweep import sweep
from tests.calibrators.test_speed import seconds, study
from tests.eval.conftest import simulated

ROUNDS = 3
QUESTIONS = 7_473  # GSM8K's training set
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Bar:
    """what took `found`, where at most `most` is allowed. how: what a reader must know besides."""

    what: str
    found: float
    most: float
    unit: str
    how: str


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    read.add_argument("--out", type=Path, help="folder for offline.md")
    out = read.parse_args().out
    before = os.getloadavg()[0]
    page = "\n".join(told(list(bars()), before)) + "\n"
    print(page, end="")
    if out is not None:
        (out / "offline.md").write_text(page, encoding="utf-8")


def bars() -> Iterator[Bar]:
    yield from calibrators()
    yield grading()
    for work in (six_models, three_levels):  # each in a process of its own, so that its memory is its own
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
            yield from alone.submit(work).result()


def calibrators() -> Iterator[Bar]:
    """8,000 answers with 20 features."""
    data = study()
    yield Bar("logistic fit, 8,000 x 20", cpu(lambda: logistic.fit(data)), 1.0, "s", "ridge at its default")
    started = time.process_time()
    fits = {name: base.find(name).fit(data) for name in base.names() if name != "tempered"}  # tempers one of the others
    yield Bar("all families fitted, 8,000 x 20", time.process_time() - started, 30.0, "s", f"{len(fits)} families")
    row = data.X[:1]
    rows = {
        name: min(seconds(lambda fit=fit: fit.predict(row), 200) for _ in range(20))  # type: ignore[misc]
        for name, fit in fits.items()
    }
    slowest = max(rows, key=rows.__getitem__)
    each = ", ".join(f"{name} {1e6 * took:.1f}" for name, took in sorted(rows.items()))
    yield Bar("one prediction for one answer, slowest family", 1e6 * rows[slowest], 30.0, "µs", each)


def grading() -> Bar:
    """Texts of five lines, half of them boxed."""
    lines = "Janet sells 16 - 3 - 4 = 9 duck eggs a day.\nShe makes 9 * 2 = $18 every day at the market.\n" * 3
    texts = [f"{lines}The final answer is $\\boxed{{{n}}}$." for n in range(50_000)]
    texts += [f"{lines}So in the end she makes ${n} a day." for n in range(50_000)]
    started = time.process_time()
    grades = {grade(text, str(n % 50_000)).grade for n, text in enumerate(texts)}
    took = time.process_time() - started
    if grades != {Grade.RIGHT}:
        raise SystemExit(f"the grader says {grades} of right answers")
    return Bar("100,000 answers graded", took, 10.0, "s", f"{len(texts[0])} characters each")


def six_models() -> list[Bar]:
    table = simulated(QUESTIONS, 6, skills=np.linspace(-1, 3, 6).tolist(), costs=(0.5, 1.5, 3, 7, 14, 32))
    swept: Any = None

    def work() -> None:
        nonlocal swept
        swept = sweep(table)

    took = cpu(work)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    what = f"sweep, 6 models x {QUESTIONS:,} questions x 24 thresholds, all 63 chains"
    told = f"{swept.combinations:,} policies, each exactly"
    return [Bar(what, took, 10.0, "s", told), Bar("peak memory of that process", peak, 4.0, "GiB", "Python and all")]


def three_levels() -> list[Bar]:
    table = simulated(QUESTIONS, 5)
    took = cpu(lambda: sweep(table, steps=256, only=[(0, 1, 2)]))
    return [Bar(f"sweep, three levels at 256 thresholds, {QUESTIONS:,} questions", took, 1.0, "s", "one chain")]


def cpu(work: Callable[[], object]) -> float:
    """The middle one of a few rounds."""
    found = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        found.append(time.process_time() - started)
    return sorted(found)[ROUNDS // 2]


def told(bars: list[Bar], before: float) -> Iterator[str]:
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "scipy", "scikit-learn"))
    yield "# How fast the offline half is"
    yield ""
    yield "Written by `make bench-offline`; do not edit. CPU time, medians of a few rounds; simulated data."
    yield ""
    yield (
        f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}, {packages}. Load average "
        f"of the machine {before:.1f} before, {os.getloadavg()[0]:.1f} after; the run itself is about 1."
    )
    yield ""
    yield "| what | at most | found | | |"
    yield "| --- | --: | --: | --- | --- |"
    for bar in bars:
        met = "met" if bar.found <= bar.most else "**missed**"
        yield f"| {bar.what} | {bar.most:g} {bar.unit} | {bar.found:.3g} {bar.unit} | {met} | {bar.how} |"


if __name__ == "__main__":
    main()
