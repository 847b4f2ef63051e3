"""guidellm for a few seconds, without a tokenizer: requests succeed, none fails, output tokens are counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is {n} + {n}?"}) + "\n" for n in range(200)))
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("guidellm")), "run",
            "--backend", f"kind=openai_http,target={os.environ['BASE']},model=auto,api_key={os.environ['KEY']}",
            "--profile", "kind=concurrent,streams=4", "--constraint", "kind=max_duration,seconds=8",
            "--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={folder / 'g.json'}",
        ],
        cwd=folder, env={**os.environ, "HF_HUB_OFFLINE": "1", "HOME": name}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    told = json.loads((folder / "g.json").read_text())
    [benchmark] = told["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] > 10, totals
    assert totals["errored"] == 0, totals
