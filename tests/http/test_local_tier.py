"""A cascade whose first tier runs in the gateway's own process: a real network, tiny and untrained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, cascade, confgate_ends, running
from tests.faults.upstream import Upstream

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WINDOW = 128


@pytest.fixture(scope="module")
def local(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    from eval.pocket.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("local")
    tokenizer = train_tokenizer(["Mia has 12 apples and buys 30 more."], 300)
    tokenizer.save_pretrained(folder / "tiny")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Qwen2Config(
        vocab_size=300,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder / "tiny")
    plan = cascade(upstream.url)
    plan["tiers"][0] = {"name": "tiny", "engine": {"kind": "local", "model": "tiny"}, "patience_seconds": 20}
    plan["policies"] = {"default": {"steps": [{"tier": "tiny"}]}}
    with running(folder, plan) as process:
        yield process


def test_it_answers_with_its_own_log_probs(local: Gateway) -> None:
    body = ask(max_tokens=8, logprobs=True, top_logprobs=3) | {"model": "tiny"}
    told = httpx2.post(f"{local.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
    choice = told["choices"][0]
    assert choice["finish_reason"] in ("stop", "length")
    entries = choice["logprobs"]["content"]
    assert (
        bytes(byte for entry in entries for byte in entry["bytes"]).decode(errors="replace")
        == choice["message"]["content"]
    )
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    assert entries[0]["top_logprobs"][0]["logprob"] == pytest.approx(entries[0]["logprob"])  # greedy: the likeliest


def test_a_prompt_longer_than_its_window_is_a_400(local: Gateway) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "apples " * 500}]}
    told = httpx2.post(f"{local.url}/v1/chat/completions", json=body, timeout=PATIENCE)
    assert told.status_code == 400
    assert told.json()["error"]["code"] == "context_length_exceeded"
    assert f"maximum context length is {WINDOW} tokens" in told.json()["error"]["message"]


def test_a_missing_model_folder_is_told_with_its_line(tmp_path: Path) -> None:
    import json

    plan = cascade("http://127.0.0.1:1/v1")
    plan["tiers"][1]["engine"] = {"kind": "local", "model": "./gone"}
    (tmp_path / "cascade.yaml").write_text(json.dumps(plan, indent=1))
    code, _, err = confgate_ends("serve", "-c", str(tmp_path / "cascade.yaml"))
    assert code == 1
    assert "tiers[1].engine.model: " in err
    assert "gone" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool"])
def test_no_role_upsets_it(role: str, local: Gateway) -> None:
    body = {"model": "tiny", "messages": [{"role": role, "content": "a\x00b ☃"}], "max_tokens": 2}
    assert httpx2.post(f"{local.url}/v1/chat/completions", json=body, timeout=PATIENCE).status_code == 200
