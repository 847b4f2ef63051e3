"""The commands of docs/gsm8k.md, word for word, against stand-ins for the six models: only the weights are missing.

The whole of it takes minutes: `make rehearsal`.

Nothing here is a result about any model: tests/eval/stand_in.py says by what rule the answers are made.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from eval import records
from eval.records import read_manifest
from gateway.cli import app
from tests.faults.gateway import ROOT, free_port

SAMPLE = ROOT / "tests" / "data" / "gsm8k-sample"
PAGE = ROOT / "docs" / "gsm8k.md"
CONFIG = ROOT / "deploy" / "qwen2.5" / "one-141gb.yaml"
TIERS = [f"qwen2.5-{size}b" for size in ("0.5", "1.5", "3", "7", "14", "32")]


def commands() -> dict[str, list[str]]:
    """The page's commands by their first word, without `confgate`."""
    written = PAGE.read_text().replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in re.findall(r"^confgate .*$", written, re.MULTILINE)]
    return {words[1]: words[1:] for words in lines if "--dry-run" not in words}


@pytest.mark.parametrize("name", ["up", "collect", "fit", "sweep", "report", "export", "serve"])
def test_every_documented_option_exists(name: str) -> None:
    command = typer.main.get_command(app)
    context = typer.Context(command)
    known = {option for one in command.resolve_command(context, [name])[1].params for option in one.opts}
    given = {word for word in commands()[name] if word.startswith("-")}
    assert given <= known


@pytest.fixture
def servers() -> Iterator[int]:
    """The stand-ins' port."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.eval.stand_in", "--data", str(SAMPLE), "--port", str(port)], cwd=ROOT
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def confgate(words: list[str], code: int = 0) -> str:
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == code, (words, ended.output, ended.exception)
    return ended.output


@pytest.mark.rehearsal
@pytest.mark.timeout(900)
def test_the_documented_commands_take_gsm8k_from_six_models_to_a_cascade(
    tmp_path: Path, servers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = commands()
    assert list(told) == ["up", "collect", "fit", "sweep", "report", "export", "serve"]
    config = tmp_path / "gsm8k.yaml"
    config.write_text(CONFIG.read_text())
    (tmp_path / "models").symlink_to(CONFIG.parent / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFGATE_DATA", str(SAMPLE))
    assert confgate([*told["up"], "--dry-run"]).count("vllm serve") == 6
    config.write_text(re.sub(r"127\.0\.0\.1:810\d", f"127.0.0.1:{servers}", CONFIG.read_text()))

    said = confgate(told["collect"])
    assert "vary questions of test (gsm8k-train-20 ~ gsm8k-test-250): left out" in said
    manifest = read_manifest(Path("runs/gsm8k/manifest.json"))
    assert [tier.name for tier in manifest.tiers] == TIERS
    assert [tier.weights for tier in manifest.tiers][3] == "Qwen/Qwen2.5-7B-Instruct"
    assert sum(manifest.splits.values()) == 799 + 251
    assert not Path("runs/gsm8k/journal.jsonl").exists()
    assert len(records.asked(Path("runs/gsm8k/records.parquet"))) == 1050

    confgate(told["fit"])
    fitted = sorted(path.stem for path in Path("calibrators").glob("*.json"))
    assert fitted == sorted(TIERS)
    config.write_text(config.read_text().replace("# calibrator:", "calibrator:"))
    said = confgate(told["sweep"])
    assert "policy default is now" in said
    assert "qwen2.5-" in said
    confgate(["check", "-c", "gsm8k.yaml"])
    confgate(told["report"])
    assert any(path.suffix == ".html" for path in Path("runs/gsm8k-report").iterdir())
    confgate(told["export"])
    assert len(list(Path("runs/gsm8k-exported/lm-eval").iterdir())) == 7


def test_a_broken_template_is_caught_before_anybody_calibrates(tmp_path: Path) -> None:
    """The stand-ins' own figures for the large model, had by the small: what a wrong chat template looks like."""
    from eval.sanity import findings
    from tests.eval.test_sanity import manifest, row

    assert findings([row(496, 1000)], manifest("Qwen/Qwen2.5-32B-Instruct")).problems


def test_the_page_promises_no_figure() -> None:
    assert json.dumps(PAGE.read_text()).count("%") == 0
