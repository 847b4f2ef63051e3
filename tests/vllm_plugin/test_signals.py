"""The definition of the engine's signals, held to the gateway's own features and to the entropy's definition."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from gateway.confidence import measure as measure_features
from gateway.nouns import Evidence, Source, TokenTrace
from gateway.vllm_plugin.signals import COLUMNS, K_MAX, SIGNALS, WINDOW_SUM, Step, TorchMeter, measure

ROWS, VOCABULARY = 7, 500


@pytest.fixture
def logits() -> torch.Tensor:
    made = torch.randn((ROWS, VOCABULARY), generator=torch.Generator().manual_seed(3)) * 4
    made[0, :] = 0.25  # uniform
    made[1, 10] = 60.0  # certain
    made[2] = made[2].to(torch.bfloat16).float()  # ties
    return made


def step(rows: list[int], slots: list[int], **more: list[int]) -> Step:
    n = len(rows)
    packed = torch.zeros((Step.FIELDS, n), dtype=torch.int64)
    packed[0], packed[1] = torch.tensor(rows), torch.tensor(slots)
    packed[2], packed[3] = torch.tensor(more.get("previous", [-1] * n)), torch.tensor(more.get("leaving", [-1] * n))
    packed[4], packed[5] = torch.tensor(more.get("k", [K_MAX] * n)), torch.tensor(more.get("end", [0] * n))
    limits = torch.tensor(more.get("abort_below", [-np.inf] * n), dtype=torch.float64)
    packed[6] = limits.view(torch.int64)
    return Step(packed)


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
    for t in range(20):
        logits = torch.randn((1, 50), generator=generator)
        meter(logits, step([0], [t], previous=[t - 1], leaving=[t - window if t >= window else -1]), may_abort=False)
        seen.append(float(pool[t, 0]))
        assert float(pool[t, WINDOW_SUM]) == pytest.approx(sum(seen[-window:]), abs=1e-4)


def test_a_row_under_its_limit_is_left_its_end_token_alone_and_no_other_row_changes() -> None:
    logits = torch.randn((3, 50), generator=torch.Generator().manual_seed(6))
    before = logits.clone()
    pool = torch.zeros((8, COLUMNS))
    TorchMeter(pool)(logits, step([0, 2], [1, 2], end=[7, 9], abort_below=[-np.inf, 1e9]), may_abort=True)
    assert torch.equal(logits[:2], before[:2])
    assert int(logits[2].argmax()) == 9
    assert int(torch.isfinite(logits[2]).sum()) == 1
