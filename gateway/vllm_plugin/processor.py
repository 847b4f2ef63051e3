"""The logits processor: what vLLM's V1 engine (0.22 and newer) loads into each of its workers.

    --logits-processors gateway.vllm_plugin.processor:ConfidenceProcessor

or nothing at all where this distribution is installed beside vLLM: its entry point in the group vllm.logits_processors
is loaded by itself. Requests that do not opt in cost nothing.
"""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, ClassVar

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor.interface import BatchUpdate, LogitsProcessor, MoveDirectionality

from gateway.vllm_plugin import params
from gateway.vllm_plugin.channel import Outbox
from gateway.vllm_plugin.plan import BLOCK
from gateway.vllm_plugin.recorder import Leaving, Recorder, Seat
from gateway.vllm_plugin.signals import COLUMNS, TorchMeter

if TYPE_CHECKING:
    from vllm.config import VllmConfig

log = logging.getLogger(__name__)

POOL_TOKENS = 2**20  # 32 MiB of records; CONFGATE_VLLM_POOL_TOKENS says otherwise
GREEDY_BELOW = 1e-5  # as vLLM's sampler draws the line


class ConfidenceProcessor(LogitsProcessor):
    """Records the confidence of the requests that asked for it, and ends those that fell under their own limit."""

    _at_work: ClassVar[bool] = False  # named on the command line and found by entry point: one of the two works

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Runs in the API server. Raises ValueError, which the client sees as a 400."""
        wanted = params.read(sampling_params.extra_args)
        if wanted is None:
            return
        if not wanted.id:
            raise ValueError(
                "confidence needs this server's middleware: start vLLM with "
                "--middleware gateway.vllm_plugin.middleware.ConfidenceMiddleware"
            )
        for name, changes in (
            ("logit_bias", sampling_params.logit_bias),
            ("min_tokens", sampling_params.min_tokens),
            ("allowed_token_ids", sampling_params.allowed_token_ids),
            ("bad_words", sampling_params.bad_words),
            ("structured outputs", sampling_params.structured_outputs),
        ):
            if changes:
                raise ValueError(
                    f"confidence is read from raw logits, which {name} changes: ask without one of the two"
                )
        if sampling_params.ignore_eos and wanted.abort_below > -math.inf:
            raise ValueError("vllm_xargs.confidence_abort ends an answer by its end token, which ignore_eos ignores")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._recorder: Recorder | None = None
        if ConfidenceProcessor._at_work:
            return
        ConfidenceProcessor._at_work = True
        if vllm_config.speculative_config is not None:
            raise ValueError("confidence cannot be computed under speculative decoding: start vLLM without either")
        self._batch = vllm_config.scheduler_config.max_num_seqs
        self._longest = vllm_config.model_config.max_model_len
        self._vocabulary = vllm_config.model_config.get_vocab_size()
        self._parallel = vllm_config.parallel_config
        self._end_token = _end_token(vllm_config)
        wanted = int(os.environ.get("CONFGATE_VLLM_POOL_TOKENS", POOL_TOKENS))
        blocks = max(1, min(wanted, self._batch * (self._longest + BLOCK)) // BLOCK)
        pool = torch.zeros((blocks * BLOCK, COLUMNS), pin_memory=device.type == "cuda")
        meter = self._meter(pool, device)
        self._outbox = Outbox()
        self._recorder = Recorder(
            pool, meter, self._deliver, device=device, max_rows=self._batch, max_tokens=self._longest
        )

    def is_argmax_invariant(self) -> bool:
        """False: giving up forces the end token, and greedy requests must pass here too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows vLLM's changes of the batch: removed, added, moved, in this order."""
        if self._recorder is None or batch_update is None:
            return
        for row in batch_update.removed:
            self._recorder.remove(row)
        for row, sampling, _, output in batch_update.added:
            self._recorder.add(row, self._seat(sampling, output))
        for source, target, direction in batch_update.moved:
            self._recorder.move(source, target, swap=direction is MoveDirectionality.SWAP)
        self._recorder.arrange()

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: (batch, V) float32, raw."""
        if self._recorder is not None:
            self._recorder.step(logits)
        return logits

    def _meter(self, pool: torch.Tensor, device: torch.device) -> TorchMeter:
        if device.type != "cuda":
            return TorchMeter(pool)
        from gateway.vllm_plugin.kernels import TritonMeter

        meter = TritonMeter(pool, device, max_rows=self._batch)
        meter.warm_up(self._vocabulary)
        return meter  # type: ignore[return-value]  # the same call

    def _seat(self, sampling: SamplingParams, output: list[int]) -> Seat | None:
        wanted = params.read(sampling.extra_args)
        if wanted is None or not wanted.id:
            return None
        plain = not sampling.presence_penalty and not sampling.frequency_penalty and sampling.repetition_penalty == 1.0
        choice = 0 if wanted.seed is None or sampling.seed is None else sampling.seed - wanted.seed
        end = sampling.eos_token_id if sampling.eos_token_id is not None else self._end_token
        if end is None:
            wanted = params.without_abort(wanted)
        greedy = plain and sampling.temperature < GREEDY_BELOW
        return Seat(wanted, greedy, 0 if end is None else end, choice, output, len(output))

    def _deliver(self, leaving: list[Leaving]) -> None:
        """Every rank of a tensor-parallel group computes the same; the first one tells."""
        if _first_of_group(self._parallel.tensor_parallel_size):
            self._outbox.send(leaving)
        else:
            for one in leaving:
                one.release()


def _end_token(vllm_config: VllmConfig) -> int | None:
    end = getattr(vllm_config.model_config.hf_config, "eos_token_id", None)
    return end[0] if isinstance(end, list) else end


def _first_of_group(size: int) -> bool:
    if size == 1:
        return True
    from vllm.distributed import get_tensor_model_parallel_rank

    return bool(get_tensor_model_parallel_rank() == 0)
