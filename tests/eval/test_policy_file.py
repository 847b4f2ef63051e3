"""Writing a policy into a cascade file: nothing else in it may change, not a comment, not a space."""

from pathlib import Path

import pytest

from eval import policy_file
from eval.policy_file import edited
from gateway.config import parse
from gateway.errors import ConfigError

PATH = Path("cascade.yaml")
HEAD = """\
# Ours.
keys: {allow_anonymous: true}   # on loopback
tiers:
  - {name: a, engine: {kind: openai_http, url: "http://h/v1", model: a}, calibrator: a.json}
  - {name: b, engine: {kind: openai_http, url: "http://h/v1", model: b}, calibrator: b.json}
  - {name: c, engine: {kind: openai_http, url: "http://h/v1", model: c}}
policies:
"""
BLOCK = """\
  default:
    # cheapest first
    steps:
      - tier: a
        accept_at: 0.9   # by hand
      - {tier: c}        # always answers
    # after the steps
    serve_fallback: false
  other: {steps: [{tier: b, accept_at: 0.5}, {tier: c}]}
"""


def steps(text: str, policy: str = "default") -> list[tuple[str, float | None]]:
    return [(step.tier, step.accept_at) for step in parse(text, PATH).policies[policy].steps]


def test_other_thresholds_for_the_same_tiers_change_the_numbers_alone() -> None:
    changed = edited(HEAD + BLOCK, PATH, "default", [("a", 0.87), ("c", None)])
    assert changed == (HEAD + BLOCK).replace("0.9 ", "0.87 ")


def test_another_chain_replaces_the_steps_and_leaves_the_comments_around_them() -> None:
    wanted = [("a", 0.5), ("b", 0.123456789012345), ("c", None)]
    changed = edited(HEAD + BLOCK, PATH, "default", wanted)
    assert steps(changed) == wanted
    for kept in ("# Ours.", "# on loopback", "# cheapest first", "    # after the steps\n    serve_fallback: false"):
        assert kept in changed
    assert steps(changed, "other") == [("b", 0.5), ("c", None)]
    assert changed.startswith(HEAD)


def test_a_list_in_brackets_stays_one() -> None:
    changed = edited(HEAD + BLOCK, PATH, "other", [("c", None)])
    assert changed.endswith("  other: {steps: [{tier: c}]}\n")
    assert steps(changed) == [("a", 0.9), ("c", None)]


@pytest.mark.parametrize("accept_at", [1e-05, 2.5e-07, 1.0, 0.0, 0.1 + 0.2])
def test_no_bit_of_a_threshold_is_lost(accept_at: float) -> None:
    for chain in (["a", "c"], ["b", "c"]):
        wanted = [(chain[0], accept_at), (chain[1], None)]
        assert steps(edited(HEAD + BLOCK, PATH, "default", wanted)) == wanted


def test_writing_twice_changes_nothing_more() -> None:
    wanted = [("b", 0.75), ("c", None)]
    once = edited(HEAD + BLOCK, PATH, "default", wanted)
    assert edited(once, PATH, "default", wanted) == once


def test_a_policy_that_is_not_there_or_is_shared_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="no policy 'nowhere' to write to; have default, other"):
        edited(HEAD + BLOCK, PATH, "nowhere", [("c", None)])
    shared = HEAD + "  default: &same {steps: [{tier: a, accept_at: 0.5}, {tier: c}]}\n  other: *same\n"
    with pytest.raises(ConfigError, match="cannot be changed alone"):
        edited(shared, PATH, "other", [("c", None)])


def test_the_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "cascade.yaml"
    path.write_text(HEAD + BLOCK)
    policy_file.write(path, "default", [("c", None)])
    assert steps(path.read_text()) == [("c", None)]
    with pytest.raises(ConfigError):
        policy_file.write(path, "default", [("nobody", 0.5), ("c", None)])
    assert steps(path.read_text()) == [("c", None)]
    assert [one.name for one in tmp_path.iterdir()] == ["cascade.yaml"]
