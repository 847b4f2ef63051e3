"""What the monitors have seen, as alarms and as plain JSON. Pure: everything comes in as an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.monitor.alarms import Alarm, Alarms, Kind
from gateway.monitor.clients import Excess
from gateway.monitor.drift import Shift
from gateway.monitor.evidence import Findings, Place, Served
from gateway.monitor.labels import ErrorVerdict
from gateway.monitor.settings import Monitors
from gateway.monitor.slices import Part
from gateway.monitor.slo import MIN_EVENTS, WINDOWS, Budget, Calibration, Objective
from gateway.monitor.watch import Watch
from gateway.store.telling import moment, table

Json = dict[str, Any]

NAMED = 3  # drifted features that an alarm names; the report has all


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """As of one look. certificates: by policy that carries one, why it does not hold, "" where it does.

    withheld: by tier, why it runs without its calibrator.  kept: whether there is a store.  trouble: of the store, by
    name.
    requests: that have ended here since `began`, seconds since 1970.
    """

    served: Served
    wanted: Monitors
    watch: Watch
    found: Findings
    certificates: Mapping[str, str]
    withheld: Mapping[str, str]
    kept: bool
    requests: int
    began: float
    trouble: Mapping[str, str] = field(default_factory=dict)


def alarms(seen: Seen, monotonic: float) -> list[Alarm]:
    """Everything that is wrong now."""
    found = [
        _drifted(shifts)
        for (policy, tier), shifts in seen.watch.latest.items()
        if any(shift.drifted for shift in shifts) and _comparable(seen, policy, tier)
    ]
    found += [
        _drifted(shifts)
        for (policy, tier, _), shifts in seen.watch.latest_of_slices.items()
        if any(shift.drifted for shift in shifts) and _comparable(seen, policy, tier)
    ]
    for place in seen.found.places:
        found += _dishonest(place)
    for error in seen.found.errors:
        if error.violated:
            told = f"errors among accepted answers are at least {error.low:.2%}, above {error.limit:.2%}"
            found.append(Alarm(Kind.ACCEPTED_ERROR, "", error.policy, told, page=True))
    found += [Alarm(Kind.CERTIFICATE, "", policy, why) for policy, why in seen.certificates.items() if why]
    found += [
        Alarm(Kind.CALIBRATOR, tier, policy, f"it runs without its calibrator: {why}")
        for policy, tiers in seen.served.items()
        for tier, why in seen.withheld.items()
        if tier in tiers
    ]
    for objective, policy, budget in seen.watch.promises():
        found += _burning(objective, policy, budget, monotonic)
    limits = {policy: budget.share for policy, budget in seen.watch.escalations.items()}
    found += [_excessive(one) for one in seen.watch.clients.excesses(limits, monotonic)]
    found += [Alarm(Kind.STORE, "", "", why, name, page=True) for name, why in seen.trouble.items()]
    if seen.kept and seen.found.unknown.startswith("labels cannot be read"):
        found.append(Alarm(Kind.UNREAD, "", "", seen.found.unknown))
    return found


def _comparable(seen: Seen, policy: str, tier: str) -> bool:
    """Whether the reference is of the calibrator that is served."""
    known, now = seen.watch.reference.tiers.get((policy, tier)), seen.served.get(policy, {}).get(tier)
    return known is not None and now is not None and known.calibrator == now[0]


def _drifted(shifts: Sequence[Shift]) -> Alarm:
    worst = sorted((shift for shift in shifts if shift.drifted), key=lambda shift: -shift.effect)
    told = "; ".join(f"{one.what}: effect {one.effect:.3f}, p = {one.p_value:.1g}" for one in worst[:NAMED])
    rest = f" and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
    first = shifts[0]
    why = f"{told}{rest} (n = {first.n:,} against {first.n_reference:,})"
    return Alarm(Kind.DRIFT, first.tier, first.policy, f"{first.slice}: {why}" if first.slice else why, first.slice)


def _dishonest(place: Place) -> list[Alarm]:
    verdict, seen = place.verdict, place.seen
    told = (
        f"claimed {seen.claimed:.1%}, right {seen.right:.1%} [{seen.low:.1%}, {seen.high:.1%}] of the latest {seen.n:,}"
    )
    found = []
    if verdict.overconfident:
        why = f"over-confident, proven on {verdict.n:,} labels (log wealth {verdict.log_over:.1f}); {told}"
        found.append(Alarm(Kind.OVERCONFIDENT, verdict.tier, verdict.policy, why, page=True))
    if verdict.underconfident:
        why = f"under-confident, proven on {verdict.n:,} labels (log wealth {verdict.log_under:.1f}); {told}"
        found.append(Alarm(Kind.UNDERCONFIDENT, verdict.tier, verdict.policy, why))
    return found


WENT_WRONG = {
    Objective.AVAILABILITY: "failed",
    Objective.LATENCY: "took too long",
    Objective.ESCALATION: "needed more than one tier",
}


def _burning(objective: Objective, policy: str, budget: Budget, monotonic: float) -> list[Alarm]:
    pairs = budget.alarms(monotonic)
    if not pairs:
        return []
    worst = max(pairs, key=lambda pair: pair.burn)
    bad, n = budget.seen(monotonic, worst.short_seconds)
    why = (
        f"{bad:,} of {n:,} {WENT_WRONG[objective]} in {span(worst.short_seconds)}, "
        f"{budget.burn(monotonic, worst.long_seconds):.1f} times the budget of {budget.share:.1%} "
        f"over {span(worst.long_seconds)}"
    )
    return [Alarm(Kind.SLO, "", policy, why, what=str(objective), page=worst.page)]


def _excessive(one: Excess) -> Alarm:
    why = (
        f"{one.bad:,} of {one.n:,} requests of key {one.client} {WENT_WRONG[Objective.ESCALATION]} within the hour; "
        f"{one.limit:.1%} may"
    )
    return Alarm(Kind.SLO, "", one.policy, why, what=f"{Objective.ESCALATION} by {one.client}")


def report(seen: Seen, alarms: Alarms, wall: float, monotonic: float) -> Json:
    """Everything, for `GET /admin/monitors`. wall: seconds since 1970."""
    found = seen.found
    return {
        "at": moment(wall),
        "covers": {"requests": seen.requests, "since": moment(seen.began)},
        "alarms": alarms.told(),
        "policies": [
            {
                "policy": policy,
                "calibration": str(found.states.get(policy, Calibration.UNKNOWN)),
                "certificate": _certificate(seen, policy),
                "not_valid": alarms.voiding(policy),
            }
            for policy in seen.served
        ],
        "monitors": {
            "drift": [_drift(seen, policy, tier) for policy, tiers in seen.served.items() for tier in tiers],
            "labels": {
                "unknown": found.unknown or None,
                "by": seen.wanted.labels_by,
                "of": seen.wanted.labels_of,
                "needed": seen.wanted.slos.min_labels,
                "read_at": None if found.read_at is None else moment(found.read_at),
                "first_at": None if found.first_at is None else moment(found.first_at),
                "newest_at": None if found.newest_at is None else moment(found.newest_at),
                "revised": found.revised,
                "tests": [_test(place, seen) for place in found.places],
                "accepted_error": [_error(error, seen) for error in found.errors],
            },
        },
        "slos": [
            *(_slo(objective, "", budget, monotonic) for objective, budget in seen.watch.budgets.items()),
            *(_escalation(policy, seen.watch, monotonic) for policy in seen.watch.allowed),
        ],
    }


def _certificate(seen: Seen, policy: str) -> Json | None:
    if policy not in seen.certificates:
        return None
    return {"holds": not seen.certificates[policy], "why": seen.certificates[policy] or None}


def _drift(seen: Seen, policy: str, tier: str) -> Json:
    watch, place = seen.watch, (policy, tier)
    label, _ = seen.served[policy][tier]
    known = watch.reference.tiers.get(place)
    told: Json = {"policy": policy, "tier": tier, "calibrator": label, "state": "unknown", "why": None}
    if known is None:
        told["why"] = "the reference has no such tier" if watch.reference.tiers else "no reference is configured"
        return told
    if known.calibrator != label:
        told["why"] = f"the reference is of {known.calibrator}, served is {label}"
        return told
    waiting, shifts = watch.windows.waiting().get(place, 0), watch.latest.get(place)
    told |= {"slices": [_slice(seen, part) for part in watch.slices.of(policy, tier)]}
    told |= {"rows": waiting, "rows_needed": seen.wanted.rows, "n_reference": len(known.rows)}
    told |= {"reference_had_of": known.had_of or None}
    if place in watch.together:
        mmd2, p_value = watch.together[place]
        told |= {"looks": watch.looks, "all_features": {"mmd2": mmd2, "p_value": p_value}}
    return told | _looked(shifts, waiting, seen.wanted.rows)


def _slice(seen: Seen, part: Part) -> Json:
    slices, (policy, tier, name) = seen.watch.slices, part
    told: Json = {"policy": policy, "tier": tier, "slice": name, "state": "unknown", "why": slices.blind.get(part)}
    known = slices.references.get(part)
    if known is None:
        return told
    waiting = slices.waiting(part)
    told |= {"rows": waiting, "rows_needed": seen.wanted.rows, "n_reference": len(known.rows)}
    return told | _looked(seen.watch.latest_of_slices.get(part), waiting, seen.wanted.rows)


def _looked(shifts: Sequence[Shift] | None, waiting: int, needed: int) -> Json:
    """What a look found, or how far the first one is."""
    if not shifts:
        return {"why": f"{waiting:,} of {needed:,} rows for a first look"}
    drifted = [shift for shift in shifts if shift.drifted]
    return {
        "state": "drifted" if drifted else "quiet",
        "n": shifts[0].n,
        "out_of_distribution": next(shift.effect for shift in shifts if shift.what == "ood"),
        "largest_effect": max(shift.effect for shift in shifts if shift.what != "ood"),
        "drifted": [asdict(shift) for shift in drifted],
    }


def _test(place: Place, seen: Seen) -> Json:
    verdict = place.verdict
    state = "broken" if verdict.overconfident or verdict.underconfident else "holds"
    if state == "holds" and (seen.found.unknown or verdict.n < seen.wanted.slos.min_labels):
        state = "unknown"
    return {
        "policy": verdict.policy,
        "tier": verdict.tier,
        "calibrator": verdict.calibrator or None,
        "state": state,
        "n": verdict.n,
        "log_wealth_over": verdict.log_over,
        "log_wealth_under": verdict.log_under,
        "overconfident": verdict.overconfident,
        "underconfident": verdict.underconfident,
        "latest": asdict(place.seen),
        "rolling": None if place.rolling is None else place.rolling.as_json(),
    }


def _error(error: ErrorVerdict, seen: Seen) -> Json:
    state = "broken" if error.violated else "holds"
    if state == "holds" and (seen.found.unknown or error.labels < seen.wanted.slos.min_labels):
        state = "unknown"
    return asdict(error) | {"state": state}


def _escalation(policy: str, watch: Watch, monotonic: float) -> Json:
    allowed = watch.allowed[policy]
    if policy not in watch.escalations:
        told: Json = {"objective": str(Objective.ESCALATION), "policy": policy, "budget": None, "state": "unknown"}
        return told | {"page": False, "windows": [], "why": allowed.why}
    told = _slo(Objective.ESCALATION, policy, watch.escalations[policy], monotonic)
    if allowed.expected is None:
        return told
    why = f"{allowed.expected:.1%} are expected by {allowed.n:,} answers of the reference; twice their odds are allowed"
    return told | {"why": why}


def _slo(objective: Objective, policy: str, budget: Budget, monotonic: float) -> Json:
    pairs = budget.alarms(monotonic)
    counted = {seconds: budget.seen(monotonic, seconds) for seconds in WINDOWS}
    enough = any(n >= MIN_EVENTS for _, n in counted.values())
    return {
        "objective": str(objective),
        "policy": policy or None,
        "why": None,
        "budget": budget.share,
        "state": "burning" if pairs else "holds" if enough else "unknown",
        "page": any(pair.page for pair in pairs),
        "windows": [
            {"seconds": seconds, "bad": bad, "n": n, "burn": budget.burn(monotonic, seconds)}
            for seconds, (bad, n) in counted.items()
        ],
    }


def joined(reports: Sequence[tuple[int, Json]]) -> Json:
    """Those of several workers, each with its number, as one. Each sees its own part of the traffic, so drift and
    budgets are listed for each; labels are everybody's, so the report that read them last speaks for all.
    """
    latest = max((one for _, one in reports), key=lambda one: one["monitors"]["labels"]["read_at"] or "")
    alarms: dict[tuple[str, ...], Json] = {}
    for seat, one in reports:
        for alarm in one["alarms"]:
            about = tuple(str(alarm[name]) for name in ("kind", "tier", "slice", "what"))
            known = alarms.setdefault(about, alarm | {"workers": []})
            known["since"] = min(known["since"], alarm["since"])
            if not alarm["elsewhere"]:
                known["workers"].append(seat)
                known |= {"elsewhere": False, "why": alarm["why"]}
    void = {
        policy["policy"]: list(dict.fromkeys(why for _, one in reports for why in _void(one, policy["policy"])))
        for policy in latest["policies"]
    }
    return latest | {
        "alarms": sorted(alarms.values(), key=lambda alarm: str(alarm["since"])),
        "policies": [policy | {"not_valid": void[policy["policy"]]} for policy in latest["policies"]],
        "monitors": {
            "drift": [{"worker": seat} | place for seat, one in reports for place in one["monitors"]["drift"]],
            "labels": latest["monitors"]["labels"],
        },
        "slos": [{"worker": seat} | slo for seat, one in reports for slo in one["slos"]],
        "refits": [fit for _, one in reports for fit in one.get("refits", ())],
        "covers": {
            "requests": sum(one["covers"]["requests"] for _, one in reports),
            "since": min(one["covers"]["since"] for _, one in reports),
            "workers": [seat for seat, _ in reports],
        },
    }


def coverage(covers: Json) -> str:
    """Whose traffic all is about that needs no labels."""
    whose = f"the workers {', '.join(map(str, covers['workers']))}" if "workers" in covers else "this process"
    return (
        f"traffic is of {whose} since {covers['since']}, {covers['requests']:,} requests; labels are all in the store"
    )


def _void(report: Json, policy: str) -> list[str]:
    return [why for one in report["policies"] if one["policy"] == policy for why in one["not_valid"]]


def as_text(report: Json) -> str:
    """The same for people."""
    parts = [f"as of {report['at']}; {coverage(report['covers'])}"]
    alarms = [
        {
            "since": one["since"],
            "kind": f"{one['kind']} {one['what']}".strip() + (" (elsewhere)" if one["elsewhere"] else ""),
            "policy": one["slice"] or "-",
            "tier": one["tier"] or "-",
        }
        | {"why": one["why"]}
        for one in report["alarms"]
    ]
    parts.append(table(alarms) if alarms else "no alarms")
    parts.append(
        table(
            [
                {"policy": one["policy"], "calibration": one["calibration"], "certificate": _held(one["certificate"])}
                for one in report["policies"]
            ]
        )
    )
    labels = report["monitors"]["labels"]
    parts.append(f"labels: {labels['unknown'] or _counted(labels)}")
    if labels["tests"]:
        parts.append(table([_test_line(one) for one in labels["tests"]]))
    places = [part for one in report["monitors"]["drift"] for part in with_slices(one)]
    parts.append(table([_drift_line(one, sliced=len(places) > len(report["monitors"]["drift"])) for one in places]))
    parts.append(table([_slo_line(one) for one in report["slos"]]))
    if report.get("refits"):
        names = ("state", "cause", "at", "why")
        parts.append(
            table([{"fit of": one["tier"], **{name: one[name] for name in names}} for one in report["refits"]])
        )
    return "\n\n".join(parts)


def _held(certificate: Json | None) -> str:
    return "none" if certificate is None else "holds" if certificate["holds"] else str(certificate["why"])


def _counted(labels: Json) -> str:
    whose = "of explored answers" if labels["of"] == "explored" else "of all answers"
    return f"by {labels['by']}, {whose}, read at {labels['read_at']}; {labels['needed']:,} are needed"


def _test_line(one: Json) -> Json:
    seen = one["latest"]
    return {
        "policy": one["policy"],
        "tier": one["tier"],
        "state": one["state"],
        "labels": f"{one['n']:,}",
        "claimed": f"{seen['claimed']:.1%}",
        "right": f"{seen['right']:.1%} [{seen['low']:.1%}, {seen['high']:.1%}] of {seen['n']:,}",
        "wealth over": f"e^{one['log_wealth_over']:.1f}",
        "under": f"e^{one['log_wealth_under']:.1f}",
    }


def with_slices(place: Json) -> list[Json]:
    """What is told of a tier's drift, and then of each slice of it."""
    whose = {"worker": place["worker"]} if "worker" in place else {}
    return [place, *(part | whose for part in place.get("slices", ()))]


def _drift_line(one: Json, *, sliced: bool) -> Json:
    drifted = ", ".join(shift["what"] for shift in one.get("drifted", ()))
    return _worker(one) | {
        "policy": one["policy"],
        "tier": one["tier"],
        **({"slice": one.get("slice", "all")} if sliced else {}),
        "drift": one["state"],
        "n": f"{one['n']:,} against {one['n_reference']:,}" if "n" in one else "-",
        "largest effect": f"{one['largest_effect']:.3f}" if "n" in one else "-",
        "out of distribution": f"{one['out_of_distribution']:.1%}" if "n" in one else "-",
        "": drifted or one["why"] or "-",
    }


def _slo_line(one: Json) -> Json:
    burns = {f"burn in {window}": told or "-" for window, told in burned(one).items()}
    return _worker(one) | {
        "objective": objective_of(one),
        "state": one["state"],
        "budget": "-" if one["budget"] is None else f"{one['budget']:.1%}",
        **burns,
        "": one["why"] or "",
    }


def burned(one: Json) -> dict[str, str]:
    """How fast an objective of a report used up its budget, by window; "" where nothing is known."""
    seen = {w["seconds"]: f"{w['burn']:.1f} ({w['bad']:,}/{w['n']:,})" for w in one["windows"]}
    return {span(seconds): seen.get(seconds, "") for seconds in WINDOWS}


def objective_of(one: Json) -> str:
    """An objective of a report, with the policy it is of."""
    return f"{one['objective']} of {one['policy']}" if one["policy"] else str(one["objective"])


def span(seconds: float) -> str:
    """5 min, 6 h."""
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def _worker(one: Json) -> Json:
    return {"worker": str(one["worker"])} if "worker" in one else {}
