"""Which questions a command line means (a dataset, some of its splits, how many of each), and how they are put."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import datasets, prompts
from eval.datasets import Question
from eval.prompts import Prompt
from eval.records import BadRecords, Manifest
from gateway.errors import ConfigError


def questions(
    dataset: str, splits: Sequence[str], *, data: Path | None, n: int | None, seed: int | None
) -> list[Question]:
    """The first n questions of each split, the splits one after another.

    data: folder or file, for datasets that are read from one.  n: None for all.  seed: for datasets that are generated.
    Raises ConfigError and BadQuestions.
    """
    found = [question for split in splits for question in _one(dataset, split, data, n, seed)]
    twice = {(q.split, q.id) for q in found}
    if len(twice) < len(found):
        raise ConfigError(f"{dataset}: {len(found) - len(twice)} questions come twice; name each split once")
    return found


def asked(
    file: Path,
    dataset: str,
    manifest: Manifest,
    keys: Sequence[tuple[str, str]],
    *,
    data: Path | None,
    seed: int | None,
) -> list[Question]:
    """The questions that a file of records answers, in its order. keys: (split, id) of each.

    Raises BadRecords when the dataset does not hold them.
    """
    most = {split: n + SPARE for split, n in manifest.splits.items()}
    known = {
        (question.split, question.id): question
        for split, n in most.items()
        for question in _one(dataset, split, data, n, seed)
    }
    absent = [key for key in keys if key not in known]
    if absent:
        told = f"{dataset} has no question {absent[0][1]!r} in its split {absent[0][0]!r}"
        raise BadRecords(file, f"{told}; name the --dataset, --data and --seed that were collected")
    return [known[key] for key in keys]


SPARE = 1_000  # questions that collecting may have left out as variants of others


def _one(dataset: str, split: str, data: Path | None, n: int | None, seed: int | None) -> list[Question]:
    takes = _parameters(dataset)
    options: dict[str, Any] = {"split": split} if "split" in takes else {}
    place = [name for name in ("folder", "file") if name in takes]
    if place and data is None:
        raise ConfigError(f"dataset {dataset} is read from a {place[0]}: say which with --data")
    if data is not None and not place:
        raise ConfigError(f"dataset {dataset} needs no files; leave --data out")
    if seed is not None:
        options["seed"] = seed
    if n is not None and "n" in takes:
        options["n"] = n
    return datasets.load(dataset, *([data] if place else []), **options)[:n]


def _parameters(dataset: str) -> set[str]:
    if dataset not in datasets.names():
        raise ConfigError(f"no dataset {dataset!r}; have {', '.join(datasets.names())}")
    return set(inspect.signature(importlib.import_module(f"eval.datasets.{dataset}").load).parameters)


def prompt_of(manifest: Manifest, dataset: str, data: Path | None) -> Prompt:
    """The prompt of a collection; its examples come out of the dataset's split train again."""
    made = Prompt("as collected", manifest.template, manifest.system)
    if not manifest.shots:
        return made
    train = questions(dataset, ["train"], data=data, n=None, seed=None)
    return replace(made, shots=prompts.shots(train, manifest.shots).shots)


def prompt(name: str, dataset: str, data: Path | None) -> Prompt:
    """The prompt a word stands for: plain, boxed, shots, or the file of that name. Raises ConfigError."""
    if name == "shots":
        return prompts.shots(questions(dataset, ["train"], data=data, n=None, seed=None))
    if name in ("plain", "boxed"):
        return prompts.boxed() if name == "boxed" else prompts.plain()
    if not Path(name).is_file():
        raise ConfigError(f"no prompt {name!r}; have plain, boxed, shots, or name a text file")
    return prompts.from_file(Path(name))
