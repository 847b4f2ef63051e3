"""A model's dimensions from its config.json, and how many parameters follow from them. No weights are needed."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError

VOCAB_PADDING = 64  # rows of an embedding in vLLM come in multiples of this


@dataclass(frozen=True, slots=True)
class Family:
    """Where decoders of the same plan differ. qkv_bias: q, k and v have biases.  qk_norm: q and k have a norm each."""

    qkv_bias: bool = False
    qk_norm: bool = False


FAMILIES = {
    "Qwen2ForCausalLM": Family(qkv_bias=True),
    "Qwen3ForCausalLM": Family(qk_norm=True),
    "LlamaForCausalLM": Family(),
    "MistralForCausalLM": Family(),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder with grouped-query attention and a gated MLP."""

    family: Family
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    tied: bool

    @property
    def linear(self) -> int:
        """Parameters of the projections in all layers, without biases: those that fp8 makes smaller."""
        return self.linear_on(1)

    def linear_on(self, gpus: int) -> int:
        """The same on each of so many GPUs; k and v heads are copied when there are fewer than GPUs."""
        q, kv = self.heads * self.head_dim // gpus, self.kv_on(gpus) * self.head_dim
        return self.layers * (self.hidden * (2 * q + 2 * kv) + 3 * self.hidden * self.intermediate // gpus)

    def small_on(self, gpus: int) -> int:
        """Biases and norms on each GPU; norms are on all of them."""
        biases = (self.heads // gpus + 2 * self.kv_on(gpus)) * self.head_dim if self.family.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.family.qk_norm else 0)
        return self.layers * (biases + norms) + self.hidden

    def vocabulary_on(self, gpus: int, *, padded: bool = True) -> int:
        """Embedding, and the output layer where it is not the same."""
        rows = -(-self.vocab // VOCAB_PADDING) * VOCAB_PADDING if padded else self.vocab
        return rows // gpus * self.hidden * (1 if self.tied else 2)

    def kv_on(self, gpus: int) -> int:
        return max(1, self.kv_heads // gpus)

    @property
    def parameters(self) -> int:
        """As a checkpoint has them: tied embeddings once, nothing padded."""
        return self.linear + self.small_on(1) + self.vocabulary_on(1, padded=False)


def shape(config: Mapping[str, Any], where: str) -> Shape:
    """The dimensions in a config.json. Raises ConfigError for a model that we cannot plan for."""
    names = config.get("architectures") or ["nothing"]
    if names[0] not in FAMILIES:
        raise ConfigError(f"{where}: cannot plan for the architecture {names[0]}; can for {', '.join(FAMILIES)}")
    if "quantization_config" in config:
        raise ConfigError(f"{where}: cannot plan for a checkpoint quantised already, only for fp8 while loading")
    try:
        heads = int(config["num_attention_heads"])
        found = Shape(
            family=FAMILIES[names[0]],
            hidden=int(config["hidden_size"]),
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: not the config.json of a model: {error!r}") from None
    if min(found.hidden, found.intermediate, found.layers, found.heads, found.kv_heads, found.vocab) < 1:
        raise ConfigError(f"{where}: a dimension below 1")
    if found.heads % found.kv_heads:
        raise ConfigError(f"{where}: {found.heads} heads cannot share {found.kv_heads} key-value heads")
    return found


def read(model: str, *, revision: str | None, config: Path | None, environ: Mapping[str, str] = os.environ) -> Shape:
    """The shape of a model folder, or of a hub name by a config.json given or found in the hub's cache.

    A folder's weights, where they are there, are counted: ConfigError when they are not those of its config.json.
    """
    path = config or find_config(model, revision, environ)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not the config.json of a model")
    found = shape(raw, str(path))
    if Path(model).is_dir():
        counted = stored_parameters(Path(model))
        if counted is not None and counted != found.parameters:
            raise ConfigError(
                f"{model}: its safetensors hold {counted:,} parameters, its config.json says {found.parameters:,}"
            )
    return found


def find_config(model: str, revision: str | None, environ: Mapping[str, str]) -> Path:
    """Where a model's config.json is on this machine. Nothing is downloaded."""
    if Path(model).is_dir():
        return Path(model) / "config.json"
    home = Path(environ.get("HF_HOME") or Path(environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    hub = Path(environ.get("HF_HUB_CACHE") or home / "hub").expanduser() / f"models--{model.replace('/', '--')}"
    commit = revision or "main"
    ref = hub / "refs" / commit
    if ref.is_file():
        commit = ref.read_text(encoding="utf-8").strip()
    path = hub / "snapshots" / commit / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"the dimensions of {model} are not on this machine ({path}); name its config.json with serve.config, "
            f"or fetch it: hf download {model} config.json" + (f" --revision {revision}" if revision else "")
        )
    return path


def stored_parameters(folder: Path) -> int | None:
    """How many numbers the safetensors of a folder hold, by their headers; absent without such files.

    A tied output layer that was stored all the same is not counted twice.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return None
    sizes: dict[str, int] = {}
    for file in files:
        sizes |= {name: prod(tensor["shape"]) for name, tensor in header(file).items()}
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("tie_word_embeddings", False):
        sizes.pop("lm_head.weight", None)
    return sum(size for name, size in sizes.items() if not re.search(r"rotary_emb\.inv_freq$", name))


def header(file: Path) -> dict[str, Any]:
    """The tensors that a safetensors file says it has. Raises ConfigError where it is none."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > file.stat().st_size:
                raise ValueError("the header is longer than the file")
            found = json.loads(opened.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise ConfigError(f"{file} is no safetensors file: {error}") from None
    return {name: tensor for name, tensor in found.items() if name != "__metadata__"}
