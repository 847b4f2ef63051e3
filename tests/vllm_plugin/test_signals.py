"""The definition of the engine's signals, held to the gateway's own features and to the entropy's definition."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from gateway.confidence import measure as measure_features
from gateway.nouns import Evidence, Source, TokenTrace
from gateway.vllm_plugin.plan import BLOCK, Plan
from gateway.vllm_plugin.signals import COLUMNS, K_MAX, SIGNALS, WINDOW_SUM, TorchMeter, measure

ROWS, VOCABULARY = 7, 500


@pytest.fixture
def logits() -> torch.Tensor:
    made = torch.randn((ROWS, VOCABULARY), generator=torch.Generator().manual_seed(3)) * 4
    made[0, :] = 0.25  # uniform
    made[1, 10] = 60.0  # certain
    made[2] = made[2].to(torch.bfloat16).float()  # ties
    return made


def plan(rows: int, *, window: int = 1, limits: dict[int, float], end: int = 0) -> torch.Tensor:
    """Of the first token of each row that has a limit, each with a block of its own."""
    made = torch.zeros((Plan.BLOCKS + 1, rows), dtype=torch.int64)
    for nth, (row, limit) in enumerate(limits.items()):
        made[Plan.WINDOW, row], made[Plan.K, row], made[Plan.END, row] = window, K_MAX, end + row
        made[Plan.ABORT_BELOW, row] = torch.tensor(limit, dtype=torch.float64).view(torch.int64)
        made[Plan.BLOCKS, row] = nth
    return made


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_every_signal_equals_its_textbook_value_in_float64(logits: torch.Tensor, k: int) -> None:
    got = measure(logits, torch.full((ROWS,), k)).double().numpy()
    nats = log_softmax(logits.double().numpy(), axis=1)
    top = -np.sort(-nats, axis=1)
    p = np.exp(top)
    want = {
        "confidence": -top[:, :k].mean(axis=1),
        "top1": top[:, 0],
        "margin": p[:, 0] - p[:, 1],
        "entropy": entropy(p, axis=1),
        "self_certainty": -nats.mean(axis=1) - np.log(VOCABULARY),
    }
    for name, column in zip(SIGNALS, got.T, strict=True):
        np.testing.assert_allclose(column, want[name], rtol=2e-6, atol=2e-5, err_msg=name)


def test_the_gateways_features_read_the_same_from_the_engines_signals_as_from_twenty_candidates(
    logits: torch.Tensor,
) -> None:
    got = measure(logits, torch.full((ROWS,), 20)).double().numpy().T
    top = -np.sort(-log_softmax(logits.double().numpy(), axis=1), axis=1)[:, :20]
    chosen = top[:, 0].copy()
    over_http = TokenTrace(Source.TOP_LOGPROBS, chosen, top)
    signals = {"confidence_k20": got[0], "margin": got[2], "entropy": got[3], "self_certainty": got[4]}
    in_engine = TokenTrace(Source.PLUGIN, np.minimum(got[1], 0.0), signals=signals)
    specs = ["deepconf_average", "deepconf_lowest(window=3)", "deepconf_tail", "margin_mean", "margin_min", "lp_mean"]
    here = measure_features(specs, Evidence(in_engine, "x")).values
    there = measure_features(specs, Evidence(over_http, "x")).values
    np.testing.assert_allclose(here, there, atol=1e-4)


def test_tokens_that_were_ruled_out_count_for_nothing() -> None:
    logits = torch.tensor([[1.0, 0.5, -1.0, -np.inf, -np.inf]])
    ruled = measure(logits, torch.tensor([2]))
    plain = measure(logits[:, :3], torch.tensor([2]))
    assert torch.isfinite(ruled).all()
    torch.testing.assert_close(ruled, plain)


def test_the_window_sum_runs_over_the_window_and_forgets_what_leaves_it() -> None:
    generator = torch.Generator().manual_seed(5)
    pool = torch.zeros((64, COLUMNS))
    meter, window, seen = TorchMeter(pool), 4, []
    told = plan(1, window=window, limits={0: -np.inf})
    for t in range(20):
        meter(torch.randn((1, 50), generator=generator), told, 1, t, may_abort=False)
        seen.append(float(pool[t, 0]))
        assert float(pool[t, WINDOW_SUM]) == pytest.approx(sum(seen[-window:]), abs=1e-4)


def test_a_row_under_its_limit_is_left_its_end_token_alone_and_no_other_row_changes() -> None:
    logits = torch.randn((3, 50), generator=torch.Generator().manual_seed(6))
    before = logits.clone()
    told = plan(3, limits={0: -np.inf, 2: 1e9}, end=7)
    TorchMeter(torch.zeros((2 * BLOCK, COLUMNS)))(logits, told, 3, 0, may_abort=True)
    assert torch.equal(logits[:2], before[:2])
    assert int(logits[2].argmax()) == 9
    assert int(torch.isfinite(logits[2]).sum()) == 1
