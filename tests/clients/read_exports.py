# /// script
# requires-python = ">=3.11"
# dependencies = ["inspect-ai", "lm-eval", "pandas", "pyarrow"]
# ///
"""Open what `confgate export` writes with inspect and lm-evaluation-harness themselves.

    uv run --script tests/clients/read_exports.py .venv/bin/python

The argument is the Python of our own environment: records and exports are made there, by the code of the fast test
(tests/eval/test_export.py), and only opened here, where the two tools are. Ends with 0 when all was read as meant.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKE = """
import sys
from pathlib import Path
from eval.export import Format, export
from eval.prompts import boxed
from tests.eval.test_export import NOW, QUESTIONS, cascade, collection
folder = Path(sys.argv[1])
export(collection(folder / "in", boxed()), QUESTIONS, boxed(), folder / "out", list(Format), NOW, cascade())
"""
MODELS = {"org/small": 0.5, "large": 1.0, "auto": 1.0}  # the share right of each run in that test


def read_with_inspect(folder: Path) -> None:
    from inspect_ai.analysis import evals_df, samples_df
    from inspect_ai.log import list_eval_logs, read_eval_log

    logs = [read_eval_log(info) for info in list_eval_logs(str(folder))]
    accuracy = {log.eval.model: log.results.scores[0].metrics["accuracy"].value for log in logs}
    assert accuracy == MODELS, accuracy
    for log in logs:
        assert log.status == "success"
        assert read_eval_log(log.location, header_only=True).results == log.results
        assert log.samples
        assert len(log.samples) == log.results.completed_samples
        for sample in log.samples:
            assert sample.output.completion == sample.messages[-1].text
            assert sample.output.choices[0].logprobs.content[0].logprob <= 0
            assert sample.metadata["route"]["grade"] in ("right", "wrong")
    table = evals_df(str(folder))
    assert dict(zip(table["model"], table["score_exact_rational_accuracy"], strict=True)) == MODELS
    assert len(samples_df(str(folder))) == sum(len(log.samples) for log in logs)


def read_with_lm_eval(folder: Path, cache: Path) -> None:
    from datasets import load_dataset
    from lm_eval.utils import (
        get_file_task_name,
        get_latest_filename,
        get_results_filenames,
        get_sample_results_filenames,
        make_table,
    )

    for model, share in MODELS.items():
        home = folder / model.replace("/", "__").replace(":", "__")
        files = [str(path) for path in home.iterdir()]
        results = json.loads(Path(get_latest_filename(get_results_filenames(files))).read_text())
        table = make_table(results)
        assert "strict-match" in table
        assert "flexible-extract" in table
        assert results["results"]["sums"]["exact_match,flexible-extract"] == share
        (samples,) = get_sample_results_filenames(files)
        assert get_file_task_name(Path(samples).name) == "sums", samples
        rows = load_dataset("json", data_files=samples, split="train", cache_dir=str(cache))
        scores = rows.filter(lambda row: row["filter"] == "flexible-extract")["exact_match"]
        assert sum(scores) / len(scores) == share


def main(python: str) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([python, "-c", MAKE, name], cwd=ROOT, env=environment, check=True)
        read_with_inspect(folder / "out" / "inspect")
        print("inspect: logs, samples and data frames read")
        read_with_lm_eval(folder / "out" / "lm-eval", folder / "cache")
        print("lm-evaluation-harness: results and samples read")


if __name__ == "__main__":
    main(sys.argv[1])
