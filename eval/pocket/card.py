"""The pocket models' card: what each answers right, and how well one number tells right from wrong.

    python -m eval.pocket.card runs/pocket/test runs/pocket/shifted    # folders of `confgate collect`

Writes MODEL_CARD.md and accuracy.json. Every figure on the card is counted in those records, which the in-process
engine made with the shipped weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.scores import auroc_delong, wilson
from eval import records
from eval.datasets import pocket
from eval.grade import Grade
from gateway import confidence
from gateway.nouns import Evidence

FOLDER = Path("deploy/pocket")
SPLITS = ("test", *pocket.SHIFTS)
FEATURES = ("lp_mean", "lp_bottom", "lp_quantile(q=0)", "deepconf_average", "deepconf_bottom", "deepconf_tail")
FIRST = 200  # the first problems of the split test, which the tests ask the shipped weights again

ABOUT = """\
# The pocket ladder

Four models of the Qwen2 architecture, trained from scratch on generated grade-school word problems. They exist so that
a whole cascade, with real networks and real log-probabilities, runs on a laptop; they know nothing but these problems.
Apache-2.0, weights included. `transformers` and vLLM load them as they are.

| model | parameters | hidden, layers, heads | training steps | weights |
|---|--:|---|--:|--:|
{rows}

**Trained** by `python -m eval.pocket.train --out deploy/pocket/models`: {problems:,} problems of the split `train`,
{batch} a step, seed {seed}, AdamW, loss on the answer alone, bfloat16 arithmetic, saved as float16. One {machine}, the
rungs side by side, the base rung in a run apart from the others; {versions}. The largest stops early on purpose: longer
training makes it so good that there is nothing left to route. Loss and accuracy on the way, and the seconds that each
rung took, are in its `training.jsonl`.

**Data**: `eval/datasets/pocket.py`. 2-8 steps of + - * /, numbers to 999, {names} names, {items} items, one distractor
in a third of the problems. Its docstring says what the shifted splits change. No split shares a problem with another.

**Tokenizer**: byte-level BPE of 1,024 tokens, digits one by one, a ChatML template like Qwen2.5's but for its default
system message. Window 1,024 tokens.
"""

Measured = dict[str, dict[str, dict[str, Any]]]  # by model, split, figure


def measure(folders: list[Path]) -> Measured:
    """Counts and signals of every model on every split."""
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    signals: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for folder in folders:
        for record in records.read(folder / records.RECORDS):
            key = (record.tier, record.split)
            right[key].append(record.grade is Grade.RIGHT)
            if record.trace is not None and record.split == "test":
                values = confidence.measure(FEATURES, Evidence(record.trace, record.text or "")).values
                signals[key].append((record.grade is Grade.RIGHT, values))
    measured: Measured = defaultdict(dict)
    for (model, split), hits in right.items():
        measured[model][split] = {"right": sum(hits), "n": len(hits)}
    for (model, split), rows in signals.items():
        measured[model][split] |= {"first": {"right": sum(right[model, split][:FIRST]), "n": FIRST}}
        measured[model][split] |= {"auroc": aurocs(rows)}
    return dict(measured)


def aurocs(rows: list[tuple[bool, Any]]) -> dict[str, list[float]]:
    """AUROC with its interval for every feature. rows: right or wrong, and (F,) signals."""
    y = np.array([hit for hit, _ in rows], dtype=np.float64)
    X = np.array([values for _, values in rows])
    ranks = X.argsort(axis=0).argsort(axis=0) / len(rows)  # the scores take probabilities; AUROC sees ranks alone
    return {
        name: [round(value, 4) for value in (score.value, score.low or 0.0, score.high or 1.0)]
        for name, score in ((name, auroc_delong(ranks[:, f], y)) for f, name in enumerate(FEATURES))
    }


def write(folder: Path, measured: Measured, command: str, versions: dict[str, str]) -> str:
    """The card as Markdown."""
    notes = {model: json.loads((folder / "models" / model / "training.json").read_text()) for model in measured}
    return "\n".join(
        [
            about(folder, notes),
            "## Accuracy",
            "",
            "Greedy, float32 on the CPU. Per cent, 95 % Wilson intervals, n in the last row.",
            "",
            *accuracy_table(measured),
            "",
            "## How well one number tells right from wrong",
            "",
            "AUROC on `test`, 95 % DeLong intervals.",
            "",
            *auroc_table(measured),
            "",
            f"Counted by `{command}` in records made with "
            + ", ".join(f"{name} {number}" for name, number in versions.items())
            + ".",
            "",
        ]
    )


def about(folder: Path, notes: dict[str, dict[str, Any]]) -> str:
    first = next(iter(notes.values()))
    rows = [
        f"| {model} | {note['parameters']:,} | {note['hidden']}, {note['layers']}, {note['heads']} | {note['steps']:,} "
        f"| {(folder / 'models' / model / 'model.safetensors').stat().st_size / 1e6:.2f} MB |"
        for model, note in notes.items()
    ]
    return ABOUT.format(
        rows="\n".join(rows),
        problems=int(first["problems"]),
        batch=first["batch"],
        seed=first["seed"],
        machine=first["machine"],
        versions=", ".join(f"{name} {number}" for name, number in first["versions"].items()),
        names=len(pocket.NAMES),
        items=len(pocket.ITEMS),
    )


def accuracy_table(measured: Measured) -> list[str]:
    lines = [f"| model | {' | '.join(SPLITS)} |", f"|---|{'--:|' * len(SPLITS)}"]
    for model, splits in measured.items():
        scores = [wilson(split, splits[split]["right"], splits[split]["n"]) for split in SPLITS]
        cells = [f"{100 * s.value:.1f} [{100 * (s.low or 0):.1f}, {100 * (s.high or 0):.1f}]" for s in scores]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    sizes = [f"{next(iter(measured.values()))[split]['n']:,}" for split in SPLITS]
    return [*lines, f"| n | {' | '.join(sizes)} |"]


def auroc_table(measured: Measured) -> list[str]:
    lines = [f"| model | {' | '.join(FEATURES)} |", f"|---|{'--:|' * len(FEATURES)}"]
    for model, splits in measured.items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*splits["test"]["auroc"][name]) for name in FEATURES]
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    cli = argparse.ArgumentParser(prog="python -m eval.pocket.card", description="Write the pocket models' card.")
    cli.add_argument("records", type=Path, nargs="+", help="folders of `confgate collect`")
    cli.add_argument("--folder", type=Path, default=FOLDER)
    args = cli.parse_args(argv)
    measured = measure(args.records)
    manifest = records.read_manifest(args.records[0] / records.MANIFEST)
    command = " ".join(["python -m eval.pocket.card", *map(str, args.records)])
    told = {"command": command, "versions": dict(manifest.versions), "models": measured}
    (args.folder / "accuracy.json").write_text(json.dumps(told, indent=1) + "\n")
    (args.folder / "MODEL_CARD.md").write_text(write(args.folder, measured, command, dict(manifest.versions)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
