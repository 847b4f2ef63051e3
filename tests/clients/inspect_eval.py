"""inspect_ai through its openai-api provider: a planted accuracy, and every token's log-probs in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RIGHT, ALL = 3, 4
TASK = """\
import json
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate

@task
def planted():
    rows = json.loads({rows!r})
    return Task(dataset=[Sample(input=q, target=t) for q, t in rows], solver=generate(), scorer=includes())
"""

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    rows = []
    for n in range(ALL):
        small = {"text": f"The answer is {n if n < RIGHT else 'none'}"}
        rows.append((json.dumps({"small": small, "large": small}), str(n)))
    (folder / "task.py").write_text(TASK.format(rows=json.dumps(rows)))
    own = {"GATEWAY_BASE_URL": f"{os.environ['BASE']}/v1", "GATEWAY_API_KEY": os.environ["KEY"], "HOME": name}
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("inspect")), "eval", "task.py", "--model", "openai-api/gateway/auto",
            "--logprobs", "--top-logprobs", "5", "--log-format", "json", "--display", "none",
        ],
        cwd=folder, env={**os.environ, **own}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    [path] = (folder / "logs").glob("*.json")
    log = json.loads(path.read_text())
    assert log["status"] == "success", log.get("error")
    [score] = log["results"]["scores"]
    assert score["metrics"]["accuracy"]["value"] == RIGHT / ALL
    for sample in log["samples"]:
        [choice] = sample["output"]["choices"]
        entries = choice["logprobs"]["content"]
        assert "".join(entry["token"] for entry in entries) == sample["output"]["completion"]
        assert all(len(entry["top_logprobs"]) == 5 for entry in entries)
        assert sample["output"]["usage"]["total_tokens"] == 12
