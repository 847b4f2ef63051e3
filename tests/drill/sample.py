"""Make answers.jsonl.gz: what two pocket models answered, with their log-probs.

    python -m tests.drill.sample runs/pocket/calibration runs/pocket/test runs/pocket/shifted

after `make pocket`. Answers, log-probs and right or wrong are the models' own; nothing is made up.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from eval.datasets import pocket
from tests.drill.recorded import FILE, MODELS, SPLITS

DRAWN = {split: {"calibration": 1500, "test": 1000}.get(split, 300) for split in SPLITS}  # as `make pocket` asks


def main(sources: list[Path]) -> None:
    found: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    names = ["question", "split", "tier", "text", "finish", "chosen", "tokens", "end_nats"]
    for source in sources:
        table = pq.read_table(source / "records.parquet", columns=names, filters=[("tier", "in", list(MODELS))])
        for row in table.to_pylist():
            if row["split"] in SPLITS:
                found[row["split"], row["question"]][row["tier"]] = row
    asked = {(split, one.id): one for split, n in DRAWN.items() for one in pocket.load(split=split, n=n)}
    counts: dict[str, int] = defaultdict(int)
    with gzip.GzipFile(FILE, "wb", mtime=0) as out:
        for (split, question), by in found.items():
            small, large = (by.get(model) for model in MODELS)
            usable = small and large and small["finish"] == large["finish"] == "stop" and small["chosen"]
            if not usable or counts[split] >= SPLITS[split] or small["end_nats"] is None:
                continue
            counts[split] += 1
            told = {
                "split": split,
                "question": asked[split, question].text,
                "target": asked[split, question].target,
                "tokens": [token.decode() for token in small["tokens"]],
                "nats": [round(nats, 4) for nats in [*small["chosen"], small["end_nats"]]],
                "large": large["text"],
            }
            out.write(json.dumps(told, separators=(",", ":")).encode() + b"\n")
    print(dict(counts), FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
