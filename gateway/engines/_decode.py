"""Token-by-token generation with a causal language model, watched: raw log-probs are kept at every step.

Plain torch and transformers, no asyncio: `local.py` runs it in a thread. Rows are prefilled together, join the batch
that is running, step together, and leave as they end or are cancelled. Everything measured is measured on the raw
logits, before temperature, penalties or bias, as vLLM's `raw_logprobs` mode does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import decoders
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache
from transformers.utils import logging as transformers_log

from gateway.nouns import GREEDY, Sampling

# The 256 stand-ins that byte-level tokenizers (GPT-2, Qwen, Llama 3) write bytes as: printable bytes stand for
# themselves, the rest follow from U+0100 in order.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in set(_PRINTABLE)]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_HIDDEN)}


@dataclass(slots=True, eq=False)
class Row:
    """One request on its way through the model. `cancelled` may be set from any thread; the rest is the decoder's."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    top_k: int
    cancelled: bool = False
    tokens: list[int] = field(default_factory=list)
    chosen_nats: list[float] = field(default_factory=list)
    top_nats: list[np.ndarray[Any, Any]] = field(default_factory=list)
    top_tokens: list[np.ndarray[Any, Any]] = field(default_factory=list)
    end_nats: float | None = None
    cut: bool = False
    text: str | None = None
    generator: torch.Generator | None = None


class Decoder:
    """A loaded model with its tokenizer. path: a folder, or a hub name where the hub can be reached."""

    def __init__(self, path: str, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None) -> None:
        transformers_log.disable_progress_bar()  # loading is told by our own log line
        self.tokenizer = AutoTokenizer.from_pretrained(path, revision=revision)
        self.model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype=getattr(torch, dtype))
        self.model.to(device).eval()
        self.device = device
        self.end_tokens = _end_tokens(self.model, self.tokenizer)
        self.window_tokens = int(self.model.config.max_position_embeddings)
        self.tells_tokens_apart = isinstance(self.tokenizer.backend_tokenizer.decoder, decoders.ByteLevel)

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation under the model's own chat template, ready for the answer to begin."""
        told = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(told, add_special_tokens=False)["input_ids"])

    def encode_raw(self, text: str) -> list[int]:
        """Token ids of a text to go on with; a beginning mark where the model has one, as vLLM adds it."""
        return list(self.tokenizer(text)["input_ids"])

    def token_bytes(self, tokens: Sequence[int]) -> tuple[bytes, ...]:
        """Each token's bytes; joined they are the UTF-8 text of the whole."""
        if self.tells_tokens_apart:
            return tuple(self._bytes_of(piece) for piece in self.tokenizer.convert_ids_to_tokens(list(tokens)))
        told = [self.tokenizer.decode(tokens[: n + 1]).rstrip("�").encode() for n in range(len(tokens))]
        return tuple(now[len(before) :] for before, now in zip([b"", *told], told, strict=False))

    def _bytes_of(self, piece: str | None) -> bytes:
        if piece is None:  # Qwen2.5 pads its vocabulary: the last ids have no token
            return b""
        if all(character in BYTE_OF for character in piece):
            return bytes(BYTE_OF[character] for character in piece)
        return piece.encode()  # an added token, written as itself

    def text_of(self, tokens: Sequence[int]) -> str:
        return b"".join(self.token_bytes(tokens)).decode("utf-8", errors="replace")

    def start(self, rows: Sequence[Row]) -> Batch:
        return Batch(self, list(rows))


class Batch:
    """Rows that step together. `step` makes one token for each and returns the rows that ended by it.

    Prompts are padded on the left, so that the newest token of every row stands in the last column.
    """

    def __init__(self, decoder: Decoder, rows: list[Row]) -> None:
        self.decoder, self.rows = decoder, rows
        for row in rows:
            if row.sampling.seed is not None:
                row.generator = torch.Generator(device=decoder.device).manual_seed(row.sampling.seed)
        width = max(len(row.prompt) for row in rows)
        filler = next(iter(decoder.end_tokens), 0)
        padded = [[filler] * (width - len(row.prompt)) + row.prompt for row in rows]
        real = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        self._tokens = torch.tensor(padded, device=decoder.device)
        self._mask = torch.tensor(real, device=decoder.device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache = DynamicCache(config=decoder.model.config)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def step(self) -> list[Row]:
        self._keep([n for n, row in enumerate(self.rows) if not row.cancelled])
        if not self.rows:
            return []
        logits = self.decoder.model(
            input_ids=self._tokens,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, :]
        picked = self._note(logits.float())
        going = [not self._ends(row, token) for row, token in zip(self.rows, picked, strict=True)]
        ended = [row for row, goes in zip(self.rows, going, strict=True) if not goes]
        self._tokens = torch.tensor(picked, device=self.decoder.device)[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = functional.pad(self._mask, (0, 1), value=1)
        self._keep([n for n, goes in enumerate(going) if goes])
        return ended

    def can_take(self, other: Batch) -> bool:
        """Whether another batch, which has stepped too, can join this one: not where a layer forgets old tokens."""
        return bool(self.rows and other.rows) and not any(layer.is_sliding for layer in self._cache.layers)

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def take(self, other: Batch) -> None:
        """Let the other's rows join; the shorter of the two gets more padding on its left."""
        width = max(self._mask.shape[1], other._mask.shape[1])
        for mine, theirs in zip(self._cache.layers, other._cache.layers, strict=True):
            mine.keys = torch.cat([_widen(mine.keys, width - 1), _widen(theirs.keys, width - 1)])
            mine.values = torch.cat([_widen(mine.values, width - 1), _widen(theirs.values, width - 1)])
        masks = [functional.pad(batch._mask, (width - batch._mask.shape[1], 0)) for batch in (self, other)]
        self._mask = torch.cat(masks)
        self._tokens = torch.cat([self._tokens, other._tokens])
        self._positions = torch.cat([self._positions, other._positions])
        self.rows += other.rows

    def _note(self, logits: torch.Tensor) -> list[int]:
        """Choose each row's next token and write down what the raw distribution said. logits: (rows, V)."""
        nats = torch.log_softmax(logits, dim=-1)
        picked: list[int] = logits.argmax(dim=-1).tolist()
        for n, row in enumerate(self.rows):
            if not row.sampling.draws_like(GREEDY):
                picked[n] = _pick(row, logits[n])
        chosen = nats.gather(1, torch.tensor(picked, device=logits.device)[:, None])[:, 0].tolist()
        width = min(max(row.top_k for row in self.rows), logits.shape[1])
        if width:
            values, tokens = (part.cpu().numpy() for part in nats.topk(width, dim=-1))
        for n, (row, token) in enumerate(zip(self.rows, picked, strict=True)):
            if token in self.decoder.end_tokens:
                row.end_nats = chosen[n]
                continue
            row.tokens.append(token)
            row.chosen_nats.append(chosen[n])
            if row.top_k:
                row.top_nats.append(values[n, : row.top_k])
                row.top_tokens.append(tokens[n, : row.top_k])
        return picked

    def _ends(self, row: Row, token: int) -> bool:
        if token in self.decoder.end_tokens:
            row.text = self.decoder.text_of(row.tokens)
            return True
        if row.sampling.stop and (stop := self._stop_string(row)) is not None:
            row.text = stop
            return True
        if len(row.tokens) >= row.max_tokens:
            row.cut, row.text = True, self.decoder.text_of(row.tokens)
            return True
        return False

    def _stop_string(self, row: Row) -> str | None:
        """The text up to the first stop string, when one has appeared; the tokens behind it are dropped too."""
        text = self.decoder.text_of(row.tokens)
        found = [at for stop in row.sampling.stop if (at := text.find(stop)) >= 0]
        if not found:
            return None
        kept = text[: min(found)]
        while row.tokens and len(self.decoder.text_of(row.tokens[:-1]).encode()) >= len(kept.encode()):
            for kept_list in (row.tokens, row.chosen_nats, row.top_nats, row.top_tokens):
                if kept_list:
                    kept_list.pop()
        return kept

    def _keep(self, kept: list[int]) -> None:
        """Drop the other rows, and the columns that no row left uses."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[n] for n in kept]
        if not self.rows:
            return
        index = torch.tensor(kept, device=self.decoder.device)
        self._tokens, self._positions = self._tokens[index], self._positions[index]
        self._mask = self._mask[index]
        if self._cache.get_seq_length():
            unused = int(self._mask.any(dim=0).to(torch.int8).argmax())
            self._mask = self._mask[:, unused:]
            for layer in self._cache.layers:
                first = 0 if layer.is_sliding else unused
                layer.keys, layer.values = layer.keys[index, :, first:], layer.values[index, :, first:]


def _widen(states: torch.Tensor, width: int) -> torch.Tensor:
    """Keys or values (rows, heads, T, D) with zeros on the left of T up to width; the mask hides them."""
    return functional.pad(states, (0, 0, width - states.shape[2], 0))


def _pick(row: Row, logits: torch.Tensor) -> int:
    """The next token under the row's sampler. logits: (V,), raw."""
    sampling = row.sampling
    scores = logits
    if sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty:
        scores = logits.clone()
        for token, bias in sampling.logit_bias:
            if token < scores.shape[0]:  # of a token that there is not, nothing can be more likely
                scores[token] += bias
        if row.tokens:
            used, counts = torch.tensor(row.tokens, device=logits.device).unique(return_counts=True)
            scores[used] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if sampling.temperature == 0.0:
        return int(scores.argmax())
    chances, order = torch.softmax(scores / sampling.temperature, dim=-1).sort(descending=True)
    outside = chances.cumsum(0) - chances >= sampling.top_p  # the first token is always inside
    chances[outside] = 0.0
    chances[0] = chances[0].clamp(min=1e-9)
    return int(order[torch.multinomial(chances, 1, generator=row.generator)])


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    told = model.generation_config.eos_token_id
    ends = {*(told if isinstance(told, list) else [told]), tokenizer.eos_token_id}
    return frozenset(int(token) for token in ends if token is not None)


def weight_files(folder: Path) -> list[Path]:
    """The files a model folder's behaviour depends on, tokenizer and templates aside."""
    return [path for pattern in ("config.json", "*.safetensors") for path in sorted(folder.glob(pattern))]
