"""Model folders of a published shape, with no weights and a made-up tokenizer of the same size.

Speed and memory depend on the shape alone. The tokenizer has as many tokens as Qwen2.5's, each a few letters long, so
that turning tokens into text costs what it costs there.
"""

from __future__ import annotations

import itertools
import json
import shutil
import string
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIGS = Path(__file__).parents[2] / "deploy/qwen2.5/models"
ORDINARY_TOKENS = 151643  # Qwen2.5's, before its special tokens
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Tokenizer:
    """Byte-level BPE: all bytes, all pairs of letters and digits, and as many triples as there is room for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = string.ascii_letters + string.digits + "Ġ"
    pairs = ["".join(two) for two in itertools.product(letters, repeat=2)]
    merges = [(pair[0], pair[1]) for pair in pairs]
    room = ORDINARY_TOKENS - len(alphabet) - len(pairs)
    triples = list(itertools.islice(itertools.product(pairs, letters), room))
    merges += triples
    words = [*alphabet, *pairs, *("".join(two) for two in triples)]
    made = Tokenizer(models.BPE({word: n for n, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


def folder(name: str, into: Path) -> Path:
    """A model folder for `vllm serve --load-format dummy`. name: as in deploy/qwen2.5/models."""
    out = into / name
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(CONFIGS / name / "config.json", out / "config.json")
    tokenizer().save(str(out / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHATML,
        "model_max_length": 32768,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(told))
    return out
