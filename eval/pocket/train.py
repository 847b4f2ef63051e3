"""Train the pocket ladder: four Qwen2-architecture models, from scratch, on generated word problems.

    python -m eval.pocket.train --out deploy/pocket/models                # the ladder that is shipped
    python -m eval.pocket.train --out runs/x --rungs nano,micro          # some rungs
    python -m eval.pocket.train --out runs/x --steps 50 --problems 2000  # a rehearsal, also on a CPU

Rungs train side by side, one process each. Every process logs loss and accuracy to OUT/pocket-<rung>/training.jsonl.
The loss is taken on the answer alone. Weights are saved as float16 safetensors beside the tokenizer and a generation
config. The same seed gave the same losses on one H200 run after run.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn import functional
from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM

from eval.datasets import pocket
from eval.pocket.tokenizer import train_tokenizer

VOCABULARY = 1024
WINDOW_TOKENS = 1024
TOKENIZER_PROBLEMS = 20_000


@dataclass(frozen=True, slots=True)
class Rung:
    """One size, and how long it learns: the larger ones stop early, or they would make no mistakes to learn from."""

    hidden: int
    layers: int
    heads: int
    feed_forward: int
    learning_rate: float
    steps: int


LADDER = {
    "nano": Rung(48, 2, 2, 144, 5e-3, 4500),
    "micro": Rung(64, 2, 2, 192, 4e-3, 3800),
    "small": Rung(96, 2, 3, 256, 3e-3, 4100),
    "base": Rung(192, 3, 6, 512, 2e-3, 1900),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What all rungs of one run share."""

    out: Path
    steps: int | None
    batch: int
    problems: int
    seed: int
    device: str
    evaluate: int


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Training problems as token rows. tokens: (N, L) padded on the right; begins, ends: (N,) span of the answer."""

    tokens: np.ndarray[Any, np.dtype[np.int16]]
    begins: np.ndarray[Any, np.dtype[np.int32]]
    ends: np.ndarray[Any, np.dtype[np.int32]]


def main(argv: list[str] | None = None) -> int:
    args = _arguments().parse_args(argv)
    rungs = args.rungs.split(",") if args.rungs else list(LADDER)
    if unknown := [name for name in rungs if name not in LADDER]:
        sys.exit(f"no rung {', '.join(unknown)}; have {', '.join(LADDER)}")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    plan = Plan(args.out, args.steps, args.batch, args.problems, args.seed, device, args.evaluate)
    began = time.monotonic()
    tokenizer = train_tokenizer(
        (p.text + "\n" + p.chain for p in _draw("train", TOKENIZER_PROBLEMS, seed=plan.seed)), VOCABULARY
    )
    for rung in rungs:
        tokenizer.save_pretrained(folder(plan, rung))
    corpus = plan.out / "corpus.npz"
    np.savez(corpus, **asdict(tokenize(tokenizer, plan)))
    print(f"{plan.problems} problems ready after {time.monotonic() - began:.0f} s", flush=True)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train, args=(rung, plan, corpus)) for rung in rungs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    corpus.unlink()
    print(f"done after {time.monotonic() - began:.0f} s", flush=True)
    return max((abs(worker.exitcode or 0) for worker in workers), default=0)


def _draw(split: str, n: int, *, seed: int, start: int = 0) -> Iterator[pocket.Problem]:
    return (pocket.problem(split, index, seed=seed) for index in range(start, start + n))


def _draw_block(block: tuple[int, int, int]) -> list[tuple[str, str]]:
    start, n, seed = block
    return [(p.text, p.chain) for p in _draw("train", n, seed=seed, start=start)]


def tokenize(tokenizer: Any, plan: Plan) -> Corpus:
    """The training problems in chat form, as token rows."""
    block = 5_000
    blocks = [(start, min(block, plan.problems - start), plan.seed) for start in range(0, plan.problems, block)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pairs = [pair for part in pool.imap(_draw_block, blocks) for pair in part]
    asks = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
        for text, _ in pairs
    ]
    asked = tokenizer(asks, add_special_tokens=False)["input_ids"]
    told = tokenizer([chain + tokenizer.eos_token for _, chain in pairs], add_special_tokens=False)["input_ids"]
    width = max(len(ask) + len(tell) for ask, tell in zip(asked, told, strict=True))
    tokens = np.zeros((len(pairs), width), dtype=np.int16)
    for row, (ask, tell) in enumerate(zip(asked, told, strict=True)):
        tokens[row, : len(ask) + len(tell)] = ask + tell
    begins = np.array([len(ask) for ask in asked], dtype=np.int32)
    return Corpus(tokens, begins, begins + np.array([len(tell) for tell in told], dtype=np.int32))


def train(name: str, plan: Plan, corpus_file: Path) -> None:
    """Train one rung and save it. Its own process; deterministic but for the order in which a GPU adds."""
    rung, corpus = LADDER[name], Corpus(**np.load(corpus_file))
    torch.manual_seed(plan.seed)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 4))
    tokenizer = AutoTokenizer.from_pretrained(folder(plan, name))
    model = Qwen2ForCausalLM(config_of(rung, tokenizer)).to(plan.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rung.learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=plan.device == "cuda"
    )
    began, log = time.monotonic(), (folder(plan, name) / "training.jsonl").open("w")
    steps = plan.steps or rung.steps
    for step, rows in enumerate(batches(corpus, steps, plan)):
        for group in optimizer.param_groups:
            group["lr"] = rung.learning_rate * schedule(step, steps)
        loss = answer_loss(model, corpus, rows, plan.device)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            line = {"rung": name, "step": step, "loss": round(loss.item(), 5), "seconds": time.monotonic() - began}
            if step % 500 == 0 or step == steps - 1:
                line["accuracy"] = accuracy(model, tokenizer, plan, "validation")
                print(json.dumps(line), flush=True)
            print(json.dumps(line), file=log, flush=True)
    model.half()
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder(plan, name))
    note = {
        "rung": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        **asdict(rung),
        **{key: str(value) for key, value in asdict(plan).items()},
        "seconds": time.monotonic() - began,
        "machine": torch.cuda.get_device_name() if plan.device == "cuda" else platform.processor(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder(plan, name) / "training.json").write_text(json.dumps(note, indent=1) + "\n")


def folder(plan: Plan, rung: str) -> Path:
    return plan.out / f"pocket-{rung}"


def config_of(rung: Rung, tokenizer: Any) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=rung.hidden,
        intermediate_size=rung.feed_forward,
        num_hidden_layers=rung.layers,
        num_attention_heads=rung.heads,
        num_key_value_heads=rung.heads,
        max_position_embeddings=WINDOW_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over 3 %, then a cosine to zero."""
    warm = max(1, steps * 3 // 100)
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def batches(corpus: Corpus, steps: int, plan: Plan) -> Iterator[np.ndarray[Any, Any]]:
    """Row numbers for each step. Rows of like length go together, so that little of a batch is padding."""
    rng = np.random.default_rng(plan.seed)
    made, per_draw = 0, 16
    while True:
        draw = rng.choice(corpus.ends.size, size=min(plan.batch * per_draw, corpus.ends.size), replace=False)
        draw = draw[np.argsort(corpus.ends[draw], kind="stable")]
        chunks = [draw[start : start + plan.batch] for start in range(0, draw.size, plan.batch)]
        for number in rng.permutation(len(chunks)):
            if made == steps:
                return
            made += 1
            yield chunks[number]


def answer_loss(model: Any, corpus: Corpus, rows: np.ndarray[Any, Any], device: str) -> torch.Tensor:
    """Mean log-loss per answer token of one batch."""
    begins, ends = corpus.begins[rows], corpus.ends[rows]
    tokens = torch.from_numpy(corpus.tokens[rows, : ends.max()].astype(np.int64)).to(device, non_blocking=True)
    place = np.arange(ends.max() - 1)
    asked = torch.from_numpy((place >= begins[:, None] - 1) & (place < ends[:, None] - 1)).to(device)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state[asked]
        logits = model.lm_head(hidden)
    return functional.cross_entropy(logits.float(), tokens[:, 1:][asked])


@torch.no_grad()  # type: ignore[untyped-decorator]
def accuracy(model: Any, tokenizer: Any, plan: Plan, split: str) -> float:
    """Share of greedy answers that end in the right number."""
    problems = list(pocket.problems(split, plan.evaluate))
    model.eval()
    told = [
        tokenizer.apply_chat_template([{"role": "user", "content": p.text}], add_generation_prompt=True, tokenize=False)
        for p in problems
    ]
    asked = tokenizer(told, padding=True, padding_side="left", return_tensors="pt", add_special_tokens=False)
    with torch.autocast(plan.device, dtype=torch.bfloat16, enabled=plan.device == "cuda"):
        tokens = model.generate(
            **{key: asked[key].to(plan.device) for key in ("input_ids", "attention_mask")},
            max_new_tokens=200,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )[:, asked["input_ids"].shape[1] :]
    model.train()
    answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    right = sum(a.rsplit("#### ", 1)[-1].strip() == str(p.answer) for a, p in zip(answers, problems, strict=True))
    return float(right) / len(problems)


def _arguments() -> argparse.ArgumentParser:
    cli = argparse.ArgumentParser(prog="python -m eval.pocket.train", description="Train the pocket ladder.")
    cli.add_argument("--out", type=Path, required=True, help="folder that gets one folder a rung")
    cli.add_argument("--rungs", help=f"comma-separated, of {','.join(LADDER)} (default: all)")
    cli.add_argument("--steps", type=int, help="for a rehearsal: the same for all rungs")
    cli.add_argument("--batch", type=int, default=512, help="problems a step")
    cli.add_argument("--problems", type=int, default=300_000, help="distinct training problems")
    cli.add_argument("--evaluate", type=int, default=500, help="validation problems for the logged accuracy")
    cli.add_argument("--seed", type=int, default=pocket.SEED)
    cli.add_argument("--device", help="cuda or cpu (default: cuda where there is one)")
    return cli


if __name__ == "__main__":
    sys.exit(main())
