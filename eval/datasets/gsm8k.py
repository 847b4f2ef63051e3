"""GSM8K, grade-school mathematics, as published (openai/grade-school-math, MIT): train.jsonl and test.jsonl."""

from __future__ import annotations

import re
from pathlib import Path

from eval.datasets import BadQuestions, Question, find_file, rows, target_of
from gateway.numerals import read_number

_ANNOTATION = re.compile(r"<<([^<>]*)>>")


def load(folder: Path, *, split: str = "test") -> list[Question]:
    """The questions in file order, whose position is the test index that companion sets refer to.

    folder: holds {split}.jsonl or gsm8k/{split}.jsonl, or is the file.  Slices: steps, the number of annotated sums in
    the reference solution; magnitude, the largest result on the way.
    """
    file = find_file(folder, f"{split}.jsonl", f"gsm8k/{split}.jsonl")
    return [
        _question(row, file, line, split, index) for index, (line, row) in enumerate(rows(file, "question", "answer"))
    ]


def without_annotations(solution: str) -> str:
    """A solution as one would write it in a prompt: "48/2 = <<48/2=24>>24" becomes "48/2 = 24"."""
    return _ANNOTATION.sub("", solution)


def _question(row: dict[str, object], file: Path, line: int, split: str, index: int) -> Question:
    solution = str(row["answer"])
    reasoning, mark, answer = solution.rpartition("####")
    if not mark:
        raise BadQuestions(file, line, "no '####' before the final number of 'answer'")
    sums = _ANNOTATION.findall(reasoning)
    results = [read_number(one.rpartition("=")[2]) for one in sums]
    name = f"gsm8k-{split}-{index}"
    return Question(
        id=name,
        text=str(row["question"]),
        target=target_of(answer, file, line),
        dataset="gsm8k",
        split=split,
        solution=without_annotations(solution),
        family=name,
        slices={"steps": len(sums), "magnitude": float(max((abs(r) for r in results if r is not None), default=0))},
    )
