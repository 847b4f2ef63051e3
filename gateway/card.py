"""The live card: what is claimed of a policy's confidence as of now, on what evidence, and what is not known.

`make` puts what is served and what the monitors last reported into one document of words and numbers, the JSON twin;
Markdown and HTML are both written from it, by the same blocks as the card that `confgate card` measures offline.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from calibrators import _markdown, _page
from calibrators import artifact as artifacts
from calibrators._blocks import Banner, Block, Bullets, Heading, Table, Text
from calibrators.artifact import Artifact
from gateway.certificate import Standing
from gateway.errors import ConfigError
from gateway.monitor.labels import ALPHA
from gateway.monitor.rollouts import Rollouts
from gateway.monitor.slo import WINDOWS
from gateway.monitor.telling import burned, coverage, objective_of, span, with_slices
from gateway.nouns import Policy, Tier
from gateway.snapshot import Snapshot

Json = dict[str, Any]

SCHEMA_NAME, SCHEMA_VERSION = "confidence-gateway/live-card", 1
NOT_VALID, NOT_KNOWN, HOLDS = "NOT VALID NOW", "NOT KNOWN NOW", "HOLDS, as far as the evidence below goes"
ROUTING = "hard cascade: the first tier with p >= its threshold is served, the last tier whatever its p"
CLAIM = (
    "Of the answers that this policy serves with a confidence p, a share of p is right: taken over all tiers as "
    "clients meet them, under the conditions below."
)


@dataclass(frozen=True, slots=True, eq=False)
class LiveCard:
    """A finished card. twin: the JSON document that the other forms are written from."""

    twin: Json

    def json(self) -> str:
        return json.dumps(self.twin, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def markdown(self) -> str:
        return _markdown.write(self.twin["title"], blocks(self.twin))

    def html(self) -> str:
        return _page.write(self.twin["title"], blocks(self.twin))


def make(snapshot: Snapshot, report: Json, name: str) -> LiveCard:
    """report: of the monitors, not empty.

    Raises ConfigError for a policy that is not there, or is a mix.
    """
    policy = snapshot.policies.get(name)
    if not isinstance(policy, Policy):
        plain = [known for known, one in snapshot.policies.items() if isinstance(one, Policy)]
        told = "is a mix; ask for a card of each part" if policy is not None else "is not there"
        raise ConfigError(f"policy {name!r} {told} (there is: {', '.join(plain)})")
    [state] = [one for one in report["policies"] if one["policy"] == name]
    labels = report["monitors"]["labels"]
    drift = [one for one in report["monitors"]["drift"] if one["policy"] == name]
    tested = snapshot.tested
    other = _other(policy, tested)
    twin: Json = {
        "schema": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "title": f"{name}: what its confidence is worth now",
        "at": report["at"],
        "policy": name,
        "standing": NOT_VALID if state["not_valid"] else HOLDS if state["calibration"] == "holds" else NOT_KNOWN,
        "why": state["not_valid"],
        "claim": CLAIM,
        "routing": {"type": ROUTING, "steps": [_step(snapshot, tier) for tier in policy.tiers]},
        "versions": {"gateway": _version(), "reference_sha256": snapshot.reference.sha256 or None},
        "conditions": _conditions(snapshot, policy),
        "evidence": {
            **{key: labels[key] for key in ("by", "of", "needed", "first_at", "newest_at", "read_at", "revised")},
            "tests": [one for one in labels["tests"] if one["policy"] == name],
            "accepted_error": [one for one in labels["accepted_error"] if one["policy"] == name],
        },
        "drift": drift,
        "certificate": _certificate(snapshot.certificates.get(name)),
        "tested": None if tested is None or other else tested,
        "slos": report["slos"],
        "alarms": report["alarms"],
        "covers": report["covers"],
    }
    return LiveCard(twin | {"unknown": _unknown(twin, labels, tested, other)})


def _step(snapshot: Snapshot, tier: Tier) -> Json:
    return {
        "tier": tier.name,
        "accept_at": tier.threshold,
        "calibrator": tier.calibrator_id,
        "withheld": snapshot.withheld.get(tier.name),
        "features": len(tier.features),
        "usd_per_mtok_out": tier.prices.usd_per_mtok_out,
    }


def _conditions(snapshot: Snapshot, policy: Policy) -> list[str]:
    """What the artefacts in service say for themselves, and who they were fitted on."""
    found = []
    for tier in policy.tiers:
        sealed = _sealed(snapshot, tier)
        if sealed is None:
            continue
        told = ", ".join(f"{key} {shortened(value)}" for key, value in sorted(sealed.fingerprint.items()))
        ends = "" if sealed.expires is None else f"; it expires on {sealed.expires}"
        fitted = f"{sealed.kind} of {sealed.fit['n']:,} answers of split {sealed.fit['split']}"
        found.append(f"{tier.name}: {fitted}, bound to {told}{ends}")
        conditions = sealed.validity["conditions"]
        assert isinstance(conditions, Sequence), "the artefact's own checks see to it"
        found += [f"{tier.name}: {condition}" for condition in conditions]
    return found


def _sealed(snapshot: Snapshot, tier: Tier) -> Artifact | None:
    """The artefact that a tier wears: the configured file, or one of the rollout's registry; None where it is neither
    any more."""
    path = next((entry.calibrator for entry in snapshot.config.tiers if entry.name == tier.name), None)
    with contextlib.suppress(artifacts.ArtifactError):
        if path is not None and (configured := artifacts.load(path)).label == tier.calibrator_id:
            return configured
    if snapshot.config.rollout is not None:
        with contextlib.suppress(artifacts.ArtifactError, ConfigError):
            return Rollouts(snapshot.config.rollout.folder).find(tier.calibrator_id).artifact
    return None


def shortened(value: str) -> str:
    """Hashes to the 12 digits that artefacts are called by."""
    return value[:12] if len(value) == 64 else value


def _certificate(found: Standing | None) -> Json | None:
    if found is None:
        return None
    known = found.certificate
    return {
        "holds": found.holds,
        "why": found.why or None,
        "issued": known.issued.isoformat(),
        "promises": [str(promise) for promise in known.promises],
        "assumptions": list(known.assumptions),
        "sha256": known.sha256,
    }


def _other(policy: Policy, tested: Mapping[str, Any] | None) -> str:
    """What the offline card is about that is not served; "" where it is about this policy."""
    if tested is None:
        return ""
    if tested["routing"]["tiers"] != [tier.name for tier in policy.tiers]:
        return f"it is about {' -> '.join(tested['routing']['tiers'])}"
    for tier in policy.tiers:
        if tested["routing"]["thresholds"].get(tier.name) != tier.threshold:
            return f"it has another threshold for {tier.name}"
        if tested["calibrators"].get(tier.name) != tier.calibrator_id:
            return f"it has another calibrator for {tier.name}"
    return ""


def _unknown(twin: Json, labels: Json, tested: Mapping[str, Any] | None, other: str) -> list[str]:
    """Everything that this card cannot say."""
    found = []
    if labels["unknown"]:
        found.append(f"Whether labels still bear out what is claimed: {labels['unknown']}.")
    counted = max((test["n"] for test in twin["evidence"]["tests"] if test["calibrator"] is None), default=0)
    if not labels["unknown"] and counted < labels["needed"]:
        found.append(f"Whether it is calibrated: {counted:,} labels, {labels['needed']:,} are needed to say so.")
    if labels["revised"]:
        found.append(
            f"{labels['revised']:,} labels were revised after the tests had seen them: they count at a restart."
        )
    found += [
        f"Whether {place['tier']} still sees what it was trusted on{told_by(place)}: {place['why']}."
        for place in twin["drift"]
        if place["state"] == "unknown"
    ]
    if twin["evidence"]["tests"] and any(test["rolling"] is None for test in twin["evidence"]["tests"]):
        found.append("Rolling Brier score and ECE: too few labels, or SciPy is not installed here.")
    if not twin["evidence"]["accepted_error"]:
        found.append("The rate of wrong answers among accepted ones: nothing is explored.")
    elif all(one["n"] == 0 for one in twin["evidence"]["accepted_error"]):
        found.append("The rate of wrong answers among accepted ones: labels are given seven days to come.")
    if tested is None:
        found.append("What happens under other distributions: no card of tested shifts is named (monitors.card).")
    elif other:
        found.append(
            f"What happens under other distributions: the card of tested shifts is not this policy's, {other}."
        )
    parts = [part for place in twin["drift"] for part in with_slices(place)[1:]]
    if not parts:
        found.append("Whether any part of the traffic, other than by tier, is what it was: monitors.slices names none.")
    found += [
        f"Whether {part['slice']} at {part['tier']} is what it was{told_by(part)}: {part['why']}."
        for part in parts
        if part["state"] == "unknown"
    ]
    found.append("How well any part of the traffic is calibrated by itself, other than by tier.")
    return found


def _version() -> str:
    try:
        return version("confidence-gateway")
    except PackageNotFoundError:
        return "not installed, run from its source"


# Words


def blocks(twin: Json) -> list[Block]:
    """The card below its title."""
    evidence = twin["evidence"]
    said: list[Block] = [Banner(twin["standing"], bad=twin["standing"] == NOT_VALID)]
    said += [Bullets(tuple(twin["why"]))] if twin["why"] else []
    said += [
        Text(f"As of {twin['at']}, by the monitors' latest look. {twin['claim']}"),
        _steps(twin),
        Heading(2, "Evidence since it is served"),
        Text(_since(evidence)),
        _tests(evidence["tests"]),
        *[Text(_error(one)) for one in evidence["accepted_error"] if one["n"]],
        Heading(2, "Whether traffic is what it was"),
        Text(f"Here and for the objectives {coverage(twin['covers'])}."),
        _drift(twin["drift"]),
        Heading(2, "What is promised"),
        *_promises(twin["certificate"]),
        Heading(2, "Shifts tested"),
        *_tested(twin["tested"]),
        Heading(2, "What is not known"),
        Bullets(tuple(twin["unknown"])),
        Heading(2, "Operating conditions"),
        Bullets(tuple(twin["conditions"])) if twin["conditions"] else Text("No tier of this policy has a calibrator."),
        Heading(2, "Objectives of the service"),
        _slos(twin["slos"]),
        Heading(2, "Alarms"),
        _alarms(twin["alarms"]),
        Text(
            f"Versions: gateway {twin['versions']['gateway']}; reference {_hash(twin['versions']['reference_sha256'])}."
        ),
    ]
    return said


def _steps(twin: Json) -> Table:
    rows = tuple(
        (
            step["tier"],
            "answers whatever comes" if step["accept_at"] is None else f"p >= {step['accept_at']:g}",
            step["calibrator"] if not step["withheld"] else f"withheld: {step['withheld']}",
        )
        for step in twin["routing"]["steps"]
    )
    return Table(("Tier", "is served at", "calibrator"), rows, numbers=False)


def _since(evidence: Json) -> str:
    whose = "operators" if evidence["by"] == "operators" else "operators and clients"
    which = "answers drawn by lot" if evidence["of"] == "explored" else "any answers"
    if evidence["first_at"] is None:
        return f"None yet. Labels by {whose} of {which} count; {evidence['needed']:,} are needed to say that it holds."
    return (
        f"Labels by {whose} of {which} given since {evidence['first_at']}, the newest of {evidence['newest_at']}, read "
        f"at {evidence['read_at']}. The tests may be looked at after every label: each raises a false alarm, ever, "
        f"with a probability of {ALPHA:.0%}."
    )


def _tests(tests: Sequence[Json]) -> Block:
    if not tests:
        return Text("No label has counted yet.")
    rows = []
    for test in tests:
        seen, rolling = test["latest"], test["rolling"]
        found = "over-confident" if test["overconfident"] else "under-confident" if test["underconfident"] else ""
        rows.append(
            (
                test["tier"],
                "fails" if found else test["state"],
                found or "–",
                f"{test['n']:,}",
                f"{seen['claimed']:.1%}",
                f"{seen['right']:.1%} [{seen['low']:.1%}, {seen['high']:.1%}]",
                "–" if rolling is None else f"{rolling['brier']:.3f} (< {rolling['brier_limit']:.3f})",
                "–" if rolling is None else f"{rolling['ece']:.3f} (< {rolling['ece_limit']:.3f})",
                "–" if rolling is None else f"{rolling['ks']:.3f} (< {rolling['ks_limit']:.3f})",
                "–" if rolling is None else _cox(rolling["intercept"]),
                "–" if rolling is None else _cox(rolling["slope"]),
            )
        )
    scores = ("Brier (limit)", "ECE (limit)", "KS error (limit)", "intercept (0)", "slope (1)")
    head = ("Tier", "state", "proven", "labels", "claimed", "right, latest 500", *scores)
    return Table(head, tuple(rows))


def _cox(one: Json) -> str:
    """The intercept or the slope of y on logit p."""
    return "too few" if "insufficient" in one else f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"


def _error(one: Json) -> str:
    return (
        f"Wrong among accepted answers: between {one['low']:.1%} and {one['high']:.1%} (n = {one['n']:,}, labelled "
        f"{one['labels']:,}); the objective is {one['limit']:.1%}. {one['state']}."
    )


def _drift(places: Sequence[Json]) -> Table:
    rows = []
    for place in (part for whole in places for part in with_slices(whole)):
        looked = place["state"] != "unknown"
        state = "fails" if place["state"] == "drifted" else place["state"]
        names = ", ".join(shift["what"] for shift in place.get("drifted", ()))
        where = [place["tier"], place.get("slice"), by_worker(place)]
        rows.append(
            (
                ", ".join(filter(None, where)),
                state,
                f"{place['n']:,} against {place['n_reference']:,}" if looked else "–",
                f"{place['largest_effect']:.3f}" if looked else "–",
                f"{place['out_of_distribution']:.1%}" if looked else "–",
                names or place["why"] or "–",
            )
        )
    head = ("Tier", "state", "rows", "largest KS distance", "out of distribution", "what drifted, or why unknown")
    return Table(head, tuple(rows), words=frozenset({5}))


def _promises(certificate: Json | None) -> list[Block]:
    if certificate is None:
        return [Text("Nothing: this policy carries no certificate.")]
    if not certificate["holds"]:
        return [Banner("CERTIFICATE WITHDRAWN", bad=True), Text(f"It promises nothing any more: {certificate['why']}.")]
    return [
        Text(f"By the certificate of {certificate['issued']}:"),
        Bullets(tuple(certificate["promises"])),
        Text("as long as:"),
        Bullets(tuple(certificate["assumptions"])),
    ]


def _tested(tested: Mapping[str, Any] | None) -> list[Block]:
    if tested is None:
        return [Text("None that are known of what is served.")]
    rows = []
    for whole in tested["wholes"]:
        right = whole["right"]
        spread = "" if right["low"] is None else f" [{right['low']:.1%}, {right['high']:.1%}]"
        failed = whole["failed"]
        verdict = whole["insufficient"] or ("fails" if failed else "holds")
        rows.append(
            (
                whole["name"],
                verdict,
                f"{whole['n']:,}",
                "–" if whole["claimed"] is None else f"{whole['claimed']:.1%}",
                f"{right['value']:.1%}{spread}",
                ", ".join(failed) if failed else "–",
            )
        )
    return [
        Text(f"Offline, on {tested['created'][:10]}, on held-out answers of the very tiers that are served:"),
        Table(("Distribution", "calibration", "n", "claimed", "right", "checks that fail"), tuple(rows)),
    ]


def _slos(slos: Sequence[Json]) -> Table:
    rows = [
        (
            ", ".join(filter(None, [objective_of(slo), by_worker(slo)])),
            "fails" if slo["state"] == "burning" else slo["state"],
            "–" if slo["budget"] is None else f"{slo['budget']:.2%}",
            *(told or "–" for told in burned(slo).values()),
            slo["why"] or "–",
        )
        for slo in slos
    ]
    burns = [f"burn in {span(seconds)}" for seconds in WINDOWS]
    head = ("Objective", "state", "may go wrong", *burns, "why so much, or why unknown")
    return Table(head, tuple(rows), words=frozenset({len(head) - 1}))


def _alarms(alarms: Sequence[Json]) -> Block:
    if not alarms:
        return Text("None.")
    rows = tuple(
        (
            alarm["since"],
            f"{alarm['kind']} {alarm['what']}".strip() + (", elsewhere" if alarm["elsewhere"] else ""),
            " ".join(filter(None, (alarm["slice"], alarm["tier"]))) or "all",
            alarm["why"],
        )
        for alarm in alarms
    )
    return Table(("Since", "kind", "where", "why"), rows, numbers=False)


def by_worker(one: Json) -> str:
    """Whose part of the traffic a row is of, "" where there is one process."""
    return f"worker {one['worker']}" if "worker" in one else ""


def told_by(one: Json) -> str:
    return f" at {by_worker(one)}" if "worker" in one else ""


def _hash(sha256: str | None) -> str:
    return "none" if sha256 is None else f"sha256 {sha256[:12]}"
