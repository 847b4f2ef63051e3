"""What was proven about a policy, as it stands in the configuration, and whether it speaks of what is being served.

A certificate is about one chain of tiers at one set of thresholds with the very calibrators it was earned with. Where
any of these is another one, it is withdrawn: the policy serves on, and nothing is promised any more.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from gateway.nouns import Policy
from gateway.written import Written

NO_CALIBRATOR = "none"

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Words = Annotated[str, Field(min_length=1)]


class CertifiedStep(Written):
    """One tier as it was when the certificate was earned. calibrator: its label, or none."""

    tier: str
    accept_at: Annotated[float, Field(ge=0, le=1)] | None = None
    calibrator: str


class Data(Written):
    """The questions that the promises rest on. n: of them, variants of one question counted once."""

    split: str
    n: int = Field(ge=1)
    sha256: Hash


class Promise(Written):
    """`what` is at most `limit` with the probability `confidence`; it was `seen` in n questions or answers.

    unit: share, or what a cost is counted in.
    """

    what: Words
    limit: float = Field(ge=0)
    unit: Words = "share"
    confidence: float = Field(gt=0, lt=1)
    seen: float = Field(ge=0)
    n: int = Field(ge=1)
    method: Words

    def __str__(self) -> str:
        limit = f"{self.limit:.2%}" if self.unit == "share" else f"{self.limit:.4g} {self.unit}"
        return f"{self.what} at most {limit} with {self.confidence:.0%} confidence (n = {self.n:,})"


class Withdrawn(Written):
    """It is kept for the record, and promises nothing any more."""

    since: dt.date
    why: Words


class Certificate(Written):
    """Written by `confgate sweep --write`; not to be edited but for `withdrawn`.

    chosen: what chose the policy, and why that leaves the promises true.  sha256: over all but itself and `withdrawn`.
    """

    issued: dt.date
    steps: tuple[CertifiedStep, ...] = Field(min_length=1)
    data: Data
    chosen: Words
    promises: tuple[Promise, ...] = Field(min_length=1)
    assumptions: tuple[Words, ...] = Field(min_length=1)
    sha256: Hash
    withdrawn: Withdrawn | None = Field(
        default=None, description="{since, why}: set by whoever finds the assumptions broken"
    )

    @classmethod
    def sealed(
        cls,
        *,
        issued: dt.date,
        steps: Sequence[CertifiedStep],
        data: Data,
        chosen: str,
        promises: Sequence[Promise],
        assumptions: Sequence[str],
    ) -> Certificate:
        """A certificate with its hash."""
        bare = cls(
            issued=issued, steps=tuple(steps), data=data, chosen=chosen, promises=tuple(promises),
            assumptions=tuple(assumptions), sha256="0" * 64,
        )  # fmt: skip
        return bare.model_copy(update={"sha256": bare.own_sha256()})

    def own_sha256(self) -> str:
        told = self.model_dump(mode="json", exclude={"sha256", "withdrawn"})
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a policy's certificate holds. why: in words, "" where it does."""

    certificate: Certificate
    why: str = ""

    @property
    def holds(self) -> bool:
        return not self.why


def standing(certificate: Certificate, served: Policy) -> Standing:
    """The certificate held against a policy that is, or is about to be, in service."""
    steps = [(tier.name, tier.threshold, tier.calibrator_id) for tier in served.tiers]
    return Standing(certificate, certificate_fault(certificate, steps))


def certificate_fault(certificate: Certificate, served: Sequence[tuple[str, float | None, str]]) -> str:
    """Why a certificate does not hold: which field differs, and what to do. "" where it holds.

    served: (tier, accept_at, calibrator's label) in the order asked.
    """
    if certificate.withdrawn is not None:
        return f"withdrawn on {certificate.withdrawn.since}: {certificate.withdrawn.why}"
    if certificate.own_sha256() != certificate.sha256:
        return f"its text was changed after it was issued; {AGAIN}"
    found = difference(certificate.steps, served)
    return f"{found}; {AGAIN}" if found else ""


AGAIN = "certify what is served now with `confgate sweep --write`, put back what was certified, or drop the certificate"


def difference(certified: Sequence[CertifiedStep], served: Sequence[tuple[str, float | None, str]]) -> str:
    """The first field that is not what was certified, "" where all are."""
    tiers = [step.tier for step in certified]
    if tiers != [tier for tier, _, _ in served]:
        return f"steps: certified {' -> '.join(tiers)}, served {' -> '.join(tier for tier, _, _ in served)}"
    for position, (step, (tier, accept_at, calibrator)) in enumerate(zip(certified, served, strict=True)):
        if step.accept_at != accept_at:
            return f"steps[{position}].accept_at of {tier}: certified {step.accept_at}, served {accept_at}"
        if step.calibrator != calibrator:
            return f"calibrator of {tier}: certified {step.calibrator}, served {calibrator}"
    return ""
