"""The shipped weights do what their card says."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from eval.datasets import pocket
from eval.grade import Grade, grade
from eval.pocket.card import FIRST
from gateway.engines.local import Options, open_engine
from gateway.nouns import Ask, Message

FOLDER = Path(__file__).parents[2] / "deploy/pocket"
CARD = json.loads((FOLDER / "accuracy.json").read_text())["models"]
MODELS = sorted(path.name for path in (FOLDER / "models").iterdir())


async def right(model: str, problems: list[pocket.Problem]) -> int:
    engine = await open_engine(Options(model=str(FOLDER / "models" / model), max_batch=64, threads=1), name=model)
    try:
        asks = [Ask((Message("user", problem.text),), 0.0, 256, evidence=False) for problem in problems]
        completions = await asyncio.gather(*(engine.complete(ask) for ask in asks))
    finally:
        await engine.close()
    graded = [grade(c.text, str(p.answer), c.finish) for c, p in zip(completions, problems, strict=True)]
    return sum(one.grade is Grade.RIGHT for one in graded)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_accuracy_is_the_cards_within_two_points(model: str) -> None:
    told = CARD[model]["test"]["first"]
    measured = asyncio.run(right(model, list(pocket.problems("test", FIRST))))
    assert told["n"] == FIRST
    assert abs(measured - told["right"]) <= 0.02 * FIRST


def test_the_ladder_rises_and_every_shift_is_harder_for_somebody() -> None:
    ladder = sorted(MODELS, key=lambda model: (FOLDER / "models" / model / "model.safetensors").stat().st_size)
    rate = {m: {split: CARD[m][split]["right"] / CARD[m][split]["n"] for split in CARD[m]} for m in ladder}
    assert [rate[m]["test"] for m in ladder] == sorted(rate[m]["test"] for m in ladder)
    for split in ("more_steps", "larger_numbers", "reworded"):
        assert all(rate[model][split] < rate[model]["test"] for model in ladder)


def test_weights_are_small_and_16_bit() -> None:
    total = 0
    for model in MODELS:
        path = FOLDER / "models" / model / "model.safetensors"
        total += sum(file.stat().st_size for file in path.parent.iterdir())
        with safe_open(path, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F16"}  # noqa: SIM118  no iterator
    assert total < 8_000_000


def test_plain_transformers_loads_each_model_and_its_chat_template() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for model in MODELS:
        network = AutoModelForCausalLM.from_pretrained(FOLDER / "models" / model)
        tokenizer = AutoTokenizer.from_pretrained(FOLDER / "models" / model)
        assert network.config.model_type == "qwen2"
        told = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
        )
        assert told == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer(told, add_special_tokens=False)["input_ids"]
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") == tokenizer.eos_token_id
        assert tokenizer.decode(ids) == told
