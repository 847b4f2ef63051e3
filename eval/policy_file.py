"""Put a policy into a cascade file and leave everything else in it as it was written, comments included.

Only the steps of one policy are touched: the thresholds alone where the tiers stay the same, else the list of steps;
and its certificate, which belongs to the steps: the new one takes the old one's place, and without a new one it goes.
The outcome is read again and must differ from what was there in these two and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from eval.records import replacing
from gateway.certificate import Certificate
from gateway.config import Config, compose, parse
from gateway.errors import ConfigError

WIDTH = 110  # of the certificate's lines
ENDLESS = 1_000_000  # for one line

Steps = Sequence[tuple[str, float | None]]  # (tier, accept_at), None for the last


def write(path: Path, policy: str, steps: Steps, certificate: Certificate | None = None) -> None:
    """Raises ConfigError when there is no such policy, or the file is written in a way that cannot be edited safely."""
    text = path.read_text(encoding="utf-8")
    changed = edited(text, path, policy, steps, certificate)
    with replacing(path) as draft:
        draft.write_text(changed, encoding="utf-8")


def edited(text: str, path: Path, policy: str, steps: Steps, certificate: Certificate | None = None) -> str:
    """The file's text with the policy's steps and certificate in place of its old ones."""
    before = parse(text, path)
    if policy not in before.policies:
        raise ConfigError(f"{path}: no policy {policy!r} to write to; have {', '.join(before.policies)}")
    if before.policies[policy].mix:
        raise ConfigError(f"{path}: policy {policy!r} is a mix of others; write to one of those, or to another policy")
    changed = _without_certificate(text, path, policy)
    node = _child(_policy(changed, path, policy), "steps")
    assert isinstance(node, yaml.SequenceNode), "a configuration that was accepted"
    if [step.tier for step in before.policies[policy].steps] == [tier for tier, _ in steps]:
        changed = _thresholds(changed, node, steps)
    else:
        changed = _splice(changed, node.start_mark.index, _end(node), _written(node, steps))
    if certificate is not None:
        changed = _with_certificate(changed, path, policy, certificate)
    _check(before, parse(changed, path), path, policy, steps, certificate)
    return changed


def _policy(text: str, path: Path, policy: str) -> yaml.MappingNode:
    node = _child(_child(compose(text, path)[0], "policies"), policy)
    assert isinstance(node, yaml.MappingNode), "a configuration that was accepted"
    return node


def _without_certificate(text: str, path: Path, policy: str) -> str:
    """With the whole lines it stood on, or the comma before it."""
    node = _policy(text, path, policy)
    names = [getattr(key, "value", None) for key, _ in node.value]
    if "certificate" not in names:
        return text
    place = names.index("certificate")
    key, value = node.value[place]
    if node.flow_style:
        start = _end(node.value[place - 1][1]) if place else key.start_mark.index
        end = _end(value) if place else node.value[1][0].start_mark.index
        return _splice(text, start, end, "")
    return _splice(text, text.rfind("\n", 0, key.start_mark.index) + 1, _line_end(text, _end(value)), "")


def _with_certificate(text: str, path: Path, policy: str, certificate: Certificate) -> str:
    """Behind the last entry of the policy, in its own style."""
    node = _policy(text, path, policy)
    told = certificate.model_dump(mode="json", exclude_none=True) | {"issued": certificate.issued}
    end = _end(node)
    if node.flow_style:
        inside = _end(node.value[-1][1])
        flow = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, default_flow_style=True, width=ENDLESS)
        return _splice(text, inside, inside, f", certificate: {flow.strip()}")
    column = " " * node.start_mark.column
    block = yaml.safe_dump({"certificate": told}, sort_keys=False, allow_unicode=True, indent=2, width=WIDTH)
    lines = "".join(f"{column}{line}\n" for line in block.splitlines())
    end = _line_end(text, end)
    return _splice(text, end, end, lines if text[:end].endswith("\n") else f"\n{lines}")


def _line_end(text: str, place: int) -> int:
    """Where the next line begins."""
    newline = text.find("\n", place)
    return len(text) if newline < 0 else newline + 1


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


def _check(
    before: Config, after: Config, path: Path, policy: str, steps: Steps, certificate: Certificate | None
) -> None:
    """Raises ConfigError unless the steps and the certificate, and nothing else, are as wanted. Aliases share a node,
    for one."""
    wanted = [(tier, accept_at) for tier, accept_at in steps]
    written = after.policies[policy]
    got = [(step.tier, step.accept_at) for step in written.steps]
    old = before.policies[policy]
    same = written.model_copy(update={"steps": old.steps, "certificate": old.certificate})
    restored = after.policies | {policy: same}
    as_wanted = got == wanted and written.certificate == certificate
    if not as_wanted or after.model_copy(update={"policies": restored}) != before:
        by_hand = ", ".join(f"{tier} at {accept_at}" for tier, accept_at in wanted)
        raise ConfigError(f"{path}: policy {policy!r} cannot be changed alone (a shared alias?); by hand: {by_hand}")
