"""Put a policy into a cascade file and leave everything else in it as it was written, comments included.

Only the steps of one policy are touched: the thresholds alone where the tiers stay the same, else the list of steps;
and its certificate, which belongs to the steps: the new one takes the old one's place, and without a new one it goes.
A mix is written as two policies and one that draws between them; what is not there yet is put behind the last policy.
The outcome is read again and must differ from what was there in these and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.records import replacing
from gateway.certificate import Certificate
from gateway.config import Config, Part, PolicyEntry, compose, parse
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


def write_mix(path: Path, policy: str, parts: Mapping[str, tuple[Steps, float]]) -> None:
    """Each part as a policy of its own, and `policy` as their mix. parts: by name, in the order drawn: steps and share.

    Raises ConfigError like `write`, and where `policy` says more than its steps, which a mix could not keep.
    """
    changed = mixed(path.read_text(encoding="utf-8"), path, policy, parts)
    with replacing(path) as draft:
        draft.write_text(changed, encoding="utf-8")


def mixed(text: str, path: Path, policy: str, parts: Mapping[str, tuple[Steps, float]]) -> str:
    """The file's text with those policies."""
    before = parse(text, path).policies
    if policy in parts:
        raise ConfigError(f"{path}: a mix cannot be a part of itself: {policy!r}")
    if policy in before and (before[policy].model_fields_set - {"steps", "certificate", "mix", "mix_key"}):
        raise ConfigError(f"{path}: policy {policy!r} says more than its steps, which a mix cannot; name another one")
    changed = text
    for name, (steps, _) in parts.items():
        if name in before:
            changed = edited(changed, path, name, steps)
        else:
            new = {"steps": [_step(tier, accept_at) for tier, accept_at in steps]}
            changed = _added(changed, _policies(changed, path), name, new)
    told: dict[str, Any] = {"mix": [{"policy": name, "share": share} for name, (_, share) in parts.items()]}
    if policy not in before:
        changed = _added(changed, _policies(changed, path), policy, told)
    else:
        told |= {"mix_key": before[policy].mix_key} if before[policy].mix_key else {}
        node = _policy(changed, path, policy)
        written = _in_line(told) if node.flow_style else _block(told, node.start_mark.column)
        changed = _splice(changed, node.start_mark.index, _end(node), written)
    _check_mix(parse(text, path), parse(changed, path), path, policy, parts)
    return changed


def _check_mix(
    before: Config, after: Config, path: Path, policy: str, parts: Mapping[str, tuple[Steps, float]]
) -> None:
    """Raises ConfigError unless the mix and its parts, and nothing else, are as wanted."""
    wanted = tuple(Part(policy=name, share=share) for name, (_, share) in parts.items())
    as_wanted = after.policies[policy].mix == wanted and all(
        [(step.tier, step.accept_at) for step in after.policies[name].steps] == list(steps)
        for name, (steps, _) in parts.items()
    )
    touched = {policy, *parts}

    def others(policies: Mapping[str, PolicyEntry]) -> dict[str, PolicyEntry]:
        return {name: entry for name, entry in policies.items() if name not in touched}

    same = vars(after) | {"policies": before.policies} == vars(before)  # all but the text it was read from
    if not as_wanted or not same or others(after.policies) != others(before.policies):
        raise ConfigError(f"{path}: policy {policy!r} cannot be changed alone (a shared alias?); write the mix by hand")


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


def _policies(text: str, path: Path) -> yaml.MappingNode:
    node = _child(compose(text, path)[0], "policies")
    assert isinstance(node, yaml.MappingNode), "a configuration that was accepted"
    return node


def _policy(text: str, path: Path, policy: str) -> yaml.MappingNode:
    node = _child(_policies(text, path), policy)
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
    return _added(text, node, "certificate", told)


def _added(text: str, node: yaml.MappingNode, key: str, told: Mapping[str, Any]) -> str:
    """With one more entry behind the last of a mapping, in its own style."""
    if node.flow_style:
        inside = _end(node.value[-1][1])
        return _splice(text, inside, inside, f", {key}: {_in_line(told)}")
    column = node.start_mark.column
    lines = f"{' ' * column}{_block({key: told}, column)}\n"
    end = _line_end(text, _end(node))
    return _splice(text, end, end, lines if text[:end].endswith("\n") else f"\n{lines}")


def _in_line(told: object) -> str:
    return str(
        yaml.safe_dump(told, sort_keys=False, allow_unicode=True, default_flow_style=True, width=ENDLESS)
    ).strip()


def _block(told: Mapping[str, Any], column: int) -> str:
    """Lines from the second on begin at the column."""
    block = yaml.safe_dump(told, sort_keys=False, allow_unicode=True, indent=2, width=WIDTH)
    return ("\n" + " " * column).join(block.splitlines())


def _step(tier: str, accept_at: float | None) -> dict[str, Any]:
    return {"tier": tier} if accept_at is None else {"tier": tier, "accept_at": accept_at}


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
    if not as_wanted or vars(after) | {"policies": restored} != vars(before):
        by_hand = ", ".join(f"{tier} at {accept_at}" for tier, accept_at in wanted)
        raise ConfigError(f"{path}: policy {policy!r} cannot be changed alone (a shared alias?); by hand: {by_hand}")
