"""GSM-Hard: the GSM8K test questions with large numbers (reasoning-machines/pal, Apache-2.0).

The answers were computed by program; some are negative eggs and the like. A test of shift, not a leaderboard.
"""

from __future__ import annotations

from pathlib import Path

from eval.datasets import Question, find_file, rows, target_of
from eval.datasets._gsm8k_family import family


def load(folder: Path) -> list[Question]:
    """All 1,319 questions, in their own order. folder: holds gsm-hard.jsonl or gsm-hard/gsm-hard.jsonl, or is the file.

    family: the GSM8K test question that is varied, so neither set is independent of the other.
    """
    file = find_file(folder, "gsm-hard.jsonl", "gsm-hard/gsm-hard.jsonl")
    return [
        Question(
            id=f"gsm_hard-{row['id']}",
            text=str(row["question"]),
            target=target_of(row["answer"], file, line),
            dataset="gsm_hard",
            family=family(row),
        )
        for line, row in rows(file, "id", "question", "answer")
    ]
