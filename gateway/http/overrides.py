"""What one request may change about its own route, within what the configuration allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gateway.config import Config
from gateway.http.errors import RequestError
from gateway.http.quota import Estimate
from gateway.http.wire import Request, shown
from gateway.nouns import HARMLESS, Ability, Mix, Mode, Policy, Tier
from gateway.written import unknown


def policy_asked(request: Request) -> str:
    """The model asked for. Raises RequestError with 400 where it is said in both ways."""
    if request.model != "auto" and request.route and request.route.policy is not None:
        raise RequestError(400, "route.policy needs the model auto.", param="route.policy")
    return request.policy


def seconds(request: Request, config: Config) -> float:
    """How long the request may take. Raises RequestError with 400."""
    most = config.server.request_seconds
    wanted = request.route.deadline_seconds if request.route else None
    if wanted is None:
        return most
    if not config.overrides.deadline or wanted > most:
        raise bound("deadline_seconds", f"at most {most:g}" if config.overrides.deadline else None)
    return wanted


def debug(request: Request, header: str, config: Config) -> bool:
    """Whether the whole route is shown. Raises RequestError with 400 when that is not allowed."""
    by_field, by_header = request.debug, header.lower() in ("true", "1")
    if (by_field or by_header) and not config.overrides.debug:
        raise bound("debug", None)
    return by_field or by_header


def mode(route: Policy, request: Request, config: Config) -> Mode:
    """How the request's stream comes about. Raises RequestError with 400 where nothing could decide on a prefix."""
    found = request.mode(route.stream_mode)
    if found is Mode.PREFIX:
        can = {tier.name for tier in config.tiers if tier.prefix_calibrator is not None}
        if not all(tier.name in can for tier in route.tiers[:-1]):
            told = "route.stream_mode prefix needs tiers with a calibrator that was fitted on first tokens."
            raise RequestError(400, told, param="route.stream_mode")
    return found


def check_mix(mix: Mix, request: Request) -> None:
    """Raises RequestError with 400 where only some of its parts have the tier: no lot decides what is a mistake."""
    if request.route is None or request.route.max_tier is None:
        return
    wanted = request.route.max_tier
    shared = set.intersection(*({tier.name for tier in part.tiers} for part in mix.parts))
    if wanted not in shared:
        told = unknown("tier", shown(wanted), dict.fromkeys(sorted(shared)))
        raise RequestError(400, f"route.max_tier: in every part of {mix.name} there is {told}.", param="route.max_tier")


def apply(route: Policy, request: Request, config: Config, estimate: Estimate, needs: Mapping[Ability, str]) -> Policy:
    """The route as the request wants it. Raises RequestError with 400 and the field that is out of its bounds.

    needs: what tiers must be able to do, each with the field that says so.
    """
    asked = request.route
    if asked is None:
        return able(route, needs)
    allowed = config.overrides
    if route.bypass and (asked.threshold is not None or asked.max_tier is not None):
        name = "threshold" if asked.threshold is not None else "max_tier"
        raise RequestError(400, f"route.{name} needs a policy, not a tier, as the model.", param=f"route.{name}")
    if asked.threshold is not None:
        if allowed.threshold is None or not allowed.threshold[0] <= asked.threshold <= allowed.threshold[1]:
            bounds = allowed.threshold and f"from {allowed.threshold[0]:g} to {allowed.threshold[1]:g}"
            raise bound("threshold", bounds)
        route = with_tiers(route, [replace(tier, threshold=asked.threshold) for tier in route.tiers])
    if asked.max_tier is not None:
        if not allowed.max_tier:
            raise bound("max_tier", None)
        names = {tier.name: place for place, tier in enumerate(route.tiers)}
        if asked.max_tier not in names:
            told = unknown("tier", shown(asked.max_tier), names)
            raise RequestError(400, f"route.max_tier: there is {told}.", param="route.max_tier")
        route = with_tiers(route, route.tiers[: names[asked.max_tier] + 1])
    route = able(route, needs)
    if asked.budget_usd is not None:
        if not allowed.budget:
            raise bound("budget_usd", None)
        route = within(route, asked.budget_usd, estimate)
    return route


def able(route: Policy, needs: Mapping[Ability, str]) -> Policy:
    """The tiers that can do what is needed. Raises RequestError with 400 when none can.

    A tier whose calibrator was not fitted for it could not be accepted, so it is not asked unless it is the last one.
    """
    if not needs:
        return route
    can = [tier for tier in route.tiers if needs.keys() <= tier.abilities]
    if not can:
        together = {ability for tier in route.tiers for ability in tier.abilities}
        field = next((field for ability, field in needs.items() if ability not in together), [*needs.values()][-1])
        told = f"{field} is not supported by {'this model' if len(route.tiers) == 1 else 'any model of this policy'}."
        raise RequestError(400, told, param=field, code="unsupported_parameter")
    judged = needs.keys() - HARMLESS
    kept = [*(tier for tier in can[:-1] if judged <= tier.fitted_for), can[-1]]
    return route if len(kept) == len(route.tiers) else with_tiers(route, kept)


def within(route: Policy, usd: float, estimate: Estimate) -> Policy:
    """The tiers that all together cannot cost more, by the estimate. Raises RequestError when that is none."""
    kept: list[Tier] = []
    spent = 0.0
    for tier in route.tiers:
        spent += estimate.usd(tier.prices)
        if spent > usd:
            break
        kept.append(tier)
    if len(kept) == len(route.tiers):
        return route
    if not kept:
        told = f"route.budget_usd: even {route.tiers[0].name} may take {spent:.3g}; limit max_tokens, or allow more."
        raise RequestError(400, told, param="route.budget_usd")
    return replace(with_tiers(route, kept), curtailed=True)


def with_tiers(route: Policy, tiers: list[Tier] | tuple[Tier, ...]) -> Policy:
    """Other tiers; whoever is last answers whatever comes. A certificate says nothing about these."""
    return replace(route, tiers=(*tiers[:-1], replace(tiers[-1], threshold=None)), certified=False)


def bound(name: str, bounds: str | None) -> RequestError:
    told = f"route.{name} may be {bounds} here." if bounds else f"route.{name} is not allowed here."
    return RequestError(400, told, param=f"route.{name}", code=None if bounds else "unsupported_parameter")
