"""SVAMP: one-step problems with distractors, easier than GSM8K (arkilpatel/SVAMP, MIT)."""

from __future__ import annotations

from pathlib import Path

from eval.datasets import Question, find_file, rows, target_of


def load(folder: Path) -> list[Question]:
    """All 1,000 questions. folder: holds svamp.jsonl or svamp/svamp.jsonl, or is the file. Slices: type."""
    file = find_file(folder, "svamp.jsonl", "svamp/svamp.jsonl")
    return [
        Question(
            id=f"svamp-{row['id']}",
            text=str(row["question"]),
            target=target_of(row["answer"], file, line),
            dataset="svamp",
            solution=str(row.get("equation", "")),
            slices={"type": str(row.get("type", "")).replace("Divison", "Division")},  # misspelt once at the source
        )
        for line, row in rows(file, "id", "question", "answer")
    ]
