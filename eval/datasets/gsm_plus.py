"""GSM-Plus: GSM8K test questions perturbed in eight ways (qtli/GSM-Plus, CC BY-SA 4.0: use it, never package it)."""

from __future__ import annotations

from pathlib import Path

from eval.datasets import Question, find_file, rows, target_of
from eval.datasets._gsm8k_family import family
from eval.grade import NO_ANSWER


def load(folder: Path) -> list[Question]:
    """The 2,400 questions of testmini. folder: holds gsm-plus-testmini.jsonl, or gsm-plus/, or is the file.

    300 of them were made unanswerable; their target is "none", and no text is graded right on them.  Slices:
    perturbation.
    """
    file = find_file(folder, "gsm-plus-testmini.jsonl", "gsm-plus/gsm-plus-testmini.jsonl")
    return [
        Question(
            id=f"gsm_plus-{row['id']}",
            text=str(row["question"]),
            target=NO_ANSWER if row["answer"] == "None" else target_of(row["answer"], file, line),
            dataset="gsm_plus",
            family=family(row),
            slices={"perturbation": str(row.get("perturbation_type", ""))},
        )
        for line, row in rows(file, "id", "question", "answer")
    ]
