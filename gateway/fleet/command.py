"""Each server's command line and environment. Secrets go through the environment, by the name of their variable."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.fleet.memory import BLOCK_TOKENS
from gateway.fleet.plan import Placed
from gateway.fleet.settings import Fleet
from gateway.written import read_secret

MIDDLEWARE = "gateway.vllm_plugin.middleware.ConfidenceMiddleware"
TOP_LOGPROBS = 20  # what OpenAI's API lets a client ask for, whatever the calibrators need
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Server:
    """How one tier's server is started. secrets: its variable -> where the secret is, `env:NAME` or `file:PATH`."""

    tier: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    secrets: Mapping[str, str]
    host: str
    port: int
    served_as: str


def address(url: str) -> tuple[str, int]:
    """Host and port of an engine's URL."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or PORTS[parts.scheme]


def server(
    placed: Placed, fleet: Fleet, *, url: str, served_as: str, api_key: str | None, top_k: int, plugin: str | None
) -> Server:
    """One tier's. api_key: where it is.  top_k: log-probs that its calibrator needs.
    plugin: the folder that vLLM's Python finds our plugin in, when the tier's confidence is computed there. Its
    processor is found by entry point: for one that is named on the command line vLLM waits for each step's tokens.

    The KV cache is given in bytes. Left to `--gpu-memory-utilization` alone, vLLM would measure what others do on the
    GPU while it profiles itself: servers that share one could not start together, and a restart would come out
    different. The share is passed all the same: vLLM refuses to start when that much is not free.
    """
    serve, host_port = placed.wish.serve, address(url)
    host, port = host_port
    argv = [*fleet.command, *((serve.model,) if fleet.command[-1] == "serve" else ("--model", serve.model))]
    argv += ["--served-model-name", served_as, "--host", host, "--port", str(port)]
    argv += ["--revision", serve.revision] if serve.revision else []
    argv += ["--dtype", serve.dtype]
    argv += ["--quantization", serve.quantization] if serve.quantization else []
    argv += ["--kv-cache-dtype", serve.kv_cache_dtype] if serve.kv_cache_dtype != "auto" else []
    argv += ["--max-model-len", str(serve.context), "--max-num-seqs", str(serve.concurrency)]
    argv += ["--max-num-batched-tokens", str(serve.batch_tokens), "--block-size", str(BLOCK_TOKENS)]
    argv += ["--kv-cache-memory-bytes", str(placed.need.kv_cache)]
    argv += ["--gpu-memory-utilization", f"{placed.utilization:.4f}"]
    argv += ["--tensor-parallel-size", str(serve.tensor_parallel)] if serve.tensor_parallel > 1 else []
    argv += ["--enforce-eager"] if serve.enforce_eager else []
    argv += ["--enable-prefix-caching", "--generation-config", "vllm", "--logprobs-mode", "raw_logprobs"]
    argv += ["--max-logprobs", str(max(TOP_LOGPROBS, top_k)), "--shutdown-timeout", str(round(fleet.stop_seconds))]
    if plugin is not None:
        argv += ["--middleware", MIDDLEWARE]
    argv += serve.flags
    # As nvidia-smi counts; CUDA's own order puts the fastest first.
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, placed.gpus))} | fleet.env
    if plugin is not None:
        env["PYTHONPATH"] = plugin
    secrets = {"VLLM_API_KEY": api_key} if api_key else {}
    return Server(placed.wish.tier, tuple(argv), env, secrets, host, port, served_as)


def environment(server: Server, ours: Mapping[str, str]) -> dict[str, str]:
    """What the server's process gets: our environment, what the plan says, and the secrets it needs.

    Raises ConfigError when a secret cannot be read.
    """
    env = dict(ours) | dict(server.env)
    if "PYTHONPATH" in server.env and ours.get("PYTHONPATH"):
        env["PYTHONPATH"] = f"{server.env['PYTHONPATH']}:{ours['PYTHONPATH']}"
    env.pop("VLLM_API_KEY", None)  # somebody else's: a server that the gateway calls without a key must not want one
    return env | {name: read_secret(where, ours).get_secret_value() for name, where in server.secrets.items()}


def shown(server: Server) -> str:
    """The command as one could type it, secrets as the variables that hold them."""
    env = [f"{name}={shlex.quote(value)}" for name, value in server.env.items()]
    env += [f'{name}="{held(where)}"' for name, where in server.secrets.items()]
    return " ".join([*env, *map(shlex.quote, server.argv)])


def held(where: str) -> str:
    """A shell's word for a secret that stands in a variable or a file."""
    kind, _, name = where.partition(":")
    return f"${name}" if kind == "env" else f"$(cat {shlex.quote(name)})"
