"""What the plugin's kernel takes at every step of the engine, by itself.

    python tests/gpu/kernel_speed.py --out docs/results/vllm_kernel.json                  # needs CUDA; no vLLM

Random logits over Qwen2.5's vocabulary; so many requests in the batch, all of which asked. `gpu_us` is the kernel's own
time, `cpu_us` what the engine's thread spends on a step in which all requests go on by a token, `cpu_changing_us` on
one before which the batch has changed. Medians of the rounds, with the least and the largest. With --other, another
kernels.py is measured in turn with this one, and with --shapes other ways of cutting the row.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from gateway.vllm_plugin import kernels
from gateway.vllm_plugin.params import Wanted
from gateway.vllm_plugin.plan import BLOCK, Plan
from gateway.vllm_plugin.recorder import Recorder, Seat
from gateway.vllm_plugin.signals import COLUMNS, K_MAX
from tests.gpu import servers

VOCABULARY = 151_936
BATCHES = (1, 32, 128, 256)
STEPS, ROUNDS = 50, 7


def on_gpu(module: ModuleType, logits: torch.Tensor) -> float:
    """Microseconds of the kernel itself, a step."""
    rows = len(logits)
    pool = torch.zeros((rows * BLOCK, COLUMNS), pin_memory=True)
    meter = module.TritonMeter(pool, logits.device, max_rows=rows)
    plan = torch.zeros((Plan.BLOCKS + 1, rows), dtype=torch.int64, device="cuda")
    plan[Plan.WINDOW], plan[Plan.K], plan[Plan.BLOCKS] = 32, K_MAX, torch.arange(rows)
    for _ in range(3):
        meter(logits, plan, rows, 0, may_abort=False)
    torch.cuda.synchronize()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(50_000_000)  # launches queue up meanwhile, so that the GPU never waits for one
    began.record()
    for ahead in range(STEPS):
        meter(logits, plan, rows, ahead, may_abort=False)
    ended.record()
    torch.cuda.synchronize()
    return began.elapsed_time(ended) / STEPS * 1e3


def on_cpu(module: ModuleType, logits: torch.Tensor, *, changing: bool) -> float:
    """Microseconds of the engine's thread, a step. changing: the batch is another one at each step."""
    rows = len(logits)
    pool = torch.zeros((rows * BLOCK, COLUMNS), pin_memory=True)
    meter = module.TritonMeter(pool, logits.device, max_rows=rows)
    here = Recorder(pool, meter, lambda _: None, device=logits.device, max_rows=rows, max_tokens=BLOCK)
    outputs: list[list[int]] = [[] for _ in range(rows)]
    for row, output in enumerate(outputs):
        here.add(row, Seat(Wanted(id="x"), True, 0, 0, output, 0))
    here.arrange()
    spent = []
    for _ in range(STEPS):
        began = time.perf_counter()
        if changing:
            here.arrange()
        here.step(logits)
        spent.append(time.perf_counter() - began)
        torch.cuda.synchronize()
        for output in outputs:
            output.append(0)
    return float(np.median(spent)) * 1e6


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("other_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, required=True)
    cli.add_argument("--other", type=Path, help="another kernels.py to measure beside this one")
    cli.add_argument("--shapes", nargs="*", default=[], help="LANESxWARPSxSTAGES in place of the module's own")
    args = cli.parse_args()
    shapes = [(kernels.LANES, kernels.WARPS, kernels.STAGES)]
    shapes += [tuple(int(n) for n in shape.split("x")) for shape in args.shapes]  # type: ignore[misc]
    result: dict[str, Any] = servers.machine() | {
        "vocabulary": VOCABULARY,
        "steps": STEPS,
        "rounds": ROUNDS,
        "rows": [],
    }
    for rows in BATCHES:
        torch.manual_seed(rows)
        logits = torch.randn((rows, VOCABULARY), device="cuda") * 3
        for shape in [*shapes, *(["other"] if args.other else [])]:
            module = load(args.other) if shape == "other" else kernels
            if shape != "other":
                kernels.LANES, kernels.WARPS, kernels.STAGES = shape  # type: ignore[misc]
            try:
                seen = [
                    (
                        on_gpu(module, logits),
                        on_cpu(module, logits, changing=False),
                        on_cpu(module, logits, changing=True),
                    )
                    for _ in range(ROUNDS)
                ]
            except Exception as error:  # a shape that does not fit the GPU is a finding
                print(rows, shape, type(error).__name__, str(error)[:200], flush=True)
                continue
            row: dict[str, Any] = {"batch": rows, "shape": shape}
            for name, column in zip(("gpu_us", "cpu_us", "cpu_changing_us"), zip(*seen, strict=True), strict=True):
                row[name] = [round(value, 1) for value in (float(np.median(column)), min(column), max(column))]
            result["rows"].append(row)
            print(json.dumps(row), flush=True)
            servers.save(args.out, result)


if __name__ == "__main__":
    main()
