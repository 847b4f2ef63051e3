"""The Triton kernels, held to their definition in PyTorch."""

import pytest
import torch

from gateway.vllm_plugin.signals import ABORTED, COLUMNS, SIGNALS, Step, TorchMeter

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def step(rows: int, device: str, abort_below: float) -> Step:
    packed = torch.zeros((Step.FIELDS, rows), dtype=torch.int64)
    packed[0] = torch.arange(rows).flip(0)  # rows of the logits in another order than their slots
    packed[1] = torch.arange(rows) + rows
    packed[2] = torch.where(torch.arange(rows) % 3 == 0, -1, torch.arange(rows))
    packed[3] = torch.where(torch.arange(rows) % 2 == 0, -1, torch.arange(rows))
    packed[4] = torch.arange(rows) % 20 + 1
    packed[5] = 7
    packed[6] = torch.full((rows,), abort_below, dtype=torch.float64).view(torch.int64)
    return Step(packed.to(device))


@pytest.mark.parametrize("vocabulary", [300, 1024, 4096, 50257, 151936])
@pytest.mark.parametrize("kind", ["normal", "peaked", "half precision", "ruled out", "uniform", "one lane"])
def test_the_kernels_store_what_pytorch_stores(vocabulary: int, kind: str) -> None:
    from gateway.vllm_plugin.kernels import LANES, TritonMeter

    rows = 33
    torch.manual_seed(vocabulary)
    logits = torch.randn((rows, vocabulary), device="cuda") * (20 if kind == "peaked" else 3)
    if kind == "half precision":
        logits = logits.to(torch.bfloat16).float()
    if kind == "ruled out":
        logits[:, ::3] = float("-inf")
    if kind == "uniform":
        logits[:] = 1.5
    if kind == "one lane":  # the largest lie where one lane of the kernel reads them, some of them equal
        logits[:, 5::LANES] += 20.0
        logits[:, 5 :: 2 * LANES] = 25.0
    seen = torch.rand((2 * rows, COLUMNS), device="cuda")
    got, want = seen.clone(), seen.clone()
    TritonMeter(got, max_rows=64)(logits, step(rows, "cuda", float("-inf")), may_abort=False)
    TorchMeter(want)(logits, step(rows, "cuda", float("-inf")), may_abort=False)
    columns = len(SIGNALS) + 1
    torch.testing.assert_close(got[rows:, :columns], want[rows:, :columns], rtol=2e-5, atol=2e-5)
    assert torch.equal(got[rows:, ABORTED], want[rows:, ABORTED])
    assert torch.equal(got[:rows], seen[:rows]), "a record of another token was written"


def test_rows_that_give_up_are_left_their_end_token_and_the_others_their_bytes() -> None:
    from gateway.vllm_plugin.kernels import TritonMeter

    rows, vocabulary = 16, 151936
    logits = torch.randn((rows, vocabulary), device="cuda")
    before = logits.clone()
    pool = torch.zeros((2 * rows, COLUMNS), device="cuda")
    here = step(rows, "cuda", float("-inf"))
    here.abort_below[3] = 1e9
    TritonMeter(pool, max_rows=rows)(logits, here, may_abort=True)
    row = int(here.packed[Step.ROW][3])
    assert int(logits[row].argmax()) == 7
    assert int(torch.isfinite(logits[row]).sum()) == 1
    others = [r for r in range(rows) if r != row]
    assert torch.equal(logits[others], before[others])
