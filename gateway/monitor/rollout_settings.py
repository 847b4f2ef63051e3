"""What people write about rollouts, `rollout:`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from gateway.monitor.compare import Margins
from gateway.monitor.rollout import Limits
from gateway.monitor.trials import ANY_COST
from gateway.written import Written, resolve

DAY_SECONDS = 86400.0


class ProbeEntry(Written):
    """Asking every calibrated tier now and then whether it is still the model that its calibrator belongs to."""

    seconds: float = Field(default=30, ge=0.5, le=3600, description="between two questions to a tier, jittered by half")
    tokens: int = Field(default=16, ge=1, le=64, description="of the greedy answer that is compared")
    tolerance_nats: float = Field(
        default=0.05, gt=0, le=5, description="mean difference of log-probs that is rounding's: batches change it"
    )


class Rollout(Written):
    """How a tier gets another calibrator: shadow, canary, live, and back by itself when it does harm."""

    folder: Path = Field(description="of artefacts and logs of steps; all workers and replicas share it")
    poll_seconds: float = Field(default=2, gt=0, le=5, description="between two looks at the folder and at new labels")
    new_in_file: Literal["log", "shadow"] = Field(
        default="log",
        description="what becomes of a calibrator that the file names after a tier's rollouts have begun, and that "
        "none of them has seen: a line in the log, or a trial that begins in shadow",
    )
    share: float = Field(default=0.05, gt=0, le=1, description="of conversations that a canary decides for")
    advance: bool = Field(
        default=True,
        description="go from shadow to canary and live once the evidence is there; without, a person does. Going back "
        "never waits for anybody",
    )
    min_shadow: int = Field(default=500, ge=1, description="decisions seen in shadow before a canary")
    max_flips: float = Field(default=0.1, gt=0, le=1, description="share of decisions that a canary may change")
    min_labels: int = Field(default=200, ge=1, description="labels that are trusted before a promotion")
    max_days: float = Field(default=14, gt=0, description="a trial that has proven nothing by then ends")
    alpha: float = Field(default=0.05, gt=0, le=1, description="of a promotion that does harm")
    worse_brier: float = Field(default=0, ge=0, lt=1, description="harm in Brier score that is none; 0: be better")
    worse_accepted: float = Field(default=0.02, ge=0, lt=1, description="more wrong answers accepted that are no harm")
    worse_cost: float | None = Field(
        default=0.05, ge=0, lt=1, description="more cost, as a share of the dearest way; null: whatever it costs"
    )
    accepted_error: float | None = Field(
        default=None, gt=0, lt=1, description="wrong ones among the answers that a tier accepts; proven more: go back"
    )
    labels_of: Literal["explored", "all"] = Field(
        default="explored",
        description="operators' labels that count: of explored decisions, or all of them, which is only sound where "
        "those who label choose by nothing that tells right from wrong",
    )
    settle_seconds: float = Field(
        default=10, ge=0, le=600, description="a decision is dated by its start, and counted this long after it"
    )
    probe: ProbeEntry | None = Field(default=ProbeEntry(), description="null: no tier is asked about itself")

    @field_validator("folder")
    @classmethod
    def _beside_the_file(cls, path: Path, info: ValidationInfo) -> Path:
        return resolve(path, info)

    def limits(self) -> Limits:
        return Limits(
            max_flips=self.max_flips,
            min_shadow=self.min_shadow,
            min_labels=self.min_labels,
            canary_share=self.share,
            max_seconds=self.max_days * DAY_SECONDS,
            alpha=self.alpha,
        )

    def margins(self) -> Margins:
        return Margins(self.worse_brier, self.worse_accepted, ANY_COST if self.worse_cost is None else self.worse_cost)
