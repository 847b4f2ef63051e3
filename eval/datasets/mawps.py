"""MAWPS: simple word problems (Koncel-Kedziorski et al. 2016, by way of microsoft/ToRA; evaluation only)."""

from __future__ import annotations

from pathlib import Path

from eval.datasets import Question, find_file, rows, target_of


def load(folder: Path) -> list[Question]:
    """All 2,065 questions. folder: holds mawps.jsonl or mawps/mawps.jsonl, or is the file. Slices: source."""
    file = find_file(folder, "mawps.jsonl", "mawps/mawps.jsonl")
    return [
        Question(
            id=f"mawps-{row['id']}",
            text=str(row["question"]),
            target=target_of(row["answer"], file, line),
            dataset="mawps",
            slices={"source": str(row.get("source", ""))},
        )
        for line, row in rows(file, "id", "question", "answer")
    ]
