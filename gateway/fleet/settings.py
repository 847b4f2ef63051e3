"""What people write about the fleet: `fleet:` for the machine, `serve:` for one tier's model server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from gateway.written import Written, resolve, wrong

# Set by the plan, or by what the gateway needs; written twice they would contradict each other.
OURS = (
    "--model", "--revision", "--served-model-name", "--host", "--port", "--max-model-len", "--max-num-seqs",
    "--max-num-batched-tokens", "--dtype", "--quantization", "-q", "--kv-cache-dtype", "--kv-cache-memory-bytes",
    "--kv-cache-memory", "--gpu-memory-utilization", "--block-size", "--enforce-eager", "--tensor-parallel-size",
    "-tp", "--max-logprobs", "--logprobs-mode", "--generation-config", "--enable-prefix-caching", "--api-key",
    "--shutdown-timeout", "--logits-processors", "--middleware",
    "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp", "--num-gpu-blocks-override",
    "--config", "--uds", "--headless", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs",
)  # fmt: skip
# Memory that the plan knows nothing of.
UNPLANNED = (
    "--speculative-config", "-sc", "--enable-lora", "--cpu-offload-gb", "--hf-overrides", "--kv-transfer-config",
)  # fmt: skip


def means(flag: str, names: tuple[str, ...]) -> str | None:
    """Which of these names vLLM takes a word for: `--no-x` and `--x.key` are about x, and long names may be cut."""
    name = flag.split("=", 1)[0].split(".", 1)[0].replace("_", "-").replace("--no-", "--", 1)
    cut = name.startswith("--") and len(name) > len("--")
    return name if name in names else next((one for one in names if cut and one.startswith(name)), None)


class Serve(Written):
    """One tier's model server: what it serves, and how much at once. The plan follows from it."""

    model: str = Field(min_length=1, description="a folder beside this file, or a name on the hub")
    revision: str | None = Field(default=None, description="of a model on the hub: a commit")
    config: Path | None = Field(
        default=None, description="the model's config.json, where the hub's cache on this machine does not have it"
    )
    context: int = Field(ge=16, description="longest prompt and answer together, tokens")
    concurrency: int = Field(default=64, ge=1, le=4096, description="requests that are being answered at once")
    tokens_per_request: int | None = Field(
        default=None, ge=16, description="what a request holds of the KV cache on average; by default the whole context"
    )
    batch_tokens: int = Field(default=8192, ge=16, description="tokens computed in one step, prompts in parts")
    dtype: Literal["bfloat16", "float16"] = "bfloat16"
    quantization: Literal["fp8"] | None = Field(default=None, description="fp8: linear layers quantised while loading")
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    tensor_parallel: int = Field(default=1, ge=1, le=64, description="GPUs that share each layer")
    enforce_eager: bool = Field(default=False, description="no compilation and no CUDA graphs: slower, less memory")
    flags: tuple[str, ...] = Field(default=(), description="more of vLLM's flags, each word an entry")

    @field_validator("model")
    @classmethod
    def _beside_the_file(cls, value: str, info: ValidationInfo) -> str:
        """A folder beside the configuration wins over a hub name; what looks like a path must exist."""
        folder = resolve(value, info)
        if (folder / "config.json").is_file():
            return str(folder)
        if folder.exists() or value.startswith((".", "/", "~")) or value.count("/") != 1:
            raise ValueError(f"no model in {folder}: it needs a config.json; a hub name looks like Qwen/Qwen2.5-7B")
        return value

    @field_validator("config")
    @classmethod
    def _config_beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        """Not looked for: whoever only serves behind this file, in a container perhaps, does not need it."""
        return None if path is None else resolve(path, info)

    @field_validator("flags")
    @classmethod
    def _flags_of_your_own(cls, flags: tuple[str, ...]) -> tuple[str, ...]:
        for position, flag in enumerate(flags):
            if name := means(flag, OURS):
                told = "{flag} is set by the plan; say it with the keys of serve, or leave it out"
                raise wrong(told, at=(position,), flag=name)
            if name := means(flag, UNPLANNED):
                told = "{flag} takes memory that the plan cannot foresee: start such a server by hand, without serve:"
                raise wrong(told, at=(position,), flag=name)
        return flags

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.tokens_per_request is not None and self.tokens_per_request > self.context:
            raise wrong("a request cannot hold more than the context", at=("tokens_per_request",))
        if self.batch_tokens < self.concurrency:
            raise wrong("a step must have room for one token of each request", at=("batch_tokens",))
        return self


class Gpu(Written):
    """One GPU to plan for, when there is none to ask."""

    index: int = Field(ge=0, description="as nvidia-smi counts")
    memory_gib: float = Field(gt=0, description="what CUDA sees of it, less than is printed on the box: 80 GB are 79.1")


class Fleet(Written):
    """The machine that the servers run on, and how they are started and stopped."""

    gpus: tuple[Gpu, ...] = Field(default=(), description="nothing: all that nvidia-smi shows")
    host_memory_gib: float | None = Field(default=None, gt=0, description="for models in this process; nothing: ask")
    headroom: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.05, description="share of each GPU that is left free: fragmentation, and what no plan foresees"
    )
    command: tuple[str, ...] = Field(
        default=("vllm", "serve"), min_length=1, description="a vLLM 0.22 or newer: [vllm, serve] or [python3, -m, ...]"
    )
    env: dict[str, str] = Field(default={}, description="more environment for the servers; no secrets")
    start_seconds: float = Field(default=900, gt=0, description="from a server's start until it answers, at most")
    stop_seconds: float = Field(default=30, ge=0, description="how long a server that stops still answers")
    kill_seconds: float = Field(default=10, gt=0, description="and then may take to exit, before it is killed")
    restart_seconds: float = Field(default=2, gt=0, description="until a dead server is started again; then doubled")
    restart_max_seconds: float = Field(default=60, gt=0)

    @field_validator("gpus")
    @classmethod
    def _each_once(cls, gpus: tuple[Gpu, ...]) -> tuple[Gpu, ...]:
        if len({gpu.index for gpu in gpus}) < len(gpus):
            raise wrong("two GPUs have the same index")
        return gpus
