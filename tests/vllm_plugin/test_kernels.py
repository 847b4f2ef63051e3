"""The Triton kernels, held to their definition in PyTorch."""

from typing import Any

import pytest
import torch

from gateway.vllm_plugin.plan import BLOCK, SHIFT, Plan
from gateway.vllm_plugin.signals import ABORTED, COLUMNS, CONFIDENCE, WINDOW_SUM, TorchMeter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

ROWS, BLOCKS = 33, 99  # three blocks of the pool each
KEPT = ABORTED + 1  # columns of a record that mean something


def plan(device: str, abort_below: float) -> torch.Tensor:
    """Requests at all places of their blocks and windows, some without confidence."""
    rows = torch.arange(ROWS)
    made = torch.zeros((Plan.BLOCKS + 3, 64), dtype=torch.int64)
    made[Plan.AT, :ROWS] = torch.tensor([0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK])[rows % 7] + rows
    made[Plan.WINDOW, :ROWS] = rows % 12 + 1
    made[Plan.K, :ROWS] = torch.where(rows % 5 == 4, 0, rows % 20 + 1)
    made[Plan.END, :ROWS] = 7
    made[Plan.ABORT_BELOW, :ROWS] = torch.full((ROWS,), abort_below, dtype=torch.float64).view(torch.int64)
    chance = torch.Generator().manual_seed(4)
    made[Plan.BLOCKS :, :ROWS] = torch.randperm(BLOCKS, generator=chance).reshape(3, ROWS)
    return made.to(device)


def meters() -> tuple[Any, TorchMeter, torch.Tensor, torch.Tensor]:
    """The kernels and their definition, and where each stores; both have stored the same of earlier tokens."""
    from gateway.vllm_plugin.kernels import TritonMeter

    pool = torch.rand((BLOCKS << SHIFT, COLUMNS))
    got, want = pool.pin_memory(), pool.cuda()
    kernels = TritonMeter(got, want.device, max_rows=64)
    kernels._pool.copy_(pool[:, [CONFIDENCE, WINDOW_SUM]])
    return kernels, TorchMeter(want), got, want


def drawn(kind: str, vocabulary: int, lanes: int, device: str) -> torch.Tensor:
    torch.manual_seed(vocabulary)
    logits = torch.randn((ROWS, vocabulary), device=device) * (20 if kind == "peaked" else 3)
    if kind == "half precision":
        logits = logits.to(torch.bfloat16).float()
    if kind == "ruled out":
        logits[:, ::3] = float("-inf")
    if kind == "uniform":
        logits[:] = 1.5
    if kind == "one lane":  # the largest lie where one lane of the kernel reads them, some of them equal
        logits[:, 5::lanes] += 20.0
        logits[:, 5 :: 2 * lanes] = 25.0
    return logits


@pytest.mark.parametrize("vocabulary", [300, 1024, 4096, 50257, 151936])
@pytest.mark.parametrize("kind", ["normal", "peaked", "half precision", "ruled out", "uniform", "one lane"])
def test_the_kernels_store_what_pytorch_stores(vocabulary: int, kind: str) -> None:
    from gateway.vllm_plugin.kernels import LANES

    logits = drawn(kind, vocabulary, LANES, "cuda")
    told = plan("cuda", float("-inf"))
    kernels, definition, got, want = meters()
    for now in range(3):  # the first finds the compiled kernel, the others use it
        kernels(logits, told, ROWS, now, may_abort=False)
        definition(logits, told, ROWS, now, may_abort=False)
    torch.cuda.synchronize()
    torch.testing.assert_close(got[:, :KEPT], want[:, :KEPT].cpu(), rtol=2e-5, atol=2e-5)


def test_the_kernel_found_once_is_not_used_for_logits_that_it_was_not_compiled_for() -> None:
    told = plan("cuda", float("-inf"))
    kernels, definition, got, want = meters()
    memory = torch.randn((ROWS * 50257 + 1,), device="cuda")
    aligned, not_aligned = (memory[at : at + ROWS * 50257].view(ROWS, 50257) for at in (0, 1))
    for now, logits in enumerate((aligned, not_aligned, aligned[:, :50000], not_aligned[:, :300])):
        kernels(logits, told, ROWS, now, may_abort=False)
        definition(logits, told, ROWS, now, may_abort=False)
    torch.cuda.synchronize()
    torch.testing.assert_close(got[:, :KEPT], want[:, :KEPT].cpu(), rtol=2e-5, atol=2e-5)


def test_rows_that_give_up_are_left_their_end_token_and_the_others_their_bytes() -> None:
    logits = torch.randn((ROWS, 151936), device="cuda")
    before = logits.clone()
    told = plan("cuda", float("-inf"))
    told[Plan.ABORT_BELOW, 3] = torch.tensor(1e9, dtype=torch.float64).view(torch.int64)
    kernels, *_ = meters()
    kernels(logits, told, ROWS, 0, may_abort=True)
    assert int(logits[3].argmax()) == 7
    assert int(torch.isfinite(logits[3]).sum()) == 1
    others = [row for row in range(ROWS) if row != 3]
    assert torch.equal(logits[others], before[others])
