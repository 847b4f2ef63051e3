"""The in-process engine against plain transformers, on a tiny random model."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from eval.pocket.tokenizer import train_tokenizer
from gateway.engines.local import LocalEngine, Options, open_engine
from gateway.errors import ConfigError, EngineDown, EngineTooSmall
from gateway.nouns import Ask, Finish, Message, Piece, Sampling, Source
from tests.faults.gateway import PATIENCE

TEXTS = ["Mia has 12 apples and buys 30 more.", "Ünïcode: 5 × 3 = 15 🍎", "The end #### 7"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights sharp enough to say varied things."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-random"
    tokenizer = train_tokenizer(TEXTS, 320)
    tokenizer.save_pretrained(path)
    torch.manual_seed(3)
    config = Qwen2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.6,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, do_sample=False)
    model.save_pretrained(path)
    return path


def ask(text: str, **fields: object) -> Ask:
    return Ask((Message("user", text),), deadline=1e9, **{"max_tokens": 24, "top_k": 5, **fields})


async def opened(folder: Path, **options: object) -> LocalEngine:
    return await open_engine(Options(model=str(folder), **options), name="tiny")


def test_values_are_those_of_plain_transformers_on_the_same_tokens(folder: Path) -> None:
    """Batched with mixed lengths, each answer gets its own log-probs: recomputed alone, without cache or padding."""

    async def go() -> None:
        engine = await opened(folder)
        try:
            completions = await asyncio.gather(*(engine.complete(ask(text * n)) for n, text in enumerate(TEXTS, 1)))
            decoder = engine._decoder
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            for n, (text, completion) in enumerate(zip(TEXTS, completions, strict=True), 1):
                trace = completion.trace
                assert trace is not None
                assert trace.top is not None
                assert trace.source is Source.TOP_LOGPROBS
                prompt = decoder.encode([{"role": "user", "content": text * n}])
                plain = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :]
                told = [int(t) for t in plain if int(t) not in decoder.end_tokens]
                assert b"".join(trace.tokens) == b"".join(decoder.token_bytes(told))
                with torch.inference_mode():
                    logits = model(torch.tensor([prompt + told])).logits[0, len(prompt) - 1 : -1]
                nats = torch.log_softmax(logits, -1)
                chosen = nats[range(len(told)), told].numpy()
                np.testing.assert_allclose(trace.chosen, chosen, atol=2e-4)
                np.testing.assert_allclose(trace.top, nats.topk(5).values.numpy(), atol=2e-4)
        finally:
            await engine.close()

    asyncio.run(go())


def test_token_bytes_join_to_the_text_even_inside_a_character(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        try:
            decoder = engine._decoder
            text = "Ünï 🍎 #### 15"
            tokens = decoder.tokenizer(text)["input_ids"]
            pieces = decoder.token_bytes(tokens)
            assert b"".join(pieces).decode() == text
            assert len(pieces) == len(tokens)
            decoder.tells_tokens_apart = False  # the way that works for every other kind of tokenizer
            assert b"".join(decoder.token_bytes(tokens)).decode() == text
        finally:
            await engine.close()

    asyncio.run(go())


def test_a_cut_answer_says_so_and_has_no_end_token(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        try:
            completion = await engine.complete(ask(TEXTS[0], max_tokens=3))
            assert completion.finish is Finish.LENGTH
            assert completion.completion_tokens == 3
            assert completion.trace is not None
            assert completion.trace.end_nats is None
        finally:
            await engine.close()

    asyncio.run(go())


@pytest.mark.parametrize("stop_at", [None, 3, 7])
@pytest.mark.parametrize("apart", [True, False])
def test_a_streamed_answer_is_the_whole_one_token_by_token(folder: Path, stop_at: int | None, apart: bool) -> None:
    async def go() -> None:
        engine = await opened(folder)
        engine._decoder.tells_tokens_apart = apart
        pieces: list[Piece] = []

        async def hear(piece: Piece) -> None:
            pieces.append(piece)

        try:
            text = (await engine.complete(ask(TEXTS[0]))).text
            stop = () if stop_at is None else (text[stop_at : stop_at + 4],)
            asked = ask(TEXTS[0], sampling=Sampling(stop=stop))
            whole, told = await engine.complete(asked), await engine.stream(asked, hear)
        finally:
            await engine.close()
        assert "".join(piece.text for piece in pieces) == told.text == whole.text
        assert len(pieces) > 1
        assert told.trace is not None
        assert whole.trace is not None
        assert told.trace.chosen.tolist() == whole.trace.chosen.tolist()
        stops = [piece.tokens for piece in pieces]
        parts = [piece.trace(a, b) for piece, a, b in zip(pieces, [0, *stops], stops, strict=False) if a < b]
        tokens = [token for part in parts for token in part.tokens]
        assert tokens == list(told.trace.tokens)[: len(tokens)]
        assert stop or len(tokens) == len(told.trace.tokens)
        chosen = np.concatenate([part.chosen for part in parts]).tolist()
        assert chosen == told.trace.chosen.tolist()[: len(chosen)]

    asyncio.run(go())


def test_a_stream_that_is_left_ends_the_work(folder: Path) -> None:
    class Enough(Exception):
        pass

    async def go() -> None:
        engine = await opened(folder)

        async def hear(_: Piece) -> None:
            raise Enough

        try:
            with pytest.raises(Enough):
                await engine.stream(ask(TEXTS[0]), hear)
            async with asyncio.timeout(PATIENCE):
                while engine._jobs:  # noqa: ASYNC110  they end in another thread
                    await asyncio.sleep(0.01)
        finally:
            await engine.close()

    asyncio.run(go())


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        try:
            whole = (await engine.complete(ask(TEXTS[0]))).text
            stop = whole[4:6]
            completion = await engine.complete(ask(TEXTS[0], sampling=Sampling(stop=(stop,))))
            assert completion.text == whole[: whole.find(stop)]
            assert completion.finish is Finish.STOP
        finally:
            await engine.close()

    asyncio.run(go())


def test_sampling_is_repeatable_by_seed_and_differs_between_seeds(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        try:
            drawn = [
                (await engine.complete(ask(TEXTS[0], sampling=Sampling(temperature=1.5, top_p=0.95, seed=seed)))).text
                for seed in (1, 1, 2)
            ]
            assert drawn[0] == drawn[1] != drawn[2]
        finally:
            await engine.close()

    asyncio.run(go())


def test_a_prompt_longer_than_the_window_is_refused_with_both_lengths(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        try:
            with pytest.raises(EngineTooSmall, match="maximum context length is 128 tokens") as caught:
                await engine.complete(ask("apple " * 200))
            assert caught.value.prompt_tokens is not None
            assert caught.value.prompt_tokens > 128
        finally:
            await engine.close()

    asyncio.run(go())


def test_a_cancelled_request_leaves_and_the_others_stay(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        try:
            alone = (await engine.complete(ask(TEXTS[1], max_tokens=60))).text
            left = [False]
            while not all(left):  # on a slow machine the answers may be there before anybody leaves
                tasks = [asyncio.create_task(engine.complete(ask(TEXTS[n % 3], max_tokens=60))) for n in range(6)]
                await asyncio.sleep(0.03)
                left = [tasks[n].cancel() for n in (0, 2, 3)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(r, asyncio.CancelledError) for r in results] == [True, False, True, True, False, False]
            assert results[1].text == results[4].text == alone
        finally:
            await engine.close()

    asyncio.run(go())


def test_more_requests_than_seats_all_get_answered(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder, max_batch=3)
        try:
            texts = [c.text for c in await asyncio.gather(*(engine.complete(ask(TEXTS[n % 3])) for n in range(11)))]
            assert all(texts[n] == texts[n % 3] for n in range(11))
        finally:
            await engine.close()

    asyncio.run(go())


def test_closing_fails_what_is_in_flight_and_refuses_what_comes_later(folder: Path) -> None:
    async def go() -> None:
        engine = await opened(folder)
        task = asyncio.create_task(engine.complete(ask(TEXTS[0], max_tokens=100)))
        while task.done() or not engine._jobs:  # until one is in flight
            task = task if not task.done() else asyncio.create_task(engine.complete(ask(TEXTS[0], max_tokens=100)))
            await asyncio.sleep(0)
        await engine.close()
        with pytest.raises(EngineDown):
            await task
        with pytest.raises(EngineDown):
            await engine.complete(ask("late"))
        assert not await engine.ready()

    asyncio.run(go())


def test_the_fingerprint_changes_with_one_weight(folder: Path, tmp_path: Path) -> None:
    async def print_of(path: Path) -> dict[str, str]:
        engine = await opened(path)
        try:
            return dict(await engine.fingerprint())
        finally:
            await engine.close()

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    twin = tmp_path / "tiny-random"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / "tiny-random").mkdir(exist_ok=True)
        (twin / name).write_bytes((folder / name).read_bytes())
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 0.5
    model.save_pretrained(twin)
    first, second = asyncio.run(print_of(folder)), asyncio.run(print_of(twin))
    assert {key for key in first if first[key] != second[key]} == {"weights"}


def test_a_missing_model_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    for model in ("./no-such-model", "models/no-such-model", "no-such-model"):
        with pytest.raises(ValueError, match="no-such-model"):
            Options(model=model)
    assert Options(model="Qwen/Qwen2.5-0.5B-Instruct").model == "Qwen/Qwen2.5-0.5B-Instruct"  # a name on the hub


def test_an_unloadable_model_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="cannot load model"):
        asyncio.run(opened(tmp_path))
