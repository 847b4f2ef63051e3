"""lm-evaluation-harness over local-chat-completions: a planted accuracy comes out, and both files are written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RIGHT, ALL = 7, 10
TASK = """\
task: planted
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 64, do_sample: false}}
filter_list:
  - name: number
    filter: [{{function: regex, regex_pattern: "answer is (\\\\d+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""

with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    data = folder / "test.jsonl"
    rows = []
    for n in range(ALL):
        small = {"text": f"The answer is {n if n < RIGHT else n + 100}"}
        rows.append({"question": json.dumps({"small": small, "large": small}), "target": str(n)})
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "planted.yaml").write_text(TASK.format(data=data))
    arguments = f"model=auto,base_url={os.environ['BASE']}/v1/chat/completions,num_concurrent=8,tokenizer_backend=None"
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("lm_eval")), "run", "--model", "local-chat-completions",
            "--model_args", arguments, "--include_path", name, "--tasks", "planted", "--apply_chat_template",
            "--log_samples", "--output_path", str(folder / "out"),
        ],
        env={**os.environ, **offline, "OPENAI_API_KEY": os.environ["KEY"]}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = (folder / "out").rglob("results_*.json")
    [samples] = (folder / "out").rglob("samples_planted_*.jsonl")
    told = json.loads(results.read_text())["results"]["planted"]
    assert told["exact_match,number"] == RIGHT / ALL, told
    assert len(samples.read_text().splitlines()) == ALL
