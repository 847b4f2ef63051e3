"""What one vLLM server takes of each of its GPUs. Weights and KV cache are exact, the rest is an estimate from above.

After vLLM 0.22: `v1/worker/gpu_worker.py`, `v1/core/kv_cache_utils.py`, `config/vllm.py`. Weights and KV cache are what
it logs as "Model loading took", "reserved ... memory for KV Cache" and "GPU KV cache size".
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.errors import ConfigError
from gateway.fleet.settings import Serve
from gateway.fleet.shapes import Shape

GIB = 2**30
MIB = 2**20

BLOCK_TOKENS = 16  # vLLM's default block; we say it, so that the figure is ours
ALLOCATION = 512  # PyTorch rounds every tensor up to this
SCALES_PER_LAYER = 9  # fp8: a scale for each of four projections, and what attention keeps for its cache
CONTEXT_BYTES = 700 * MIB  # CUDA context, cuBLAS workspaces and loaded kernels, none of which PyTorch counts
NCCL_BYTES = 1 * GIB  # communicators and buffers of the custom all-reduce, on each GPU of several
# What the sampler holds for each request and word of the vocabulary at its worst (top-p, top-k and log-probs wanted):
# logits in 2 bytes and in 4, log-softmax twice, a sort's values and 8-byte positions, the softmax of what is left.
SAMPLER_BYTES = 2 + 4 + 4 + 4 + 4 + 8 + 4
PLUGIN_BYTES = 16 * MIB  # from above: our plugin's kernels, tables, and two numbers a token; records lie on the host
GRAPH_LAYER_BYTES = 128 * 1024  # each captured batch size costs about so much per layer


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on each GPU of one server."""

    weights: int
    kv_cache: int
    activations: int
    graphs: int
    context: int
    kv_tokens: int  # what the KV cache holds, over all GPUs of the server

    @property
    def total(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.graphs + self.context


def need(serve: Serve, shape: Shape, *, plugin: bool = False) -> Need:
    """What a server takes of each of its GPUs. plugin: it computes confidence itself.

    Raises ConfigError when it cannot be served as it is written."""
    gpus = serve.tensor_parallel
    if serve.context > shape.positions:
        raise ConfigError(f"{serve.model} has a context of {shape.positions:,} tokens, not {serve.context:,}")
    if shape.heads % gpus or shape.intermediate % gpus or (shape.kv_heads % gpus and gpus % shape.kv_heads):
        raise ConfigError(
            f"{serve.model} cannot be shared by {gpus} GPUs: it has {shape.heads} heads, {shape.kv_heads} for keys and "
            "values"
        )
    tokens = kv_tokens(serve)
    return Need(
        weights=weights(serve, shape),
        kv_cache=tokens * kv_bytes_per_token(serve, shape),
        activations=activations(serve, shape) + (PLUGIN_BYTES if plugin else 0),
        graphs=graphs(serve, shape),
        context=CONTEXT_BYTES + (NCCL_BYTES if gpus > 1 else 0),
        kv_tokens=tokens,
    )


def weights(serve: Serve, shape: Shape) -> int:
    """Bytes of parameters, and of the table of rotations that goes with them ("Model loading took")."""
    gpus, wide = serve.tensor_parallel, 2
    narrow = 1 if serve.quantization == "fp8" else wide
    scales = SCALES_PER_LAYER * shape.layers * ALLOCATION
    rotations = shape.positions * shape.head_dim * wide
    return (
        shape.linear_on(gpus) * narrow + (shape.vocabulary_on(gpus) + shape.small_on(gpus)) * wide + rotations + scales
    )


def kv_bytes_per_token(serve: Serve, shape: Shape) -> int:
    """Keys and values of one token in all layers, on each GPU."""
    return (
        2
        * shape.layers
        * shape.kv_on(serve.tensor_parallel)
        * shape.head_dim
        * (1 if serve.kv_cache_dtype == "fp8" else 2)
    )


def kv_tokens(serve: Serve) -> int:
    """Tokens of KV cache for the wanted concurrency, whole blocks; at least one whole context ("GPU KV cache size").

    vLLM keeps one block for itself; it is here, too, so that the wanted concurrency is really there.
    """
    per_request = -(-(serve.tokens_per_request or serve.context) // BLOCK_TOKENS)
    whole = -(-serve.context // BLOCK_TOKENS)
    return (max(serve.concurrency * per_request, whole) + 1) * BLOCK_TOKENS


def reported_kv_tokens(serve: Serve) -> int:
    """The figure that vLLM logs for these blocks: whole contexts that fit, times the context."""
    blocks = kv_tokens(serve) // BLOCK_TOKENS
    return int(blocks / -(-serve.context // BLOCK_TOKENS) * serve.context)


def activations(serve: Serve, shape: Shape) -> int:
    """The most that one step holds: a full batch through one layer, then the sampler over every request."""
    gpus = serve.tensor_parallel
    layer = max(3 * shape.intermediate // gpus, (2 * shape.heads // gpus + 2 * shape.kv_on(gpus)) * shape.head_dim)
    forward = serve.batch_tokens * (3 * shape.hidden + layer) * 2
    sampler = serve.concurrency * shape.vocab * SAMPLER_BYTES
    return forward + sampler


def graphs(serve: Serve, shape: Shape) -> int:
    """CUDA graphs of every captured batch size, once whole and once in pieces around attention."""
    if serve.enforce_eager:
        return 0
    return 2 * len(captured(serve)) * shape.layers * GRAPH_LAYER_BYTES


def captured(serve: Serve) -> list[int]:
    """The batch sizes that vLLM captures by default."""
    most = min(2 * serve.concurrency, 512, serve.batch_tokens)
    sizes = [size for size in (1, 2, 4) if size <= most]
    return [*sizes, *range(8, min(most + 1, 256), 8), *range(256, most + 1, 16)]
