"""Put a policy into a cascade file and leave everything else in it as it was written, comments included.

Only the steps of one policy are touched: the thresholds alone where the tiers stay the same, else the list of steps.
The outcome is read again and must differ from what was there in that policy's steps and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from eval.records import replacing
from gateway.config import Config, compose, parse
from gateway.errors import ConfigError

Steps = Sequence[tuple[str, float | None]]  # (tier, accept_at), None for the last


def write(path: Path, policy: str, steps: Steps) -> None:
    """Raises ConfigError when there is no such policy, or the file is written in a way that cannot be edited safely."""
    text = path.read_text(encoding="utf-8")
    changed = edited(text, path, policy, steps)
    with replacing(path) as draft:
        draft.write_text(changed, encoding="utf-8")


def edited(text: str, path: Path, policy: str, steps: Steps) -> str:
    """The file's text with the policy's steps in place of its old ones."""
    before = parse(text, path)
    if policy not in before.policies:
        raise ConfigError(f"{path}: no policy {policy!r} to write to; have {', '.join(before.policies)}")
    node = _child(_child(_child(compose(text, path)[0], "policies"), policy), "steps")
    assert isinstance(node, yaml.SequenceNode), "a configuration that was accepted"
    if [step.tier for step in before.policies[policy].steps] == [tier for tier, _ in steps]:
        changed = _thresholds(text, node, steps)
    else:
        changed = _splice(text, node.start_mark.index, _end(node), _written(node, steps))
    _check(before, parse(changed, path), path, policy, steps)
    return changed


def _thresholds(text: str, node: yaml.SequenceNode, steps: Steps) -> str:
    """Only the numbers, from the last to the first, so that places before stay where they are."""
    for step, (_, accept_at) in reversed(list(zip(node.value, steps, strict=True))):
        if accept_at is not None:
            old = _child(step, "accept_at")
            text = _splice(text, old.start_mark.index, old.end_mark.index, _number(accept_at))
    return text


def _written(node: yaml.SequenceNode, steps: Steps) -> str:
    """The steps in the style the list was written in."""
    told = [
        f"{{tier: {tier}}}" if accept_at is None else f"{{tier: {tier}, accept_at: {_number(accept_at)}}}"
        for tier, accept_at in steps
    ]
    if node.flow_style:
        return f"[{', '.join(told)}]"
    return ("\n" + " " * node.start_mark.column).join(f"- {step}" for step in told)


def _number(accept_at: float) -> str:
    """As short as it goes without losing a bit; YAML 1.1 takes 1e-05 for a word, 1.0e-05 for a number."""
    mantissa, mark, exponent = repr(accept_at).partition("e")
    return f"{mantissa}.0e{exponent}" if mark and "." not in mantissa else repr(accept_at)


def _child(node: yaml.Node, key: str) -> yaml.Node:
    assert isinstance(node, yaml.MappingNode), "a configuration that was accepted"
    found: yaml.Node = next(value for name, value in node.value if getattr(name, "value", None) == key)
    return found


def _end(node: yaml.Node) -> int:
    """Where a node's own text ends. A block ends, by its mark, only where the next thing begins, past all comments."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return int(node.end_mark.index)
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _splice(text: str, start: int, end: int, new: str) -> str:
    return text[:start] + new + text[end:]


def _check(before: Config, after: Config, path: Path, policy: str, steps: Steps) -> None:
    """Raises ConfigError unless the steps, and nothing else, are as wanted. Aliases share a node, for one."""
    wanted = [(tier, accept_at) for tier, accept_at in steps]
    got = [(step.tier, step.accept_at) for step in after.policies[policy].steps]
    kept = before.policies[policy].steps
    restored = after.policies | {policy: after.policies[policy].model_copy(update={"steps": kept})}
    if got != wanted or after.model_copy(update={"policies": restored}) != before:
        by_hand = ", ".join(f"{tier} at {accept_at}" for tier, accept_at in wanted)
        raise ConfigError(f"{path}: policy {policy!r} cannot be changed alone (a shared alias?); by hand: {by_hand}")
