"""What the device must know of each row of vLLM's batch to record its tokens by itself, step after step.

Steps are counted. A request emits one token a step, so that the number of the step says which token of the request it
is, and the same plan serves until the batch changes, a request skips a step or needs another block of the pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BLOCK = 1024  # tokens; a power of two
SHIFT, WITHIN = BLOCK.bit_length() - 1, BLOCK - 1


class Plan:
    """The rows of a plan: (BLOCKS + blocks a request may hold, rows of the batch) int64, a column for each request.

    at: number of the request's next token in this seat, less the number of the next step.  window: tokens in a group.
    k: candidates in the confidence, 0 where nothing is recorded.  end: the end token's id.  abort_below: the bits of a
    float64, the confidence summed over a full window under which the answer is given up, -inf for never.  blocks: of
    the pool.
    """

    AT, WINDOW, K, END, ABORT_BELOW, BLOCKS = range(6)


@dataclass(frozen=True, slots=True)
class Step:
    """Where one step's R recorded tokens come from and go to; all (R,) on the logits' device, int64 but for the last.

    row: of the logits.  slot: of the pool.  previous: slot of the same request's last token, or -1.  leaving: slot of
    the token that leaves its window, or -1.  k: candidates.  end: the end token's id.  abort_below: float64, -inf where
    the window is not full.
    """

    row: torch.Tensor
    slot: torch.Tensor
    previous: torch.Tensor
    leaving: torch.Tensor
    k: torch.Tensor
    end: torch.Tensor
    abort_below: torch.Tensor

    @classmethod
    def of(cls, plan: torch.Tensor, rows: int, now: int) -> Step:
        """Step number `now` of the first `rows` rows. The kernels, which read the plan themselves, are held to this."""
        row = plan[Plan.K, :rows].nonzero().squeeze(1)
        here = plan[:, row]
        at, window = here[Plan.AT] + now, here[Plan.WINDOW]
        never = torch.full((), -torch.inf, dtype=torch.float64, device=plan.device)
        limit = torch.where(at >= window - 1, here[Plan.ABORT_BELOW].view(torch.float64), never)
        slot, previous, leaving = (slots(here, of) for of in (at, at - 1, at - window))
        return cls(row, slot, previous, leaving, here[Plan.K], here[Plan.END], limit)


def slots(here: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Where the records of the tokens `at` stand in the pool, -1 where there is no such token."""
    block = here[Plan.BLOCKS :].gather(0, (at.clamp_min(0) >> SHIFT)[None])[0]
    return torch.where(at >= 0, (block << SHIFT) | (at & WITHIN), -1)
