"""What is measured at every token, from the raw logits before temperature and penalties.

This is the definition, in plain PyTorch. It runs where there is no CUDA, and the kernels are held to it.
"""

from __future__ import annotations

import torch

from gateway.vllm_plugin.plan import Step

K_MAX = 20  # DeepConf's k, and vLLM's own default for --max-logprobs

# What is kept of a token, in this order; one float32 each, a power of two in all.
CONFIDENCE, TOP1, MARGIN, ENTROPY, SELF_CERTAINTY, WINDOW_SUM, ABORTED = range(7)
COLUMNS = 8
SIGNALS = ("confidence", "top1", "margin", "entropy", "self_certainty")  # those that leave the engine


def measure(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Five signals of each row's next-token distribution p over V tokens.

    logits: (R, V >= 2) float32, raw; a token that was ruled out may be -inf.  k: (R,) integers in [1, K_MAX].
    Returns (R, 5), in nats but for the margin, in the order of SIGNALS:
      confidence      -(1/k) sum of the k largest ln p; higher = surer (Fu et al. 2025, arXiv:2508.15260)
      top1            ln of the largest p: the emitted token's, when sampling is greedy
      margin          largest p minus second largest p, in [0, 1]
      entropy         -sum p ln p over all of V
      self_certainty  -(1/V) sum ln p - ln V over what is not ruled out: KL(uniform || p)
                      (Kang et al. 2025, arXiv:2502.18581)
    """
    known = torch.isfinite(logits)
    nats = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
    p = nats.exp()
    nothing = torch.zeros((), device=logits.device)
    top = nats.topk(min(K_MAX, logits.shape[-1]), dim=-1).values
    within = torch.arange(top.shape[-1], device=logits.device)[None, :] < k[:, None]
    confidence = -torch.where(within, top, nothing).sum(-1) / k
    margin = top[:, 0].exp() - top[:, 1].exp()
    entropy = -torch.where(known, p * nats, nothing).sum(-1)
    count = known.sum(-1)
    self_certainty = -torch.where(known, nats, nothing).sum(-1) / count - count.log()
    return torch.stack((confidence, top[:, 0], margin, entropy.clamp_min(0.0), self_certainty), dim=-1)


def records(now: torch.Tensor, pool: torch.Tensor, step: Step) -> torch.Tensor:
    """What to store of this step's tokens: the signals, the window's summed confidence, and whether that is too low.

    now: (R, 5) from `measure`.  pool: (N, COLUMNS), what was stored before.  Returns (R, COLUMNS).
    """
    nothing = torch.zeros((), device=now.device)
    before = torch.where(step.previous >= 0, pool[step.previous.clamp_min(0), WINDOW_SUM], nothing)
    less = torch.where(step.leaving >= 0, pool[step.leaving.clamp_min(0), CONFIDENCE], nothing)
    total = before + now[:, CONFIDENCE] - less
    record = torch.zeros((now.shape[0], COLUMNS), device=now.device)
    record[:, : len(SIGNALS)] = now
    record[:, WINDOW_SUM] = total
    record[:, ABORTED] = (total < step.abort_below).float()
    return record


class TorchMeter:
    """Measures and stores with PyTorch alone."""

    def __init__(self, pool: torch.Tensor) -> None:
        self._pool = pool

    def __call__(self, logits: torch.Tensor, plan: torch.Tensor, rows: int, now: int, *, may_abort: bool) -> None:
        """Stores a record for each row that the plan names; forces the end token of those that fell too low.

        logits: (batch, V) float32.  plan: as Plan has it, of the first `rows` rows.  now: number of the step.
        """
        step = Step.of(plan, rows, now)
        record = records(measure(logits[step.row], step.k), self._pool, step)
        self._pool[step.slot] = record
        if may_abort:
            low = record[:, ABORTED] > 0
            logits[step.row[low]] = float("-inf")
            logits[step.row[low], step.end[low]] = 0.0
