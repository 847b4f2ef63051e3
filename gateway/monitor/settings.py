"""What people write about the monitors, `monitors:`."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from gateway.monitor.reference import NO_METADATA
from gateway.monitor.slices import Slicing
from gateway.monitor.slo import Slos
from gateway.written import Written, resolve, wrong


class Questions(Written):
    """Questions whose right answers are known, which every tier is asked anew when one is served by another model than
    its calibrator's: no label tells about that model's answers yet."""

    dataset: str = Field(default="jsonl", description="as `confgate collect` names them")
    data: str | None = Field(default=None, description="the dataset's folder or file")
    split: str = Field(default="calibration", description="one split, of which nothing chose thresholds")
    n: int = Field(default=1000, ge=100, description="questions")
    prompt: str = Field(default="plain", description="as `confgate collect --prompt`")
    concurrency: int = Field(default=4, ge=1, description="in flight per tier, beside the traffic")

    @field_validator("data")
    @classmethod
    def _beside_the_file(cls, path: str | None, info: ValidationInfo) -> str | None:
        return path if path is None or path.startswith("hf:") else str(resolve(Path(path), info))


class Refit(Written):
    """When a fit is started without anybody asking. What comes of it goes on trial by the rollout, which has to be
    configured, and never into service by itself."""

    causes: tuple[Literal["metric", "drift", "schedule", "model"], ...] = Field(
        default=("metric", "drift", "schedule", "model"),
        description="proven by labels, found without any, simply old, or of another model than what is served",
    )
    questions: Questions | None = Field(
        default=None, description="for model: what is asked then. Nothing: such a fit is made by hand"
    )
    settle_minutes: float = Field(default=10, ge=0, description="that a server must have been another one, for model")
    max_age_days: float = Field(default=90, gt=0, description="of a calibrator, for schedule")
    pause_hours: float = Field(default=24, gt=0, description="between two fits of a tier, whatever the cause")
    seconds: float = Field(default=1800, ge=10, description="that a fit may take")
    latest: int = Field(default=2000, ge=30, description="labels that a fit takes, the newest")


Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f=]{1,64}$")]


class SlicesEntry(Written):
    """Parts of the traffic whose drift is looked at by themselves, too, for each tier. The reference has to tell them
    apart: clients are told apart by one that was written from the decision log."""

    clients: tuple[str, ...] = Field(default=(), max_length=16, description="names of keys, each a part of its own")
    prompt_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), max_length=7, description="rising edges: [60, 120] makes three parts, up to 60, 61 to 120, and over"
    )
    metadata: dict[Word, Annotated[tuple[Word, ...], Field(min_length=1, max_length=16)]] = Field(
        default={},
        max_length=4,
        description="what requests say of themselves in OpenAI's `metadata`: {feature: [search, chat]} makes a part of "
        "each of these values. They are kept in the decision log, and nothing else of `metadata` is",
    )

    @field_validator("clients")
    @classmethod
    def _each_once(cls, clients: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(clients)) < len(clients):
            raise wrong("a client is listed twice")
        return clients

    @field_validator("metadata")
    @classmethod
    def _each_value_once(cls, metadata: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, values in metadata.items():
            if len(set(values)) < len(values):
                raise wrong("{told}", told=f"a value of {name} is listed twice")
        return metadata

    @field_validator("prompt_tokens")
    @classmethod
    def _rising(cls, edges: tuple[int, ...]) -> tuple[int, ...]:
        if any(high <= low for low, high in pairwise(edges)):
            raise wrong("edges must rise")
        return edges

    def slicing(self) -> Slicing:
        said = tuple((name, value) for name, values in self.metadata.items() for value in values)
        return Slicing(self.clients, self.prompt_tokens, said)

    def kept(self, metadata: Mapping[str, str] | None) -> Mapping[str, str]:
        """Of what a request says of itself, what a part is made of."""
        if not metadata or not self.metadata:
            return NO_METADATA
        return {name: value for name, value in metadata.items() if value in self.metadata.get(name, ())}


class Monitors(Written):
    """Whether calibration still holds."""

    reference: Path | None = Field(
        default=None,
        description="what traffic looked like when calibrators were trusted, from `confgate monitors --write`; "
        "without it nothing is said about drift",
    )
    card: Path | None = Field(
        default=None,
        description="the card.json of `confgate card`, whose tested shifts the live card repeats; without it none are",
    )
    rows: int = Field(default=500, ge=200, le=20_000, description="of each tier, in one look at drift")
    slices: SlicesEntry = SlicesEntry()
    every_seconds: float = Field(default=15, ge=1, le=3600, description="between two looks, if there is something new")
    labels_by: Literal["operators", "everybody"] = Field(
        default="operators",
        description="whose labels withdraw a certificate and raise alarms; everybody lets a client's key do so too",
    )
    labels_of: Literal["explored", "all"] = Field(
        default="explored",
        description="all takes labels of answers not drawn by lot, too; sound only where every answer is labelled, "
        "or where those who label choose by nothing that tells right from wrong",
    )
    look_back_days: float = Field(default=30, gt=0, le=730, description="of labels and decisions read at the start")
    slos: Slos = Slos()
    refit: Refit | None = Field(default=None, description="fits that start by themselves. Nothing: none does")

    @field_validator("reference", "card")
    @classmethod
    def _beside_the_file(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        return None if path is None else resolve(path, info)
