"""Which questions a command line means (a dataset, some of its splits, how many of each), and how they are put."""

from __future__ import annotations

import importlib
import inspect
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from eval import datasets, prompts, splits
from eval.datasets import Question, _hub
from eval.prompts import Prompt
from eval.records import BadRecords, Manifest
from gateway.errors import ConfigError


def questions(
    dataset: str, names: Sequence[str], *, data: Path | None, n: int | None, seed: int | None
) -> list[Question]:
    """The first n questions of each split, the splits one after another.

    names: of the splits.  data: folder or file, for datasets that are read from one.  n: None for all.
    seed: for datasets that are generated.
    Raises ConfigError and BadQuestions.
    """
    found = [question for split in names for question in _one(dataset, split, data, n, seed)]
    twice = {(q.split, q.id) for q in found}
    if len(twice) < len(found):
        raise ConfigError(f"{dataset}: {len(found) - len(twice)} questions come twice; name each split once")
    return found


class Variants(StrEnum):
    """What to do with questions that are variants of questions in a later split."""

    DROP, KEEP, REFUSE = "drop", "keep", "refuse"


def sifted(found: Sequence[Question], wish: Variants, shown: Sequence[str]) -> tuple[list[Question], list[str]]:
    """What to ask of these questions, and what was left out and why, in words.

    shown: ids of the prompt's own examples, whose solutions a model would read off.  Raises SharedQuestions when
    variants are refused.
    """
    by_split: dict[str, list[Question]] = {}
    for question in found:
        by_split.setdefault(question.split, []).append(question)
    kept, notes = list(found), []
    if wish is Variants.REFUSE:
        splits.check_disjoint(by_split)
    elif len(by_split) > 1:
        rest, common = splits.apart(by_split)
        kept = rest if wish is Variants.DROP else kept
        done = "left out" if wish is Variants.DROP else "asked all the same"
        notes = [f"{one}: {done}" for one in common]
    rest = [question for question in kept if question.id not in set(shown)]
    if len(rest) < len(kept):
        notes.append(f"{len(kept) - len(rest)} question(s) stand in the prompt as examples: left out")
    return rest, notes


def chosen(
    dataset: str,
    names: Sequence[str],
    *,
    data: Path | None,
    n: int | None,
    seed: int | None,
    divided: str | None,
    variants: Variants,
    shown: Sequence[str],
) -> tuple[list[Question], list[str]]:
    """`questions`, `sifted`, and dealt out by `divide` where that is asked for."""
    kept, notes = sifted(questions(dataset, names, data=data, n=n, seed=seed), variants, shown)
    return kept if divided is None else divide(kept, divided, seed=seed or 0), notes


def divide(found: Sequence[Question], written: str, *, seed: int) -> list[Question]:
    """Questions of one split dealt out to several: "train:calibration=0.7,validation=0.3". Variants stay together.

    Raises ConfigError for what cannot be read, BadSplit for shares that make no split.
    """
    split, _, parts = written.partition(":")
    try:
        shares = {name.strip(): float(share) for name, share in (part.split("=") for part in parts.split(","))}
    except ValueError:
        raise ConfigError(f"--divide is written like train:calibration=0.7,validation=0.3, got {written!r}") from None
    own = [question for question in found if question.split == split]
    if not own:
        have = ", ".join(dict.fromkeys(question.split for question in found))
        raise ConfigError(f"--divide: no questions of {split!r} are asked; have {have}")
    taken = shares.keys() & {question.split for question in found}
    if taken:
        raise ConfigError(f"--divide: {', '.join(sorted(taken))} is a split already; take another name")
    dealt = splits.split(own, shares, seed=seed)
    return [
        *(replace(question, split=name) for name, questions in dealt.items() for question in questions),
        *(question for question in found if question.split != split),
    ]


def asked(file: Path, keys: Sequence[tuple[str, str]], known: Iterable[Question]) -> list[Question]:
    """The questions that a file of records answers, in its order. keys: (split, id) of each.

    known: of the dataset; a question that was dealt out to a split of another name is found by its id.
    Raises BadRecords when they are not among them.
    """
    by_key: dict[tuple[str, str], Question] = {}
    by_id: dict[str, Question] = {}
    for question in known:
        by_key[question.split, question.id] = by_id[question.id] = question
    found = []
    for split, name in keys:
        if name not in by_id:
            told = "name the --dataset, --split, --data and --seed that were collected"
            raise BadRecords(file, f"no question {name!r} (split {split!r}) in this dataset; {told}")
        found.append(by_key.get((split, name)) or replace(by_id[name], split=split))
    return found


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
    if data is None or not _hub.is_hub(data):
        return datasets.load(dataset, *([data] if place else []), **options)[:n]
    with tempfile.TemporaryDirectory(prefix="confgate-") as folder:
        return datasets.load(dataset, _hub.download(data, split, Path(folder)), **options)[:n]


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
