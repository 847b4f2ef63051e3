"""AQuA-RAT: algebra with five options (google-deepmind/AQuA, Apache-2.0). The answer is a letter, not a number."""

from __future__ import annotations

from pathlib import Path

from eval.datasets import BadQuestions, Question, find_file, rows, target_of


def load(folder: Path, *, split: str = "") -> list[Question]:
    """The 254 questions of "dev" or of "test", or all. folder: holds aqua.jsonl or aqua/aqua.jsonl, or is the file.

    The options stand below the question, one a line.
    """
    file = find_file(folder, "aqua.jsonl", "aqua/aqua.jsonl")
    questions = [
        Question(
            id=f"aqua-{row['id']}",
            text=_with_options(row, file, line),
            target=target_of(row["answer"], file, line),
            dataset="aqua",
            split=str(row["id"]).partition("-")[0],
        )
        for line, row in rows(file, "id", "question", "options", "answer")
    ]
    splits = sorted({question.split for question in questions})
    if split and split not in splits:
        raise BadQuestions(file, 0, f"no split {split!r}; have {', '.join(splits)}")
    return [question for question in questions if split in ("", question.split)]


def _with_options(row: dict[str, object], file: Path, line: int) -> str:
    options = row["options"]
    if not isinstance(options, list):
        raise BadQuestions(file, line, f"'options' must be a list, got {type(options).__name__}")
    return "\n".join([str(row["question"]), *(str(option).replace(")", ") ", 1) for option in options)])
