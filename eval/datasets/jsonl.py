"""Your own questions: one JSON object a line with `id`, `question` and `answer`.

    {"id": "q1", "question": "What do 3 pens at $1.20 cost?", "answer": "3.60"}

`answer` is a number in any usual spelling, an option letter A to E, or "none". Optional: `split`, `solution`, and
`family`, a name shared by variants of one question, which are then never torn apart by a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.datasets import BadQuestions, Question, rows, target_of


def load(file: Path, *, split: str = "", slices: Sequence[str] = ()) -> list[Question]:
    """The questions of a file, or those of one split.

    slices: further fields by which results are broken down; every row must have them.  Raises BadQuestions naming file
    and line: broken JSON, a missing field, an answer that is not one number, an id given twice, no question at all.
    """
    questions: list[Question] = []
    first_line: dict[str, int] = {}
    for line, row in rows(file, "id", "question", "answer", *slices):
        name = str(row["id"])
        if name in first_line:
            raise BadQuestions(file, line, f"id {name!r} stands on line {first_line[name]} already")
        first_line[name] = line
        questions.append(
            Question(
                id=name,
                text=str(row["question"]),
                target=target_of(row["answer"], file, line),
                dataset=file.stem,
                split=str(row.get("split", "test")),
                solution=str(row.get("solution", "")),
                family=str(row.get("family", "")),
                slices={key: _slice(row[key]) for key in slices},
            )
        )
    splits = sorted({question.split for question in questions})
    chosen = [question for question in questions if split in ("", question.split)]
    if not chosen:
        raise BadQuestions(file, 0, f"no split {split!r}; have {', '.join(splits)}" if questions else "no questions")
    return chosen


def _slice(value: object) -> str | int:
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value)
