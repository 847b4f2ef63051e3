"""The rollout as the audit log has it: a step is written down first and counts from then on, also after a crash."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gateway.errors import AuditBroken, RolloutRefused
from gateway.monitor import audit, rollout
from gateway.monitor.rollout import Release, Stage, State, Step

STATE = "state"


def now(path: Path) -> State | None:
    """The state after the last step; None before the first. Raises AuditBroken, StoreDown."""
    return _last(path)[1]


def _last(path: Path) -> tuple[int, State | None]:
    """How many steps there were, and the state after them."""
    events = audit.read(path)
    if not events:
        return 0, None
    told = events[-1].facts.get(STATE)
    try:
        return len(events), _state(told)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise AuditBroken(str(path), len(events) - 1, f"no state of a rollout ({error!r})") from None


def begin(path: Path, live: Release, *, who: str, at: float) -> State:
    """What is in service when a rollout is set up for the first time. at: seconds since 1970."""
    state = State(live=live, since=at)
    _write(path, 0, state, who=who, at=at, action="begin", why=("the first release",), facts={})
    return state


def take(path: Path, state: State, step: Step, *, who: str, at: float, candidate: Release | None = None) -> State:
    """Write a step down and return the state it leads to; only then may anybody act on it.

    who: a key's name, or the program's own for a step that it decided.  candidate: of a step into shadow.
    Raises RolloutRefused for a step that is not possible, and for one decided on a state that is no longer the last.
    """
    number, last = _last(path)
    if last != state:
        raise RolloutRefused("somebody took another step meanwhile; look at the rollout again")
    following = rollout.after(state, step, at, candidate)
    _write(path, number, following, who=who, at=at, action=step.action, why=step.why, facts=step.facts)
    return following


def note(
    path: Path, state: State, action: str, *, who: str, at: float, why: tuple[str, ...], facts: Mapping[str, object]
) -> None:
    """Write down what was seen and is no step. Raises RolloutRefused when the state is no longer the last."""
    number, last = _last(path)
    if last != state:
        raise RolloutRefused("somebody took another step meanwhile; look at the rollout again")
    _write(path, number, state, who=who, at=at, action=action, why=why, facts=facts)


def _write(
    path: Path,
    number: int,
    state: State,
    *,
    who: str,
    at: float,
    action: str,
    why: tuple[str, ...],
    facts: Mapping[str, object],
) -> None:
    when = dt.datetime.fromtimestamp(at, dt.UTC).isoformat()
    told: dict[str, Any] = {**facts, "why": list(why), STATE: asdict(state)}
    audit.append(path, at=when, who=who, action=str(action), facts=told, number=number)


def _state(told: Mapping[str, Any]) -> State:
    return State(
        live=_release(told["live"]),
        good=tuple(release for each in told["good"] if (release := _release(each)) is not None),
        candidate=_release(told["candidate"]),
        stage=Stage(told["stage"]),
        since=float(told["since"]),
        share=float(told.get("share", 0.0)),
    )


def _release(told: Mapping[str, Any] | None) -> Release | None:
    return None if told is None else Release(dict(told["artifacts"]), dict(told["thresholds"]))
