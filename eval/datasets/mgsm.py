"""MGSM: 250 GSM8K test questions in eleven languages (google-research/url-nlp, CC BY 4.0)."""

from __future__ import annotations

from pathlib import Path

from eval.datasets import BadQuestions, Question, find_file, rows, target_of
from eval.datasets._gsm8k_family import family


def load(folder: Path, *, language: str = "") -> list[Question]:
    """The questions of one language ("de", "zh", ...), or of all eleven. Slices: language.

    folder: holds mgsm.jsonl or mgsm/mgsm.jsonl, or is the file.  A question and its translations are one family.
    """
    file = find_file(folder, "mgsm.jsonl", "mgsm/mgsm.jsonl")
    questions = [
        Question(
            id=f"mgsm-{row['id']}",
            text=str(row["question"]),
            target=target_of(row["answer"], file, line),
            dataset="mgsm",
            family=family(row) or f"mgsm-{str(row['id']).rpartition('-')[2]}",
            slices={"language": str(row["lang"])},
        )
        for line, row in rows(file, "id", "lang", "question", "answer")
    ]
    languages = sorted({str(question.slices["language"]) for question in questions})
    if language and language not in languages:
        raise BadQuestions(file, 0, f"no language {language!r}; have {', '.join(languages)}")
    return [question for question in questions if language in ("", question.slices["language"])]
