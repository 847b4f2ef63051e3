"""ASDiv: elementary word problems with school grades (chaochun/nlu-asdiv-dataset, CC BY-NC 4.0: evaluation only)."""

from __future__ import annotations

import re
from pathlib import Path

from eval.datasets import Question, find_file, rows, target_of
from gateway.numerals import read_number

_UNIT = re.compile(r"\s*\(.*\)\s*$", re.DOTALL)
_LETTER = re.compile(r"[^\W\d_]")


def load(folder: Path) -> list[Question]:
    """The questions whose answer is one number, nine in ten; ratios, times of day, names and ordinals are left out.

    folder: holds asdiv.jsonl or asdiv/asdiv.jsonl, or is the file.  Slices: grade (school grade, 1 to 6), type.
    """
    file = find_file(folder, "asdiv.jsonl", "asdiv/asdiv.jsonl")
    questions = []
    for line, row in rows(file, "id", "question", "answer"):
        answer = _UNIT.sub("", str(row["answer"]))
        if _LETTER.search(answer) or read_number(answer) is None:
            continue
        questions.append(
            Question(
                id=f"asdiv-{row['id']}",
                text=str(row["question"]),
                target=target_of(answer, file, line),
                dataset="asdiv",
                solution=str(row.get("formula", "")),
                slices={"grade": str(row.get("grade", "")), "type": str(row.get("type", ""))},
            )
        )
    return questions
